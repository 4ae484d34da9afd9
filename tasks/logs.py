"""Log lines: JSON or for a terminal, each with the job it is about, none with a secret.

Whoever logs does so with `logging.getLogger(__name__)`; Celery, uvicorn and Flower do, too. Their
handlers stay as they are, `--logfile` and levels included: only what a line looks like is ours.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import structlog
from celery import signals
from celery.utils.log import get_multiprocessing_logger
from structlog.typing import EventDict, WrappedLogger

from config.settings import settings
from reliability.redaction import redaction
from tasks.traces import job_of

PREFIXES: Mapping[str, str] = {
    "bitrix.create_deal": "[QUEUE_DEAL]",
    "bitrix.update_deal": "[QUEUE_DEAL_UPDATE]",
    "bitrix.create_contact": "[QUEUE_CONTACT]",
    "bitrix.update_contact": "[QUEUE_CONTACT_UPDATE]",
}
OTHER_JOB = "[QUEUE]"
WORKER = "[WORKER]"  # what a worker says about no job
OURS = ("timestamp", "level")  # in these nothing can be secret
JSON, CONSOLE = "json", "console"
SERVER = "uvicorn"

_of_worker = False


# -- what a line looks like


def told(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Return the fields of a line, in their order."""
    record: logging.LogRecord = event["_record"]
    of = job_of(record)
    raised = event.get("exc_info")
    kind = getattr(record, "error_type", None)
    if kind is None and raised and raised[0] is not None:
        kind = raised[0].__name__
    prefix = _prefix(of)
    line = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds"),
        "level": record.levelname.lower(),
        "event": f"{prefix} {event['event']}" if prefix else event["event"],
        "component": record.name,
        **of,
        "error_type": kind,
        "exc_info": raised,
        "stack_info": event.get("stack_info"),
    }
    return {name: value for name, value in line.items() if value is not None and value != ""}


def _prefix(of: Mapping[str, Any]) -> str:
    if of.get("message_id"):
        return PREFIXES.get(str(of.get("task")), OTHER_JOB)
    return WORKER if _of_worker else ""


def hidden(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hide secrets: the last thing before a line is written, tracebacks included."""
    texts = "\n".join(value for value in event.values() if isinstance(value, str))
    # Most lines hold none: one look at all of a line costs a tenth of a look at each of its fields.
    if not redaction().concerns(texts):
        return event
    text = redaction().of
    return {name: value if name in OURS else text(value) for name, value in event.items()}


_encode = json.JSONEncoder(ensure_ascii=False, default=repr).encode


def _as_json(event: EventDict, **_: Any) -> str:
    return _encode(event)  # one encoder for all lines: to make it costs as much as to use it


@lru_cache(maxsize=2)
def formatter(shape: str, *, coloured: bool = False) -> logging.Formatter:
    """Return the formatter of JSON lines, or of lines for a terminal."""
    renderer = (
        structlog.dev.ConsoleRenderer(colors=coloured, sort_keys=False)
        if shape == CONSOLE
        else structlog.processors.JSONRenderer(_as_json)
    )
    return structlog.stdlib.ProcessorFormatter(
        processors=[told, structlog.processors.format_exc_info, hidden, renderer]
    )


def shape_for(stream: Any) -> str:
    """Return LOG_FORMAT, or what suits who reads the stream: a person or a machine."""
    return settings().log_format or (CONSOLE if _is_terminal(stream) else JSON)


def _is_terminal(stream: Any) -> bool:
    return bool(stream is not None and getattr(stream, "isatty", bool)())


# -- whose lines


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def dress(logger: logging.Logger, **_: Any) -> None:
    """Give the handlers of a logger our formatter."""
    for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
        stream = getattr(handler, "stream", None)
        shape = shape_for(stream)
        handler.setFormatter(formatter(shape, coloured=_is_terminal(stream)))


@signals.celeryd_init.connect
def begin(instance: Any = None, **_: Any) -> None:
    """Know that this is a worker; its banner is for a terminal, and no line of JSON."""
    global _of_worker  # noqa: PLW0603 - what a process is does not change
    _of_worker = True
    instance.quiet = instance.quiet or shape_for(sys.stderr) == JSON


def take_over_server() -> bool:
    """Have uvicorn's lines and our own look alike; False where it does not run this process.

    It has set up its own loggers before it imports an application, and none for others.
    """
    server, access = logging.getLogger(SERVER), logging.getLogger(f"{SERVER}.access")
    if not server.handlers:
        return False
    root = logging.getLogger()
    if not root.handlers:
        root.handlers = server.handlers[:]
        root.setLevel(server.level)
    for each in (root, server, access):
        dress(each)
    return True
