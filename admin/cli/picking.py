"""Which letters a command is about: filters, ids, and the question before many are touched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from itertools import islice
from operator import itemgetter
from typing import Any

import click

from admin import view
from admin.cli.common import Columns, F, print_rows
from reliability.dead_letters import Filter, Letter, dead_letters

SAMPLE = 5  # letters shown before a person says yes to all
UNITS = {"m": "minutes", "h": "hours", "d": "days"}

COLUMNS: Columns = {
    "id": itemgetter("message_id"),
    "task": lambda row: row["message_body"]["task"],
    "error": itemgetter("error_type"),
    "message": itemgetter("error_message"),
    "failed at": lambda row: row["metadata"]["failed_at"],
    "retries": lambda row: row["metadata"]["retry_count"],
}


def moment(sign: int, _: click.Context, __: click.Parameter, given: str | None) -> datetime | None:
    """Read a time: ISO 8601, without an offset this machine's, or a span from now (30m, 2h, 7d).

    A span goes into the past or the future by its *sign*; what is to come must not be over.
    """
    if not given:
        return None
    now = datetime.now(UTC)
    try:
        if span := re.fullmatch(r"(\d{1,6})([mhd])", given):
            return now + sign * timedelta(**{UNITS[span[2]]: int(span[1])})
        at = datetime.fromisoformat(given).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter("write 30m, 2h, 7d or a time of ISO 8601") from error
    if sign > 0 and at <= now:
        raise click.BadParameter(f"{given} is over already")
    return at


past, future = partial(moment, -1), partial(moment, 1)


def chosen(command: F) -> F:
    """Add the options that pick letters, as one argument *which*, a Filter of open letters."""
    names = ("task", "error_type", "fingerprint", "since", "until", "grep")

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        which = Filter(**{name: options.pop(name) for name in names})
        return command(*args, which=which, **options)

    for option in (
        click.option("--task", default="", help="Only of this task."),
        click.option("--error", "error_type", default="", help="Only of this error class."),
        click.option(
            "--group", "--fingerprint", "fingerprint", default="", help="Only this group."
        ),
        click.option(
            "--since", callback=past, help="Only those that died since (2h, 7d, ISO 8601)."
        ),
        click.option("--until", callback=past, help="Only those that died before."),
        click.option("--grep", default="", help="Only with this text in ids, message, arguments."),
    ):
        run = option(run)
    return run  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Picked:
    """What a command is about: *ids* that a person has named, else all letters of a filter."""

    which: Filter
    ids: tuple[str, ...]
    count: int

    def letters(self) -> Iterator[Letter]:
        """Go through them, a few hundred in memory at a time."""
        return map(letter, self.ids) if self.ids else dead_letters().each(self.which)


def pick(ids: tuple[str, ...], which: Filter, *, everything: bool) -> Picked:
    """Return what was picked. Those that die from now on are not among it.

    Raises:
        click.ClickException: an id is unknown.
        click.UsageError: nothing was picked, or twice.
    """
    filtered = which != Filter()
    if sum((bool(ids), filtered or everything)) > 1:
        raise click.UsageError("name ids or give filters, not both")
    if ids:
        ids = tuple(dict.fromkeys(ids))  # one that is named twice is meant once
        for message_id in ids:
            letter(message_id)
        return Picked(which, ids, len(ids))
    if not everything and not filtered:
        raise click.UsageError("name ids, or pick with --group, --task, --error … or --all")
    now = datetime.now(UTC)
    which = replace(which, until=min(which.until or now, now))
    return Picked(which, (), dead_letters().count(which))


def confirm(verb: str, picked: Picked, *, yes: bool) -> None:
    """Show some of what was picked by a filter, and ask. Ends the command if a person says no."""
    if picked.ids or yes or not picked.count:
        return
    rows = [view.letter_row(one) for one in islice(picked.letters(), SAMPLE)]
    print_rows(rows, COLUMNS, as_json=False, nothing="")
    click.confirm(f"{verb} {picked.count} letters?", abort=True)


def letter(message_id: str) -> Letter:
    """Return a letter. Ends the command if there is none."""
    found = dead_letters().get(message_id)
    if found is None:
        raise click.ClickException(f"no dead letter has the id {message_id}")
    return found
