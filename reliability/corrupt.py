"""What was found in a queue and is no message: kept byte for byte until it is a dead letter."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from reliability import keys

AT_MOST = 100  # items per call, so that a flood leaves room for the rest of the upkeep


def drain(
    client: Redis,
    bury: Callable[[str, bytes], object],
    *,
    place: str = keys.CORRUPT,
    prefix: str = "",
) -> int:
    """Give (queue, bytes) of each item to *bury*, and forget it after; return how many.

    *client* answers in bytes. Burying twice must do no harm: two workers may drain at once.
    """
    place = f"{prefix}{place}"
    for done in range(AT_MOST):
        item = client.lindex(place, -1)
        if not isinstance(item, bytes):
            return done
        queue, _, raw = item.partition(b"\n")
        bury(queue.decode(errors="replace"), raw)
        client.lrem(place, -1, item)  # type: ignore[arg-type]  # redis-py: bytes are as good
    return AT_MOST
