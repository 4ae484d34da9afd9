"""What came of the demo's crawls: the journal of X against the bookmarks that we have stored."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx
from sqlalchemy import select

from clients.x import FIELDS
from sandbox.crawl_load import BEFORE, IN_ORDER, READERS, Reader, outcomes
from sandbox.video_report import listed
from sandbox.x_posts import Generation, Item, shown
from storage import bookmarks, database
from storage.bookmarks import Session
from storage.database import REPLACEMENT
from storage.models import bookmarks as kept

Json = Mapping[str, Any]

GENERATION: Generation = "tweet"  # whose names X answers with, unless it is told otherwise
# What no text in a database can have: NUL, and half of a surrogate pair.
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# Kind of an invalid bookmark → the reason under which we count it (CONTRACT: what is invalid).
REASONS = {
    "not_an_object": "not_an_object",
    "no_id": "no_id",
    "empty_id": "no_id",
    "null_id": "no_id",
    "non_digit_id": "no_id",
    "no_text": "no_text",
}


@dataclass(frozen=True, slots=True)
class Sight:
    """What X has seen, in sum and of each user."""

    summary: Json
    users: Mapping[str, Json]

    @classmethod
    def now(cls, x: httpx.Client) -> Self:
        """Ask X for everything."""
        summary, users = (
            x.get(f"/_sandbox/{what}").raise_for_status().json() for what in ("summary", "users")
        )
        return cls(summary, {user["id"]: user for user in users})


def compare(sight: Sight, ended: Mapping[str, int]) -> list[str]:
    """Return what is wrong: bookmarks lost, doubled or changed, requests that were not needed.

    *ended* counts the crawls by the word in their result.
    """
    wanted, found = Counter(outcomes()), Counter(ended)
    findings = [f"crawls ended {listed(found)}, not {listed(wanted)}"] if found != wanted else []
    for reader in READERS:
        crawls = bookmarks.sessions(reader.id, None)
        differences = (
            *_requests_differ(reader, crawls, sight.users[reader.id]),
            *_crawls_differ(reader, crawls, sight.users[reader.id]),
            *_bookmarks_differ(reader, crawls, sight.users[reader.id]),
        )
        findings += [f"X user {reader.id} ({reader.story.name}): {x}" for x in differences]
    return findings


def _requests_differ(reader: Reader, crawls: Collection[Session], user: Json) -> Iterator[str]:
    story, least = reader.story, _least(reader, crawls)
    given = user["tokens_issued"] - user["refreshes"]  # by the user, not for a refresh token
    seen: dict[str, tuple[int, Collection[int]]] = {
        "requests": (user["requests"], range(least, least + _spare(reader) + 1)),
        "limit answers": (user["limit_answers"], {story.limit_answers}),
        "renewals": (user["refreshes"], {story.renewals}),
        "times that access was given": (given, {1 + story.given_again}),
    }
    for what, (found, wanted) in seen.items():
        if found not in wanted:
            yield f"{found} {what}, not {' or '.join(map(str, wanted))}"


def _least(reader: Reader, crawls: Collection[Session]) -> int:
    """Return the requests that nobody could have saved."""
    return len(crawls) * reader.story.pages + reader.story.in_vain


def _spare(reader: Reader) -> int:
    """Return how many pages may be fetched again: those at work when all ended in the middle."""
    return (reader in BEFORE) + reader.story.cancelled


def _crawls_differ(reader: Reader, crawls: Collection[Session], user: Json) -> Iterator[str]:
    if not crawls:
        yield "no crawl was begun"
    items = {item.id: item for item in reader.items}
    valid, reasons = len(user["valid"]), Counter(REASONS[flaw["kind"]] for flaw in user["invalid"])
    invalid = Counter(_print(_raw(items[flaw["id"]])) for flaw in user["invalid"])
    for crawl in crawls:
        if crawl.state != "completed":
            yield f"crawl {crawl.id} is {crawl.state}"
        if crawl.stored + crawl.known != valid:
            yield f"crawl {crawl.id} has counted {crawl.stored + crawl.known} of {valid}"
        if crawl.skipped != reasons:
            yield f"crawl {crawl.id} has skipped {listed(crawl.skipped)}, not {listed(reasons)}"
        reported = Counter(_print(item.raw) for item in bookmarks.skipped(crawl.id))
        for item in (reported - invalid) + (invalid - reported):
            yield f"crawl {crawl.id} reports {reported[item]} times, not {invalid[item]}: {item}"


def _bookmarks_differ(reader: Reader, crawls: Collection[Session], user: Json) -> Iterator[str]:
    stored, valid = _stored(reader.id), set(user["valid"])
    wanted = {item.id: _as_stored(item) for item in reader.items if item.id in valid}
    new = sum(crawl.stored for crawl in crawls)
    if new != len(valid):
        yield f"{new} bookmarks were counted as new, not {len(valid)}"
    yield from (f"bookmark {lost} is lost" for lost in sorted(valid - stored.keys()))
    yield from (f"bookmark {more} is nobody's" for more in sorted(stored.keys() - valid))
    for each in sorted(valid & stored.keys()):
        if stored[each] != wanted[each]:
            yield f"bookmark {each} is {stored[each]}, not {wanted[each]}"


def _stored(user_id: str) -> dict[str, tuple[str, str]]:
    """Return text and content of each stored bookmark."""
    statement = select(kept.c.tweet_id, kept.c.text, kept.c.raw).where(kept.c.user_id == user_id)
    with database.read() as connection:
        rows = connection.execute(statement).all()
    return {row.tweet_id: (row.text, _print(row.raw)) for row in rows}


def _as_stored(item: Item) -> tuple[str, str]:
    raw = _raw(item)
    return UNSTORABLE.sub(REPLACEMENT, raw["text"]), _print(raw)


def _raw(item: Item) -> Any:
    """Return what X shows of a bookmark to somebody who asks as we do."""
    return shown(item, FIELDS.split(","), GENERATION)


def _print(raw: Any) -> str:
    return json.dumps(raw, sort_keys=True)


# -- to be read by people


def lines(sight: Sight) -> dict[str, str]:
    """Return what is told of the crawls, by title."""
    seen, crawls = sight.summary, bookmarks.sessions(limit=None)
    lengths = {reader.id: reader.story.pages for reader in READERS}
    pages = sum(lengths[crawl.user_id] for crawl in crawls)
    in_vain = sum(reader.story.in_vain for reader in READERS)
    troubled = sum(reader.story.name != IN_ORDER for reader in READERS)
    asked = seen["by_method"].get("bookmarks", 0)
    given = sum(user["tokens_issued"] - user["refreshes"] - 1 for user in sight.users.values())
    skipped = sum((Counter(crawl.skipped) for crawl in crawls), Counter[str]())
    unseen = sum(len(user["unavailable"]) for user in sight.users.values())
    return {
        "X": f"{asked} requests, at least {pages + in_vain} were needed: {pages} for pages, "
        f"{in_vain} in vain; {seen['refetched']} pages came twice"
        f"\n{seen['refreshes']} tokens renewed, {given} users gave access again, "
        f"{sum(seen['limit_answers'].values())} limit answers",
        "bookmarks": f"{sum(crawl.stored for crawl in crawls)} of {len(sight.users)} users, "
        f"{troubled} of them with a trouble of their own; X kept {unseen} back"
        f"\nskipped: {listed(skipped)}",
        "crawls": f"{listed(Counter(crawl.state for crawl in crawls))}; "
        f"{sum(crawl.waits for crawl in crawls)} waits, "
        f"{sum(crawl.waited for crawl in crawls):.0f} s in all, "
        f"{max((crawl.waited for crawl in crawls), default=0.0):.0f} s the longest",
    }
