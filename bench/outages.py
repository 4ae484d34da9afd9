"""Four outages under 50 jobs a second: what is lost, what is doubled, how long it takes.

A caller whom `delay()` refuses tries again, as an application has to; from then on the job counts.
Recovered is when all is done that was accepted before the outage ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
from rich.console import Console

from bench import replicas
from bench.servers import Sentinels, postgres
from bench.tools import table, wait
from config.settings import settings
from reliability.dead_letters import Filter, Letter
from sandbox.namespaces import NoNamespacesError, network
from sandbox.rabbitmq_server import RabbitServer
from sandbox.stack import Stack

RATE = 50  # jobs per second
WORKERS, THREADS = 3, 16
BEFORE, AFTER = 10.0, 20.0  # s of load around the outage
CUT = 30.0  # s of the partition
QUIET = 150.0  # s without a new deal after which what is missing is lost; leases end in 100 s
# All waits are those of production; only the portal takes more, so that it is not what is measured.
SETTINGS = {
    "WORKER_THREADS": str(THREADS),
    "BITRIX_RATE": "200",
    "BITRIX_BURST": "1000",
}
# Short waits, to see that it runs. A back-off ends before a server has started again: letters.
QUICK = {"RETRY_TIME_SCALE": "0.05", "VISIBILITY_TIMEOUT": "3"}
PORTAL = ("--rate", "200", "--burst", "1000", "--latency", "0.02", "--webhook-target", "")
OUTAGES = {
    "sentinel": "failover: Sentinel's master, kill -9",
    "rabbitmq": "RabbitMQ, kill -9 and started again",
    "postgresql": "PostgreSQL crashes and is started again",
    "partition": f"one of three hosts cut off for {CUT:.0f} s",
}


def run(console: Console, *, quick: bool = False) -> None:
    shown = table(
        f"create_deal at {RATE}/s, {WORKERS} workers; an outage after {BEFORE:.0f} s",
        *("", "accepted", "refused first", "lost", "doubled", "dead letters"),
        *("longest pause s", "recovered after s"),
    )
    for outage, what in OUTAGES.items():
        command = [sys.executable, "-m", "bench.outages", outage, "quick" if quick else "full"]
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        shown.add_row(what, *json.loads(told.splitlines()[-1]))
    console.print(shown)
    console.print()
    replicas.run(console, quick=quick)


@dataclass
class Scene:
    """A system that is under load, and how to strike it; *strike* returns when all is up again."""

    stack: Stack
    strike: Callable[[float], None]


@dataclass
class Load:
    """Sends a deal each 20 ms, whatever becomes of the one before."""

    send: Callable[[str], object]
    accepted: list[tuple[float, str]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    stopped: bool = False

    def run(self) -> None:
        begun = time.monotonic()
        with ThreadPoolExecutor(64) as callers:  # a call that is refused may take its time
            for number in count():
                if self.stopped:
                    return
                callers.submit(self._until_accepted, f"order-{number}")
                time.sleep(max(0.0, begun + (number + 1) / RATE - time.monotonic()))

    def _until_accepted(self, order: str) -> None:
        while True:
            try:
                self.send(order)
            except Exception:  # noqa: BLE001 - whatever it is, the job is not accepted
                self.refused.add(order)
                time.sleep(0.5)
            else:
                self.accepted.append((time.monotonic(), order))
                return


@dataclass
class Watch:
    """Notes when deals appear in the portal."""

    portal: str
    seen: list[tuple[float, int]] = field(default_factory=list)
    stopped: bool = False

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30) as http:
            while not self.stopped:
                there = http.get(f"{self.portal}/_sandbox/summary").json()["deals"]
                self.seen.append((time.monotonic(), there))
                time.sleep(0.1)

    @property
    def deals(self) -> int:
        return self.seen[-1][1] if self.seen else 0

    def quiet_for(self) -> float:
        """Return how long no deal has come."""
        last = next((at for at, there in self.seen if there == self.deals), time.monotonic())
        return time.monotonic() - last

    def longest_pause(self, since: float, until: float) -> float:
        longest, last, there = 0.0, since, None
        for at, deals in self.seen:
            if since <= at <= until and deals != there:
                longest, last, there = max(longest, at - last), at, deals
        return longest

    def reached(self, deals: int) -> float:
        return next(at for at, there in self.seen if there >= deals)


def measure(outage: str, *, quick: bool) -> list[str]:
    """Put a system under load, strike it, and count."""
    SETTINGS.update(QUICK if quick else {})
    with SCENES[outage]() as scene, ThreadPoolExecutor(2) as aside:
        stack = scene.stack
        os.environ.update(stack.env)
        settings.cache_clear()
        from reliability.dead_letters import dead_letters
        from tasks.bitrix import create_deal  # reads the environment when imported

        load = Load(lambda order: create_deal.delay(order_id=order, title=order))
        watch = Watch(stack.env["BITRIX_WEBHOOK_URL"].split("/rest/")[0])
        sending, watching = aside.submit(load.run), aside.submit(watch.run)
        time.sleep(BEFORE)
        struck = time.monotonic()
        scene.strike(5.0 if quick else CUT)
        ended = time.monotonic()
        time.sleep(5.0 if quick else AFTER)
        load.stopped = True
        sending.result()
        wait(lambda: watch.deals >= len(load.accepted) or watch.quiet_for() > QUIET, every=0.2)
        time.sleep(5.0)  # a second deal would come late
        watch.stopped = True
        watching.result()
        with httpx.Client(trust_env=False) as http:
            summary = http.get(f"{watch.portal}/_sandbox/summary").json()
            letters = list(dead_letters().each(Filter(state="open")))
            undone = [letter for letter in letters if not _has_deal(http, stack, letter)]
    for letter in letters:
        print(f"{letter.message_id} {letter.error_type}: {letter.error_message}", file=sys.stderr)
    doubles = summary["duplicates"]["deals"]
    there = summary["deals"] - sum(row[2] - 1 for row in doubles)
    before = sum(1 for at, _ in load.accepted if at <= ended)
    lost = len(load.accepted) - there - len(undone)
    whole = not lost and not undone
    counts = (len(load.accepted), len(load.refused), lost, len(doubles), len(letters))
    return [
        *map(str, counts),
        f"{watch.longest_pause(struck, load.accepted[-1][0]):.1f}",
        f"{max(0.0, watch.reached(before) - ended):.1f}" if whole else "never",
    ]


def _has_deal(http: httpx.Client, stack: Stack, letter: Letter) -> bool:
    """Whether the order of a dead letter has its deal all the same."""
    order = letter.message_body.kwargs["order_id"]
    url = f"{stack.env['BITRIX_WEBHOOK_URL']}crm.deal.list"
    return bool(http.post(url, json={"filter": {"=ORIGIN_ID": order}}).json()["result"])


@contextmanager
def _stack(host: str = "127.0.0.1") -> Iterator[Stack]:
    made = Stack(Path(tempfile.mkdtemp(prefix="perennial-outage-")), env=dict(SETTINGS), host=host)
    try:
        yield made
    finally:
        made.stop(keep_files=bool(os.environ.get("KEEP")))


def _staff(made: Stack) -> None:
    """Start the portal and the workers."""
    made.start_portal(*PORTAL)
    quiet = ("-l", "INFO", "--without-mingle", "--without-gossip", "-Q", "bitrix")
    workers = [made.worker(f"w{number}", *quiet) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.wait_for(lambda at=worker: at.says(" ready."), "the word 'ready'")


@contextmanager
def sentinel() -> Iterator[Scene]:
    with ExitStack() as ending:
        made = ending.enter_context(_stack())
        redis = Sentinels(made.folder)
        ending.callback(redis.stop)
        redis.start()
        made.env["REDIS_URL"] = redis.url
        made.env["DATABASE_URL"] = ending.enter_context(postgres(made.folder)).url
        _staff(made)
        yield Scene(made, lambda _: redis.fail_over())


@contextmanager
def rabbitmq() -> Iterator[Scene]:
    with ExitStack() as ending:
        made = ending.enter_context(_stack())
        made.start_redis()
        broker = RabbitServer(made.folder)
        ending.callback(broker.stop)
        made.env["CELERY_BROKER_URL"] = broker.start().url
        made.env["DATABASE_URL"] = ending.enter_context(postgres(made.folder)).url
        _staff(made)

        def strike(_: float) -> None:
            broker.kill()
            broker.start()

        yield Scene(made, strike)


@contextmanager
def postgresql() -> Iterator[Scene]:
    with ExitStack() as ending:
        made = ending.enter_context(_stack())
        made.start_redis()
        server = ending.enter_context(postgres(made.folder))
        made.env["DATABASE_URL"] = server.url
        _staff(made)

        def strike(_: float) -> None:
            server.kill()
            time.sleep(2.0)
            server.start()

        yield Scene(made, strike)


@contextmanager
def partition() -> Iterator[Scene]:
    """Three hosts; what they share is on a fourth, from which one of them is cut off."""
    with ExitStack() as ending:
        net = ending.enter_context(network())
        made = ending.enter_context(_stack(net.address))
        made.redis.start(
            *("--appendonly", "yes", "--protected-mode", "no"),
            *("--bind", "127.0.0.1", net.address),
        )
        made.env["REDIS_URL"] = made.redis.url.replace("127.0.0.1", net.address)
        made.env["DATABASE_URL"] = ending.enter_context(postgres(made.folder, net.address)).url
        made.start_portal(*PORTAL)
        quiet = ("-l", "INFO", "--without-mingle", "--without-gossip", "-Q", "bitrix")
        for number in range(WORKERS):
            host = net.hosts[number] if number < len(net.hosts) else net.add()
            worker = made.worker(f"w{number}", *quiet)
            worker.command = net.command(host, worker.command)
            worker.start()
        for worker in made.processes[1:]:
            worker.wait_for(lambda at=worker: at.says(" ready."), "the word 'ready'")

        def strike(seconds: float) -> None:
            net.cut(net.hosts[0])
            time.sleep(seconds)
            net.heal(net.hosts[0])

        yield Scene(made, strike)


SCENES = {
    "sentinel": sentinel,
    "rabbitmq": rabbitmq,
    "postgresql": postgresql,
    "partition": partition,
}


def main() -> None:
    outage, size = sys.argv[1:3]
    try:
        row = measure(outage, quick=size == "quick")
    except (NoNamespacesError, FileNotFoundError) as missing:
        print(missing, file=sys.stderr)
        row = ["not here"] + [""] * 6
    print(json.dumps(row))


if __name__ == "__main__":
    main()
