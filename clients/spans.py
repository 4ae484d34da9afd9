"""What a trace says of a call: upstream, operation and how it ended; neither address nor content.

The address of a portal or a bot is a secret. Without the extra `opentelemetry`, and where no
collector is configured, this is OpenTelemetry's interface alone, which does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

tracer = trace.get_tracer("perennial")
# W3C Trace Context and nothing else: baggage of strangers would travel to our upstreams.
PROPAGATOR = TraceContextTextMapPropagator()
REFUSED = 400  # statuses from here on are failures of the call

_others: ContextVar[tuple[Link, ...]] = ContextVar("others", default=())


@contextmanager
def calling(
    service: str, verb: str, operation: str, headers: MutableMapping[str, str]
) -> Iterator[trace.Span]:
    """Have what happens in here be a span, and let the upstream know of it by *headers*."""
    with tracer.start_as_current_span(
        f"{service} {operation}",
        kind=SpanKind.CLIENT,
        links=_others.get(),
        attributes={
            "peer.service": service,
            "http.request.method": verb,
            "perennial.operation": operation,
        },
        record_exception=False,  # its text may quote an address
        set_status_on_exception=False,
    ) as span:
        PROPAGATOR.inject(headers)
        try:
            yield span
        except Exception as failure:
            failed(span, type(failure).__name__)
            raise


def answered(span: trace.Span, status: int) -> None:
    """Note the status of an answer."""
    span.set_attribute("http.response.status_code", status)
    if status >= REFUSED:
        failed(span, str(status))


def failed(span: trace.Span, kind: str) -> None:
    """Note what kind of failure a span has ended with; no text, which may quote anything."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


@contextmanager
def on_behalf_of(callers: Sequence[context.Context]) -> Iterator[None]:
    """Make a call for several jobs: it is part of the first one's trace, and linked to the rest."""
    spans = [trace.get_current_span(caller).get_span_context() for caller in callers[1:]]
    linked = _others.set(tuple(Link(span) for span in spans if span.is_valid))
    attached = context.attach(callers[0])
    try:
        yield
    finally:
        context.detach(attached)
        _others.reset(linked)
