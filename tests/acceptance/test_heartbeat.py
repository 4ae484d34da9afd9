"""The file that health checks look at: young while a process is well, old when it stands still."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from acceptance.system import PATIENCE, QUICK
from fixtures.waiting import eventually

from sandbox.stack import Process, Stack

EVERY = 2.0  # s; Celery's own interval between a worker's events, and more than beat's here


@pytest.fixture
def stack(tmp_path: Path):
    running = Stack(tmp_path, env={**QUICK, "HEARTBEAT_FILE": str(tmp_path / "heartbeat")})
    running.start_redis()
    yield running
    running.stop()


def worker(stack: Stack) -> Process:
    return stack.start_worker("worker", "-Q", "upkeep")


def beat(stack: Stack) -> Process:
    return stack.start_beat()


@pytest.mark.parametrize("start", [worker, beat])
def test_the_file_is_young_while_the_loop_turns_and_only_then(stack: Stack, start):
    file = stack.folder / "heartbeat"

    def age() -> float:
        return time.time() - file.stat().st_mtime

    process = start(stack)
    eventually(file.exists, within=PATIENCE)
    begun = file.stat().st_mtime
    eventually(lambda: file.stat().st_mtime > begun, within=PATIENCE)
    process.running.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: age() > 2 * EVERY, within=PATIENCE)
    finally:
        process.running.send_signal(signal.SIGCONT)

    eventually(lambda: age() < EVERY, within=PATIENCE)
