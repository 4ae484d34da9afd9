"""`celery -A tasks bookmarks …`: crawls of the bookmarks of X users, and their access."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from celery.result import AsyncResult
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from admin.cli.common import (
    SHOWN,
    as_json,
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
)
from config import services
from config.settings import settings
from reliability.parking import parking
from storage import bookmarks as stored
from storage import credentials
from storage.bookmarks import Checkpoint, Session
from tasks.base import PROGRESS
from tasks.bookmarks import cancel as cancel_crawl
from tasks.bookmarks import crawl, retry_skipped, welcome_back

LOOK_EVERY = 0.5  # seconds


@click.group()
def bookmarks() -> None:
    """The bookmarks of X users: crawls, checkpoints, what was skipped, and access."""


session = click.argument("session_id", metavar="SESSION")
user = click.argument("user_id", metavar="USER")
followed = click.option("--follow/--no-follow", default=True, help="Show how far it is.")


@bookmarks.command("crawl")
@user
@followed
@guarded
def bookmarks_crawl(user_id: str, follow: bool) -> None:
    """Crawl a user's bookmarks now, before the crawls that nobody waits for."""
    _send(user_id, None, follow)


@bookmarks.command("resume")
@session
@followed
@guarded
def bookmarks_resume(session_id: str, follow: bool) -> None:
    """Go on with a crawl from its checkpoint, also with one that was cancelled."""
    found = _unfinished(session_id)
    _send(found.user_id, session_id, follow)


@bookmarks.command("cancel")
@session
@guarded
def bookmarks_cancel(session_id: str) -> None:
    """End a crawl at its next checkpoint; it can be resumed from there."""
    if not _session(session_id).open:
        raise click.ClickException(f"the crawl {session_id} has ended")
    cancel_crawl.delay(session_id=session_id)
    click.echo(f"the crawl {session_id} ends at its next checkpoint")


@bookmarks.command("ls")
@click.argument("user_id", metavar="[USER]", required=False)
@limited
@as_json
def bookmarks_ls(user_id: str | None, as_json: bool, limit: int | None) -> None:
    """List the crawls, newest first."""
    with the_database():
        found = stored.sessions(user_id, limit or (None if as_json else SHOWN))
    columns = plain("id", "user_id", "state", "stored", "known", "skipped", "pages", "waits")
    columns |= plain("begun_at", "updated_at")
    print_rows([_row(each) for each in found], columns, as_json, "no crawls")


@bookmarks.command("skipped")
@session
@limited
@as_json
def bookmarks_skipped(session_id: str, as_json: bool, limit: int | None) -> None:
    """List what a crawl has skipped, and why."""
    _session(session_id)
    with the_database():
        found = stored.skipped(session_id)
    columns = plain("key", "tweet_id", "reason", "detail")
    print_rows(rows_of(found, limit, as_json, asdict), columns, as_json, "nothing was skipped")


@bookmarks.command("retry")
@session
def bookmarks_retry(session_id: str) -> None:
    """Try to store once more what a crawl has skipped; X is not asked."""
    _session(session_id)
    with the_database():
        done, left = retry_skipped(session_id)
    click.echo(f"stored {done}, {left} cannot be stored")
    exit_unless(not left)


# -- checkpoints


@bookmarks.group()
def checkpoint() -> None:
    """The place where a crawl goes on."""


@checkpoint.command("show")
@session
def checkpoint_show(session_id: str) -> None:
    """Show it as JSON, as `save` takes it."""
    print_json(asdict(_session(session_id).checkpoint))


@checkpoint.command("clear")
@session
@confirmed
def checkpoint_clear(session_id: str, yes: bool) -> None:
    """Forget it: the crawl begins anew. What is stored stays, and is not stored twice."""
    _unfinished(session_id)
    if not yes:
        click.confirm(f"Forget where the crawl {session_id} is?", abort=True)
    with the_database():
        stored.clear_checkpoint(session_id)
    click.echo(f"the crawl {session_id} begins anew")


@checkpoint.command("save")
@session
@click.argument("file", type=click.File(), default="-")
def checkpoint_save(session_id: str, file: Any) -> None:
    """Set it to what `show` has shown, from FILE or standard input."""
    _unfinished(session_id)
    try:
        told = json.load(file)
        place = Checkpoint(
            None if told["page_token"] is None else str(told["page_token"]),
            int(told["page"]),
            int(told["in_page"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise click.ClickException(f"that is no checkpoint as `show` prints it: {error}") from error
    with the_database():
        stored.save_checkpoint(session_id, place)
    click.echo(f"the crawl {session_id} goes on at page {place.page + 1}")


# -- access


@bookmarks.command("authorize")
@user
@guarded
def bookmarks_authorize(user_id: str) -> None:
    """Take the tokens of a user from standard input; their waiting crawls go on.

    Either the JSON that X answers (access_token, refresh_token, expires_in), or the access token
    on a first line and the refresh token on a second.
    """
    tokens = _tokens(sys.stdin.read())
    with the_database():
        credentials.save("x", user_id, **tokens)
    freed = welcome_back(user_id)
    click.echo(f"user {user_id} has given access; {freed} crawls go on")


def _tokens(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = dict(zip(("access_token", "refresh_token"), text.split(), strict=False))
    if not isinstance(told, dict) or not isinstance(told.get("access_token"), str):
        raise click.ClickException(
            "standard input holds no tokens: give X's JSON, or a line with the access token"
        )
    life = told.get("expires_in")
    if not isinstance(life, int | float) or life <= 0:
        life = None
    return {
        "access_token": told["access_token"],
        "refresh_token": told.get("refresh_token"),
        "expires_at": datetime.now(UTC) + timedelta(seconds=life) if life else None,
    }


# -- a crawl that somebody waits for


def _send(user_id: str, session_id: str | None, follow: bool) -> None:
    kwargs = {"user_id": user_id, "session_id": session_id}
    job = crawl.apply_async(kwargs=kwargs, priority=services.INTERACTIVE)
    click.echo(f"job {job.id}")
    if not follow:
        return
    if not settings().keep_results:
        raise click.ClickException("KEEP_RESULTS is off: look at `bookmarks ls`")
    _follow(job, user_id)
    if job.failed():
        raise click.ClickException(f"it failed: {job.result} (see `dlq show {job.id}`)")
    print_json(job.result)


def _follow(job: AsyncResult[Any], user_id: str) -> None:
    """Show how far a job is until it ends; Ctrl-C ends the looking, not the job."""
    with the_database():
        total = stored.count(user_id) or None  # as many as last time, or nobody knows
    columns = (TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=console()) as bar:
        row = bar.add_task("waits for a worker", total=total)
        while not job.ready():
            counts = job.info if job.state == PROGRESS else {}
            done = counts.get("stored", 0) + counts.get("known", 0)
            bar.update(row, completed=done, description=_news(job, counts))
            time.sleep(LOOK_EVERY)


def _news(job: AsyncResult[Any], counts: dict[str, Any]) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.items()) or "begins"
    waiting = parking().get(str(job.id))
    if waiting is None:
        return shown
    back = max(0.0, waiting.due - time.time())
    return f"{shown}; waits {back:.0f} s more: {waiting.reason}"


def _session(session_id: str) -> Session:
    with the_database():
        found = stored.get(session_id)
    if found is None:
        raise click.ClickException(f"no crawl has the id {session_id}")
    return found


def _unfinished(session_id: str) -> Session:
    found = _session(session_id)
    if found.state == "completed":
        raise click.ClickException(f"the crawl {session_id} is complete")
    return found


def _row(found: Session) -> dict[str, Any]:
    row = asdict(found)
    times = ("begun_at", "updated_at", "ended_at")
    shown = {name: row[name] and row[name].isoformat(timespec="seconds") for name in times}
    return row | shown | {"skipped": sum(found.skipped.values()), "reasons": found.skipped}
