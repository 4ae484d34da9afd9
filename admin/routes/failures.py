"""What goes wrong, as an answer: a status, and a sentence that says what to do about it.

The sentences quote no driver, which would name hosts: who calls a webhook reads them, too. The log
has what the driver said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from amqp.exceptions import AMQPError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from admin.repair import Refused
from admin.routes.shapes import Answer
from classifiers.errors import InvalidData, JobError, NotConfigured, Pending
from reliability.connection import RedisError
from tasks.base import classified

log = logging.getLogger(__name__)

# s after which it may be well again; a client that asks sooner only adds to the trouble.
RETRY_AFTER = "5"

REDIS = (
    "Redis does not answer, or refuses: see whether it runs, is full or a replica, and REDIS_URL; "
    "the log says more"
)
BROKER = "the queue cannot be reached: look at the broker; the log says more"
DATABASE = "the database does not answer: see whether it runs, and DATABASE_URL; the log says more"
OURS = "our own side failed: see whether Redis and the database run; the log says more"


def install(app: FastAPI) -> None:
    """Have *app* answer these failures so, whichever route they come from."""
    app.add_exception_handler(HTTPException, _as_told)
    app.add_exception_handler(RequestValidationError, _unusable)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RedisError, _redis)
    app.add_exception_handler(OperationalError, _broker)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(JobError, _job_error)
    for of_rabbitmq in (OSError, AMQPError):  # kombu wraps some of them, and for publishers only
        app.add_exception_handler(of_rabbitmq, _broker)
    app.add_exception_handler(UnicodeEncodeError, _no_text)


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """Say what pydantic complains about, never with what was sent: it may be a secret."""
    return "; ".join(dict.fromkeys(map(_said, errors)))


def _said(error: Mapping[str, Any]) -> str:
    match error:
        case {"type": "json_invalid"}:
            return "the body is no JSON"
        # What came as a form, as curl sends it, or without a type was not even parsed.
        case {"loc": ("body",), "input": bytes()}:
            return "the body has to be an object, and sent as Content-Type: application/json"
    return f"{'.'.join(map(str, error['loc'][1:])) or 'body'}: {error['msg']}"


async def _as_told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  Starlette's type is wider
    return Answer({"detail": error.detail}, error.status_code, error.headers or {})


async def _unusable(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  as above
    return Answer({"detail": sentence(error.errors())}, 422)


async def _no_text(_: Request, __: Exception) -> Response:
    """JSON can spell half a surrogate pair, which neither Redis nor a database takes."""
    return Answer({"detail": "a text in the body cannot be written as UTF-8"}, 422)


async def _refused(_: Request, error: Exception) -> Response:
    return Answer({"detail": str(error)}, 409)


async def _redis(request: Request, error: Exception) -> Response:
    return _unavailable(request, error, REDIS)


async def _broker(request: Request, error: Exception) -> Response:
    return _unavailable(request, error, BROKER)


async def _database(request: Request, error: Exception) -> Response:
    assert isinstance(error, SQLAlchemyError)  # noqa: S101  as above
    return await _job_error(request, classified(error))


async def _job_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, JobError)  # noqa: S101  as above
    if isinstance(error, InvalidData):
        return Answer({"detail": error.detail}, 422)
    if isinstance(error, Pending):
        return Answer({"detail": error.detail}, 409)
    if isinstance(error, NotConfigured):
        return Answer({"detail": error.detail}, 503)
    return _unavailable(request, error, DATABASE if error.service == "database" else OURS)


def _unavailable(request: Request, error: Exception, said: str) -> Response:
    log.error("[API] %s %s: %s", request.method, request.url.path, error)
    return Answer({"detail": said}, 503, {"Retry-After": RETRY_AFTER})
