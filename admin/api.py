"""The HTTP door: what the outside sends us, and whether this process is up.

Run it with `uvicorn admin.api:app`.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from kombu.exceptions import OperationalError
from starlette.concurrency import run_in_threadpool

from classifiers.errors import InvalidData
from config.settings import settings
from storage.upgrade import upgrade
from tasks.bitrix import handle_webhook


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Bring the schema up to date before the door opens."""
    await run_in_threadpool(upgrade)
    yield


def create_app() -> FastAPI:
    """Return the application.

    Raises:
        ConfigurationError: if there is no queue to put things into; uvicorn prints the sentence.
    """
    _ = settings().broker_url
    return FastAPI(title="Perennial", docs_url=None, redoc_url=None, lifespan=lifespan)


app = create_app()


@app.get("/health")
def health() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "ok"}


@app.post("/webhooks/bitrix", status_code=202)
async def bitrix_webhook(request: Request) -> dict[str, str]:
    """Take an event of the portal, queue it, and answer at once.

    UPSTREAMS 1.5: a form in PHP's brackets; the portal does not send it again, and calls slow
    handlers less often.
    """
    form = await request.form()
    check_token(str(form.get("auth[application_token]", "")))
    return await run_in_threadpool(
        queued,
        event=form.get("event"),
        entity_id=form.get("data[FIELDS][ID]"),
        ts=form.get("ts"),
    )


def check_token(given: str) -> None:
    """Compare the portal's token in constant time; without one of ours the door stays closed."""
    token = settings().bitrix_application_token
    if token is None:
        raise HTTPException(503, "not configured: set BITRIX_APPLICATION_TOKEN")
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise HTTPException(403, "the application token is wrong")


def queued(**event: Any) -> dict[str, str]:
    """Queue the event; what is no event of a deal or a contact is none of our business."""
    try:
        return {"job": handle_webhook.delay(**event).id}
    except InvalidData as refusal:
        raise HTTPException(422, str(refusal)) from refusal
    except OperationalError as failure:
        raise HTTPException(503, "the queue cannot be reached") from failure
