"""Videos in flight on one worker: its memory, how soon they are delivered, what KIE is asked.

KIE's documented 2 creations and 10 questions a second carry some 900 videos at a time. The sandbox
takes more, as KIE does from accounts whose limits it has raised; Telegram keeps its limits.
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
ENDED = 3_000  # of them are delivered while all others are in flight; that is what is measured
USERS = 100
ORDERED = 45  # videos a second; the first ends when all are in flight
BEGUN_WITHIN = 10.0  # s that a video may take from its order to KIE
ENDING = 8  # videos a second that end then: four times what KIE's documented limit lets begin
QUESTIONS = 30  # a second that KIE is asked at most
SEED = 20261123


@dataclass(frozen=True, slots=True)
class Case:
    """Whether KIE can call back."""

    name: str
    called_back: bool


CASES = (Case("KIE calls back", True), Case("KIE is asked only", False))


def run(console: Console, *, quick: bool = False) -> None:
    videos = 300 if quick else VIDEOS
    rows = []
    for number in range(len(CASES)):
        command = [sys.executable, "-m", "bench.flight", str(number), str(videos)]
        rows.append(json.loads(subprocess.check_output(command)))
    shown = table(
        f"{videos:,} videos in flight on one worker; {ended(videos):,} end, {ENDING} a second",
        *("", *(case.name for case in CASES)),
    )
    for name in rows[0]:
        shown.add_row(name, *(row[name] for row in rows))
    console.print(shown)
    console.print(
        "Telegram has its limits, KIE raised ones: any number of creations, not 2 a second, and\n"
        f"{QUESTIONS} questions a second, not 10; the documented ones carry some 900 videos.\n"
    )


def ended(videos: int) -> int:
    """Return how many of so many are delivered before the run ends."""
    return videos * ENDED // VIDEOS


def measure(case: Case, videos: int) -> dict[str, str]:
    raised = {"KIE_RATE": "1000", "KIE_QUERY_RATE": str(QUESTIONS), "WORKER_THREADS": "128"}
    reached = {} if case.called_back else {"PUBLIC_URL": ""}
    with stack(**raised, **reached) as made, made.redis.client() as redis:
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
        at_rest = memory(worker)
        reads = redis.info("stats")["total_reads_processed"]
        flight = Flight(made, redis, videos)
        begun = time.monotonic()
        for number in range(1, videos + 1):
            time.sleep(max(0.0, begun + number / ORDERED - time.monotonic()))
            generate.delay(
                order_id=f"o{number}",
                user_id=f"u{number % USERS}",
                chat_id=number,
                image_url="https://shop.example/photo.jpg",
                prompt=prompt(number),
            )
        flown = cpu_time(worker)
        wait(flight.is_over, within=1_800, every=2.0)
        seconds = time.monotonic() - begun
        reads = redis.info("stats")["total_reads_processed"] - reads
        busy, at_most = cpu_time(worker), peak_memory(worker)
        worker.stop()
        statements = int((made.folder / "sql").read_text())
        kie, telegram = tell(made, "kie", "summary"), tell(made, "telegram", "summary")
        tasks = tell(made, "kie", "tasks")
        late = lateness(tasks, tell(made, "telegram", "messages"))
        totals = credits.totals()
    made_ones = [task for task in tasks if task["downloads"]]
    looks = [task["looks"] for task in made_ones]
    owed = totals["granted"] - totals["charged"] + totals["refunded"] - totals["balances"]
    limited = [*kie["limit_answers"].values(), telegram["limit_answers"]]
    doubled = [*kie["duplicates"], *telegram["duplicates"]["videos"]]
    return {
        "delivered": f"{telegram['videos']:,}",
        "most in flight at once": f"{flight.most:,}",
        "s until they were": f"{flight.full_at - begun:.0f}",
        "worker MB at rest": f"{at_rest:.0f}",
        "worker MB at most": f"{at_most:.0f}",
        "Redis KB per video in flight": f"{flight.stored / flight.most / 1024:.1f}",
        "s from success to delivered: median": f"{statistics.median(late):.2f}",
        "  95 of 100 within": f"{statistics.quantiles(late, n=20)[-1]:.2f}",
        "  the last within": f"{max(late):.2f}",
        "requests to KIE per delivered video": f"{statistics.mean(looks) + 2:.2f}",
        "  to create and to download it": "2",
        "  to look at it: mean": f"{statistics.mean(looks):.2f}",
        "  to look at it: most": str(max(looks)),
        "callbacks from KIE per video": f"{kie['callbacks']['sent'] / telegram['videos']:.2f}",
        "limit answers of KIE and Telegram": str(sum(limited)),
        "made or sent twice": str(len(doubled)),
        "granted − charged + refunded − balances": str(owed),
        "worker's share of a processor": f"{(busy - flown) / (seconds - videos / ORDERED):.2f}",
        "SQL in all, per video": f"{statements / videos:.1f}",
        "Redis in all, per video": f"{reads / videos:.1f}",
        "s in all": f"{seconds:.0f}",
    }


def prompt(number: int) -> str:
    """Return what a video is known by at KIE; none is a part of another."""
    return f"Turn it slowly, number {number:05d}"


def lay_plans(made, videos: int) -> None:
    """Have the oldest end at a steady rate once all are in flight, and the others after the run."""
    rng = random.Random(SEED)
    all_begun = videos / ORDERED + BEGUN_WITHIN
    plans = []
    for number in range(1, videos + 1):
        end = all_begun + number / ENDING + rng.uniform(0, 1)
        plans.append({"about": prompt(number), "duration": end - number / ORDERED})
    url = f"{made.url('kie')}/_sandbox/plans"
    httpx.post(url, json=plans, trust_env=False, timeout=60).raise_for_status()


class Flight:
    """What KIE has begun and Telegram has not got yet."""

    def __init__(self, made, redis, videos: int) -> None:
        self.most, self.full_at = 0, 0.0
        self.stored = 0  # bytes, when there were most
        self._made = made
        self._redis = redis
        self._videos = videos
        self._empty = redis.info("memory")["used_memory"]

    def is_over(self) -> bool:
        """Note how many are in flight; True once as many have arrived as are to end."""
        arrived = tell(self._made, "telegram", "summary")["videos"]
        flying = tell(self._made, "kie", "summary")["creates"] - arrived
        if flying > self.most:
            self.most, self.full_at = flying, time.monotonic()
            self.stored = self._redis.info("memory")["used_memory"] - self._empty
        return arrived >= ended(self._videos)


def tell(made, name: str, what: str) -> Any:
    """Return what the control API of a sandbox tells."""
    return httpx.get(f"{made.url(name)}/_sandbox/{what}", trust_env=False, timeout=60).json()


def lateness(tasks: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[float]:
    """Return the seconds from each video's success at KIE to its arrival in its chat."""
    due = {int(task["prompt"].rpartition(" ")[2]): task["due"] for task in tasks}
    return [one["at"] - due[one["chat_id"]] for one in messages if one["kind"] == "video"]


if __name__ == "__main__":
    print(json.dumps(measure(CASES[int(sys.argv[1])], int(sys.argv[2]))))
