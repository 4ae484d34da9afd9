"""How calls that repeat and overtake each other end up in the portal; no worker, a real portal."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from celery._state import _task_stack

from classifiers.errors import Duplicate, ServiceUnavailable
from clients.bitrix import portal
from config.settings import settings
from reliability import connection
from sandbox.bitrix import create_server
from sandbox.portal import Portal, PortalSettings
from storage import links
from tasks import bitrix

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

EARLY, LATE = 1_000_000_000.0, 1_000_000_100.0  # times of acceptance


class Office:
    """The portal as its users see it."""

    def __init__(self, url: str) -> None:
        self.rest = httpx.Client(base_url=url, trust_env=False)
        self.control = httpx.Client(base_url=url.partition("/rest/")[0], trust_env=False)

    def rows(self, entity: str, origin: str) -> list[dict[str, Any]]:
        asked = {"select": ["*"], "filter": {"=ORIGIN_ID": origin}}
        return self.rest.post(f"crm.{entity}.list", json=asked).json()["result"]

    def deal(self, order: str) -> dict[str, Any]:
        (row,) = self.rows("deal", order)
        return row

    def add(self, entity: str, **fields: Any) -> str:
        return str(self.rest.post(f"crm.{entity}.add", json={"fields": fields}).json()["result"])

    def count(self, entity: str) -> int:
        return len(self.rest.post(f"crm.{entity}.list", json={}).json()["result"])

    def arm(self, **fault: Any) -> None:
        self.control.post("/_sandbox/faults", json=[fault]).raise_for_status()


@pytest.fixture
def office(database, redis_server, redis_client, monkeypatch) -> Iterator[Office]:
    server, listener = create_server(Portal(PortalSettings(code="c0de1234", rate=500, burst=500)))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/rest/1/c0de1234/"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("BITRIX_WEBHOOK_URL", url)
    monkeypatch.setenv("BITRIX_RATE", "500")
    monkeypatch.setenv("BITRIX_BURST", "500")
    _forget()
    yield Office(url)
    server.should_exit = True
    thread.join()
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    """Let this process read its settings anew."""
    settings.cache_clear()
    connection.redis.cache_clear()
    bitrix.dead_letters.cache_clear()
    portal.forget()


def run(task: Any, accepted_at: float = EARLY, **payload: Any) -> dict[str, Any]:
    """Run the job as a worker would, accepted at that time, without its retries."""
    task.push_request(
        id=f"{task.name}-{accepted_at}", called_directly=True, headers={"accepted_at": accepted_at}
    )
    _task_stack.push(task)  # what makes it the current task
    try:
        return task.run(**payload)
    finally:
        _task_stack.pop()
        task.pop_request()


def test_a_row_that_was_there_is_written_even_if_the_first_try_fails(office, monkeypatch):
    monkeypatch.setenv("BITRIX_LOOKUP_BEFORE_CREATE", "true")
    settings.cache_clear()
    office.add("deal", TITLE="old", ORIGINATOR_ID="perennial", ORIGIN_ID="o1")
    office.arm(kind="status", status=503, method="crm.deal.update", times=1)
    with pytest.raises(ServiceUnavailable):
        run(bitrix.create_deal, order_id="o1", title="new")
    outcome = run(bitrix.create_deal, order_id="o1", title="new")

    assert outcome["outcome"] == "adopted"
    assert office.deal("o1")["TITLE"] == "new"


def test_a_contact_that_comes_late_supersedes_no_update(office):
    run(bitrix.create_deal, order_id="o2", title="t", contact_user_id="u2")
    run(bitrix.create_contact, user_id="u2", name="Ann", email="ann@example.com")
    run(bitrix.attach_contact, LATE, order_id="o2", user_id="u2")
    outcome = run(bitrix.update_deal, EARLY + 1, order_id="o2", fields={"STAGE_ID": "WON"})
    deal = office.deal("o2")

    assert outcome["outcome"] == "updated"
    assert deal["STAGE_ID"] == "WON"
    assert deal["CONTACT_ID"] == links.get("contact", "u2").remote_id
    assert links.get("deal", "o2").awaiting is None


def test_a_contact_that_comes_late_is_attached_after_a_newer_update(office):
    run(bitrix.create_deal, order_id="o3", title="t", contact_user_id="u3")
    run(bitrix.update_deal, LATE, order_id="o3", fields={"STAGE_ID": "WON"})
    run(bitrix.create_contact, user_id="u3", name="Ann", email="ann3@example.com")
    run(bitrix.attach_contact, EARLY, order_id="o3", user_id="u3")

    assert office.deal("o3")["CONTACT_ID"] == links.get("contact", "u3").remote_id


def test_a_deal_that_was_there_gets_its_contact_even_if_an_update_overtakes(
    office, monkeypatch, redis_client
):
    monkeypatch.setenv("BITRIX_LOOKUP_BEFORE_CREATE", "true")
    settings.cache_clear()
    create = {"order_id": "o9", "title": "t", "contact_user_id": "u9"}
    office.add("deal", TITLE="old", ORIGINATOR_ID="perennial", ORIGIN_ID="o9")
    run(bitrix.create_contact, user_id="u9", name="Ann", email="ann9@example.com")
    office.arm(kind="status", status=503, method="crm.deal.update", times=1)
    with pytest.raises(ServiceUnavailable):
        run(bitrix.create_deal, **create)
    run(bitrix.update_deal, LATE, order_id="o9", fields={"STAGE_ID": "WON"})
    outcome = run(bitrix.create_deal, **create)
    (message,) = redis_client.lrange("bitrix", 0, -1)
    run(bitrix.attach_contact, order_id="o9", user_id="u9")

    assert outcome["outcome"] == "superseded"
    assert json.loads(message)["headers"]["task"] == bitrix.attach_contact.name
    assert office.deal("o9")["CONTACT_ID"] == links.get("contact", "u9").remote_id


def test_a_deal_that_an_update_has_made_gets_the_contact_its_create_waits_for(office, redis_client):
    run(bitrix.update_deal, LATE, order_id="o10", fields={"STAGE_ID": "WON"})
    run(bitrix.create_deal, order_id="o10", title="t", contact_user_id="u10")
    run(bitrix.create_contact, user_id="u10", name="Ann", email="ann10@example.com")
    (message,) = redis_client.lrange("bitrix", 0, -1)
    run(bitrix.attach_contact, order_id="o10", user_id="u10")

    assert json.loads(message)["headers"]["task"] == bitrix.attach_contact.name
    assert office.deal("o10")["CONTACT_ID"] == links.get("contact", "u10").remote_id


def test_a_contact_that_comes_after_its_deal_was_deleted_is_no_dead_letter(office):
    run(bitrix.create_deal, order_id="o7", title="t", contact_user_id="u7")
    run(bitrix.create_contact, user_id="u7", name="Ann", email="ann7@example.com")
    office.rest.post("crm.deal.delete", json={"id": office.deal("o7")["ID"]})
    outcome = run(bitrix.attach_contact, order_id="o7", user_id="u7")

    assert outcome["outcome"] == "target_gone"


def test_an_update_accepted_before_the_one_applied_is_superseded(office):
    run(bitrix.create_deal, order_id="o8", title="t")
    run(bitrix.update_deal, LATE, order_id="o8", fields={"STAGE_ID": "WON"})
    outcome = run(bitrix.update_deal, EARLY + 1, order_id="o8", fields={"STAGE_ID": "LOSE"})

    assert outcome["outcome"] == "superseded"
    assert office.deal("o8")["STAGE_ID"] == "WON"


def test_the_same_create_has_one_effect_even_if_its_contact_came_meanwhile(office):
    create = {"order_id": "o4", "title": "t", "contact_user_id": "u4"}
    run(bitrix.create_deal, **create)
    run(bitrix.update_deal, LATE, order_id="o4", fields={"STAGE_ID": "WON"})
    run(bitrix.create_contact, user_id="u4", name="Ann", email="ann4@example.com")
    again = run(bitrix.create_deal, LATE + 1, **create, fields={})

    assert again["outcome"] == "created"
    assert office.deal("o4")["STAGE_ID"] == "WON"


def test_a_create_that_comes_late_and_twice_keeps_what_updates_have_set(office):
    run(bitrix.update_deal, LATE, order_id="o5", fields={"STAGE_ID": "WON"})
    create = {"order_id": "o5", "title": "Lamp", "fields": {"STAGE_ID": "NEW"}}
    first = run(bitrix.create_deal, **create)
    second = run(bitrix.create_deal, **create)
    deal = office.deal("o5")

    assert (first["outcome"], second["outcome"]) == ("adopted", "created")
    assert (deal["TITLE"], deal["STAGE_ID"]) == ("Lamp", "WON")


def test_an_adopted_contact_stays_the_users_when_the_address_changes(office):
    existing = office.add("contact", NAME="Old", EMAIL=[{"VALUE": "a@example.com"}])
    with pytest.raises(Duplicate) as refusal:  # which the policy turns into an adoption
        bitrix.refuse_double(bitrix.contact_card("X", "a@example.com"))
    first = run(bitrix.create_contact, user_id="u6", name="X", email="a@example.com")
    second = run(bitrix.create_contact, LATE, user_id="u6", name="X", email="new@example.com")

    assert refusal.value.existing_id == existing
    assert first == second == {"outcome": "adopted", "contact_id": existing}
    assert office.count("contact") == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("+7 999 123-45-67", "89991234567"), ("+7(999)1234567", "9991234567")],
)
def test_spellings_of_one_phone_are_one_person(database, one, other):
    assert bitrix.address("PHONE", one) == bitrix.address("PHONE", other)
