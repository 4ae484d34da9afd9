"""The one primitive for what we do to the outside world: at most once, and reconcile.

A row per effect, `intended → done | unknown | undone`:

  intended   a run holds the row until *lease_until*; it is calling, or looking for an earlier call
  done       it happened; *result* is what every later run gets
  unknown    a call may have taken effect; the next run looks before it calls
  undone     nothing happened, or it was taken back; the next run starts afresh

*called_until* is the time until which the last call sent may still take effect, or have taken
effect unseen. It is empty unless such a call is in doubt, and looking never moves it: only a new
call does. So "not found" is believed only if the look began after it. It is the end of the lease,
or later where only the upstream can tell us what a call has led to (by a callback): a dead run's
effect is then looked for soon, and had again late.

*runs* numbers the runs; a run that has lost its lease to a later one may no longer say "unknown"
or "undone", but a result it brings is kept, unless the later run has one already. If the two
differ, the effect was doubled: it is logged.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast
from uuid import uuid4

from sqlalchemy import (
    JSON,
    Boolean,
    Float,
    and_,
    bindparam,
    case,
    delete,
    func,
    null,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as TimedOut

from classifiers.errors import (
    Fatal,
    JobError,
    OutcomeUnknown,
    Pending,
    Permanent,
    Retryable,
    Unclassified,
    Waiting,
)
from storage import database
from storage.models import EFFECT_OPEN, effects, leases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection, Update
    from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

Result: TypeAlias = dict[str, Any]
State = Literal["intended", "done", "unknown", "undone"]
How = Literal["done", "found", "stored"]
Find: TypeAlias = "Callable[[], Result | None]"
Record: TypeAlias = "Callable[[Connection, Result], None]"
_T = TypeVar("_T")

# The answers that promise that nothing happened. Anything else leaves the outcome in doubt.
_NOTHING_HAPPENED = (Retryable, Waiting, Permanent, Fatal)
# s between attempts to write down what a call has led to: a PostgreSQL restart takes a few
# seconds, and the answer we hold then exists nowhere else.
_PAUSES = (0.0, 0.5, 2.0, 5.0)
_LONGEST_ERROR = 1000  # characters; enough for one sentence for people
_CHUNK = 200  # rows read at a time

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Effect:
    """What came of it: we did it now (`done`), we found it done, or a former run had stored it."""

    result: Result
    how: How


@dataclass(frozen=True, slots=True)
class Row:
    """An effect as it is written down, for those who look."""

    key: str
    state: State
    owner: str
    runs: int
    doubt: bool
    lease_until: datetime | None
    called_until: datetime | None
    result: Result | None
    error: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class _Run:
    """Our hold on a row. *doubt*: an earlier call may have taken effect, or may in *open_for* s."""

    key: str
    number: int
    lease: float
    found_within: float
    doubt: bool
    open_for: float
    error: str | None


def once(
    key: str,
    do: Callable[[], Result],
    *,
    find: Find | None = None,
    owner: str,
    lease: float,
    found_within: float | None = None,
    look_first: bool = False,
    record: Record | None = None,
) -> Effect:
    """Have the effect *key* at most once, and return its result (a JSON object).

    *do* calls the upstream; *lease* is the time in seconds within which such a call takes effect
    or never will, so it is longer than every deadline in it. *find* asks whether an earlier call
    took effect (its result, or None); *found_within* is the time in seconds after which it is sure
    to see one that did (the lease, unless it takes longer). *look_first* asks before the first
    call too. *record* writes in the transaction that marks the effect done; where it fails, the
    effect counts as not written down, and a later run has to find it.

    Raises:
        Pending: another run has the row, or had until it died; *retry_after* is what it has left.
        OutcomeUnknown: it may have happened. With *retry_after*, looking will tell by then;
            without, a person has to (`settle`).
        Exception: whatever *do*, *find* and *record* raise.
    """
    if look_first and find is None:
        raise ValueError(f"{key}: look_first has nothing to look with")
    found_within = lease if found_within is None else found_within
    if found_within < lease:
        raise ValueError(f"{key}: nothing is sure to be found while its call may take effect")
    run = _claim(key, owner, lease, found_within, call_at_once=not look_first)
    if isinstance(run, Effect):
        return run
    if run.doubt or look_first:
        found = _look(run, find)
        if found is not None:
            return _finish(run, found, "found", record)
        overtaken = _renew(run)
        if overtaken is not None:
            return overtaken
    return _finish(run, _call(run, do), "done", record)


def get(key: str) -> Row | None:
    """The effect as it is written down now."""
    with database.read() as connection:
        row = connection.execute(select(effects).where(effects.c.key == key)).one_or_none()
    return None if row is None else Row(**row._mapping)  # noqa: SLF001  # public, despite its name


def in_doubt(kind: str = "") -> Iterator[Row]:
    """Go through the effects that nobody is at and that may have happened, the oldest first.

    *kind* is what their keys begin with, such as `bitrix.deal`.
    """
    place = (effects.c.updated_at, effects.c.key)
    statement = select(effects).where(EFFECT_OPEN, _past(effects.c.lease_until))
    statement = statement.order_by(*place).limit(_CHUNK)
    if kind:
        statement = statement.where(effects.c.key.startswith(f"{kind}:", autoescape=True))
    rest = statement
    while True:
        with database.read() as connection:
            found = [Row(**row) for row in connection.execute(rest).mappings()]
        yield from found
        if len(found) < _CHUNK:
            return
        rest = statement.where(tuple_(*place) > (found[-1].updated_at, found[-1].key))


def find_out(key: str, find: Find | None, *, owner: str, lease: float) -> Result | None:
    """What became of an effect, for those who would take it back: its result, None if nothing.

    Nothing is begun. What is in doubt is looked for with *find*, as in `once`, for at most *lease*
    seconds. Whoever may begin it meanwhile has to be kept from that by other means.

    Raises:
        Pending, OutcomeUnknown: as `once` does; and whatever *find* raises.
    """
    row = get(key)
    if row is None or row.state in {"done", "undone"}:
        return row.result if row is not None and row.state == "done" else None
    run = _claim(key, owner, lease, lease, call_at_once=False)
    if isinstance(run, Effect):
        return run.result
    found = _look(run, find) if run.doubt else None
    if found is not None:
        return _finish(run, found, "found", None).result
    with database.write() as connection:
        held = connection.execute(_ours(run).values(state="undone", **_at_rest())).rowcount
    return None if held else _stored(key).result


def settle(
    key: str, result: Result | None = None, *, record: Record | None = None, said: str = ""
) -> bool:
    """Write down a person's decision on an effect in doubt: it happened so, or (None) it did not.

    *said* is by whom and why; it is kept where the error was. False if nothing is in doubt.

    Raises:
        Pending: a run is at it; or, for a "did not", the last call may still take effect.
    """
    with database.transaction() as connection:
        statement = update(effects).where(
            effects.c.key == key,
            effects.c.state.in_(["intended", "unknown"]),
            _past(effects.c.lease_until),
        )
        if result is None:
            over = _past(effects.c.called_until)
            statement = statement.where(over).values(state="undone")
        else:
            statement = statement.values(state="done", result=_as_json(result))
        if said:
            statement = statement.values(error=database.storable(said)[:_LONGEST_ERROR])
        settled = connection.execute(statement.values(**_at_rest())).rowcount
        if settled and result is not None and record is not None:
            record(connection, _as_json(result))
    if not settled:
        _refuse_while_open(key)
    return bool(settled)


def undo(key: str, *, connection: Connection | None = None) -> bool:
    """Note that a done effect was taken back, so that a later run has it anew.

    Pass the *connection* of the transaction that compensates. False if it was not done.
    """
    if connection is None:
        with database.write() as own:
            return undo(key, connection=own)
    statement = update(effects).where(effects.c.key == key, effects.c.state == "done")
    return bool(connection.execute(statement.values(state="undone", **_at_rest())).rowcount)


@contextmanager
def exclusive(*keys: str, owner: str, lease: float) -> Iterator[None]:
    """Work alone on all of *keys*, for at most *lease* seconds.

    The same owner gets its own leases back: a redelivered job does not wait for its former self.
    Do not nest one key: the inner exit gives it back.

    Raises:
        Pending: another owner has one of them; *retry_after* is what the longest has left.
    """
    token = uuid4().hex
    # Sorted, so that two who want the same keys never wait for each other.
    _take(sorted(set(keys)), owner, lease, token)
    try:
        yield
    finally:
        _give_back(token, keys)


# ── One run ──────────────────────────────────────────────────────────────────────────────────


def _claim(
    key: str, owner: str, lease: float, found_within: float, *, call_at_once: bool
) -> _Run | Effect:
    """Get the row by one statement, so that of many exactly one does; else its result, or Pending.

    The owner does not matter: a redelivered message meets the lease of its former self, which may
    still be calling.
    """
    with database.write() as connection:
        row = connection.execute(
            _claiming(connection.dialect.name),
            {
                "the_key": key,
                "by": owner,
                "lease": lease,
                "found_within": found_within,
                "call_at_once": call_at_once,
            },
        ).one_or_none()
    if row is None:
        return _stored(key)
    open_for = _seconds(row.called_until, row.now) if row.doubt else 0.0
    return _Run(key, row.runs, lease, found_within, row.doubt, open_for, row.error)


def _stored(key: str) -> Effect:
    """What another run has written down."""
    with database.read() as connection:
        row = connection.execute(
            select(effects, database.now().label("now")).where(effects.c.key == key)
        ).one()
    if row.state != "done":
        raise Pending(
            f"{key}: another run is at it", retry_after=_seconds(row.lease_until, row.now)
        )
    return Effect(row.result, "stored")


def _look(run: _Run, find: Find | None) -> Result | None:
    """What an earlier call has led to; None only if it certainly has led to nothing."""
    if find is None:
        _leave(run)
        why = run.error or "its worker died"
        raise OutcomeUnknown(f"{run.key}: a call went out ({why}); it needs a person's decision")
    try:
        found = find()
        found = None if found is None else _as_json(found)
    except BaseException:
        _leave(run)
        raise
    if found is None and run.open_for > 0:
        _leave(run)
        raise OutcomeUnknown(
            f"{run.key}: not found, but the last call may still take effect",
            retry_after=run.open_for,
        )
    return found


def _renew(run: _Run) -> Effect | None:
    """Take a whole lease for a call of our own; the result, if another run has been faster."""
    with database.write() as connection:
        held = connection.execute(
            _ours(run).values(
                lease_until=database.now(plus=run.lease),
                called_until=database.now(plus=run.found_within),
                doubt=False,
                error=null(),
                updated_at=database.now(),
            )
        ).rowcount
    return None if held else _stored(run.key)


def _call(run: _Run, do: Callable[[], Result]) -> Result:
    try:
        return _as_json(do())
    except Unclassified as error:  # nobody knows what it means, so nobody knows that
        _leave(run, error)
        raise
    except _NOTHING_HAPPENED as error:
        _leave(run, error, undone=True)
        raise
    except BaseException as error:
        _leave(run, error)
        raise


def _leave(run: _Run, error: BaseException | None = None, *, undone: bool = False) -> None:
    """Give the row up without a result: `unknown` while a call is in doubt, else `undone`.

    A database that is away must not hide the error we are about to raise. The row then stays
    `intended`, and is treated as in doubt when the lease has passed.
    """

    def write() -> None:
        with database.write() as connection:
            values: dict[str, Any] = {"lease_until": null(), "updated_at": database.now()}
            if undone:
                values |= {"state": "undone", "called_until": null(), "doubt": False}
            else:
                in_doubt = effects.c.called_until.is_not(None)
                values |= {"state": case((in_doubt, "unknown"), else_="undone")}
            if error is not None:
                values |= {"error": _in_words(error)}
            if not connection.execute(_ours(run).values(values)).rowcount:
                _log.warning("%s: run %d ended after a later run took over", run.key, run.number)

    try:
        insist(write)
    except SQLAlchemyError:
        _log.exception("%s: run %d could not write down how it ended", run.key, run.number)


def _finish(run: _Run, result: Result, how: How, record: Record | None) -> Effect:
    """Write the result down, even after a lost lease; a result that is there already stays."""

    def write() -> int | None:
        lend = database.write if record is None else database.transaction
        with lend() as connection:
            number: int | None = connection.execute(
                _finishing(), {"the_key": run.key, "outcome": result}
            ).scalar_one_or_none()
            if number is not None and record is not None:
                record(connection, result)
        return number

    try:
        number = insist(write)
    except BaseException:
        # Whoever has to settle this by hand finds the result in the log only.
        _log.exception("%s: could not write down the result %r", run.key, result)
        raise
    if number is None:
        return _compare(run, result, how)
    if number != run.number:
        _log.warning("%s: run %d finished after run %d began", run.key, run.number, number)
    return Effect(result, how)


def _compare(run: _Run, result: Result, how: How) -> Effect:
    """Two results for one effect: the same thing seen twice, or a doubled effect."""
    stored = _stored(run.key)
    if stored.result == result:
        return Effect(result, how)
    _log.error("%s happened twice: %r is kept, %r is not", run.key, stored.result, result)
    return stored


def insist(write: Callable[[], _T]) -> _T:
    """Try again after each pause, as long as the database is away or has no time for us."""
    for pause in _PAUSES:
        try:
            return write()
        except (DBAPIError, TimedOut) as error:
            if not _was_not_heard(error):
                raise
            _log.warning("the database is away (%s); again in %.1f s", type(error).__name__, pause)
            time.sleep(pause)
    return write()


def _was_not_heard(error: DBAPIError | TimedOut) -> bool:
    """Whether it failed while it connected, waited for its turn, began or committed."""
    if isinstance(error, TimedOut):
        return True
    return error.connection_invalidated or error.statement in {None, database.BEGIN}


# ── Leases ───────────────────────────────────────────────────────────────────────────────────


def _take(keys: list[str], owner: str, lease: float, token: str) -> None:
    lend = database.write if len(keys) == 1 else database.transaction
    with lend() as connection:
        until = database.now(plus=lease)
        fresh = database.insert(leases, connection.dialect.name).values(
            [{"key": key, "owner": owner, "token": token, "until": until} for key in keys]
        )
        statement = fresh.on_conflict_do_update(
            index_elements=[leases.c.key],
            set_={"owner": owner, "token": token, "until": until},
            where=or_(leases.c.owner == owner, _past(leases.c.until)),
        ).returning(leases.c.key)
        taken = connection.execute(statement).scalars().all()
        if len(taken) < len(keys):
            # Raised inside, so that what was taken is given back by the rollback.
            raise _held(connection, sorted(set(keys) - set(taken)))


def _held(connection: Connection, keys: list[str]) -> Pending:
    last = connection.execute(
        select(func.max(leases.c.until).label("until"), database.now().label("now")).where(
            leases.c.key.in_(keys)
        )
    ).one()
    return Pending(
        f"{', '.join(keys)}: another job is at it", retry_after=_seconds(last.until, last.now)
    )


def _give_back(token: str, keys: tuple[str, ...]) -> None:
    try:
        with database.write() as connection:
            connection.execute(
                delete(leases).where(leases.c.key.in_(keys), leases.c.token == token)
            )
    except SQLAlchemyError:
        _log.warning("%s: could not be given back; the lease will end", keys, exc_info=True)


# ── Pieces of statements ─────────────────────────────────────────────────────────────────────


@cache
def _claiming(dialect: str) -> ReturningInsert[Any]:
    """Built once: building it anew took longer than executing it."""
    until = database.now(plus=bindparam("lease", type_=Float()))
    seen = database.now(plus=bindparam("found_within", type_=Float()))
    called = case((bindparam("call_at_once", type_=Boolean()), seen), else_=null())
    fresh = database.insert(effects, dialect).values(
        key=bindparam("the_key"),
        state="intended",
        owner=bindparam("by"),
        runs=1,
        doubt=False,
        lease_until=until,
        called_until=called,
        created_at=database.now(),
        updated_at=database.now(),
    )
    doubt = effects.c.called_until.is_not(None)
    return fresh.on_conflict_do_update(
        index_elements=[effects.c.key],
        set_={
            "state": "intended",
            "owner": fresh.excluded.owner,
            "runs": effects.c.runs + 1,
            "doubt": doubt,
            # Not the times of `excluded`: they are from before the wait for another's commit.
            "lease_until": until,
            "called_until": func.coalesce(effects.c.called_until, called),
            "result": null(),
            "error": case((doubt, effects.c.error), else_=null()),
            "updated_at": database.now(),
        },
        where=and_(effects.c.state != "done", _past(effects.c.lease_until)),
    ).returning(
        effects.c.runs,
        effects.c.doubt,
        effects.c.called_until,
        effects.c.error,
        database.now().label("now"),
    )


@cache
def _finishing() -> ReturningUpdate[Any]:
    return (
        update(effects)
        .where(effects.c.key == bindparam("the_key"), effects.c.state != "done")
        .values(state="done", result=bindparam("outcome", type_=JSON()), error=null(), **_at_rest())
        .returning(effects.c.runs)
    )


def _ours(run: _Run) -> Update:
    return update(effects).where(
        effects.c.key == run.key, effects.c.runs == run.number, effects.c.state == "intended"
    )


def _past(until: ColumnElement[datetime | None]) -> ColumnElement[bool]:
    return or_(until.is_(None), until <= database.now())


def _at_rest() -> dict[str, Any]:
    return {
        "lease_until": null(),
        "called_until": null(),
        "doubt": False,
        "updated_at": database.now(),
    }


def _refuse_while_open(key: str) -> None:
    with database.read() as connection:
        row = connection.execute(
            select(effects, database.now().label("now")).where(effects.c.key == key)
        ).one_or_none()
    if row is not None and row.state in {"intended", "unknown"}:
        left = max(_seconds(row.lease_until, row.now), _seconds(row.called_until, row.now))
        raise Pending(f"{key}: the last call may still take effect", retry_after=left)


def _seconds(until: datetime | None, now: datetime) -> float:
    return 0.0 if until is None else max(0.0, (until - now).total_seconds())


def _as_json(result: Result) -> Result:
    """The result as later runs will read it; refuses what JSON cannot hold."""
    return cast("Result", json.loads(json.dumps(result, allow_nan=False)))


def _in_words(error: BaseException) -> str:
    # Only our own errors promise to hold no secret.
    words = f"{type(error).__name__}: {error}" if isinstance(error, JobError) else ""
    return (words or type(error).__name__).replace("\0", "")[:_LONGEST_ERROR]
