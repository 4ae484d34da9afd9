"""What each worker sees to beside its jobs: letters and debts that could not be written before."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import signals

from config.settings import settings
from reliability import corrupt
from reliability.connection import RedisError, redis_bytes
from reliability.dead_letters import dead_letters
from tasks.compensation import send_what_is_owed
from tasks.failures import bury_corrupt

logger = logging.getLogger(__name__)

UPKEEP_INTERVAL = 5.0  # seconds: an operator should find a letter while looking for it


class Upkeep(threading.Thread):
    """Turns spooled letters and corrupt queue items into letters, while this worker runs."""

    def __init__(self) -> None:
        super().__init__(name="upkeep", daemon=True)
        self.stopped = threading.Event()

    def run(self) -> None:
        """Look every few seconds; Redis being away is no news here."""
        while not self.stopped.wait(UPKEEP_INTERVAL):
            try:
                dead_letters().drain_spool()
                send_what_is_owed()
                corrupt.drain(redis_bytes(), bury_corrupt, prefix=settings().redis_stream_prefix)
            except RedisError as error:
                logger.debug("upkeep waits for Redis: %r", error)
            except Exception:
                logger.exception("upkeep failed; it goes on")


@signals.worker_ready.connect
def start_upkeep(sender: Any = None, **_: Any) -> None:
    """Start the upkeep beside this worker."""
    sender.upkeep = Upkeep()
    sender.upkeep.start()


@signals.worker_shutting_down.connect
def stop_upkeep(**_: Any) -> None:
    """Let the upkeep end with its worker."""
    for thread in threading.enumerate():
        if isinstance(thread, Upkeep):
            thread.stopped.set()
