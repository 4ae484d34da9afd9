"""`celery -A tasks dlq …`: the dead letters."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from operator import itemgetter
from typing import IO, Any

import click
from rich.console import Console

from admin import repair, view
from admin.cli.common import (
    SHOWN,
    Columns,
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
    the_database,
    who,
)
from admin.cli.letter_files import bring_in, export
from admin.cli.picking import COLUMNS, chosen, confirm, future, letter, pick
from admin.cli.replays import ramps, replay
from reliability.causes import VERSION
from reliability.dead_letters import STATES, Filter, Letter, dead_letters
from storage import archive
from tasks import retention
from tasks.base import END_OF_TIME
from tasks.dry_run import amended, objection
from tasks.replay import send_again


@click.group()
def dlq() -> None:
    """The dead letters: jobs we gave up, each explained and ready to be sent again."""


for command in (replay, ramps, export, bring_in):
    dlq.add_command(command)

in_state = click.option("--state", type=click.Choice([*STATES, "all"]), default="open")


@dlq.command("ls")
@chosen
@in_state
@click.option("--archived", is_flag=True, help="Those that were moved to the archive, in SQL.")
@limited
@as_json
@guarded
def dlq_ls(as_json: bool, limit: int | None, state: str, archived: bool, which: Filter) -> None:
    """List the letters, newest first."""
    which = replace(which, state=state)
    if not archived:
        _list(dead_letters().each(which), limit, as_json=as_json)
        return
    with the_database():
        _list(retention.archived_ones(which), limit, as_json=as_json)


def _list(letters: Iterable[Letter], limit: int | None, *, as_json: bool) -> None:
    rows = rows_of(letters, limit, as_json, view.letter_row)
    print_rows(rows, COLUMNS, as_json, "no dead letters")


@dlq.command("show")
@click.argument("message_id")
@as_json
@guarded
def dlq_show(message_id: str, as_json: bool) -> None:
    """Show one letter whole, also one in the archive: what it was, why it died, what was tried."""
    row = view.letter_row(dead_letters().get(message_id) or from_archive(message_id))
    if as_json:
        print_json(row)
        return
    out = console()
    for name in ("message_id", "state", "note", "error_type", "error_message", "explanation"):
        tell(out, name, row[name])
    tell(out, "fingerprint", row["fingerprint"])
    owed = row["compensation"]["state"]
    tell(out, "compensation", "" if owed == "none" else owed)
    out.print_json(json.dumps({"call": row["message_body"], "metadata": row["metadata"]}))
    for entry in row["history"]:
        out.print(f"  {attempt(entry)}", markup=False)
    for edit in row["edits"]:
        out.print(f"  {edit['at']}  edited by {edit['by']}", markup=False)
        out.print(view.difference(edit["before"], edit["after"]), markup=False, highlight=False)
    out.print(row["traceback"], markup=False, highlight=False)


def tell(out: Console, name: str, value: str) -> None:
    """Print what is known of a letter under its name."""
    if value:
        out.print(f"[bold]{name}[/]  ", end="")
        out.print(value, markup=False)


def attempt(entry: Mapping[str, Any]) -> str:
    """Return one line of a job's history, which may have come from anywhere."""
    at = entry.get("at")
    when = clock(at) if isinstance(at, int | float) and 0 < at < END_OF_TIME else "some time"
    said = (str(entry.get(name, "?")) for name in ("action", "error", "detail"))
    return "{}  {:<12} {}: {}".format(when, *said)


def from_archive(message_id: str) -> Letter:
    """Return a letter that Redis keeps no longer. Ends the command if there is none."""
    with the_database():
        kept = archive.get(message_id)
    if kept is None:
        raise click.ClickException(f"no dead letter has the id {message_id}")
    return Letter.from_json(kept.letter)


@dlq.command("discard")
@click.argument("message_ids", nargs=-1)
@chosen
@click.option("--all", "everything", is_flag=True, help="All open letters.")
@click.option("--note", default="", help="Why.")
@confirmed
@guarded
def dlq_discard(
    message_ids: tuple[str, ...], which: Filter, everything: bool, note: str, yes: bool
) -> None:
    """Settle letters without sending them; they stay readable."""
    picked = pick(message_ids, which, everything=everything)
    confirm("Discard", picked, yes=yes)
    store = dead_letters()
    settled = [
        store.discard(one.message_id, by=who(), note=note)
        for one in picked.letters()
        if one.state == "open" or picked.ids
    ]
    click.echo(f"discarded {sum(settled)} of {len(settled)}")
    exit_unless(all(settled))


# -- one letter, repaired


@dlq.command("edit")
@click.argument("message_id")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change one argument.")
@click.option("--unset", multiple=True, metavar="NAME", help="Leave one out.")
@click.option("--json", "file", type=click.File("r"), help="Take all arguments from a file.")
@click.option("--replay", "send", is_flag=True, help="Send the job again with them.")
@confirmed
@guarded
def dlq_edit(
    message_id: str,
    changes: tuple[str, ...],
    unset: tuple[str, ...],
    file: IO[str] | None,
    send: bool,
    yes: bool,
) -> None:
    """Change the arguments of a dead job; what they were, and who changed them, is kept.

    VALUE is JSON, or else taken as a text; `fields.TITLE=x` changes one value within another.
    """
    if bool(file) == bool(changes or unset):
        raise click.UsageError("change arguments with --set and --unset, or give all in a --json")
    dead = letter(message_id)
    before = dead.message_body.kwargs
    after = _whole(file) if file else edited(before, changes, unset)
    against = objection(amended(dead, after))
    if against:
        raise click.ClickException(against)
    if after == before:
        raise click.ClickException("that changes nothing")
    click.echo(view.difference(before, after))
    if not yes:
        click.confirm("Change it so?", abort=True)
    try:
        changed = repair.edit(dead, after, who())
    except repair.Refused as refusal:
        raise click.ClickException(str(refusal)) from refusal
    if send and not send_again(changed, by=who()):
        raise click.ClickException("it is changed, but somebody else has settled it")
    click.echo(f"{message_id} is changed" + (" and sent again" if send else ""))


def edited(
    before: Mapping[str, Any], changes: tuple[str, ...], unset: tuple[str, ...]
) -> dict[str, Any]:
    """Return the arguments with some set and some left out; dots lead into what is nested."""
    after = deepcopy(dict(before))
    for change in changes:
        path, given, value = change.partition("=")
        if not given:
            raise click.UsageError(f"--set wants NAME=VALUE, not {change}")
        inner, name = _place(after, path)
        inner[name] = _value(value)
    for path in unset:
        inner, name = _place(after, path)
        if name not in inner:
            raise click.UsageError(f"there is no {path} to leave out")
        del inner[name]
    return after


def _place(arguments: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *outer, name = path.split(".")
    for step in outer:
        arguments = arguments.setdefault(step, {})
        if not isinstance(arguments, dict):
            raise click.UsageError(f"{step} of {path} holds nothing that has a name")
    return arguments, name


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _whole(file: IO[str]) -> dict[str, Any]:
    try:
        arguments = json.load(file)
    except ValueError as error:
        raise click.UsageError(f"the file is no JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise click.UsageError("the file holds no object of arguments by name")
    return arguments


# -- groups


@dlq.command("groups")
@in_state
@limited
@as_json
@guarded
def dlq_groups(as_json: bool, limit: int | None, state: str) -> None:
    """List the causes, the most frequent first."""
    most = limit or (None if as_json else SHOWN)
    columns: Columns = plain("fingerprint", "count", "task", "error_type")
    columns |= plain("first_seen", "last_seen") | {
        "verdict": lambda row: _said(row["verdict"]),
        "explanation": itemgetter("explanation"),
    }
    rows = [view.group_row(group) for group in dead_letters().groups(state=state, limit=most)]
    print_rows(rows, columns, as_json, "no dead letters")


def _said(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    if verdict["regression"]:
        return f"REGRESSION, was fixed in {verdict['version']}"
    return f"fixed in {verdict['version']}" if verdict["version"] else verdict["state"]


group = click.argument("fingerprint")


def insist_on(fingerprint: str) -> None:
    """End the command if no letter has this cause: a misspelt one would be judged unnoticed."""
    if not dead_letters().count(Filter("all", fingerprint=fingerprint)):
        raise click.ClickException(f"no dead letter has the cause {fingerprint}")


@dlq.command("ignore")
@group
@click.option("--note", required=True, help="Why; it stands in each of its letters.")
@click.option("--until", callback=future, help="No longer than (7d, ISO 8601).")
@confirmed
@guarded
def dlq_ignore(fingerprint: str, note: str, until: datetime | None, yes: bool) -> None:
    """Discard the letters of a group, and those that will come, until then."""
    insist_on(fingerprint)
    picked = pick((), Filter(fingerprint=fingerprint), everything=False)
    confirm("Discard, and ignore those to come,", picked, yes=yes)
    discarded = dead_letters().ignore(fingerprint, by=who(), note=note, until=until)
    click.echo(f"{fingerprint} is ignored, {discarded} letters discarded")


def _release(_: click.Context, __: click.Parameter, given: str) -> str:
    if not VERSION.fullmatch(given):
        raise click.BadParameter(f"{given} cannot be compared; give one like 1.4.2")
    return given


@dlq.command("fixed")
@group
@click.option(
    "--in", "version", required=True, callback=_release, help="The release that has mended it."
)
@click.option("--note", default="", help="How.")
@guarded
def dlq_fixed(fingerprint: str, version: str, note: str) -> None:
    """Say that a release has mended a cause; a death in it, or a later one, is a regression."""
    insist_on(fingerprint)
    dead_letters().fixed(fingerprint, by=who(), version=version, note=note)
    click.echo(f"{fingerprint} is fixed in {version}")


@dlq.command("verdicts")
@as_json
@guarded
def dlq_verdicts(as_json: bool) -> None:
    """List what was said about groups; of one that is ignored no letter is open."""
    columns = plain("fingerprint", "state", "version", "regression", "by", "at", "until", "note")
    rows = [
        {"fingerprint": fingerprint} | view.verdict_row(verdict)
        for fingerprint, verdict in dead_letters().verdicts().items()
    ]
    rows.sort(key=itemgetter("at"))
    print_rows(rows, columns, as_json, "nothing was said about any group")


@dlq.command("unsay")
@group
@guarded
def dlq_unsay(fingerprint: str) -> None:
    """Take back what was said about a group with `ignore` or `fixed`."""
    lifted = dead_letters().lift(fingerprint)
    click.echo(f"{fingerprint} is as any other" if lifted else "nothing was said about it")
    exit_unless(lifted)
