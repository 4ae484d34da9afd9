"""Ramped replays on workers at work: what was mended comes back, what was not stops by itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from acceptance.system import PATIENCE, System
from acceptance.visits import new_order
from fixtures.waiting import eventually

from reliability.replays import Replays, Run


def fault(about: str) -> dict[str, Any]:
    """The portal refuses every create of these orders, for good."""
    refusal = {"kind": "error", "method": "crm.deal.add", "code": "NOT_FOUND", "times": 100_000}
    return refusal | {"about": about, "description": "Not found"}


def dead_group(system: System, count: int) -> tuple[str, list[str]]:
    """Have so many deals die of one cause; return their group and orders. The fault stays."""
    mark = f"ramp-{new_order()}"
    orders = [f"{mark}-{number}" for number in range(count)]
    system.portal.arm(fault(mark))
    jobs = system.send_all([("create_deal", {"order_id": o, "title": "A sofa"}) for o in orders])
    group = system.letter(jobs[0]).fingerprint
    eventually(lambda: len(system.open_letters()) == count, within=PATIENCE)
    return group, orders


def run_of(system: System) -> Run:
    """The only run there is."""
    (run,) = Replays(system.redis).each()
    return run


@pytest.fixture(autouse=True)
def no_former_runs(request):
    system = request.getfixturevalue(
        "office" if "office" in request.fixturenames else "empty_office"
    )
    for key in system.redis.scan_iter("perennial:replays:*"):
        system.redis.delete(key)


def test_what_was_mended_comes_back_whole(office: System):
    group, orders = dead_group(office, 130)
    office.portal.disarm()
    office.portal.begin()
    told = office.operate("dlq", "replay", "--group", group, "--ramp", "--yes", "--wait")
    adds = Counter(call["about"]["ORIGIN_ID"] for call in office.portal.calls("crm.deal.add"))

    assert "done" in told
    assert office.open_letters() == []
    assert adds == dict.fromkeys(orders, 1)
    assert (run_of(office).sent, run_of(office).ended, run_of(office).died) == (130, 130, 0)


def test_what_was_not_mended_stops_the_ramp_after_one(office: System):
    group, _ = dead_group(office, 30)
    office.portal.begin()
    outcome = office.stack.operate("dlq", "replay", "--group", group, "--ramp", "--yes", "--wait")

    assert outcome.returncode == 1
    assert "the failure came back" in outcome.stdout
    assert len(office.portal.calls("crm.deal.add")) == 1
    assert len(office.open_letters()) == 30
    assert run_of(office).sent == 1


def test_a_ramp_outlives_its_worker(empty_office: System):
    office = empty_office
    worker = office.worker("victim")
    group, orders = dead_group(office, 60)
    office.portal.disarm()
    office.portal.begin()
    # A create takes longer than it takes to see that the last step is sent, and to kill.
    slow = {"kind": "slow", "seconds": 2.5, "about": orders[0][:-1], "times": 100_000}
    office.portal.arm(slow)
    command = [*office.stack.celery(), "dlq", "replay", "--group", group, "--ramp", "--yes"]
    office.stack.process("replay", command).start()  # its end is not waited for
    eventually(lambda: sum(run.sent for run in Replays(office.redis).each()) > 11)
    worker.kill()
    assert run_of(office).is_running
    office.portal.disarm()
    office.worker("successor")
    run = eventually(lambda: not (at := run_of(office)).is_running and at, within=PATIENCE)

    assert (run.state, run.sent, run.ended, run.died) == ("done", 60, 60, 0)
    assert office.open_letters() == []
    assert [len(office.portal.rows("deal", order)) for order in orders] == [1] * 60
