"""The gates over HTTP: who may call which upstream."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, HTTPException, Path

from admin import repair, view
from admin.routes.access import NOBODY, UNKNOWN, UNREADABLE, UNUSABLE, Operator, guarded_router
from admin.routes.shapes import Answer, Gate, Note, Opened
from config.services import Service, services

router = guarded_router("gates", "/api/gates")


def known(service: Annotated[str, Path(description="An upstream.")]) -> Service:
    """Return a service. Raises 404 for an unknown one."""
    every = {each.name: each for each in services()}
    if service not in every:
        raise HTTPException(404, f"no upstream is called so; there are: {', '.join(every)}")
    return every[service]


Upstream = Annotated[Service, Depends(known)]


@router.get("", response_model=list[Gate])
def list_gates() -> Answer:
    """List the gates: state, budget, and when a closed one opens."""
    return Answer(view.gates())


@router.post("/{service}/pause", response_model=Gate, responses=UNKNOWN | UNREADABLE)
def pause_gate(service: Upstream, why: Note | None = None, by: Operator = NOBODY) -> Answer:
    """Keep every call away from an upstream; its jobs are parked, not failed."""
    view.gate_of(service).pause(by=by, note=why.note if why else "")
    return Answer(row(service))


@router.post("/{service}/resume", response_model=Opened, responses=UNKNOWN | UNUSABLE)
def resume_gate(service: Upstream) -> Answer:
    """Lift the pause; the jobs that wait for the gate come back in order, paced to the budget."""
    freed = repair.resume(service)
    return Answer(row(service) | {"jobs_released": freed})


@router.post("/{service}/reset", response_model=Gate, responses=UNKNOWN | UNUSABLE)
def reset_gate(service: Upstream) -> Answer:
    """Forget the breaker's failures, held credentials and rate limits; a pause stays."""
    view.gate_of(service).reset()
    return Answer(row(service))


def row(service: Service) -> dict[str, Any]:
    return view.gate_row(view.gate_of(service).state())
