"""`celery -A tasks dlq replay|replays`: dead jobs sent again, at once or in a ramp."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from itertools import islice
from operator import itemgetter

import click

from admin import view
from admin.cli.common import (
    SHOWN,
    Columns,
    as_json,
    clock,
    confirmed,
    exit_unless,
    guarded,
    plain,
    print_array,
    print_json,
    print_rows,
    the_database,
    who,
)
from admin.cli.picking import Picked, chosen, confirm, pick
from reliability.dead_letters import Filter
from reliability.replays import Run, replays
from tasks.dry_run import dry_run, objection
from tasks.replay import begin_ramp, drive, send_again

TOLD = 10  # reasons for which letters were not sent, at most
LOOK = 0.5  # s between two looks at a run that somebody waits for


@click.command("replay")
@click.argument("message_ids", nargs=-1)
@chosen
@click.option("--all", "everything", is_flag=True, help="All open letters.")
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would become of them.")
@click.option("--ramp", is_flag=True, help="1, then 10, then 100 …, while they end well.")
@click.option("--wait", is_flag=True, help="With --ramp: stay until it is over.")
@confirmed
@as_json
@guarded
def replay(
    message_ids: tuple[str, ...],
    which: Filter,
    everything: bool,
    dry: bool,
    ramp: bool,
    wait: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send jobs again, with a fresh budget; what has had its effect is not done twice."""
    if dry and ramp:
        raise click.UsageError("--dry-run sends nothing, so that there is nothing to --ramp")
    if wait and not ramp:
        raise click.UsageError("only a --ramp is worth to --wait for")
    if wait and as_json:
        raise click.UsageError("who waits reads lines; leave out --json, or --wait")
    picked = pick(message_ids, which, everything=everything)
    if dry:
        rehearse(picked, as_json=as_json)
        return
    confirm("Send", picked, yes=yes)
    if not ramp:
        send(picked, as_json=as_json)
        return
    run = begin_ramp(picked.which, ids=picked.ids, by=who())
    if as_json:
        print_json(view.run_row(run))
    else:
        click.echo(f"replay {run.id} is under way; see `celery -A tasks dlq replays {run.id}`")
    if wait:
        wait_for(run.id)


def rehearse(picked: Picked, *, as_json: bool) -> None:
    """Print what would become of each letter; 100 of them in a table, all of them as JSON."""
    with the_database():
        outlooks = map(asdict, dry_run(picked.letters()))
        if as_json:
            print_array(outlooks)
            return
        rows = list(islice(outlooks, SHOWN))
    columns: Columns = {"id": itemgetter("message_id")}
    columns |= plain("task", "verdict", "gate", "effect", "why")
    print_rows(rows, columns, as_json, "no dead letters")
    if rows:
        verdicts = Counter(row["verdict"] for row in rows)
        counts = ", ".join(f"{verdict} {count}" for verdict, count in sorted(verdicts.items()))
        beyond = picked.count - len(rows)
        click.echo(f"{counts}" + (f"; {beyond} more were not looked at" if beyond > 0 else ""))


def send(picked: Picked, *, as_json: bool) -> None:
    """Send everything at once; say why what was not sent was not."""
    sent, refused = 0, Counter[str]()
    for letter in picked.letters():
        against = objection(letter)
        if not against and send_again(letter, by=who()):
            sent += 1
        else:
            refused[against or "somebody else has settled it"] += 1
    if as_json:
        print_json({"sent": sent, "refused": refused})
    else:
        click.echo(f"sent {sent} of {sent + refused.total()} again")
        for why, count in refused.most_common(TOLD):
            click.echo(f"  {count} not: {why}", err=True)
    exit_unless(not refused)


@click.command("replays")
@click.argument("run_id", required=False)
@click.option("--cancel", is_flag=True, help="Send no more; what is under way goes on.")
@click.option("--resume", is_flag=True, help="Go on where it was, with one job first.")
@click.option("--wait", is_flag=True, help="Stay until it is over.")
@as_json
@guarded
def ramps(run_id: str | None, cancel: bool, resume: bool, wait: bool, as_json: bool) -> None:
    """List the ramped replays of the last month, or see to one of them."""
    if run_id is None:
        if cancel or resume or wait:
            raise click.UsageError("name the replay")
        columns = plain("id", "state", "sent", "ended", "died", "under_way", "by", "begun_at")
        columns |= {"why": lambda row: row["why"] or row["waits"]}
        print_rows(list(map(view.run_row, replays().each())), columns, as_json, "no replays")
        return
    run = known(run_id)
    if cancel and resume:
        raise click.UsageError("--cancel or --resume, not both")
    if cancel:
        exit_unless(replays().close(run.id, "cancelled", f"cancelled by {who()}"))
    elif resume:
        # One that is running may have lost its driver: another one does no harm.
        replays().resume(run.id)
        drive(run.id)
    if wait:
        wait_for(run.id)
    elif as_json:
        print_json(view.run_row(known(run.id)))
    else:
        click.echo(summary(known(run.id)))


def known(run_id: str) -> Run:
    """Return a run. Ends the command if there is none."""
    run = replays().get(run_id)
    if run is None:
        raise click.ClickException(f"no replay has the id {run_id}")
    return run


def wait_for(run_id: str) -> None:
    """Say how far a run is until it is over; ends with 1 if it has stopped."""
    said = ""
    while (run := known(run_id)).is_running:
        if (now := summary(run)) != said:
            click.echo(now)
            said = now
        time.sleep(LOOK)
    click.echo(summary(run))
    exit_unless(run.state == "done")


def summary(run: Run) -> str:
    """Say in one line how far a run is, and why it goes no further."""
    at = clock((run.over_at or run.begun_at).timestamp())
    counts = f"{run.sent} sent, {run.ended} ended, {run.died} of them died"
    also = f", {run.passed_over} passed over" if run.passed_over else ""
    also += f", {run.unheard} lost sight of" if run.unheard else ""
    also += f", waits: {run.waits}" if run.waits else ""
    return f"{run.id}  {run.state} {at}  {counts}{also}" + (f": {run.why}" if run.why else "")
