"""The name of every Redis key of ours. Queues keep kombu's own layout: one list per queue."""

from __future__ import annotations

OURS = "perennial:"
PARKED = OURS + "parked"  # hash: job id → list key, newline, message
PARKED_DUE = OURS + "parked:due"  # sorted set: job id by the time it comes back, unix seconds
BEAT = OURS + "beat"  # string: when anybody last beat, and since when somebody has
CORRUPT = OURS + "corrupt"  # list: what was found in a queue and is no message
BELL = OURS + "bell:"  # list of at most one element per queue: something came in


def bell(queue: str) -> str:
    """Return the key of the doorbell of *queue*."""
    return BELL + queue
