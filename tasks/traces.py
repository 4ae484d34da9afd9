"""The trace id: one word for a job and all that follows from it, from the first call to its letter.

It is Celery's `root_id`: the id of the job that `delay()` has returned, unless the caller is part
of a trace already (W3C Trace Context); then it is that one's. Children, retries and compensations
carry it on.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery._state import get_current_task
from opentelemetry import context, trace

from clients.spans import PROPAGATOR
from config.history import History

HEADER = "traceparent"
ID_BYTES = 16  # of a trace, for everybody else
UUID = re.compile("[0-9a-f]{32}")  # without dashes

_taken: ContextVar[Any] = ContextVar("message", default=None)


# -- carried on


@contextmanager
def carrying(headers: Mapping[str, str]) -> Iterator[None]:
    """Have what is sent in here belong to the trace that a request's headers name, if they do."""
    token = context.attach(PROPAGATOR.extract(headers))
    try:
        yield
    finally:
        context.detach(token)


def carried() -> str:
    """Return the id of the trace that this call is part of, outside of jobs; empty for none."""
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


def hand_on(headers: MutableMapping[str, Any]) -> str:
    """Let the headers of a message name the trace of whoever sends it.

    Return its id where that is no job; Celery itself hands on the `root_id` of one.
    """
    task = get_current_task()
    of = task.request if task is not None and task.request.id is not None else None
    PROPAGATOR.inject(headers)
    if of is not None and HEADER not in headers and (parent := (of.headers or {}).get(HEADER)):
        headers[HEADER] = parent
    return carried() if of is None else ""


def number(trace_id: str) -> int:
    """Return the trace id as OpenTelemetry counts: that of a UUID, else one made from the word."""
    word = trace_id.replace("-", "").lower()
    if UUID.fullmatch(word) and int(word, 16):
        return int(word, 16)
    return int.from_bytes(hashlib.sha256(trace_id.encode()).digest()[:ID_BYTES], "big")


# -- which job it is about


@contextmanager
def about(message: Any) -> Iterator[None]:
    """Have lines tell of a message of kombu's while a worker takes it in."""
    before = _taken.set(message)
    try:
        yield
    finally:
        _taken.reset(before)


def job_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what is known of the job that a line of a log is about; little for one about none.

    It is the job that this thread runs, or the message that it takes in. Celery also speaks of
    jobs that other threads run, and names them.
    """
    task = get_current_task()
    if task is not None and task.request.id is not None:
        return job_at(task)
    taken = _taken.get()
    if taken is not None and (headers := taken.headers):
        facts = _facts(headers.get("id"), headers.get("task"), headers.get("root_id"), headers)
        return facts | {"queue": (taken.delivery_info or {}).get("routing_key")}
    named = getattr(record, "data", None)
    if isinstance(named, Mapping) and "id" in named:
        return {"message_id": named["id"], "task": named.get("name")}
    return {"trace_id": carried()}


def job_at(task: Any) -> dict[str, Any]:
    """Return what is known of the job that a task runs in this thread."""
    request = task.request
    return _facts(request.id, task.name, request.root_id, request.headers) | {
        "queue": (request.delivery_info or {}).get("routing_key")
    }


def _facts(job: Any, task: Any, root: Any, headers: Mapping[str, Any] | None) -> dict[str, Any]:
    attempt = History.from_headers(headers).attempts + 1
    return {"message_id": job, "task": task, "trace_id": root or job, "attempt": attempt}
