"""What each worker sees to beside its jobs: its own disk, and what must not wait for a job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from celery import signals

from config.settings import settings
from reliability import corrupt, liveness, quarantine
from reliability.connection import RedisError, redis_bytes
from reliability.dead_letters import dead_letters
from reliability.holds import holds
from tasks.compensation import send_what_is_owed
from tasks.failures import bury_corrupt, bury_poison

logger = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds: an operator should find a letter while looking for it


class Caretaker(threading.Thread):
    """Looks after a worker's host and what it meets, as long as the worker runs, beat or no beat.

    No job could do so: a spool is on the disk of one host, and only its workers can read it. And a
    queue that is stopped up, or a job that takes its workers with it, stops the jobs of beat, too.
    """

    def __init__(self) -> None:
        super().__init__(name="caretaker", daemon=True)
        self.stopped = threading.Event()

    def run(self) -> None:
        """Look every few seconds; Redis being away is no news here."""
        while not self.stopped.wait(INTERVAL):
            go_round()
        go_round(liveness.leave)


def go_round(*duties: Callable[[], object]) -> None:
    """See to everything once. What fails now leaves the rest alone; the next round finds it."""
    usual = (the_spool, the_roll, ended_holds, what_was_no_message, poison_pills)
    for see_to in duties or usual:
        try:
            see_to()
        except RedisError as error:
            logger.debug("the caretaker waits for Redis: %r", error)
        except Exception:
            logger.exception("the caretaker could not see to %s; it goes on", see_to.__name__)


def the_spool() -> None:
    """Write spooled letters. What their jobs had begun has waited as long as they have."""
    if dead_letters().drain_spool():
        while send_what_is_owed():
            pass


def the_roll() -> None:
    """Say that this worker is there, and what is left in the spool of its host."""
    liveness.report()


def ended_holds() -> None:
    """Let jobs come back whose hold is over."""
    holds().release_ended()


def what_was_no_message() -> None:
    """Turn what lay in a queue, and was no message, into letters."""
    corrupt.drain(redis_bytes(), bury_corrupt, prefix=settings().redis_stream_prefix)


def poison_pills() -> None:
    """Turn jobs that have killed their workers into letters."""
    quarantine.drain(redis_bytes(), bury_poison, prefix=settings().redis_stream_prefix)


@signals.worker_ready.connect
def start_caretaker(sender: Any = None, **_: Any) -> None:
    """Start the caretaker beside this worker."""
    sender.caretaker = Caretaker()
    sender.caretaker.start()


@signals.worker_shutting_down.connect
def stop_caretaker(**_: Any) -> None:
    """Let the caretaker end with its worker."""
    for thread in threading.enumerate():
        if isinstance(thread, Caretaker):
            thread.stopped.set()
