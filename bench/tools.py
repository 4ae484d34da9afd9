"""What the measurements share: a stack, a process's memory, Redis's own counters, tables."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from config.settings import settings
from sandbox.stack import Process, Stack


@contextmanager
def stack(**env: str) -> Iterator[Stack]:
    """A running Redis, and whatever is started on it; everything ends with the block."""
    made = Stack(Path(tempfile.mkdtemp(prefix="perennial-bench-")), env=dict(env))
    before = dict(os.environ)
    try:
        made.start_redis()
        os.environ.update(made.env)
        settings.cache_clear()
        yield made
    finally:
        made.stop()
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def celery_worker(made: Stack, app: str, name: str, *includes: str) -> Process:
    """Start a worker of *app* with a quiet log and these modules on top, and wait for it."""
    made.celery_app = app
    modules = ",".join(("bench.ready", *includes))
    try:
        return made.start_worker(name, "-l", "WARNING", "--without-mingle", "-I", modules)
    finally:
        made.celery_app = "tasks"


def wait(condition: Callable[[], object], within: float = 600.0, every: float = 0.05) -> float:
    """Wait for *condition*; return the seconds it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > within:
            raise TimeoutError(f"not within {within:.0f} s")
        time.sleep(every)
    return time.monotonic() - begun


def memory(process: Process) -> float:
    """The resident size of a process, in MB."""
    return _size(process, "VmRSS")


def peak_memory(process: Process) -> float:
    """The largest resident size of a process so far, in MB."""
    return _size(process, "VmHWM")


def cpu_time(process: Process) -> float:
    """The seconds that a process has kept a processor busy so far."""
    fields = Path(f"/proc/{process.running.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _size(process: Process, name: str) -> float:
    status = Path(f"/proc/{process.running.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def commands(client, before: Mapping[str, int] | None = None) -> dict[str, int]:
    """Calls of each Redis command so far, those inside scripts included; less *before*."""
    stats = client.info("commandstats")
    now = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
    return {name: calls - (before or {}).get(name, 0) for name, calls in now.items()}
