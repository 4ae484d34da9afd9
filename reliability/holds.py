"""What a person holds back: the jobs of one task, or those about one order, until it is lifted.

A held job is parked when a worker comes to it, before it has done anything. Each process knows the
holds from a snapshot, so that looking costs a job nothing; a hold that has ended stays in Redis
until its jobs are on their way back, so that whoever finds it can finish what a crash has left.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, cast

from redis import Redis
from redis.exceptions import RedisError

from classifiers.errors import InternalError, Paused
from config.services import services
from config.settings import settings
from reliability.connection import redis
from reliability.gate import Gate
from reliability.keys import OURS
from reliability.parking import Parking

HOLDS = OURS + "holds"  # hash: id → JSON
LAST = OURS + "holds:last"  # counter: the ids
CLAIM = OURS + "holds:claim:"  # string per hold: somebody lets its jobs come back

FRESH = 1.0  # s a snapshot is believed: how long a new hold may be overlooked
SETTLED = 2.0  # s after its end in which nobody parks for a hold any more: a snapshot, and a margin
CLAIMED = 60.0  # s in which whoever released its jobs should be done, or has died
# A held job looks again by itself, should nobody have let it come back: ten thousand of them are
# a dozen looks a second.
RECHECK = 900.0
GRACE = 60.0  # s after the end of a hold: by then its jobs have been called back, in order
UNPACED = 0.001  # s between jobs that call no upstream: it keeps their order


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held: the jobs of *task*, of the queue of *service*, with the arguments *where*.

    Whatever is empty is no condition. *at* and *until* are unix seconds; None is until lifted.
    """

    id: str
    task: str = ""
    service: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    by: str = ""
    at: float = 0.0
    until: float | None = None

    def concerns(self, task: str, queue: str) -> bool:
        """Whether it is about jobs of this kind, as far as can be told without their payload."""
        return self.task in {"", task} and self.service in {"", queue}

    def matches(self, payload: Mapping[str, Any]) -> bool:
        """Whether the arguments are those it names; `fields.tenant` is one within another."""
        return all(_spelt(_within(payload, path)) == text for path, text in self.where.items())

    def is_over(self, now: float) -> bool:
        return self.until is not None and self.until <= now

    def refusal(self, now: float, scale: float) -> Paused:
        """Return what a held job is told; its code is the hold's id. *scale* is of our waits."""
        since = datetime.fromtimestamp(self.at, UTC).strftime("%d %b %H:%M UTC")
        why = f": {self.note}" if self.note else ""
        wait = RECHECK * scale
        if self.until is not None:
            wait = min(wait, max(0.0, self.until - now) + GRACE)
        return Paused(f"held by {self.by} since {since}{why}", code=self.id, retry_after=wait)


class Holds:
    """The holds of one Redis, by its clock."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._key = f"{prefix}{HOLDS}"

    def add(
        self,
        *,
        by: str,
        task: str = "",
        service: str = "",
        where: Mapping[str, str] | None = None,
        note: str = "",
        until: float | None = None,
    ) -> Hold:
        """Hold such jobs back from now on; every process knows within `FRESH` seconds."""
        if not task and not where:
            raise ValueError("a hold names a task or an argument; a whole service has its gate")
        number = self._client.incr(f"{self._prefix}{LAST}")
        hold = Hold(f"hold-{number}", task, service, where or {}, note, by, self._now(), until)
        self._write(hold)
        return hold

    def each(self) -> list[Hold]:
        """Return every hold, oldest first; also those that have ended, until their jobs are off."""
        stored = cast("Mapping[str, str]", self._client.hgetall(self._key))
        return sorted((_read(item) for item in stored.values()), key=lambda hold: hold.at)

    def standing(self) -> tuple[Hold, ...]:
        """Return the holds that count now, in one round trip."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hvals(self._key)
            moment, stored = pipe.execute()
        holds, now = sorted(map(_read, stored), key=lambda hold: hold.at), _unix(moment)
        return tuple(hold for hold in holds if not hold.is_over(now))

    def end(self, hold_id: str) -> Hold | None:
        """Let a hold end now; None if there is none of that id. Its jobs are still parked."""
        stored = cast("str | None", self._client.hget(self._key, hold_id))
        if stored is None:
            return None
        hold = _read(stored)
        if not hold.is_over(now := self._now()):
            hold = replace(hold, until=now)
            self._write(hold)
        return hold

    def release(self, hold: Hold) -> int:
        """Let the jobs of a hold that has ended come back, in order; return how many.

        To be called `SETTLED` seconds after the end: until then, some may still be parked for it.
        Zero, too, if somebody else does so at this moment.
        """
        claim = f"{self._prefix}{CLAIM}{hold.id}"
        if not self._client.set(claim, 1, nx=True, ex=int(CLAIMED)):
            return 0
        spacings = {service.name: Gate(self._client, service).spacing for service in services()}
        freed = Parking(self._client, prefix=self._prefix).release_held(
            hold.id, start=self._now(), spacings=spacings, otherwise=UNPACED
        )
        with self._client.pipeline() as pipe:
            pipe.hdel(self._key, hold.id)
            pipe.delete(claim)
            pipe.execute()
        return freed

    def release_ended(self) -> int:
        """Let the jobs of all holds come back whose time is over, or whose release broke off."""
        settled = self._now() - SETTLED
        return sum(self.release(hold) for hold in self.each() if hold.is_over(settled))

    def _write(self, hold: Hold) -> None:
        self._client.hset(self._key, hold.id, json.dumps(asdict(hold), ensure_ascii=False))

    def _now(self) -> float:
        return _unix(self._client.time())


class Snapshot:
    """What *read* has returned within the last `FRESH` seconds, for all threads of a process.

    While Redis is away, what was known last still counts: its restart lifts no hold.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Hold, ...]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[Hold, ...] | None = None
        self._failure = ""
        self._due = clock()

    def holds(self) -> tuple[Hold, ...]:
        """Return the holds; while one thread reads them anew, the others wait for what it learns.

        To go on with what was known would be to go by the knowledge of any time ago, in a process
        that had nothing to do for a while.

        Raises:
            InternalError: Redis has not answered yet in the life of this process; who held a job
                back cannot be asked then, so that it has to wait.
        """
        if self._clock() >= self._due:
            with self._lock:
                self._refresh()
        if self._known is None:
            raise InternalError(f"the holds cannot be read, Redis says: {self._failure}")
        return self._known

    def _refresh(self) -> None:
        if self._clock() < self._due:  # another thread has read them while this one waited
            return
        try:
            self._known = self._read()
        except RedisError as error:
            self._failure = str(error)
        self._due = self._clock() + FRESH


def holds() -> Holds:
    """Return the holds of this process's Redis."""
    return Holds(redis(), prefix=settings().redis_stream_prefix)


@cache
def _snapshot() -> Snapshot:
    return Snapshot(lambda: holds().standing())


def standing_holds() -> tuple[Hold, ...]:
    """Return the holds that every job of this process is asked about."""
    return _snapshot().holds()


def _read(stored: str) -> Hold:
    return Hold(**json.loads(stored))


def _unix(moment: tuple[int, int]) -> float:
    seconds, microseconds = moment
    return seconds + microseconds / 1_000_000


def _within(payload: Mapping[str, Any], path: str) -> Any:
    value: Any = payload
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _spelt(value: Any) -> str | None:
    """Return a value as a person writes it; None for none, and for what is not one value."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or isinstance(value, Mapping | list) else str(value)
