"""The queues as they are in Redis: how much waits in them, and what; nothing is touched.

Where the broker is RabbitMQ, only the lengths can be told: what waits, and what workers hold, it
does not say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, cast

from kombu.transport.redis import PRIORITY_STEPS, Channel
from redis import Redis

from config.settings import settings
from reliability import keys, rabbitmq_queues
from reliability.connection import connect, redis

LOOKED_AT = 1_000  # messages that are read to tell what waits: some 20 ms
UNACKED = "unacked"  # hash: delivery tag → [message, exchange, queue] as JSON


@dataclass(frozen=True, slots=True)
class Waiting:
    """The jobs of one task, or of several, in a queue. *newest* is the id of the last that came.

    *count* is exact up to `LOOKED_AT` messages in the queue; beyond that it is that share of the
    queue which they are of the oldest and the newest ones.
    """

    count: int
    newest: str | None


def lengths(*queues: str) -> dict[str, int]:
    """Return how many messages wait in each queue, suspects and all priorities included."""
    if _on_rabbitmq():
        return rabbitmq_queues.lengths(settings().broker_url, queues)
    prefix = settings().redis_stream_prefix
    lists = {queue: [*_lists(queue), keys.quarantine(queue)] for queue in queues}
    with _broker().pipeline(transaction=False) as look:
        for name in chain.from_iterable(lists.values()):
            look.llen(prefix + name)
        found = iter(look.execute())
    return {queue: sum(next(found) for _ in names) for queue, names in lists.items()}


def in_hand() -> int:
    """Return how many messages workers hold, of whatever queue; 0 on RabbitMQ."""
    if _on_rabbitmq():
        return 0
    return _broker().hlen(settings().redis_stream_prefix + UNACKED)


def taken(queue: str) -> int:
    """Return how many messages of a queue are with workers: not more than those have threads.

    0 on RabbitMQ.
    """
    if _on_rabbitmq():
        return 0
    stored = cast("list[str]", _broker().hvals(settings().redis_stream_prefix + UNACKED))
    # The whole message need not be read to see where it came from.
    return sum(item.endswith(f'"{queue}"]') for item in stored)


def waiting(queue: str, *tasks: str) -> tuple[Waiting, Waiting]:
    """Return what waits in the lists of a queue: the jobs of *tasks*, and all others.

    At a flat cost: of a long queue, the two ends are read. On RabbitMQ all are others, unread.
    """
    if _on_rabbitmq():
        return Waiting(0, None), Waiting(lengths(queue)[queue], None)
    prefix = settings().redis_stream_prefix
    half = LOOKED_AT // 2
    total, read = 0, []
    for name in _lists(queue):
        with _broker().pipeline(transaction=False) as look:
            look.llen(prefix + name)
            look.lrange(prefix + name, 0, half - 1)
            look.lrange(prefix + name, half, LOOKED_AT - 1)
            look.lrange(prefix + name, -half, -1)
            length, newest, next_to_it, oldest = look.execute()
        total += length
        read += [*newest, *(next_to_it if length <= LOOKED_AT else oldest)]
    jobs = [_job(message) for message in read]
    theirs = [job for task, job in jobs if task in tasks]
    others = [job for task, job in jobs if task not in tasks]
    count = round(total * len(theirs) / len(jobs)) if jobs else 0
    return (
        Waiting(count, next(iter(theirs), None)),
        Waiting(total - count, next(iter(others), None)),
    )


def _on_rabbitmq() -> bool:
    return settings().broker_url.startswith("amqp")


@lru_cache(maxsize=1)
def _broker() -> Redis:
    """The server of the queues, which need not be that of everything else."""
    config = settings()
    if config.broker_url == config.redis_url:
        return redis()
    return connect(config.broker_url, config.redis_sentinel_master)


def _lists(queue: str) -> list[str]:
    """Return the names of a queue's lists, one for each priority, as kombu spells them."""
    return [queue, *(f"{queue}{Channel.sep}{step}" for step in PRIORITY_STEPS if step)]


def _job(message: str) -> tuple[str, str | None]:
    """Return task and id of a message; of what is none, nothing."""
    try:
        headers: Any = json.loads(message)["headers"]
        return str(headers["task"]), str(headers["id"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", None
