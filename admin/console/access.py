"""In and out: the only pages that somebody sees who has not signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from admin.console import session
from admin.console.render import page, span
from admin.console.session import TooManyGuessesError

way_in = APIRouter()
way_out = session.pages()


@way_in.get("/login")
def login(request: Request, wanted: Annotated[str, Query(alias="next")] = "") -> Response:
    """Ask for the token."""
    session.require_token()
    if session.operator_of(request) is not None:
        return RedirectResponse(session.inside(request, wanted), status_code=303)
    return page(request, "login.html", wanted=wanted, name="", problem="")


@way_in.post("/login")
def sign_in(
    request: Request,
    token: Annotated[str, Form()] = "",
    name: Annotated[str, Form()] = "",
    wanted: Annotated[str, Form(alias="next")] = "",
) -> Response:
    """Let in who knows the token."""
    session.require_token()
    try:
        known = session.is_admin(token.strip(), request.client.host if request.client else "")
    except TooManyGuessesError as refusal:
        wait = span(max(1, refusal.seconds))
        problem = f"Too many wrong tokens from your address. Try again in {wait}."
        return _again(request, wanted, name, problem, 429)
    if not known:
        return _again(request, wanted, name, "That is not the admin token.", 401)
    response = RedirectResponse(session.inside(request, wanted), status_code=303)
    session.sign_in(response, request, name)
    return response


def _again(request: Request, wanted: str, name: str, problem: str, status: int) -> Response:
    facts = {"wanted": wanted, "name": name, "problem": problem}
    return page(request, "login.html", status=status, **facts)


@way_out.post("/logout")
def sign_out(request: Request) -> Response:
    """End the session of this browser."""
    response = RedirectResponse(f"{request.scope['root_path']}/login", status_code=303)
    session.sign_out(response, request)
    return response
