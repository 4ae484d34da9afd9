"""Results in Redis, as Celery keeps them, without a subscription for every `delay()`.

Stock Celery subscribes to a job's result before it sends the job: one more round trip each, and a
`delay()` that hangs for 20 s when Redis is away. `AsyncResult.get()` subscribes by itself and looks
at the stored result after that, so nothing is missed.
"""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend, SentinelBackend


class Results(RedisBackend):
    """Celery's Redis results."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Leave the caller alone."""


class SentinelResults(SentinelBackend):
    """Celery's results on the master that the Sentinels name."""

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Leave the caller alone."""
