"""What waits, and for whom: parked jobs, holds, and the gates of the upstreams."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Literal

from celery.states import READY_STATES
from fastapi import Form, HTTPException, Query, Request
from starlette.responses import Response

from admin import repair, view
from admin.console.letters import steps
from admin.console.render import at, done, from_now, name_of, page, part
from admin.console.session import pages
from config.services import Service, services
from config.settings import settings
from reliability.gate import usable_burst
from reliability.holds import holds
from reliability.parking import parking
from tasks import app
from tasks.base import Operation
from tasks.compensation import operation_named

router = pages()

SHOWN = 50  # jobs on a page
# Digits, a colon, an id: anything else would be refused by Redis.
CURSOR = r"^(-?\d{1,16}(\.\d{1,9})?:.+)?$"


# -- parked jobs


@router.get("/parked")
def parked(
    request: Request,
    service: Annotated[str, Query()] = "",
    reason: Annotated[str, Query()] = "",
    task: Annotated[str, Query()] = "",
    cursor: Annotated[str, Query(pattern=CURSOR)] = "",
) -> Response:
    """List the waiting jobs, the next to come back first; before them those to be run alone."""
    wanted = {"service": service, "reason": reason, "task": task}
    wanted = {name: value for name, value in wanted.items() if value}
    found = parking().page(limit=SHOWN, cursor=cursor, **wanted)
    return page(
        request,
        "parked.html",
        place="/parked",
        suspects=[] if wanted or cursor else list(islice(view.suspects(), SHOWN)),
        jobs=list(map(view.parked_row, found.jobs)),
        wanted=wanted,
        first=not cursor,
        cursor=found.cursor,
        total=parking().count(),
        kinds=[kind for kind in parking().kinds() if kind.count],
        services=[each.name for each in services()],
        tasks=operations(),
    )


@router.get("/parked/{message_id:path}")
def parked_job(request: Request, message_id: str) -> Response:
    """Show one waiting job: why it waits, until when, and what it has been through."""
    job = parking().get(message_id)
    if job is None:
        return _gone(request, message_id)
    row = view.parked_row(job)
    return page(request, "parked_job.html", place="/parked", job=row, story=steps(job.history))


def _gone(request: Request, message_id: str) -> Response:
    """Say what has become of a job that does not wait any more, as far as that is known."""
    state = ""
    if settings().keep_results:
        state = app.AsyncResult(message_id).state
    ended = state in READY_STATES
    return page(
        request,
        "parked_gone.html",
        place="/parked",
        status=404,
        message_id=message_id,
        state=state,
        ended=ended,
    )


@router.post("/parked")
def move(
    request: Request,
    message_id: Annotated[str, Form(alias="id")],
    action: Annotated[Literal["release", "postpone", "cancel"], Form()],
    until: Annotated[str, Form()] = "",
) -> Response:
    """Let a job come back now, or later, or not at all."""
    there = f"/parked/{part(message_id)}"
    if action == "cancel":
        return _cancel(request, message_id)
    later = from_now(until, 1) if action == "postpone" else None
    if action == "postpone" and later is None:
        raise HTTPException(422, "until when?")
    moved = parking().release(message_id, at=later.timestamp() if later else 0.0)
    if not moved:
        return done(request, "/parked", "It does not wait any more: nothing changed.", well=False)
    told = f"It comes back at {at(later)} UTC." if later else "It comes back now."
    return done(request, there if later else "/parked", told)


def _cancel(request: Request, message_id: str) -> Response:
    job = parking().get(message_id)
    if job is None or not repair.cancel_parked(job, name_of(request)):
        return done(request, "/parked", "It does not wait any more: nothing changed.", well=False)
    told = f"{job.task} is cancelled for good. What was paid for it goes back."
    return done(request, "/parked", told)


# -- gates


@router.get("/gates")
def gates(request: Request) -> Response:
    """Show every upstream: who may call it, and what is left of its budget."""
    bursts = {service.name: usable_burst(service) for service in services()}
    rows = [row | {"burst": bursts[row["service"]]} for row in view.gates()]
    known = {service.name: service for service in services()}
    return page(request, "gates.html", place="/gates", gates=rows, known=known)


@router.post("/gates/{name}")
def steer(
    request: Request,
    name: str,
    action: Annotated[str, Form()],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Pause, resume or reset a gate."""
    service = _service(name)
    door = view.gate_of(service)
    if action == "pause":
        door.pause(name_of(request), note)
        told = f"{name} is paused. Its jobs are parked from now on; what is under way goes on."
    elif action == "resume":
        freed = repair.resume(service)
        told = f"{name} is resumed. {freed} jobs come back in order, at the pace of its budget."
    elif action == "reset":
        door.reset()
        told = f"{name} is reset: failures, refused credentials and rate limits are forgotten."
    else:
        raise HTTPException(422, "A gate is paused, resumed or reset.")
    return done(request, "/gates", told)


def _service(name: str) -> Service:
    known = {service.name: service for service in services()}
    if name not in known:
        raise HTTPException(404, f"No upstream is called {name}.")
    return known[name]


# -- holds


@router.get("/holds")
def held(request: Request) -> Response:
    """List what a person holds back, and offer to hold more."""
    return page(request, "holds.html", place="/holds", holds=view.holds(), tasks=operations())


@router.post("/holds")
def hold(
    request: Request,
    task: Annotated[str, Form()] = "",
    where: Annotated[str, Form()] = "",
    note: Annotated[str, Form()] = "",
    until: Annotated[str, Form()] = "",
) -> Response:
    """Hold jobs back from now on."""
    task = task.strip()
    pairs = _pairs(where)
    if against := _objection(task, pairs):
        return done(request, "/holds", f"Nothing is held: {against}", well=False)
    over = from_now(until, 1)
    added = holds().add(
        by=name_of(request),
        task=task,
        where=pairs,
        note=note,
        until=over.timestamp() if over else None,
    )
    return done(
        request,
        "/holds",
        f"{added.id} holds them, everywhere within two seconds. What runs already goes on.",
    )


@router.post("/holds/{hold_id}/lift")
def lift(request: Request, hold_id: str) -> Response:
    """End a hold; the caretaker of a worker lets its jobs come back."""
    ended = holds().end(hold_id)
    told = f"{hold_id} is lifted. Its jobs come back within seconds, in the order they were sent."
    return done(
        request, "/holds", told if ended else f"There is no {hold_id} any more.", well=bool(ended)
    )


def operations() -> list[str]:
    """Return the names of our tasks."""
    operation_named("")  # this process has imported none until it asks
    return sorted(name for name, task in app.tasks.items() if isinstance(task, Operation))


def _pairs(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.replace(",", "\n").splitlines() if line.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _objection(task: str, where: dict[str, str]) -> str:
    """Say why such a hold would hold nothing; a misspelt name would do so without a word."""
    known = operations()
    if not task and not where:
        return "say which task, or which argument. A whole upstream is stopped by its gate."
    if task and task not in known:
        return f"no task is called {task}."
    arguments: set[Any] = set()
    for name in [task] if task else known:
        arguments |= set(app.tasks[name].payload.signature.parameters)
    for path, value in where.items():
        if not value:
            return f"write {path or 'it'} as name=value."
        if path.partition(".")[0] not in arguments:
            return f"no argument is called {path}; there are {', '.join(sorted(arguments))}."
    return ""
