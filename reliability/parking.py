"""The parked jobs: every wait of ours, readable and movable by hand.

The transport writes them (`park.lua`) and moves them back when they are due (`take.lua`).
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from classifiers.errors import (
    BillingExhausted,
    Blocked,
    CircuitOpen,
    CredentialHeld,
    NotConfigured,
    OutcomeUnknown,
    Paused,
    Pending,
    RateLimited,
    Unauthorized,
)
from config.settings import settings
from reliability import keys
from reliability.connection import redis
from reliability.scripts import script

# What a closed gate says, and the answers that close one.
CLOSED = (CircuitOpen, CredentialHeld, Paused, RateLimited)
CLOSING = (BillingExhausted, Blocked, NotConfigured, Unauthorized)
GATE_REASONS = frozenset(kind.__name__ for kind in (*CLOSED, *CLOSING))
# What waits for news, and may come back as soon as there are some.
NEWS_REASONS = frozenset(kind.__name__ for kind in (OutcomeUnknown, Pending))
END_OF_TIME = 253_402_300_800.0  # the year 10000, which no clock shows
CHUNK = 500  # jobs read per round trip


@dataclass(frozen=True, slots=True)
class Parked:
    """One waiting job. *since* and *due* are unix seconds; *attempts* counts spent retries.

    *accepted_at* is when `delay()` took it, or the first that is known of it. *replays* counts how
    often a person has sent it again. *code* is the upstream's own word for
    the *reason*, or the id of the hold; *payload_version* is what the message says of that.
    """

    message_id: str
    task: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    reason: str
    service: str
    code: str
    detail: str
    queue: str
    accepted_at: float
    since: float
    due: float
    attempts: int
    replays: int
    history: Sequence[dict[str, Any]]
    payload_version: Any


class Parking:
    """The parked jobs of one Redis, soonest first."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client = client
        self._parked = f"{prefix}{keys.PARKED}"
        self._due = f"{prefix}{keys.PARKED_DUE}"
        self._release = client.register_script(script("release"))

    def count(self) -> int:
        """Return how many jobs wait."""
        return self._client.zcard(self._due)

    def jobs(self, limit: int | None = None) -> Iterator[Parked]:
        """Yield the waiting jobs, soonest first, without reading more than asked for."""
        start = 0
        while limit is None or start < limit:
            stop = start + CHUNK if limit is None else min(start + CHUNK, limit)
            page = self._page(start, stop)
            if not page:
                return
            yield from (job for job in page if job is not None)
            start = stop

    def get(self, message_id: str) -> Parked | None:
        """Return one waiting job, or None if it does not wait (any more)."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zscore(self._due, message_id)
            pipe.hget(self._parked, message_id)
            due, stored = pipe.execute()
        if due is None or stored is None:
            return None
        return _read(message_id, cast("str", stored), due)

    def release(self, message_id: str, *, at: float = 0.0, urgent: bool = False) -> bool:
        """Let a job come back now, or *at* a unix time. False if it does not wait.

        An *urgent* one comes before all that are less so, in its queue.
        """
        keys, urgency = [self._parked, self._due], int(urgent)
        return bool(self._release(keys=keys, args=[message_id, at, urgency]))

    def wake(self, message_id: str) -> bool:
        """Let a job that waits for news come back now; one at a closed gate keeps its place there.

        False if it does not wait at all: it runs, or is in its queue, or has ended.
        """
        job = self.get(message_id)
        if job is None:
            return False
        if job.reason in NEWS_REASONS:
            self.release(message_id, urgent=True)
        return True

    def release_service(self, service: str, *, start: float, spacing: float) -> int:
        """Let the jobs that the gate of *service* sent away come back, *spacing* seconds apart.

        They keep their order. Jobs that wait for something else, such as a back-off or a look at
        what became of a call, keep their time.
        """
        waiting = [
            job.message_id
            for job in self.jobs()
            if job.service == service and job.reason in GATE_REASONS
        ]
        self._space_out(waiting, start, spacing)
        return len(waiting)

    def release_held(
        self, hold: str, *, start: float, spacings: Mapping[str, float], otherwise: float
    ) -> int:
        """Let the jobs of a hold come back in the order in which they were accepted.

        Those of each queue are apart by its spacing in seconds, or by *otherwise*.
        """
        lines: dict[str, list[tuple[float, str]]] = defaultdict(list)
        # A scan finds all that stay; pages by rank would skip some while others leave.
        for message_id, stored in self._client.hscan_iter(self._parked, count=CHUNK):
            job = _read(message_id, stored, due=0.0)
            if job.reason == Paused.__name__ and job.code == hold:
                lines[job.queue].append((job.accepted_at, message_id))
        for queue, line in lines.items():
            waiting = [message_id for _, message_id in sorted(line)]
            self._space_out(waiting, start, spacings.get(queue, otherwise))
        return sum(len(line) for line in lines.values())

    def _space_out(self, message_ids: Sequence[str], start: float, spacing: float) -> None:
        for place in range(0, len(message_ids), CHUNK):
            moved = message_ids[place : place + CHUNK]
            times = {job: start + (place + n) * spacing for n, job in enumerate(moved)}
            self._client.zadd(self._due, times, xx=True)

    def cancel(self, message_id: str) -> Parked | None:
        """Take a job out for good and return it; None if it does not wait (any more)."""
        job = self.get(message_id)
        with self._client.pipeline() as pipe:
            pipe.zrem(self._due, message_id)
            pipe.hdel(self._parked, message_id)
            removed, _ = pipe.execute()
        return job if removed else None

    def _page(self, start: int, stop: int) -> list[Parked | None]:
        ids = cast(
            "list[tuple[str, float]]",
            self._client.zrange(self._due, start, stop - 1, withscores=True),
        )
        if not ids:
            return []
        stored = cast("list[str | None]", self._client.hmget(self._parked, [i for i, _ in ids]))
        return [
            _read(message_id, item, due) if item is not None else None
            for (message_id, due), item in zip(ids, stored, strict=True)
        ]


def parking() -> Parking:
    """Return the parked jobs of this process's Redis."""
    return Parking(redis(), prefix=settings().redis_stream_prefix)


def _read(message_id: str, stored: str, due: float) -> Parked:
    list_key, _, since, raw = stored.split("\n", 3)
    message = json.loads(raw)
    headers = message["headers"]
    args, kwargs = _arguments(message)
    parking = headers.get("parking") or {}
    return Parked(
        message_id=message_id,
        task=headers.get("task", ""),
        args=args,
        kwargs=kwargs,
        reason=parking.get("reason", "Scheduled"),
        service=parking.get("service", ""),
        code=parking.get("code", ""),
        detail=parking.get("detail", ""),
        queue=list_key.split("\x06\x16", 1)[0],
        accepted_at=_accepted_at(headers, float(since)),
        since=float(since),
        due=due,
        attempts=sum((headers.get("spent") or {}).values()),
        replays=replays if isinstance(replays := headers.get("replays"), int) else 0,
        history=headers.get("history") or [],
        payload_version=headers.get("payload_version", 1),
    )


def _accepted_at(headers: Mapping[str, Any], parked_at: float) -> float:
    """Return when the job was accepted; of one that does not say so, the earliest time known."""
    known = [headers.get("accepted_at")]
    match headers.get("history"):
        case [{"at": tried_at}, *_]:
            known.append(tried_at)
    times = (at for at in known if isinstance(at, int | float) and 0 < at < END_OF_TIME)
    return float(next(times, parked_at))


def _arguments(message: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return (args, kwargs) of a JSON task message; what cannot be read is shown as it is."""
    body = message.get("body", "")
    try:
        if message["properties"].get("body_encoding") == "base64":
            body = base64.b64decode(body)
        args, kwargs, _ = json.loads(body)
    except (ValueError, TypeError, KeyError):
        return [message.get("body", "")], {}
    return args, kwargs
