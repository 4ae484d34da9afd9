"""The parked jobs: every wait of ours, readable and movable by hand.

The transport writes them (`park.lua`) and moves them back when they are due (`take.lua`). Each of
them stands in a sorted set of its kind, too, which is the upstream it waits for and the reason, or
the hold that keeps it back: whoever takes one out takes it out of there (`unpark.lua`).
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
from reliability.counters import NONE, label
from reliability.dead_letters import replays_of
from reliability.scripts import script

# What a closed gate says, and the answers that close one.
CLOSED = (CircuitOpen, CredentialHeld, Paused, RateLimited)
CLOSING = (BillingExhausted, Blocked, NotConfigured, Unauthorized)
GATE_REASONS = frozenset(kind.__name__ for kind in (*CLOSED, *CLOSING))
# What waits for news, and may come back as soon as there are some.
NEWS_REASONS = frozenset(kind.__name__ for kind in (OutcomeUnknown, Pending))
END_OF_TIME = 253_402_300_800.0  # the year 10000, which no clock shows
HELD = f"{NONE} {Paused.__name__}"  # the kind of what a person holds; then a colon, and which hold
SCHEDULED = "Scheduled"  # the reason of a job that was to come later from the outset
CHUNK = 500  # jobs read per round trip
MOST_SEARCHED = 2_000  # jobs that one page looks through for those of a filter: about 0.1 s


@dataclass(frozen=True, slots=True)
class Parked:
    """One waiting job. *since* and *due* are unix seconds; *attempts* counts spent retries.

    *accepted_at* is when `delay()` took it, or the first that is known of it. *replays* counts how
    often a person has sent it again. *code* is the upstream's own word for the *reason*, or the id
    of the hold; *payload_version* is what the message says of that. *trace_id* is the word that it
    has in common with its parents and children.
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
    trace_id: str


@dataclass(frozen=True, slots=True)
class Kind:
    """The jobs that wait for one *service* for one *reason*.

    *oldest* is when the one was accepted that has been under way for longest, in unix seconds; None
    where none waits any more.
    """

    service: str
    reason: str
    count: int
    oldest: float | None


@dataclass(frozen=True, slots=True)
class ParkedPage:
    """Some waiting jobs, soonest first, and where to go on: `cursor` is empty on the last page.

    With a filter a page may hold fewer jobs than asked for, or none, and not be the last: it ends
    after `MOST_SEARCHED` jobs that were looked through.
    """

    jobs: tuple[Parked, ...]
    cursor: str = ""


class Parking:
    """The parked jobs of one Redis, soonest first."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._parked = f"{prefix}{keys.PARKED}"
        self._due = f"{prefix}{keys.PARKED_DUE}"
        self._kinds = f"{prefix}{keys.PARKED_KINDS}"
        self._of = f"{prefix}{keys.PARKED_OF}"
        self._release = client.register_script(script("release"))
        self._unpark = client.register_script(script("unpark"))

    def count(self) -> int:
        """Return how many jobs wait."""
        return self._client.zcard(self._due)

    def kinds(self) -> list[Kind]:
        """Count the waiting jobs by service and reason, and also those of which there were some."""
        names = sorted(cast("set[str]", self._client.smembers(self._kinds)))
        with self._client.pipeline(transaction=False) as look:
            for name in names:
                look.zcard(f"{self._of}{name}")
                look.zrange(f"{self._of}{name}", 0, 0, withscores=True)
            found = iter(look.execute())
        counts, begun = Counter[tuple[str, str]](), defaultdict[tuple[str, str], list[float]](list)
        for name, count, oldest in zip(names, found, found, strict=True):
            counts[words := _words(name)] += count
            begun[words] += [at for _, at in oldest]
        return [Kind(*words, n, min(begun[words], default=None)) for words, n in counts.items()]

    def held(self, *holds: str) -> dict[str, int]:
        """Count the jobs that wait for each of *holds*, by its id."""
        with self._client.pipeline(transaction=False) as look:
            for hold in holds:
                look.zcard(f"{self._of}{HELD}:{hold}")
            found = Counter(dict(zip(holds, look.execute(), strict=True)))
        before = Counter(job.code for job in self._stored(self._of_kind(HELD)))
        return {hold: found[hold] + before[hold] for hold in holds}

    def overdue(self) -> float:
        """Return for how many seconds the soonest job has been due, 0 if none is.

        Where workers are at work that is a second at most.
        """
        with self._client.pipeline(transaction=False) as look:
            look.time()
            look.zrange(self._due, 0, 0, withscores=True)
            (seconds, microseconds), soonest = look.execute()
        now = float(seconds + microseconds / 1_000_000)
        return max(0.0, now - soonest[0][1]) if soonest else 0.0

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

    def waiting_for(self, service: str, reasons: Iterable[str]) -> Iterator[Parked]:
        """Yield the jobs that wait for *service* for one of *reasons*, in no order; no *due*."""
        kinds = (f"{label(service)} {reason}" for reason in reasons)
        return self._stored(chain.from_iterable(map(self._of_kind, kinds)))

    def page(
        self,
        *,
        limit: int = 100,
        cursor: str = "",
        task: str = "",
        service: str = "",
        reason: str = "",
    ) -> ParkedPage:
        """Return up to *limit* waiting jobs, soonest first, from where the last page has ended.

        By time and not by rank: jobs leave and come meanwhile. With a *task*, *service* or *reason*
        only those.
        """
        wanted = {"task": task, "service": service, "reason": reason}
        wanted = {name: value for name, value in wanted.items() if value}
        found: list[Parked] = []
        last, looked_at = cursor, 0
        for chunk in self._chunks_from(cursor, CHUNK if wanted else min(limit + 1, CHUNK)):
            for message_id, due, stored in chunk:
                if len(found) == limit or looked_at == MOST_SEARCHED:
                    return ParkedPage(tuple(found), last)
                looked_at, last = looked_at + 1, f"{due!r}:{message_id}"
                job = self._read(message_id, stored, due) if stored is not None else None
                if job and all(getattr(job, name) == value for name, value in wanted.items()):
                    found.append(job)
        return ParkedPage(tuple(found))

    def get(self, message_id: str) -> Parked | None:
        """Return one waiting job, or None if it does not wait (any more)."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zscore(self._due, message_id)
            pipe.hget(self._parked, message_id)
            due, stored = pipe.execute()
        if due is None or stored is None:
            return None
        return self._read(message_id, cast("str", stored), due)

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
        kinds = (f"{label(service)} {reason}" for reason in GATE_REASONS)
        waiting = self._in_order(chain.from_iterable(map(self._of_kind, kinds)))
        self._space_out(waiting, start, spacing)
        return len(waiting)

    def release_held(
        self, hold: str, *, start: float, spacings: Mapping[str, float], otherwise: float
    ) -> int:
        """Let the jobs of a hold come back in the order in which they were accepted.

        Those of each queue are apart by its spacing in seconds, or by *otherwise*.
        """
        lines: dict[str, list[tuple[float, str]]] = defaultdict(list)
        # A release that knew no kind of each hold has parked some of them among all that are held.
        for job in self._stored(chain(self._of_kind(f"{HELD}:{hold}"), self._of_kind(HELD))):
            if job.code == hold:
                lines[job.queue].append((job.accepted_at, job.message_id))
        for queue, line in lines.items():
            waiting = [message_id for _, message_id in sorted(line)]
            self._space_out(waiting, start, spacings.get(queue, otherwise))
        return sum(len(line) for line in lines.values())

    def _of_kind(self, kind: str) -> Iterator[str]:
        """Yield all ids of a kind that stay, in no order, some perhaps twice.

        A scan skips none of them; pages by rank would while others leave.
        """
        for message_id, _ in self._client.zscan_iter(f"{self._of}{kind}", count=CHUNK):
            yield message_id

    def _stored(self, message_ids: Iterable[str]) -> Iterator[Parked]:
        """Yield those that still wait, each once; *due* is not read."""
        for chunk in _chunks(message_ids):
            found = cast("list[str | None]", self._client.hmget(self._parked, chunk))
            for message_id, stored in zip(chunk, found, strict=True):
                if stored is not None:
                    yield self._read(message_id, stored, due=0.0)

    def _in_order(self, message_ids: Iterable[str]) -> list[str]:
        """Return those that still wait, soonest first."""
        found: list[tuple[float, str]] = []
        for chunk in _chunks(message_ids):
            dues = self._client.zmscore(self._due, chunk)
            found += [(due, job) for due, job in zip(dues, chunk, strict=True) if due is not None]
        return [job for _, job in sorted(found)]

    def _space_out(self, message_ids: Sequence[str], start: float, spacing: float) -> None:
        for place in range(0, len(message_ids), CHUNK):
            moved = message_ids[place : place + CHUNK]
            times = {job: start + (place + n) * spacing for n, job in enumerate(moved)}
            self._client.zadd(self._due, times, xx=True)

    def cancel(self, message_id: str) -> Parked | None:
        """Take a job out for good and return it; None if it does not wait (any more)."""
        taken = self._unpark(keys=[self._parked, self._due], args=[message_id])
        return self._read(message_id, taken[1], float(taken[0])) if taken else None

    def _chunks_from(self, cursor: str, size: int) -> Iterator[list[tuple[str, float, str | None]]]:
        """Yield id, due and message of what comes after a cursor, chunk by chunk."""
        at, _, last = cursor.partition(":")
        place = (float(at), last) if at else (-math.inf, "")
        offset = 0  # among the jobs that are due at the very same time
        while True:
            waiting = cast(
                "list[tuple[str, float]]",
                self._client.zrange(
                    self._due,
                    repr(place[0]),
                    "+inf",
                    byscore=True,
                    offset=offset,
                    num=size,
                    withscores=True,
                ),
            )
            rest = [each for each in waiting if each[::-1] > place]
            if rest:
                ids = [message_id for message_id, _ in rest]
                stored = cast("list[str | None]", self._client.hmget(self._parked, ids))
                yield [(*each, item) for each, item in zip(rest, stored, strict=True)]
                place = rest[-1][::-1]
            if len(waiting) < size:
                return
            offset = 0 if rest else offset + size

    def _page(self, start: int, stop: int) -> list[Parked | None]:
        ids = cast(
            "list[tuple[str, float]]",
            self._client.zrange(self._due, start, stop - 1, withscores=True),
        )
        if not ids:
            return []
        stored = cast("list[str | None]", self._client.hmget(self._parked, [i for i, _ in ids]))
        return [
            self._read(message_id, item, due) if item is not None else None
            for (message_id, due), item in zip(ids, stored, strict=True)
        ]

    def _read(self, message_id: str, stored: str, due: float) -> Parked:
        list_key, _, parked, raw = stored.split("\n", 3)
        since = float(parked.split(" ", 1)[0])
        message = json.loads(raw)
        headers = message["headers"]
        args, kwargs = _arguments(message)
        parking = headers.get("parking") or {}
        return Parked(
            message_id=message_id,
            task=headers.get("task", ""),
            args=args,
            kwargs=kwargs,
            reason=parking.get("reason", SCHEDULED),
            service=parking.get("service", ""),
            code=parking.get("code", ""),
            detail=parking.get("detail", ""),
            queue=list_key.split("\x06\x16", 1)[0].removeprefix(self._prefix),
            accepted_at=_accepted_at(headers, since),
            since=since,
            due=due,
            attempts=sum((headers.get("spent") or {}).values()),
            replays=replays_of(headers),
            history=headers.get("history") or [],
            payload_version=headers.get("payload_version", 1),
            trace_id=str(headers.get("root_id") or message_id),
        )


def parking() -> Parking:
    """Return the parked jobs of this process's Redis."""
    return Parking(redis(), prefix=settings().redis_stream_prefix)


def kind_of(headers: Mapping[str, Any]) -> str:
    """Return service and reason of a job that is about to be parked, as words with a space.

    Of one that a person holds back the hold is a part, so that nobody has to look for its jobs.
    """
    facts = headers.get("parking")
    if not isinstance(facts, Mapping):
        facts = {}
    service, reason = facts.get("service") or "", facts.get("reason") or SCHEDULED
    kind, hold = f"{label(str(service))} {label(str(reason))}", facts.get("code")
    return f"{kind}:{label(str(hold))}" if kind == HELD and hold else kind


def _words(kind: str) -> tuple[str, str]:
    """Return service and reason of a kind, whichever hold it is of."""
    service, reason = kind.split(" ")
    return service, reason.partition(":")[0]


def _chunks(message_ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield all that are different, so many as are read per round trip."""
    distinct = list(dict.fromkeys(message_ids))
    for place in range(0, len(distinct), CHUNK):
        yield distinct[place : place + CHUNK]


def under_way_since(headers: Mapping[str, Any], now: float) -> float:
    """Return when somebody began to wait for a job; who has sent it again did so then."""
    again = headers.get("sent_again_at")
    if isinstance(again, int | float) and 0 < again < END_OF_TIME:
        return float(again)
    return _accepted_at(headers, now)


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
