"""The Bitrix24 sandbox: a simulated portal behind HTTP, with a control API under `/_sandbox/`.

    python -m sandbox.bitrix --port 8024

serves `http://127.0.0.1:8024/rest/1/sandbox/`. Single process, state in memory.

GET    /_sandbox/summary      counts: requests, operations, limits, duplicates, faults
GET    /_sandbox/journal      entries, `?after=n` for those that came later
GET    /_sandbox/faults       how often which kind has fired
POST   /_sandbox/faults       arm a list of faults (`sandbox.faults.Fault`, as JSON)
DELETE /_sandbox/faults       disarm them all
POST   /_sandbox/emit         send an outbound webhook: {"event", "id", "ts"?, "token"?}
POST   /_sandbox/reset        forget everything
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.faults import read_faults
from sandbox.phpforms import nest, parse
from sandbox.portal import Portal, PortalSettings
from sandbox.replies import Reply, Request

if TYPE_CHECKING:
    import asyncio

    from starlette.types import Receive, Scope, Send

_CONNECTION = "sandbox.connection"
# uvicorn closes an idle connection after 5 s, in the middle of a client's next request if need be.
# The nginx before a portal keeps it for 75 s; without that every pause would look like a fault.
_KEEP_ALIVE = 75
# Ends a connection with RST, not FIN: linger on, for no time at all.
_NO_LINGER = struct.pack("ii", 1, 0)


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
    """Sends a portal's reply, or ends the connection, and settles the journal."""

    def __init__(self, portal: Portal, reply: Reply) -> None:
        super().__init__(reply.body, reply.status or 200, dict(reply.headers))
        self._portal = portal
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._reply.drop:
            self._settle(answered=False)
            await _sever(self._reply.drop, scope, receive)
            return
        gone = await HttpRequest(scope, receive).is_disconnected()
        await super().__call__(scope, receive, send)
        self._settle(answered=not gone)

    def _settle(self, *, answered: bool) -> None:
        reply = self._reply
        self._portal.journal.settle(reply.entries, status=reply.status, answered=answered)


async def _sever(how: str, scope: Scope, receive: Receive) -> None:
    transport = scope.get("extensions", {}).get(_CONNECTION)
    if transport is None:
        # In process there is no connection: raise what a client over a real one would see.
        raise httpx.ReadTimeout(how) if how == "hang" else httpx.ReadError(how)
    if how == "reset":
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER
        )
    if how != "hang":
        transport.abort()
    while (await receive())["type"] != "http.disconnect":
        pass


def create_app(portal: Portal) -> Starlette:
    """Return the ASGI application of *portal*; it lives as long as the application."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await portal.close()

    app = Starlette(
        routes=[
            Route("/_sandbox/summary", _summary),
            Route("/_sandbox/journal", _journal),
            Route("/_sandbox/faults", _faults, methods=["GET", "POST", "DELETE"]),
            Route("/_sandbox/emit", _emit, methods=["POST"]),
            Route("/_sandbox/reset", _reset, methods=["POST"]),
            Route("/rest/{user}/{code}/{method:path}", _rest, methods=["GET", "POST"]),
            Route("/rest/{method:path}", _rest, methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
    )
    app.state.portal = portal
    return app


def _portal(http: HttpRequest) -> Portal:
    found: Portal = http.app.state.portal
    return found


async def _rest(http: HttpRequest) -> Response:
    path = http.path_params
    request = Request(
        user=path.get("user", ""),
        code=path.get("code", ""),
        method=path["method"].strip("/").removesuffix(".json"),
        params=await _params(http),
        client=http.client.host if http.client else "",
    )
    portal = _portal(http)
    return Delivery(portal, await portal.answer(request))


async def _summary(http: HttpRequest) -> Response:
    return JSONResponse(_portal(http).summary())


async def _journal(http: HttpRequest) -> Response:
    after = int(http.query_params.get("after", "0"))
    return JSONResponse(_portal(http).journal.since(after))


async def _faults(http: HttpRequest) -> Response:
    plan = _portal(http).faults
    if http.method == "DELETE":
        plan.disarm()
    elif http.method == "POST":
        try:
            plan.arm(read_faults(await http.json()))
        except (ValidationError, json.JSONDecodeError) as error:
            return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"fired": dict(plan.fired)})


async def _emit(http: HttpRequest) -> Response:
    portal = _portal(http)
    if not portal.settings.webhook_target:
        return JSONResponse({"error": "no --webhook-target was given"}, status_code=409)
    asked = await http.json()
    status = await portal.outbound.send(
        asked["event"], int(asked["id"]), ts=asked.get("ts"), token=asked.get("token")
    )
    return JSONResponse({"status": status})


async def _reset(http: HttpRequest) -> Response:
    _portal(http).reset()
    return JSONResponse({"reset": True})


async def _params(http: HttpRequest) -> dict[str, Any]:
    """Read query and body as PHP does; a body that is not what it says it is counts for nothing."""
    found = parse(http.url.query)
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            body = json.loads(await http.body())
        except ValueError:
            body = {}
        found |= body if isinstance(body, dict) else {}
    elif kind == "application/x-www-form-urlencoded":
        found |= parse((await http.body()).decode(errors="replace"))
    elif kind == "multipart/form-data":
        found |= nest((await http.form()).multi_items())
    return found


def create_server(
    portal: Portal, host: str = "127.0.0.1", port: int = 0
) -> tuple[uvicorn.Server, socket.socket]:
    """Return a server and the socket it is to `run(sockets=[…])` on; port 0 takes a free one."""
    # Named TCP, or asyncio leaves Nagle's delay on and every answer takes 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    config = uvicorn.Config(
        create_app(portal),
        http=SeveringProtocol,
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=1,  # a slow fault must not keep Ctrl-C waiting
    )
    return uvicorn.Server(config), listener


def _arguments() -> argparse.Namespace:
    defaults = PortalSettings()
    parser = argparse.ArgumentParser(prog="python -m sandbox.bitrix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8024, help="0 takes a free one")
    parser.add_argument("--code", default=defaults.code, help="the webhook's secret part")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="leak, per second")
    parser.add_argument("--burst", type=float, default=defaults.burst, help="bucket, requests")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of random faults")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds, there and back")
    parser.add_argument("--operating-limit", type=float, default=defaults.operating_limit)
    parser.add_argument("--operating-cost", type=float, default=defaults.operating_cost)
    parser.add_argument("--language", choices=("en", "ru"), default=defaults.language)
    parser.add_argument("--webhook-target", default="", help="URL of the event handler")
    parser.add_argument("--application-token", default=defaults.application_token)
    parser.add_argument("--journal", type=Path, help="append every call to this JSONL file")
    return parser.parse_args()


def main() -> None:
    """Serve one portal until interrupted; the first line printed is its webhook URL."""
    options = vars(_arguments())
    host, port = options.pop("host"), options.pop("port")
    portal = Portal(PortalSettings(**options))
    server, listener = create_server(portal, host, port)
    settings = portal.settings
    address = f"http://{host}:{listener.getsockname()[1]}"
    print(f"{address}/rest/{settings.user}/{settings.code}/", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
