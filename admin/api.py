"""The HTTP door: what the outside sends us, and whether this process is up.

Run it with `uvicorn admin.api:app`.
"""

from __future__ import annotations

import hmac
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from kombu.exceptions import OperationalError
from starlette.concurrency import run_in_threadpool

from classifiers.errors import InvalidData
from config.settings import settings
from storage import videos
from storage.upgrade import upgrade
from tasks.bitrix import handle_webhook
from tasks.telegram import AGAIN, SEND
from tasks.video import handle_callback, handle_press


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
        handle_webhook,
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


@app.post("/webhooks/kie/{job}", status_code=202)
async def kie_webhook(job: str, request: Request) -> dict[str, str]:
    """Take KIE's word that something has ended, and queue a look at it.

    UPSTREAMS 2.4: the body is not signed, so nothing in it is believed but the id of the task, and
    that only where no other is known.
    """
    body = await json_of(request)
    data = inner(body, "data")
    named = (data.get("taskId"), data.get("task_id"), body.get("taskId"), body.get("task_id"))
    task_id = next((str(name) for name in named if name), "")
    if not await run_in_threadpool(is_from_kie, job, task_id, request.headers):
        return {"outcome": "ignored"}
    return await run_in_threadpool(queued, handle_callback, generation=job, task_id=task_id or None)


def is_from_kie(job: str, task_id: str, headers: Mapping[str, str]) -> bool:
    """Compare KIE's signature in constant time, if we have its key (UPSTREAMS 2.4).

    Without one, only an address that we have given away leads into the queue: nobody can guess it.
    """
    key = settings().kie_webhook_hmac_key
    if key is None:
        return videos.asked_for(job)
    signed = f"{task_id}.{headers.get('x-webhook-timestamp', '')}".encode()
    digest = hmac.digest(key.get_secret_value().encode(), signed, "sha256")
    given = headers.get("x-webhook-signature", "")
    if not hmac.compare_digest(given.encode(), b64encode(digest)):
        raise HTTPException(403, "the signature is wrong")
    return True


@app.post("/webhooks/telegram", status_code=202)
async def telegram_webhook(request: Request) -> dict[str, str]:
    """Take an update of the bot, and queue the press of a button; other updates are not ours.

    Telegram sends an update again until it is answered with 2xx.
    """
    check_secret(request.headers.get("x-telegram-bot-api-secret-token", ""))
    press = press_in(await json_of(request))
    if press is None:
        return {"outcome": "ignored"}
    return await run_in_threadpool(queued, handle_press, **press)


def press_in(update: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the press of a button of ours that an update tells of, if it does."""
    query = inner(update, "callback_query")
    message = inner(query, "message")
    press = {
        "callback_id": query.get("id"),
        "data": query.get("data"),
        "chat_id": inner(message, "chat").get("id"),
        "message_id": message.get("message_id"),
    }
    ours = str(press["data"]).partition(":")[0] in {AGAIN, SEND}
    return press if ours and None not in press.values() else None


def inner(outer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the object that is called *name* inside of another one; an empty one for none."""
    found = outer.get(name)
    return found if isinstance(found, Mapping) else {}


def check_secret(given: str) -> None:
    """Compare the bot's secret in constant time; without one of ours the door stays closed."""
    secret = settings().telegram_webhook_secret
    if secret is None:
        raise HTTPException(503, "not configured: set TELEGRAM_WEBHOOK_SECRET")
    if not hmac.compare_digest(given.encode(), secret.get_secret_value().encode()):
        raise HTTPException(403, "the secret token is wrong")


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that was sent. Raises 422 for anything else."""
    try:
        body = json.loads(await request.body())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise HTTPException(422, "the body is no JSON object")
    return body


def queued(task: Any, **payload: Any) -> dict[str, str]:
    """Queue what has come in. Raises 422 for what the task could not work with."""
    try:
        return {"job": task.delay(**payload).id}
    except InvalidData as refusal:
        raise HTTPException(422, str(refusal)) from refusal
    except OperationalError as failure:
        raise HTTPException(503, "the queue cannot be reached") from failure
