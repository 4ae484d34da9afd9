"""The sample shop: a row is committed before its job is sent, and does not outlive a refusal."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from kombu.exceptions import OperationalError

from classifiers.errors import InvalidData
from sandbox.shop import create_app

ORDER = {"order_id": 7, "title": "Lamp", "amount": "10.50", "currency": "RUB", "user_id": 3}
PROFILE = {"user_id": 3, "name": "Ann", "email": "ann@b.c", "phone": "+79000000001"}
VIDEO = {
    "order_id": "v1",
    "user_id": 3,
    "chat_id": 42,
    "image_url": "https://photos.example/v1.jpg",
    "prompt": "Show it from all sides",
    "cost": "1.50",
    "locale": "en",
}


class Jobs:
    """Stands in for our tasks: keeps what was sent, and the rows another process then saw."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.visible: list[list[tuple[Any, ...]]] = []
        self.failure: Exception | None = None

    def rows(self) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.database) as connection:
            orders = connection.execute("SELECT key, title, stage, extra FROM orders").fetchall()
            profiles = connection.execute("SELECT key, name, email FROM profiles").fetchall()
            return (
                orders + profiles + connection.execute("SELECT key, prompt FROM videos").fetchall()
            )

    def __getattr__(self, name: str) -> SimpleNamespace:
        def delay(**payload: Any) -> SimpleNamespace:
            self.visible.append(self.rows())
            if self.failure:
                raise self.failure
            self.sent.append((name, payload))
            return SimpleNamespace(id=f"job-{len(self.sent)}")

        return SimpleNamespace(delay=delay)


class Shop:
    """The application, called in this process."""

    def __init__(self, database: Path) -> None:
        self.jobs = Jobs(database)
        self.app = create_app(database, self.jobs)

    def send(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return await client.request(verb, path, json=body)

        response = asyncio.run(call())
        return response.status_code, response.json()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "var" / "shop.db")


def test_an_order_is_committed_and_then_sent(shop: Shop) -> None:
    answer = shop.send("POST", "/orders", ORDER)
    ((name, payload),) = shop.jobs.sent
    updated_at = datetime.fromisoformat(payload.pop("updated_at"))

    assert answer == (202, {"job": "job-1"})
    assert name == "create_deal"
    assert payload == {
        "order_id": "7",
        "title": "Lamp",
        "amount": "10.50",
        "currency": "RUB",
        "contact_user_id": 3,
    }
    assert updated_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - updated_at) < timedelta(minutes=1)
    assert shop.jobs.visible == [[("7", "Lamp", None, "{}")]]


def test_a_change_is_sent_as_the_whole_row_by_bitrix_names(shop: Shop) -> None:
    shop.send("POST", "/orders", ORDER)
    change = {"title": "Desk lamp", "stage": "WON", "UF_CRM_COLOUR": "red"}
    status, _ = shop.send("PATCH", "/orders/7", change)
    name, payload = shop.jobs.sent[1]

    assert (status, name, payload["order_id"]) == (202, "update_deal", "7")
    assert payload["fields"] == {
        "TITLE": "Desk lamp",
        "OPPORTUNITY": "10.50",
        "CURRENCY_ID": "RUB",
        "STAGE_ID": "WON",
        "UF_CRM_COLOUR": "red",
    }
    assert shop.jobs.visible[1] == [("7", "Desk lamp", "WON", '{"UF_CRM_COLOUR": "red"}')]


def test_profiles_are_contacts(shop: Shop) -> None:
    shop.send("POST", "/profiles", PROFILE)
    shop.send("PATCH", "/profiles/3", {"phone": "+79000000002"})
    (created, first), (updated, second) = shop.jobs.sent
    stamps = first.pop("updated_at"), second.pop("updated_at")

    assert (created, first) == ("create_contact", {**PROFILE, "user_id": "3"})
    assert (updated, second) == (
        "update_contact",
        {
            "user_id": "3",
            "fields": {"NAME": "Ann", "EMAIL": "ann@b.c", "PHONE": "+79000000002"},
        },
    )
    assert stamps[0] < stamps[1]


def test_a_video_is_committed_and_then_ordered(shop: Shop) -> None:
    answer = shop.send("POST", "/videos", VIDEO)

    assert answer == (202, {"job": "job-1"})
    assert shop.jobs.sent == [("generate", VIDEO)]
    assert shop.jobs.visible == [[("v1", "Show it from all sides")]]


@pytest.mark.parametrize("user_id", [1400000001, "1400000001"], ids=["number", "text"])
def test_a_crawl_is_asked_for(shop: Shop, user_id: str | int) -> None:
    answer = shop.send("POST", "/crawls", {"user_id": user_id})

    assert answer == (202, {"job": "job-1"})
    assert shop.jobs.sent == [("crawl", {"user_id": "1400000001"})]


def test_every_change_of_a_row_is_later_than_the_one_before(shop: Shop) -> None:
    shop.send("POST", "/orders", ORDER)
    for n in range(20):
        shop.send("PATCH", "/orders/7", {"title": f"Lamp {n}"})
    stamps = [payload["updated_at"] for _, payload in shop.jobs.sent]

    assert stamps == sorted(set(stamps))
    assert all(len(stamp) == len("2026-01-01T00:00:00.000000+00:00") for stamp in stamps)


def test_a_clock_that_steps_back_does_not_turn_changes_round(shop: Shop) -> None:
    shop.send("POST", "/orders", ORDER)
    ahead = "2999-01-01T00:00:00.000000+00:00"
    with sqlite3.connect(shop.jobs.database) as connection:
        connection.execute("UPDATE orders SET updated_at = ?", (ahead,))
    shop.send("PATCH", "/orders/7", {"title": "Lamp 2"})

    assert shop.jobs.sent[1][1]["updated_at"] == "2999-01-01T00:00:00.000001+00:00"


FAILURES = [
    pytest.param(InvalidData("amount: not a number"), 422, id="refused"),
    pytest.param(OperationalError("no broker"), 503, id="broker-away"),
]


@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_row_whose_job_was_not_accepted_is_not_kept(
    shop: Shop, failure: Exception, status: int
) -> None:
    shop.jobs.failure = failure
    orders = {"/orders": ORDER, "/profiles": PROFILE, "/videos": VIDEO}
    answers = [shop.send("POST", path, body) for path, body in orders.items()]

    assert [code for code, _ in answers] == [status] * 3
    assert [len(rows) for rows in shop.jobs.visible] == [1] * 3
    assert shop.jobs.rows() == []


@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_crawl_that_was_not_accepted_is_said_to_be(
    shop: Shop, failure: Exception, status: int
) -> None:
    shop.jobs.failure = failure

    assert shop.send("POST", "/crawls", {"user_id": 1})[0] == status


@pytest.mark.parametrize(("failure", "status"), FAILURES)
def test_a_change_whose_job_was_not_accepted_is_taken_back(
    shop: Shop, failure: Exception, status: int
) -> None:
    shop.send("POST", "/orders", ORDER)
    before = shop.jobs.rows()
    shop.jobs.failure = failure
    code, _ = shop.send("PATCH", "/orders/7", {"title": "", "nonsense": 1})

    assert code == status
    assert shop.jobs.rows() == before


def test_the_message_of_a_refusal_reaches_the_caller(shop: Shop) -> None:
    shop.jobs.failure = InvalidData("amount: not a number")

    assert shop.send("POST", "/orders", ORDER) == (422, {"detail": "amount: not a number"})


def test_a_later_change_survives_when_an_earlier_one_is_taken_back(shop: Shop) -> None:
    shop.send("POST", "/orders", ORDER)
    rows = shop.jobs.rows

    def change_once_more() -> list[tuple[Any, ...]]:
        shop.jobs.rows = rows
        shop.jobs.failure = None
        shop.send("PATCH", "/orders/7", {"title": "Later"})
        shop.jobs.failure = InvalidData("too early")
        return rows()

    shop.jobs.rows = change_once_more
    shop.send("PATCH", "/orders/7", {"title": "Earlier"})

    assert [row[1] for row in shop.jobs.rows()] == ["Later"]


@pytest.mark.parametrize(
    ("path", "order"),
    [pytest.param("/orders", ORDER, id="order"), pytest.param("/videos", VIDEO, id="video")],
)
def test_the_same_order_again_is_sent_again_as_it_is(
    shop: Shop, path: str, order: dict[str, Any]
) -> None:
    shop.send("POST", path, order)
    status, _ = shop.send("POST", path, order)
    (_, first), (_, second) = shop.jobs.sent

    assert status == 202
    assert first == second


def test_an_accepted_order_survives_a_repetition_that_is_refused(shop: Shop) -> None:
    shop.send("POST", "/orders", ORDER)
    shop.jobs.failure = OperationalError("no broker")
    shop.send("POST", "/orders", ORDER)

    assert len(shop.jobs.rows()) == 1


@pytest.mark.parametrize(
    ("send", "status"),
    [
        pytest.param(("POST", "/orders", {**ORDER, "title": "Other"}), 409, id="another-order"),
        pytest.param(("POST", "/videos", {"order_id": 8}), 422, id="video-of-nothing"),
        pytest.param(("POST", "/crawls", {}), 422, id="crawl-of-nobody"),
        pytest.param(("PATCH", "/orders/8", {"title": "x"}), 404, id="unknown-order"),
        pytest.param(("PATCH", "/profiles/8", {"name": "x"}), 404, id="unknown-profile"),
        pytest.param(("POST", "/orders", {"order_id": 8}), 422, id="no-title"),
    ],
)
def test_what_the_shop_itself_refuses(shop: Shop, send: tuple[str, str, Any], status: int) -> None:
    shop.send("POST", "/orders", ORDER)

    assert shop.send(*send)[0] == status
    assert len(shop.jobs.sent) == 1
