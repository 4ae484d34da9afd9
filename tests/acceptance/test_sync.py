"""What the application knows is what the portal shows, however its jobs overtake each other."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from acceptance.system import System
from fixtures.waiting import eventually

from sandbox.stack import Process

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def at(minute: int) -> str:
    return (NOON + timedelta(minutes=minute)).isoformat()


@pytest.fixture(scope="module")
def second_worker(staffed_office: System) -> Iterator[Process]:
    worker = staffed_office.worker("second")
    yield worker
    worker.kill()


@pytest.fixture
def two_workers(office: System, second_worker: Process) -> System:
    """The office with a second worker on duty."""
    return office


def test_the_same_call_twice_has_one_effect(office: System, order: str):
    call = {"order_id": order, "title": "Twice", "amount": "12.50"}
    first, second = office.done("create_deal", **call), office.done("create_deal", **call)

    assert (
        first == second == {"outcome": "created", "deal_id": office.portal.row("deal", order)["ID"]}
    )
    assert len(office.portal.calls("crm.deal.add", order)) == 1
    assert office.portal.calls("crm.deal.update", order) == []


def test_a_deal_carries_its_origin_and_what_the_caller_gave(office: System, order: str):
    office.done("create_deal", order_id=order, title="Tea", amount=0.1, fields={"COMMENTS": "!"})
    deal = office.portal.row("deal", order)

    assert (deal["ORIGINATOR_ID"], deal["ORIGIN_ID"]) == ("perennial", order)
    assert (deal["TITLE"], deal["OPPORTUNITY"], deal["CURRENCY_ID"]) == ("Tea", "0.10", "RUB")
    assert deal["COMMENTS"] == "!"


def test_one_order_sent_twenty_times_at_once_to_two_workers_is_one_deal(
    two_workers: System, second_worker: Process, order: str
):
    office = two_workers
    # Slow, so that all the others come while the first is at it.
    office.portal.arm({"kind": "slow", "seconds": 1.0, "method": "crm.deal.add", "about": order})
    jobs = office.send_all([("create_deal", {"order_id": order, "title": "Impatient"})] * 20)
    outcomes = office.results(jobs)
    deal = office.portal.row("deal", order)["ID"]

    assert outcomes == [{"outcome": "created", "deal_id": deal}] * 20
    assert len(office.portal.calls("crm.deal.add", order)) == 1
    assert any(second_worker.says(job) for job in jobs)


@pytest.mark.parametrize("seed", range(2))
def test_updates_in_any_order_leave_the_newest_state(two_workers: System, order: str, seed: int):
    office = two_workers
    calls = [("create_deal", {"order_id": order, "title": "State 0", "updated_at": at(0)})]
    calls += [
        ("update_deal", {"order_id": order, "fields": {"TITLE": f"State {n}"}, "updated_at": at(n)})
        for n in range(1, 11)
    ]
    random.Random(seed).shuffle(calls)
    outcomes = office.results(office.send_all(calls))
    late = office.done("update_deal", order_id=order, fields={"TITLE": "Old"}, updated_at=at(9))
    deal = office.portal.row("deal", order)

    assert deal["TITLE"] == "State 10"
    assert late == {"outcome": "superseded", "deal_id": deal["ID"]}
    assert {outcome["deal_id"] for outcome in outcomes} == {deal["ID"]}
    assert {o["outcome"] for o in outcomes} <= {"created", "updated", "adopted", "superseded"}


def test_an_update_waits_for_the_create_in_flight(office: System, order: str):
    slow = {"kind": "slow", "seconds": 1.5, "method": "crm.deal.add", "about": order}
    office.portal.arm(slow)
    create = office.send("create_deal", order_id=order, title="Slow", amount=1)
    eventually(lambda: office.portal.calls("crm.deal.add", order))
    updated = office.done("update_deal", order_id=order, fields={"STAGE_ID": "WON"})
    deal = office.portal.row("deal", order)

    assert office.result(create) == {"outcome": "created", "deal_id": deal["ID"]}
    assert updated["deal_id"] == deal["ID"]
    assert (deal["TITLE"], deal["OPPORTUNITY"], deal["STAGE_ID"]) == ("Slow", "1.00", "WON")


def test_an_update_that_nobody_created_makes_the_deal(office: System, order: str):
    fields = {"TITLE": "Only an update", "STAGE_ID": "WON"}
    outcome = office.done("update_deal", order_id=order, fields=fields)
    deal = office.portal.row("deal", order)

    assert outcome == {"outcome": "created", "deal_id": deal["ID"]}
    assert {name: deal[name] for name in fields} == fields


def test_a_create_that_comes_after_its_update_takes_nothing_back(office: System, order: str):
    office.done("update_deal", order_id=order, fields={"TITLE": "Newer"}, updated_at=at(2))
    office.done("create_deal", order_id=order, title="Older", amount=5, updated_at=at(1))
    deal = office.portal.row("deal", order)

    assert (deal["TITLE"], deal["OPPORTUNITY"]) == ("Newer", "5.00")


def test_a_contact_with_the_same_address_is_taken_over_and_none_of_it_doubled(
    office: System, order: str
):
    mail, phone = f"{order}@example.com", "+7 900 123-45-67"
    email_row = [{"VALUE": mail, "VALUE_TYPE": "WORK"}]
    known = office.portal.call("crm.contact.add", fields={"NAME": "Anna", "EMAIL": email_row})
    outcomes = [
        office.done(
            "create_contact", user_id=order, name="Anna K.", email=mail.upper(), phone=phone
        )
        for _ in range(2)
    ]
    contact = office.portal.get("contact", str(known))
    with_mail = office.portal.call("crm.duplicate.findbycomm", type="EMAIL", values=[mail])

    assert outcomes[0] == {"outcome": "adopted", "contact_id": str(known)}
    assert outcomes[1]["contact_id"] == str(known)
    assert contact["NAME"] == "Anna K."
    assert [row["VALUE"] for row in contact["EMAIL"]] == [mail]
    assert [row["VALUE"] for row in contact["PHONE"]] == [phone]
    assert with_mail == {"CONTACT": [known]}


def test_two_users_with_one_address_at_once_are_one_contact(two_workers: System, order: str):
    card = {"name": "Anna", "email": f"{order}@example.com"}
    calls = [("create_contact", card | {"user_id": f"{order}-{n}"}) for n in range(6)]
    outcomes = two_workers.results(two_workers.send_all(calls))
    found = two_workers.portal.call(
        "crm.duplicate.findbycomm", type="EMAIL", values=[card["email"]]
    )

    assert len({outcome["contact_id"] for outcome in outcomes}) == 1
    assert len(found["CONTACT"]) == 1


def test_a_deal_waits_for_its_contact(office: System, order: str):
    user = f"user-of-{order}"
    slow = {"kind": "slow", "seconds": 0.2, "method": "crm.contact.add", "about": user}
    office.portal.arm(slow)
    contact, deal = office.send_all(
        [
            ("create_contact", {"user_id": user, "name": "Anna"}),
            ("create_deal", {"order_id": order, "title": "Hers", "contact_user_id": user}),
        ]
    )
    office.results([contact, deal])
    office.calm()

    assert (
        office.portal.row("deal", order)["CONTACT_ID"] == office.portal.row("contact", user)["ID"]
    )


def test_a_deal_gets_a_contact_that_comes_much_later(office: System, order: str):
    user = f"user-of-{order}"
    office.done("create_deal", order_id=order, title="Whose?", contact_user_id=user)
    before = office.portal.row("deal", order)["CONTACT_ID"]
    contact = office.done("create_contact", user_id=user, name="Hers")["contact_id"]

    assert not before
    eventually(lambda: office.portal.row("deal", order)["CONTACT_ID"] == contact)


AWKWARD = {
    "a reference": "see $result[c0] and $result[c0][ID]",
    "signs": "100% #&[]%23 = a+b ? \"x\" 'y' /?a=1&b[0]=2",
    "Cyrillic": "Заказ № 7 — «Чай» ✓",
    "a total": "$total",
}


def test_customer_text_arrives_unharmed_beside_others(office: System, order: str):
    titles = [*AWKWARD.values(), *(f"Plain {n}" for n in range(16))]
    calls = [
        (
            "create_deal",
            {"order_id": f"{order}-{n:02}", "title": title, "fields": {"COMMENTS": title}},
        )
        for n, title in enumerate(titles)
    ]
    office.results(office.send_all(calls))
    deals = [office.portal.row("deal", f"{order}-{n:02}") for n in range(len(titles))]
    together = [call for call in office.portal.calls("crm.deal.add") if call["inside_batch"]]

    assert [deal["TITLE"] for deal in deals] == titles
    assert [deal["COMMENTS"] for deal in deals] == titles
    assert len(together) > 1


def test_what_changes_in_the_portal_is_kept_beside_the_link(office: System, order: str):
    deal = office.done("create_deal", order_id=order, title="Watched")["deal_id"]
    api = office.stack.start_api()
    office.portal.call("crm.deal.update", id=deal, fields={"TITLE": "Changed by hand"})
    seen = eventually(lambda: remote_title(office, order) == "Changed by hand")
    api.kill()

    assert seen


def remote_title(office: System, order: str) -> str | None:
    statement = "SELECT remote ->> 'TITLE' AS title FROM links WHERE local_id = ?"
    rows: list[sqlite3.Row] = office.sql(statement, order)
    return rows[0]["title"]


def test_a_payload_that_cannot_be_used_is_refused_in_the_caller(office: System, order: str):
    refused = office.try_all(
        [
            ("create_deal", {"order_id": order}),
            ("create_deal", {"order_id": order, "title": "x", "amount": "a lot"}),
            ("update_deal", {"order_id": order, "fields": {}, "updated_at": "yesterday"}),
        ]
    )

    assert [answer["error"] for answer in refused] == [
        "MissingFields",
        "InvalidData",
        "InvalidData",
    ]
    assert "title: is missing" in refused[0]["text"]
    assert office.leftovers() == {}
