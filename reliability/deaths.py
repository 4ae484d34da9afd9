"""How often a worker on RabbitMQ has died with a job, counted in Redis, and who is suspected.

The queue's own count will not do: it grows with each lost connection, and a node that was killed
has counted one delivery three times when it was back (RabbitMQ 3.10, measured). So a delivery that
comes again is a death, unless the worker that had it has lived to say that it lets go of it.

RabbitMQ shows no message without delivering it, and one that goes back has come again. So suspects
are noted here for who looks; what is to be run is in its queues alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

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
        self._suspects = prefix + keys.SUSPECTS

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

    def accuse(self, run: Run, queue: str, message: str) -> None:
        """Note that *run* waits in the quarantine of *queue*, with its *message* as text."""
        self._client.hset(self._suspects + queue, _name(run), message)

    def dismiss(self, runs: Iterable[Run], queue: str) -> None:
        """Note that *runs* are no suspects of *queue* any more: they have ended, or are buried."""
        names = [_name(run) for run in runs]
        if names:
            self._client.hdel(self._suspects + queue, *names)

    def accused(self, queues: Iterable[str]) -> dict[str, list[Run]]:
        """Return the suspects of each of *queues*."""
        names = list(queues)
        with self._client.pipeline(transaction=False) as look:
            for queue in names:
                look.hkeys(self._suspects + queue)
            found = cast("list[list[bytes]]", look.execute())
        return {
            queue: [_run(name.decode()) for name in of_it]
            for queue, of_it in zip(names, found, strict=True)
        }


def deaths() -> Deaths:
    """Return the deaths that this process's Redis knows of."""
    return Deaths(redis_bytes(), prefix=settings().redis_stream_prefix)


def _name(run: Run) -> str:
    return f"{run[0]}:{run[1]}"


def _run(name: str) -> Run:
    job, _, retries = name.rpartition(":")
    return job, int(retries)
