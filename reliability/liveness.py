"""Who is at work: when a worker last came to a canary, the job that is there to be found."""

from __future__ import annotations

from config.settings import settings
from reliability.connection import redis
from reliability.keys import CANARY


def heard(queue: str) -> None:
    """Note that somebody takes jobs from *queue*, by the clock of Redis: those of hosts differ.

    Raises:
        RedisError: Redis does not answer, or takes no writes.
    """
    seconds, microseconds = redis().time()
    redis().set(_key(queue), f"{seconds + microseconds / 1e6:.3f}")


def canary_age(queue: str) -> float | None:
    """Return the seconds since somebody took a canary from *queue*; None if nobody ever has.

    It grows where no worker serves the queue, and for all queues where no beat runs.

    Raises:
        RedisError: Redis does not answer.
    """
    with redis().pipeline(transaction=False) as look:
        look.time()
        look.get(_key(queue))
        (seconds, microseconds), heard_at = look.execute()
    if heard_at is None:
        return None
    return max(0.0, float(seconds + microseconds / 1e6 - float(heard_at)))


def _key(queue: str) -> str:
    return f"{settings().redis_stream_prefix}{CANARY}{queue}"
