"""What a Bitrix24 answer means. Codes decide; texts, which are localised, only where none is."""

from __future__ import annotations

import re
from typing import Any

import httpx

from classifiers import http
from classifiers.errors import (
    BillingExhausted,
    Blocked,
    BusinessRule,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    MissingFields,
    NotConfigured,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
)

SERVICE = "bitrix"

# UPSTREAMS 1.3. Upper case, because the portal itself is not consistent.
CODES: dict[str, type[JobError]] = {
    "QUERY_LIMIT_EXCEEDED": RateLimited,
    "OPERATION_TIME_LIMIT": RateLimited,  # until operating_reset_at, which only the client knows
    "INTERNAL_SERVER_ERROR": ServiceUnavailable,
    "ERROR_UNEXPECTED_ANSWER": ServiceUnavailable,
    "OVERLOAD_LIMIT": Blocked,
    "NO_AUTH_FOUND": Unauthorized,
    "INVALID_CREDENTIALS": Unauthorized,
    "EXPIRED_TOKEN": Unauthorized,
    "INSUFFICIENT_SCOPE": Forbidden,
    "USER_ACCESS_ERROR": Forbidden,
    "ACCESS_DENIED": Forbidden,
    "ALLOWED_ONLY_INTRANET_USER": Forbidden,
    "METHOD_CONFIRM_WAITING": Forbidden,
    "METHOD_CONFIRM_DENIED": Forbidden,
    "INVALID_REQUEST": NotConfigured,
    "PORTAL_DELETED": NotConfigured,
    "ERROR_METHOD_NOT_FOUND": NotConfigured,
    "PAYMENT_REQUIRED": BillingExhausted,
    "ERROR_BATCH_LENGTH_EXCEEDED": InvalidData,
    "ERROR_BATCH_METHOD_NOT_ALLOWED": InvalidData,
    "ERROR_CORE": InvalidData,
    "NOT_FOUND": NotFound,
    "INVALID_ARG_VALUE": InvalidData,
    "CRM_FIELD_ERROR_VALUE_NOT_VALID": InvalidData,
    "CRM_FIELD_ERROR_REQUIRED": MissingFields,
    "100": InvalidData,
}

# Beginnings of words, so that they fit every gender and number of the Russian. The first line that
# fits wins: refusals before "not found", because a NotFound lets an update end as done.
TEXTS: tuple[tuple[type[JobError], tuple[str, ...]], ...] = (
    (Forbidden, ("access denied", "доступ запрещ", "отказано в доступе", "недостаточно прав")),
    (ServiceUnavailable, ("failed to get list", "general error", "internal server error")),
    # The portal's own disk, not ours: somebody has to make room or change the plan there.
    (NotConfigured, ("disk resource exhausted",)),
    (
        MissingFields,
        ("required", "обязательн", "not specified", "could not find value for parameter"),
    ),
    (BusinessRule, ("already exists", "уже существует")),
    (NotFound, ("not found", "не найден")),
)

# Inside these codes the text may only say more exactly what the code has said.
_REFINED_BY_TEXT = (MissingFields, BusinessRule)

_CODE = re.compile(r"[A-Z0-9][A-Z0-9_.:-]{0,99}")  # anything else in `error` is a sentence
# A method has a dot in its name, which a webhook code never has; these have none.
_METHOD = re.compile(r"[a-z][\w-]*(\.[\w-]+)+|batch|events|methods|profile|scope", re.IGNORECASE)


def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Judge an answer of the REST API; None = success.

    A batch succeeds as a whole: its client gives the entries of `result.result_error` to
    `classify_error` one by one.
    """
    operation = _operation(response)
    if httpx.codes.is_redirect(response.status_code):
        return _moved(response, operation)
    body = http.body_of(response)
    if response.is_success and "result" in body and not _complains(body):
        return None
    code, text = _words(body)
    if not code and not text:
        return _foreign(response, safe=safe, operation=operation)
    return _judge(
        code,
        text,
        safe=safe,
        status=response.status_code,
        operation=operation,
        hide=_secrets(response),
        retry_after=http.retry_after(response),
    )


def classify_error(
    error: object, description: object = "", *, safe: bool, status: int = 200, operation: str = ""
) -> JobError:
    """Judge one `error` and its `error_description`, such as an entry of `result.result_error`.

    *status* is that of the answer; entries of a batch have none of their own and leave it at 200.
    """
    code, text = _words({"error": error, "error_description": description})
    return _judge(code, text, safe=safe, status=status, operation=operation)


def _judge(
    code: str,
    text: str,
    *,
    safe: bool,
    status: int,
    operation: str,
    hide: tuple[str, ...] = (),
    retry_after: float | None = None,
) -> JobError:
    if not _CODE.fullmatch(code.upper()):  # findbycomm and others put a sentence into `error`
        code, text = "", f"{code} {text}".strip()
    kind = _kind(code.upper(), text.casefold(), status=status) or http.kind_of(status, safe=safe)
    kind = kind or Unclassified
    if kind in {ServiceUnavailable, Unclassified}:  # a code nobody knows promises nothing
        kind = http.in_doubt(kind, safe=safe)
    return kind(
        http.plain_text(text, hide=hide) or "gave no reason",
        service=SERVICE,
        operation=operation,
        code=http.plain_text(code, hide=hide),
        retry_after=retry_after,
    )


def _kind(code: str, text: str, *, status: int) -> type[JobError] | None:
    """What code and text say; None = nothing, ask the status."""
    if code:
        kind = CODES.get(code)
        told = _told(text) if kind is InvalidData else None
        return told if told in _REFINED_BY_TEXT else kind
    if status == httpx.codes.BAD_REQUEST or httpx.codes.is_success(status):
        return _told(text) or InvalidData
    return None


def _told(text: str) -> type[JobError] | None:
    return next((kind for kind, signs in TEXTS if any(sign in text for sign in signs)), None)


def _moved(response: httpx.Response, operation: str) -> JobError:
    """302 = the portal was renamed. Only the host is told: the path holds the webhook code."""
    try:
        host = httpx.URL(response.headers.get("location", "")).host
    except (httpx.InvalidURL, ValueError):
        host = ""
    where = http.plain_text(host, hide=_secrets(response)) or "another address"
    return NotConfigured(
        f"the portal moved to {where}: update BITRIX_WEBHOOK_URL",
        service=SERVICE,
        operation=operation,
        code=str(response.status_code),
    )


def _foreign(response: httpx.Response, *, safe: bool, operation: str) -> JobError:
    """An answer not in the REST API's format: from a proxy, cut short, or from another server."""
    status = response.status_code
    detail = f"not an answer of the REST API, HTTP status {status}"
    # A 2xx that makes no sense is our side's riddle: the call may well have been carried out.
    kind = http.kind_of(status, safe=safe) or http.in_doubt(InternalError, safe=safe)
    if kind is NotFound:  # it would let an update end as "target gone" behind a wrong address
        kind, detail = NotConfigured, f"{detail}: check BITRIX_WEBHOOK_URL"
    return kind(
        detail,
        service=SERVICE,
        operation=operation,
        code=str(status),
        retry_after=http.retry_after(response),
    )


def _complains(body: dict[str, Any]) -> bool:
    return bool(body.get("error") or body.get("error_description"))


def _words(body: dict[str, Any]) -> tuple[str, str]:
    """`error` and `error_description` as text, whatever types the portal chose for them."""
    error, text = body.get("error"), body.get("error_description")
    if isinstance(error, dict):  # REST 3: {"error": {"code": …, "message": …}}
        return _word(error.get("code")), _word(text or error.get("message"))
    return _word(error), _word(text)


def _word(value: object) -> str:
    match value:
        case str():
            return value.strip()
        case int() | float() if not isinstance(value, bool):
            return str(value)
        case list():
            return "; ".join(item for item in value if isinstance(item, str))
        case _:
            return ""


def _operation(response: httpx.Response) -> str:
    """The method's name out of the request's address, or nothing: never the webhook code."""
    name = _path_end(response)[-1]
    return name if _METHOD.fullmatch(name) else ""


def _secrets(response: httpx.Response) -> tuple[str, ...]:
    """The path's end but for the method: the webhook code, wherever the API is mounted."""
    parts = _path_end(response)
    return tuple(part for part in parts if not part.isdigit() and not _METHOD.fullmatch(part))


def _path_end(response: httpx.Response) -> list[str]:
    try:
        path = response.request.url.path
    except RuntimeError:  # a response that was built without its request
        path = ""
    return path.rstrip("/").removesuffix(".json").split("/")[-2:]
