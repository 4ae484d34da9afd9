"""The bookmarks of one user at the simulated X API, the newest first, page by page."""

from __future__ import annotations

import hashlib
from base64 import b32encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from sandbox.x_posts import Item, Kind


@dataclass(frozen=True, slots=True)
class Flaw:
    """That the bookmark at *position*, 0 for the newest of those added with it, is of a *kind*."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    position: Annotated[int, Field(ge=0)]
    kind: Kind


class Shelf:
    """The bookmarks of *user*.

    A page begins behind the item that its token is anchored to: bookmarks that are added on top
    do not move it.
    """

    def __init__(self, user: str) -> None:
        self.items: list[Item] = []
        self._user = user
        self._anchors: dict[str, int] = {}

    def add(self, count: int, flaws: Sequence[Flaw] = ()) -> list[Item]:
        """Put *count* new bookmarks on top; return them, the newest first."""
        kinds = {flaw.position: flaw.kind for flaw in flaws}
        newest = len(self.items) + count
        added = [
            Item(self._user, newest - position, kinds.get(position)) for position in range(count)
        ]
        self.items[:0] = added
        return added

    def position(self, token: str) -> int | None:
        """Return where the page of *token* begins, 0 for ""; None if it was never given out."""
        if not token:
            return 0
        anchor = self._anchors.get(token)
        # Numbers count from the oldest: the item with number 1 is the last.
        return None if anchor is None else len(self.items) - anchor + 1

    def page(self, position: int, size: int) -> tuple[list[Item], str | None]:
        """Return the bookmarks from *position* on, and the token of those behind them, if any."""
        items = self.items[position : position + size]
        more = position + size < len(self.items)
        return items, self._token(items[-1].number) if more else None

    def _token(self, anchor: int) -> str:
        """Return the token of the page behind *anchor*: always the same, so it can be counted."""
        print_ = hashlib.blake2s(f"{self._user}:{anchor}".encode(), digest_size=20).digest()
        token = b32encode(print_).decode().lower()
        self._anchors[token] = anchor
        return token
