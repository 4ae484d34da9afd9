"""`kill -9` of a worker at every point of a create: one deal, a result, nothing left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
from acceptance.system import PATIENCE, System
from acceptance.visits import new_order, opened
from fixtures.waiting import eventually

from sandbox.stack import Stack

# Where a job is when its worker dies → how that is brought about. The two that wait for the portal
# are its own faults; the others are in `pauses.py`. The last one stops the consumer.
POINTS = {
    "intended": "the row says so, the request has not left",
    "answered": "the portal has made the deal, its answer is on the way",
    "recorded": "the row says it is done, there is no result yet",
    "finished": "the result is there, the message is not acknowledged",
    "underway": "the portal has the request, and carries it out after the worker's death",
    "taken": "the message is stored as unacknowledged, and no job yet",
}
STATES = {"recorded": "done", "finished": "done", "taken": ""}  # at the kill; else `intended`
ADOPTED = {"answered", "underway"}  # the portal had to be asked, and knew
SLOW = 6.0  # seconds: there is a job to be brought to the last point and a worker to be killed
ROOMY = {"RETRY_TIME_SCALE": "0.1"}  # a lease of 10 s: within it a call takes effect
FAULTS = {
    "underway": {"kind": "slow", "seconds": SLOW},
    "answered": {"kind": "lost_answer", "drop": "hang"},
}


@dataclass(frozen=True)
class Crash:
    """What was left of the system when everything had settled, by point."""

    system: System
    orders: Mapping[str, str]
    jobs: Mapping[str, str]
    before: Mapping[str, str]  # the state of each effect at the moment of the kill


@pytest.fixture(scope="module", params=["a worker starts later", "another worker is on duty"])
def crash(
    request: pytest.FixtureRequest, site: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crash]:
    """Stop a worker with one job at every point, and kill it."""
    folder = tmp_path_factory.mktemp("crash")
    with opened(folder, site, **ROOMY) as system:
        system.portal.begin()
        on_duty = {"other": ()} if "duty" in request.param else {}
        victim, *others = system.workers(
            {"victim": ("-I", "tests.acceptance.pauses"), **on_duty}, PAUSES=str(folder)
        )
        for other in others:
            other.running.send_signal(signal.SIGSTOP)  # or it would take jobs of the victim
        orders = {point: f"{point}-{new_order()}" for point in POINTS}
        jobs = {}
        for point, order in orders.items():
            system.portal.arm(*arranged(point, order))
            jobs[point] = system.send("create_deal", order_id=order, title=point)
            eventually(lambda p=point, o=order: arrived(p, o, system), within=PATIENCE)
        before = {point: system.effect(order) for point, order in orders.items()}
        victim.kill()
        for other in others:
            other.running.send_signal(signal.SIGCONT)
        if not others:
            system.worker("other")
        system.calm()
        yield Crash(system, orders, jobs, before)


def arranged(point: str, order: str) -> list[dict]:
    if point not in FAULTS:
        return []
    return [FAULTS[point] | {"method": "crm.deal.add", "about": order}]


def arrived(point: str, order: str, system: System) -> bool:
    """Whether the job of *point* has come to that point."""
    calls = system.portal.calls("crm.deal.add", order)
    if point == "underway":
        return bool(calls)
    if point == "answered":
        return any(call["effect"] for call in calls)
    return (system.stack.folder / point).exists()


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_leaves_one_deal_and_a_result(crash: Crash, point: str):
    system, order, job = crash.system, crash.orders[point], crash.jobs[point]
    outcome = "adopted" if point in ADOPTED else "created"

    assert crash.before[point] == STATES.get(point, "intended")
    assert system.result(job) == {
        "outcome": outcome,
        "deal_id": system.portal.row("deal", order)["ID"],
    }
    assert system.effect(order) == "done"
    assert system.letters.get(job) is None
    (call,) = system.portal.calls("crm.deal.add", order)
    assert call["answered"] == (point not in ADOPTED)
