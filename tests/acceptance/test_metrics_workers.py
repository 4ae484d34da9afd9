"""What several workers, of threads and of processes, count together; read as Prometheus does."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from acceptance.system import PATIENCE, System
from acceptance.visits import new_order, opened
from fixtures.waiting import eventually
from prometheus_client.parser import text_string_to_metric_families

from sandbox.redis_server import free_port
from sandbox.stack import Stack

# Celery takes `-P prefork` for no choice at all, and ours is of threads. Few of each: both get some.
POOLS = {"threads": ("-P", "threads", "-c", "2"), "prefork": ("-P", "processes", "-c", "2")}
BUSY = 12  # jobs that are sent at a time
DOOMED = 3  # of them; they die of what the portal says
DEAL = "bitrix.create_deal"

Samples = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def firm(site: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system without a worker, and an API to be scraped."""
    with opened(tmp_path_factory.mktemp("firm"), site) as system:
        system.stack.ports["api"] = free_port()  # that of the site is where the portal calls
        system.stack.start_api()
        yield system


@pytest.fixture(autouse=True)
def day(firm: System) -> Iterator[None]:
    """Every test begins with open gates and ends with nobody at work."""
    yield
    firm.clear()
    for process in firm.stack.processes:
        if process.name in POOLS:
            process.kill()


def scrape(system: System) -> Samples:
    """Each sample by its name and the values of its labels, these in the order of their names."""
    bearer = {"Authorization": f"Bearer {system.stack.admin_token}"}
    address = f"{system.stack.url('api')}/metrics"
    page = httpx.get(address, headers=bearer, trust_env=False, timeout=PATIENCE)
    page.raise_for_status()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }


def more(now: Samples, before: Samples, *sample: str) -> float:
    """By how much a counter has grown."""
    return now.get(sample, 0) - before.get(sample, 0)


def work(system: System) -> None:
    """Have some deals made and some refused, and wait until all of it has ended."""
    orders = [f"metrics-{new_order()}" for _ in range(BUSY)]
    refused = {"kind": "error", "method": "crm.deal.add", "code": "NOT_FOUND", "times": 9}
    system.portal.arm(*(refused | {"about": order} for order in orders[:DOOMED]))
    jobs = system.send_all([("create_deal", {"order_id": o, "title": o}) for o in orders])
    eventually(lambda: len(system.ended(jobs)) == BUSY, within=PATIENCE)
    system.portal.disarm()


def test_all_workers_count_into_one_sum_and_none_is_lost_when_they_end(firm: System):
    before, rounds = scrape(firm), 0
    workers = firm.workers(POOLS)
    while rounds < 5 and not all(worker.says(" succeeded in ") for worker in workers):
        work(firm)
        rounds += 1
    both = [worker.says(" succeeded in ") for worker in workers]
    for worker in workers:
        assert worker.stop() == 0  # less than a second after its last job
    now = scrape(firm)

    assert both == [True, True]
    assert more(now, before, "jobs_total", "created", DEAL) == rounds * (BUSY - DOOMED)
    assert more(now, before, "jobs_total", "dead", DEAL) == rounds * DOOMED
    assert more(now, before, "job_duration_seconds_count", DEAL) == rounds * BUSY
    assert more(now, before, "job_duration_seconds_sum", DEAL) > 0
    errors = more(now, before, "job_errors_total", "permanent", "NotFound", "bitrix")
    assert errors == rounds * DOOMED
    assert more(now, before, "dead_letters_total", "NotFound", DEAL) == rounds * DOOMED
    assert now["dead_letters_open", DEAL] == rounds * DOOMED
    assert now["job_queue_length", "bitrix"] == now["jobs_unacknowledged",] == 0


def test_what_fails_what_waits_and_what_is_cancelled_is_told_apart(firm: System):
    before = scrape(firm)
    firm.worker("threads")
    order = f"metrics-{new_order()}"
    firm.done("create_deal", order_id=order, title="Soon won")
    firm.portal.arm({"kind": "non_json", "method": "crm.deal.update", "about": order, "times": 2})
    firm.done("update_deal", order_id=order, fields={"STAGE_ID": "WON"})  # at the third time
    firm.gate.pause(by="ann")
    waits = firm.send("create_deal", order_id=f"metrics-{new_order()}", title="Held up")
    firm.parked(waits, "Paused")
    parked = scrape(firm)
    firm.operate("parked", "cancel", waits)
    now = eventually(
        lambda: more(now := scrape(firm), before, "job_waits_total", "Paused", DEAL) and now,
        within=PATIENCE,
    )

    assert parked["jobs_parked", "Paused", "bitrix"] == 1
    assert 0 < parked["jobs_parked_oldest_age_seconds", "Paused", "bitrix"] < PATIENCE
    assert parked["gate_state", "bitrix"] == 3
    assert now["jobs_parked", "Paused", "bitrix"] == 0
    assert more(now, before, "jobs_total", "cancelled", DEAL) == 1  # the command has told it
    assert more(now, before, "jobs_total", "created", DEAL) == 1
    assert more(now, before, "jobs_total", "updated", "bitrix.update_deal") == 1
    assert more(now, before, "job_errors_total", "system", "InternalError", "bitrix") == 2
    assert more(now, before, "job_retries_total", "InternalError", "bitrix.update_deal") == 2
    assert not [sample for sample in now if sample[0] == "job_errors_total" and "Paused" in sample]
