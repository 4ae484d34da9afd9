"""2,000 dead deals of one cause, sent again step by step: mended, and not mended.

The portal has its documented 2 requests a second and takes a burst of 4 instead of 50, which would
swallow them all at once: so it tells how much of the budget a ramp uses.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import httpx
from rich.console import Console

from bench.tools import celery_worker, stack, table, wait
from reliability.dead_letters import DeadLetters
from reliability.replays import Replays

JOBS, QUICK = 2_000, 300
BURST = 4  # requests
OPERATIONS = 100.0  # a second: 2 requests, each a batch of 50
FAULT = {"kind": "error", "method": "crm.deal.add", "code": "NOT_FOUND", "times": 1_000_000}


def run(console: Console, *, quick: bool = False) -> None:
    jobs = QUICK if quick else JOBS
    shown = table(
        f"{jobs:,} dead deals of one cause, one group replayed with --ramp",
        *("the cause is", "letters", "sent again", "letters left", "doubled deals"),
        *("share of the budget", "limit answers", "the ramp says", "s"),
    )
    for cause in ("mended", "still there"):
        command = [sys.executable, "-m", "bench.repairs", cause, str(jobs)]
        shown.add_row(cause, *json.loads(subprocess.check_output(command)))
    console.print(shown)
    console.print()


def measure(cause: str, jobs: int) -> list[str]:
    with stack(BITRIX_BURST=str(BURST), WORKER_THREADS="128") as made:
        made.start_portal("--latency", "0.05", "--burst", str(BURST), "--webhook-target", "")
        celery_worker(made, "tasks", "w")
        from tasks.bitrix import create_deal  # reads the environment when imported

        portal = httpx.Client(base_url=f"{made.url('portal')}/_sandbox", trust_env=False)
        portal.post("/faults", json=[FAULT]).raise_for_status()
        with made.redis.client() as redis:
            letters, runs = DeadLetters(redis), Replays(redis)
            for number in range(jobs):
                create_deal.delay(order_id=str(number), title=f"Order {number}", amount=number)
            wait(lambda: letters.count() == jobs, within=900, every=0.5)
            (group,) = letters.groups()
            if cause == "mended":
                portal.delete("/faults")
            before = portal.get("/summary").json()
            made.operate("dlq", "replay", "--group", group.fingerprint, "--ramp", "--yes")
            samples = watch(portal, runs)
            (ramp,) = runs.each()
            after = portal.get("/summary").json()
            left = letters.count()
    return [
        f"{jobs:,}",
        f"{ramp.sent:,}",
        f"{left:,}",
        str(len(after["duplicates"]["deals"])),
        share(samples, jobs),
        str(after["limit_answers"] - before["limit_answers"]),
        ramp.state,
        f"{samples[-1][0] - samples[0][0]:.0f}",
    ]


def watch(portal: httpx.Client, runs: Replays) -> list[tuple[float, int]]:
    """Return (time, deals there are) as it goes on, until the ramp is over."""
    samples: list[tuple[float, int]] = []

    def over() -> bool:
        summary: dict[str, Any] = portal.get("/summary").json()
        samples.append((time.monotonic(), summary["deals"]))
        return not next(iter(runs.each())).is_running

    wait(over, within=900, every=0.25)
    return samples


def share(samples: list[tuple[float, int]], jobs: int) -> str:
    """Return the deals made of those that the budget allows, but for the first and the last few."""
    inside = [(at, deals) for at, deals in samples if jobs * 0.1 <= deals <= jobs * 0.98]
    if len(inside) < 2:
        return "–"
    (begin, first), (end, last) = inside[0], inside[-1]
    return f"{(last - first) / (end - begin) / OPERATIONS:.0%}"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
