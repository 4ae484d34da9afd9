"""Results in Redis, as Celery keeps them, but for what Celery does while Redis is away.

Stock Celery subscribes to a job's result before it sends the job: one more round trip each, and a
`delay()` that hangs for 20 s when Redis is away. `AsyncResult.get()` subscribes by itself and looks
at the stored result after that, so nothing is missed.

Stock Celery takes a job whose result cannot be stored for a failed one, and where storing the
failure fails as well it never acknowledges the message. Here the thread tries on for a while and
then goes without the result: the job is done, whoever asks for its result.

Stock Celery also stores that a job will be tried again, after it has sent it. Ours may be back and
done by then (somebody waits for just that news), and its result would be lost; that it is parked
can be seen where it is parked.

And stock Celery tells the error callbacks of a job before it says that the job has failed. Where
one is none, or no broker takes it, ours is a line in the log: the dead letter is still to come.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.backends.base import DisabledBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.states import EXCEPTION_STATES, READY_STATES, RETRY
from redis.exceptions import RedisError

from reliability.redaction import redaction

logger = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two attempts to store a result
ATTEMPTS = 60  # a restart takes seconds, a fail-over half a minute


class Unhindered:
    """Tells whoever waits for a job that it has failed, as far as they can be told."""

    def mark_as_failure(self, task_id: str, *args: Any, **options: Any) -> None:
        """Store a failure and hand it on. Never raises, or the job would never end."""
        try:
            super().mark_as_failure(task_id, *args, **options)  # type: ignore[misc]  # a mixin
        except Exception:
            logger.exception("not everybody was told that %s has failed", task_id)


class NoResults(Unhindered, DisabledBackend):
    """What keeps none."""


class Results(Unhindered, RedisBackend):
    """Celery's Redis results."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Leave the caller alone."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store what a job has come to, or go on without it. Never raises for Redis."""
        if state == RETRY:
            return None
        for _ in range(ATTEMPTS if state in READY_STATES else 1):
            try:
                return super().store_result(task_id, result, state, *args, **kwargs)
            except (RedisError, OSError) as error:
                logger.warning("the result of %s waits for Redis: %s", task_id, error)
                time.sleep(PAUSE)
        if state in READY_STATES:
            logger.error("the result of %s was not stored: Redis took nothing too long", task_id)
        return None

    def _get_result_meta(
        self, result: Any, state: str, traceback: Any, request: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Add the trace id, the word that logs, letters and Sentry have of it; hide secrets.

        An error that is not ours may say anything: an address, a header.
        """
        meta: dict[str, Any] = super()._get_result_meta(
            result, state, traceback, request, *args, **kwargs
        )
        if request is not None:
            meta["trace_id"] = getattr(request, "root_id", None) or meta.get("task_id")
        if state in EXCEPTION_STATES:
            meta |= redaction().of({name: meta.get(name) for name in ("result", "traceback")})
        return meta


class SentinelResults(Results, SentinelBackend):
    """The same on the master that the Sentinels name."""
