"""`celery -A tasks dlq …`: the dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import click

from admin import view
from admin.cli.common import (
    SHOWN,
    Columns,
    F,
    as_json,
    clock,
    confirmed,
    console,
    exit_unless,
    guarded,
    limited,
    plain,
    print_json,
    print_rows,
    rows_of,
    who,
)
from reliability.dead_letters import Filter, Letter, dead_letters
from tasks.replay import send_again


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
    rows = rows_of(letters, limit, as_json, view.letter_row)
    columns: Columns = {
        "id": itemgetter("message_id"),
        "task": lambda row: row["message_body"]["task"],
        "error": itemgetter("error_type"),
        "message": itemgetter("error_message"),
        "failed at": lambda row: row["metadata"]["failed_at"],
        "retries": lambda row: row["metadata"]["retry_count"],
    }
    print_rows(rows, columns, as_json, "no dead letters")


@dlq.command("show")
@click.argument("message_id")
@as_json
@guarded
def dlq_show(message_id: str, as_json: bool) -> None:
    """Show one letter whole: what it was, why it died, what was tried."""
    row = view.letter_row(_letter(message_id))
    if as_json:
        print_json(row)
        return
    out = console()
    for name in ("message_id", "state", "error_type", "error_message", "explanation"):
        out.print(f"[bold]{name}[/]  ", end="")
        out.print(str(row[name]), markup=False)
    out.print_json(json.dumps({"call": row["message_body"], "metadata": row["metadata"]}))
    for entry in row["history"]:
        out.print(
            f"  {clock(entry['at'])}  {entry['action']:<12} {entry['error']}: {entry['detail']}",
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
    columns = plain("fingerprint", "count", "task", "error_type", "last_seen", "explanation")
    print_rows([view.group_row(group) for group in groups], columns, as_json, "no dead letters")


@dlq.command("replay")
@click.argument("message_ids", nargs=-1)
@chosen
@click.option("--all", "everything", is_flag=True, help="All open letters.")
@confirmed
@guarded
def dlq_replay(message_ids: tuple[str, ...], everything: bool, yes: bool, **which: str) -> None:
    """Send jobs again, with a fresh budget; what has had its effect is not done twice."""
    letters = _pick(message_ids, everything, yes, which, "Send")
    sent = sum(send_again(letter, by=who()) for letter in letters)
    click.echo(f"sent {sent} of {len(letters)} again")
    exit_unless(sent == len(letters))


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
    done = sum(store.discard(letter.message_id, by=who(), note=note) for letter in letters)
    click.echo(f"discarded {done} of {len(letters)}")
    exit_unless(done == len(letters))


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
