"""Crawl the bookmarks of an X user: page by page, and on from there whatever has stopped it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from classifiers.errors import JobError, NotFound, Pending
from clients.x import Page, read, x
from config import services
from config.history import History
from config.policies import Action, decide
from config.settings import settings
from reliability.parking import GATE_REASONS, parking
from storage import bookmarks, effects
from storage.bookmarks import Bookmark, Checkpoint, LeftOut, Session, Skipped
from tasks import measures, operation
from tasks.base import classified, job, progress, stopping
from tasks.payloads import Id

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]

BOOKMARK = "bookmarks.bookmark"  # where the policy table says what a single one may come to
REFUSED = {"Unauthorized", "CredentialHeld"}
KEY = 16  # characters of a digest that tell items without an id apart


@operation(name="bookmarks.crawl", priority=services.BACKGROUND)
def crawl(user_id: Id, session_id: Id | None = None) -> Outcome:
    """Store all bookmarks of a user; an unfinished crawl of theirs is gone on with.

    Called with the id of a session, that one. One of a user is at work at a time.
    """
    turn_ends = time.monotonic() + services.scaled(services.CRAWL_TURN)
    with alone(user_id):
        session = begin(user_id, session_id)
        while session.state == "running":
            session = next_page(session)
            if session.state == "running" and time.monotonic() > turn_ends:
                raise next_turn("it lets others have their turn")
        if session.state == "cancelling":  # and nothing was stored that would have ended it
            session = bookmarks.end_cancelled(session.id) or session
    return summary(session)


@operation(name="bookmarks.cancel", priority=services.INTERACTIVE)
def cancel(session_id: Id) -> Outcome:
    """End a crawl where it is; what it has stored stays, and it can be resumed from there."""
    # A crawl that is at work ends at its next checkpoint.
    session = bookmarks.cancel(session_id, job().asked_at)
    if session.state == "running":  # somebody has resumed it since
        return {**summary(session), "outcome": "superseded"}
    with alone(session.user_id):
        session = bookmarks.end_cancelled(session_id) or session
    parking().release(session.job)
    return summary(session)


def alone(user_id: str) -> AbstractContextManager[None]:
    """Be the only crawl of a user that is at work. Raises Pending while another one is."""
    lease = services.scaled(services.crawl_lease(settings()))
    return effects.exclusive(f"crawl:{user_id}", owner=job().id, lease=lease)


def begin(user_id: str, session_id: str | None) -> Session:
    """Return the session that this run has to work on, as it is; it may have ended before."""
    wait = job().wait
    counted = (wait.id, wait.seconds) if wait and wait.reason in GATE_REASONS else None
    session = bookmarks.begin(user_id, session_id, job().id, job().asked_at, counted)
    if wait is not None and session.state == "running":
        logger.info(
            "crawl %s goes on at page %d, %.0f s after %s",
            session.id,
            session.checkpoint.page + 1,
            wait.seconds,
            wait.reason,
        )
    return session


def next_page(session: Session) -> Session:
    """Fetch a page and store it, ten by ten, each ten with the checkpoint behind them.

    Raises:
        Pending: this worker has to end; the job goes on elsewhere.
        NotFound: X forgets the page time and again.
        JobError: the page could not be had; the checkpoint is where it begins.
    """
    at = session.checkpoint
    page = x().page(session.user_id, at.page_token)
    if page is None:
        return begun_anew(session)
    for warning in page.warnings:
        logger.warning("crawl %s, page %d: %s", session.id, at.page + 1, warning)
    for items, then in steps(page, at):
        session = keep(session, items, then, over=then.page > at.page and then.page_token is None)
        if session.state != "running":
            break
        if stopping():
            tell(session)
            raise next_turn("this worker has to end")
    tell(session)
    return session


def begun_anew(session: Session) -> Session:
    """Go on from the first page, once. What is stored is not counted again.

    Raises:
        NotFound: it has begun anew before; X forgets faster than we get on.
    """
    if session.pages > session.checkpoint.page:
        bookmarks.clear_checkpoint(session.id)  # for the next call, or a replay
        raise NotFound(f"X forgets time and again where crawl {session.id} is", service="x")
    logger.warning("crawl %s begins anew: X has forgotten where it was", session.id)
    return bookmarks.clear_checkpoint(session.id) or session


def next_turn(why: str) -> Pending:
    """Return the wait of a crawl that is not at fault: others, or another worker, come first."""
    return Pending(why, service="x", retry_after=services.scaled(services.NEXT_TURN))


def steps(page: Page, at: Checkpoint) -> Iterator[tuple[Sequence[Any], Checkpoint]]:
    """Yield what is stored together, and the checkpoint behind it; the last is the next page's."""
    items = sorted_out(page, at.page)
    for start in range(0, max(1, len(items)), services.CHECKPOINT_EVERY):
        end = start + services.CHECKPOINT_EVERY
        behind = Checkpoint(at.page_token, at.page, end)
        if end >= len(items):
            behind = Checkpoint(page.next_token, at.page + 1, 0)
        yield items[start:end], behind


def sorted_out(page: Page, number: int) -> list[Bookmark | Skipped]:
    """Read a page's items; one that is no bookmark is skipped, under a name of its own.

    It gets the same name when the page is fetched again, so it is reported once.
    """
    seen: Counter[str] = Counter()
    items: list[Bookmark | Skipped] = []
    for item in page.items:
        found = read(item)
        if isinstance(found, Bookmark):
            items.append(found)
            continue
        digest = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()[:KEY]
        seen[digest] += 1
        key = f"{number}:{digest}:{seen[digest]}"
        items.append(Skipped(key, None, may_skip(found), found.detail, item))
    return items


def may_skip(failure: Exception) -> str:
    """Return the reason why a bookmark is skipped. Raises what is not its own fault."""
    error = classified(failure)
    decision = decide(error, History(), BOOKMARK)
    if decision.action is not Action.SKIP:
        raise error
    logger.log(decision.policy.level, "skipped a bookmark: %s", error)
    return reason(error)


def reason(error: JobError) -> str:
    """Return the word under which a skipped bookmark is counted."""
    return error.code if error.service == "x" else error.service or error.category


def keep(
    session: Session, items: Sequence[Bookmark | Skipped], then: Checkpoint, *, over: bool
) -> Session:
    """Store some items and the checkpoint behind them; return the session as it is then."""
    kept = bookmarks.keep(
        session,
        [item for item in items if isinstance(item, Bookmark)],
        [item for item in items if isinstance(item, Skipped)],
        then,
        over=over,
        may_skip=may_skip,
    )
    if kept.checkpoint == then:
        measures.checkpoint()
    return kept


def tell(session: Session) -> None:
    """Show how far the crawl is."""
    logger.info(
        "checkpoint of crawl %s: page %d, %d new, %d known, %d skipped",
        session.id,
        session.checkpoint.page + 1,
        session.stored,
        session.known,
        sum(session.skipped.values()),
    )
    progress(
        pages=session.pages,
        stored=session.stored,
        known=session.known,
        skipped=sum(session.skipped.values()),
        waits=session.waits,
    )


def summary(session: Session) -> Outcome:
    """Return what became of a crawl, all its runs together; times in seconds."""
    ended_at = session.ended_at or session.updated_at
    return {
        "outcome": session.state,
        "session_id": session.id,
        "user_id": session.user_id,
        "stored": session.stored,
        "known": session.known,
        "skipped": dict(session.skipped),
        "pages": session.pages,
        "waits": session.waits,
        "waited": round(session.waited, 1),
        "seconds": round((ended_at - session.begun_at).total_seconds(), 1),
    }


# -- by hand


def retry_skipped(session_id: str) -> tuple[int, int]:
    """Store what a crawl has skipped, where it can be by now; return how many were, and were not.

    What the database still refuses, or is no bookmark yet, stays.
    """
    left_out = bookmarks.skipped(session_id)
    done = sum(stored_now(skipped) for skipped in left_out)
    return done, len(left_out) - done


def stored_now(skipped: LeftOut) -> bool:
    """Store what was skipped, if it can be."""
    found = read(skipped.raw)
    return isinstance(found, Bookmark) and bookmarks.retry(skipped, found, may_skip=may_skip)


def welcome_back(user_id: str) -> int:
    """Let the crawls of a user whose access was refused come back now; return how many."""
    waiting = [
        waits.message_id
        for waits in parking().waiting_for("x", REFUSED)
        if waits.task == crawl.name and waits.kwargs.get("user_id") == user_id
    ]
    return sum(parking().release(message_id) for message_id in waiting)
