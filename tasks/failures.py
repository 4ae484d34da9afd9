"""The last stop: every way a job can end without being done becomes a dead letter, once.

Celery swallows what a signal handler raises and then acknowledges the message, so nothing here may
fail: what Redis refuses goes to the spool, what the disk refuses goes to the log, whole.
"""

from __future__ import annotations

import hashlib
import logging
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from celery import signals
from celery.utils.time import maybe_iso8601
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.state import revoked

from classifiers.errors import Cancelled, InvalidData, JobError, Permanent, PoisonPill
from config.history import History
from config.settings import settings
from reliability import quarantine
from reliability.dead_letters import (
    Body,
    Compensation,
    Letter,
    Metadata,
    dead_letters,
    replays_of,
)
from reliability.redaction import redaction, storable
from reliability.replays import note_death
from tasks import app, measures
from tasks.base import accepted_at, classified
from tasks.compensation import (
    compensate,
    compensations,
    ids_to_amend,
    note_failed_compensation,
    operation_named,
)
from tasks.payloads import version_of
from tasks.reports import REPORTED, report_letter
from tasks.traces import about

logger = logging.getLogger(__name__)

REVOKED = "revoked"  # code of a letter: workers know its job as one that must not run

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
                flaw = flaw_of(message)
                if not flaw:
                    with about(message):
                        handle(message)
                    return
            except MALFORMED as error:
                if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                    raise
                flaw = str(error)
            bury_message(message, InvalidData(f"the message is no task: {flaw}"))
            message.ack_log_error(logger, self.connection_errors)

        return on_task_received

    # Each of the following takes the message off its queue; its letter is written before.

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Bury a body that cannot be decoded."""
        bury_message(message, exc)
        super().on_decode_error(message, exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Bury a call of a task that nobody here has: an old worker, or a misspelt publisher."""
        name = str(exc.args[0])
        error = InvalidData(f"no task is called {name!r} here", code="unknown_task")
        bury_message(message, error, task=name)
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Bury a message whose content type is not allowed, or whose headers make no sense."""
        bury_message(message, exc)
        super().on_invalid_task(body, message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Bury a message that calls no task."""
        bury_message(message, InvalidData("the message is no task: it names none"))
        super().on_unknown_message(body, message)

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
        ),
        exception,
    )
    if sender.name in compensations():
        note_failed_compensation(kwargs or {})


@signals.task_revoked.connect
def on_revoked(
    sender: Any = None,
    request: Any = None,
    expired: bool = False,
    terminated: bool = False,
    **_: Any,
) -> None:
    """The job expired before it ran, or somebody has revoked it.

    One that is sent again and again leaves nothing: the next one does the same.
    """
    if getattr(sender, "recurring", False):
        return
    headers = dict(getattr(request, "headers", None) or {})
    error: Permanent = Cancelled(f"it was revoked{' while it ran' * terminated}", code=REVOKED)
    if expired:
        error = Permanent("the job expired before a worker came to it", code="expired")
        revoked.discard(request.id)  # Celery puts it there, and would not run its replay
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
    """Bury a message that never became a job."""
    unreadable = InvalidData(f"the message cannot be read: {error}")
    fact = error if isinstance(error, JobError) else unreadable
    queue = str((message.delivery_info or {}).get("routing_key") or "")
    bury(of_message(message, fact, queue=queue, task=task))


def bury_corrupt(queue: str, raw: bytes) -> None:
    """Bury an item of a queue's list that is no message at all; its bytes are its name."""
    error = InvalidData("the queue held something that is no message", code="corrupt_item")
    name = f"corrupt-{hashlib.sha256(queue.encode() + raw).hexdigest()[:24]}"
    dead = letter(name, task="", args=(), kwargs={}, error=error, queue=queue, headers={}, raw=raw)
    if not bury(dead):
        raise OSError("the item stays where it is until its letter can be written")


def bury_poison(queue: str, raw: bytes) -> None:
    """Bury a job that has killed its workers, and tell whoever waits for its result."""
    message, deaths = quarantine.opened(raw)
    error = PoisonPill(f"{deaths} workers have died with it, the last one while it ran alone")
    dead = of_message(message, error, queue=queue)
    if not bury(dead):
        raise OSError("the job stays where it is until its letter can be written")
    told = "%s[%s] %s", dead.message_body.task, dead.message_id, error.detail
    logger.critical(*told, extra=REPORTED)
    if settings().keep_results:
        app.backend.mark_as_failure(dead.message_id, error)


def of_message(message: Any, error: JobError, *, queue: str, task: str = "") -> Letter:
    """Tell of a message: its call if that can be read, and can be replayed then, else its bytes."""
    headers = dict(message.headers or {})
    job_id = str(headers.get("id") or f"message-{message.delivery_tag}")
    call = _call_in(message)
    args, kwargs = call or ((), {})
    return letter(
        job_id,
        task=task or str(headers.get("task") or ""),
        args=args,
        kwargs=kwargs,
        error=error,
        queue=queue,
        headers=headers,
        trace_id=str(headers.get("root_id") or job_id),
        raw=b"" if call else _bytes_of(message),
    )


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
    fact = classified(error if isinstance(error, Exception) else Exception(str(error)))
    kind = type(error).__name__
    history = History.from_headers(headers)
    version = version_of(headers)
    about = ids_to_amend(task, args, kwargs, version)
    last = history.after(
        fact,
        action="dead_letter",
        delay=0.0,
        spends="",
        waits=True,
        at=now,
        said=redaction().of(str(fact)),
    )
    return Letter(
        # Whatever stands in a foreign message in their places.
        message_id=storable(str(job_id)),
        original_queue=str(queue),
        error_type=kind,
        error_message=str(error) or kind,
        message_body=Body(task, tuple(args or ()), dict(kwargs or {})),
        metadata=Metadata(
            failed_at=datetime.fromtimestamp(now, UTC),
            received_at=accepted_at(headers),
            retry_count=history.attempts,
            trace_id=str(trace_id or job_id),
        ),
        category=fact.category,
        service=fact.service,
        code=fact.code,
        traceback=traceback,
        history=last.entries,
        headers=headers,
        payload_version=version if type(version) is int else 0,
        raw=b64encode(raw).decode(),
        release=settings().release,
        replays=replays_of(headers),
        compensation=Compensation("needed", about) if about else Compensation(),
    )


def bury(dead: Letter, error: BaseException | None = None) -> bool:
    """Write the letter, then have made good what the job had begun; raise nothing.

    *error* is what ended the job, where it still has its traceback. False if the letter could be
    written nowhere but to the log.
    """
    try:
        written = dead_letters().bury_or_spool(dead)
    except Exception:  # the store has logged the letter, without secrets
        logger.critical("the dead letter %s was not written", dead.message_id, exc_info=True)
        return False
    if written:
        told = "%s[%s] dead-lettered: %s", dead.message_body.task, dead.message_id
        logger.error(*told, dead.error_message, extra={"error_type": dead.error_type, **REPORTED})
        _report(dead, error)
        task = dead.message_body.task
        measures.ended(task if task in app.tasks else measures.UNKNOWN, measures.DEAD)
    note_death(dead.headers, dead.message_id)
    compensate(dead)
    return True


def _report(dead: Letter, error: BaseException | None) -> None:
    args, kwargs = dead.message_body.args, dead.message_body.kwargs
    known = operation_named(dead.message_body.task)
    report_letter(dead, error, [args, known.payload.private(kwargs) if known else kwargs])


def _bytes_of(message: Any) -> bytes:
    return message.body if isinstance(message.body, bytes) else str(message.body).encode()


def flaw_of(message: Any) -> str:
    """Say what is wrong with a message that Celery would make a job of, and lose; empty if nothing.

    Such a job would end in its thread before it begins, and be held as long as the worker runs; or
    its time is one that Celery cannot reckon with. Of what cannot be decoded Celery tells us.
    """
    headers = message.headers or {}
    if "task" not in headers:
        return ""
    try:
        body = message.payload  # decoded once: Celery looks at it next
    except Exception:  # noqa: BLE001 - whatever a decoder raises
        return ""
    if _call_of(body) is None:
        return "its body is no call, which is [args, kwargs, options]"
    if not isinstance(headers.get("id", ""), str):
        return "its id is no text"
    # Of an eta our transport leaves none but past ones, and what it cannot read.
    wrong = (name for name in ("eta", "expires") if not is_time(headers.get(name)))
    return next((f"its {name} is no time: {str(headers[name])[:100]}" for name in wrong), "")


def is_time(told: Any) -> bool:
    """Whether Celery can reckon with what a message says of a time, if it says anything."""
    try:
        if told:
            maybe_iso8601(told).astimezone().timestamp()
    except (ValueError, TypeError, OverflowError, AttributeError):
        return False
    return True


def _call_in(message: Any) -> tuple[list[Any], dict[str, Any]] | None:
    """Return (args, kwargs) of a message, or None if they cannot be read."""
    try:
        return _call_of(message.decode())
    except Exception:  # noqa: BLE001 - it is here because it could not be read
        return None


def _call_of(body: Any) -> tuple[list[Any], dict[str, Any]] | None:
    match body:
        case [list(args), dict(kwargs), dict() | None]:
            return args, kwargs
        case {"args": list(args), "kwargs": dict(kwargs)}:  # as Celery 3 wrote it
            return args, kwargs
        case _:
            return None
