"""Brings the schema up to date: at the start of every process, one at a time."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, select

from classifiers.database import classify
from config.settings import settings
from storage import database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

PATIENCE = 300.0  # s; a large table takes its time, and the others wait for the one at work
_LOCK = 0x706572656E6E6961  # "perennia", ours among the advisory locks of a shared PostgreSQL

_log = logging.getLogger(__name__)
# Alembic tells every look it takes; what matters of it, we say ourselves.
logging.getLogger("alembic").setLevel(logging.WARNING)


def upgrade(url: str | None = None) -> None:
    """Bring the schema of *url*, or of `DATABASE_URL`, to the newest revision we know.

    A schema newer than ours stays: revisions only add, so that a release can be taken back
    without its schema.
    """
    # An engine of its own leaves no connection behind: workers fork after this.
    engine = database.build(url or settings().database_url, patience=PATIENCE, pooled=False)
    with engine.connect() as connection:
        present, newest = revisions(connection)
    if present == newest:
        return
    if present not in known():
        _log.warning("the schema (%s) is newer than this release (%s)", present, newest)
        return
    with _alone(engine) as connection:
        present = _revision(connection)
        command.upgrade(_config(connection), "head")
    if present != newest:
        _log.info("the schema went from %s to %s", present or "nothing", newest)


def obstacles() -> Iterator[Exception]:
    """Try to bring the schema of `DATABASE_URL` up to date until that is done.

    Yields why each try has failed; who goes on asking has it tried again.
    """
    while True:
        try:
            upgrade()
        except Exception as error:  # noqa: BLE001  who asks tells of it, and knows when to give up
            yield error
        else:
            return


def sentence(error: Exception) -> str:
    """Say why the schema could not be brought up to date, and where to look."""
    return f"the database cannot be used: {classify(error)} (see whether it runs, and DATABASE_URL)"


def revisions(connection: Connection) -> tuple[str | None, str | None]:
    """Return the revision of the schema that is there, None for none, and the newest we know."""
    return _revision(connection), _newest()


def behind(connection: Connection) -> bool:
    """Whether the schema that is there is older than this release; a newer one does no harm."""
    present, newest = revisions(connection)
    return present != newest and present in known()


@lru_cache(maxsize=1)
def known() -> frozenset[str | None]:
    """Return every revision that this release knows, and None for an empty database."""
    return frozenset({None, *(script.revision for script in _scripts().walk_revisions())})


@lru_cache(maxsize=1)
def _newest() -> str | None:
    return _scripts().get_current_head()


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """One transaction that nobody else can be in; on SQLite every one of ours is so."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        yield connection


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
