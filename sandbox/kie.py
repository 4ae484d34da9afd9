"""The KIE.AI sandbox: a simulated account behind HTTP, with a control API under `/_sandbox/`.

    python -m sandbox.kie --port 8025

serves `http://127.0.0.1:8025/api/v1/…` and the videos it has made. Single process, state in memory.

Beside what `sandbox.serving` lists:

GET    /_sandbox/tasks        every task, `?about=` for some (a part of the order or the prompt)
GET    /_sandbox/plans        how often which plan was used
POST   /_sandbox/plans        lay a list of plans (`sandbox.kie_tasks.Plan`, as JSON)
DELETE /_sandbox/plans        forget them all
GET    /_sandbox/settings     `sandbox.studio.StudioSettings`
POST   /_sandbox/settings     change some of them, while it runs: {"credits": 0, "paused": ["…"]}

The `method` of faults and journal is the last part of the path, `download` for a file.
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import serving
from sandbox.kie_tasks import read_plans
from sandbox.serving import Delivery, misspelt
from sandbox.studio import SETTINGS, Request, Studio, StudioSettings


def create_app(studio: Studio) -> Starlette:
    """Return the ASGI application of *studio*; it lives as long as the application."""
    return serving.create_app(
        studio,
        [
            Route("/_sandbox/tasks", _tasks),
            Route("/_sandbox/plans", _plans, methods=["GET", "POST", "DELETE"]),
            Route("/_sandbox/settings", _settings, methods=["GET", "POST"]),
            Route("/api/v1/jobs/createTask", _call, methods=["POST"]),
            Route("/api/v1/jobs/recordInfo", _call),
            Route("/api/v1/chat/credit", _call),
            Route("/api/v1/common/download-url", _call, methods=["POST"]),
            Route("/files/{name}", _download),
        ],
    )


def _studio(http: HttpRequest) -> Studio:
    found: Studio = http.app.state.upstream
    return found


async def _call(http: HttpRequest) -> Response:
    studio = _studio(http)
    request = Request(
        method=http.url.path.rpartition("/")[2],
        params={**http.query_params, **await _body(http)},
        key=http.headers.get("authorization", "").removeprefix("Bearer "),
        base=str(http.base_url).rstrip("/"),
    )
    return Delivery(studio, await studio.answer(request))


async def _download(http: HttpRequest) -> Response:
    studio = _studio(http)
    return Delivery(studio, await studio.answer(Request("download", {"url": http.url.path})))


async def _body(http: HttpRequest) -> dict[str, Any]:
    """Read a JSON object; anything else counts for nothing."""
    try:
        body = json.loads(await http.body())
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def _tasks(http: HttpRequest) -> Response:
    return JSONResponse(_studio(http).sights(http.query_params.get("about", "")))


async def _plans(http: HttpRequest) -> Response:
    plans = _studio(http).plans
    if http.method == "DELETE":
        plans.drop()
    elif http.method == "POST":
        try:
            plans.lay(read_plans(await http.json()))
        except (ValidationError, json.JSONDecodeError) as error:
            return misspelt(error)
    return JSONResponse({"used": dict(plans.used)})


async def _settings(http: HttpRequest) -> Response:
    studio = _studio(http)
    if http.method == "POST":
        try:
            studio.change(await _body(http))
        except ValidationError as error:
            return misspelt(error)
    return JSONResponse(SETTINGS.dump_python(studio.settings, mode="json"))


def create_server(
    studio: Studio, host: str = "127.0.0.1", port: int = 0
) -> tuple[uvicorn.Server, socket.socket]:
    """Return a server and the socket it is to `run(sockets=[…])` on; port 0 takes a free one."""
    return serving.create_server(create_app(studio)), serving.bound(host, port)


_OPTIONS = {
    "key": "what callers must have for a bearer",
    "hmac_key": "sign callbacks with it",
    "duration": "seconds a generation takes at least",
    "spread": "seconds it may take longer",
    "visible_after": "seconds until recordInfo knows a new task",
    "create_limit": "per 10 s, 0 for none",
    "query_limit": "per second, 0 for none",
    "credits": "of the account",
    "cost": "of a generation, in credits",
    "short_as": "code for too few credits, 402 or 500",
    "result_life": "seconds until the address of a result expires",
    "link_life": "seconds until one of download-url does",
    "expired_status": "of an expired address, 403 or 404",
    "late": "seconds that a late callback is late",
    "latency": "seconds, there and back",
    "seed": "of random times, faults and plans",
}


def _arguments() -> argparse.Namespace:
    defaults = StudioSettings(latency=0.05)
    parser = argparse.ArgumentParser(prog="python -m sandbox.kie", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8025, help="0 takes a free one")
    for name, meaning in _OPTIONS.items():
        default = getattr(defaults, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=meaning)
    parser.add_argument("--paused", action="append", default=[], help="a model; may be repeated")
    parser.add_argument("--fast", action="store_true", help="no limits of creates and queries")
    parser.add_argument("--journal", type=Path, help="append every call to this JSONL file")
    return parser.parse_args()


def main() -> None:
    """Serve one account until interrupted; the first line printed is its address."""
    options = vars(_arguments())
    host, port = options.pop("host"), options.pop("port")
    if options.pop("fast"):
        options |= {"create_limit": 0, "query_limit": 0}
    settings = StudioSettings(**options | {"paused": tuple(options["paused"])})
    server, listener = create_server(Studio(settings), host, port)
    print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
