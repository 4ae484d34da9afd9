"""The Bitrix24 sandbox: a simulated portal behind HTTP, with a control API under `/_sandbox/`.

    python -m sandbox.bitrix --port 8024

serves `http://127.0.0.1:8024/rest/1/sandbox/`. Single process, state in memory.

Beside what `sandbox.serving` lists:

POST   /_sandbox/emit         send an outbound webhook: {"event", "id", "ts"?, "token"?}
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import serving
from sandbox.phpforms import nest, parse
from sandbox.portal import Portal, PortalSettings, Request
from sandbox.serving import Delivery


def create_app(portal: Portal) -> Starlette:
    """Return the ASGI application of *portal*; it lives as long as the application."""
    return serving.create_app(
        portal,
        [
            Route("/_sandbox/emit", _emit, methods=["POST"]),
            Route("/rest/{user}/{code}/{method:path}", _rest, methods=["GET", "POST"]),
            Route("/rest/{method:path}", _rest, methods=["GET", "POST"]),
        ],
    )


def _portal(http: HttpRequest) -> Portal:
    found: Portal = http.app.state.upstream
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


async def _emit(http: HttpRequest) -> Response:
    portal = _portal(http)
    if not portal.settings.webhook_target:
        return JSONResponse({"error": "no --webhook-target was given"}, status_code=409)
    asked = await http.json()
    status = await portal.outbound.send(
        asked["event"], int(asked["id"]), ts=asked.get("ts"), token=asked.get("token")
    )
    return JSONResponse({"status": status})


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
    return serving.create_server(create_app(portal)), serving.bound(host, port)


def _arguments() -> argparse.Namespace:
    defaults = PortalSettings()
    parser = argparse.ArgumentParser(prog="python -m sandbox.bitrix", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8024, help="0 takes a free one")
    parser.add_argument("--code", default=defaults.code, help="the webhook's secret part")
    parser.add_argument(
        "--right", dest="rights", action="append", help="of the webhook: crm if left out"
    )
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
    options["rights"] = tuple(options["rights"] or PortalSettings().rights)
    portal = Portal(PortalSettings(**options))
    server, listener = create_server(portal, host, port)
    settings = portal.settings
    address = f"http://{host}:{listener.getsockname()[1]}"
    print(f"{address}/rest/{settings.user}/{settings.code}/", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
