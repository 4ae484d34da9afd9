"""What an X API answer means: a page of bookmarks, or a renewed pair of tokens.

X has several shapes for an error (UPSTREAMS 4.1), on an old host and a new one; each becomes a
`Problem`. Its type decides, then the status; texts only where neither says enough.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs

import httpx

from classifiers import http
from classifiers.errors import (
    BillingExhausted,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
)

SERVICE = "x"
BOOKMARKS, TOKEN = "bookmarks", "token"

# The `code` of an error where the client can go on: with a renewed token, the other names of the
# fields, or from the first page.
EXPIRED = "401"
UNKNOWN_FIELDS = "unknown_fields"
LOST_PAGE = "pagination_token"
INVALID_REQUEST = "invalid-request"  # any other fault of a request for a page

LINE_LIMIT = 160  # characters of a warning: a page may bring many of them
DAY = 86_400.0  # s; no window of X's is longer, so what is farther away is no time of a reset
STALE = 60.0  # s; a reset longer ago is no reset either, but a clock that is wrong


@dataclass(frozen=True, slots=True)
class Window:
    """What is left of a rate limit: *remaining* requests, until new ones come in *reset_in* s."""

    remaining: int
    reset_in: float


@dataclass(frozen=True, slots=True)
class Meaning:
    """The class of an error; our own `code` where X's says too little; a *remark* after its words.

    A *remark* is for whoever has to set something right.
    """

    kind: type[JobError]
    code: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One complaint, whichever shape it came in; what it does not say is empty.

    *name* is the end of its type, or the word that stands for one; *number* a legacy code;
    *parameters* are those of ours that it refuses.
    """

    name: str
    title: str
    text: str
    number: str
    parameters: tuple[str, ...]


CLIENT = Meaning(NotConfigured, remark="check X_CLIENT_ID and X_CLIENT_SECRET")
PLAN = Meaning(NotConfigured, remark="the app needs a project and a plan in X's developer console")
ADDRESS = Meaning(NotConfigured, remark="check X_BASE_URL")
GRANT = Meaning(
    Unauthorized,
    remark="the access has to come from this very user, with the scopes bookmark.read,"
    " tweet.read, users.read and offline.access",
)

# UPSTREAMS 4.1: the end of a problem's type.
NAMES: dict[str, Meaning] = {
    "unsupported-authentication": GRANT,
    "client-forbidden": PLAN,
    "client-not-enrolled": PLAN,
    "resource-not-found": Meaning(NotFound),
    # "Not available to you": suspended, withheld or gone. No right that we lack would bring it.
    "resource-unavailable": Meaning(NotFound),
    "not-authorized-for-resource": Meaning(Forbidden),
    "not-authorized-for-field": Meaning(Forbidden),
    "disallowed-resource": Meaning(Forbidden),
    "internal-error": Meaning(ServiceUnavailable),
    "field-hydration-failure": Meaning(ServiceUnavailable),
}
# Money, whatever the status: X sends it as 402, 403 and 429.
UNPAID_NAMES = frozenset({"credits", "credits-depleted", "usage-capped"})
UNPAID_TITLES = frozenset({"creditsdepleted", "spendcapreached", "usagecapexceeded"})
RATE_LIMIT_EXCEEDED = "88"  # legacy

# Of a renewal: RFC 6749, 5.2, and what X makes of it. A grant that is called lost needs its user
# to authorise again, so only the two words that X has for a spent token say so.
GRANT_WORDS: dict[str, Meaning] = {
    "invalid_request": Meaning(Unauthorized),
    "invalid_grant": Meaning(Unauthorized),
    "invalid_client": CLIENT,
    "unauthorized_client": CLIENT,  # X's word for a client secret that is wrong
    "unsupported-authentication": CLIENT,  # here it is the app that has to authenticate itself
}
# Whatever else is said, these speak of the app or the address, which all users share.
RENEWAL_STATUSES = {401: CLIENT, 404: ADDRESS}

_FIELDS = frozenset({"tweet.fields", "post.fields"})
_NAME = re.compile(r"/problems/([a-z0-9-]{1,60})/?$")
_WORD = re.compile(r"[a-z][a-z_-]{1,60}")  # else it is a sentence
# Only the first: "the query parameter [a] is not one of [b,c]" names those that are welcome, too.
_PARAMETER = re.compile(r"query parameter \[([\w.]+)\]|`([\w.]+)` query parameter")
# No body of a missing scope is documented; RFC 6750 has the word with an underscore. The other
# sentence is X's for a token that is somebody else's (a 400).
_OTHER_GRANT = re.compile(r"\bscopes?\b|insufficient_scope|\bauthenticating user\b", re.IGNORECASE)
_MISSING = re.compile(r"missing required parameter", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,9}")
_NUMBERS = range(10**9)
_UNIX = re.compile(r"[0-9]{1,11}")
_OPERATION = re.compile(r"[a-z][a-z_]{1,30}")
_LENGTH = 2000  # characters we look at: keeps the regular expressions fast on a hostile body


def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Judge an answer; None = success.

    After a None, a renewal has an `access_token`; a page has a list `data`, or is empty, and may
    have `partial_errors`.
    """
    operation, body = _operation(response), http.body_of(response)
    if response.is_success and _succeeded(operation, body):
        return None
    problems = _problems(body)
    meaning = (
        _judge(operation, response, problems, safe=safe)
        if problems
        else _foreign(operation, response.status_code, safe=safe)
    )
    status = response.status_code
    code = meaning.code or next((p.name for p in problems if p.name), "") or str(status)
    hide = _secrets(response)
    detail = "; ".join(dict.fromkeys(p.text for p in problems if p.text))
    silent = "gave no reason" if problems else "not an answer of X"
    detail = http.plain_text(detail, hide=hide) or f"{silent}, HTTP status {status}"
    limited = meaning.kind is RateLimited
    return meaning.kind(
        f"{detail.rstrip('.')}: {meaning.remark}" if meaning.remark else detail,
        service=SERVICE,
        operation=operation,
        code=http.plain_text(code, hide=hide),
        retry_after=_pause(response) if limited else http.retry_after(response),
    )


def partial_errors(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each of the `errors` that came beside the `data` of a 200."""
    return tuple(
        http.plain_text(": ".join(filter(None, (p.name, p.text))), limit=LINE_LIMIT)
        for p in _entries(body)
    )


def window(response: httpx.Response) -> Window | None:
    """Return what an answer tells of its rate limit, be it a success or not."""
    remaining = response.headers.get("x-rate-limit-remaining", "").strip()
    reset_in = _reset_in(response)
    if reset_in is None or not _NUMBER.fullmatch(remaining):
        return None
    return Window(int(remaining), reset_in)


def _succeeded(operation: str, body: dict[str, Any]) -> bool:
    if operation == TOKEN:
        return bool(_text(body.get("access_token")))
    data, meta = body.get("data"), body.get("meta")
    if data is not None:
        return isinstance(data, list)
    if not isinstance(meta, dict):
        return False
    # Bookmarks that may all not be shown make an empty page with errors: what says that this was
    # a page, and no refusal, is that another one follows.
    return bool(_text(meta.get("next_token"))) or not _problems(body)


def _judge(
    operation: str, response: httpx.Response, problems: list[Problem], *, safe: bool
) -> Meaning:
    status = response.status_code
    unpaid = next(filter(_unpaid, problems), None)
    if unpaid or status == httpx.codes.PAYMENT_REQUIRED:
        return Meaning(BillingExhausted, unpaid.name if unpaid else "")
    if status == httpx.codes.TOO_MANY_REQUESTS or any(
        problem.number == RATE_LIMIT_EXCEEDED for problem in problems
    ):
        return Meaning(RateLimited)
    failed = httpx.codes.is_server_error(status)
    told = None if failed else _told(operation, response, problems)
    if told is not None:
        doubtful = told.kind is ServiceUnavailable
        return replace(told, kind=http.in_doubt(told.kind, safe=safe)) if doubtful else told
    return Meaning(http.kind_of(status, safe=safe) or http.in_doubt(Unclassified, safe=safe))


def _told(operation: str, response: httpx.Response, problems: list[Problem]) -> Meaning | None:
    """What X's words say; None = nothing, ask the status."""
    status = response.status_code
    named = _named(problems, NAMES)
    if operation == TOKEN:
        return _renewal(status, problems) or named
    if status == httpx.codes.UNAUTHORIZED:
        return Meaning(Unauthorized, EXPIRED)
    if status == httpx.codes.FORBIDDEN:
        challenge = response.headers.get("www-authenticate", "")
        return GRANT if _other_grant(problems, challenge) else named
    if status == httpx.codes.BAD_REQUEST:
        return GRANT if _other_grant(problems) else named or _refusal(problems)
    return named


def _named(problems: list[Problem], names: Mapping[str, Meaning]) -> Meaning | None:
    """The meaning of the first name that is known, with that name for a code."""
    return next((replace(names[p.name], code=p.name) for p in problems if p.name in names), None)


def _renewal(status: int, problems: list[Problem]) -> Meaning | None:
    told = _named(problems, GRANT_WORDS)
    if told and any(_MISSING.search(problem.text[:_LENGTH]) for problem in problems):
        return replace(CLIENT, code=told.code)  # no [client_id]: the token was not looked at
    return told or RENEWAL_STATUSES.get(status)


def _other_grant(problems: list[Problem], challenge: str = "") -> bool:
    """Whether it takes another grant: for more scopes, or of the right user."""
    texts = (challenge, *(problem.text for problem in problems))
    return any(_OTHER_GRANT.search(text[:_LENGTH]) for text in texts)


def _refusal(problems: list[Problem]) -> Meaning:
    """What a 400 has against our request for a page."""
    refused = {parameter for problem in problems for parameter in problem.parameters}
    if refused & _FIELDS:
        return Meaning(InvalidData, UNKNOWN_FIELDS)
    return Meaning(InvalidData, LOST_PAGE if LOST_PAGE in refused else INVALID_REQUEST)


def _foreign(operation: str, status: int, *, safe: bool) -> Meaning:
    """What an answer without a word of X's means: from a proxy, cut short, or another server."""
    if operation == TOKEN and status in RENEWAL_STATUSES:
        return ADDRESS  # a stranger knows nothing of our client either
    # A 2xx that makes no sense may well be the end of a renewal: the old refresh token is spent.
    kind = http.kind_of(status, safe=safe) or http.in_doubt(InternalError, safe=safe)
    return ADDRESS if kind in {Forbidden, NotFound, NotConfigured} else Meaning(kind)


def _unpaid(problem: Problem) -> bool:
    title = problem.title.casefold().replace(" ", "")
    return problem.name in UNPAID_NAMES or title in UNPAID_TITLES


def _problems(body: Mapping[str, Any]) -> list[Problem]:
    """The complaints of an answer: the body itself, and what it lists."""
    return [problem for problem in (_problem(body), *_entries(body)) if problem]


def _entries(body: Mapping[str, Any]) -> list[Problem]:
    errors = body.get("errors")
    entries = errors if isinstance(errors, list) else []
    found = (_problem(entry) for entry in entries if isinstance(entry, dict))
    return [problem for problem in found if problem]


def _problem(entry: Mapping[str, Any]) -> Problem | None:
    """Read any of the shapes; None = there is no word of an error in it."""
    word, title = _text(entry.get("error")), _text(entry.get("title"))
    words = ("detail", "message", "error_description")
    text = next((said for key in words if (said := _text(entry.get(key)))), "")
    found = _NAME.search(_text(entry.get("type"))[:_LENGTH])
    reason = _text(entry.get("reason"))
    name = found[1] if found else next((w for w in (reason, word) if _WORD.fullmatch(w)), "")
    number, parameters = _digits(entry.get("code")), _parameters(entry, text)
    if not (name or title or text or word or number or parameters):
        return None
    return Problem(name, title, text or title or word, number, parameters)


def _parameters(entry: Mapping[str, Any], text: str) -> tuple[str, ...]:
    parameters, parameter = entry.get("parameters"), _text(entry.get("parameter"))
    if isinstance(parameters, dict) and parameters:
        return tuple(parameters)
    if parameter:
        return (parameter,)
    found = _PARAMETER.search(text[:_LENGTH])
    return (found[1] or found[2],) if found else ()


def _pause(response: httpx.Response) -> float | None:
    """Seconds until the limit ends; X documents no Retry-After, but a proxy has it."""
    asked = http.retry_after(response)
    return _reset_in(response) if asked is None else asked


def _reset_in(response: httpx.Response) -> float | None:
    """Seconds until X counts anew, at least 1; by the Date of the same answer, if it has one."""
    reset = response.headers.get("x-rate-limit-reset", "").strip()
    if not _UNIX.fullmatch(reset):
        return None
    date = http.parse_date(response.headers.get("date", ""))
    left = int(reset) - (date.timestamp() if date else time.time())
    return max(1.0, left) if -STALE <= left <= DAY else None


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _digits(value: object) -> str:
    """A legacy code, in whatever of JSON's types it came."""
    match value:
        case str(text) if _NUMBER.fullmatch(text.strip()):
            return text.strip()
        case int() if not isinstance(value, bool) and value in _NUMBERS:
            return str(value)
        case _:
            return ""


def _operation(response: httpx.Response) -> str:
    """The last word of the request's path, or nothing: never an id."""
    try:
        path = response.request.url.path
    except RuntimeError:  # a response that was built without its request
        return ""
    name = path.rstrip("/").rpartition("/")[2]
    return name if _OPERATION.fullmatch(name) else ""


def _secrets(response: httpx.Response) -> tuple[str, ...]:
    """The tokens and the client's secret that were sent, which an answer might echo."""
    try:
        request = response.request
    except RuntimeError:
        return ()
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    form = parse_qs(_content(request))
    fields = (value for name in ("refresh_token", "client_secret") for value in form.get(name, ()))
    return (sent, _password(sent) if scheme.casefold() == "basic" else "", *fields)


def _content(request: httpx.Request) -> str:
    try:
        return request.content.decode("latin-1")
    except httpx.RequestNotRead:  # a stream: a form is none
        return ""


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials).decode().partition(":")[2]
    except ValueError:
        return ""
