"""The second door: `celery -A tasks dlq|parked|gate|credits|videos|db …`.

Exit codes: 0 done, 1 found problems (an unknown id, nothing to do it to), 2 wrong use.
"""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from decimal import Decimal
from functools import wraps
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import click
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.table import Table

from admin import view
from classifiers.errors import InvalidData, Pending
from config.services import Service, services
from reliability.connection import RedisError
from reliability.dead_letters import Filter, Letter, dead_letters
from reliability.parking import parking
from storage import credits as ledger
from storage import videos as paid
from storage.upgrade import upgrade as upgrade_schema
from tasks.base import classified
from tasks.failures import cancel, send_again
from tasks.video import settle as settle_video

F = TypeVar("F", bound=Callable[..., Any])

PIPED_WIDTH = 200  # columns
PRIVATE = {"image_url", "prompt"}  # of a user, and no business of an operator
SHOWN = 100  # rows of a table; --json shows everything unless --limit is given

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limited = click.option("--limit", type=click.IntRange(1), help="Show at most so many.")
confirmed = click.option("--yes", is_flag=True, help="Do not ask.")


def guarded(command: F) -> F:
    """Say in one sentence that Redis is away, instead of a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (RedisError, OperationalError) as error:
            raise click.ClickException(f"Redis does not answer: {error}") from error

    return run  # type: ignore[return-value]


# -- dlq


@click.group()
def dlq() -> None:
    """The dead letters: jobs we gave up, each explained and ready to be sent again."""


def chosen(command: F) -> F:
    """Add the options that pick letters."""
    for option in (
        click.option("--task", default="", help="Only of this task."),
        click.option("--error", "error_type", default="", help="Only of this error class."),
        click.option("--fingerprint", default="", help="Only of this group."),
    ):
        command = option(command)
    return command


@dlq.command("ls")
@chosen
@click.option(
    "--state", type=click.Choice(["open", "replayed", "discarded", "all"]), default="open"
)
@limited
@as_json
@guarded
def dlq_ls(as_json: bool, limit: int | None, **which: Any) -> None:
    """List the letters, newest first."""
    letters = dead_letters().each(Filter(**which))
    rows = _rows(letters, limit, as_json, view.letter_row)
    columns: Columns = {
        "id": itemgetter("message_id"),
        "task": lambda row: row["message_body"]["task"],
        "error": itemgetter("error_type"),
        "message": itemgetter("error_message"),
        "failed at": lambda row: row["metadata"]["failed_at"],
        "retries": lambda row: row["metadata"]["retry_count"],
    }
    _print(rows, columns, as_json, "no dead letters")


@dlq.command("show")
@click.argument("message_id")
@as_json
@guarded
def dlq_show(message_id: str, as_json: bool) -> None:
    """Show one letter whole: what it was, why it died, what was tried."""
    row = view.letter_row(_letter(message_id))
    if as_json:
        _json(row)
        return
    out = console()
    for name in ("message_id", "state", "error_type", "error_message", "explanation"):
        out.print(f"[bold]{name}[/]  ", end="")
        out.print(str(row[name]), markup=False)
    out.print_json(json.dumps({"call": row["message_body"], "metadata": row["metadata"]}))
    for entry in row["history"]:
        out.print(
            f"  {_clock(entry['at'])}  {entry['action']:<12} {entry['error']}: {entry['detail']}",
            markup=False,
        )
    out.print(row["traceback"], markup=False, highlight=False)


@dlq.command("groups")
@limited
@as_json
@guarded
def dlq_groups(as_json: bool, limit: int | None) -> None:
    """List the causes, the most frequent first."""
    groups = dead_letters().groups(limit=limit or (None if as_json else SHOWN))
    columns = _plain("fingerprint", "count", "task", "error_type", "last_seen", "explanation")
    _print([view.group_row(group) for group in groups], columns, as_json, "no dead letters")


@dlq.command("replay")
@click.argument("message_ids", nargs=-1)
@chosen
@click.option("--all", "everything", is_flag=True, help="All open letters.")
@confirmed
@guarded
def dlq_replay(message_ids: tuple[str, ...], everything: bool, yes: bool, **which: str) -> None:
    """Send jobs again, with a fresh budget; what has had its effect is not done twice."""
    letters = _pick(message_ids, everything, yes, which, "Send")
    sent = sum(send_again(letter, by=_me()) for letter in letters)
    click.echo(f"sent {sent} of {len(letters)} again")
    _exit_unless(sent == len(letters))


@dlq.command("discard")
@click.argument("message_ids", nargs=-1)
@chosen
@click.option("--all", "everything", is_flag=True, help="All open letters.")
@click.option("--note", default="", help="Why.")
@confirmed
@guarded
def dlq_discard(
    message_ids: tuple[str, ...], everything: bool, yes: bool, note: str, **which: str
) -> None:
    """Settle letters without sending them; they stay readable."""
    letters = _pick(message_ids, everything, yes, which, "Discard")
    store = dead_letters()
    done = sum(store.discard(letter.message_id, by=_me(), note=note) for letter in letters)
    click.echo(f"discarded {done} of {len(letters)}")
    _exit_unless(done == len(letters))


def _pick(
    message_ids: tuple[str, ...], everything: bool, yes: bool, which: Mapping[str, Any], verb: str
) -> list[Letter]:
    if message_ids:
        return [_letter(message_id) for message_id in message_ids]
    if not everything and not any(which.values()):
        raise click.UsageError("name ids, or pick with --fingerprint, --task, --error or --all")
    letters = list(dead_letters().each(Filter(**which)))
    if letters and not yes:
        click.confirm(f"{verb} {len(letters)} letters?", abort=True)
    return letters


def _letter(message_id: str) -> Letter:
    letter = dead_letters().get(message_id)
    if letter is None:
        raise click.ClickException(f"no dead letter has the id {message_id}")
    return letter


# -- parked


@click.group()
def parked() -> None:
    """The parked jobs: every wait, with its reason and the time it ends."""


@parked.command("ls")
@limited
@as_json
@guarded
def parked_ls(as_json: bool, limit: int | None) -> None:
    """List the parked jobs, soonest first."""
    rows = _rows(parking().jobs(), limit, as_json, view.parked_row)
    columns: Columns = {"id": itemgetter("message_id")}
    columns |= _plain("task", "reason", "service", "since", "due", "attempts")
    _print(rows, columns, as_json, "nothing is parked")


@parked.command("show")
@click.argument("message_id")
@guarded
def parked_show(message_id: str) -> None:
    """Show one parked job whole, as JSON."""
    job = parking().get(message_id)
    if job is None:
        raise click.ClickException(f"no parked job has the id {message_id}")
    _json(view.parked_row(job))


@parked.command("release")
@click.argument("message_ids", nargs=-1, required=True)
@guarded
def parked_release(message_ids: tuple[str, ...]) -> None:
    """Let jobs come back now."""
    released = sum(parking().release(message_id) for message_id in message_ids)
    click.echo(f"released {released} of {len(message_ids)}")
    _exit_unless(released == len(message_ids))


@parked.command("cancel")
@click.argument("message_ids", nargs=-1, required=True)
@click.pass_context
@guarded
def parked_cancel(context: click.Context, message_ids: tuple[str, ...]) -> None:
    """Take jobs out for good; what was paid for them goes back, their result says revoked."""
    backend = context.obj.app.backend
    known = [job for id_ in message_ids if (job := parking().get(id_))]
    cancelled = [job for job in known if cancel(job)]
    for job in cancelled:
        backend.mark_as_revoked(job.message_id, f"cancelled by {_me()}")
    click.echo(f"cancelled {len(cancelled)} of {len(message_ids)}")
    _exit_unless(len(cancelled) == len(message_ids))


# -- gate


@click.group()
def gate() -> None:
    """The gates: one per upstream, with its budget, breaker and pause."""


@gate.command("ls")
@as_json
@guarded
def gate_ls(as_json: bool) -> None:
    """List the gates."""
    columns = _plain("service", "state", "budget_remaining", "retry_at", "note")
    _print(view.gates(), columns, as_json, "no gates")


def _service(_: click.Context, __: click.Parameter, name: str) -> Service:
    known = {service.name: service for service in services()}
    if name not in known:
        raise click.BadParameter(f"no upstream is called {name}; there are: {', '.join(known)}")
    return known[name]


upstream = click.argument("service", callback=_service)


@gate.command("pause")
@upstream
@click.option("--note", default="", help="Why; shown to everybody who looks.")
@guarded
def gate_pause(service: Service, note: str) -> None:
    """Keep every call away from an upstream; its jobs are parked, not failed."""
    view.gate_of(service).pause(by=_me(), note=note)
    click.echo(f"{service.name} is paused")


@gate.command("resume")
@upstream
@guarded
def gate_resume(service: Service) -> None:
    """Open the gate; the jobs that wait for it come back in order, paced to the budget."""
    door = view.gate_of(service)
    door.resume()
    freed = parking().release_service(service.name, start=time.time(), spacing=door.spacing)
    click.echo(f"{service.name} is open, {freed} jobs come back")


@gate.command("reset")
@upstream
@guarded
def gate_reset(service: Service) -> None:
    """Forget the breaker's failures, held credentials and rate limits; a pause stays."""
    view.gate_of(service).reset()
    click.echo(f"{service.name} is reset")


# -- credits


@click.group()
def credits() -> None:
    """The credits of users: what they have, and what came and went."""


def _user(_: click.Context, __: click.Parameter, user_id: str) -> str:
    if not user_id:
        raise click.BadParameter("a user has an id")
    return user_id


def _amount(_: click.Context, __: click.Parameter, amount: str) -> Decimal:
    try:
        return ledger.exact(amount)
    except InvalidData as error:
        raise click.BadParameter(error.detail) from error


user = click.argument("user_id", metavar="USER", callback=_user)


@credits.command("show")
@user
@limited
@as_json
def credits_show(user_id: str, as_json: bool, limit: int | None) -> None:
    """Show what a user has, and the transfers that led to it, newest first."""
    with the_database():
        balance = ledger.balance(user_id)
        entries = ledger.history(user_id, limit or (None if as_json else SHOWN))
    rows = [asdict(entry) | {"at": entry.at.isoformat(timespec="seconds")} for entry in entries]
    if as_json:
        _json({"user_id": user_id, "balance": balance, "history": rows})
        return
    click.echo(f"user {user_id} has {balance} credits")
    columns = _plain("at", "kind", "amount", "balance_after", "reason", "key")
    _print(rows, columns, as_json=False, nothing="no transfers")


@credits.command("grant")
@user
@click.argument("amount", callback=_amount)
@click.option("--reason", required=True, help="Why; the user's history shows it.")
@click.option("--key", help="Given twice with one key, credits come once.")
def credits_grant(user_id: str, amount: Decimal, reason: str, key: str | None) -> None:
    """Give credits to a user."""
    with the_database():
        balance = ledger.grant(user_id, amount, reason, key=key)
    click.echo(f"user {user_id} has {balance} credits")


# -- db


@contextmanager
def the_database() -> Iterator[None]:
    """Say in one sentence what is wrong with the database or refused by it."""
    try:
        yield
    except (InvalidData, Pending) as error:
        raise click.ClickException(error.detail) from error
    except Exception as error:
        raise click.ClickException(
            f"the database cannot be used: {classified(error)} (check DATABASE_URL)"
        ) from error


@click.group()
def db() -> None:
    """The database."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the schema up to date; workers and the API do it at their start, too."""
    with the_database():
        upgrade_schema()
    click.echo("the schema is up to date")


# -- printing

Columns = dict[str, Callable[[dict[str, Any]], Any]]


def _plain(*names: str) -> Columns:
    return {name: itemgetter(name) for name in names}


def _rows(
    items: Iterable[Any], limit: int | None, as_json: bool, row: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    most = limit if limit is not None or as_json else SHOWN
    return [row(item) for item in islice(items, most)]


def _print(
    rows: list[dict[str, Any]],
    columns: Columns,
    as_json: bool,
    nothing: str,
) -> None:
    if as_json:
        _json(rows)
        return
    if not rows:
        click.echo(nothing)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        wordy = name in {"message", "explanation", "note"}
        table.add_column(name, overflow="fold" if wordy else "ellipsis", no_wrap=not wordy)
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console().print(table)


def console() -> Console:
    """Return where tables go; a pipe or a file has no width, so it gets a wide one."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


# -- videos


@click.group()
def videos() -> None:
    """The videos that users have paid for."""


@videos.command("show")
@click.argument("order_id")
@guarded
def videos_show(order_id: str) -> None:
    """Show what has become of one, as JSON; not the photo, nor what was asked for."""
    with the_database():
        video = paid.get(order_id)
    if video is None:
        raise click.ClickException(f"no video of order {order_id} was asked for")
    _json({name: value for name, value in asdict(video).items() if name not in PRIVATE})


@videos.command("settle")
@click.argument("order_id")
@click.option("--arrived", "arrived", flag_value=True, default=None, help="It has arrived.")
@click.option("--refund", "arrived", flag_value=False, help="Give the credits back.")
@guarded
def videos_settle(order_id: str, arrived: bool | None) -> None:
    """Decide about an unconfirmed video; its letters are settled with it."""
    if arrived is None:
        raise click.UsageError("say --arrived or --refund")
    with the_database():
        video = settle_video(order_id, arrived=arrived, by=_me())
    if video is None:
        raise click.ClickException(f"no video of order {order_id} is unconfirmed")
    click.echo(f"order {order_id}: {video.state}")


def _json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without an entry
        return "somebody"


def _exit_unless(done: bool) -> None:
    if not done:
        raise SystemExit(1)
