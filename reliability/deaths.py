"""How often a worker on RabbitMQ has died with a job, counted in Redis.

The queue's own count will not do: it grows with each lost connection, and a node that was killed
has counted one delivery three times when it was back (RabbitMQ 3.10, measured). So a delivery that
comes again is a death, unless the worker that had it has lived to say that it lets go of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from redis import Redis

from config.settings import settings
from reliability import keys
from reliability.connection import redis_bytes

Run = tuple[str, int]  # a job, and which of its runs: a retry starts without any death

KEPT = 86_400  # s; a day is longer than workers stay away


class Deaths:
    """The deaths that one Redis knows of."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client = client
        self._spared, self._counts = prefix + keys.SPARED, prefix + keys.DEATHS

    def spare(self, runs: Iterable[Run]) -> None:
        """Note that a worker lets go of *runs* alive: their next delivery tells of no death."""
        with self._client.pipeline(transaction=False) as pipe:
            for run in runs:
                pipe.set(self._spared + _name(run), 1, ex=KEPT)
            pipe.execute()

    def after_another(self, run: Run) -> int:
        """Return how many workers have died with *run*, which was just delivered again."""
        spared = self._client.getdel(self._spared + _name(run))
        with self._client.pipeline(transaction=False) as pipe:
            pipe.incrby(self._counts + _name(run), 0 if spared else 1)
            pipe.expire(self._counts + _name(run), KEPT)
            count, _ = pipe.execute()
        return int(count)


def deaths() -> Deaths:
    """Return the deaths that this process's Redis knows of."""
    return Deaths(redis_bytes(), prefix=settings().redis_stream_prefix)


def _name(run: Run) -> str:
    return f"{run[0]}:{run[1]}"
