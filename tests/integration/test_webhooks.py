"""Webhooks: who may send them, and what becomes of them."""

from __future__ import annotations

import asyncio
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from kombu.exceptions import OperationalError

from config.settings import settings
from storage import videos
from storage.videos import Order

TOKEN = "t0ken-of-the-portal"
HMAC_KEY = "key-of-the-callbacks"
SECRET = "secret-of-the-bot"
EVENT = {"event": "ONCRMDEALUPDATE", "data[FIELDS][ID]": "662", "ts": "1736405807"}


@pytest.fixture
def configured(redis_server, redis_client, monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("BITRIX_APPLICATION_TOKEN", TOKEN)
    monkeypatch.setenv("KIE_WEBHOOK_HMAC_KEY", HMAC_KEY)
    monkeypatch.setenv("TELEGRAM_WEBHOOK_SECRET", SECRET)
    settings.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    settings.cache_clear()


def post(**form: Any) -> httpx.Response:
    return call("bitrix", data=form)


def call(path: str, **content: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        from admin.api import app  # wants to know the queue when it is imported

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.post(f"/webhooks/{path}", **content)

    return asyncio.run(send())


def test_an_event_with_the_right_token_is_queued(configured, redis_client):
    answer = post(**EVENT, **{"auth[application_token]": TOKEN})

    assert answer.status_code == 202
    assert answer.json()["job"]
    assert redis_client.llen("bitrix") == 1


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1]], ids=["none", "wrong", "shorter"])
def test_an_event_with_a_wrong_token_is_turned_away(configured, redis_client, token):
    answer = post(**EVENT, **{"auth[application_token]": token})

    assert answer.status_code == 403
    assert TOKEN not in answer.text
    assert redis_client.llen("bitrix") == 0


def test_an_event_that_cannot_be_queued_is_told_to_the_log(configured, caplog):
    from admin.routes.webhooks import handle_webhook

    def full(**_: Any) -> None:
        raise OperationalError("used memory > 'maxmemory'")

    configured.setattr(handle_webhook, "delay", full)
    answer = post(**EVENT, **{"auth[application_token]": TOKEN})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "the queue cannot be reached" in answer.json()["detail"]
    assert "maxmemory" not in answer.text
    assert "/webhooks/bitrix: used memory > 'maxmemory'" in caplog.text


def test_without_a_token_of_ours_the_door_stays_closed(configured, redis_client):
    configured.delenv("BITRIX_APPLICATION_TOKEN")
    settings.cache_clear()
    answer = post(**EVENT, **{"auth[application_token]": ""})

    assert answer.status_code == 503
    assert "BITRIX_APPLICATION_TOKEN" in answer.text
    assert redis_client.llen("bitrix") == 0


@pytest.mark.parametrize(
    "event",
    [
        "ONAPPINSTALL",
        "ONCRMLEADADD",
        "ONCRMDEALUSERFIELDADD",
        "OnTaskAdd",
        "CATALOG.PRODUCT.ON.ADD",
    ],
)
def test_an_event_of_another_kind_is_taken_and_forgotten(configured, redis_client, event):
    answer = post(**{"event": event, "ts": "1736405807", "auth[application_token]": TOKEN})

    assert (answer.status_code, answer.json()) == (202, {"outcome": "ignored"})
    assert redis_client.llen("bitrix") == 0


def test_an_event_of_another_kind_with_a_wrong_token_is_turned_away(configured):
    answer = post(**{"event": "ONAPPINSTALL", "auth[application_token]": "wrong"})

    assert answer.status_code == 403


@pytest.mark.parametrize(
    "change",
    [
        {"event": ""},
        {"event": "ONCRM DEAL\n"},
        {"event": None},
        {"data[FIELDS][ID]": ""},
        {"ts": "soon"},
    ],
    ids=["no event", "no name", "nothing", "no row", "no time"],
)
def test_what_is_no_event_of_a_row_is_refused(configured, redis_client, change):
    sent = {name: value for name, value in {**EVENT, **change}.items() if value is not None}
    answer = post(**sent, **{"auth[application_token]": TOKEN})

    assert answer.status_code == 422
    assert redis_client.llen("bitrix") == 0


# -- KIE: UPSTREAMS 2.4

TASK, TIME = "task_sora_1", "1765184045"
NEWS = {"code": 200, "data": {"taskId": TASK, "state": "success"}}


def signature(task: str = TASK, time: str = TIME, key: str = HMAC_KEY) -> str:
    return b64encode(hmac.digest(key.encode(), f"{task}.{time}".encode(), "sha256")).decode()


def call_back(news: Any = NEWS, **headers: str) -> httpx.Response:
    signed = {"X-Webhook-Timestamp": TIME, "X-Webhook-Signature": signature()}
    return call("kie/generation-1", json=news, headers=signed | headers)


def queued(redis_client, queue: str) -> list[dict[str, Any]]:
    """The arguments of the jobs in a queue."""
    bodies = [json.loads(message)["body"] for message in redis_client.lrange(queue, 0, -1)]
    return [json.loads(b64decode(body))[1] for body in bodies]


@pytest.mark.parametrize(
    "news",
    [
        NEWS,
        {"data": {"task_id": TASK}},
        {"taskId": TASK, "successFlag": 2},
        {"task_id": TASK},
    ],
    ids=["as documented", "another spelling", "flat", "flat, another spelling"],
)
def test_a_signed_callback_is_queued(configured, redis_client, news):
    answer = call_back(news)

    assert answer.status_code == 202
    assert queued(redis_client, "kie") == [{"generation": "generation-1", "task_id": TASK}]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Webhook-Signature": ""},
        {"X-Webhook-Signature": signature(key="another key")},
        {"X-Webhook-Signature": signature(task="another task")},
        {"X-Webhook-Timestamp": "1765184046"},
    ],
    ids=["none", "of another key", "of another task", "of another time"],
)
def test_a_callback_with_a_wrong_signature_is_turned_away(configured, redis_client, headers):
    answer = call_back(**headers)

    assert answer.status_code == 403
    assert HMAC_KEY not in answer.text
    assert redis_client.llen("kie") == 0


def test_without_a_key_of_ours_only_an_address_that_we_gave_away_is_answered(
    configured, redis_client, database
):
    configured.delenv("KIE_WEBHOOK_HMAC_KEY")
    settings.cache_clear()
    order = Order("1", "7", "70", "https://shop.example/cat.jpg", "it dances", Decimal(0), "en")
    known = videos.generation(videos.begin(order, "job", 0), "a-model").id
    unknown = call("kie/guessed", json=NEWS)
    answer = call(f"kie/{known}", json=NEWS)

    assert (unknown.status_code, unknown.json()) == (202, {"outcome": "ignored"})
    assert answer.status_code == 202
    assert queued(redis_client, "kie") == [{"generation": known, "task_id": TASK}]


@pytest.mark.parametrize("body", [b"", b"[]", b"not JSON"])
def test_a_callback_that_is_no_object_is_refused(configured, redis_client, body):
    answer = call("kie/generation-1", content=body)

    assert answer.status_code == 422
    assert redis_client.llen("kie") == 0


def test_a_callback_about_a_generation_that_nobody_knows_changes_nothing(configured, database):
    from tasks.video import handle_callback

    assert handle_callback(generation="generation-1", task_id=TASK) == {"outcome": "ignored"}


# -- Telegram: UPSTREAMS 3.1

PRESS = {
    "update_id": 1,
    "callback_query": {
        "id": "4000000000000000001",
        "from": {"id": 70, "is_bot": False},
        "message": {"message_id": 5, "chat": {"id": 70, "type": "private"}},
        "data": "again:token",
    },
}


def update(content: Any = PRESS, secret: str = SECRET) -> httpx.Response:
    return call("telegram", json=content, headers={"X-Telegram-Bot-Api-Secret-Token": secret})


def test_a_press_is_queued(configured, redis_client):
    answer = update()

    assert answer.status_code == 202
    assert queued(redis_client, "telegram") == [
        {
            "callback_id": "4000000000000000001",
            "data": "again:token",
            "chat_id": "70",
            "message_id": "5",
        }
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"update_id": 1, "message": {"message_id": 5, "text": "hello"}},
        {"update_id": 1, "callback_query": {"id": "1", "data": "again:token"}},
        {"update_id": 1, "callback_query": {**PRESS["callback_query"], "data": None}},
        {},
    ],
    ids=["a message", "a press without a message", "a press without data", "nothing"],
)
def test_an_update_that_is_no_press_is_taken_and_forgotten(configured, redis_client, content):
    answer = update(content)

    assert answer.status_code == 202
    assert redis_client.llen("telegram") == 0


@pytest.mark.parametrize("secret", ["", "wrong", SECRET[:-1]], ids=["none", "wrong", "shorter"])
def test_an_update_with_a_wrong_secret_is_turned_away(configured, redis_client, secret):
    answer = update(secret=secret)

    assert answer.status_code == 403
    assert SECRET not in answer.text
    assert redis_client.llen("telegram") == 0


def test_without_a_secret_of_ours_updates_stay_outside(configured, redis_client):
    configured.delenv("TELEGRAM_WEBHOOK_SECRET")
    settings.cache_clear()
    answer = update(secret="")

    assert answer.status_code == 503
    assert "TELEGRAM_WEBHOOK_SECRET" in answer.text
    assert redis_client.llen("telegram") == 0
