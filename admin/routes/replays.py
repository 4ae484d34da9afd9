"""Ramped replays over HTTP: how far they are, and what a person says to them."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

from fastapi import HTTPException, Path, Query

from admin import view
from admin.routes.access import (
    CONFLICT,
    NOBODY,
    UNKNOWN,
    UNUSABLE,
    Operator,
    guarded_router,
)
from admin.routes.shapes import Answer, HowMany, Run
from reliability.replays import Run as Ramp
from reliability.replays import replays
from tasks.replay import drive

router = guarded_router("ramped replays", "/api/replays")

RunId = Annotated[str, Path(description="Of a ramped replay.")]


@router.get("", response_model=list[Run], responses=UNUSABLE)
def list_replays(which: Annotated[HowMany, Query()]) -> Answer:
    """List the ramped replays of the last month, newest first."""
    return Answer([view.run_row(run) for run in islice(replays().each(), which.limit)])


@router.get("/{run}", response_model=Run, responses=UNKNOWN | UNUSABLE)
def show_replay(run: RunId) -> Answer:
    """Show how far a ramped replay is, and why it goes no further."""
    return Answer(view.run_row(known(run)))


@router.post("/{run}/cancel", response_model=Run, responses=UNKNOWN | UNUSABLE | CONFLICT)
def cancel_replay(run: RunId, by: Operator = NOBODY) -> Answer:
    """Send no more; what is under way goes on."""
    if not replays().close(known(run).id, "cancelled", f"cancelled by {by}"):
        raise HTTPException(409, f"it is {known(run).state}")
    return Answer(view.run_row(known(run)))


@router.post("/{run}/resume", response_model=Run, responses=UNKNOWN | UNUSABLE)
def resume_replay(run: RunId) -> Answer:
    """Go on where it was, with one job first."""
    # One that is running may have lost its driver: another one does no harm.
    replays().resume(known(run).id)
    drive(run)
    return Answer(view.run_row(known(run)))


def known(run: str) -> Ramp:
    """Return a run. Raises 404 if there is none."""
    found = replays().get(run)
    if found is None:
        raise HTTPException(404, "no replay has that id")
    return found
