"""The archive: dead letters that Redis keeps no longer, each death once.

It grows by what is trimmed and is never trimmed itself: how long a company keeps such records is
its own rule, and `DELETE FROM archived_letters WHERE failed_at < …` needs nobody's leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import select, tuple_

from storage import database
from storage.models import archived_letters as archive

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.dialects import postgresql, sqlite

CHUNK = 200  # letters read at a time, a few kilobytes each


@dataclass(frozen=True, slots=True)
class Archived:
    """One death. *letter* is the whole record as JSON; the rest is what it is found by."""

    message_id: str
    failed_at: datetime
    state: str
    task: str
    error_type: str
    fingerprint: str
    letter: str


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters: those that match everything that is given; *until* itself is left out."""

    state: str = "all"
    task: str = ""
    error_type: str = ""
    fingerprint: str = ""
    since: datetime | None = None
    until: datetime | None = None


def keep(letters: Sequence[Archived]) -> None:
    """Write letters, all or none; one that is kept already is brought up to date."""
    if not letters:
        return
    with database.transaction() as connection:
        connection.execute(_keeping(connection.dialect.name), [_row(each) for each in letters])


def get(message_id: str) -> Archived | None:
    """Return the last death of a job."""
    return next(_all(archive.c.message_id == database.storable(message_id)), None)


def each(which: Which | None = None) -> Iterator[Archived]:
    """Go through letters, newest first, a few hundred in memory at a time."""
    return _all(*_conditions(which or Which()))


def _conditions(which: Which) -> Iterator[ColumnElement[bool]]:
    state = "" if which.state == "all" else which.state
    for column, value in (
        (archive.c.state, state),
        (archive.c.task, which.task),
        (archive.c.error_type, which.error_type),
        (archive.c.fingerprint, which.fingerprint),
    ):
        if value:
            yield column == database.storable(value)
    if which.since is not None:
        yield archive.c.failed_at >= which.since
    if which.until is not None:
        yield archive.c.failed_at < which.until


def _all(*which: ColumnElement[bool]) -> Iterator[Archived]:
    """Read by where the last chunk ended, and hold no connection in between."""
    place = (archive.c.failed_at, archive.c.message_id)
    names = [archive.c[name] for name in Archived.__slots__]
    statement = select(*names).where(*which).order_by(*(c.desc() for c in place)).limit(CHUNK)
    rest = statement
    while True:
        with database.read() as connection:
            found = [Archived(**row) for row in connection.execute(rest).mappings()]
        yield from found
        if len(found) < CHUNK:
            return
        rest = statement.where(tuple_(*place) < (found[-1].failed_at, found[-1].message_id))


@cache
def _keeping(dialect: str) -> postgresql.Insert | sqlite.Insert:
    """Built once: building it anew takes longer than executing it."""
    fresh = database.insert(archive, dialect).values(archived_at=database.now())
    told = ("state", "task", "error_type", "fingerprint", "letter", "archived_at")
    return fresh.on_conflict_do_update(
        index_elements=[archive.c.message_id, archive.c.failed_at],
        set_={name: fresh.excluded[name] for name in told},
    )


def _row(each: Archived) -> dict[str, object]:
    names = ("message_id", "state", "task", "error_type", "fingerprint", "letter")
    texts = {name: database.storable(getattr(each, name)) for name in names}
    return texts | {"failed_at": each.failed_at}
