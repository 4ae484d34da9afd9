"""How this process is, whether work can be done, and the figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from admin import readiness
from admin.metrics import exposition
from admin.routes.access import REFUSALS, UNUSABLE, admit, scheme
from admin.routes.shapes import Answer, Readiness, Up
from config.settings import settings

router = APIRouter(tags=["health"], default_response_class=Answer)

T = TypeVar("T")

# Threads of their own: where Redis is silent, webhooks hold all the others, each for half a minute.
WATCHERS = CapacityLimiter(8)


async def watched(look: Callable[[], T]) -> T:
    """Return what *look* sees, whatever else this process is busy with."""
    return await to_thread.run_sync(look, limiter=WATCHERS)


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Up)
async def health() -> Answer:
    """Say that this process answers. It asks nobody: restart the process where it does not."""
    return Answer({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get(
    "/ready",
    response_model=Readiness,
    responses=UNUSABLE | {503: {"model": Readiness, "description": "Something is not well."}},
)
async def ready(canaries: bool = True, database: bool = True) -> Answer:
    """Say whether work can be done: Redis, database and broker answer, and each queue is served.

    Redis has to take writes, too. A queue is served if a worker has come to one of its canaries,
    which beat sends each 30 s, within the last two minutes. For a load balancer in front of this
    API, ask with `canaries=false&database=false`: webhooks are to be taken, too, while no worker
    runs and the database is away. It names no host, and needs no token.
    """
    found = await watched(lambda: list(readiness.checks(canaries=canaries, database=database)))
    checks = [check.row() for check in found]
    well = all(check["ok"] for check in checks)
    content = {"status": "ready" if well else "not ready", "checks": checks}
    return Answer(content, 200 if well else 503)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(scheme)],
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **REFUSALS,
    },
)
async def metrics(request: Request) -> Response:
    """Give the figures as Prometheus reads them; without a token if `METRICS_PUBLIC` is set."""
    if not settings().metrics_public:
        await admit(request)
    figures = await watched(exposition)
    return Response(figures, 200, {"Cache-Control": "no-store"}, CONTENT_TYPE_LATEST)
