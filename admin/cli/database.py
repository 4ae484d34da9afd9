"""`celery -A tasks db …`: the schema."""

from __future__ import annotations

import click

from admin.cli.common import the_database
from storage.upgrade import upgrade


@click.group()
def db() -> None:
    """The database."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema up to date; workers and the API do it at their start, too."""
    with the_database():
        upgrade()
    click.echo("the schema is up to date")
