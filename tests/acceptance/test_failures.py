"""What becomes of a failure, end to end: the rows of the policy table, on a worker at work.

That nothing ends without a letter, whatever its way, is in `test_ways_to_die`.
"""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from acceptance.system import PATIENCE, System
from celery import Celery
from fixtures.waiting import eventually


def refusal(method: str, code: str, about: str = "", **more):
    return {"kind": "error", "method": method, "code": code, "about": about} | more


def test_an_update_of_a_deal_that_was_deleted_is_done_at_once(office: System, order: str):
    deal = office.done("create_deal", order_id=order, title="Soon gone")["deal_id"]
    office.portal.call("crm.deal.delete", id=deal)
    job = office.send("update_deal", order_id=order, fields={"STAGE_ID": "WON"})

    assert office.result(job) == {"outcome": "target_gone", "order_id": order}
    assert len(office.portal.calls("crm.deal.update")) == 1
    assert office.letters.get(job) is None


def test_a_create_that_finds_something_missing_dies_without_a_retry(office: System, order: str):
    missing = refusal("crm.deal.add", "NOT_FOUND", order, description="Not found", times=9)
    office.portal.arm(missing)
    letter = office.letter(office.send("create_deal", order_id=order, title="Nowhere"))

    assert (letter.error_type, letter.metadata.retry_count) == ("NotFound", 0)
    assert len(office.portal.calls("crm.deal.add", order)) == 1


def test_an_update_that_cannot_make_its_deal_is_not_taken_for_done(office: System, order: str):
    missing = refusal("crm.deal.add", "NOT_FOUND", order, description="Not found", times=9)
    office.portal.arm(missing)
    letter = office.letter(office.send("update_deal", order_id=order, fields={"TITLE": "x"}))

    assert letter.error_type == "InvalidData"


def test_invalid_data_dies_after_one_retry_with_the_whole_story(office: System, order: str):
    fields = {"OPPORTUNITY": "a lot"}
    job = office.send("create_deal", order_id=order, title="Refused", fields=fields)
    office.letter(job)
    shown = office.look("dlq", "show", job)
    body, metadata = shown["message_body"], shown["metadata"]

    assert next(iter(shown)) == "message_id"
    assert shown["message_id"] == job
    assert shown["original_queue"] == "bitrix"
    assert (shown["error_type"], shown["category"]) == ("InvalidData", "validation")
    assert "Amount" in shown["error_message"]
    assert body["task"] == "bitrix.create_deal"
    assert body["args"] == []
    assert (
        body["kwargs"] | {"order_id": order, "title": "Refused", "fields": fields} == body["kwargs"]
    )
    assert metadata["received_at"] <= metadata["failed_at"]
    assert metadata["retry_count"] == 1
    assert metadata["trace_id"] == job
    assert [entry["action"] for entry in shown["history"]] == ["retry", "dead_letter"]
    assert "Traceback" in shown["traceback"]
    assert shown["fingerprint"]
    assert shown["compensation"] == {"state": "none", "about": {}}
    assert len(office.portal.calls("crm.deal.add", order)) == 2


def test_missing_fields_die_after_one_retry(office: System, order: str):
    office.portal.arm(refusal("crm.deal.add", "CRM_FIELD_ERROR_REQUIRED", order, times=9))
    letter = office.letter(office.send("create_deal", order_id=order, title="Half"))

    assert (letter.error_type, letter.metadata.retry_count) == ("MissingFields", 1)
    assert len(office.portal.calls("crm.deal.add", order)) == 2


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param({"kind": "status", "status": 502}, id="a page of the proxy"),
        pytest.param({"kind": "error", "code": "INTERNAL_SERVER_ERROR"}, id="an answer"),
        pytest.param({"kind": "non_json"}, id="nonsense"),
        pytest.param({"kind": "refuse", "drop": "reset"}, id="a broken connection"),
        pytest.param({"kind": "lost_answer"}, id="a lost answer"),
    ],
)
def test_an_update_that_fails_for_now_is_tried_again_later_and_later(
    office: System, order: str, failure: dict
):
    office.done("create_deal", order_id=order, title="Patient")
    office.portal.arm(failure | {"method": "crm.deal.update", "about": order, "times": 2})
    outcome = office.done("update_deal", order_id=order, fields={"STAGE_ID": "WON"})
    times = [call["at"] for call in office.portal.calls("crm.deal.update", order)]
    first, second = (later - earlier for earlier, later in pairwise(times))

    assert outcome["outcome"] == "updated"
    assert office.portal.row("deal", order)["STAGE_ID"] == "WON"
    assert first >= 0.05  # INITIAL_BACKOFF, scaled; never at once
    assert second >= 0.1


def test_what_never_passes_dies_after_five_retries(office: System, order: str):
    office.done("create_deal", order_id=order, title="Hopeless")
    # Not one of the failures that open the breaker: that would only take longer.
    failure = {"kind": "non_json", "method": "crm.deal.update", "about": order, "times": 99}
    office.portal.arm(failure)
    job = office.send("update_deal", order_id=order, fields={"STAGE_ID": "WON"})
    letter = office.letter(job)

    assert (letter.error_type, letter.metadata.retry_count) == ("InternalError", 5)
    assert len(office.portal.calls("crm.deal.update", order)) == 6


@pytest.mark.parametrize("drop", ["close", "reset"])
def test_a_create_whose_answer_is_lost_is_found_again(office: System, order: str, drop: str):
    fault = {"kind": "lost_answer", "method": "crm.deal.add", "about": order, "drop": drop}
    office.portal.arm(fault)
    outcome = office.done("create_deal", order_id=order, title="Once")

    assert outcome == {"outcome": "adopted", "deal_id": office.portal.row("deal", order)["ID"]}
    assert len(office.portal.calls("crm.deal.add", order)) == 1


def test_a_create_that_never_arrived_is_sent_again_once_that_is_certain(office: System, order: str):
    office.portal.arm({"kind": "refuse", "method": "crm.deal.add", "about": order})
    outcome = office.done("create_deal", order_id=order, title="At last")
    first, second = (call["at"] for call in office.portal.calls("crm.deal.add", order))

    assert outcome == {"outcome": "created", "deal_id": office.portal.row("deal", order)["ID"]}
    assert second - first > 4  # the lease, scaled: until then the first call might take effect


def test_a_rate_limit_spends_no_attempt(office: System, order: str):
    office.portal.arm(refusal("crm.deal.add", "QUERY_LIMIT_EXCEEDED", order, times=7))
    outcome = office.done("create_deal", order_id=order, title="Patience")

    assert outcome["outcome"] == "created"  # five retries would not have been enough
    assert office.gate.state().state == "closed"


def test_the_limit_of_one_method_leaves_the_others_alone(empty_office: System, order: str):
    office = empty_office
    # A new one: until when a method is blocked, each process learns by itself.
    office.worker(RETRY_TIME_SCALE="0.02")
    office.done("create_deal", order_id=order, title="Before")
    office.portal.arm(refusal("crm.deal.update", "OPERATION_TIME_LIMIT", order))
    job = office.send("update_deal", order_id=order, fields={"STAGE_ID": "WON"})
    parked = office.parked(job, "RateLimited")
    meanwhile = office.done("create_deal", order_id=f"{order}-other", title="Meanwhile")

    assert parked.attempts == 0
    assert meanwhile["outcome"] == "created"
    assert office.parking.get(job) is not None
    assert office.result(job)["outcome"] == "updated"


def test_an_overload_pauses_the_gate_until_a_person_resumes_it(office: System, order: str):
    office.portal.arm(refusal("crm.deal.add", "OVERLOAD_LIMIT", order, times=99))
    refused = office.send("create_deal", order_id=order, title="Too much")
    office.gate_is("paused")
    behind = office.send("create_deal", order_id=f"{order}-behind", title="Behind")
    office.parked(behind, "Paused")
    # Each looks again every few seconds. Not these two any more: only a person brings them back.
    in_an_hour = time.time() + 3600
    eventually(lambda: office.parking.release(refused, at=in_an_hour), within=PATIENCE)
    eventually(lambda: office.parking.release(behind, at=in_an_hour), within=PATIENCE)
    shown = {row["message_id"]: row for row in office.look("parked", "ls")}
    tried = len(office.portal.calls("crm.deal.add", order))
    office.portal.disarm()
    said = office.operate("gate", "resume", "bitrix")

    assert tried == 1
    assert shown.keys() == {refused, behind}
    assert {row["service"] for row in shown.values()} == {"bitrix"}
    assert list(shown[behind])[:4] == ["message_id", "task", "args", "kwargs"]
    assert (shown[behind]["task"], shown[behind]["reason"]) == ("bitrix.create_deal", "Paused")
    assert shown[behind]["kwargs"]["order_id"] == f"{order}-behind"
    assert shown[behind]["since"] <= shown[behind]["due"]
    assert shown[behind]["attempts"] == 0
    assert "2 jobs come back" in said
    assert [outcome["outcome"] for outcome in office.results([refused, behind])] == ["created"] * 2


def test_a_paused_upstream_is_called_by_nobody(office: System, order: str):
    office.gate.pause(by="somebody", note="migration")
    jobs = [office.send("create_deal", order_id=f"{order}-{n}", title="Later") for n in range(3)]
    for job in jobs:
        office.parked(job, "Paused")
    calls = office.portal.calls()
    office.gate.resume()
    for job in jobs:
        office.parking.release(job)

    assert calls == []
    assert {outcome["outcome"] for outcome in office.results(jobs)} == {"created"}


def test_the_breaker_opens_on_an_outage_and_closes_after_it(office: System, order: str):
    orders = [f"{order}-{n}" for n in range(8)]
    creates = [("create_deal", {"order_id": one, "title": "Before"}) for one in orders]
    office.results(office.send_all(creates))
    outage = {"kind": "status", "status": 503, "method": "crm.deal.update", "about": order}
    office.portal.arm(outage | {"times": 3})
    won = {"STAGE_ID": "WON"}
    jobs = [office.send("update_deal", order_id=one, fields=won) for one in orders]
    opened = office.gate_is("open")
    # It is half open until its trial calls are answered: long enough to be seen.
    office.portal.arm({"kind": "slow", "seconds": 1.0, "about": order, "times": 2})
    office.gate_is("half_open")
    office.gate_is("closed")

    assert "unreachable since" in opened.note
    assert {outcome["outcome"] for outcome in office.results(jobs)} == {"updated"}
    assert all(office.portal.row("deal", one)["STAGE_ID"] == "WON" for one in orders)


def test_a_refused_credential_is_held_until_another_one_is_set(empty_office: System, order: str):
    office, url = empty_office, empty_office.stack.env["BITRIX_WEBHOOK_URL"]
    wrong = office.worker("wrong", BITRIX_WEBHOOK_URL=url.rstrip("/") + "x/")
    refused = office.send("create_deal", order_id=order, title="Held")
    office.gate_is("held")
    held = office.send("create_deal", order_id=f"{order}-behind", title="Held, too")
    parked = office.parked(held, "CredentialHeld"), office.parked(refused)
    asked = len(office.portal.calls("crm.deal.add"))
    wrong.kill()
    office.worker("right")

    assert asked == 1
    assert [job.attempts for job in parked] == [0, 0]
    assert {outcome["outcome"] for outcome in office.results([refused, held])} == {"created"}
    assert office.gate.state().state == "closed"


def test_a_dead_letter_is_replayed_after_the_cause_is_gone(office: System, order: str):
    office.portal.arm(refusal("crm.deal.add", "INVALID_ARG_VALUE", order, times=2))
    job = office.send("create_deal", order_id=order, title="Second life")
    office.letter(job)
    said = office.operate("dlq", "replay", job)
    outcome = office.result(job)
    letter = office.letters.get(job)

    assert "sent 1 of 1 again" in said
    assert outcome == {"outcome": "created", "deal_id": office.portal.row("deal", order)["ID"]}
    assert (letter.state, bool(letter.settled_at)) == ("replayed", True)


def test_a_revoked_job_is_a_dead_letter_and_its_replay_runs_all_the_same(
    office: System, order: str
):
    person = Celery(broker=office.stack.redis.url).control
    call = ("create_deal", {"order_id": order, "title": "After all"})
    (job,) = office.send_all([call], countdown=3600)
    office.parked(job)
    eventually(lambda: person.revoke(job, reply=True, limit=1), within=PATIENCE)
    office.parking.release(job)
    letter = office.letter(job)

    assert (letter.error_type, letter.code) == ("Cancelled", "revoked")
    assert office.portal.rows("deal", order) == []

    office.operate("dlq", "replay", job)  # no worker is told of it but by us

    assert office.result(job)["outcome"] == "created"


def test_a_job_that_came_too_late_is_replayed_on_the_same_worker(office: System, order: str):
    call = ("create_deal", {"order_id": order, "title": "Late"})
    (job,) = office.send_all([call], expires="2020-01-01T00:00:00+00:00")
    letter = office.letter(job)
    office.operate("dlq", "replay", job)

    assert letter.code == "expired"
    assert office.result(job)["outcome"] == "created"
    assert office.open_letters() == []


def test_a_replay_of_a_job_that_took_effect_does_not_repeat_it(office: System, order: str):
    done = office.done("create_deal", order_id=order, title="Done")
    failure = refusal("crm.deal.update", "INVALID_ARG_VALUE", order, times=2)
    office.portal.arm(failure)
    # The same create with another title is an update of the deal; it dies half-way.
    job = office.send("create_deal", order_id=order, title="Done again")
    office.letter(job)
    office.operate("dlq", "replay", job)

    assert office.result(job) == {"outcome": "adopted", "deal_id": done["deal_id"]}
    assert office.portal.row("deal", order)["TITLE"] == "Done again"
    assert len(office.portal.calls("crm.deal.add", order)) == 1
