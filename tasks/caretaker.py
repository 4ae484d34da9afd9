"""What each worker sees to beside its jobs: its own disk, and what must not wait for a job."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import signals

from config.settings import settings
from reliability import corrupt, quarantine
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
            try:
                go_round()
            except RedisError as error:
                logger.debug("the caretaker waits for Redis: %r", error)
            except Exception:
                logger.exception("the caretaker failed; it goes on")


def go_round() -> None:
    """Turn spooled letters, corrupt items and poison into letters, and release ended holds.

    Raises:
        RedisError: Redis does not answer; the next round finds the same.
    """
    if dead_letters().drain_spool():
        send_what_is_owed()  # what their jobs had begun has waited as long as they have
    holds().release_ended()
    prefix = settings().redis_stream_prefix
    corrupt.drain(redis_bytes(), bury_corrupt, prefix=prefix)
    quarantine.drain(redis_bytes(), bury_poison, prefix=prefix)


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
