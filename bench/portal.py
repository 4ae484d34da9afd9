"""Deals per second against a portal with the documented bucket: 2 requests/s, 50 at once.

SQL/job counts statements, BEGIN and COMMIT; Redis/job counts what Redis reads from the network for
a job from `delay()` to its acknowledgement, with results and events on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import httpx
from rich.console import Console

from bench.tools import celery_worker, peak_memory, stack, table, wait

BURST = 2_500  # 50 requests of 50 operations: what the bucket carries at once


@dataclass(frozen=True, slots=True)
class Case:
    """One way to send the same deals."""

    name: str
    jobs: int
    workers: int = 1
    coalesce: bool = True


CASES = (
    Case("coalesced, one worker", 5_000),
    Case("coalesced, two workers share the budget", 5_000, workers=2),
    Case("one call per request", 250, coalesce=False),
)


def run(console: Console, *, quick: bool = False) -> None:
    shown = table(
        "create_deal against the sandbox at 2 requests/s, burst 50, latency 50 ms",
        *("", "jobs", "s", "ops/s once the bucket is spent", "requests", "limit answers"),
        *("doubled", "worker MB", "SQL/job", "Redis/job"),
    )
    for number, case in enumerate(CASES):
        jobs = min(case.jobs, 600) if quick else case.jobs
        command = [sys.executable, "-m", "bench.portal", str(number), str(jobs)]
        row = json.loads(subprocess.check_output(command))
        shown.add_row(case.name, *(str(value) for value in row))
    console.print(shown)
    console.print()


def measure(case: Case, jobs: int) -> list[str]:
    coalesce = "true" if case.coalesce else "false"
    with stack(BITRIX_COALESCE=coalesce, WORKER_THREADS="128") as made:
        made.start_portal("--latency", "0.05", "--webhook-target", "")
        counts = [made.folder / f"sql-{n}" for n in range(case.workers)]
        workers = []
        for n, file in enumerate(counts):
            made.env["BENCH_SQL"] = str(file)
            workers.append(celery_worker(made, "tasks", f"w{n}", "bench.sql"))
        from tasks.bitrix import create_deal  # reads the environment when imported

        with made.redis.client() as redis, httpx.Client(trust_env=False) as http:
            reads = redis.info("stats")["total_reads_processed"]
            begun = time.monotonic()
            for number in range(jobs):
                create_deal.delay(order_id=str(number), title=f"Order {number}", amount=number)
            samples = []

            def everything_there() -> bool:
                summary = http.get(f"{made.url('portal')}/_sandbox/summary").json()
                samples.append((time.monotonic(), summary["deals"]))
                return bool(summary["deals"] >= jobs)

            wait(everything_there, within=1_800, every=0.25)
            seconds = time.monotonic() - begun
            wait(lambda: not redis.hlen("unacked"))
            reads = redis.info("stats")["total_reads_processed"] - reads
            summary = http.get(f"{made.url('portal')}/_sandbox/summary").json()
        memory = max(peak_memory(worker) for worker in workers)
        for worker in workers:
            worker.stop()
        statements = sum(int(file.read_text()) for file in counts)
    return [
        str(jobs),
        f"{seconds:.1f}",
        f"{steady(samples, case, jobs):.1f}",
        str(summary["requests"]),
        str(summary["limit_answers"]),
        str(len(summary["duplicates"]["deals"])),
        f"{memory:.0f}",
        f"{statements / jobs:.2f}",
        f"{reads / jobs:.2f}",
    ]


def steady(samples: list[tuple[float, int]], case: Case, jobs: int) -> float:
    """Operations per second from the end of the burst to just before the end of the load."""
    burst = BURST if case.coalesce else 50
    inside = [(at, deals) for at, deals in samples if burst * 1.04 <= deals <= jobs * 0.98]
    if len(inside) < 2:
        return float("nan")
    (begin, first), (end, last) = inside[0], inside[-1]
    return (last - first) / (end - begin)


if __name__ == "__main__":
    print(json.dumps(measure(CASES[int(sys.argv[1])], int(sys.argv[2]))))
