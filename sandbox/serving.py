"""What every simulated upstream is served with: its control API, its answers, its lost answers.

GET    /_sandbox/summary      counts of everything since the last reset
GET    /_sandbox/journal      entries, `?after=n` for those that came later
GET    /_sandbox/faults       how often which kind has fired
POST   /_sandbox/faults       arm a list of faults (`sandbox.faults.Fault`, as JSON)
DELETE /_sandbox/faults       disarm them all
POST   /_sandbox/reset        forget everything
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.faults import FaultPlan, read_faults
from sandbox.journal import Journal
from sandbox.replies import Reply

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

_CONNECTION = "sandbox.connection"
# uvicorn closes an idle connection after 5 s, in the middle of a client's next request if need be.
# An nginx before an upstream keeps it for 75 s; without that every pause would look like a fault.
_KEEP_ALIVE = 75
# Ends a connection with RST, not FIN: linger on, for no time at all.
_NO_LINGER = struct.pack("ii", 1, 0)


class Upstream(Protocol):
    """The state of one simulated service, as far as serving it goes."""

    journal: Journal
    faults: FaultPlan

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything that happened since the last reset."""

    def reset(self) -> None:
        """Forget everything, faults and journal included."""

    async def close(self) -> None:
        """Give up what is still on its way, and the files."""


class SeveringProtocol(H11Protocol):
    """Hands the application the connection itself, so that a fault can end it without an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        served = self.app

        async def severable(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), _CONNECTION: transport}
            await served(scope, receive, send)

        self.app = severable


class Delivery(Response):
    """Sends a reply, or ends the connection instead or halfway, and settles the journal."""

    def __init__(self, upstream: Upstream, reply: Reply) -> None:
        super().__init__(reply.body, reply.status or 200, dict(reply.headers))
        self._journal = upstream.journal
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply
        if reply.drop and not reply.status:
            self._settle(answered=False)
            await _sever(reply.drop, scope, receive)
            return
        gone = await HttpRequest(scope, receive).is_disconnected()
        if reply.stream is None:
            await super().__call__(scope, receive, send)
        else:
            await _stream(reply, reply.stream, scope, receive, send)
        self._settle(answered=not gone and not reply.drop)

    def _settle(self, *, answered: bool) -> None:
        reply = self._reply
        self._journal.settle(reply.entries, status=reply.status, answered=answered)


async def _stream(
    reply: Reply, chunks: Iterable[bytes], scope: Scope, receive: Receive, send: Send
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if reply.drop:
            await _sever(reply.drop, scope, receive)

    await StreamingResponse(body(), reply.status, dict(reply.headers))(scope, receive, send)


async def _sever(how: str, scope: Scope, receive: Receive) -> None:
    transport = scope.get("extensions", {}).get(_CONNECTION)
    if transport is None:
        # In process there is no connection: raise what a client over a real one would see.
        raise httpx.ReadTimeout(how) if how == "hang" else httpx.ReadError(how)
    if how == "reset":
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
        )
        transport.abort()
    elif how == "close":
        transport.close()  # what was sent before still arrives
    while (await receive())["type"] != "http.disconnect":
        pass


def create_app(upstream: Upstream, routes: Sequence[BaseRoute]) -> Starlette:
    """Return the ASGI application of *upstream*: *routes* and the control API.

    *upstream* lives as long as the application; a route finds it in `request.app.state.upstream`.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.close()

    control = [
        Route("/_sandbox/summary", _summary),
        Route("/_sandbox/journal", _journal),
        Route("/_sandbox/faults", _faults, methods=["GET", "POST", "DELETE"]),
        Route("/_sandbox/reset", _reset, methods=["POST"]),
    ]
    app = Starlette(routes=[*control, *routes], lifespan=lifespan)
    app.state.upstream = upstream
    return app


def _upstream(http: HttpRequest) -> Upstream:
    found: Upstream = http.app.state.upstream
    return found


async def _summary(http: HttpRequest) -> Response:
    return JSONResponse(_upstream(http).summary())


async def _journal(http: HttpRequest) -> Response:
    after = int(http.query_params.get("after", "0"))
    return JSONResponse(_upstream(http).journal.since(after))


async def _faults(http: HttpRequest) -> Response:
    plan = _upstream(http).faults
    if http.method == "DELETE":
        plan.disarm()
    elif http.method == "POST":
        try:
            plan.arm(read_faults(await http.json()))
        except (ValidationError, json.JSONDecodeError) as error:
            return misspelt(error)
    return JSONResponse({"fired": dict(plan.fired)})


async def _reset(http: HttpRequest) -> Response:
    _upstream(http).reset()
    return JSONResponse({"reset": True})


def misspelt(error: Exception) -> Response:
    """Return the control API's answer to an order it does not understand."""
    return JSONResponse({"error": str(error)}, status_code=422)


def bound(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Return a socket to serve on; port 0 takes a free one."""
    # Named TCP, or asyncio leaves Nagle's delay on and every answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def create_server(app: Starlette) -> uvicorn.Server:
    """Return a server of *app*, to `run(sockets=[bound(…)])`."""
    config = uvicorn.Config(
        app,
        http=SeveringProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        log_config=None,  # whoever runs it, be it a test, has set up logging or does without
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,  # a slow fault must not keep Ctrl-C waiting
    )
    return uvicorn.Server(config)
