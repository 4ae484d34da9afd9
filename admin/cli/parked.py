"""`celery -A tasks parked …`: the jobs that wait."""

from __future__ import annotations

from itertools import chain
from operator import itemgetter

import click

from admin import view
from admin.cli.common import (
    Columns,
    as_json,
    exit_unless,
    guarded,
    limited,
    plain,
    print_json,
    print_rows,
    rows_of,
    who,
)
from admin.repair import cancel_parked
from reliability.parking import parking


@click.group()
def parked() -> None:
    """The parked jobs: every wait, with its reason and the time it ends."""


@parked.command("ls")
@limited
@as_json
@guarded
def parked_ls(as_json: bool, limit: int | None) -> None:
    """List the parked jobs, soonest first; before them those that wait to be run alone."""
    waiting = chain(view.suspects(), map(view.parked_row, parking().jobs()))
    rows = rows_of(waiting, limit, as_json, lambda row: row)
    columns: Columns = {"id": itemgetter("message_id")}
    columns |= plain("task", "state", "reason", "service", "since", "due", "attempts")
    print_rows(rows, columns, as_json, "nothing is parked")


@parked.command("show")
@click.argument("message_id")
@guarded
def parked_show(message_id: str) -> None:
    """Show one parked job whole, as JSON."""
    job = parking().get(message_id)
    suspects = (row for row in view.suspects() if row["message_id"] == message_id)
    row = view.parked_row(job) if job is not None else next(suspects, None)
    if row is None:
        raise click.ClickException(f"no parked job has the id {message_id}")
    print_json(row)


@parked.command("release")
@click.argument("message_ids", nargs=-1, required=True)
@guarded
def parked_release(message_ids: tuple[str, ...]) -> None:
    """Let jobs come back now."""
    released = sum(parking().release(message_id) for message_id in message_ids)
    click.echo(f"released {released} of {len(message_ids)}")
    exit_unless(released == len(message_ids))


@parked.command("cancel")
@click.argument("message_ids", nargs=-1, required=True)
@guarded
def parked_cancel(message_ids: tuple[str, ...]) -> None:
    """Take jobs out for good; what was paid for them goes back, their result says revoked."""
    known = (job for id_ in message_ids if (job := parking().get(id_)))
    cancelled = sum(cancel_parked(job, who()) for job in known)
    click.echo(f"cancelled {cancelled} of {len(message_ids)}")
    exit_unless(cancelled == len(message_ids))
