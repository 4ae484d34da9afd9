"""The users of the simulated X API: their bookmarks, their limit, and what was asked of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from sandbox.x_grants import SCOPES, Grant
from sandbox.x_posts import UNAVAILABLE, Item
from sandbox.x_shelf import Flaw, Shelf
from sandbox.x_window import Window

UserId = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]  # UPSTREAMS 4


class Subject(BaseModel, frozen=True, extra="forbid", coerce_numbers_to_str=True):
    """Whom an order of the control API is about."""

    id: UserId


class Authorization(Subject, frozen=True):
    """A user gives the app tokens: these, or some ("") that are made up.

    *refresh_token* None leaves it out; *expires_in* is seconds, None for the usual.
    """

    access_token: str = ""
    refresh_token: str | None = ""
    expires_in: float | None = None
    scopes: tuple[str, ...] = SCOPES


class Addition(Subject, frozen=True):
    """New bookmarks on top of a user's; the positions of *invalid* count from the newest, 0."""

    bookmarks: Annotated[int, Field(ge=0)] = 0
    invalid: tuple[Flaw, ...] = ()

    @model_validator(mode="after")
    def _flaws_have_their_bookmark(self) -> Self:
        if any(flaw.position >= self.bookmarks for flaw in self.invalid):
            raise ValueError("a position of `invalid` is beyond the last bookmark")
        return self


class Arrival(Addition, Authorization, frozen=True):
    """A user who has given the app tokens and has bookmarks; one of the same id is replaced."""


ARRIVALS = TypeAdapter(list[Arrival])


@dataclass(slots=True)
class User:
    """One user; *pages* counts how often the page of each token was answered."""

    id: str
    window: Window
    shelf: Shelf = field(init=False)
    requests: int = 0
    limit_answers: int = 0
    refreshes: int = 0
    tokens_issued: int = 0
    pages: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.id)

    @property
    def refetched(self) -> int:
        """How many pages were answered that had been before."""
        return self.pages.total() - len(self.pages)

    def sight(self, grant: Grant | None) -> dict[str, Any]:
        """Return what the control API tells of the user, who has *grant* now."""
        items = self.shelf.items
        return {
            "id": self.id,
            "requests": self.requests,
            "limit_answers": self.limit_answers,
            "pages": dict(self.pages),
            "refetched": self.refetched,
            "access_token": grant.access if grant else None,
            "refresh_token": grant.refresh if grant else None,
            "tokens_issued": self.tokens_issued,
            "refreshes": self.refreshes,
            "valid": [item.id for item in items if item.valid],
            "invalid": [
                _flaw(position, item)
                for position, item in enumerate(items)
                if not item.valid and item.kind not in UNAVAILABLE
            ],
            "unavailable": [
                _flaw(position, item)
                for position, item in enumerate(items)
                if item.kind in UNAVAILABLE
            ],
        }


def _flaw(position: int, item: Item) -> Mapping[str, Any]:
    return {"position": position, "id": item.id, "kind": item.kind}
