"""The console: pages for the person on call, made here, that need no script.

It is an application of its own below `/console`, so that its headers, sessions and error pages are
those of people, and the API's those of programs.
"""

from __future__ import annotations

from typing import Any

from amqp.exceptions import AMQPError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from admin.console import access, letters, overview, replays, users, waiting
from admin.console.render import STATIC, page
from admin.console.session import (
    ForgedError,
    NotConfiguredError,
    SafeHeaders,
    SignedOutError,
    login_address,
    operator_of,
    say,
)
from classifiers.errors import InternalError, JobError
from reliability.connection import RedisError
from tasks.base import classified

PATH = "/console"
LARGEST_BODY = 1_000_000  # bytes; an edited payload has thousands
NOT_DONE = "Whatever you were doing may not be done: look before you repeat it."


def mount(app: FastAPI) -> None:
    """Add the console to an application."""
    # Around it, not in it: what tells of a bug of ours is further out than any middleware.
    app.mount(PATH, SafeHeaders(create_console()), name="console")
    app.add_api_route("/", lead_here, methods=["GET", "HEAD"], include_in_schema=False)


def lead_here(request: Request) -> Response:
    """Lead who has typed no more than the host to the console, as at night."""
    onward = f"{request.scope['root_path']}{PATH}/"
    return RedirectResponse(onward, 303, {"Cache-Control": "no-store"})


def create_console() -> FastAPI:
    """Return the console, to be mounted."""
    console = FastAPI(openapi_url=None, exception_handlers=TROUBLES, max_body_size=LARGEST_BODY)
    console.mount("/static", StaticFiles(directory=STATIC), name="static")
    for router in (
        access.way_in,
        access.way_out,
        overview.router,
        letters.router,
        replays.router,
        waiting.router,
        users.router,
    ):
        console.include_router(router)
    return console


# -- what goes wrong, in words


def signed_out(request: Request, _: Exception) -> Response:
    """Ask for the token, and lead back to what was asked for."""
    login = login_address(request)
    if request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site":
        # A link in a chat: the browser keeps our cookie back from what another site has begun.
        return page(request, "onward.html", onward=login)
    response = RedirectResponse(login, status_code=303)
    if request.method != "GET":
        say(response, request, "Your session has ended. Nothing was done.", well=False)
    return response


def not_configured(request: Request, _: Exception) -> Response:
    return _trouble(
        request, 503, "Not configured", "Set ADMIN_TOKEN where this runs, and start it again."
    )


def forged(request: Request, _: Exception) -> Response:
    return _trouble(
        request,
        403,
        "Nothing was done",
        "This form does not belong to your session: it is older than your last login, or another "
        "site has sent it. Go back, load the page again, and repeat it.",
    )


def refused(request: Request, refusal: Exception) -> Response:
    """Say what the route itself says, or that there is no such page."""
    assert isinstance(refusal, HTTPException)  # noqa: S101 - the table below
    titles = {404: "Not here", 405: "Not so", 422: "Not so"}
    told = refusal.detail if refusal.detail != "Not Found" else "There is no such page."
    return _trouble(request, refusal.status_code, titles.get(refusal.status_code, "No"), told)


def unreadable(request: Request, _: Exception) -> Response:
    return _trouble(request, 422, "Not so", "Something in this address or form makes no sense.")


def redis_is_away(request: Request, failure: Exception) -> Response:
    return _trouble(
        request,
        503,
        "Redis does not answer, or refuses",
        "Queues, parked jobs and dead letters are in it. Nothing is lost that it has written; "
        f"workers go on when it is back. Look at its process, disk and memory. {NOT_DONE}",
        f"{type(failure).__name__}: {failure}",
    )


def broker_is_away(request: Request, failure: Exception) -> Response:
    return _trouble(
        request,
        503,
        "The broker does not answer",
        f"The queues are there. See whether it runs, and who may use it. {NOT_DONE}",
        f"{type(failure).__name__}: {failure}",
    )


def database_is_away(request: Request, failure: Exception) -> Response:
    return _trouble(
        request,
        503,
        "The database does not answer",
        "Effects, credits, videos and crawls are in it; their jobs are tried again until it is "
        f"back. Look at DATABASE_URL, its process and disk. {NOT_DONE}",
        str(classified(failure)),
    )


def failed(request: Request, failure: Exception) -> Response:
    """Say that one of ours could not answer; anything else is a bug, which the log tells of."""
    known = isinstance(failure, JobError)
    return _trouble(
        request,
        503 if isinstance(failure, InternalError) else 500,
        "That did not work",
        f"{failure} {NOT_DONE}"
        if known
        else f"This is a bug of the console; its log has the traceback. {NOT_DONE}",
    )


def _trouble(request: Request, status: int, title: str, text: str, detail: str = "") -> Response:
    request.state.operator = getattr(request.state, "operator", None) or _operator(request)
    return page(request, "trouble.html", status=status, title=title, text=text, detail=detail)


def _operator(request: Request) -> Any:
    try:
        return operator_of(request)
    except NotConfiguredError:
        return None


TROUBLES: Any = {
    SignedOutError: signed_out,
    NotConfiguredError: not_configured,
    ForgedError: forged,
    HTTPException: refused,
    RequestValidationError: unreadable,
    RedisError: redis_is_away,
    OperationalError: broker_is_away,
    AMQPError: broker_is_away,
    SQLAlchemyError: database_is_away,
    JobError: failed,
    Exception: failed,
}
