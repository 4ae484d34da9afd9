"""How Alembic runs our revisions; `storage.upgrade` passes the connection it holds the lock on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context

from storage import database
from storage.models import Base

if TYPE_CHECKING:
    from sqlalchemy import Connection


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    with database.engine().begin() as own:  # `alembic revision --autogenerate`, by a developer
        _migrate(own)


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,  # SQLite changes a column only by copying its table
    )
    context.run_migrations()


run()
