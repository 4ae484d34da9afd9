"""What a dead job had begun is made good: after its letter, by a job that may run twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kombu.exceptions import OperationalError

from classifiers.errors import Cancelled, JobError, Unclassified, kinds
from config.settings import settings
from reliability.connection import RedisError
from reliability.dead_letters import OWED, Letter, dead_letters
from reliability.parking import Parked, parking
from tasks import app, measures
from tasks.base import Job, Operation

logger = logging.getLogger(__name__)

KINDS = {kind.__name__: kind for kind in kinds()}


def compensations() -> set[str]:
    """Return the names of the tasks that make good what others have begun."""
    return {task.compensation for task in app.tasks.values() if isinstance(task, Operation)} - {""}


def note_failed_compensation(amends: Mapping[str, Any]) -> None:
    """Say so in the letter it was for: a person has to see to it, with this one's own letter."""
    try:
        dead_letters().compensate(str(amends.get("job_id")), "failed", of=amends.get("replays"))
    except RedisError as error:
        logger.warning("%s: that its compensation failed: %s", amends.get("job_id"), error)


def ids_to_amend(task: str, args: Any, kwargs: Any, version: Any) -> dict[str, str]:
    """Return the ids in a payload of that version, if the task has a compensation for them.

    None of a payload that the task could not have worked with: nothing was begun.
    """
    known = operation_named(task)
    if known is None or not known.compensation:
        return {}
    try:
        return known.payload.ids(known.payload.read(tuple(args or ()), dict(kwargs or {}), version))
    except (JobError, TypeError, ValueError):  # what came may be no arguments at all
        return {}


def operation_named(task: str) -> Operation | None:
    """Return the operation of that name; a command line has imported none until it is asked."""
    app.loader.import_default_modules()
    known = app.tasks.get(task)
    return known if isinstance(known, Operation) else None


def compensate(dead: Letter) -> bool:
    """Send the compensation of a letter that needs one; raise nothing: the upkeep tries again.

    First the job, then the mark: sent twice it has one effect. False if it was not sent.
    """
    if dead.compensation.state not in OWED:
        return False
    try:
        return _compensated(dead)
    except (OperationalError, RedisError) as unsent:
        logger.warning("the compensation of %s is sent later: %s", dead.message_id, unsent)
        return False


def _compensated(dead: Letter) -> bool:
    # The letter's own count goes up when it is replayed; this is about the run that died.
    job = Job(dead.message_id, replays=dead.run)
    if dead.compensation.state == "sent" and parking().get(amending(job)) is not None:
        # It is still at it. Sent once more it would forget its tries, and never give up.
        dead_letters().put_off(dead.message_id)
        return False
    kind = KINDS.get(dead.error_type, Unclassified)
    try:
        trace_id, about = dead.metadata.trace_id, dead.compensation.about
        amend(
            dead.message_body.task, about, job, kind, queue=dead.original_queue, trace_id=trace_id
        )
    except OperationalError:
        raise
    except Exception:  # of another release: that must not keep those behind it from theirs
        logger.exception("the compensation of %s cannot be sent", dead.message_id)
        dead_letters().put_off(dead.message_id)
        return False
    return dead_letters().compensate(dead.message_id, "sent", of=job.replays)


def amending(job: Job) -> str:
    """Return the id of the one job that makes good what *job* has begun."""
    return f"{job.id}-amends-{job.replays}"


def amend(
    task: str,
    ids: Mapping[str, str],
    job: Job,
    kind: type[JobError],
    *,
    queue: str = "",
    trace_id: str = "",
) -> None:
    """Send the compensation of a job about *ids* that *kind* has ended.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
        LookupError: this release knows neither the task nor what makes it good.
    """
    operation = operation_named(task)
    if operation is None:
        raise LookupError(f"no task is called {task!r} here")
    app.tasks[operation.compensation].apply_async(
        kwargs=operation.amends(kind, job, ids),
        task_id=amending(job),
        root_id=trace_id or None,
        queue=queue_of(queue),  # whoever runs such jobs can run their compensation
    )


def queue_of(name: str) -> str | None:
    """Return the queue that a job died in; None where its task is routed now, if that is gone."""
    return name if name in settings().queues else None


def cancel(parked: Parked) -> bool:
    """Take a parked job out for good, and have made good what it had begun.

    That first: whoever has taken the job in this moment finds that it is over. False if it does
    not wait any more.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was changed.
    """
    ids = ids_to_amend(parked.task, parked.args, parked.kwargs, parked.payload_version)
    if ids:
        job = Job(parked.message_id, replays=parked.replays)
        of = {"queue": parked.queue, "trace_id": parked.trace_id}
        amend(parked.task, ids, job, Cancelled, **of)
    cancelled = parking().cancel(parked.message_id) is not None
    if cancelled:
        known = operation_named(parked.task)
        measures.ended(known.name if known else measures.UNKNOWN, measures.CANCELLED)
    return cancelled


def send_what_is_owed() -> int:
    """Send compensations that could not be sent when their letters were written; return how many.

    That is a hundred of them at most; none is left, or none can be sent now, where it is 0. What
    is put off makes room for those behind it.

    Raises:
        RedisError: Redis does not answer.
    """
    owing = (dead_letters().get(message_id) for message_id in dead_letters().owed())
    return sum(compensate(dead) for dead in owing if dead is not None)
