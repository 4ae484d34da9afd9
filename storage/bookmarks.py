"""Bookmarks, and how far a crawl of them has come.

A session is one crawl through the bookmarks of a user, whichever jobs work on it:

  running     a job is at it, or waits to go on
  cancelling  a person has asked it to end, which it does at its next checkpoint
  cancelled   it has; a job that is asked for later goes on from there
  completed   it came to the last page

Bookmarks and the checkpoint behind them are committed together, so whoever goes on misses none;
what is fetched again is told by *seen_in*, so none is counted twice. A user has one session that
is open, and one job at a time works on it, inside `effects.exclusive`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import delete, func, null, select, update
from sqlalchemy.exc import StatementError

from classifiers.errors import InternalError, InvalidData, Pending
from storage import database
from storage.models import bookmarks as kept
from storage.models import crawl_sessions as crawls
from storage.models import skipped_bookmarks as left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Row
    from sqlalchemy.dialects import postgresql, sqlite

State = Literal["running", "cancelling", "cancelled", "completed"]
MaySkip: TypeAlias = "Callable[[Exception], str | None]"
Put: TypeAlias = "Callable[[Connection, str, str, Sequence[Bookmark]], list[Skipped]]"

OPEN = ("running", "cancelling")
NOBODY = ""  # whose crawl it was to be that was cancelled before it began


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A post that a user has bookmarked; *raw* is all that the upstream told of it."""

    tweet_id: str
    text: str
    author_id: str | None
    posted_at: datetime | None
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that could not be stored; its *key* is the same whenever its session meets it."""

    key: str
    tweet_id: str | None
    reason: str
    detail: str
    raw: Any


@dataclass(frozen=True, slots=True)
class LeftOut(Skipped):
    """A skipped item as it is written down; *page* as in `Checkpoint`."""

    session_id: str
    user_id: str
    page: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where to go on: *in_page* items are done of the page behind *page_token*.

    *page* counts the pages before it; the first page has no token.
    """

    page_token: str | None = None
    page: int = 0
    in_page: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One crawl.

    *stored* bookmarks were new and *known* ones are from an earlier session; *skipped* counts by
    reason, *pages* what was worked through to the end. *waited* is in seconds, and *last_wait* the
    id of the wait that was counted last. *ended_at* is when it completed or, if it was cancelled,
    when a person asked for that.
    """

    id: str
    user_id: str
    state: State
    job: str
    page_token: str | None
    page: int
    in_page: int
    stored: int
    known: int
    skipped: dict[str, int]
    pages: int
    waits: int
    waited: float
    last_wait: str | None
    landmark: str | None
    asked_at: datetime | None
    begun_at: datetime
    updated_at: datetime
    ended_at: datetime | None

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.page_token, self.page, self.in_page)

    @property
    def open(self) -> bool:
        """Whether there is something left to do, for a job or for its cancellation."""
        return self.state in OPEN


# ── A run ────────────────────────────────────────────────────────────────────────────────────


def begin(
    user_id: str,
    session_id: str | None,
    job: str,
    asked_at: datetime | None,
    wait: tuple[str, float] | None,
) -> Session:
    """Return the session that *job* works on, running; or as it ended, if nothing is left to do.

    That is the one named; else the job's own, the user's open one, or the user's last one if it was
    cancelled, or was begun after the job was *asked_at* and so has seen all there was. Else it is
    a new one, of the id named or the job's. A job that was asked for before its session was
    cancelled is cancelled with it; without *asked_at* it is taken for asked just now. *wait* is the
    id and the seconds of the wait that this run comes back from; it is counted once.

    The caller works alone on the user's bookmarks.

    Raises:
        InvalidData: the session is another user's.
        Pending: another session of the user is open.
    """
    with database.transaction() as connection:
        session = _wanted(connection, user_id, session_id, job, asked_at)
        if session is None:
            session = _begun(connection, user_id, session_id or job, job, asked_at=asked_at)
        if session.state == "cancelling":  # the run that was to see it is no more
            session = _changed(connection, session, state="cancelled")
        if session.state == "completed" or _is_over_for(session, asked_at):
            return session
        return _resumed(connection, session, job, asked_at, wait)


def keep(
    session: Session,
    bookmarks: Sequence[Bookmark],
    skipped: Sequence[Skipped],
    then: Checkpoint,
    *,
    over: bool,
    may_skip: MaySkip,
) -> Session:
    """Store bookmarks and the checkpoint *then*, all or nothing; return the session as it is now.

    *session* is what `begin` or the last `keep` returned; one that has ended is left as it is. A
    bookmark that the database refuses goes to *may_skip*, which gives the reason to count it under,
    or raises. A session that was asked to end ends here, unless it is *over* anyway.

    Raises:
        Pending: another run, or a person, has moved the checkpoint meanwhile.
    """
    try:
        return _kept(session, bookmarks, skipped, then, over=over, put=_put)
    except StatementError:  # one of them may be at fault; alone, it will tell
        put = partial(_put_one_by_one, may_skip=may_skip)
        return _kept(session, bookmarks, skipped, then, over=over, put=put)


# ── By hand ──────────────────────────────────────────────────────────────────────────────────


def cancel(session_id: str, asked_at: datetime | None = None) -> Session:
    """Ask a running session to end at its next checkpoint; return it as it is now.

    One that has not begun yet is noted as cancelled: its job finds that when it comes. One that was
    resumed by somebody who asked for it after *asked_at* goes on.
    """
    ended_at = asked_at or database.now()
    with database.transaction() as connection:
        session = _locked(connection, crawls.c.id == session_id)
        if session is None:
            ended = {"state": "cancelled", "ended_at": ended_at}
            return _begun(connection, NOBODY, session_id, "", **ended)
        resumed = asked_at and session.asked_at and session.asked_at > asked_at
        if session.state != "running" or resumed:
            return session
        return _changed(connection, session, state="cancelling", ended_at=ended_at)


def end_cancelled(session_id: str) -> Session | None:
    """End a session that was asked to, and that nobody works on; return it as it is now."""
    return _change_where(session_id, crawls.c.state == "cancelling", state="cancelled")


def save_checkpoint(session_id: str, checkpoint: Checkpoint) -> Session | None:
    """Have a session that is not completed go on there; return it as it is now."""
    moved = _columns(checkpoint) | {"landmark": null()}
    return _change_where(session_id, crawls.c.state != "completed", **moved)


def clear_checkpoint(session_id: str) -> Session | None:
    """Have a session that is not completed go on from the first page; return it as it is now."""
    return save_checkpoint(session_id, Checkpoint())


def retry(row: LeftOut, bookmark: Bookmark, *, may_skip: MaySkip) -> bool:
    """Store what was skipped, and forget that it was; False if the database refuses it still.

    Where a later crawl has stored it, that stays. What its session has counted stays, too.
    """
    same = (left_out.c.session_id == row.session_id, left_out.c.key == row.key)
    try:
        with database.transaction() as connection:
            storing = _upsert(connection.dialect.name, unless_since=row.created_at)
            connection.execute(storing, _row(row.user_id, row.session_id, bookmark))
            connection.execute(delete(left_out).where(*same))
    except StatementError as error:
        if may_skip(error) is None:
            raise
        return False
    return True


# ── Looking ──────────────────────────────────────────────────────────────────────────────────


def get(session_id: str) -> Session | None:
    return next(iter(_all(crawls.c.id == session_id, limit=1)), None)


def latest(user_id: str) -> Session | None:
    """Return the session of a user that was begun last."""
    return next(iter(sessions(user_id, limit=1)), None)


def sessions(user_id: str | None = None, limit: int | None = 100) -> list[Session]:
    """Return the sessions of a user, or of all, newest first; all of them without a *limit*."""
    return _all(*([] if user_id is None else [crawls.c.user_id == user_id]), limit=limit)


def skipped(session_id: str | None = None, user_id: str | None = None) -> list[LeftOut]:
    """Return what is left out of a session, or of all of a user's, oldest first."""
    which = []
    if session_id is not None:
        which.append(left_out.c.session_id == session_id)
    if user_id is not None:
        which.append(left_out.c.user_id == user_id)
    statement = select(left_out).where(*which).order_by(left_out.c.created_at, left_out.c.key)
    with database.read() as connection:
        return [LeftOut(**row) for row in connection.execute(statement).mappings()]


def count(user_id: str) -> int:
    """Return how many bookmarks of a user are stored."""
    with database.read() as connection:
        statement = select(func.count()).select_from(kept).where(kept.c.user_id == user_id)
        return connection.execute(statement).scalar_one()


# ── Beginning ────────────────────────────────────────────────────────────────────────────────


def _wanted(
    connection: Connection,
    user_id: str,
    session_id: str | None,
    job: str,
    asked_at: datetime | None,
) -> Session | None:
    """Return the session to go on with; None for a new one."""
    session = _locked(connection, crawls.c.id == (session_id or job))
    if session is not None and session.user_id == NOBODY:
        session = _changed(connection, session, user_id=user_id)
    if session is not None and session.user_id != user_id:
        raise InvalidData(f"the crawl {session.id} is of another user")
    if session is not None or session_id is not None:
        return session
    session = _locked(connection, crawls.c.user_id == user_id, crawls.c.job == job)
    if session is not None:  # one that it has gone on with
        return session
    session = _locked(connection, crawls.c.user_id == user_id)
    if session is None or session.state != "completed":
        return session
    has_seen_all = asked_at is not None and session.begun_at > asked_at
    return session if has_seen_all else None


def _begun(
    connection: Connection,
    user_id: str,
    session_id: str,
    job: str,
    **values: Any,
) -> Session:
    numbers = dict.fromkeys(("stored", "known", "pages", "waits", "waited"), 0)
    fresh = database.insert(crawls, connection.dialect.name).values(
        id=session_id,
        user_id=user_id,
        job=job,
        skipped={},
        begun_at=database.now(),
        updated_at=database.now(),
        **_columns(Checkpoint()),
        **numbers,
        **{"state": "running", **values},
    )
    statement = fresh.on_conflict_do_nothing().returning(crawls)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise _another_is_open(user_id)
    return _session(row)


def _is_over_for(session: Session, asked_at: datetime | None) -> bool:
    """Whether a job *asked_at* that time was cancelled together with its session."""
    if session.state != "cancelled" or session.ended_at is None or asked_at is None:
        return False
    return asked_at <= session.ended_at


def _resumed(
    connection: Connection,
    session: Session,
    job: str,
    asked_at: datetime | None,
    wait: tuple[str, float] | None,
) -> Session:
    others = (crawls.c.user_id == session.user_id, crawls.c.id != session.id)
    if not session.open and _locked(connection, *others, crawls.c.state.in_(OPEN)) is not None:
        raise _another_is_open(session.user_id)
    values: dict[str, Any] = {"state": "running", "job": job, "ended_at": null()}
    if wait is not None and wait[0] != session.last_wait:
        waited = {"waits": session.waits + 1, "waited": session.waited + wait[1]}
        values |= waited | {"last_wait": wait[0]}
    if session.state == "cancelled":
        values["asked_at"] = asked_at
    return _changed(connection, session, **values)


def _another_is_open(user_id: str) -> Pending:
    return Pending(f"another crawl of user {user_id} has not ended")


# ── Keeping ──────────────────────────────────────────────────────────────────────────────────


def _kept(
    session: Session,
    bookmarks: Sequence[Bookmark],
    skipped: Sequence[Skipped],
    then: Checkpoint,
    *,
    over: bool,
    put: Put,
) -> Session:
    with database.transaction() as connection:
        now = _locked(connection, crawls.c.id == session.id)
        assert now is not None  # noqa: S101 - rows are never deleted
        if not now.open:
            return now
        if now.checkpoint != session.checkpoint:
            raise Pending(f"the checkpoint of crawl {now.id} was moved by others")
        seen = _seen(connection, now.user_id, bookmarks)
        refused = put(connection, now.user_id, now.id, bookmarks)
        stored = {mark.tweet_id for mark in bookmarks} - {each.key for each in refused}
        reasons = _leave_out(connection, now, [*skipped, *refused])
        reasons.subtract(_stored_after_all(connection, now, stored))
        return _changed(
            connection,
            now,
            **_columns(then),
            stored=now.stored + len(stored - seen.keys()),
            known=now.known + sum(seen.get(tweet_id, now.id) != now.id for tweet_id in stored),
            skipped=_sum(now.skipped, reasons),
            pages=now.pages + (then.page > now.page),
            landmark=_landmark(now, then),
            **_ending(now, over=over),
        )


def _landmark(session: Session, then: Checkpoint) -> str | None:
    """Return the token to be met again if the listing goes round: that of the last page 2ⁿ.

    Raises:
        InternalError: it does.
    """
    if then.page == session.page or then.page_token is None:
        return session.landmark
    if then.page_token == session.landmark:
        raise InternalError("the listing goes round in circles: a page has come before")
    is_power_of_two = then.page & (then.page - 1) == 0
    return then.page_token if is_power_of_two else session.landmark


def _sum(before: dict[str, int], more: Counter[str]) -> dict[str, int]:
    counts = {reason: before.get(reason, 0) + more[reason] for reason in {**before, **more}}
    return {reason: count for reason, count in counts.items() if count}


def _stored_after_all(connection: Connection, session: Session, stored: set[str]) -> Counter[str]:
    """Forget what was left out when its page was fetched before, and is stored now; by reason."""
    if not session.skipped or not stored:
        return Counter()
    which = (left_out.c.session_id == session.id, left_out.c.key.in_(stored))
    gone = connection.execute(delete(left_out).where(*which).returning(left_out.c.reason))
    return Counter(gone.scalars())


def _ending(session: Session, *, over: bool) -> dict[str, Any]:
    if over:
        return {"state": "completed", "ended_at": database.now()}
    return {"state": "cancelled"} if session.state == "cancelling" else {}


def _seen(connection: Connection, user_id: str, bookmarks: Sequence[Bookmark]) -> dict[str, str]:
    """Return which of them are stored already, and which session has seen each last."""
    ids = [mark.tweet_id for mark in bookmarks]
    if not ids:
        return {}
    statement = select(kept.c.tweet_id, kept.c.seen_in).where(
        kept.c.user_id == user_id, kept.c.tweet_id.in_(ids)
    )
    return dict(connection.execute(statement).all())


def _put(
    connection: Connection, user_id: str, session_id: str, bookmarks: Sequence[Bookmark]
) -> list[Skipped]:
    rows = [_row(user_id, session_id, mark) for mark in bookmarks]
    if rows:  # many rows of one statement: PostgreSQL gets them in one round trip
        connection.execute(_putting(connection.dialect.name), rows)
    return []


def _put_one_by_one(
    connection: Connection,
    user_id: str,
    session_id: str,
    bookmarks: Sequence[Bookmark],
    may_skip: MaySkip,
) -> list[Skipped]:
    """Put each in a savepoint of its own; return those that the database refuses."""
    refused = []
    for mark in bookmarks:
        try:
            with connection.begin_nested():
                _put(connection, user_id, session_id, [mark])
        except StatementError as error:
            reason = may_skip(error)
            if reason is None:
                raise
            # Not its words: they may quote the text.
            detail = f"the database refused it ({type(error.orig or error).__name__})"
            refused.append(Skipped(mark.tweet_id, mark.tweet_id, reason, detail, mark.raw))
    return refused


@cache
def _putting(dialect: str) -> postgresql.Insert | sqlite.Insert:
    """Built once: building it anew takes longer than executing it."""
    return _upsert(dialect)


def _upsert(
    dialect: str, unless_since: datetime | None = None
) -> postgresql.Insert | sqlite.Insert:
    """Store a bookmark, or what is new of it; but what was stored after *unless_since* stays."""
    fresh = database.insert(kept, dialect).values(**_stamps())
    told = ("text", "author_id", "posted_at", "raw", "seen_in", "updated_at")
    return fresh.on_conflict_do_update(
        index_elements=[kept.c.user_id, kept.c.tweet_id],
        set_={name: fresh.excluded[name] for name in told},
        where=None if unless_since is None else kept.c.updated_at <= unless_since,
    )


def _leave_out(connection: Connection, session: Session, items: Iterable[Skipped]) -> Counter[str]:
    """Write them down; return how many are new to the session, by reason."""
    rows = [
        {
            "session_id": session.id,
            "user_id": session.user_id,
            "key": _storable(item.key),
            "tweet_id": _storable(item.tweet_id),
            "reason": _storable(item.reason),
            "detail": _storable(item.detail),
            "raw": _as_json(item.raw),
            "page": session.page,
            "created_at": database.now(),
        }
        for item in items
    ]
    if not rows:
        return Counter()
    fresh = database.insert(left_out, connection.dialect.name).values(rows)
    statement = fresh.on_conflict_do_nothing().returning(left_out.c.reason)
    return Counter(connection.execute(statement).scalars())


# ── Pieces of statements ─────────────────────────────────────────────────────────────────────


def _row(user_id: str, session_id: str, mark: Bookmark) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "tweet_id": mark.tweet_id,
        "text": _storable(mark.text),
        "author_id": _storable(mark.author_id),
        "posted_at": mark.posted_at,
        "raw": _as_json(mark.raw),
        "session": session_id,
        "seen_in": session_id,
    }


def _stamps() -> dict[str, Any]:
    return {"created_at": database.now(), "updated_at": database.now()}


def _storable(text: str | None) -> str | None:
    return None if text is None else database.storable(text)


def _as_json(raw: Any) -> Any:
    """The same without NaN and Infinity, which Python reads and JSON has not."""
    return json.loads(json.dumps(raw), parse_constant=str)


def _columns(checkpoint: Checkpoint) -> dict[str, Any]:
    return {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}


def _changed(connection: Connection, session: Session, **values: Any) -> Session:
    statement = update(crawls).where(crawls.c.id == session.id)
    statement = statement.values(updated_at=database.now(), **values)
    return _session(connection.execute(statement.returning(crawls)).one())


def _change_where(session_id: str, *which: ColumnElement[bool], **values: Any) -> Session | None:
    with database.write() as connection:
        statement = update(crawls).where(crawls.c.id == session_id, *which)
        connection.execute(statement.values(updated_at=database.now(), **values))
    return get(session_id)


def _locked(connection: Connection, *which: ColumnElement[bool]) -> Session | None:
    """Return an open session, or else the one begun last; nobody else changes it meanwhile."""
    statement = select(crawls).where(*which).limit(1).with_for_update()
    order = (crawls.c.state.in_(OPEN).desc(), crawls.c.begun_at.desc(), crawls.c.id)
    row = connection.execute(statement.order_by(*order)).one_or_none()
    return None if row is None else _session(row)


def _all(*which: ColumnElement[bool], limit: int | None) -> list[Session]:
    statement = select(crawls).where(*which).limit(limit)
    order = (crawls.c.begun_at.desc(), crawls.c.id)
    with database.read() as connection:
        return [_session(row) for row in connection.execute(statement.order_by(*order))]


def _session(row: Row[Any]) -> Session:
    return Session(**row._mapping)  # noqa: SLF001  # public, despite its name
