"""Outbound webhooks: what arrives, and that nothing is tried twice."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sandbox.bitrix import create_app
from sandbox.phpforms import parse
from sandbox.portal import Portal, PortalSettings

BASE = "/rest/1/sandbox/"
TARGET = "http://handler/webhooks/bitrix"


class Handler:
    """The other end: keeps what it gets and answers *status*."""

    def __init__(self, status: int = 202) -> None:
        self.status = status
        self.got: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        if self.status == 0:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(self.status)


def run(handler: Handler, *steps: tuple[str, Any], target: str = TARGET) -> tuple[list[Any], Any]:
    async def story() -> tuple[list[Any], Any]:
        settings = PortalSettings(webhook_target=target, application_token="token-1")
        mock = httpx.MockTransport(handler)
        portal = Portal(settings, clock=lambda: 1736405807.9, transport=mock)
        transport = httpx.ASGITransport(create_app(portal))
        async with httpx.AsyncClient(transport=transport, base_url="http://portal") as client:
            answers = [(await client.post(path, json=body)).json() for path, body in steps]
        await portal.outbound.settle()
        return answers, portal.summary()["webhooks"]

    return asyncio.run(story())


ADD = (BASE + "crm.deal.add", {"fields": {}})


def test_an_event_arrives_as_a_form_with_brackets() -> None:
    handler = Handler()
    run(handler, ADD)
    (request,) = handler.got

    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse(request.content.decode()) == {
        "event": "ONCRMDEALADD",
        "event_handler_id": "201",
        "data": {"FIELDS": {"ID": "1"}},
        "ts": "1736405807",
        "auth": {
            "domain": "sandbox.bitrix24.ru",
            "client_endpoint": "https://sandbox.bitrix24.ru/rest/",
            "server_endpoint": "https://oauth.bitrix.info/rest/",
            "member_id": "a223c6b3710f85df22e9377d6c4f7553",
            "application_token": "token-1",
        },
    }


def test_every_change_is_an_event_and_nothing_else_is() -> None:
    handler = Handler()
    run(
        handler,
        ADD,
        (BASE + "crm.deal.update", {"id": 1, "fields": {}}),
        (BASE + "crm.deal.get", {"id": 1}),
        (BASE + "crm.deal.delete", {"id": 1}),
        (BASE + "crm.deal.delete", {"id": 1}),
        (BASE + "batch", {"cmd": ["crm.contact.add?fields[NAME]=Ann"]}),
    )
    events = [parse(request.content.decode())["event"] for request in handler.got]

    assert sorted(events) == [
        "ONCRMCONTACTADD",
        "ONCRMDEALADD",
        "ONCRMDEALDELETE",
        "ONCRMDEALUPDATE",
    ]


@pytest.mark.parametrize("status", [500, 0])
def test_a_handler_that_fails_is_not_asked_again(status: int) -> None:
    handler = Handler(status)
    answers, counts = run(handler, ADD)

    assert answers[0]["result"] == 1
    assert len(handler.got) == 1
    assert counts == {"sent": 0, "failed": 1}


def test_emit_sends_what_it_is_told_to() -> None:
    handler = Handler()
    event = {"event": "ONCRMDEALUPDATE", "id": 7, "ts": 5, "token": "forged"}
    answers, _ = run(handler, ("/_sandbox/emit", event))
    form = parse(handler.got[0].content.decode())

    assert answers == [{"status": 202}]
    assert (form["data"]["FIELDS"]["ID"], form["ts"]) == ("7", "5")
    assert form["auth"]["application_token"] == "forged"


def test_without_a_target_nothing_is_sent() -> None:
    handler = Handler()
    answers, _ = run(handler, ADD, ("/_sandbox/emit", {"event": "X", "id": 1}), target="")

    assert handler.got == []
    assert "error" in answers[1]
