"""What the outside sends us: checked, queued, answered at once."""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from admin.routes.access import UNREADABLE
from admin.routes.shapes import Problem, Queued
from classifiers.errors import InvalidData
from config.settings import settings
from storage import videos
from tasks.bitrix import EVENTS, handle_webhook
from tasks.telegram import AGAIN, SEND
from tasks.video import handle_callback, handle_press

REFUSALS: dict[int | str, dict[str, Any]] = {
    403: {"model": Problem, "description": "Whoever sent it is not who they should be."},
    503: {"model": Problem, "description": "Not configured, or the queue cannot be reached."},
    **UNREADABLE,
}

router = APIRouter(prefix="/webhooks", tags=["webhooks"], responses=REFUSALS)


TAKEN: dict[str, Any] = {
    "status_code": 202,
    "response_model": Queued,
    "response_model_exclude_none": True,
}


def body(kind: str, properties: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe a request whose body is read by hand: its senders keep to no schema."""
    schema = {"type": "object", "properties": properties or {}}
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def header(name: str, meaning: str) -> dict[str, Any]:
    """Describe a header."""
    return {"name": name, "in": "header", "description": meaning, "schema": {"type": "string"}}


# ONAPPINSTALL, ONCRMLEADADD, CATALOG.PRODUCT.ON.ADD: the portal has hundreds.
EVENT_NAME = re.compile(r"[A-Z][A-Z0-9_.]*", re.IGNORECASE | re.ASCII)

BITRIX = body(
    "application/x-www-form-urlencoded",
    {
        name: {"type": "string"}
        for name in ("event", "data[FIELDS][ID]", "ts", "auth[application_token]")
    },
)
KIE = body("application/json") | {
    "parameters": [
        header("X-Webhook-Timestamp", "Part of what is signed."),
        header("X-Webhook-Signature", "Base64 of HMAC-SHA256 over `task id.timestamp`."),
    ]
}
TELEGRAM = body("application/json") | {
    "parameters": [
        header("X-Telegram-Bot-Api-Secret-Token", "`TELEGRAM_WEBHOOK_SECRET`, from setWebhook.")
    ]
}


@router.post("/bitrix", **TAKEN, openapi_extra=BITRIX)
async def bitrix_webhook(request: Request) -> dict[str, str]:
    """Take an event of the portal, queue it, and answer at once; other kinds are not ours.

    UPSTREAMS 1.5: a form in PHP's brackets; the portal does not send it again, and calls slow
    handlers less often.
    """
    form = await request.form()
    check_token(str(form.get("auth[application_token]", "")))
    event = form.get("event")
    if is_of_another_kind(event):
        return {"outcome": "ignored"}
    return await run_in_threadpool(
        queued,
        handle_webhook,
        event=event,
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


def is_of_another_kind(event: Any) -> bool:
    """Whether it is the name of an event, and not of one that there is a job for."""
    named = isinstance(event, str) and EVENT_NAME.fullmatch(event) is not None
    return named and re.fullmatch(EVENTS, event) is None


@router.post("/kie/{job}", **TAKEN, openapi_extra=KIE)
async def kie_webhook(job: str, request: Request) -> dict[str, str]:
    """Take KIE's word that something has ended, and queue a look at it.

    UPSTREAMS 2.4: the body is not signed, so nothing in it is believed but the id of the task, and
    that only where no other is known.
    """
    news = await json_of(request)
    data = inner(news, "data")
    named = (data.get("taskId"), data.get("task_id"), news.get("taskId"), news.get("task_id"))
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


@router.post("/telegram", **TAKEN, openapi_extra=TELEGRAM)
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
        sent = json.loads(await request.body())
        json.dumps(sent, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise HTTPException(422, "the body is no JSON object")
    return sent


def queued(task: Any, **payload: Any) -> dict[str, str]:
    """Queue what has come in. Raises 422 for what the task could not work with."""
    try:
        return {"job": task.delay(**payload).id}
    except InvalidData as refusal:
        raise HTTPException(422, str(refusal)) from refusal
