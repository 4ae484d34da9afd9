"""The queues as they are in RabbitMQ: it tells how many messages are ready, and no more."""

from __future__ import annotations

from collections.abc import Iterable

from kombu import Connection

SUSPECTS_OF = "quarantine."  # and the name of a queue: where its suspects wait
CONNECT_WITHIN = 5.0  # s


def lengths(url: str, queues: Iterable[str]) -> dict[str, int]:
    """Return how many messages wait in each of *queues*, suspects included; 0 if there is none.

    Raises:
        OSError, amqp.exceptions.AMQPError: RabbitMQ does not answer.
    """
    with Connection(url, connect_timeout=CONNECT_WITHIN) as connection:
        return {q: _length(connection, q) + _length(connection, SUSPECTS_OF + q) for q in queues}


def _length(connection: Connection, queue: str) -> int:
    # A channel each: RabbitMQ closes the one that asks for a queue that is not there.
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0
