"""The last stop: every way a job can end without being done becomes a dead letter, once.

Celery swallows what a signal handler raises and then acknowledges the message, so nothing here may
fail: what Redis refuses goes to the spool, what the disk refuses goes to the log, whole.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import OperationalError

from classifiers.errors import Cancelled, InvalidData, JobError, Permanent, Unclassified, kinds
from config.history import History
from config.settings import settings
from reliability import corrupt
from reliability.connection import RedisError, redis_bytes
from reliability.dead_letters import Body, Compensation, Letter, Metadata, dead_letters
from reliability.parking import Parked, parking
from tasks import app
from tasks.base import Job, Operation, accepted_at, classified, replays
from tasks.payloads import HIDDEN

logger = logging.getLogger(__name__)

UPKEEP_INTERVAL = 5.0  # seconds: an operator should find a letter while looking for it
# What Celery raises while it unpacks a message that is JSON, but not [args, kwargs, embed].
MALFORMED = (ValueError, TypeError, KeyError, AttributeError)


class Consumer(CeleryConsumer):
    """Celery's consumer, which keeps what Celery would throw away."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        """Return Celery's handler, made to survive JSON that is no task.

        Celery 5.7 lets the exception through, and the worker ends with it (measured).
        """
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            try:
                handle(message)
            except MALFORMED as error:
                if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                    raise
                bury_message(message, InvalidData(f"the message is no task: {error}"))
                message.ack_log_error(logger, self.connection_errors)

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Bury a body that cannot be decoded; Celery logs and acknowledges it after that."""
        bury_message(message, exc)
        super().on_decode_error(message, exc)

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge in the thread that ran the job: our transport lets any thread do so.

        Celery asks the event loop to; a worker that is leaving has none any more, and its last
        jobs would stay unacknowledged until all of them have ended.
        """
        return p(*args, **kwargs)


# -- the ways to die


@signals.task_failure.connect
def on_failure(
    sender: Any = None,
    task_id: str = "",
    exception: Exception | None = None,
    args: Any = (),
    kwargs: Any = None,
    einfo: Any = None,
    **_: Any,
) -> None:
    """A job failed for good: retries are spent, or nothing would come of one."""
    request = sender.request if sender.request.id == task_id else None
    headers = dict(request.headers or {}) if request else {}
    delivery = (request.delivery_info if request else None) or {}
    bury(
        letter(
            task_id,
            task=sender.name,
            args=args,
            kwargs=kwargs,
            error=exception or RuntimeError("failed without an exception"),
            queue=delivery.get("routing_key") or "",
            headers=headers,
            trace_id=(request.root_id if request else "") or task_id,
            traceback=str(getattr(einfo, "traceback", "") or ""),
        )
    )
    if sender.name in compensations():
        note_failed_compensation(kwargs or {})


def compensations() -> set[str]:
    """Return the names of the tasks that make good what others have begun."""
    return {task.compensation for task in app.tasks.values() if isinstance(task, Operation)} - {""}


def note_failed_compensation(amends: Mapping[str, Any]) -> None:
    """Say so in the letter it was for: a person has to see to it, with this one's own letter."""
    try:
        dead_letters().compensate(str(amends.get("job_id")), "failed", of=amends.get("replays"))
    except RedisError as error:
        logger.warning("%s: that its compensation failed: %s", amends.get("job_id"), error)


@signals.task_unknown.connect
def on_unknown(message: Any = None, name: str = "", **_: Any) -> None:
    """Nobody here has a task of that name: an old worker, or a misspelt publisher."""
    error = InvalidData(f"no task is called {name!r} here", code="unknown_task")
    bury_message(message, error, task=str(name))


@signals.task_rejected.connect
def on_rejected(message: Any = None, exc: Any = None, **_: Any) -> None:
    """The message is no task, or its content type is not allowed."""
    bury_message(message, exc or InvalidData("the message is no task"))


@signals.task_revoked.connect
def on_revoked(sender: Any = None, request: Any = None, expired: bool = False, **_: Any) -> None:
    """The job expired before it ran. One revoked by a person was meant to end."""
    if not expired:
        return
    headers = dict(getattr(request, "headers", None) or {})
    error = Permanent("the job expired before a worker came to it", code="expired")
    bury(
        letter(
            request.id,
            task=sender.name,
            args=request.args,
            kwargs=request.kwargs,
            error=error,
            queue=(request.delivery_info or {}).get("routing_key") or "",
            headers=headers,
            trace_id=request.root_id or request.id,
        )
    )


def bury_message(message: Any, error: Exception, task: str = "") -> None:
    """Bury a message that never became a job, with its true bytes."""
    headers = dict(message.headers or {})
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    job_id = str(headers.get("id") or f"message-{message.delivery_tag}")
    args, kwargs = _readable(message)
    bury(
        letter(
            job_id,
            task=task or str(headers.get("task") or ""),
            args=args,
            kwargs=kwargs,
            error=error if isinstance(error, JobError) else InvalidData(str(error)),
            queue=str((message.delivery_info or {}).get("routing_key") or ""),
            headers=headers,
            trace_id=str(headers.get("root_id") or job_id),
            raw=body,
        )
    )


def bury_corrupt(queue: str, raw: bytes) -> None:
    """Bury an item of a queue's list that is no message at all; its bytes are its name."""
    error = InvalidData("the queue held something that is no message", code="corrupt_item")
    name = f"corrupt-{hashlib.sha256(queue.encode() + raw).hexdigest()[:24]}"
    dead = letter(name, task="", args=(), kwargs={}, error=error, queue=queue, headers={}, raw=raw)
    if not bury(dead):
        raise OSError("the item stays where it is until its letter can be written")


def letter(
    job_id: str,
    *,
    task: str,
    args: Any,
    kwargs: Any,
    error: BaseException,
    queue: str,
    headers: Mapping[str, Any],
    trace_id: str = "",
    traceback: str = "",
    raw: bytes = b"",
) -> Letter:
    """Tell the whole story of one job. *error* may be anything that Celery reports."""
    now = time.time()
    fact = error if isinstance(error, JobError) else classified(Exception(str(error)))
    kind = type(error).__name__
    history = History.from_headers(headers)
    about = ids_to_amend(task, args, kwargs)
    last = history.after(fact, action="dead_letter", delay=0.0, spends="", waits=True, at=now)
    return Letter(
        message_id=job_id,
        original_queue=queue,
        error_type=kind,
        error_message=str(error) or kind,
        message_body=Body(task, tuple(args or ()), dict(kwargs or {})),
        metadata=Metadata(
            failed_at=datetime.fromtimestamp(now, UTC),
            received_at=accepted_at(headers),
            retry_count=history.attempts,
            trace_id=trace_id or job_id,
        ),
        category=fact.category,
        service=fact.service,
        code=fact.code,
        traceback=traceback,
        history=last.entries,
        headers=headers,
        raw=b64encode(raw).decode(),
        replays=replays(headers),
        compensation=Compensation("needed", about) if about else Compensation(),
    )


def bury(dead: Letter) -> bool:
    """Write the letter, then have made good what the job had begun; raise nothing.

    False if it could be written nowhere but to the log.
    """
    try:
        written = dead_letters().bury_or_spool(dead)
    except Exception:  # the store has logged the letter, without secrets
        logger.critical("the dead letter %s was not written", dead.message_id, exc_info=True)
        return False
    if written:
        logger.error(
            "%s[%s] dead-lettered: %s", dead.message_body.task, dead.message_id, dead.error_message
        )
    compensate(dead)
    return True


# -- what a dead job had begun


def ids_to_amend(task: str, args: Any, kwargs: Any) -> dict[str, str]:
    """Return the ids in a payload, if the task has a compensation to pass them to.

    None of a payload that the task could not have worked with: nothing was begun.
    """
    known = operation_named(task)
    if known is None or not known.compensation:
        return {}
    try:
        return known.payload.ids(known.payload.read(tuple(args or ()), dict(kwargs or {})))
    except JobError:
        return {}


def operation_named(task: str) -> Operation | None:
    """Return the operation of that name; a command line has imported none until it is asked."""
    app.loader.import_default_modules()
    known = app.tasks.get(task)
    return known if isinstance(known, Operation) else None


def compensate(dead: Letter) -> None:
    """Send the compensation of a letter that needs one; raise nothing: the upkeep tries again.

    First the job, then the mark: sent twice it has one effect.
    """
    if dead.compensation.state not in {"needed", "sent"}:
        return
    # The letter's own count goes up when it is replayed; this is about the run that died.
    job = Job(dead.message_id, replays=replays(dead.headers))
    kind = KINDS.get(dead.error_type, Unclassified)
    try:
        amend(dead.message_body.task, dead.compensation.about, job, kind, queue=dead.original_queue)
        dead_letters().compensate(dead.message_id, "sent")
    except (OperationalError, RedisError) as unsent:
        logger.warning("the compensation of %s is sent later: %s", dead.message_id, unsent)


def amend(
    task: str, ids: Mapping[str, str], job: Job, kind: type[JobError], *, queue: str = ""
) -> None:
    """Send the compensation of a job about *ids* that *kind* has ended.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
    """
    operation = operation_named(task)
    assert operation is not None  # noqa: S101 - `ids_to_amend` has found it
    app.tasks[operation.compensation].apply_async(
        kwargs=operation.amends(kind, job, ids),
        task_id=f"{job.id}-amends-{job.replays}",
        queue=queue or None,  # whoever runs such jobs can run their compensation
    )


def cancel(parked: Parked) -> bool:
    """Take a parked job out for good, and have made good what it had begun.

    That first: whoever has taken the job in this moment finds that it is over. False if it does
    not wait any more.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was changed.
    """
    ids = ids_to_amend(parked.task, parked.args, parked.kwargs)
    if ids:
        job = Job(parked.message_id, replays=parked.replays)
        amend(parked.task, ids, job, Cancelled, queue=parked.queue)
    return parking().cancel(parked.message_id) is not None


# -- back to life

OURS = ("accepted_at",)  # headers that survive; what was spent and waited starts afresh
KINDS = {kind.__name__: kind for kind in kinds()}


def send_again(dead: Letter, *, by: str = "") -> bool:
    """Send the job of a letter again, with a fresh budget: first the job, then the mark.

    A crash in between leaves the letter open and the job sent; sending twice is harmless, because
    effects are looked up before they are had. False if the letter cannot be replayed as it is, or
    somebody else has settled it.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
    """
    if not dead.replayable:
        return False
    task = operation_named(dead.message_body.task)
    shown = task.payload.shown(dead.message_body.kwargs) if task else HIDDEN
    headers = {name: value for name, value in dead.headers.items() if name in OURS}
    if settings().keep_results:
        app.backend.forget(dead.message_id)  # whoever asks now waits for the new one
    app.send_task(
        dead.message_body.task,
        args=list(dead.message_body.args),
        kwargs=dict(dead.message_body.kwargs),
        task_id=dead.message_id,
        root_id=dead.metadata.trace_id or None,
        queue=dead.original_queue or None,
        priority=task.priority if task else None,
        argsrepr=HIDDEN,
        kwargsrepr=shown,
        headers={**headers, "replays": dead.replays + 1, "sent_again_at": time.time()},
    )
    return dead_letters().mark_replayed(dead, by=by)


def _readable(message: Any) -> tuple[Any, Any]:
    """Return (args, kwargs) of a message if it has any."""
    try:
        args, kwargs, _ = message.decode()
    except Exception:  # noqa: BLE001 - it is here because it could not be read
        return (), {}
    return args, kwargs if isinstance(kwargs, Mapping) else {}


# -- the upkeep of what waits to become a letter


class Upkeep(threading.Thread):
    """Turns spooled letters and corrupt queue items into letters, while this worker runs."""

    def __init__(self) -> None:
        super().__init__(name="upkeep", daemon=True)
        self.stopped = threading.Event()

    def run(self) -> None:
        """Look every few seconds; Redis being away is no news here."""
        while not self.stopped.wait(UPKEEP_INTERVAL):
            try:
                dead_letters().drain_spool()
                send_what_is_owed()
                corrupt.drain(redis_bytes(), bury_corrupt, prefix=settings().redis_stream_prefix)
            except RedisError as error:
                logger.debug("upkeep waits for Redis: %r", error)
            except Exception:
                logger.exception("upkeep failed; it goes on")


def send_what_is_owed() -> None:
    """Send the compensations that could not be sent when their letters were written."""
    for message_id in dead_letters().owed():
        dead = dead_letters().get(message_id)
        if dead is not None:
            compensate(dead)


@signals.worker_ready.connect
def start_upkeep(sender: Any = None, **_: Any) -> None:
    """Start the upkeep beside this worker."""
    sender.upkeep = Upkeep()
    sender.upkeep.start()


@signals.worker_shutting_down.connect
def stop_upkeep(**_: Any) -> None:
    """Let the upkeep end with its worker."""
    for thread in threading.enumerate():
        if isinstance(thread, Upkeep):
            thread.stopped.set()
