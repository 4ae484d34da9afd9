"""What a master that dies takes with it: writes it has confirmed and its replica has not.

Counted on the replica, with and without waiting for it (`WAIT`) as our transport does.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from redis.exceptions import RedisError
from rich.console import Console

from bench.tools import table, wait
from sandbox.redis_server import RedisServer

ROUNDS, WRITERS = 20, 16
SEED = 20261122


def run(console: Console, *, quick: bool = False) -> None:
    rounds = 4 if quick else ROUNDS
    shown = table(
        f"{rounds} kill -9 of a master under {WRITERS} writers, its replica is looked at",
        *("", "confirmed", "missing", "rounds with a loss"),
    )
    for name, waits in (("confirmed by the master", False), ("and by its replica (ours)", True)):
        rng = random.Random(SEED)
        losses = [_round(rng, waits=waits) for _ in range(rounds)]
        confirmed, missing = (sum(counts) for counts in zip(*losses, strict=True))
        hit = sum(1 for _, lost in losses if lost)
        shown.add_row(name, f"{confirmed:,}", str(missing), str(hit))
    console.print(shown)
    console.print()


def _round(rng: random.Random, *, waits: bool) -> tuple[int, int]:
    """Return how many writes were confirmed, and how many of them the replica has not."""
    with tempfile.TemporaryDirectory(prefix="perennial-replica-") as folder:
        places = [Path(folder) / name for name in ("master", "replica")]
        for place in places:
            place.mkdir()
        at_once = ("--repl-diskless-sync-delay", "0")
        master = RedisServer(places[0]).start("--appendonly", "yes", *at_once)
        follow = ("--replicaof", "127.0.0.1", str(master.port), "--appendonly", "yes")
        replica = RedisServer(places[1]).start(*follow)
        try:
            with replica.client() as client:
                wait(lambda: client.info("replication")["master_link_status"] == "up", within=30)
                confirmed = _written(master, rng.uniform(0.3, 0.8), waits=waits)
                time.sleep(0.3)  # what is on its way arrives
                there = set(client.lrange("jobs", 0, -1))
        finally:
            master.stop()
            replica.stop()
    return len(confirmed), len(confirmed - there)


def _written(master: RedisServer, seconds: float, *, waits: bool) -> set[str]:
    """Write until the master is killed, after *seconds*; return what was confirmed."""
    confirmed: list[str] = []

    def write(number: int) -> None:
        with master.client() as client, suppress(RedisError, OSError):
            for job in range(1_000_000):
                with client.pipeline(transaction=False) as pipe:
                    pipe.lpush("jobs", f"{number}-{job}")
                    if waits:
                        pipe.execute_command("WAIT", 1, 1000)
                    replies = pipe.execute()
                if not waits or replies[-1]:
                    confirmed.append(f"{number}-{job}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    time.sleep(seconds)
    master.stop()
    for writer in writers:
        writer.join()
    return set(confirmed)
