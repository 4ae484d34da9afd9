"""What tasks count, in the words of docs/metrics.md; `reliability.counters` keeps it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Any

from celery import signals

from classifiers.errors import JobError, Unclassified, Waiting
from config.policies import WAITS, Action
from reliability.counters import label, tally, tell_quietly

# The upper bounds of the histogram, in seconds: from a look at the database to the longest call
# (Telegram's uploads may take 120 s) and a delivery that tries every way.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
BUCKETS = (*map(str, BOUNDS), "+Inf")
MICROSECOND = 1e-6  # sums are kept as whole numbers, which add up without an error

UNKNOWN = "unknown"  # a task that is none of ours, whatever it is called
DONE, DEAD, CANCELLED, EXPIRED = "done", "dead", "cancelled", "expired"


def ran(task: str, seconds: float) -> None:
    """Count one run of a job, whatever came of it."""
    counts = tally()
    counts.count("job_duration_seconds", task, BUCKETS[bisect.bisect_left(BOUNDS, seconds)])
    counts.count("job_duration_microseconds", task, by=round(seconds / MICROSECOND))


def succeeded(task: str, result: Any) -> None:
    """Count a job that is done, by the one word of its result."""
    word = result.get("outcome") if isinstance(result, Mapping) else None
    ended(task, word if isinstance(word, str) else DONE)


def ended(task: str, outcome: str) -> None:
    """Count the end of a job."""
    tally().count("jobs_total", task, label(outcome))


def failed(error: JobError) -> None:
    """Count what has failed; to wait is not to fail."""
    if isinstance(error, Waiting):
        return
    service, kind = label(error.service), type(error)
    tally().count("job_errors_total", service, kind.__name__, kind.category)
    if isinstance(error, Unclassified):
        tally().count("unclassified_errors_total", service)


def comes_back(task: str, error: JobError, action: Action) -> None:
    """Count a retry that was spent, or a wait, which spends none."""
    name = "job_waits_total" if action in WAITS else "job_retries_total"
    tally().count(name, task, type(error).__name__)


def refunded() -> None:
    """Count a charge that was given back."""
    tally().count("refunds_total")


def checkpoint() -> None:
    """Count a checkpoint of a crawl."""
    tally().count("checkpoints_total")


@signals.task_revoked.connect
def revoked(sender: Any = None, expired: bool = False, **_: Any) -> None:
    """Count a recurring job that somebody has ended, or that came too late to be of use.

    Any other one is a dead letter, and counted as such.
    """
    if getattr(sender, "recurring", False):
        ended(sender.name, EXPIRED if expired else CANCELLED)


@signals.worker_shutdown.connect
@signals.worker_process_shutdown.connect
def tell_the_rest(**_: Any) -> None:
    """Tell what was counted last; a child of the prefork pool ends without further ado."""
    tell_quietly(tally())
