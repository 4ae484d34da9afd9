"""Parked jobs on their way to a broker that is not the Redis they are parked in.

A job leaves the parked ones in one script and is noted as leaving until the broker has confirmed
it. What a dead worker was about to send is sent again: at least once, never less.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from redis import Redis

from config.settings import settings
from reliability import keys, parking
from reliability.connection import redis_bytes
from reliability.scripts import script

AT_MOST = 200  # jobs at a time: keeps the script under a few milliseconds
PATIENCE = 30.0  # seconds: longer than a broker is waited for before what was sent is taken back
PRIORITY = b"\x06\x16"  # kombu's mark before the priority in the name of a list


@dataclass(frozen=True, slots=True)
class Departure:
    """A parked job that is due: its id, its queue, its message as text."""

    job: bytes
    queue: str
    message: bytes


class Departures:
    """What leaves the parked jobs of one Redis; *client* answers in bytes."""

    def __init__(self, client: Redis, *, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._names = [prefix + name for name in (keys.PARKED, keys.PARKED_DUE)]
        self._leaving, self._left, self._accepted = (
            prefix + name for name in (keys.LEAVING, keys.LEAVING_SINCE, keys.LEAVING_ACCEPTED)
        )
        self._corrupt = prefix + keys.CORRUPT
        self._depart = client.register_script(script("depart"))
        self._park = client.register_script(script("park"))

    def park(self, job: str, queue: str, message: str, due: float) -> None:
        """Keep *message* until *due*, a unix time."""
        where = [self._prefix + queue, self._prefix + keys.bell(queue)]
        headers = json.loads(message)["headers"]
        kind = [parking.kind_of(headers), parking.under_way_since(headers, time.time())]
        args: list[Any] = [job, due, *where, message, *kind]
        self._park(keys=self._names, args=args)

    def take(self) -> tuple[float | None, list[Departure]]:
        """Return the seconds until another job is due (None: there is none), and what is due now.

        Whoever takes jobs has to say `sent` or `put_back`; else they are taken again in a while.
        """
        reply = self._run(AT_MOST)
        found = [self._read(*pair) for pair in zip(reply[1::2], reply[2::2], strict=True)]
        return (reply[0] / 1000 if reply[0] >= 0 else None), found

    def sent(self, departures: Iterable[Departure]) -> None:
        """Note that the broker has them."""
        jobs = [one.job for one in departures]
        if jobs:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hdel(self._leaving, *jobs)
                pipe.zrem(self._left, *jobs)
                pipe.zrem(self._accepted, *jobs)
                pipe.execute()

    def put_back(self, departures: Iterable[Departure]) -> None:
        """Have them wait again, due now: the broker may not have them."""
        left = {one.job: 0.0 for one in departures}
        if left:
            self._client.zadd(self._left, left, xx=True)  # since ever, so that they come back
            self._run(0)

    def set_aside(self, departure: Departure) -> None:
        """Give up a job that no broker takes: it becomes a dead letter."""
        item = departure.queue.encode() + b"\n" + departure.message
        self._client.lpush(self._corrupt, item)
        self.sent([departure])

    def _run(self, at_most: int) -> list[Any]:
        names = [*self._names, self._leaving, self._left, self._corrupt, self._accepted]
        return cast("list[Any]", self._depart(keys=names, args=[at_most, PATIENCE]))

    def _read(self, job: bytes, item: bytes) -> Departure:
        place, _, _, message = item.split(b"\n", 3)
        queue = place.split(PRIORITY, 1)[0].decode().removeprefix(self._prefix)
        return Departure(job, queue, message)


def departures() -> Departures:
    """Return the departures of this process's Redis."""
    return Departures(redis_bytes(), prefix=settings().redis_stream_prefix)
