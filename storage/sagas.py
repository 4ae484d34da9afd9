"""Effects that belong together: which way they go, and whose failure takes them back.

A row per saga, `going → done`, and from either `→ undoing → undone`:

  going    its steps are had, one after the other, by *job* or whoever joins it
  done     all of them are had; *job* has seen to it
  undoing  they are taken back, the last one first; none is begun any more
  undone   nothing is left of it; whoever runs it next begins another round

What has become of each step is told by effects, under names of the round. A step is called only
where the saga was still going after its intent was written, and they are looked at, to be taken
back, only after the saga was told to be undone. So one of the two always sees the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select, update

from classifiers.errors import Cancelled, Pending
from storage import database
from storage.models import sagas

if TYPE_CHECKING:
    from sqlalchemy import Connection, Update

State = Literal["going", "done", "undoing", "undone"]
_COLUMNS = (sagas.c.key, sagas.c.state, sagas.c.round, sagas.c.job, sagas.c.replays)


@dataclass(frozen=True, slots=True)
class Saga:
    """A saga as it is written down; *job* with its *replays* is the run that answers for it."""

    key: str
    state: State
    round: int
    job: str
    replays: int


def get(key: str) -> Saga | None:
    """Return the saga as it is written down now."""
    with database.read() as connection:
        row = connection.execute(select(*_COLUMNS).where(sagas.c.key == key)).one_or_none()
    return None if row is None else Saga(*row)


def begin(key: str, job: str, replays: int) -> Saga:
    """Begin a saga, or go on with it; the run that came last answers for one that is going.

    For one that is done, only a replay of the same job does so. One that was undone begins another
    round, unless it is the same run that comes once more.

    Raises:
        Pending: it is being undone.
        Cancelled: it was undone, and this run with it.
    """
    with database.transaction() as connection:
        _insert(connection, key, job, replays)
        mine = select(*_COLUMNS).where(sagas.c.key == key).with_for_update()
        known = Saga(*connection.execute(mine).one())
        now = _taken_up(known, job, replays)
        if now != known:
            connection.execute(
                _change(key, state=now.state, round=now.round, job=job, replays=replays)
            )
    return now


def insist_on_going(saga: Saga) -> None:
    """Make sure that a step may still be called.

    Raises:
        Pending: the saga is being undone, or was; `begin` tells.
    """
    now = get(saga.key)
    if now is None or (now.state, now.round) != ("going", saga.round):
        raise Pending(f"{saga.key}: it is being undone")


def finish(saga: Saga, job: str, replays: int) -> None:
    """Note that all steps are had, and by whom: the failure of another one undoes nothing.

    Raises:
        Pending: the saga is being undone, or was.
    """
    going = _change(saga.key, state="done", job=job, replays=replays).where(
        sagas.c.state == "going", sagas.c.round == saga.round
    )
    with database.write() as connection:
        finished = connection.execute(going).rowcount
    if finished:
        return
    now = get(saga.key)
    if now is None or (now.state, now.round) != ("done", saga.round):
        raise Pending(f"{saga.key}: it is being undone")


def give_up(key: str, run: tuple[str, int] | None = None) -> Saga | None:
    """Let nobody go on with a saga, so that it can be undone; None if nothing is to be undone.

    With a *run* (a job, its replays), only if that still answers for the saga.
    """
    statement = _change(key, state="undoing").where(sagas.c.state != "undone")
    if run is not None:
        job, replays = run
        statement = statement.where(sagas.c.job == job, sagas.c.replays == replays)
    with database.write() as connection:
        row = connection.execute(statement.returning(*_COLUMNS)).one_or_none()
    return None if row is None else Saga(*row)


def undone(saga: Saga) -> None:
    """Note that nothing is left of a round that was given up."""
    over = _change(saga.key, state="undone").where(
        sagas.c.state == "undoing", sagas.c.round == saga.round
    )
    with database.write() as connection:
        connection.execute(over)


def _taken_up(known: Saga, job: str, replays: int) -> Saga:
    if known.state == "undoing":
        raise Pending(f"{known.key}: it is being undone")
    if known.state == "undone":
        if (known.job, known.replays) == (job, replays):
            raise Cancelled(f"{known.key}: it was undone")
        return Saga(known.key, "going", known.round + 1, job, replays)
    if known.state == "done" and known.job != job:
        return known
    return replace(known, job=job, replays=replays)


def _insert(connection: Connection, key: str, job: str, replays: int) -> None:
    connection.execute(
        database.insert(sagas, connection.dialect.name)
        .values(
            key=key,
            state="going",
            round=1,
            job=job,
            replays=replays,
            created_at=database.now(),
            updated_at=database.now(),
        )
        .on_conflict_do_nothing()
    )


def _change(key: str, **values: Any) -> Update:
    return update(sagas).where(sagas.c.key == key).values(**values, updated_at=database.now())
