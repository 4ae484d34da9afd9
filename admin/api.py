"""The HTTP door: the API put together. Run it with `uvicorn admin.api:app`.

`/health` and `/ready` are open, `/webhooks/` takes what its senders sign, `/console/` has a login
of its own. All else is for `Authorization: Bearer $ADMIN_TOKEN`, and closed while none is set.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event, Thread
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from admin import console
from admin.routes import dead_letters, failures, gates, health, parked, replays, sync, webhooks
from admin.routes.access import guarded_router
from admin.traced import Traced, observe
from config.settings import settings
from storage.database import engine
from storage.upgrade import obstacles, sentence

DESCRIPTION = """
Jobs, letters and gates, for programs; people have the console under `/console/`. What goes wrong
is told as `{"detail": "a sentence"}`. While Redis, the broker or the database is away that is a
503: ask again. A filter that is not known is refused, so that none is misspelt unnoticed.
"""

# Bytes. An event of the portal, a press of a button or an edited payload has a few thousand, and
# whoever sends more need not be known to us to do so.
LARGEST_BODY = 1_000_000

# s that the door stays shut for the first try: a schema that is made anew takes less. A database
# that is silent must not take longer, for Bitrix24 does not call twice.
HEAD_START = 3.0
# s between two tries: as often as /ready is usually asked; sooner only fills the log of an outage.
PAUSE = 10.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Bring the schema up to date before the door opens, or behind it where that takes longer.

    A webhook that needs no database is taken meanwhile; what needs it answers 503.
    """
    engine()  # what can never be one ends the process
    tried, ended = Event(), Event()
    # Not one of the pool: those are waited for at the end, up to the patience of a connection.
    Thread(target=bring_up_to_date, args=(tried, ended), name="schema", daemon=True).start()
    await run_in_threadpool(tried.wait, HEAD_START)
    try:
        yield
    finally:
        ended.set()


def bring_up_to_date(tried: Event, ended: Event) -> None:
    """Try until the schema is up to date or *ended* is set; after the first time set *tried*."""
    failed = False
    for error in obstacles():
        failed = True
        log.error(
            "[API] %s; webhooks are taken, but for those that need it; tried again in %g s",
            sentence(error),
            PAUSE,
        )
        tried.set()
        if ended.wait(PAUSE):
            return
    if failed:
        log.warning("[API] the database answers, and its schema is up to date")
    tried.set()


def create_app() -> FastAPI:
    """Return the application.

    Raises:
        ConfigurationError: if there is no queue to put things into; uvicorn prints the sentence.
    """
    _ = settings().broker_url
    observe()
    app = FastAPI(
        title="Perennial",
        description=DESCRIPTION,
        version=settings().release or "unreleased",
        openapi_url=None,  # it has a route of its own, behind the token
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=LARGEST_BODY,
        generate_unique_id_function=_operation_id,
    )
    for subject in (health, dead_letters, replays, parked, gates, sync, webhooks):
        app.include_router(subject.router)
    app.include_router(_description_of(app))
    console.mount(app)
    failures.install(app)
    app.add_middleware(Traced)
    return app


def _operation_id(route: APIRoute) -> str:
    """The name of the function: it is what a generated client calls its method."""
    return route.name


def _description_of(app: FastAPI) -> Any:
    router = guarded_router("description")

    @router.get("/openapi.json", include_in_schema=False)
    def description() -> dict[str, Any]:
        return app.openapi()

    return router


app = create_app()
