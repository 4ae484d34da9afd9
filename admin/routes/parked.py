"""The parked jobs over HTTP: every wait, with its reason and the time it ends."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import HTTPException, Query

from admin import repair, view
from admin.routes.access import NOBODY, UNKNOWN, UNUSABLE, Operator, guarded_router
from admin.routes.shapes import Answer, Parked, ParkedJobs, ParkedPage, Released
from reliability.parking import Parked as Job
from reliability.parking import parking

router = guarded_router("parked jobs", "/api/parked")


@router.get("", response_model=ParkedJobs, responses=UNUSABLE)
def list_parked(which: Annotated[ParkedPage, Query()]) -> Answer:
    """List the parked jobs, soonest first."""
    found = parking().page(
        limit=which.limit,
        cursor=which.cursor,
        task=which.task,
        service=which.service,
        reason=which.reason,
    )
    rows = [view.parked_row(job) for job in found.jobs]
    if not which.cursor:
        rows = [*suspects(which), *rows]
    return Answer({"items": rows, "next_cursor": found.cursor or None})


@router.get("/{message_id:path}", response_model=Parked, responses=UNKNOWN | UNUSABLE)
def show_parked(message_id: str) -> Answer:
    """Show one parked job, or one that waits to be run alone."""
    alone = (row for row in view.suspects() if row["message_id"] == message_id)
    return Answer(next(alone, None) or view.parked_row(job(message_id)))


@router.post("/{message_id:path}/release", response_model=Released, responses=UNKNOWN | UNUSABLE)
def release_parked(message_id: str) -> Answer:
    """Let a job come back now."""
    if not parking().release(message_id):
        raise HTTPException(404, "no parked job has that id")
    return Answer({"message_id": message_id, "outcome": "released"})


@router.delete("/{message_id:path}", response_model=Released, responses=UNKNOWN | UNUSABLE)
def cancel_parked(message_id: str, by: Operator = NOBODY) -> Answer:
    """Take a job out for good; what was paid for it goes back, its result says revoked."""
    if not repair.cancel_parked(job(message_id), by):
        raise HTTPException(404, "no parked job has that id any more")
    return Answer({"message_id": message_id, "outcome": "cancelled"})


def suspects(which: ParkedPage) -> list[dict[str, Any]]:
    """Return the jobs that wait to be run alone, of those that are asked for."""
    wanted = which.model_dump(include={"task", "service", "reason"}, exclude_defaults=True)
    return [row for row in view.suspects() if wanted.items() <= row.items()]


def job(message_id: str) -> Job:
    """Return a parked job. Raises 404 if it does not wait (any more)."""
    found = parking().get(message_id)
    if found is None:
        raise HTTPException(404, "no parked job has that id")
    return found
