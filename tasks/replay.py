"""A dead job comes back to life: the same job, with a fresh budget; many of them in a ramp."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from celery.states import READY_STATES, SUCCESS
from celery.worker.control import control_command
from celery.worker.state import revoked

from classifiers.errors import NotFound, Pending
from config.services import scaled, services
from config.settings import settings
from reliability import gate
from reliability.connection import redis
from reliability.dead_letters import Filter, Letter, Page, dead_letters
from reliability.parking import parking
from reliability.replays import HEADER, SILENT, UNKNOWN, Run, Sent, driver_of, replays
from tasks import app, operation
from tasks.base import progress
from tasks.compensation import operation_named, queue_of
from tasks.dry_run import objection, shut
from tasks.failures import REVOKED
from tasks.payloads import HIDDEN, VERSION, Id

Outcome = dict[str, Any]

OURS = ("accepted_at",)  # headers that survive; what was spent and waited starts afresh
CHUNK = 25  # letters between two looks at whether the run goes on
AHEAD = 5.0  # s of the upstream's budget that may be sent before their time: no thread idles
SHUT = frozenset({"paused", "held", "open"})  # gates that let nothing through now
UNHURRIED = 0.01  # s between jobs that call no upstream
WELL = {SUCCESS, ""}  # what the result of a job says of a good end, if anything
UNHEARD = 3600.0  # s; longer than any run of a job, and than what a queue usually takes


def send_again(dead: Letter, *, by: str = "", run: str = "") -> bool:
    """Send the job of a letter again, with a fresh budget: first the job, then the mark.

    A crash in between leaves the letter open and the job sent; sending twice is harmless, because
    effects are looked up before they are had. False if the letter cannot be replayed as it is, or
    somebody else has settled it. *run* is the ramped replay that does so, if one does.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
    """
    if not dead.replayable:
        return False
    task = operation_named(dead.message_body.task)
    shown = task.payload.shown(dead.message_body.kwargs) if task else HIDDEN
    headers = {name: value for name, value in dead.headers.items() if name in OURS}
    headers |= {VERSION: dead.payload_version} | ({HEADER: run} if run else {})
    if dead.code == REVOKED:
        app.control.broadcast("unrevoke", arguments={"job": dead.message_id})
    if settings().keep_results:
        app.backend.forget(dead.message_id)  # whoever asks now waits for the new one
    app.send_task(
        dead.message_body.task,
        args=list(dead.message_body.args),
        kwargs=dict(dead.message_body.kwargs),
        task_id=dead.message_id,
        root_id=dead.metadata.trace_id or None,
        queue=queue_of(dead.original_queue),
        priority=task.priority if task else None,
        argsrepr=HIDDEN,
        kwargsrepr=shown,
        headers={**headers, "replays": dead.replays + 1, "sent_again_at": time.time()},
    )
    return dead_letters().mark_replayed(dead, by=by) or has_died_again(dead)


@control_command(args=[("job", str)])
def unrevoke(_: Any, job: str) -> dict[str, str]:
    """Have this worker run a job that was revoked: a person has sent it again since."""
    revoked.discard(job)
    return {"ok": job}


def has_died_again(dead: Letter) -> bool:
    """Whether the job of a letter, just sent, was dead once more before that could be noted."""
    now = dead_letters().get(dead.message_id)
    return (
        now is not None
        and now.replays > dead.replays
        and now.metadata.failed_at != dead.metadata.failed_at
    )


# -- a ramp: few at first, and only while they end well


def begin_ramp(which: Filter, *, ids: Sequence[str] = (), by: str = "") -> Run:
    """Begin to send the letters of a filter, or of *ids*, again, in a ramp.

    Those that die while it is going on are not among them: a job that dies again stays open.
    A crash between the record and its driver leaves a run that `drive` sets going.
    """
    until = datetime.now(UTC) if which.until is None else min(which.until, datetime.now(UTC))
    run = replays().begin(replace(which, state="open", until=until), ids=ids, by=by)
    drive(run.id)
    return run


def drive(run: str) -> None:
    """Send the job that drives a run; one too many changes nothing."""
    ramp.apply_async(kwargs={"run": run}, task_id=driver_of(run))


def drive_what_stands_still() -> int:
    """Send a driver to each run that has lost its own, as in a crash; return how many.

    Not where that has died: why is in its letter, and a person goes on from there.
    """
    alone = [run for run in replays().each() if run.is_running and not has_a_driver(run)]
    for run in alone:
        drive(run.id)
    return len(alone)


def has_a_driver(run: Run) -> bool:
    """Whether its driver waits for its next look, as it nearly always does, or is dead."""
    if parking().get(run.driver) is not None:
        return True
    dead = dead_letters().get(run.driver)
    return dead is not None and dead.state == "open"


@operation(name="replay.ramp")
def ramp(run: Id) -> Outcome:
    """Send what a run may send now, and come again until it is over."""
    before = at(run)
    look_after_the_silent(run)
    while sent_some(at(run)):
        pass
    say_what_it_waits_for(at(run))
    now = at(run)
    if now.exhausted and not now.under_way:
        replays().close(run, "done")
        now = at(run)
    if now.sent > before.sent:
        progress(sent=now.sent, ended=now.ended, died=now.died)
    if now.is_running:
        raise Pending(f"{now.under_way} of {now.sent} jobs are under way")
    return {"outcome": now.state, "sent": now.sent, "ended": now.ended, "died": now.died}


def at(run: str) -> Run:
    """Return a run as it is now."""
    found = replays().get(run)
    if found is None:
        raise NotFound(f"there is no replay {run}")
    return found


def sent_some(run: Run) -> bool:
    """Send the next few jobs of a run; False if there are none, or it has to wait."""
    if not run.is_running or run.exhausted or not run.room:
        return False
    wanted = min(run.room, CHUNK)
    page = selected(run, wanted)
    allowed, paced_until = within_pace(run, page.letters)
    if allowed < len(page.letters):
        if not allowed:
            return False
        page = selected(run, allowed)
    letters = [letter for letter in page.letters if may_go(letter, run)]
    going_on = replays().send(
        run,
        letters,
        cursor=page.cursor,
        exhausted=not page.cursor,
        passed_over=len(page.letters) - len(letters),
        paced_until=paced_until,
    )
    if going_on:
        for letter in letters:
            send_again(letter, by=run.by, run=run.id)
    return going_on


def selected(run: Run, most: int) -> Page:
    """Return the next letters of a run."""
    if not run.ids:
        return dead_letters().page(run.which, limit=most, cursor=run.cursor)
    begin = int(run.cursor or 0)
    end = begin + most
    found = [dead_letters().get(job) for job in run.ids[begin:end]]
    more = end < len(run.ids)
    return Page(tuple(filter(None, found)), str(end) if more else "")


def may_go(dead: Letter, run: Run) -> bool:
    """Whether a run may send a letter: it can be sent, and has not died in this very run."""
    return dead.headers.get(HEADER) != run.id and not objection(dead)


def within_pace(run: Run, letters: Iterable[Letter]) -> tuple[int, float]:
    """Return how many of *letters* their upstreams have time for, and until when that is used up.

    None behind a gate that lets nothing through: they would only be parked there. Where letters of
    several upstreams are mixed, they are sent as if they had one budget.
    """
    config, shut = {service.name: service for service in services()}, shut_gates()
    now = time.time()
    paced_until, count = max(now, run.paced_until), 0
    for letter in letters:
        if letter.original_queue in shut or paced_until - now >= AHEAD:
            break
        service = config.get(letter.original_queue)
        budget = service.rate * service.ops_per_permit if service else 1 / UNHURRIED
        paced_until, count = paced_until + 1 / budget, count + 1
    return count, paced_until


def shut_gates() -> dict[str, str]:
    """Return the state of each gate that lets nothing through now, by its service."""
    prefix = settings().redis_stream_prefix
    doors = gate.states(redis(), services(), prefix=prefix)
    return {door.service: door.state for door in doors if door.state in SHUT}


def say_what_it_waits_for(run: Run) -> None:
    """Write down why a run does not go on, where somebody may do something about it."""
    waits = parked_for(run) if run.under_way else closed_before(run)
    if waits != run.waits:
        replays().waits(run.id, waits)


def closed_before(run: Run) -> str:
    """Say which gate keeps the next job of a run from being sent, empty if none does."""
    closed = shut_gates()
    if not closed or run.exhausted:
        return ""
    queues = [letter.original_queue for letter in selected(run, 1).letters]
    return next((shut(name, closed[name]) for name in queues if name in closed), "")


def parked_for(run: Run) -> str:
    """Say what the first of the jobs under way is parked for, empty if it is not.

    A hold, say: the run is not hung, it goes on when that is lifted.
    """
    first = min(replays().under_way(run.id), key=lambda job: job.sent_at, default=None)
    parked = parking().get(first.job) if first is not None else None
    return "" if parked is None else f"{parked.message_id} is parked: {parked.detail}"


# -- those of whom nothing is heard


def look_after_the_silent(run: str) -> None:
    """Find out what has become of jobs whose end was not told, after a crash or an outage."""
    for job in replays().silent(run, scaled(SILENT)):
        look_after(run, job)


def look_after(run: str, told: Sent) -> None:
    """Find out what has become of one job; stop the run if nobody knows."""
    dead = dead_letters().get(told.job)
    if dead is not None and dead.metadata.failed_at.isoformat() != told.failed_at:
        replays().ended(run, told.job, dead.fingerprint)
    elif dead is not None and dead.state == "open":  # it was written down, and not sent
        if not send_again(dead, by=at(run).by, run=run):
            replays().drop(run, told.job)
        replays().heard(run, told.job)
    elif parking().get(told.job) is not None:  # revoked, it has a result before its end
        replays().heard(run, told.job)
    elif (state := result_of(told.job)) or (dead is not None and dead.state == "discarded"):
        replays().ended(run, told.job, "" if state in WELL else UNKNOWN)
    elif time.time() - told.heard_at > UNHEARD:
        replays().close(run, "stopped", f"nothing was heard of {told.job} for too long")


def result_of(job: str) -> str:
    """Return the state that a job has ended in, as far as results are kept; empty if it has not."""
    state: str = app.AsyncResult(job).state if settings().keep_results else ""
    return state if state in READY_STATES else ""
