"""The name of every Redis key of ours. Queues keep kombu's own layout: one list per queue."""

from __future__ import annotations

OURS = "perennial:"
PARKED = OURS + "parked"  # hash: job id → list key, newline, message
PARKED_DUE = OURS + "parked:due"  # sorted set: job id by the time it comes back, unix seconds
BEAT = OURS + "beat"  # string: when anybody last beat, and since when somebody has
CORRUPT = OURS + "corrupt"  # list: what was found in a queue and is no message
QUARANTINE = OURS + "quarantine:"  # list per queue: the suspects among its messages
SUSPECT = OURS + "suspect"  # string: delivery tag of the suspect that was handed out last
POISONED = OURS + "poisoned"  # list: queue, newline, message that has taken its workers with it
CANARY = OURS + "canary:"  # string per queue: when a worker last came to a canary, unix seconds
SLOT = OURS + "slot:"  # string per entry of the schedule and slot: it is sent; ends by itself
BELL = OURS + "bell:"  # list of at most one element per queue: something came in


def quarantine(queue: str) -> str:
    """Return the key of the suspects of *queue*."""
    return QUARANTINE + queue


def bell(queue: str) -> str:
    """Return the key of the doorbell of *queue*."""
    return BELL + queue
