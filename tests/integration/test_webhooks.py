"""The portal's own webhooks: who may send them, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from config.settings import settings

TOKEN = "t0ken-of-the-portal"
EVENT = {"event": "ONCRMDEALUPDATE", "data[FIELDS][ID]": "662", "ts": "1736405807"}


@pytest.fixture
def configured(redis_server, redis_client, monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("BITRIX_APPLICATION_TOKEN", TOKEN)
    settings.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    settings.cache_clear()


def post(**form: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        from admin.api import app  # wants to know the queue when it is imported

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.post("/webhooks/bitrix", data=form)

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


def test_without_a_token_of_ours_the_door_stays_closed(configured, redis_client):
    configured.delenv("BITRIX_APPLICATION_TOKEN")
    settings.cache_clear()
    answer = post(**EVENT, **{"auth[application_token]": ""})

    assert answer.status_code == 503
    assert "BITRIX_APPLICATION_TOKEN" in answer.text
    assert redis_client.llen("bitrix") == 0


@pytest.mark.parametrize(
    "change",
    [{"event": "ONAPPINSTALL"}, {"data[FIELDS][ID]": ""}, {"ts": "soon"}],
    ids=["another event", "no row", "no time"],
)
def test_what_is_no_event_of_a_row_is_refused(configured, redis_client, change):
    answer = post(**{**EVENT, **change}, **{"auth[application_token]": TOKEN})

    assert answer.status_code == 422
    assert redis_client.llen("bitrix") == 0
