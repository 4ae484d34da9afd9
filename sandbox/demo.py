"""`make demo`: the main job, on this machine, with everything that can go wrong going wrong.

A sample shop sells orders to users; its jobs sync them to a simulated Bitrix24 portal that loses
answers, breaks down and refuses things, while a worker is killed at work. At the end the portal's
own journal must agree with the shop: nothing lost, nothing doubled.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from config.settings import settings
from sandbox.load import Call, waves
from sandbox.report import Report, compare, print_report
from sandbox.stack import NotReadyError, Process, Stack

PATIENCE = 75.0  # seconds for the load to settle; the whole demo promises two minutes
SENDERS = 8  # customers at a time
LOOK_EVERY = 40  # requests; a look costs some ten round trips to Redis

# Waits that are ours are shortened so that a demo is short; what the portal asks for is not.
DRILL = {"RETRY_TIME_SCALE": "0.1", "VISIBILITY_TIMEOUT": "6", "WORKER_THREADS": "128"}

# Faults of whole requests strike by chance, so that they fall between good ones as they do outside.
FAULTS: Sequence[Mapping[str, Any]] = (
    {"kind": "lost_answer", "method": "crm.deal.add", "times": 4, "probability": 0.02},
    {"kind": "lost_answer", "method": "crm.contact.add", "times": 3, "probability": 0.05},
    {"kind": "partial_batch", "method": "batch", "commands": 7, "times": 3, "probability": 0.08},
    {"kind": "refuse", "times": 4, "probability": 0.05},
    {"kind": "status", "status": 502, "times": 3, "probability": 0.05},
    {"kind": "non_json", "times": 2, "probability": 0.05},
    {"kind": "slow", "seconds": 0.7, "times": 5, "probability": 0.1},
    {"kind": "error", "method": "crm.deal.add", "code": "INTERNAL_SERVER_ERROR", "times": 4},
    {"kind": "error", "method": "crm.deal.update", "code": "ERROR_UNEXPECTED_ANSWER", "times": 4},
)
OUTAGE: Sequence[Mapping[str, Any]] = ({"kind": "status", "status": 503, "times": 4},)
KILLED_AT, OUTAGE_AT = 2, 4  # waves


@dataclass
class Demo:
    """One run: start, load with faults, settle, compare."""

    stack: Stack
    console: Console
    jobs: dict[str, str] = field(default_factory=dict)  # accepted job → task
    refused: int = 0

    def __post_init__(self) -> None:
        self.portal = httpx.Client(base_url=self.stack.url("portal"), timeout=10, trust_env=False)
        self.shop = httpx.Client(base_url=self.stack.url("shop"), timeout=30, trust_env=False)

    def start(self) -> Process:
        """Bring everything up; what does not depend on each other starts together."""
        stack = self.stack
        with self.console.status("starting Redis, portal, shop, API, worker and Flower …"):
            stack.start_redis()
            os.environ.update(stack.env)  # this process looks at the same Redis
            settings.cache_clear()
            starts = (stack.start_portal, stack.start_shop, stack.start_api, stack.start_flower)
            with ThreadPoolExecutor() as pool:
                others = [pool.submit(start) for start in starts]
                worker = stack.start_worker()
                for other in others:
                    other.result()
        return worker

    def run(self, worker: Process) -> bool:
        """Send the load wave by wave, with faults armed and the worker killed at work.

        Returns whether everything had settled in time.
        """
        self.arm(FAULTS)
        load = waves()
        with self._progress() as progress, ThreadPoolExecutor(SENDERS) as pool:
            sent = progress.add_task("sent", total=sum(map(len, load)), news="")
            done = progress.add_task("finished", total=None, news="")
            for number, wave in enumerate(load):
                if number == KILLED_AT:
                    progress.console.print("  kill -9 of the worker, another one starts")
                    worker.kill()
                    worker.start()
                if number == OUTAGE_AT:
                    progress.console.print("  the portal breaks down")
                    self.arm(OUTAGE)
                for n, _ in enumerate(pool.map(self.send, wave)):
                    progress.advance(sent)
                    if n % LOOK_EVERY == 0:
                        self.show(progress, done)
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if self.show(progress, done):
                    return True
                time.sleep(0.25)
        return False

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  [bold]{task.description:<9}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[news]}"),
            console=self.console,
        )

    def send(self, call: Call) -> None:
        """Call the shop as its customer; remember the job it accepted."""
        answer = self.shop.request(call.method, call.path, json=call.body)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            self.refused += 1
            return
        answer.raise_for_status()
        self.jobs[answer.json()["job"]] = call.task

    def arm(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """Tell the portal what to do wrong."""
        self.portal.post("/_sandbox/faults", json=list(faults)).raise_for_status()

    def show(self, progress: Progress, row: TaskID) -> bool:
        """Update the display. True when every accepted job has ended and nothing waits."""
        report = Report.now(self.jobs)
        progress.update(row, completed=report.ended, total=len(self.jobs), news=report.news)
        return report.settled


def main() -> None:
    """Run the demo; exit 0 only if nothing is lost and nothing is doubled."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep everything running at the end")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, _interrupted)
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="perennial-demo-"))
    stack = Stack(folder, env=dict(DRILL))
    good = False
    try:
        good = _run(Demo(stack, console))
        if keep:
            _stay(stack, console)
    except KeyboardInterrupt:
        console.print("stopping …")
    except NotReadyError as error:
        console.print(f"[red]{error}")
    finally:
        stack.stop(keep_files=not good)
        if not good:
            console.print(f"the logs are in {folder}")
    sys.exit(0 if good else 1)


def _run(demo: Demo) -> bool:
    worker = demo.start()
    begun = time.monotonic()
    settled = demo.run(worker)
    took = time.monotonic() - begun
    portal = demo.portal.get("/_sandbox/summary").json()
    report = Report.now(demo.jobs)
    findings = compare(report, demo.stack, portal)
    if not settled:
        findings.insert(0, f"not everything had ended after {PATIENCE:.0f} s: {report.news}")
    print_report(demo.console, report, portal, findings, refused=demo.refused, seconds=took)
    return not findings


def _stay(stack: Stack, console: Console) -> None:
    console.print("\nEverything keeps running until Ctrl-C:")
    console.print(f"  Flower     {stack.url('flower')}   login {stack.flower_login}")
    console.print(f"  shop       {stack.url('shop')}   POST /orders, PATCH /orders/1, …")
    console.print(f"  portal     {stack.url('portal')}/_sandbox/summary")
    console.print(f"  API        {stack.url('api')}   ADMIN_TOKEN {stack.admin_token}")
    console.print("  a shell    " + " ".join(f"{k}={stack.env[k]}" for k in SHELL), soft_wrap=True)
    console.print("             .venv/bin/celery -A tasks dlq ls")
    while True:
        time.sleep(1)


SHELL = ("REDIS_URL", "DATABASE_URL", "BITRIX_WEBHOOK_URL")


def _interrupted(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
