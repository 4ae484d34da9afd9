"""Redis dies with work in flight, and comes back: the worker lives on, nothing lost or doubled."""

from __future__ import annotations

import time

import pytest
from acceptance.system import System
from fixtures.waiting import eventually


@pytest.mark.parametrize("down", [0.0, 3.0], ids=["restarted at once", "down for a while"])
def test_redis_is_killed_while_jobs_run_and_wait(empty_office: System, order: str, down: float):
    office = empty_office
    orders = [f"{order}-{n:02}" for n in range(48)]
    worker = office.worker(BITRIX_COALESCE="false", WORKER_THREADS="12")
    pid = worker.running.pid
    slow = {"kind": "slow", "seconds": 0.7, "method": "crm.deal.add", "about": order, "times": 99}
    office.portal.arm(slow)
    jobs = office.send_all([("create_deal", {"order_id": one, "title": "x"}) for one in orders])
    eventually(lambda: len(office.portal.calls("crm.deal.add", order)) >= 12)
    waiting = office.redis.llen("bitrix")
    office.stack.redis.stop()
    time.sleep(down)  # the outage itself
    office.stack.start_redis()
    outcomes = office.results(jobs)

    assert waiting > 0
    assert {outcome["outcome"] for outcome in outcomes} <= {"created", "adopted"}
    assert [len(office.portal.rows("deal", one)) for one in orders] == [1] * len(orders)
    assert (worker.alive, worker.running.pid) == (True, pid)
    assert office.open_letters() == []


@pytest.mark.parametrize(
    "refusal",
    [{"min-replicas-to-write": 1}, {"maxmemory": 1}],
    ids=["it takes no writes", "it is full"],
)
def test_a_worker_that_connects_to_a_redis_that_refuses_it_waits(empty_office, order, refusal):
    office = empty_office
    worker = office.worker()
    pid, begun = worker.running.pid, worker.log.stat().st_size
    (name, value) = next(iter(refusal.items()))
    before = office.redis.config_get(name)[name]
    office.redis.config_set(name, value)
    try:
        office.redis.client_kill_filter(_type="normal", skipme=True)
        eventually(lambda: worker.says("Frequent restarts detected", begun))
    finally:
        office.redis.config_set(name, before)

    assert office.done("create_deal", order_id=order, title="x")["outcome"] == "created"
    assert (worker.alive, worker.running.pid) == (True, pid)


def test_a_caller_hears_quickly_that_redis_is_away(empty_office: System, order: str):
    office, call = empty_office, ("create_deal", {"order_id": order, "title": "Lost?"})
    office.stack.redis.stop()
    (refused,) = office.try_all([call])
    office.stack.start_redis()
    (accepted,) = office.try_all([call])
    queued = office.leftovers()
    office.redis.delete("bitrix")

    assert refused["error"] == "OperationalError"
    assert "refused" in refused["text"]
    assert refused["seconds"] < 5
    assert "job" in accepted
    assert queued == {"bitrix": 1}
