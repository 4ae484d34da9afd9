"""`celery -A tasks hold …`: jobs that are kept back, by task or by what they are about."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime

import click

from admin import view
from admin.cli.common import as_json, guarded, plain, print_json, print_rows, who
from admin.cli.picking import future
from config.settings import settings
from reliability.holds import SETTLED, holds
from tasks import app
from tasks.base import Operation
from tasks.compensation import operation_named


@click.group()
def hold() -> None:
    """Holds: jobs of one task, or about one order, are parked instead of run until it is lifted.

    To keep every call away from a whole upstream, pause its gate: `gate pause SERVICE`.
    """


@hold.command("ls")
@as_json
@guarded
def hold_ls(as_json: bool) -> None:
    """List the holds, oldest first, with the number of jobs that wait for each."""
    columns = plain("id", "task", "service")
    columns |= {"where": lambda row: " ".join(f"{k}={v}" for k, v in row["where"].items())}
    columns |= plain("jobs", "by", "at", "until", "note")
    print_rows(view.holds(), columns, as_json, "nothing is held")


def _task(_: click.Context, __: click.Parameter, name: str) -> str:
    if name and operation_named(name) is None:
        raise click.BadParameter(f"no task is called {name}; there are: {', '.join(_operations())}")
    return name


def _queue(_: click.Context, __: click.Parameter, service: str) -> str:
    known = settings().queues
    if service and service not in known:
        raise click.BadParameter(f"no queue is that of {service}; there are: {', '.join(known)}")
    return service


def _pairs(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(pair.partition("=")[::2] for pair in given)
    if not all(name and value for name, value in pairs.items()) or len(pairs) < len(given):
        raise click.BadParameter("write each argument once, as name=value")
    return pairs


@hold.command("add")
@click.option("--task", default="", callback=_task, help="Only jobs of this task.")
@click.option(
    "--where",
    multiple=True,
    callback=_pairs,
    help="Only jobs with this argument, name=value; a dot leads into an object: fields.TENANT=x.",
)
@click.option(
    "--service",
    default="",
    callback=_queue,
    help="Only jobs in the queue of this upstream; a whole one is held by `gate pause`.",
)
@click.option("--note", required=True, help="Why; shown to everybody who looks.")
@click.option("--until", callback=future, help="Lift it by itself: in 30m, 2h, 1d, or at a time.")
@as_json
@guarded
def hold_add(
    task: str,
    where: dict[str, str],
    service: str,
    note: str,
    until: datetime | None,
    as_json: bool,
) -> None:
    """Hold jobs back: they are parked before they do anything, and spend no attempt.

    It counts everywhere within two seconds; what runs already goes on. What somebody has paid for
    is held for a day at most, and paid back then.
    """
    if not task and not where:
        whole = f"`gate pause {service}`" if service else "`gate pause SERVICE`"
        raise click.UsageError(f"say --task or --where; a whole upstream is held by {whole}")
    _refuse_unknown_arguments(task, where)
    end = None if until is None else until.timestamp()
    held = holds().add(by=who(), task=task, service=service, where=where, note=note, until=end)
    if as_json:
        print_json(view.hold_row(held))
    else:
        click.echo(f"{held.id} holds them; `hold lift {held.id}` lets them come back")


@hold.command("lift")
@click.argument("hold_id")
@guarded
def hold_lift(hold_id: str) -> None:
    """Let the jobs of a hold come back in the order they were sent, paced to each budget."""
    ended = holds().end(hold_id)
    if ended is None:
        raise click.ClickException(f"there is no hold {hold_id}")
    time.sleep(SETTLED)  # until no worker holds by it any more
    click.echo(f"{hold_id} is lifted, {holds().release(ended)} jobs come back")


def _operations() -> list[str]:
    return sorted(name for name, task in app.tasks.items() if isinstance(task, Operation))


def _refuse_unknown_arguments(task: str, where: Mapping[str, str]) -> None:
    """A misspelt argument would hold nothing, and say nothing."""
    operation_named(task)  # a command line has imported no task until it asks
    names = [task] if task else _operations()
    known = {name for of in names for name in app.tasks[of].payload.signature.parameters}
    for path in where:
        if path.partition(".")[0] not in known:
            arguments = ", ".join(sorted(known))
            raise click.BadParameter(f"no argument is called {path}; there are: {arguments}")
