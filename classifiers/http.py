"""What the HTTP layer alone can tell: broken transport, bare status codes, Retry-After."""

from __future__ import annotations

import html
import os
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx

from classifiers.errors import (
    BillingExhausted,
    BusinessRule,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DETAIL_LIMIT = 300  # characters: enough for a sentence in a table, too little for a page of HTML

_RAW_LIMIT = 2000  # characters we look at: keeps the regular expressions fast on a hostile body
_TAG = re.compile(r"<[^<>]*>")
# Whole addresses, and the part of a Bitrix address that holds the webhook code.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://\S*|\S*\brest/\S*", re.IGNORECASE)
# RFC 9110 says whole seconds; a fraction is harmless. Nine digits are thirty years.
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class _Break:
    """Where a call broke off: *sent* says that bytes of the request may have left us."""

    kind: type[JobError]
    sent: bool
    sentence: str


_TIMED_OUT = _Break(ServiceUnavailable, True, "no answer in time")
# Not NetworkError, which promises that the request never reached the upstream.
_BROKEN = _Break(ServiceUnavailable, True, "the connection broke before the answer was complete")

# Every httpx.RequestError; the nearest ancestor wins. The base classes stand here too, with the
# careful reading, so that a class that httpx adds tomorrow is taken as "may have been sent".
TRANSPORT: dict[type[BaseException], _Break] = {
    httpx.ConnectError: _Break(NetworkError, False, "could not connect"),
    httpx.ConnectTimeout: _Break(NetworkError, False, "could not connect in time"),
    httpx.PoolTimeout: _Break(NetworkError, False, "no free connection in our pool in time"),
    httpx.ProxyError: _Break(NetworkError, False, "the proxy refused to connect us"),
    httpx.UnsupportedProtocol: _Break(
        NotConfigured, False, "the address in the settings must start with https:// or http://"
    ),
    # Our own request was not valid HTTP (a line break in a header): the upstream is not at fault.
    httpx.LocalProtocolError: _Break(InternalError, False, "our request was not valid HTTP"),
    # We never follow a redirect, so a client that meets this one is set up wrongly.
    httpx.TooManyRedirects: _Break(NotConfigured, False, "the upstream moved to another address"),
    httpx.ReadTimeout: _TIMED_OUT,
    httpx.WriteTimeout: _TIMED_OUT,
    httpx.TimeoutException: _TIMED_OUT,
    httpx.ReadError: _BROKEN,
    httpx.WriteError: _BROKEN,
    httpx.CloseError: _BROKEN,
    httpx.NetworkError: _BROKEN,
    httpx.RemoteProtocolError: _BROKEN,
    httpx.ProtocolError: _BROKEN,
    httpx.TransportError: _BROKEN,
    httpx.RequestError: _BROKEN,
    httpx.DecodingError: _Break(InternalError, True, "the answer could not be unpacked"),
}

STATUSES: dict[int, type[JobError]] = {
    401: Unauthorized,
    402: BillingExhausted,
    403: Forbidden,
    404: NotFound,
    405: NotConfigured,  # a wrong address or method: ours to repair, whatever the data
    406: NotConfigured,
    407: NotConfigured,
    409: BusinessRule,
    410: NotFound,
    412: BusinessRule,
    421: NotConfigured,
    425: ServiceUnavailable,  # RFC 8470: refused before it was looked at, thus unsafe calls too
    426: NotConfigured,
    429: RateLimited,
    451: Forbidden,
}  # every other 4xx is InvalidData: the upstream says that the request is at fault


def classify_transport(
    error: httpx.RequestError, *, safe: bool, service: str = "", operation: str = ""
) -> JobError:
    """Say whether a call without an answer was surely not sent, or may have taken effect.

    Takes all of httpx.RequestError, thus also an answer that could not be unpacked. The detail is
    our own sentence: httpx may quote the address, which is a secret.
    """
    rule = next(TRANSPORT[kind] for kind in type(error).__mro__ if kind in TRANSPORT)
    kind = in_doubt(rule.kind, safe=safe) if rule.sent else rule.kind
    reason = next(_reasons(error), "")
    detail = f"{rule.sentence}: {reason}" if reason else rule.sentence
    return kind(detail, service=service, operation=operation, code=type(error).__name__)


def classify_status(
    status: int,
    *,
    safe: bool,
    service: str = "",
    operation: str = "",
    code: str = "",
    detail: str = "",
    retry_after: float | None = None,
) -> JobError | None:
    """Judge by the status alone, where the upstream's own words say nothing; None = 2xx."""
    kind = kind_of(status, safe=safe)
    if kind is None:
        return None
    return kind(
        detail or f"answered with HTTP status {status}",
        service=service,
        operation=operation,
        code=code or str(status),
        retry_after=retry_after,
    )


def kind_of(status: int, *, safe: bool) -> type[JobError] | None:
    """The class for a status; None = 2xx."""
    match status // 100:
        case 2:
            return None
        case 3:  # never followed: a POST would silently become a GET
            return NotConfigured
        case 4 if status == httpx.codes.REQUEST_TIMEOUT:
            return in_doubt(ServiceUnavailable, safe=safe)
        case 4:
            return STATUSES.get(status, InvalidData)
        case 5:
            # 503 too: only the upstream's own code can say "refused before execution"; a bare
            # one may come from a proxy that lost an upstream which is still working.
            return in_doubt(ServiceUnavailable, safe=safe)
        case _:
            return in_doubt(InternalError, safe=safe)  # no final answer at all


def in_doubt(kind: type[JobError], *, safe: bool) -> type[JobError]:
    """*kind* where repeating is harmless, else OutcomeUnknown: it may have been carried out."""
    return kind if safe else OutcomeUnknown


def parse_retry_after(value: str | None, *, now: datetime | None) -> float | None:
    """Seconds from a Retry-After header: seconds, or a date, which tells nothing without *now*."""
    value = (value or "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    moment = parse_date(value)
    return None if moment is None or now is None else max(0.0, (moment - now).total_seconds())


def retry_after(response: httpx.Response) -> float | None:
    """Seconds the answer asks us to wait; a date counts from the Date of the same answer.

    So the error of our own clock does not matter.
    """
    now = parse_date(response.headers.get("date", ""))
    return parse_retry_after(response.headers.get("retry-after"), now=now)


def body_of(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in an answer, an empty one if it holds none."""
    try:
        body = response.json()
    except (ValueError, RecursionError):  # not JSON, not text, cut short, or nested without end
        return {}
    return body if isinstance(body, dict) else {}


def plain_text(text: str, *, hide: tuple[str, ...] = (), limit: int = DETAIL_LIMIT) -> str:
    """An upstream's words as one safe line: no tags, control characters, addresses, nor *hide*."""
    text = _TAG.sub(" ", html.unescape(text[:_RAW_LIMIT]))
    # Half a surrogate pair is legal in JSON, but cannot be written as UTF-8: not printable either.
    text = "".join(char if char.isprintable() else " " for char in text)
    text = _ADDRESS.sub("(address)", text)
    for secret in filter(None, hide):
        text = text.replace(secret, "***")
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def parse_date(value: str) -> datetime | None:
    """Return the moment that a header names, always with a time zone; None = it names none."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _reasons(error: BaseException | None) -> Iterator[str]:
    """What the operating system said, in fixed words: its own texts may quote an address."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        match error:
            case ssl.SSLCertVerificationError():
                yield "its certificate was not accepted"
            case ssl.SSLError():
                yield "no secure connection came about"
            case socket.gaierror():
                yield "its name could not be resolved"
            case OSError(errno=int(number)):
                yield os.strerror(number)
        error = error.__cause__ or error.__context__
