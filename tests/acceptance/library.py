"""A system that crawls bookmarks, with an X of its own and people who have bookmarks there."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from acceptance.system import PATIENCE, System, X
from fixtures.waiting import eventually

from config.services import Service
from reliability.gate import Gate
from sandbox.stack import Process, Stack

SCALE = 0.02
PACE = {"RETRY_TIME_SCALE": str(SCALE), "VISIBILITY_TIMEOUT": "3", "WORKER_THREADS": "8"}
FAST = {"X_RATE": "100"}  # no test waits for the rate of the app
X_SERVICE = Service("x", 100, 200, max_wait=2.0, connect_timeout=5.0, read_timeout=30.0)
BOOKMARKS = 200  # of a user, if not said otherwise: three pages

_ids = count(1001)


@dataclass
class Library(System):
    """Everything, but for the workers."""

    x: X = field(init=False)
    duty: Process = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = Gate(self.redis, X_SERVICE)
        with ThreadPoolExecutor() as pool:
            pool.submit(lambda: self.caller)
            self.stack.start_x("--latency", "0.01")
        self.x = X(self.stack.url("x"))

    # -- people

    def reader(self, bookmarks: int = BOOKMARKS, **more: Any) -> str:
        """Somebody who has bookmarks, and has given us access."""
        user = self.stranger(bookmarks, **more)
        self.authorize(user)
        return user

    def stranger(self, bookmarks: int = BOOKMARKS, **more: Any) -> str:
        """Somebody who has bookmarks, and of whom we know nothing."""
        user = str(next(_ids))
        self.x.welcome(user, bookmarks, **more)
        return user

    def authorize(self, user: str) -> None:
        """Store the tokens that a user's grant has now, as an application does."""
        self.caller.ask(access=user, tokens=self.tokens(user))

    def tokens(self, user: str) -> dict[str, str]:
        known = self.x.user(user)
        return {name: known[name] for name in ("access_token", "refresh_token")}

    # -- crawls

    def crawl(self, user: str, **more: Any) -> str:
        return self.send("bookmarks.crawl", user_id=user, **more)

    def crawled(self, user: str, **more: Any) -> dict[str, Any]:
        """Crawl, and wait for the summary."""
        return self.result(self.crawl(user, **more))

    def session(self, user: str) -> dict[str, Any]:
        """The crawl of a user that was begun last."""
        newest = "SELECT * FROM crawl_sessions WHERE user_id = ? ORDER BY begun_at DESC"
        found = dict(self.sql(newest, user)[0])
        return found | {"skipped": json.loads(found["skipped"])}

    def checkpoint(self, user: str) -> tuple[int, int]:
        """How many pages are done, and how many items of the next."""
        session = self.session(user)
        return session["page"], session["in_page"]

    def stored(self, user: str) -> list[str]:
        """The bookmarks of a user that we have, the newest first."""
        ours = "SELECT tweet_id FROM bookmarks WHERE user_id = ? ORDER BY tweet_id DESC"
        return [row["tweet_id"] for row in self.sql(ours, user)]

    def left_out(self, user: str) -> list[dict[str, Any]]:
        """What was skipped."""
        ours = "SELECT * FROM skipped_bookmarks WHERE user_id = ? ORDER BY key"
        return [dict(row) for row in self.sql(ours, user)]

    def reached(self, user: str, position: int) -> None:
        """Wait until the page that begins there has been asked for."""
        eventually(lambda: position in self.x.asked(user), within=PATIENCE)

    def ddl(self, statement: str) -> None:
        """Change the database behind everybody's back."""
        with sqlite3.connect(self.stack.folder / "perennial.db", timeout=PATIENCE) as connection:
            connection.execute(statement)

    @contextmanager
    def refusing(self, event: str) -> Iterator[None]:
        """Have the database refuse bookmarks; *event* is the rest of a trigger."""
        self.ddl(f"CREATE TRIGGER refusal BEFORE INSERT ON bookmarks {event}")
        try:
            yield
        finally:
            self.ddl("DROP TRIGGER IF EXISTS refusal")

    # -- workers

    @contextmanager
    def off_duty(self) -> Iterator[None]:
        """Have the worker on duty do nothing meanwhile."""
        self.duty.running.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.duty.running.send_signal(signal.SIGCONT)

    def lines(self, *, after: int = 0, of: Process | None = None) -> list[tuple[int, str]]:
        """Level and text of what a worker has logged behind so many bytes."""
        log = (of or self.duty).log.read_bytes()[after:].decode()
        levels = logging.getLevelNamesMapping()
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        return [(levels[line["level"].upper()], line["event"]) for line in lines]

    def clear(self) -> None:
        """Make it as new for the next test."""
        self.x.disarm()
        self.gate.reset()
        self.gate.resume()
        for letter in self.open_letters():
            self.letters.discard(letter.message_id)
        for parked in self.parking.jobs():
            self.parking.cancel(parked.message_id)


def fault(kind: str, user: str, position: int, **more: Any) -> dict[str, Any]:
    """What befalls the page of a user that begins at *position*."""
    return {"kind": kind, "method": "bookmarks", "about": f"/{user}/{position}/", **more}


def flaws(kinds: Mapping[int, str]) -> list[dict[str, Any]]:
    """The bookmarks at these positions, 0 for the newest, are of these kinds."""
    return [{"position": position, "kind": kind} for position, kind in kinds.items()]


@contextmanager
def library(folder: Path, *options: str, **env: str) -> Iterator[Library]:
    """Run it, with one worker on duty."""
    stack = Stack(folder, env={**PACE, **FAST, **env})
    try:
        made = Library(stack)
        made.duty = made.worker("duty", *options)
        yield made
        made.end()
    finally:
        stack.stop(signal.SIGKILL, keep_files=True)


def among(lines: Sequence[tuple[int, str]], level: int, part: str) -> list[str]:
    """The lines of that level that hold *part*."""
    return [text for at, text in lines if at == level and part in text]
