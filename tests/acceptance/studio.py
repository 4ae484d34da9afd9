"""A system that makes videos, and somebody who plays scenarios in it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from acceptance.system import System

from sandbox.rehearsal import Rehearsal
from sandbox.stack import Stack

# A lost create is looked for during 9 s of 15 minutes, a user asked for patience after 6 s of 10.
PACE = {"RETRY_TIME_SCALE": "0.01", "VISIBILITY_TIMEOUT": "3", "WORKER_THREADS": "32"}
FAST = {"KIE_RATE": "100", "KIE_QUERY_RATE": "100"}
QUICK_KIE = ("--fast", "--duration", "0.2", "--spread", "0.3", "--late", "1.5", "--latency", "0.01")


@contextmanager
def studio(folder: Path, **env: str) -> Iterator[System]:
    """Run what makes and delivers videos, but for the worker."""
    stack = Stack(folder, env={**PACE, **FAST, **env})
    system = System(stack)
    try:
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: system.caller)
            kie = pool.submit(stack.start_kie, *QUICK_KIE)
            bot = pool.submit(stack.start_telegram, "--latency", "0.01")
            api = pool.submit(stack.start_api)
        for started in (kie, bot, api):
            started.result()
        yield system
    finally:
        system.end()
        stack.stop(signal.SIGKILL, keep_files=True)


@contextmanager
def rehearsal(system: System) -> Iterator[Rehearsal]:
    """Lend somebody who plays scenarios in *system*."""
    player = Rehearsal(system.stack, lambda task, kwargs: system.send(task, **kwargs), system.grant)
    yield player
    player.end()
