"""What the API tells of itself: its lines, its errors, and the traces that requests are part of."""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks import logs, reports, spans, traces


def observe() -> None:
    """Set up logs, Sentry and traces, where uvicorn is what runs this process."""
    if logs.take_over_server():
        for name in ("", logs.SERVER):
            reports.listen(logging.getLogger(name))
        spans.begin()


class Traced:
    """Carries on the W3C `traceparent` of a request to the jobs that it sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or whatever else the server has."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with traces.carrying(Headers(scope=scope)):
            await self.app(scope, receive, send)
