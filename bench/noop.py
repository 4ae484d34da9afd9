"""How many jobs a worker gets through when the jobs do nothing, and at what cost in round trips."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from rich.console import Console

from bench.tools import celery_worker, commands, stack, table, wait

PAIRS, JOBS, THREADS = 5, 6_000, 64


def run(console: Console, *, quick: bool = False) -> None:
    """Run both in turn, on a Redis of the same kind, results off, events on, acks late."""
    pairs, jobs = (2, 1_000) if quick else (PAIRS, JOBS)
    ours, bare = [], []
    for _ in range(pairs):
        bare.append(apart("bare", jobs))
        ours.append(apart("ours", jobs))
    ratios = [mine["rate"] / theirs["rate"] for mine, theirs in zip(ours, bare, strict=True)]
    shown = table(
        f"No-op throughput: {jobs} jobs, {THREADS} threads, {pairs} paired runs, medians",
        *("", "jobs/s", "min–max", "network reads/job", "commands/job", "publish/s"),
    )
    for name, runs in (("bare Celery, stock transport", bare), ("operation, our transport", ours)):
        rates = [run["rate"] for run in runs]
        shown.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}–{max(rates):,.0f}",
            *(f"{statistics.median(r[n] for r in runs):.2f}" for n in ("reads", "commands")),
            f"{statistics.median(r['publish'] for r in runs):,.0f}",
        )
    console.print(shown)
    console.print(f"ratio, pair by pair: median {statistics.median(ratios):.2f}, "
                  f"min {min(ratios):.2f}, max {max(ratios):.2f}\n")  # fmt: skip


def measure(kind: str, jobs: int) -> dict[str, float]:
    """Publish first, then time one worker from its first job to its last acknowledgement."""
    with stack(KEEP_RESULTS="false", WORKER_THREADS=str(THREADS)) as made:
        from bench import bare, ours  # the applications read the environment when imported

        task = {"bare": bare.noop, "ours": ours.noop}[kind]
        application = {"bare": "bench.bare", "ours": "tasks"}[kind]
        begun = time.monotonic()
        for number in range(jobs):
            task.apply_async(kwargs={"order_id": str(number)}, queue="bitrix")
        publish = jobs / (time.monotonic() - begun)
        with made.redis.client() as client:
            before, reads = commands(client), client.info("stats")["total_reads_processed"]
            celery_worker(made, application, "w", f"bench.{kind}")
            first = time.monotonic()
            left = client.llen("bitrix")
            wait(lambda: not client.llen("bitrix") and not client.hlen("unacked"), every=0.02)
            seconds = time.monotonic() - first
            after = commands(client, before)
            done_reads = client.info("stats")["total_reads_processed"] - reads
    return {
        "rate": left / seconds,
        "publish": publish,
        "commands": sum(after.values()) / jobs,
        "reads": done_reads / jobs,
    }


def apart(kind: str, jobs: int) -> dict[str, float]:
    """Measure in a process of its own: an application reads its settings once."""
    command = [sys.executable, "-m", "bench.noop", kind, str(jobs)]
    measured: dict[str, float] = json.loads(subprocess.check_output(command))
    return measured


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
