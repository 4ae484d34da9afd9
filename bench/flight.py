"""Videos in flight on one worker: its memory, how soon they are delivered, what KIE is asked.

KIE's documented 2 creations and 10 questions a second carry some 900 videos at a time, so the
sandbox takes more, as KIE does for accounts whose limits it has raised. Telegram keeps its limits:
what ends, ends a little slower than those 30 messages a second.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console

from bench.tools import celery_worker, cpu_time, memory, peak_memory, stack, table, wait

VIDEOS = 10_000
USERS = 100
CREATED = 60  # videos a second that are begun here at least; the first ends when all are
ENDING = 22  # videos a second that end then
WARM_UP = 10.0  # s until the first job runs
QUESTIONS = 80  # a second, of an account whose limit is raised
SEED = 20261123


@dataclass(frozen=True, slots=True)
class Case:
    """Whether KIE can call back."""

    name: str
    called_back: bool


CASES = (Case("KIE calls back", True), Case("KIE is asked", False))


def run(console: Console, *, quick: bool = False) -> None:
    videos = 300 if quick else VIDEOS
    rows = []
    for number in range(len(CASES)):
        command = [sys.executable, "-m", "bench.flight", str(number), str(videos)]
        rows.append(json.loads(subprocess.check_output(command)))
    shown = table(
        f"{videos} videos in flight on one worker of 128 threads, sandbox KIE without limits\n"
        "(its documented 2 creations and 10 questions a second carry some 900), "
        f"{ENDING} end a second,\nTelegram with its limits",
        *("", *(case.name for case in CASES)),
    )
    for name in rows[0]:
        shown.add_row(name, *(row[name] for row in rows))
    console.print(shown)
    console.print()


def measure(case: Case, videos: int) -> dict[str, str]:
    raised = {"KIE_RATE": "1000", "KIE_QUERY_RATE": str(QUESTIONS)}
    public = {} if case.called_back else {"PUBLIC_URL": ""}
    with stack(WORKER_THREADS="128", **raised, **public) as made, made.redis.client() as redis:
        made.start_kie("--fast")
        made.start_telegram()
        made.start_api()
        lay_plans(made, videos)
        made.env["BENCH_SQL"] = str(made.folder / "sql")
        worker = celery_worker(made, "tasks", "w", "bench.sql")
        from storage import credits  # these read the environment when imported
        from tasks.video import generate

        for user in range(USERS):
            credits.grant(f"u{user}", videos // USERS + 1, "to begin with")
        before, stored = memory(worker), redis.info("memory")["used_memory"]
        reads, busy = redis.info("stats")["total_reads_processed"], cpu_time(worker)
        begun = time.monotonic()
        for number in range(videos):
            generate.delay(
                order_id=f"o{number}",
                user_id=f"u{number % USERS}",
                chat_id=number + 1,
                image_url="https://shop.example/photo.jpg",
                prompt=title(number),
            )
        flight = Flight(redis, made.url("telegram"), videos)
        wait(flight.landed, within=1_800, every=1.0)
        seconds = time.monotonic() - begun
        wait(lambda: not redis.hlen("unacked"))
        reads = redis.info("stats")["total_reads_processed"] - reads
        peak, busy = peak_memory(worker), cpu_time(worker) - busy
        worker.stop()
        statements = int((made.folder / "sql").read_text())
        kie, telegram = asked(made, "kie", "summary"), asked(made, "telegram", "summary")
        late = lateness(asked(made, "kie", "tasks"), asked(made, "telegram", "messages"))
        totals = credits.totals()
    methods = kie["by_method"]
    owed = totals["granted"] - totals["charged"] + totals["refunded"] - totals["balances"]
    return {
        "videos delivered": str(telegram["videos"]),
        "most in flight at once": str(flight.most),
        "s until all were in flight": f"{flight.full_at - begun:.0f}",
        "worker MB, at rest → at most": f"{before:.0f} → {peak:.0f}",
        "Redis KB per video in flight": f"{(flight.stored - stored) / flight.most / 1024:.2f}",
        "made → delivered s: median": f"{statistics.median(late):.2f}",
        "  95 of 100 within": f"{statistics.quantiles(late, n=20)[-1]:.2f}",
        "  the last": f"{max(late):.2f}",
        "requests to KIE per video": f"{kie['requests'] / videos:.2f}",
        "  create": f"{methods['createTask'] / videos:.2f}",
        "  look": f"{methods['recordInfo'] / videos:.2f}",
        "  download": f"{methods['download'] / videos:.2f}",
        "callbacks per video": f"{kie['callbacks']['sent'] / videos:.2f}",
        "worker's CPU ms per video": f"{1000 * busy / videos:.0f}",
        "SQL per video": f"{statements / videos:.1f}",
        "Redis per video": f"{reads / videos:.1f}",
        "limit answers": str(sum(kie["limit_answers"].values()) + telegram["limit_answers"]),
        "doubled": str(len(kie["duplicates"]) + len(telegram["duplicates"]["videos"])),
        "credits not accounted for": str(owed),
        "seconds": f"{seconds:.0f}",
    }


def title(number: int) -> str:
    """Return the prompt of a video; none is a part of another."""
    return f"Turn it slowly, video {number:05d}"


def lay_plans(made, videos: int) -> None:
    """Have the videos end in any order, at a steady rate, the first when all are begun."""
    rng = random.Random(SEED)
    filled = videos / CREATED
    plans = []
    for number in range(videos):
        ends = WARM_UP + filled + rng.uniform(0, videos / ENDING)
        plans.append({"about": title(number), "duration": ends - number / CREATED})
    httpx.post(f"{made.url('kie')}/_sandbox/plans", json=plans, trust_env=False).raise_for_status()


class Flight:
    """Watches the videos between their creation and their delivery."""

    def __init__(self, redis, telegram: str, videos: int) -> None:
        self.most = 0
        self.stored = 0
        self.full_at = 0.0
        self._redis = redis
        self._telegram = telegram
        self._videos = videos

    def landed(self) -> bool:
        """Note how many are in flight; True once all are delivered."""
        count = self._redis.zcard("perennial:parked:due")
        if count > self.most:
            self.most, self.full_at = count, time.monotonic()
            self.stored = self._redis.info("memory")["used_memory"]
        return not count and self._summary()["videos"] >= self._videos

    def _summary(self) -> dict[str, Any]:
        return httpx.get(f"{self._telegram}/_sandbox/summary", trust_env=False).json()


def asked(made, name: str, what: str) -> Any:
    """Return what the control API of a sandbox tells."""
    return httpx.get(f"{made.url(name)}/_sandbox/{what}", trust_env=False, timeout=60).json()


def lateness(tasks: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[float]:
    """Return the seconds from each video's success to its arrival."""
    due = {int(task["prompt"][-5:]) + 1: task["due"] for task in tasks}
    return [m["at"] - due[m["chat_id"]] for m in messages if m["kind"] == "video"]


if __name__ == "__main__":
    print(json.dumps(measure(CASES[int(sys.argv[1])], int(sys.argv[2]))))
