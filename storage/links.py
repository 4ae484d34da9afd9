"""Which deal is which order, which contact is which user, and what was last told to whom.

One writer at a time works on a link, inside `effects.exclusive`; the statements here only see to
it that versions never go back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from sqlalchemy import case, literal, or_, select, update

from storage import database
from storage.models import links

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from typing import Unpack

    from sqlalchemy import ColumnElement, Connection, Row

Entity = Literal["deal", "contact"]


class _Keep(Enum):
    KEEP = "keep"


KEEP = _Keep.KEEP  # "leave this column as it is", where None would clear it


@dataclass(frozen=True, slots=True)
class Link:
    """A thing of ours and its twin in the portal.

    *version* is the newest `updated_at` applied, *accepted* when the newest update without one
    was accepted; *digest* is of the payload that created it; *given* names the fields set by
    updates while the create had yet to arrive (None: it has arrived); *awaiting* is the user whose
    contact a deal still waits for; *remote* is what the portal last told us, at *seen_at*.
    """

    entity: Entity
    local_id: str
    remote_id: str
    version: datetime | None
    accepted: datetime | None
    digest: str | None
    given: tuple[str, ...] | None
    awaiting: str | None
    gone: bool
    remote: dict[str, Any] | None
    seen_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Columns(TypedDict, total=False):
    """What may be remembered of a link beside its ids; what is left out stays as it is."""

    version: datetime | None
    accepted: datetime | None
    digest: str | None
    given: Sequence[str] | None
    awaiting: str | None


def get(entity: Entity, local_id: str) -> Link | None:
    return next(iter(_all(links.c.entity == entity, links.c.local_id == local_id)), None)


def awaiting(user_id: str) -> list[Link]:
    """The deals that still wait for the contact of this user, oldest first."""
    return _all(links.c.awaiting == user_id, links.c.gone.is_(False))


def remember(
    connection: Connection,
    entity: Entity,
    local_id: str,
    remote_id: str,
    **columns: Unpack[Columns],
) -> None:
    """Tie a thing of ours to its twin, in the transaction that marks the create done."""
    now = database.now()
    values = _storable(columns)
    fresh = database.insert(links, connection.dialect.name).values(
        entity=entity,
        local_id=local_id,
        remote_id=remote_id,
        gone=False,
        created_at=now,
        updated_at=now,
        **values,
    )
    connection.execute(
        fresh.on_conflict_do_update(
            index_elements=[links.c.entity, links.c.local_id],
            set_={"remote_id": remote_id, "gone": False, "updated_at": now, **_forward(values)},
        )
    )


def adopt(entity: Entity, local_id: str, remote_id: str) -> None:
    """Tie a thing of ours to a row that was in the portal before."""
    with database.write() as connection:
        remember(connection, entity, local_id, remote_id)


def applied(
    entity: Entity,
    local_id: str,
    *,
    version: datetime | None = None,
    accepted: datetime | None = None,
    digest: str | _Keep | None = KEEP,
    given: Sequence[str] | _Keep | None = KEEP,
    awaiting: str | _Keep | None = KEEP,
) -> bool:
    """Note that an update reached the portal; False if there is no such link.

    *version* and *accepted* only ever move forward. None clears what it is given for.
    """
    columns: dict[str, Any] = {"version": version, "accepted": accepted}
    columns = {name: moment for name, moment in columns.items() if moment is not None}
    columns |= {} if digest is KEEP else {"digest": digest}
    columns |= {} if given is KEEP else {"given": given}
    columns |= {} if awaiting is KEEP else {"awaiting": awaiting}
    return _change(
        _forward(_storable(columns)), links.c.entity == entity, links.c.local_id == local_id
    )


def saw(entity: Entity, remote_id: str, snapshot: dict[str, Any], at: datetime) -> bool:
    """Keep what the portal told us *at* that time; False if nothing of ours is linked to it.

    What is older than the last we were told changes nothing, and is False as well.
    """
    return _change(
        {"remote": snapshot, "seen_at": at, "gone": False}, *_seen_before(entity, remote_id, at)
    )


def gone(entity: Entity, remote_id: str, at: datetime) -> bool:
    """Note that the portal had deleted it *at* that time; False as with `saw`."""
    return _change({"seen_at": at, "gone": True}, *_seen_before(entity, remote_id, at))


def _seen_before(
    entity: Entity, remote_id: str, at: datetime
) -> tuple[ColumnElement[bool], ColumnElement[bool], ColumnElement[bool]]:
    newer = or_(links.c.seen_at.is_(None), links.c.seen_at <= at)
    return links.c.entity == entity, links.c.remote_id == remote_id, newer


def _storable(columns: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only."""
    given = columns.get("given")
    return {**columns, "given": list(given)} if given is not None else dict(columns)


def _forward(values: dict[str, Any]) -> dict[str, Any]:
    """The same assignments, but none moves a version back (GREATEST, which SQLite lacks)."""
    return {
        name: _later(links.c[name], value) if name in {"version", "accepted"} else value
        for name, value in values.items()
    }


def _later(column: ColumnElement[datetime], moment: datetime | None) -> ColumnElement[datetime]:
    if moment is None:
        return column
    return case((column >= moment, column), else_=literal(moment, column.type))


def _change(values: dict[str, Any], *which: ColumnElement[bool]) -> bool:
    with database.write() as connection:
        statement = update(links).where(*which)
        return bool(
            connection.execute(statement.values(**values, updated_at=database.now())).rowcount
        )


def _all(*which: ColumnElement[bool]) -> list[Link]:
    oldest_first = (links.c.created_at, links.c.local_id)
    with database.read() as connection:
        rows = connection.execute(select(links).where(*which).order_by(*oldest_first))
        return [_link(row) for row in rows]


def _link(row: Row[Any]) -> Link:
    columns = dict(row._mapping)  # noqa: SLF001  # public, despite its name
    given = columns.pop("given")
    return Link(**columns, given=None if given is None else tuple(given))
