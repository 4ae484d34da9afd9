"""Ramped replays: many dead jobs sent again, few at first, and only while they end well.

A run is a record, not a process: `tasks.replay` drives it from wherever a worker is, and may crash
at any line. Jobs are written down before they are sent, and the end of each is counted once, by the
script that stops the run when it has to. So a run goes 1, 10, 100 jobs, each step when the one
before has ended, and then on without a break, at the pace of the upstream, watched all the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import lru_cache
from random import sample
from typing import Any, Self, cast
from uuid import uuid4

from redis import Redis
from redis.exceptions import RedisError

from config.settings import settings
from reliability.connection import redis
from reliability.dead_letters import Filter, Letter, dead_letters, replays_of
from reliability.keys import OURS
from reliability.parking import parking
from reliability.scripts import script

log = logging.getLogger(__name__)

HEADER = "replay"  # of a message: the run that has sent it
STEPS = (1, 10, 100)  # jobs; who has seen a hundred end well may expect the rest to
SHARE = 0.1  # of a step, or of a hundred jobs in a row: more deaths than that are no bad luck
MOST_UNDER_WAY = 1_000  # jobs; what is in doubt at any time should be few enough to look through
KEPT = 30 * 86_400  # s: as long as the letters themselves
SILENT = 30.0  # s without a word after which it is looked what has become of a job
COUNTS = (
    "sent",
    "ended",
    "died",
    "returned",
    "passed_over",
    "unheard",
    "step",
    "step_sent",
    "revision",
)
UNKNOWN = "unknown"  # the cause of a death whose letter is not there any more
LOOKED_AFTER = 100  # silent jobs that are looked after in one go: a few round trips each


@dataclass(frozen=True, slots=True)
class Sent:
    """A job under way, as its letter was when the run took it; times are unix seconds."""

    job: str
    failed_at: str
    fingerprint: str
    sent_at: float
    heard_at: float


@dataclass(frozen=True, slots=True)
class Run:
    """One ramped replay, and how far it is.

    *which* (or *ids*, if a person has named them) are its letters; it takes none that died after
    *begun_at*. *state* is running, done, stopped (by itself, see *why*) or cancelled. *sent* counts
    jobs, *ended* those of them that are over, *died* the dead among these, *returned* those that
    died of what they had died of before, *passed_over* the letters it could not send, *unheard*
    the jobs it has lost sight of. *waits* says what keeps it from going on, where that is a gate or
    a person. *step* is the place in `STEPS`; beyond them it goes on by pace,
    up to *paced_until*. *causes* counts the dead by fingerprint.
    """

    id: str
    by: str
    which: Filter
    begun_at: datetime
    ids: tuple[str, ...] = ()
    state: str = "running"
    why: str = ""
    waits: str = ""
    over_at: datetime | None = None
    sent: int = 0
    ended: int = 0
    died: int = 0
    returned: int = 0
    passed_over: int = 0
    unheard: int = 0
    under_way: int = 0
    step: int = 0
    step_sent: int = 0
    cursor: str = ""
    exhausted: bool = False
    paced_until: float = 0.0
    revision: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def driver(self) -> str:
        """The id of the job that drives it."""
        return driver_of(self.id)

    @property
    def next_step(self) -> int:
        """The step that the next job belongs to."""
        over = self.step < len(STEPS) and self.step_sent >= STEPS[self.step]
        return self.step + 1 if over else self.step

    @property
    def room(self) -> int:
        """How many jobs may be sent now, whatever the pace."""
        step = self.next_step
        if step >= len(STEPS):
            checked = step == self.step or not self.under_way
            return max(0, MOST_UNDER_WAY - self.under_way) if checked else 0
        if step == self.step:
            return STEPS[step] - self.step_sent
        return 0 if self.under_way else STEPS[step]

    @classmethod
    def read(cls, run: str, stored: Mapping[str, str], under_way: int) -> Self:
        """Read what `Replays` has written."""
        over_at = stored.get("over_at")
        return cls(
            id=run,
            by=stored["by"],
            which=_filter(json.loads(stored["which"])),
            begun_at=_moment(float(stored["begun_at"])),
            ids=tuple(json.loads(stored["ids"])),
            state=stored["state"],
            why=stored.get("why", ""),
            waits=stored.get("waits", ""),
            over_at=_moment(float(over_at)) if over_at else None,
            under_way=under_way,
            cursor=stored.get("cursor", ""),
            exhausted=stored.get("exhausted") == "1",
            paced_until=float(stored.get("paced_until", 0)),
            causes={
                name.removeprefix("cause:"): int(count)
                for name, count in stored.items()
                if name.startswith("cause:")
            },
            **{name: int(stored.get(name, 0)) for name in COUNTS},
        )


class Replays:
    """The runs of one Redis. Every method raises RedisError when it does not answer."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client: Any = client  # redis-py's types allow for bytes, ours answers in text
        self._base = f"{prefix}{OURS}replays:"
        self._change = client.register_script(script("replays"))

    def begin(self, which: Filter, *, ids: Sequence[str] = (), by: str = "") -> Run:
        """Write down a run of the letters that are there now; nothing is sent by that."""
        run = uuid4().hex[:10]
        now = time.time()
        facts = {
            "by": by,
            "which": json.dumps(_as_json(which)),
            "ids": json.dumps(list(ids)),
            "begun_at": f"{now:.6f}",
        }
        self._do("begin", run, f"{now:.6f}", KEPT, *_flat(facts))
        return cast("Run", self.get(run))

    def send(
        self,
        run: Run,
        letters: Sequence[Letter],
        *,
        cursor: str,
        exhausted: bool,
        passed_over: int,
        paced_until: float,
    ) -> bool:
        """Write down that *letters* are sent next; the caller sends them after that.

        False if the run is over, or somebody else has gone on with it: then nothing is to be sent.
        """
        now = time.time()
        facts = {
            letter.message_id: json.dumps(
                {
                    "failed_at": letter.metadata.failed_at.isoformat(),
                    "fingerprint": letter.fingerprint,
                    "sent_at": now,
                    "heard_at": now,
                }
            )
            for letter in letters
        }
        step = run.next_step
        size = STEPS[min(step, len(STEPS) - 1)]
        place = (run.revision, step, size, cursor, int(exhausted), passed_over, paced_until)
        return bool(self._do("send", run.id, *place, *_flat(facts)))

    def ended(self, run: str, job: str, fingerprint: str = "") -> int | None:
        """Count the end of a job: a death if it has a *fingerprint*.

        Returns how many are still under way; None if this one was not: told twice, or of no run.
        """
        left = int(self._do("ended", run, job, fingerprint, SHARE))
        return None if left < 0 else left

    def drop(self, run: str, job: str) -> bool:
        """Forget a job that was not sent after all."""
        return bool(self._do("drop", run, job))

    def heard(self, run: str, job: str) -> bool:
        """Note that a job was seen alive."""
        return bool(self._do("heard", run, job, f"{time.time():.3f}"))

    def waits(self, run: str, for_what: str) -> bool:
        """Say what keeps a run from going on, or that nothing does. False if it is over."""
        return bool(self._do("waits", run, for_what))

    def close(self, run: str, state: str, why: str = "") -> bool:
        """Send no more. False if the run is over already."""
        return bool(self._do("close", run, state, why))

    def resume(self, run: str) -> bool:
        """Let a run that is over go on where it was, one job first. False if it is running."""
        return bool(self._do("resume", run))

    def get(self, run: str) -> Run | None:
        """Return one run, None if it is unknown."""
        return next(self._read([run]), None)

    def each(self) -> Iterator[Run]:
        """Go through the runs of the last month, newest first."""
        yield from self._read(self._client.zrevrange(self._base + "all", 0, -1))

    def under_way(self, run: str) -> list[Sent]:
        """Return the jobs under way, the one that nobody has heard of for longest first."""
        told = self._client.hgetall(f"{self._base}{run}:jobs")
        jobs = (Sent(job, **json.loads(facts)) for job, facts in told.items())
        return sorted(jobs, key=lambda job: job.heard_at)

    def silent(self, run: str, seconds: float) -> list[Sent]:
        """Return jobs that nobody has heard of for so long, some `LOOKED_AFTER` if there are more.

        Any of them: those in a long queue stay silent, and must not hide one that has ended.
        """
        before = time.time() - seconds
        silent = [job for job in self.under_way(run) if job.heard_at < before]
        return sample(silent, LOOKED_AFTER) if len(silent) > LOOKED_AFTER else silent

    def _do(self, action: str, run: str, *facts: str | float) -> Any:
        return self._change(keys=[self._base], args=[action, run, *facts])

    def _read(self, runs: Sequence[str]) -> Iterator[Run]:
        for run in runs:
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hgetall(self._base + run)
            pipeline.hlen(f"{self._base}{run}:jobs")
            stored, under_way = pipeline.execute()
            if stored:
                yield Run.read(run, stored, under_way)


@lru_cache(maxsize=1)
def replays() -> Replays:
    """The ramped replays of this process's Redis."""
    return Replays(redis(), prefix=settings().redis_stream_prefix)


def driver_of(run: str) -> str:
    """Return the id of the job that drives a run: sent twice, it is parked once."""
    return f"ramp-{run}"


def note_success(headers: Mapping[str, Any], job: str) -> None:
    """Tell the letter of a job that was sent again, and its run, that it has ended well.

    Raises nothing. Only where the sender has crashed in between does the letter not know yet that
    the job was sent.
    """
    again = replays_of(headers)
    if again:
        with _heard(job):
            dead_letters().note_ended_well(job, again)
            _note_end(headers, job)


def note_death(headers: Mapping[str, Any], job: str) -> None:
    """Tell its run that a job has died; raise nothing. Its letter is written already."""
    with _heard(job):
        letter = dead_letters().get(job) if HEADER in headers else None
        _note_end(headers, job, letter.fingerprint if letter else UNKNOWN)


def _note_end(headers: Mapping[str, Any], job: str, cause: str = "") -> None:
    run = headers.get(HEADER)
    if isinstance(run, str) and replays().ended(run, job, cause) == 0:
        parking().wake(driver_of(run))  # the next step need not wait for its next look


@contextmanager
def _heard(job: str) -> Iterator[None]:
    # What Redis does not hear now, the driver finds out later (`Replays.silent`).
    try:
        yield
    except RedisError as error:
        log.warning("[DLQ] the replay of %s has not heard that it ended: %s", job, error)


def _filter(stored: Mapping[str, Any]) -> Filter:
    known = {entry.name for entry in fields(Filter)}
    given = {name: value for name, value in stored.items() if name in known}
    given |= {
        name: datetime.fromisoformat(given[name]) for name in ("since", "until") if given.get(name)
    }
    return Filter(**given)


def _as_json(which: Filter) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(which).items()
    }


def _flat(facts: Mapping[str, str]) -> list[str]:
    return [part for pair in facts.items() for part in pair]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
