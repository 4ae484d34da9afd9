"""What Sentry hears: each dead letter once, what waits for a person, and what we did not expect.

Sentry's own Celery integration stays off: it captures what a task raises where ours do not know
yet what will become of it, adds headers to each message, and wraps each run. The table of
`config.policies` has decided when something is reported here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

from celery import signals
from opentelemetry.trace import format_trace_id

from classifiers.errors import Cancelled, JobError, UserError, kinds
from config.policies import Action, Decision, row_for
from config.settings import settings
from reliability.causes import fingerprint
from reliability.dead_letters import Letter
from reliability.redaction import Redaction, redaction
from tasks import traces
from tasks.traces import job_of

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

logger = logging.getLogger(__name__)

REPORTED = {"reported": True}  # `extra` of a line about what is reported here with more facts
KINDS = {kind.__name__: kind for kind in kinds()}
# What is tried again by itself ends well, or in a letter that is told of.
WORTH_A_WORD = frozenset({Action.PARK, Action.ABORT, Action.SHUTDOWN})
QUEUED = 1_000  # events that wait to be sent; what dies faster than that is counted by Sentry's SDK
LAST_WORDS = 2.0  # s that a process which ends gives to its last events
AGAIN_AFTER = 300.0  # s; one upstream that refuses us is one piece of news, not one for each job
SPAN = 16  # digits of the id of a span
MOST_CAUSES = 1_000  # remembered by a process

_last_told: dict[str, float] = {}
_telling = Lock()


# -- beginning and end


def begin() -> None:
    """Connect to Sentry if SENTRY_DSN is set. Events are sent by a thread: nobody waits for it."""
    dsn = settings().sentry_dsn
    if dsn is None:
        return
    import sentry_sdk  # noqa: PLC0415 - who has no Sentry pays neither its time nor its memory
    from sentry_sdk.integrations.atexit import AtexitIntegration  # noqa: PLC0415
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration  # noqa: PLC0415

    if sentry_sdk.get_client().is_active():
        return
    sentry_sdk.init(
        dsn.get_secret_value(),
        release=settings().release,  # empty rather than what git says of the current folder
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[AtexitIntegration(lambda *_: None), ExcepthookIntegration()],
        auto_session_tracking=False,
        include_local_variables=False,  # they hold payloads and headers
        max_request_body_size="never",
        max_breadcrumbs=0,
        transport_queue_size=QUEUED,
        shutdown_timeout=LAST_WORDS,
        before_send=_without_secrets,
    )


@signals.after_setup_logger.connect
def listen(logger: logging.Logger, **_: Any) -> None:
    """Report what is logged as an error through *logger*, in workers, beat and the API."""
    begin()
    if settings().sentry_dsn is None:
        return
    from sentry_sdk.integrations.logging import EventHandler  # noqa: PLC0415

    handler = EventHandler(level=logging.ERROR)
    handler.addFilter(_is_news)
    logger.addHandler(handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nobody else tells Sentry. Of jobs that fail, and of Redis being away, others do."""
    if getattr(record, "reported", False):
        return False
    theirs = record.name.partition(".")[0] in {"celery", "kombu", "opentelemetry"}
    return not theirs or record.levelno >= logging.CRITICAL


@signals.worker_process_shutdown.connect
def send_the_last(**_: Any) -> None:
    """A child of the prefork pool ends without Python's own farewell."""
    if settings().sentry_dsn is not None:
        import sentry_sdk  # noqa: PLC0415

        sentry_sdk.flush(LAST_WORDS)


# -- what is told


def report_letter(dead: Letter, error: BaseException | None, private: Any) -> None:
    """Tell of a job that has died, unless that was meant or its user can mend it. Raises nothing.

    *private* is what of its payload nobody may see: all but its ids.
    """
    kind = KINDS.get(dead.error_type, JobError)
    if settings().sentry_dsn is None or issubclass(kind, UserError | Cancelled):
        return
    with unharmed(dead.message_id):
        tags = {
            "task": dead.message_body.task,
            "service": dead.service,
            "error_type": dead.error_type,
            "category": dead.category,
            "queue": dead.original_queue,
            "trace_id": dead.metadata.trace_id,
        }
        job = {
            "message_id": dead.message_id,
            "attempts": dead.metadata.retry_count + 1,
            "replays": dead.replays,
            "code": dead.code,
        }
        cause = _cause(tags, dead.code, dead.error_message)
        level = row_for(kind, dead.message_body.task)[1].level
        _send(cause, tags, job, level, error or _told(dead), private)


def report_wait(error: JobError, decision: Decision, of: Mapping[str, Any], private: Any) -> None:
    """Tell of a job that waits for a person, or stops its worker. Raises nothing.

    Of each cause that is told once in a while, and not for each job. *of* is what `job_at` says.
    """
    alerting = decision.policy.alert and decision.action in WORTH_A_WORD
    if settings().sentry_dsn is None or not alerting:
        return
    with unharmed(of["message_id"]):
        tags = {
            "task": of["task"],
            "service": error.service,
            "error_type": type(error).__name__,
            "category": error.category,
            "queue": of["queue"] or "",
            "trace_id": of["trace_id"],
        }
        job = {"message_id": of["message_id"], "attempts": of["attempt"], "code": error.code}
        cause = _cause(tags, error.code, str(error))
        if _is_new(cause):
            _send(cause, tags, job, decision.policy.level, error, private)


def _told(dead: Letter) -> BaseException:
    """Return the end of a job that no exception of this process has ended."""
    kind: type[Exception] = type(dead.error_type, (Exception,), {})
    return kind(dead.error_message)


def _cause(tags: Mapping[str, str], code: str, message: str) -> str:
    """Return the fingerprint that the dead letter has or will have."""
    task, service, kind = tags["task"], tags["service"], tags["error_type"]
    return fingerprint(task, service, kind, *map(redaction().of, (code, message)))


@contextmanager
def unharmed(job: str) -> Iterator[None]:
    """Let a job end as it would without Sentry."""
    try:
        yield
    except Exception:
        logger.warning("%s: Sentry could not be told", job, exc_info=True)


def forget() -> None:
    """Take every cause for a new one again."""
    _last_told.clear()


def _is_new(cause: str) -> bool:
    now = time.monotonic()
    with _telling:
        if now - _last_told.get(cause, -AGAIN_AFTER) < AGAIN_AFTER:
            return False
        if len(_last_told) >= MOST_CAUSES:
            _last_told.clear()
        _last_told[cause] = now
    return True


def _send(
    cause: str,
    tags: Mapping[str, str],
    job: Mapping[str, Any],
    level: int,
    error: BaseException,
    private: Any,
) -> None:
    import sentry_sdk  # noqa: PLC0415
    from sentry_sdk.utils import event_from_exception  # noqa: PLC0415

    event, hint = event_from_exception(
        error,
        client_options=sentry_sdk.get_client().options,
        mechanism={"type": "perennial", "handled": True},
    )
    unsaid = Redaction(set(_words(private)))
    event["exception"]["values"][-1]["value"] = str(error)  # with its service and code
    for value in event["exception"]["values"]:
        value["value"] = unsaid.of(str(value.get("value", "")))
    number = format_trace_id(traces.number(tags["trace_id"]))
    facts: Any = {
        "level": "fatal" if level >= logging.CRITICAL else "error",
        "logger": __name__,
        "transaction": tags["task"],
        "fingerprint": [cause],
        "tags": {name: value for name, value in tags.items() if value},
        # Sentry's own idea of a trace is a thread of ours: its jobs have nothing in common.
        "contexts": {"job": dict(job), "trace": {"trace_id": number, "span_id": number[-SPAN:]}},
    }
    event.update(facts)
    sentry_sdk.capture_event(event, hint)


def _words(value: Any) -> Iterator[str]:
    """Yield every text inside of a payload, but for names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _words(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)


def _without_secrets(event: Event, hint: Hint) -> Event:
    """Hide secrets; a line of a log goes without what it says of payloads, and names its job."""
    record = hint.get("log_record")
    if record is not None:
        of = job_of(record)
        event["tags"] = {n: str(of[n]) for n in ("task", "trace_id", "queue") if of.get(n)}
        event["contexts"] = {
            **event.get("contexts", {}),
            "job": {"message_id": of.get("message_id")},
        }
        event["logentry"] = {"message": str(record.msg)}
        event.pop("extra", None)
    safe: Event = _hidden(event)
    return safe


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return redaction().of(value)
    if isinstance(value, Mapping):
        return {name: _hidden(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value
