"""What faults do to a request: what the client sees, and what has happened all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import ValidationError

from sandbox.faults import Call, FaultPlan, read_faults
from sandbox.portal import Portal, PortalSettings, Request
from sandbox.replies import Reply

ADD = {"fields": {"ORIGIN_ID": "o-17"}}
BATCH = {"cmd": {f"c{n}": f"crm.deal.add?fields[ORIGIN_ID]=o-{n}" for n in range(5)}}


class Site:
    """A portal without HTTP, whose pauses are noted and not slept."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.portal = Portal(PortalSettings(seed=1), clock=lambda: 1000.0, sleep=self._pause)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def arm(self, *faults: dict[str, Any]) -> None:
        self.portal.faults.arm(read_faults(list(faults)))

    def call(self, method: str, params: Any) -> Reply:
        return asyncio.run(self.portal.answer(Request("1", "sandbox", method, params)))

    @property
    def deals(self) -> int:
        return len(self.portal.crm.deals)


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.mark.parametrize(
    ("fault", "seen", "deals"),
    [
        pytest.param({"kind": "status", "status": 502}, (502, ""), 0, id="status"),
        pytest.param({"kind": "status"}, (500, ""), 0, id="status-by-default"),
        pytest.param({"kind": "status", "after": True}, (500, ""), 1, id="status-after"),
        pytest.param(
            {"kind": "status", "status": 503, "code": "OVERLOAD_LIMIT"},
            (503, "OVERLOAD_LIMIT"),
            0,
            id="status-with-code",
        ),
        pytest.param(
            {"kind": "error", "code": "INTERNAL_SERVER_ERROR"},
            (500, "INTERNAL_SERVER_ERROR"),
            0,
            id="error",
        ),
        pytest.param(
            {"kind": "error", "code": "insufficient_scope"},
            (401, "insufficient_scope"),
            0,
            id="error-in-lower-case",
        ),
        pytest.param(
            {"kind": "error", "code": "ACCESS_DENIED", "status": 403},
            (403, "ACCESS_DENIED"),
            0,
            id="error-with-status",
        ),
        pytest.param(
            {"kind": "error", "code": "INTERNAL_SERVER_ERROR", "after": True},
            (500, "INTERNAL_SERVER_ERROR"),
            1,
            id="error-after",
        ),
        pytest.param({"kind": "non_json"}, (200, ""), 0, id="non-json"),
        pytest.param({"kind": "non_json", "after": True}, (200, ""), 1, id="non-json-after"),
        pytest.param({"kind": "refuse"}, "close", 0, id="refuse"),
        pytest.param({"kind": "refuse", "after": True}, "close", 0, id="refuse-is-always-before"),
        pytest.param({"kind": "lost_answer"}, "close", 1, id="lost-answer"),
        pytest.param({"kind": "lost_answer", "drop": "hang"}, "hang", 1, id="hang"),
        pytest.param({"kind": "lost_answer", "drop": "reset"}, "reset", 1, id="reset"),
    ],
)
def test_what_is_seen_and_what_happens(site: Site, fault: Any, seen: object, deals: int) -> None:
    site.arm(fault)
    reply = site.call("crm.deal.add", ADD)
    page = reply.headers.get("Content-Type", "").startswith("text/html")
    code = "" if page or reply.drop else json.loads(reply.body)["error"]

    assert (reply.drop or (reply.status, code)) == seen
    assert site.deals == deals


def test_a_fault_can_send_the_client_elsewhere(site: Site) -> None:
    site.arm({"kind": "status", "status": 302, "headers": {"Location": "https://new.example/"}})
    reply = site.call("crm.deal.add", ADD)

    assert (reply.status, reply.headers["Location"]) == (302, "https://new.example/")


@pytest.mark.parametrize("after", [False, True])
def test_slow_only_takes_time(site: Site, after: bool) -> None:
    site.arm({"kind": "slow", "seconds": 9, "after": after})

    assert site.call("crm.deal.add", ADD).status == 200
    assert site.pauses == [9]


def test_slow_and_another_fault_go_together(site: Site) -> None:
    site.arm({"kind": "slow", "seconds": 9}, {"kind": "refuse"})

    assert site.call("crm.deal.add", ADD).drop == "close"
    assert site.pauses == [9]


def test_a_partial_batch_runs_some_commands_and_loses_the_answer(site: Site) -> None:
    site.arm({"kind": "partial_batch", "commands": 2})
    reply = site.call("batch", BATCH)

    assert (reply.drop, site.deals) == ("close", 2)


def test_a_partial_batch_waits_for_a_batch(site: Site) -> None:
    site.arm({"kind": "partial_batch", "commands": 2})

    assert site.call("crm.deal.add", ADD).status == 200
    assert site.call("batch", BATCH).drop == "close"


def test_an_error_of_one_command_stands_in_result_error(site: Site) -> None:
    site.arm({"kind": "error", "code": "ERROR_CORE", "about": "o-3"})
    result = json.loads(site.call("batch", BATCH).body)["result"]

    assert list(result["result_error"]) == ["c3"]
    assert (len(result["result"]), site.deals) == (4, 4)


def test_an_error_of_a_command_can_come_after_its_effect(site: Site) -> None:
    site.arm({"kind": "error", "code": "ERROR_CORE", "about": "o-3", "after": True})
    result = json.loads(site.call("batch", BATCH).body)["result"]

    assert list(result["result_error"]) == ["c3"]
    assert site.deals == 5


def test_the_answer_of_a_whole_batch_is_lost_over_one_of_its_commands(site: Site) -> None:
    site.arm({"kind": "lost_answer", "method": "crm.deal.add", "about": "o-3"})

    assert site.call("crm.deal.add", ADD).status == 200
    assert site.call("batch", BATCH).drop == "close"
    assert site.deals == 6


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param({}, "crm.deal.add", id="anything"),
        pytest.param({"method": "CRM.deal.*"}, "crm.deal.add", id="pattern"),
        pytest.param({"method": "crm.contact.*"}, "", id="another-method"),
        pytest.param({"where": "alone"}, "crm.deal.add", id="alone"),
        pytest.param({"where": "batch"}, "", id="only-in-batches"),
        pytest.param({"about": "o-1"}, "crm.deal.add", id="part-of-the-origin"),
        pytest.param({"about": "o-2"}, "", id="another-origin"),
    ],
)
def test_a_fault_hits_what_it_matches(rule: dict[str, Any], expected: str) -> None:
    plan = FaultPlan()
    plan.arm(read_faults([{"kind": "refuse", **rule}]))
    strike = plan.strike(Call("crm.deal.add", ("o-17",)))

    assert (strike.request is not None) == bool(expected)


def test_a_record_is_hit_by_its_origin_when_only_its_id_is_sent(site: Site) -> None:
    site.call("crm.deal.add", ADD)
    site.arm({"kind": "refuse", "about": "o-17"})

    assert site.call("crm.deal.update", {"id": 1, "fields": {}}).drop == "close"


def test_a_fault_is_spent_after_its_times(site: Site) -> None:
    site.arm({"kind": "refuse", "times": 2})
    drops = [site.call("crm.deal.add", ADD).drop for _ in range(3)]

    assert drops == ["close", "close", ""]
    assert site.portal.summary()["faults_fired"] == {"refuse": 2}


def test_chances_come_from_the_seed() -> None:
    def draw(seed: int) -> list[bool]:
        plan = FaultPlan(seed)
        plan.arm(read_faults([{"kind": "refuse", "probability": 0.3}]))
        return [plan.strike(Call("crm.deal.add")).request is not None for _ in range(200)]

    assert draw(1) == draw(1) != draw(2)
    assert 30 < sum(draw(1)) < 90


def test_faults_come_after_the_bucket() -> None:
    site = Site()
    site.portal.settings = PortalSettings(burst=0)
    site.arm({"kind": "refuse"})

    assert site.call("crm.deal.add", ADD).status == 503
    assert site.portal.summary()["faults_fired"] == {}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"kind": "explode"}, id="kind"),
        pytest.param({"kind": "refuse", "tmies": 3}, id="misspelt"),
    ],
)
def test_a_misspelt_fault_is_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read_faults([fault])
