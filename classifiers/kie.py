"""What a KIE.AI answer means, and what a failed generation means.

The body's `code` decides, because most failures arrive as HTTP 200 (UPSTREAMS 2.2); the text
decides where one code stands for many things.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from classifiers import http
from classifiers.errors import (
    BillingExhausted,
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
    UserError,
)

SERVICE = "kie"
CREATE, LOOK = "createTask", "recordInfo"

FAILED = 501  # the generation has failed: the text says why
RATE_PAUSE = 10.0  # s; UPSTREAMS 2.2: no Retry-After is documented, the limit counts ten seconds
# The `code` of an error from recordInfo that says: the generation is over, looking again is vain.
GENERATION_OVER = frozenset({"408", "505", str(FAILED)})


@dataclass(frozen=True, slots=True)
class Meaning:
    """The class of an error; the *reason* of a UserError; a *remark* of ours after KIE's words."""

    kind: type[JobError]
    reason: str = ""
    remark: str = ""


NO_MODEL = Meaning(NotConfigured, remark="set KIE_MODEL to a model that KIE offers now")

# UPSTREAMS 2.2. 500 and 501 stand for many things: see `_judge` and `_failure`.
CODES: dict[int, Meaning] = {
    400: Meaning(InvalidData),
    401: Meaning(Unauthorized),
    402: Meaning(BillingExhausted),
    404: Meaning(NotFound),
    # Not in doubt, even for a create: it is no silence but KIE's own word that it has given up
    # after ten minutes without a result. Nothing runs on, and it comes without a task.
    408: Meaning(ServiceUnavailable),
    422: Meaning(InvalidData),
    429: Meaning(RateLimited),  # UPSTREAMS 2.1: rejected, not queued
    433: Meaning(BillingExhausted),
    # Not in doubt either: in maintenance KIE turns requests away at the door.
    455: Meaning(ServiceUnavailable),
    505: NO_MODEL,
}
# A create names nothing that could be missing but its address and its model.
CREATE_CODES: dict[int, Meaning] = {404: NO_MODEL}
# Of a create: these say too little, the text has to be read. 200 is one that brought no task.
VAGUE = frozenset({200, 400, 422, 500})
# Of a failed generation: these refuse what the user sent. Our own parameters are the same for all.
REFUSALS = frozenset({400, 413, 415, 422})
# And these are our operator's to mend.
OURS = frozenset({402, 433, 505})


def _row(meaning: Meaning, *signs: str) -> tuple[Meaning, re.Pattern[str]]:
    return meaning, re.compile("|".join(signs), re.IGNORECASE)


def _user(reason: str) -> Meaning:
    return Meaning(UserError, reason)


_PHOTO = r"\b(image|photo|picture|file)s?"
_NOT = r"\b(not|fail\w*|unable|cannot|can.?t|couldn.?t|error)\b"
_FETCH = r"\b(download|fetch|(?<!have )access|reachable|be reached|retriev)\w*"

# UPSTREAMS 2.3, and texts seen in public clients of KIE. The first row that fits wins: the
# specific advice before the general one, the user's photo before our own parameters.
TEXTS: tuple[tuple[Meaning, re.Pattern[str]], ...] = (
    _row(
        Meaning(BillingExhausted),
        r"(credits?|balance|funds) (is |are )?(insufficient|not enough|isn.t enough)",
        r"(insufficient|not enough) (credits?|balance|funds)",
        r"\btop up\b",
    ),
    _row(
        _user("photo_has_people"),
        r"photo-?realistic",
        r"\breal (people|persons?|humans?)\b",
        r"contain(s|ing)? (human )?(faces|people)\b",
    ),
    _row(
        _user("content_not_allowed"),
        r"guardrail|\bpolic(y|ies)\b|prohibit|nsfw|inappropriate",
        r"moderat(?!e\b|ely)",  # not "moderate load"
        r"(?<!case[ -])(?<!in)sensitive",  # nor "names are case-sensitive"
        r"(?<!constraint )violat",  # nor "integrity constraint violation"
    ),
    _row(_user("photo_too_dark"), r"too dark|under-?exposed|brightness|\blow[ -]light"),
    _row(
        _user("photo_no_product"),
        r"\bno (visible |clear )?(product|subject)\b",
        r"\b(product|subject)s? .{0,20}\b(not|isn.t|cannot) (clearly )?"
        r"(be )?(visible|detected|found|recogni[sz]ed|seen)",
        r"(not|cannot|can.t|unable to|failed to) (detect|find|recogni[sz]e|see) "
        r"(a |any |the )?(product|subject)\b",
    ),
    _row(
        _user("photo_rejected"),  # too large: there is no advice of its own
        _PHOTO + r"( file)? (size|resolution)( \w+){0,3} (exceed\w*|too (large|big|high))\b",
        _PHOTO + r" ((is|are|was|were) )?(too (large|big)|exceeds)\b",
        r"\bexceed\w* .{0,30}\b(file|image|photo) size",
    ),
    _row(
        _user("photo_too_small"),
        r"too small|low[ -]resolution",
        r"\bminimum\b.{0,40}\b(pixels?|px|resolution|size|width|height|dimensions?)\b",
        r"\b(at least|less than|below|smaller than) [\dx× ]+(px|pixels?)\b",
        # Not "resolution is not within the range of allowed options": that is a parameter of ours.
        r"\bresolution\b.{0,20}\b(too low|below|insufficient|at least)\b",
        _PHOTO + r" resolution\b(?!.*allowed options)",
    ),
    _row(
        _user("photo_unreachable"),
        rf"{_NOT}.{{0,30}}{_FETCH}.{{0,30}}({_PHOTO}|\burl)\b",
        rf"({_PHOTO}|\burl)\b.{{0,60}}{_NOT}.{{0,20}}{_FETCH}",
        rf"{_PHOTO} (fetch|download) (fail|error)",
        rf"({_PHOTO}|\burl)\b.{{0,40}}\b(inaccessible|unreachable)",
        r"\b(inaccessible|invalid) (image |photo |file )?url",
    ),
    _row(
        _user("photo_wrong_format"),
        r"(unsupported|invalid|unknown|wrong) (image|photo|picture|file|media) (format|type)",
        r"unsupported (image|photo|picture|file|format)",
        r"\b(image|photo|picture|file|mime) ?(format|type|extension)s?\b"
        r".{0,40}\b(unsupported|not supported|not allowed|invalid)",
        rf"(decod|corrupt)\w* .{{0,30}}{_PHOTO}\b",
        rf"{_PHOTO}\b.{{0,30}}\b(decod|corrupt)",
        r"(not a valid|invalid) (image|photo|picture)\b",
    ),
    _row(
        NO_MODEL,
        r"temporarily paused|model name you specified|is not published",
        r"\bmodel( name)?( ['\"`]?[\w./-]+['\"`]?)? (is |does )?not (supported|found|exist)",
    ),
    _row(
        Meaning(MissingFields),
        r"\b(is|are|field) required\b|\bmissing (required|parameter|field)",
        r"(cannot|can.t|must not) be (null|empty|blank)",
    ),
    _row(Meaning(InvalidData), r"range of allowed options|must be one of"),
)

# Only of a generation that has ended: of a create, "try again later" does not say that nothing
# has begun.
TRANSIENT = re.compile(
    r"internal (server )?error|service (is )?(temporarily )?unavailable|time[ -]?(d )?out"
    r"|(try again|retry)( later| shortly| in \w+|[.!]?$)"
    r"|overload|too many (requests|tasks)|\bbusy\b|heavy (load|traffic)|high demand",
    re.IGNORECASE,
)

_INVISIBLE = re.compile(r"\bnull\b|not (be )?found|not exist|no record", re.IGNORECASE)
_CLOUDFLARE = re.compile(rb"error code: ([0-9]{3,5})")  # its bare refusals, before KIE sees us
_NUMBER = re.compile(r"\s*[0-9]{1,6}\s*")
_NUMBERS = range(1_000_000)
_ERRORS = range(400, 600)
_LENGTH = 2000  # characters we look at: keeps the regular expressions fast on a hostile body
_OPERATION = re.compile(r"[a-z][a-z-]{1,30}", re.IGNORECASE)


def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Judge an answer of the API; None = success.

    After a None, a create has a `task_id` and a recordInfo an object `data`, whose `state` may
    still say that the generation has failed: that is for `classify_failure`. An error of recordInfo
    with a `code` in GENERATION_OVER speaks of the generation, any other of the question.
    """
    operation = _operation(response)
    body = http.body_of(response)
    code, text = _number(body.get("code")), _word(body.get("msg"))
    if _succeeded(operation, code, response.status_code, body):
        return None
    facts: dict[str, Any] = {
        "operation": operation,
        "code": f"HTTP {response.status_code}" if code is None else str(code),
        "retry_after": http.retry_after(response),
        "hide": _secrets(response),
    }
    if code is None and not text:
        return _error(*_foreign(response, safe=safe), **facts)
    if code == FAILED:
        ended = _object(body.get("data"))
        text = _word(ended.get("failMsg")) or text
        return _error(_failure(_number(ended.get("failCode")) or FAILED, text), text, **facts)
    return _error(_judge(operation, code, text, response.status_code, safe=safe), text, **facts)


def classify_failure(fail_code: object, fail_message: object) -> JobError:
    """Judge a generation that ended as `fail`, by its `failCode` and `failMsg` of whatever type.

    A Retryable means that a new generation, at a new price, may work.
    """
    number, text = _number(fail_code), _word(fail_message)
    code = _word(fail_code) if number is None else str(number)
    return _error(_failure(number, text), text, operation="generation", code=code)


def classify_kie_error(text: str | None) -> Literal["user_error", "transient", "unknown"]:
    """Say who can help, by the text alone: the user, time, or nobody we know."""
    words = _word(text)
    meaning = _told(words)
    if meaning is not None:
        return "user_error" if meaning.kind is UserError else "unknown"
    return "transient" if TRANSIENT.search(words) else "unknown"


def task_id(body: object) -> str:
    """The id of a task in an answer or a callback, wherever KIE put it (UPSTREAMS 2.4); or ""."""
    whole = _object(body)
    for place in (_object(whole.get("data")), whole):
        for name in ("taskId", "task_id"):
            match place.get(name):
                case str(found) if found.strip():
                    return found.strip()
                case int(found) if not isinstance(found, bool) and found > 0:
                    return str(found)
    return ""


def _succeeded(operation: str, code: int | None, status: int, body: dict[str, Any]) -> bool:
    if operation == CREATE:
        # An id is a task that is paid for: without a `code` it is still one, for a 2xx.
        return httpx.codes.is_success(status if code is None else code) and bool(task_id(body))
    if code is None or not httpx.codes.is_success(code):
        return False
    return operation != LOOK or isinstance(body.get("data"), dict)


def _judge(operation: str, code: int | None, text: str, status: int, *, safe: bool) -> Meaning:
    """What an answer in KIE's own format says; without a `code`, the HTTP status stands for it."""
    number = status if code is None else code
    told = _told(text)
    if told is not None and _counts(told, operation, number):
        return told
    if operation == LOOK and number == httpx.codes.UNPROCESSABLE_ENTITY and _INVISIBLE.search(text):
        return Meaning(NotFound)  # "recordInfo is null": not visible yet, or never was
    known = {**CODES, **CREATE_CODES} if operation == CREATE else CODES
    meaning = known.get(number)
    # A status of 408 may be a proxy's: only KIE's own code says that nothing runs on.
    if meaning and (code is not None or meaning.kind is not ServiceUnavailable):
        return meaning
    kind = http.kind_of(number, safe=safe)
    if kind is not None:
        return Meaning(kind)
    if operation == CREATE and code is not None:
        # UPSTREAMS 2.1: no task id in the reply, no task and no charge. So it is not in doubt.
        return Meaning(InternalError, remark="the answer names no task")
    return Meaning(http.in_doubt(InternalError, safe=safe), remark="the answer is not complete")


def _counts(told: Meaning, operation: str, number: int) -> bool:
    """Whether a text may overrule this code. An empty purse hides behind any of them."""
    if told.kind is BillingExhausted:
        return True
    if operation == CREATE:
        return number in VAGUE
    return told.kind is MissingFields and CODES.get(number) == Meaning(InvalidData)


def _failure(number: int | None, text: str) -> Meaning:
    """What a failed generation says: the text before the code, as UPSTREAMS 2.3 has it."""
    told = _told(text)
    if told is not None:
        return told
    if number in OURS:
        return CODES[number]
    if not TRANSIENT.search(text):
        if number in REFUSALS:
            return Meaning(UserError, "photo_rejected")
        if text and number not in _ERRORS:
            return Meaning(Unclassified)
    # Any other code is trouble between KIE and whoever makes the video. A rate limit among them
    # is no RateLimited: that would cost no attempt, and each new generation costs money.
    return Meaning(ServiceUnavailable)


def _told(text: str) -> Meaning | None:
    return next((meaning for meaning, signs in TEXTS if signs.search(text)), None)


def _foreign(response: httpx.Response, *, safe: bool) -> tuple[Meaning, str]:
    """An answer not in KIE's format: from Cloudflare, a proxy, cut short, or another server."""
    status = response.status_code
    detail = f"not an answer of KIE, HTTP status {status}"
    found = _CLOUDFLARE.search(response.content[:_LENGTH])
    if found:
        detail = f"{detail}, Cloudflare's error code {found[1].decode()}"
    # A 2xx that makes no sense may well be the end of a create that was carried out.
    kind = http.kind_of(status, safe=safe) or http.in_doubt(InternalError, safe=safe)
    if kind is Forbidden:  # UPSTREAMS 2.1: 1010 looks like a refused key, and is not
        return Meaning(NotConfigured, remark="our User-Agent or address is refused"), detail
    if kind in {NotFound, NotConfigured}:  # the first would pass for a task that is gone
        return Meaning(NotConfigured, remark="check KIE_BASE_URL"), detail
    return Meaning(kind), detail


def _error(
    meaning: Meaning,
    text: str,
    *,
    operation: str,
    code: str,
    retry_after: float | None = None,
    hide: tuple[str, ...] = (),
) -> JobError:
    detail = http.plain_text(text, hide=hide) or "gave no reason"
    if meaning.remark:
        detail = f"{detail}: {meaning.remark}"
    if meaning.kind is RateLimited and retry_after is None:
        retry_after = RATE_PAUSE
    facts: dict[str, Any] = {
        "service": SERVICE,
        "operation": operation,
        "code": http.plain_text(code, hide=hide, limit=40),
        "retry_after": retry_after,
    }
    if meaning.kind is UserError:
        return UserError(detail, reason=meaning.reason, **facts)
    return meaning.kind(detail, **facts)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> int | None:
    """A code as a number: KIE sends 422 and "422"; anything else is no code."""
    match value:
        case bool():
            return None
        case int():
            return value if value in _NUMBERS else None
        case str() if _NUMBER.fullmatch(value):
            return int(value)
        case _:
            return None


def _word(value: object) -> str:
    """A text on one line, however long it came."""
    return " ".join(value[:_LENGTH].split()) if isinstance(value, str) else ""


def _operation(response: httpx.Response) -> str:
    try:
        name = response.request.url.path.rstrip("/").rpartition("/")[2]
    except RuntimeError:  # a response that was built without its request
        return ""
    return name if _OPERATION.fullmatch(name) else ""


def _secrets(response: httpx.Response) -> tuple[str, ...]:
    """The key in the request's header, should the answer echo it."""
    try:
        header = response.request.headers.get("authorization", "")
    except RuntimeError:
        return ()
    return tuple(header.split()[-1:])
