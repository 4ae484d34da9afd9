"""What a request for bookmarks asks for, and the page that the simulated X API answers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.x_answers import invalid, partial
from sandbox.x_posts import NOUNS, UNAVAILABLE, Generation, Item, author, fields, shown
from sandbox.x_shelf import Shelf

MOST = 100  # bookmarks of a page, and what is answered with if nothing is asked for
# UPSTREAMS 4, a known bug: above this many the listing ends early. How early differs; the user who
# reported it got one page of 1,120 bookmarks.
_READ_TO_THE_END = 90
_EXPANSIONS = ("expansions", "user.fields", "media.fields", "poll.fields", "place.fields")


@dataclass(frozen=True, slots=True)
class Listing:
    """One request for bookmarks: page size, token ("" for the first page), fields, expansions."""

    size: int
    token: str
    fields: frozenset[str]
    expansions: tuple[str, ...]


def read_listing(params: Mapping[str, str], generation: Generation) -> Listing:
    """Read a query; raise Refused (400 invalid-request) if the API would not take it."""
    names = [f"{noun}.fields" for noun in NOUNS[generation]]
    known = ["max_results", "pagination_token", *names, *_EXPANSIONS]
    for name, value in params.items():
        if name not in known:
            raise invalid(
                name, value, f"The query parameter [{name}] is not one of [{','.join(known)}]"
            )
    return Listing(
        _size(params.get("max_results", str(MOST))),
        params.get("pagination_token", ""),
        frozenset(
            field for name in names for field in _asked(name, params.get(name, ""), generation)
        ),
        tuple(params.get("expansions", "").split(",")),
    )


def _size(value: str) -> int:
    if value.isascii() and value.isdigit() and 1 <= int(value) <= MOST:
        return int(value)
    raise invalid(
        "max_results",
        value,
        f"The `max_results` query parameter value [{value}] is not between 1 and {MOST}",
    )


def _asked(name: str, value: str, generation: Generation) -> list[str]:
    asked, known = [field for field in value.split(",") if field], fields(generation)
    for field in asked:
        if field not in known:
            choice = ",".join(sorted(known))
            raise invalid(
                name,
                value,
                f"The `{name}` query parameter value [{field}] is not one of [{choice}]",
            )
    return asked


def listed(listing: Listing, shelf: Shelf, generation: Generation) -> dict[str, Any]:
    """Return the body of one page; raise Refused for a token that is not this user's."""
    position = shelf.position(listing.token)
    if position is None:
        wrong = f"The `pagination_token` query parameter value [{listing.token}] is not valid"
        raise invalid("pagination_token", listing.token, wrong)
    items, more = shelf.page(position, listing.size)
    there = [item for item in items if item.kind not in UNAVAILABLE]
    meta: dict[str, Any] = {"result_count": len(there)}
    if more and listing.size <= _READ_TO_THE_END:
        meta["next_token"] = more
    parts = {
        "data": [shown(item, listing.fields, generation) for item in there],
        "includes": _included(listing, there),
        "errors": _problems(items),
    }
    # UPSTREAMS 4: what there is none of is left out.
    return {name: part for name, part in parts.items() if part} | {"meta": meta}


def _included(listing: Listing, items: Sequence[Item]) -> dict[str, Any]:
    if "author_id" not in listing.expansions or not items:
        return {}
    authors = sorted({author(item) for item in items})
    return {"users": [{"id": id_, "name": f"User {id_}", "username": f"u{id_}"} for id_ in authors]}


def _problems(items: Sequence[Item]) -> list[dict[str, Any]]:
    slugs = {**UNAVAILABLE, "unhydrated": "field-hydration-failure"}
    return [partial(slugs[item.kind], item.id) for item in items if item.kind in slugs]
