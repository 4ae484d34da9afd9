"""What has to be seen to by the clock, and by one worker: beat sends these jobs."""

from __future__ import annotations

from typing import Any

from celery import signals

from reliability import liveness
from tasks import operation, retention
from tasks.base import stopping
from tasks.compensation import send_what_is_owed
from tasks.replay import drive_what_stands_still

Outcome = dict[str, Any]


@operation(name="upkeep.trim", recurring=True)
def trim() -> Outcome:
    """Move letters that are old, or too many, to the archive."""
    archived = letters = retention.trim()
    while letters == retention.AT_ONCE and not stopping():
        letters = retention.trim()
        archived += letters
    return {"outcome": "trimmed", "archived": archived}


@operation(name="upkeep.compensate", recurring=True)
def compensate() -> Outcome:
    """Send the compensations that a crash, or a broker that was away, has left unsent."""
    some = sent = send_what_is_owed()
    while some and not stopping():
        some = send_what_is_owed()
        sent += some
    return {"outcome": "sent", "compensations": sent}


@operation(name="upkeep.ramps", recurring=True)
def ramps() -> Outcome:
    """Have those ramped replays go on that stand still since a crash."""
    return {"outcome": "driven", "runs": drive_what_stands_still()}


@operation(name="upkeep.canary", recurring=True, ignore_result=True, send_events=False)
def canary(queue: str) -> Outcome:
    """Tell that somebody takes jobs from *queue*."""
    liveness.heard(queue)
    return {"outcome": "heard"}


@signals.task_revoked.connect
def hear_a_late_canary(
    sender: Any = None, request: Any = None, expired: bool = False, **_: Any
) -> None:
    """One that has expired behind many jobs tells the same: somebody has come to it."""
    if expired and sender.name == canary.name:
        liveness.heard(str(request.kwargs.get("queue")))
