"""What was found in a queue and is no message: kept byte for byte until it is a dead letter."""

from __future__ import annotations

import logging
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from reliability import keys

logger = logging.getLogger(__name__)

AT_MOST = 100  # items per call, so that a flood leaves room for the rest of the upkeep


def drain(
    client: Redis,
    bury: Callable[[str, bytes], object],
    *,
    place: str = keys.CORRUPT,
    prefix: str = "",
) -> int:
    """Give (queue, bytes) of each item to *bury*, and forget it after; return how many.

    *client* answers in bytes. Burying twice must do no harm: two workers may drain at once. One
    that *bury* stumbles over stays, and does not keep it from the others; an OSError ends it.
    """
    place = f"{prefix}{place}"
    done = stuck = 0
    while done + stuck < AT_MOST:
        item = client.lindex(place, -1 - stuck)
        if not isinstance(item, bytes):
            break
        queue, _, raw = item.partition(b"\n")
        try:
            bury(queue.decode(errors="replace"), raw)
        except (OSError, RedisError):
            raise
        except Exception:
            logger.exception("[DLQ] an item of %s cannot be buried; it stays there", place)
            stuck += 1
            continue
        client.lrem(place, -1, item)  # type: ignore[arg-type]  # redis-py: bytes are as good
        done += 1
    return done
