"""When beat sends what: each entry once in its slot, however many beats run and however often."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, ClassVar

from celery import beat
from celery.schedules import schedstate, schedule

from reliability import liveness, slots
from reliability.connection import RedisError
from tasks import heartbeat

logger = logging.getLogger(__name__)

MINUTE = 60.0  # s; a crontab is due by the minute
UNHEARD = 120  # canaries of a queue that nobody came to: an hour of them


class Slotted(beat.ScheduleEntry):
    """What is sent once in each slot: a stretch of the clock, as long as its interval.

    So a beat that has just started knows without a file what may be due, all of it, and the slots
    in Redis tell it what was sent.
    """

    clock: ClassVar = staticmethod(time.time)

    @property
    def seconds(self) -> float:
        """How long its slots are."""
        interval = isinstance(self.schedule, schedule)
        return float(self.schedule.run_every.total_seconds()) if interval else MINUTE

    def default_now(self) -> datetime:
        """Return the time of our clock."""
        return datetime.fromtimestamp(self.clock(), UTC)

    def slot(self, at: float) -> int:
        """Return the number of the slot that the unix time *at* falls into."""
        return int(at // self.seconds)

    def is_due(self) -> Any:
        """Whether it was not sent in this slot yet, and the seconds until the next one."""
        if not isinstance(self.schedule, schedule):
            return super().is_due()
        now = self.clock()
        last = self.last_run_at.timestamp() if self.total_run_count else -self.seconds
        is_due = self.slot(last) != self.slot(now)
        return schedstate(is_due=is_due, next=self.seconds - now % self.seconds)


def claimed(entry: Slotted) -> bool:
    """Whether an entry is to be sent now, and by this beat.

    A queue that no worker serves keeps the canaries that nobody comes to. After `UNHEARD` of them
    one is sent in the time of as many: thirty seconds become an hour.

    Raises:
        RedisError: Redis does not answer, or takes no writes.
    """
    queue, name, seconds = entry.kwargs.get("queue"), entry.name, entry.seconds
    if queue is not None and liveness.unheard_for(queue) > UNHEARD * seconds:
        name, seconds = f"{name}-seldom", UNHEARD * seconds
    return slots.claim(name, int(entry.clock() // seconds), seconds)


class Scheduler(beat.Scheduler):
    """Beat's own scheduler, in memory, that sends only what no other beat has sent."""

    Entry = Slotted

    def setup_schedule(self) -> None:
        """Take over the schedule of `celeryconfig`.

        Nobody is told of what is sent: a canary that nobody comes to would stay in Flower for good.
        """
        self.app.conf.task_send_sent_event = False
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due, and say that we do."""
        heartbeat.beat()
        return super().tick(*args, **kwargs)

    def adjust(self, n: Any, drift: float = 0.0) -> Any:
        """Wake up for a slot when it begins, where Celery would be early by ten milliseconds."""
        return super().adjust(n, drift)

    def apply_entry(self, entry: Slotted, producer: Any = None) -> None:
        """Send what is due, if its slot is ours; what cannot be sent waits for the next slot."""
        try:
            ours = claimed(entry)
        except RedisError as error:
            logger.warning("%s is not sent this time: %s", entry.name, error)
            return
        if ours:
            super().apply_entry(entry, producer)
