"""The Telegram sandbox: a simulated Bot API behind HTTP, for one bot.

    python -m sandbox.telegram --port 8026

serves `http://127.0.0.1:8026/bot<token>/<method>`: sendMessage, sendVideo, answerCallbackQuery,
setWebhook, getMe. Single process, state in memory.

Beside what `sandbox.serving` lists (a fault's `code` is a row of `sandbox.bot_refusals.ROWS`, its
`about` a part of the chat id, text or caption, its `seconds` the `retry_after` of row
`too_many_requests`):

GET    /_sandbox/messages     what was delivered, `?chat_id=`, `?kind=text|video|document`
GET    /_sandbox/chats        per chat: messages of each kind, `limit_answers`
POST   /_sandbox/chats        [{"chat_id", "state", "migrate_to"?}], state `ok` or a row
GET    /_sandbox/presses      all presses with the webhook's status and the answers to each
POST   /_sandbox/press        {"chat_id", "data" or "label", "message_id"?, "times"?}
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import serving
from sandbox.bot import Bot, BotSettings
from sandbox.bot_chats import read_rules
from sandbox.bot_drafts import BotCall
from sandbox.bot_refusals import BotRefusal
from sandbox.bot_videos import Content, Measure
from sandbox.serving import Delivery, misspelt

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class PressOrder:
    """Which button to press, and how often at once; without *message_id* the newest that fits."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    chat_id: int
    message_id: int | None = None
    data: str = ""
    label: str = ""
    times: Annotated[int, Field(ge=1)] = 1


_ORDER = TypeAdapter(PressOrder)


def create_app(bot: Bot) -> Starlette:
    """Return the ASGI application of *bot*; it lives as long as the application."""
    return serving.create_app(
        bot,
        [
            Route("/_sandbox/messages", _messages),
            Route("/_sandbox/chats", _chats, methods=["GET", "POST"]),
            Route("/_sandbox/presses", _presses),
            Route("/_sandbox/press", _press, methods=["POST"]),
            Route("/bot{token}/{method}", _call, methods=["GET", "POST"]),
            Route("/{path:path}", _nowhere, methods=["GET", "POST"]),
        ],
    )


def _bot(http: HttpRequest) -> Bot:
    found: Bot = http.app.state.upstream
    return found


async def _call(http: HttpRequest) -> Response:
    bot, path = _bot(http), http.path_params
    params, files = await _sent(http)
    return Delivery(bot, await bot.answer(BotCall(path["token"], path["method"], params, files)))


async def _nowhere(_http: HttpRequest) -> Response:
    refusal = BotRefusal("malformed_token")
    return JSONResponse(refusal.body(), refusal.status)


async def _sent(http: HttpRequest) -> tuple[dict[str, str] | None, dict[str, Content]]:
    """Read query and body; no parameters at all if a JSON body is not what it says it is."""
    params: dict[str, str] = dict(http.query_params)
    files: dict[str, Content] = {}
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            found = json.loads(await http.body() or "{}")
        except ValueError:
            found = None
        return (params | _as_strings(found) if isinstance(found, dict) else None), files
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        async with http.form() as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files[name] = await _measured(value)
                else:
                    params[name] = value
    return params, files


def _as_strings(found: Mapping[str, Any]) -> dict[str, str]:
    """Return JSON parameters as the server keeps them: whatever is no string as its JSON text."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in found.items()
        if value is not None
    }


async def _measured(file: UploadFile) -> Content:
    measure = Measure()
    while piece := await file.read(_PIECE):
        measure.add(piece)
    return measure.content()


async def _messages(http: HttpRequest) -> Response:
    asked = http.query_params
    try:
        chat_id = int(asked["chat_id"]) if "chat_id" in asked else None
    except ValueError as error:
        return misspelt(error)
    kind = asked.get("kind")
    return JSONResponse(
        [
            message.listed()
            for message in _bot(http).chats.messages(chat_id)
            if kind in (None, message.kind)
        ]
    )


async def _chats(http: HttpRequest) -> Response:
    chats = _bot(http).chats
    if http.method == "POST":
        try:
            chats.obey(read_rules(await http.json()))
        except (ValidationError, json.JSONDecodeError) as error:
            return misspelt(error)
    return JSONResponse(chats.counts())


async def _presses(http: HttpRequest) -> Response:
    return JSONResponse(_bot(http).presses.listed())


async def _press(http: HttpRequest) -> Response:
    bot = _bot(http)
    try:
        order = _ORDER.validate_python(await http.json())
    except (ValidationError, json.JSONDecodeError) as error:
        return misspelt(error)
    if not bot.presses.target:
        return JSONResponse({"error": "there is no webhook"}, status_code=409)
    found = bot.button(order.chat_id, order.message_id, order.data, order.label)
    if found is None:
        return JSONResponse({"error": "there is no such button"}, status_code=404)
    return JSONResponse({"presses": await bot.presses.make(*found, bot.me(), order.times)})


def _arguments() -> argparse.Namespace:
    defaults = BotSettings()
    parser = argparse.ArgumentParser(prog="python -m sandbox.telegram", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8026, help="0 takes a free one")
    parser.add_argument("--token", default=defaults.token, help="digits, a colon, a word")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="a second, to all chats")
    parser.add_argument("--burst", type=float, default=defaults.burst)
    parser.add_argument("--chat-rate", type=float, default=defaults.chat_rate, help="a second")
    parser.add_argument("--chat-burst", type=float, default=defaults.chat_burst)
    parser.add_argument("--group-rate", type=float, default=defaults.group_rate, help="a minute")
    parser.add_argument("--upload-limit", type=int, default=defaults.upload_limit, help="bytes")
    parser.add_argument("--url-limit", type=int, default=defaults.url_limit, help="bytes")
    parser.add_argument("--press-patience", type=float, default=defaults.press_patience)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of random faults")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds, there and back")
    parser.add_argument("--webhook-target", default="", help="URL that gets the presses")
    parser.add_argument("--secret", default="", help="sent with each press")
    parser.add_argument("--journal", type=Path, help="append every call to this JSONL file")
    return parser.parse_args()


def main() -> None:
    """Serve one bot until interrupted; the first line printed is the base URL, without token."""
    options = vars(_arguments())
    host, port = options.pop("host"), options.pop("port")
    server = serving.create_server(create_app(Bot(BotSettings(**options))))
    listener = serving.bound(host, port)
    print(f"http://{host}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
