"""Twenty rounds of 500 deals, a `kill -9` of the worker in each: what is lost, what is doubled."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import time

import httpx
from rich.console import Console

from bench.tools import celery_worker, stack, table, wait

ROUNDS, JOBS = 20, 500
QUIET = 12.0  # seconds without a new deal after which what is missing is lost; leases end in 4.5 s
SEED = 20261122


def run(console: Console, *, quick: bool = False) -> None:
    rounds, jobs = (2, 200) if quick else (ROUNDS, JOBS)
    shown = table(
        f"{rounds} rounds of {jobs} create_deal, a kill -9 of a worker in each",
        *("", "accepted", "deals", "lost", "doubled", "seconds"),
    )
    for kind, name in (("ours", "our transport"), ("stock", "kombu's transport, same tasks")):
        command = [sys.executable, "-m", "bench.kills", kind, str(rounds), str(jobs)]
        shown.add_row(name, *json.loads(subprocess.check_output(command)))
    console.print(shown)
    console.print()


def measure(kind: str, rounds: int, jobs: int) -> list[str]:
    """Kill the worker somewhere in each round, start another, and wait until nothing moves."""
    rng = random.Random(SEED)
    limits = {"BITRIX_RATE": "200", "BITRIX_BURST": "1000"}
    drill = {"RETRY_TIME_SCALE": "0.05", "VISIBILITY_TIMEOUT": "3", "WORKER_THREADS": "32"}
    with stack(**limits, **drill) as made:
        options = ("--rate", "200", "--burst", "1000", "--latency", "0.02", "--webhook-target", "")
        made.start_portal(*options)
        application = {"ours": "tasks", "stock": "bench.stock"}[kind]
        importlib.import_module(application)  # the sender is on the same transport
        from tasks.bitrix import create_deal  # reads the environment when imported

        worker = celery_worker(made, application, "w")
        begun = time.monotonic()
        with httpx.Client(trust_env=False) as http:
            for number in range(rounds):
                for job in range(jobs):
                    order = str(number * jobs + job)
                    create_deal.delay(order_id=order, title=f"Order {order}")
                time.sleep(rng.uniform(0.0, 1.5))
                worker.kill()
                worker = celery_worker(made, application, "w")
                settle(http, made, (number + 1) * jobs)
            summary = http.get(f"{made.url('portal')}/_sandbox/summary").json()
        seconds = time.monotonic() - begun
    accepted, doubled = rounds * jobs, len(summary["duplicates"]["deals"])
    there = summary["deals"] - sum(row[2] - 1 for row in summary["duplicates"]["deals"])
    return [str(n) for n in (accepted, there, accepted - there, doubled, round(seconds))]


def settle(http: httpx.Client, made, wanted: int) -> None:
    """Wait for *wanted* deals, or until none has come for a while."""
    seen, since = -1, time.monotonic()

    def done() -> bool:
        nonlocal seen, since
        deals = http.get(f"{made.url('portal')}/_sandbox/summary").json()["deals"]
        if deals != seen:
            seen, since = deals, time.monotonic()
        return deals >= wanted or time.monotonic() - since > QUIET

    wait(done, every=0.1)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
