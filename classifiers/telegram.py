"""What a Telegram Bot API answer means. Its texts are stable English: substrings of them decide."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx

from classifiers import http
from classifiers.errors import (
    Blocked,
    BusinessRule,
    Duplicate,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    RateLimited,
    Unauthorized,
    UserError,
)

SERVICE = "telegram"
UNREACHABLE = "recipient_unreachable"  # the reason of a UserError that nobody can be told of

# The `code` of an error where the client can go on: with another source, a link, or not at all.
SOURCE_REFUSED = "source_refused"
TOO_BIG = "too_big"
DELETED = "immediately_deleted"
TOO_LATE = "query_too_old"
MIGRATED = "migrated"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The class of an error, and our own `code` where Telegram's number says too little."""

    kind: type[JobError]
    code: str = ""


# UPSTREAMS 3.3. Lower case, because the server itself is not consistent; raw names such as
# MEDIA_EMPTY reach us where the server has no sentence for them. The first row that fits wins.
TEXTS: tuple[tuple[Meaning, tuple[str, ...]], ...] = (
    (
        # It was sent, and something in the chat deleted it at once: the effect is known, so this
        # is no OutcomeUnknown; and the next one would be sent, and deleted, as well.
        Meaning(BusinessRule, DELETED),
        ("immediately deleted",),
    ),
    (Meaning(NotFound, TOO_LATE), ("query is too old",)),
    (
        Meaning(UserError),
        (
            "chat not found",
            "chat_id is empty",
            "peer_id_invalid",
            "user not found",
            "group chat was upgraded",  # without the new id: only the user can show it to us
            "user is deactivated",
            "bot was blocked",
            "bot was kicked",
            "bot is not a member",
            "bot can't initiate conversation",
            "bot can't send messages to",
            "chat was deleted",
            # The chat's owner took our rights away and can give them back; and what we cannot say
            # to a chat, a message to the same chat cannot explain.
            "not enough rights",
            "no rights to send",
            "have no write access",
            "need administrator rights",
            "chat_admin_required",
            "chat_restricted",
            # UPSTREAMS 3.3: a 403 with an ALL_CAPS text becomes a 400: CHAT_WRITE_FORBIDDEN …
            "_forbidden",
            "privacy_restricted",
            "user_is_b",  # …LOCKED, …OT
        ),
    ),
    (
        Meaning(InvalidData, TOO_BIG),
        ("file is too big", "file of size", "request entity too large"),
    ),
    (
        Meaning(InvalidData, SOURCE_REFUSED),
        (
            "wrong file identifier",
            "wrong http url",
            "wrong type of the web page content",
            "wrong remote file identifier",
            "invalid file http url",
            "failed to get http url content",
            "can't upload file by url",
            "can't use file of type",
            "file must be non-empty",
            "media_empty",
            "media_invalid",
            "webpage_curl_failed",
            "webpage_media_empty",
            "file_reference_",  # …EXPIRED, …INVALID
        ),
    ),
    # The server's own source names it: the whole account is frozen, and only Telegram thaws it.
    (Meaning(Blocked), ("frozen_method_invalid",)),
)

CODES: dict[int, type[JobError]] = {
    400: InvalidData,
    401: Unauthorized,
    403: UserError,
    404: Unauthorized,  # a malformed token; Telegram knows every method that we call
    409: NotConfigured,  # somebody polls, or a webhook is set: never the answer to a send
    413: InvalidData,
    421: NotConfigured,  # this server serves other bots
    429: RateLimited,
}
OWN_CODES = {413: TOO_BIG}
ADVICE = {
    404: "check TELEGRAM_BOT_TOKEN",
    409: "only one may fetch this bot's updates",
    421: "check TELEGRAM_BASE_URL and TELEGRAM_BOT_TOKEN",
}

# …/bot<token>/<method>, on a test server …/bot<token>/test/<method>
_PATH = re.compile(r"/bot[^/]+(/test)?(/(?P<method>[A-Za-z]+))?/?$")
_BOT = re.compile(r"bot(.+)")
_CHAT = re.compile(r"-?[1-9][0-9]{0,19}")
_STATUS = re.compile(r"[1-9][0-9]{2}")


def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Judge an answer; None = success, and then `result` holds something."""
    body = http.body_of(response)
    if body.get("ok") is True and body.get("result") is not None:
        return None
    number, text = _number(body.get("error_code")), _word(body.get("description"))
    if body.get("ok") is True or (number is None and not text):
        return _foreign(response, safe=safe)
    parameters = body.get("parameters")
    return _judge(
        response,
        response.status_code if number is None else number,
        text,
        parameters if isinstance(parameters, dict) else {},
        safe=safe,
    )


def _judge(
    response: httpx.Response, number: int, text: str, parameters: dict[str, Any], *, safe: bool
) -> JobError:
    facts = _facts(response, number)
    detail = http.plain_text(text, hide=_secrets(response)) or f"error {number} without a reason"
    if number in ADVICE:
        detail = f"{detail}: {ADVICE[number]}"
    if number == httpx.codes.TOO_MANY_REQUESTS:  # before the texts: refused, so always safe
        facts["retry_after"] = _seconds(parameters.get("retry_after"), response)
        return RateLimited(detail, **facts)
    chat = _chat(parameters.get("migrate_to_chat_id"))
    if chat:
        return Duplicate(detail, existing_id=chat, **{**facts, "code": MIGRATED})
    meaning = _told(text) or _numbered(number, safe=safe)
    facts["code"] = meaning.code or facts["code"]
    if meaning.kind is UserError:
        return UserError(detail, reason=UNREACHABLE, **facts)
    return meaning.kind(detail, **facts)


def _told(text: str) -> Meaning | None:
    text = text.casefold()
    return next((meaning for meaning, signs in TEXTS if any(sign in text for sign in signs)), None)


def _numbered(number: int, *, safe: bool) -> Meaning:
    kind = CODES.get(number) or http.kind_of(number, safe=safe)
    return Meaning(kind or http.in_doubt(InternalError, safe=safe), OWN_CODES.get(number, ""))


def _foreign(response: httpx.Response, *, safe: bool) -> JobError:
    """An answer that makes no sense, or is not the Bot API's: from a proxy, or another server."""
    status = response.status_code
    detail = f"not an answer of the Bot API, HTTP status {status}"
    # A 2xx without a result may well be the end of a message that was sent.
    kind = http.kind_of(status, safe=safe) or http.in_doubt(InternalError, safe=safe)
    # A stranger knows nothing of our token or the chat: no credential to hold, nobody to blame.
    if kind in {Unauthorized, Forbidden, NotFound, NotConfigured}:
        kind, detail = NotConfigured, f"{detail}: check TELEGRAM_BASE_URL"
    facts = _facts(response, status)
    facts["code"] = OWN_CODES.get(status, facts["code"])
    return kind(detail, **facts, retry_after=http.retry_after(response))


def _facts(response: httpx.Response, number: int) -> dict[str, Any]:
    return {"service": SERVICE, "operation": _operation(response), "code": str(number)}


def _number(value: object) -> int | None:
    text = _plain(value)
    return int(text) if _STATUS.fullmatch(text) else None


def _word(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _plain(value: object) -> str:
    """A number as text, in whatever of JSON's types it came; what is none fits no pattern."""
    return str(value).strip() if isinstance(value, int | float | str) else ""


def _seconds(value: object, response: httpx.Response) -> float | None:
    """UPSTREAMS 3.1: `parameters.retry_after`, and the same in the header."""
    seconds = http.parse_retry_after(_plain(value), now=None)
    return http.retry_after(response) if seconds is None else seconds


def _chat(value: object) -> str:
    text = _plain(value)
    return text if _CHAT.fullmatch(text) else ""


def _operation(response: httpx.Response) -> str:
    """The method's name out of the request's address, or nothing: never the token."""
    found = _PATH.search(_path(response))
    return (found["method"] or "") if found else ""


def _secrets(response: httpx.Response) -> tuple[str, ...]:
    """The token, and the half of it that is secret, which an answer might echo alone."""
    tokens = [found[1] for part in _path(response).split("/") if (found := _BOT.match(part))]
    return tuple(secret for token in tokens for secret in (token, token.partition(":")[2]))


def _path(response: httpx.Response) -> str:
    try:
        return response.request.url.path
    except RuntimeError:  # a response that was built without its request
        return ""
