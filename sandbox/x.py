"""The X sandbox: a simulated API v2 behind HTTP, for one app and its users' bookmarks.

    python -m sandbox.x --port 8027

serves `GET http://127.0.0.1:8027/2/users/{id}/bookmarks` and `POST …/2/oauth2/token` (refresh).
Single process, state in memory.

Beside what `sandbox.serving` lists (a fault's `method` is `bookmarks` or `token`, its `code` a row
of `sandbox.x_answers.ROWS`, its `about` a part of `/USER/POSITION/`, where the page begins, or of
the pagination token; of a rate limit its `seconds` are the time until the reset, 0 for untold):

GET    /_sandbox/users        every user: requests, pages, tokens, bookmarks; `?id=` for one
POST   /_sandbox/users        take in a list of users (`sandbox.x_users.Arrival`, as JSON)
POST   /_sandbox/bookmarks    {"id", "bookmarks", "invalid"?}: put new ones on top
POST   /_sandbox/authorize    {"id", "access_token"?, "refresh_token"?, …}: a new pair of tokens
POST   /_sandbox/expire       {"id"}: the access token ends
POST   /_sandbox/revoke       {"id"}: the grant is gone
GET    /_sandbox/settings     `sandbox.x_platform.PlatformSettings`
POST   /_sandbox/settings     change some of them, while it runs: {"limit": 5, "window": 3}
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import serving
from sandbox.serving import Delivery, misspelt
from sandbox.x_platform import SETTINGS, Host, Method, Platform, PlatformSettings, Request
from sandbox.x_posts import Generation
from sandbox.x_users import ARRIVALS, Addition, Authorization, Subject, User

_FORM = "application/x-www-form-urlencoded"
_CHANGES = TypeAdapter(dict[str, Any])
_OPTIONS = {
    "client_id": "of the app",
    "client_secret": "of the app, empty for a public client",
    "limit": "requests of each user in a window, 0 for any number",
    "window": "seconds from the first of them until the reset",
    "expires_in": "seconds that an access token lives",
    "latency": "seconds, there and back",
    "seed": "of random faults",
}
S = TypeVar("S", bound=Subject)


def create_app(platform: Platform) -> Starlette:
    """Return the ASGI application of *platform*; it lives as long as the application."""
    return serving.create_app(
        platform,
        [
            Route("/_sandbox/users", _users, methods=["GET", "POST"]),
            Route("/_sandbox/bookmarks", _bookmarks, methods=["POST"]),
            Route("/_sandbox/authorize", _authorize, methods=["POST"]),
            Route("/_sandbox/expire", _expire, methods=["POST"]),
            Route("/_sandbox/revoke", _revoke, methods=["POST"]),
            Route("/_sandbox/settings", _settings, methods=["GET", "POST"]),
            Route("/2/users/{id}/bookmarks", _list),
            Route("/2/oauth2/token", _token, methods=["POST"]),
        ],
    )


def _platform(http: HttpRequest) -> Platform:
    found: Platform = http.app.state.upstream
    return found


async def _list(http: HttpRequest) -> Response:
    return await _answer(http, "bookmarks", dict(http.query_params), http.path_params["id"])


async def _token(http: HttpRequest) -> Response:
    form: dict[str, str] = {}
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
        async with http.form() as sent:
            form = {name: value for name, value in sent.items() if isinstance(value, str)}
    return await _answer(http, "token", form)


async def _answer(
    http: HttpRequest, method: Method, params: dict[str, str], user: str = ""
) -> Response:
    platform = _platform(http)
    request = Request(method, params, http.headers.get("authorization", ""), user)
    return Delivery(platform, await platform.answer(request))


async def _users(http: HttpRequest) -> Response:
    platform = _platform(http)
    asked = http.query_params.get("id")
    users = [user for user in platform.users.values() if asked in (None, user.id)]
    if http.method == "POST":
        try:
            users = [
                platform.welcome(arrival) for arrival in ARRIVALS.validate_json(await http.body())
            ]
        except ValidationError as error:
            return misspelt(error)
    return JSONResponse([platform.sight(user) for user in users])


async def _bookmarks(http: HttpRequest) -> Response:
    return await _obey(
        http, Addition, lambda user, order: {"added": _platform(http).add(user, order)}
    )


async def _authorize(http: HttpRequest) -> Response:
    return await _obey(http, Authorization, _platform(http).authorize)


async def _expire(http: HttpRequest) -> Response:
    return await _obey(http, Subject, lambda user, _: _platform(http).expire(user))


async def _revoke(http: HttpRequest) -> Response:
    return await _obey(http, Subject, lambda user, _: _platform(http).revoke(user))


async def _obey(http: HttpRequest, order: type[S], act: Callable[[User, S], object]) -> Response:
    """Carry out an order about one user; answer with what *act* returns, else with the user."""
    platform = _platform(http)
    try:
        given = order.model_validate_json(await http.body())
    except ValidationError as error:
        return misspelt(error)
    user = platform.users.get(given.id)
    if user is None:
        return JSONResponse({"error": "there is no such user"}, status_code=404)
    return JSONResponse(act(user, given) or platform.sight(user))


async def _settings(http: HttpRequest) -> Response:
    platform = _platform(http)
    if http.method == "POST":
        try:
            platform.change(_CHANGES.validate_json(await http.body()))
        except ValidationError as error:
            return misspelt(error)
    return JSONResponse(SETTINGS.dump_python(platform.settings, mode="json"))


def _arguments() -> argparse.Namespace:
    defaults = PlatformSettings(latency=0.05)
    parser = argparse.ArgumentParser(prog="python -m sandbox.x", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8027, help="0 takes a free one")
    for name, meaning in _OPTIONS.items():
        default = getattr(defaults, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=meaning)
    parser.add_argument("--generation", choices=get_args(Generation), default=defaults.generation)
    parser.add_argument("--problems", choices=get_args(Host), default=defaults.problems)
    parser.add_argument("--journal", type=Path, help="append every call to this JSONL file")
    return parser.parse_args()


def main() -> None:
    """Serve one app until interrupted; the first line printed is its address."""
    options = vars(_arguments())
    host, port = options.pop("host"), options.pop("port")
    server = serving.create_server(create_app(Platform(PlatformSettings(**options))))
    listener = serving.bound(host, port)
    print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
