"""Who may come in: whoever shows the admin token, before a byte of the body is read."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from admin.routes.shapes import Answer, Problem
from config.settings import settings

scheme = HTTPBearer(
    auto_error=False, scheme_name="admin", description="The value of `ADMIN_TOKEN`."
)

REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The bearer token is missing or wrong."},
    503: {"model": Problem, "description": "Not configured, or something does not answer."},
}
UNUSABLE: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "What was sent cannot be used."}
}
UNREADABLE: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is no JSON, or no form."},
    413: {
        "model": Problem,
        "content": {"text/plain": {"schema": {"type": "string"}}},
        "description": "The body is too large; that alone may be said in plain text.",
    },
    **UNUSABLE,
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is none of that id."}
}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "Its state does not allow it; the detail says why."}
}

# Whom letters and gates name as the one who did it.
Operator = Annotated[
    str,
    Header(
        alias="X-Operator",
        description="Who does so; letters, gates and results name them.",
        max_length=80,
        pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
    ),
]
NOBODY = "api"


async def admit(request: Request) -> None:
    """Let a request with the admin token pass; it is compared in constant time.

    Raises:
        HTTPException: 401; 503 where no token is set: then nobody is let in.
    """
    token = settings().admin_token
    if token is None:
        raise HTTPException(503, "not configured: set ADMIN_TOKEN")
    shown: HTTPAuthorizationCredentials | None = await scheme(request)
    # A header comes as Latin-1, whatever its bytes are.
    given = shown.credentials.encode("latin-1") if shown else b""
    if not hmac.compare_digest(given, token.get_secret_value().encode()):
        raise HTTPException(
            401,
            "the bearer token is missing or wrong",
            {"WWW-Authenticate": 'Bearer realm="perennial"'},
        )


class Guarded(APIRoute):
    """A route that admits before it reads, parses or looks at anything."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def admitted(request: Request) -> Response:
            await admit(request)
            return await handle(request)

        return admitted


def guarded_router(tag: str, prefix: str = "") -> APIRouter:
    """Return a router all of whose routes are for the admin token only."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=Guarded,
        # For the OpenAPI description; it lets everybody pass.
        dependencies=[Depends(scheme)],
        default_response_class=Answer,
        responses=REFUSALS,
    )
