"""`make demo`: the main job, on this machine, with everything that can go wrong going wrong.

A sample shop sells orders and videos to users. Its jobs sync the orders to a simulated Bitrix24
portal, have the videos made by a simulated KIE.AI and delivered by a simulated Telegram, and crawl
the users' bookmarks at a simulated X. All four lose answers, break down and refuse things, while a
worker is killed at work. At the end their own journals must agree with the shop, the ledger and our
tables: nothing lost, nothing doubled, every credit accounted for, every bookmark stored once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
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
from sandbox import crawl_load, crawl_report, video_load
from sandbox.load import CRAWL, KILLED_AT, OUTAGE_AT, Call, waves
from sandbox.report import Report, all_jobs, compare, facts, print_report
from sandbox.stack import NotReadyError, Process, Stack
from sandbox.video_report import Sight
from storage import bookmarks, credentials, credits
from tasks import bookmarks as crawls

PATIENCE = 180.0  # seconds for the load to settle; it takes a minute where two cores are free
MOMENT = 10.0  # seconds to wait for the worst moment to kill a worker in
WIDTH = 100  # columns, where the output is no terminal
SENDERS = 8  # customers at a time
LOOK_EVERY = 100  # requests; a look costs some ten round trips to Redis
PAUSE = 0.5  # seconds between two looks

# Waits that are ours are shortened so that a demo is short; what upstreams ask for is not. The
# longest is the quarter of an hour after a limit of X's without a word of its end: 72 s.
DRILL = {"RETRY_TIME_SCALE": "0.08", "VISIBILITY_TIMEOUT": "6", "WORKER_THREADS": "128"}

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
# A video takes minutes outside; seconds will do here.
GENERATION = ("--duration", "1", "--spread", "2")


@dataclass
class Demo:
    """One run: start, load with faults, settle, compare."""

    stack: Stack
    console: Console
    jobs: dict[str, str] = field(default_factory=dict)  # accepted job → task
    refused: int = 0

    def __post_init__(self) -> None:
        self.portal = self._client("portal")
        self.kie = self._client("kie")
        self.telegram = self._client("telegram")
        self.x = self._client("x")
        self.shop = self._client("shop")
        self.tapped: set[int] = set()  # messages
        self.seen_to: set[tuple[str, str]] = set()  # crawls, in the state in which they were

    def _client(self, name: str) -> httpx.Client:
        return httpx.Client(base_url=self.stack.url(name), timeout=30, trust_env=False)

    def start(self) -> Process:
        """Bring everything up; what does not depend on each other starts together."""
        stack = self.stack
        with self.console.status("starting Redis, upstreams, shop, API, worker, beat and Flower …"):
            stack.start_redis()
            os.environ.update(stack.env)  # this process looks at the same Redis and database
            settings.cache_clear()
            starts = (
                stack.start_portal,
                partial(stack.start_kie, *GENERATION),
                stack.start_telegram,
                partial(stack.start_x, *crawl_load.WINDOW),
                stack.start_shop,
                stack.start_api,
                stack.start_flower,
                stack.start_beat,
            )
            with ThreadPoolExecutor() as pool:
                others = [pool.submit(start) for start in starts]
                worker = stack.start_worker()
                for other in others:
                    other.result()
        return worker

    def prepare(self) -> None:
        """Give the customers credits, take their access to X, and have things go wrong."""
        for user, amount in video_load.GRANTS.items():
            credits.grant(user, amount, "to begin with")
        _tell(self.x, "users", [reader.arrival for reader in crawl_load.READERS])
        for reader in crawl_load.READERS:
            credentials.save("x", reader.id, **reader.credential)
        for gone in crawl_load.taken_back():
            _tell(self.x, "revoke", {"id": gone})
        _tell(self.x, "faults", crawl_load.faults())
        _tell(self.portal, "faults", FAULTS)
        _tell(self.kie, "faults", video_load.kie_faults())
        _tell(self.kie, "plans", video_load.plans())
        _tell(self.telegram, "faults", video_load.telegram_faults())
        _tell(self.telegram, "chats", video_load.chat_rules())

    def run(self, worker: Process) -> bool:
        """Send the load wave by wave, and have the worker killed at work.

        Returns whether everything had settled in time.

        Raises:
            NotReadyError: if the worker does not come back.
        """
        load, first_life = waves(), worker.log.stat().st_size
        with self._progress() as progress, ThreadPoolExecutor(SENDERS) as pool:
            sent = progress.add_task("sent", total=sum(map(len, load)), news="")
            done = progress.add_task("finished", total=None, news="")
            for number, wave in enumerate(load):
                self.see_to_crawls()
                if number == KILLED_AT:
                    self.wait_for_the_worst()
                    progress.console.print("  kill -9 of the worker, another one starts")
                    worker.kill()
                    worker.start()
                if number == OUTAGE_AT:
                    progress.console.print("  the portal breaks down")
                    _tell(self.portal, "faults", OUTAGE)
                for n, _ in enumerate(pool.map(self.send, wave)):
                    progress.advance(sent)
                    if n % LOOK_EVERY == 0:
                        self.show(progress, done)
            worker.wait_for(lambda: worker.says(" ready.", first_life), "the word 'ready'")
            return self.settle(lambda: self.show(progress, done))

    def wait_for_the_worst(self) -> None:
        """Wait until answers of KIE, Telegram and X are on their way."""
        deadline = time.monotonic() + MOMENT
        while time.monotonic() < deadline and not self.worst():
            time.sleep(0.1)

    def worst(self) -> bool:
        """Whether all is begun at KIE that can be, and the others have yet to answer."""
        begun = _ask(self.kie, "summary")["creates"]
        unanswered = (
            any(not entry["status"] for entry in _ask(upstream, "journal"))
            for upstream in (self.telegram, self.x)
        )
        return begun == len(video_load.BEFORE) and all(unanswered)

    def settle(self, at_rest: Callable[[], bool]) -> bool:
        """Look until all is at rest, twice in a row: a job may move while it is looked for."""
        deadline, looks = time.monotonic() + PATIENCE, 0
        while looks < 2 and time.monotonic() < deadline:
            time.sleep(PAUSE)
            callbacks = _ask(self.kie, "summary")["callbacks"]
            acted = any([self.tap(), self.see_to_crawls()])
            quiet = not acted and not callbacks["waiting"] and not callbacks["flying"]
            looks = looks + 1 if at_rest() and quiet else 0
        return looks == 2

    def tap(self) -> bool:
        """Have the users tap each new button twice. False if there was none."""
        found = False
        for message in _ask(self.telegram, "messages"):
            if not message["buttons"] or message["message_id"] in self.tapped:
                continue
            self.tapped.add(message["message_id"])
            if message["chat_id"] not in video_load.LEFT_ALONE:
                found = True
                data = message["buttons"][0][0]["callback_data"]
                press = {"chat_id": message["chat_id"], "data": data, "times": 2}
                _tell(self.telegram, "press", press)
        return found

    def see_to_crawls(self) -> bool:
        """Cancel, ask again, give access again, as people do. False if there was no reason to."""
        readers = crawl_load.READERS
        cancelled = [self.cancel_and_ask_again(r.id) for r in readers if r.story.cancelled]
        given = [self.give_access_again(r.id) for r in readers if r.story.given_again]
        return any(cancelled + given)

    def cancel_and_ask_again(self, user_id: str) -> bool:
        """Cancel a crawl in the middle, and ask for it once more when its job has ended."""
        crawl = bookmarks.latest(user_id)
        if crawl is None or not crawl.pages or (crawl.id, crawl.state) in self.seen_to:
            return False
        if crawl.state == "running":
            self.jobs[crawls.cancel.delay(session_id=crawl.id).id] = crawls.cancel.name
        elif crawl.state == "cancelled" and crawls.crawl.AsyncResult(crawl.id).ready():
            self.send(Call("POST", "/crawls", {"user_id": user_id}, CRAWL))
        else:
            return False
        self.seen_to.add((crawl.id, crawl.state))
        return True

    def give_access_again(self, user_id: str) -> bool:
        """Let a user authorise us anew whose access is lost, as `bookmarks authorize` does."""
        credential = credentials.get("x", user_id)
        if credential is None or credential.lost is None:
            return False
        user = self.x.post("/_sandbox/authorize", json={"id": user_id}).raise_for_status().json()
        tokens = {name: user[name] for name in ("access_token", "refresh_token")}
        credentials.save("x", user_id, **tokens)
        crawls.welcome_back(user_id)
        return True

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

    def show(self, progress: Progress, row: TaskID) -> bool:
        """Update the display. True when every accepted job has ended and nothing waits."""
        report = Report.now(self.jobs)
        progress.update(row, completed=report.ended, total=len(self.jobs), news=report.news)
        return report.settled


def _ask(upstream: httpx.Client, what: str) -> Any:
    return upstream.get(f"/_sandbox/{what}").raise_for_status().json()


def _tell(upstream: httpx.Client, what: str, order: Any) -> None:
    upstream.post(f"/_sandbox/{what}", json=order).raise_for_status()


def main() -> None:
    """Run the demo; exit 0 only if nothing is lost and nothing is doubled."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep everything running at the end")
    keep = parser.parse_args().keep
    for how in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the former
        signal.signal(how, _interrupted)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
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
    demo.prepare()
    begun = time.monotonic()
    settled = demo.run(worker)
    took = time.monotonic() - begun
    portal, sight = _ask(demo.portal, "summary"), Sight.now(demo.kie, demo.telegram)
    seen_by_x = crawl_report.Sight.now(demo.x)
    report = Report.now({**all_jobs(demo.stack), **demo.jobs})
    findings = compare(report, demo.stack, portal, sight, seen_by_x, took)
    if not settled:
        findings.insert(0, f"not everything had ended after {PATIENCE:.0f} s: {report.news}")
    seen = facts(report, portal, sight, seen_by_x, refused=demo.refused, seconds=took)
    print_report(demo.console, report, seen, findings, accepted=len(demo.jobs))
    return not findings


def _stay(stack: Stack, console: Console) -> None:
    console.print("\nEverything keeps running until Ctrl-C:")
    console.print(f"  Flower     {stack.url('flower')}   login {stack.flower_login}")
    console.print(
        f"  shop       {stack.url('shop')}   POST /orders, /videos, /crawls, PATCH /orders/1 …"
    )
    console.print(f"  portal     {stack.url('portal')}/_sandbox/summary")
    console.print(f"  KIE        {stack.url('kie')}/_sandbox/tasks")
    console.print(f"  Telegram   {stack.url('telegram')}/_sandbox/messages")
    console.print(f"  X          {stack.url('x')}/_sandbox/users")
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
