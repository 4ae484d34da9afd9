"""Who sits at the console: login, the signed cookie, forged forms, guesses, and safe headers."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Request
from fastapi.routing import APIRoute
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.responses import Response

from config.settings import settings
from reliability.connection import redis
from reliability.keys import OURS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "perennial_console"
SAID = "perennial_said"  # what the last action did, until the next page has shown it
LASTS = 8 * 3600  # s: a night on call
SAID_LASTS = 60  # s: longer than any redirect takes
LONGEST_NAME = 40  # characters
LONGEST_SAID = 1_000  # characters: cookies hold 4 kB

GUESSES = 10  # wrong tokens of one address …
GUESSED_WITHIN = 900  # … in so many seconds; more have to wait for the rest of them
WRONG = OURS + "console:wrong:"  # string per address: wrong tokens; ends by itself

# No script, no style and no picture but ours; nobody may frame us, or be sent our forms.
CONTENT = (
    "default-src 'self'; script-src 'none'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # job ids stand in addresses
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
NEVER_KEPT = {"cache-control": "no-store"}
KEPT_A_DAY = {"cache-control": "public, max-age=86400"}  # its address changes with its content
FAILED = 400  # a status from here on


@dataclass(frozen=True, slots=True)
class Operator:
    """Who has signed in. *name* stands in what they change; *csrf* has to be in their forms."""

    name: str
    csrf: str


class NotConfiguredError(Exception):
    """There is no ADMIN_TOKEN, so nobody can sign in."""


class SignedOutError(Exception):
    """The request comes from nobody who has signed in, or has not any more."""


class ForgedError(Exception):
    """A form that this console has not made for this session."""


class TooManyGuessesError(Exception):
    """An address has sent so many wrong tokens that it has to wait for *seconds*."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class SignedIn(APIRoute):
    """A route for operators only: nobody else's form is even read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def admitted(request: Request) -> Response:
            operator = operator_of(request)
            if operator is None:
                raise SignedOutError
            request.state.operator = operator
            return await handle(request)

        return admitted


def unforged(request: Request, csrf: Annotated[str, Form()] = "") -> None:
    """Refuse whatever changes something and does not come from a form of this session.

    Raises:
        ForgedError: so it is.
    """
    if request.method not in {"GET", "HEAD"} and not _same(csrf, request.state.operator.csrf):
        raise ForgedError


def pages() -> APIRouter:
    """Return a router all of whose pages are for operators, and whose forms are ours."""
    return APIRouter(route_class=SignedIn, dependencies=[Depends(unforged)])


def operator_of(request: Request) -> Operator | None:
    """Return who has signed in; None for a cookie that is missing, forged, too old or refused."""
    try:
        facts = _signer("session").loads(request.cookies.get(COOKIE, ""), max_age=LASTS)
        return Operator(str(facts["name"]), str(facts["csrf"]))
    except (BadSignature, KeyError, TypeError):
        return None


def is_admin(token: str, address: str) -> bool:
    """Compare a token in constant time; each wrong one is counted against its address.

    It is counted before it is compared, so that a thousand guesses at once are counted, too.

    Raises:
        TooManyGuessesError: it was not even compared.
        RedisError: they cannot be counted; then nobody gets in.
    """
    key = f"{settings().redis_stream_prefix}{WRONG}{address}"
    with redis().pipeline() as counting:
        counting.set(key, 0, ex=GUESSED_WITHIN, nx=True)
        counting.incr(key)
        counting.ttl(key)
        _, guesses, seconds = counting.execute()
    if guesses > GUESSES:
        raise TooManyGuessesError(seconds)
    if not _same(token, _token()):
        return False
    redis().delete(key)
    return True


def require_token() -> None:
    """Raise NotConfiguredError where nobody could sign in."""
    _token()


def sign_in(response: Response, request: Request, name: str) -> None:
    """Give the browser a session."""
    shown = " ".join("".join(filter(str.isprintable, name)).split())[:LONGEST_NAME]
    facts = {"name": shown or "console", "csrf": secrets.token_urlsafe(16)}
    _set(response, request, COOKIE, _signer("session").dumps(facts), LASTS)


def sign_out(response: Response, request: Request) -> None:
    """Take the session away."""
    response.delete_cookie(COOKIE, path=_path(request))


def say(response: Response, request: Request, text: str, *, well: bool = True) -> None:
    """Have the next page tell what this action did, and whether it went *well*."""
    facts = [text[:LONGEST_SAID], well]
    _set(response, request, SAID, _signer("said").dumps(facts), SAID_LASTS)


def said(request: Request) -> tuple[str, bool] | None:
    """Return what the last action did, if no page has told it yet."""
    try:
        text, well = _signer("said").loads(request.cookies.get(SAID, ""), max_age=SAID_LASTS)
    except (BadSignature, NotConfiguredError, TypeError, ValueError):
        return None
    return str(text), bool(well)


def was_told(response: Response, request: Request) -> None:
    """Forget what the last action did."""
    response.delete_cookie(SAID, path=_path(request))


def login_address(request: Request) -> str:
    """Return where to sign in, and then come back to what was asked for."""
    root = request.scope["root_path"]
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    asked = request.method == "GET" and wanted not in {root, f"{root}/"}
    return f"{root}/login" + (f"?{urlencode({'next': wanted})}" if asked else "")


def inside(request: Request, wanted: str) -> str:
    """Return an address to go on with: a page of ours, whatever somebody has put into a link."""
    root = f"{request.scope['root_path']}/"
    ours = wanted.startswith(root) and not wanted.startswith("//") and "\\" not in wanted
    return wanted if ours and wanted.isprintable() else root


class SafeHeaders:
    """Adds what keeps browsers from being used against us, to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # An id may hold "/static/", too; and a file that is missing today may be there tomorrow.
        static = scope["path"].removeprefix(scope["root_path"]).startswith("/static/")

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                keep = KEPT_A_DAY if static and message["status"] < FAILED else NEVER_KEPT
                named = (HEADERS | keep).items()
                added = [(name.encode(), value.encode()) for name, value in named]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_safely)


def _token() -> str:
    token = settings().admin_token
    if token is None:
        raise NotConfiguredError
    return token.get_secret_value()


def _signer(purpose: str) -> URLSafeTimedSerializer:
    """Sign with the token itself, so that a changed token ends every session."""
    how: dict[str, Any] = {"key_derivation": "hmac", "digest_method": sha256}
    return URLSafeTimedSerializer(_token(), f"perennial.console.{purpose}", signer_kwargs=how)


def _set(response: Response, request: Request, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _path(request: Request) -> str:
    return request.scope["root_path"] or "/"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
