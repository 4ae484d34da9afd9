"""`celery -A tasks doctor`: what is wrong with this set-up, and what to do."""

from __future__ import annotations

import click
from rich.markup import escape
from rich.table import Table

from admin import upstreams
from admin.cli.common import as_json, console, print_array
from admin.doctor import OK, PROBLEM, SKIPPED, WARNING, examine

MARKS = {
    OK: "[green]ok[/]",
    WARNING: "[yellow]warning[/]",
    PROBLEM: "[red]problem[/]",
    SKIPPED: "skipped",
}


@click.command()
@click.option(
    "--online", is_flag=True, help="Ask each upstream whether it takes the credential in use."
)
@as_json
def doctor(online: bool, as_json: bool) -> None:
    """Look at settings, Redis, broker, database, workers and what is left behind.

    Nothing is changed, and no upstream is called without --online. Exits with 1 if there is a
    problem.
    """
    findings = list(examine(*(upstreams.CHECKS if online else ())))
    if as_json:
        print_array(finding.row() for finding in findings)
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("what to do", overflow="fold")
        for each in findings:
            advice = "" if each.state == OK else each.advice
            table.add_row(each.name, MARKS[each.state], escape(each.found), escape(advice))
        console().print(table)
    problems = sum(finding.state == PROBLEM for finding in findings)
    warnings = sum(finding.state == WARNING for finding in findings)
    click.echo(f"{problems} problems, {warnings} warnings", err=as_json)
    raise SystemExit(1 if problems else 0)
