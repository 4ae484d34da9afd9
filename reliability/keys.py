"""The name of every Redis key of ours. Queues keep kombu's own layout: one list per queue."""

from __future__ import annotations

OURS = "perennial:"
PARKED = OURS + "parked"  # hash: job id → list key, newline, message
PARKED_DUE = OURS + "parked:due"  # sorted set: job id by the time it comes back, unix seconds
PARKED_KINDS = OURS + "parked:kinds"  # set: service, space, reason of the jobs that ever waited
# and of those that a person holds back, as long as some wait, colon, hold
PARKED_OF = OURS + "parked:of:"  # sorted set per kind: job id by when it was accepted
LEAVING = OURS + "leaving"  # hash: as the parked jobs, while another broker is given them
LEAVING_SINCE = OURS + "leaving:since"  # sorted set: job id by when it left, unix seconds
LEAVING_ACCEPTED = OURS + "leaving:accepted"  # sorted set: job id by when it was accepted
BEAT = OURS + "beat"  # string: when anybody last beat, and since when somebody has
CORRUPT = OURS + "corrupt"  # list: what was found in a queue and is no message
QUARANTINE = OURS + "quarantine:"  # list per queue: the suspects among its messages
SUSPECT = OURS + "suspect"  # string: delivery tag of the suspect that was handed out last
SUSPECTS = OURS + "suspects:"  # hash per queue: on RabbitMQ, run of a suspect → its message
DEATHS = OURS + "deaths:"  # string per run of a job: workers on RabbitMQ that died with it
SPARED = OURS + "spared:"  # string per run of a job: its worker lost the connection, and lives
TURN = OURS + "suspect:turn"  # string: whose turn it is to run suspects; ends by itself
POISONED = OURS + "poisoned"  # list: queue, newline, message that has taken its workers with it
CANARY = OURS + "canary:"  # string per queue: when a worker last came to a canary, unix seconds
# and with :asked, where none ever has, when one was sent at first
SLOT = OURS + "slot:"  # string per entry of the schedule and slot: it is sent; ends by itself
COUNTS = OURS + "counts"  # hash: what was counted, newline, its labels, line by line → how often
WORKERS = OURS + "workers"  # sorted set: host:process by the time it last reported, unix seconds
SPOOLS = OURS + "spools"  # hash: host → letters that wait in its spool, space, torn ones
BELL = OURS + "bell:"  # list of at most one element per queue: something came in


def quarantine(queue: str) -> str:
    """Return the key of the suspects of *queue*."""
    return QUARANTINE + queue


def bell(queue: str) -> str:
    """Return the key of the doorbell of *queue*."""
    return BELL + queue
