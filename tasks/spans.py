"""OpenTelemetry: a span for each run of a job, where a collector is configured.

Its own instrumentation of Celery is not used: it records the text of exceptions. A span of ours
holds names, ids and kinds, nothing that a secret or a person could be in. The calls of a job are
its children (`clients/spans.py`), the jobs it sends, too; its retries are its siblings.
"""

from __future__ import annotations

import atexit
import logging
import threading
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

from celery import signals
from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from clients.spans import PROPAGATOR, failed, tracer
from config.settings import settings
from tasks import traces

logger = logging.getLogger(__name__)

LAST_WORDS = 2.0  # s that a process which ends gives to its last spans

_wanted: ContextVar[str] = ContextVar("wanted", default="")


@signals.after_setup_logger.connect
def begin(**_: Any) -> None:
    """Send spans to the collector of OTEL_EXPORTER_OTLP_ENDPOINT, if it is set.

    A thread sends them: nobody waits for it.
    """
    if not settings().otel_exporter_otlp_endpoint or _is_begun():
        return
    if find_spec("opentelemetry.sdk") is None:
        logger.error("OTEL_EXPORTER_OTLP_ENDPOINT needs the extra: pip install '.[opentelemetry]'")
        return
    _set_up()
    signals.task_prerun.connect(begin_run)
    signals.task_retry.connect(note_retry)
    signals.task_failure.connect(note_failure)
    signals.task_postrun.connect(end_run)


def _is_begun() -> bool:
    return type(trace.get_tracer_provider()).__module__.startswith("opentelemetry.sdk")


def _set_up() -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an extra
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator  # noqa: PLC0415

    class OurIds(RandomIdGenerator):
        """The first span of a trace has the id that logs and letters know."""

        def generate_trace_id(self) -> int:
            wanted = _wanted.get()
            return traces.number(wanted) if wanted else super().generate_trace_id()

    ours = Resource({"service.name": "perennial", "service.version": settings().release})
    provider = TracerProvider(
        resource=ours.merge(OTELResourceDetector().detect()),  # OTEL_SERVICE_NAME is the stronger
        id_generator=OurIds(),
        shutdown_on_exit=False,  # it would wait for a collector that is away, 30 s
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(send_the_last)


@signals.worker_process_shutdown.connect
def send_the_last(**_: Any) -> None:
    """Send what is left, if that is quickly done; a child of the prefork pool has no `atexit`."""
    if not _is_begun():
        return
    provider: Any = trace.get_tracer_provider()
    sending = threading.Thread(target=provider.force_flush, daemon=True)
    sending.start()
    sending.join(LAST_WORDS)


# -- a run of a job


def begin_run(task: Any = None, **_: Any) -> None:
    """Begin the span of the job that this thread is about to run."""
    job = traces.job_at(task)
    headers = {"traceparent": str((task.request.headers or {}).get(traces.HEADER, ""))}
    parent = PROPAGATOR.extract(headers)
    wanted = _wanted.set(str(job["trace_id"]))
    span = tracer.start_span(
        task.name,
        context=parent,
        kind=SpanKind.CONSUMER,
        attributes={
            "messaging.system": "celery",
            "messaging.operation.type": "process",
            "messaging.destination.name": str(job["queue"] or ""),
            "messaging.message.id": str(job["message_id"]),
            "messaging.message.conversation_id": str(job["trace_id"]),
            "perennial.attempt": job["attempt"],
        },
    )
    _wanted.reset(wanted)
    task.request.span = span, context.attach(trace.set_span_in_context(span, parent))


def note_retry(request: Any = None, reason: Any = None, **_: Any) -> None:
    """Note why a job comes again; that is no error of this run's."""
    span, _token = getattr(request, "span", (None, None))
    if span is not None:
        kind = type(getattr(reason, "exc", None) or reason).__name__
        span.set_attribute("perennial.retried_after", kind)


def note_failure(sender: Any = None, exception: Any = None, **_: Any) -> None:
    """Note what a job has died of."""
    span, _token = getattr(sender.request, "span", (None, None))
    if span is not None:
        failed(span, type(exception).__name__)


def end_run(task: Any = None, state: str = "", **_: Any) -> None:
    """End the span of the job that this thread has run."""
    span, token = getattr(task.request, "span", (None, None))
    if span is not None and token is not None:
        span.set_attribute("perennial.state", state or "")
        context.detach(token)
        span.end()
