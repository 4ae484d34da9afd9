"""`celery -A tasks effects …`: what may have happened outside, and only a person can find out."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

import click

from admin import view
from admin.cli.common import (
    Columns,
    as_json,
    guarded,
    limited,
    plain,
    print_json,
    print_rows,
    rows_of,
    the_database,
    who,
)
from reliability.dead_letters import dead_letters
from storage import effects as written_down
from tasks.settling import settle


@click.group()
def effects() -> None:
    """Effects in doubt: a call went out, and no answer came.

    Most settle themselves: their job asks the upstream when it runs again. Where nothing can be
    asked, the job is a dead letter OutcomeUnknown until a person has looked.
    """


@effects.command("ls")
@click.option("--kind", default="", help="Only of this kind, such as bitrix.deal.")
@limited
@as_json
@guarded
def effects_ls(kind: str, limit: int | None, as_json: bool) -> None:
    """List the effects in doubt, the oldest first."""
    columns: Columns = plain("key", "state") | {"job": itemgetter("owner")}
    columns |= plain("updated_at", "error")
    with the_database():
        rows = rows_of(written_down.in_doubt(kind), limit, as_json, view.effect_row)
        print_rows(rows, columns, as_json, "nothing is in doubt")


@effects.command("show")
@click.argument("key")
@guarded
def effects_show(key: str) -> None:
    """Show what is written down of one effect, as JSON."""
    with the_database():
        row = written_down.get(key)
    if row is None:
        raise click.ClickException(f"no effect is called {key}")
    print_json(view.effect_row(row))


def _result(_: click.Context, __: click.Parameter, given: str | None) -> Any:
    """Read an object; anything else is an id, also one that looks like a number."""
    if given is None or not given.startswith("{"):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}") from error


@effects.command("settle")
@click.argument("key")
@click.option(
    "--done",
    "outcome",
    callback=_result,
    metavar="RESULT",
    help="It happened: its id, or a JSON object.",
)
@click.option("--undone", is_flag=True, help="It did not happen; a replay has it anew.")
@click.option("--note", required=True, help="How you know.")
@guarded
def effects_settle(key: str, outcome: Any, undone: bool, note: str) -> None:
    """Write down what you have found out about an effect in doubt.

    RESULT is what the upstream calls it: the id of the deal, say. Look twice before --undone: the
    job is run again then, and what has happened after all happens a second time.
    """
    if (outcome is not None) == undone:
        raise click.UsageError("say --done RESULT or --undone")
    with the_database():
        row = written_down.get(key)
        if row is None:
            raise click.ClickException(f"no effect is called {key}")
        if not settle(key, outcome, by=who(), note=note):
            raise click.ClickException(f"{key} is not in doubt, it is {row.state}")
    click.echo(f"{key} is {'undone' if undone else 'done'}")
    dead = dead_letters().get(row.owner)
    if dead is not None and dead.state == "open":
        click.echo(f"its job has a dead letter: `dlq replay {row.owner}` goes on from there")
