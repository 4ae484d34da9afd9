"""Who is at work: when a worker last came to a canary, the job that is there to be found.

And which workers there are: each reports now and then, with what lies on the disk of its host.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from config.settings import settings
from reliability.connection import redis
from reliability.keys import CANARY, SPOOLS, WORKERS
from reliability.spool import Backlog, Spool

SEEN_WITHIN = 30.0  # s; a worker reports every five, so that it may miss some
FORGOTTEN_AFTER = 86_400.0  # s; a worker that was killed cannot take its leave


def heard(queue: str) -> None:
    """Note that somebody takes jobs from *queue*, by the clock of Redis: those of hosts differ.

    Raises:
        RedisError: Redis does not answer, or takes no writes.
    """
    seconds, microseconds = redis().time()
    redis().set(_key(queue), f"{seconds + microseconds / 1e6:.3f}")


def unheard_for(queue: str) -> float:
    """Return the seconds since somebody came to a canary, or since this was asked for at first.

    Raises:
        RedisError: Redis does not answer, or takes no writes.
    """
    age = canary_age(queue)
    if age is not None:
        return age
    seconds, _ = redis().time()
    redis().set(f"{_key(queue)}:asked", seconds, nx=True)
    return max(0.0, seconds - float(redis().get(f"{_key(queue)}:asked") or seconds))


def canary_age(queue: str) -> float | None:
    """Return the seconds since somebody took a canary from *queue*; None if nobody ever has.

    It grows where no worker serves the queue, and for all queues where no beat runs.

    Raises:
        RedisError: Redis does not answer.
    """
    return canary_ages(queue)[queue]


def canary_ages(*queues: str) -> dict[str, float | None]:
    """Return what `canary_age` does of many queues, in one round trip."""
    with redis().pipeline(transaction=False) as look:
        look.time()
        for queue in queues:
            look.get(_key(queue))
        (seconds, microseconds), *heard_at = look.execute()
    now = float(seconds + microseconds / 1e6)
    ages = (None if at is None else max(0.0, now - float(at)) for at in heard_at)
    return dict(zip(queues, ages, strict=True))


def report() -> None:
    """Say that this worker is there, and what the spool of its host holds.

    What is spooled stays known when the workers of a host are gone: the letters are still there.

    Raises:
        RedisError: Redis does not answer, or takes no writes.
    """
    host, backlog = own_spool()
    seconds, _ = redis().time()
    with redis().pipeline(transaction=False) as pipe:
        pipe.zremrangebyscore(_name(WORKERS), "-inf", seconds - FORGOTTEN_AFTER)
        pipe.zadd(_name(WORKERS), {_worker(): seconds})
        if any(backlog):
            pipe.hset(_name(SPOOLS), host, f"{backlog.waiting} {backlog.torn}")
        else:
            pipe.hdel(_name(SPOOLS), host)
        pipe.execute()


def leave() -> None:
    """Say that this worker ends. Raises RedisError if Redis does not answer."""
    redis().zrem(_name(WORKERS), _worker())


def workers_seen() -> int:
    """Return how many workers have reported within the last `SEEN_WITHIN` seconds."""
    seconds, _ = redis().time()
    return redis().zcount(_name(WORKERS), seconds - SEEN_WITHIN, "+inf")


def spools() -> dict[str, Backlog]:
    """Return what the spools hold, by host; those that hold nothing are left out."""
    stored = cast("Mapping[str, str]", redis().hgetall(_name(SPOOLS)))
    return {host: Backlog(*map(int, counts.split())) for host, counts in stored.items()}


def own_spool() -> tuple[str, Backlog]:
    """Return the name of this host, and what its spool holds; this needs no Redis."""
    return socket.gethostname(), Spool(Path(settings().spool_dir)).backlog()


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _key(queue: str) -> str:
    return _name(CANARY) + queue


def _name(key: str) -> str:
    return f"{settings().redis_stream_prefix}{key}"
