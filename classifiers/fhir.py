"""What a FHIR server's answer means: a resource taken, or an OperationOutcome that says why not.

FHIR R4: status codes and conditional creates in "RESTful API" (http.html), the words of an issue in
value set `issue-type`. The words decide where a status allows more than one reading; a server's own
sentences never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from classifiers import http
from classifiers.errors import (
    BusinessRule,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    MissingFields,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)

SERVICE = "integration"

# Value set `issue-type` of R4, each code with what it says of the call. A general code (`invalid`)
# stands beside its special ones (`required`), since servers use either.
ISSUES: Mapping[str, type[JobError]] = {
    "invalid": InvalidData,
    "structure": InvalidData,
    "required": MissingFields,
    "value": InvalidData,
    "invariant": InvalidData,
    "security": Unauthorized,
    "login": Unauthorized,
    "unknown": Unauthorized,  # "user or system was not able to be authenticated"
    "expired": Unauthorized,
    "forbidden": Forbidden,
    "suppressed": Forbidden,
    "processing": InvalidData,  # "the content was not understood"
    "not-supported": InvalidData,  # this resource or operation; others pass
    "duplicate": BusinessRule,
    "multiple-matches": BusinessRule,  # a conditional create that fits several resources
    "not-found": NotFound,
    "deleted": NotFound,
    "too-long": InvalidData,
    "code-invalid": InvalidData,
    "extension": InvalidData,
    "too-costly": InvalidData,
    "business-rule": BusinessRule,
    "conflict": BusinessRule,
    "transient": ServiceUnavailable,
    "lock-error": ServiceUnavailable,
    "no-store": ServiceUnavailable,
    "exception": ServiceUnavailable,
    "timeout": ServiceUnavailable,
    "incomplete": ServiceUnavailable,
    "throttled": RateLimited,
}
# Value set `response-code`: what the receiver of a message answers, with a status of success.
REPLIES: Mapping[str, type[JobError]] = {
    "transient-error": ServiceUnavailable,
    "fatal-error": InvalidData,
}
KINDS: Mapping[str, type[JobError]] = {**ISSUES, **REPLIES}
# Said before anything was done, so that even an unsafe call may be made again.
REFUSED = frozenset({"throttled", "lock-error", "transient-error"})
FAILURES = ("fatal", "error")  # severities; the others are remarks on what was done
# Statuses that leave the meaning to the words. 401, 403, 429 and the like speak for themselves.
# 405 is also said of one resource: the server does not let its clients choose ids.
OPEN = frozenset({400, 405, 409, 412, 422})
MEDIA_TYPE = "application/fhir+json"

_RESOURCE = re.compile(r"[A-Z][A-Za-z]{1,60}")


def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Judge an answer; None = success."""
    failures = list(_failures(http.body_of(response)))
    if response.is_success and not failures:
        return _no_page(response, safe=safe)
    status = response.status_code
    code = next((code for code, _ in failures if code in KINDS), "")
    return _kind(status, code, safe=safe)(
        _words(response, failures) or f"answered with HTTP status {status}",
        service=SERVICE,
        operation=_operation(response),
        code=code or str(status),
        retry_after=http.retry_after(response),
    )


def _kind(status: int, code: str, *, safe: bool) -> type[JobError]:
    """Return the class of a failure with this status, and this code of an issue if it has one."""
    said = KINDS.get(code, InvalidData)
    if code in REFUSED:
        return said
    by_status = http.kind_of(status, safe=safe)
    if by_status is None or (code and status in OPEN):
        # Also of a success that is none: some servers answer with 200 whatever they say.
        return http.in_doubt(said, safe=safe) if said is ServiceUnavailable else said
    return by_status


def _no_page(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Refuse a page for people, which only something in front of the server answers with."""
    if not response.headers.get("content-type", "").startswith("text/html"):
        return None
    return http.in_doubt(InternalError, safe=safe)(
        "answered with a web page: is the address that of a FHIR server, and no login before it?",
        service=SERVICE,
        operation=_operation(response),
        code="page",
    )


def _failures(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (code, text) of what went wrong: of an OperationOutcome, or a message in reply."""
    if body.get("resourceType") == "Bundle" and body.get("type") == "message":
        yield from _replied(body)
    else:
        yield from _issues(body)


def _replied(bundle: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield why a message was not processed; its header comes first, the outcome with it."""
    entries = bundle.get("entry")
    resources = [
        entry["resource"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("resource"), dict)
    ]
    reply = resources[0].get("response") if resources else None
    code = str(reply.get("code") or "") if isinstance(reply, dict) else ""
    if code not in REPLIES:
        return
    yield code, ""
    for resource in resources[1:]:
        yield from _issues(resource)


def _issues(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (code, text) of each issue of an OperationOutcome that is no mere remark."""
    issues = body.get("issue")
    if body.get("resourceType") != "OperationOutcome" or not isinstance(issues, list):
        return
    for issue in issues:
        if isinstance(issue, dict) and issue.get("severity") in FAILURES:
            yield str(issue.get("code") or ""), _text(issue)


def _text(issue: Mapping[str, Any]) -> str:
    details = issue.get("details")
    coded = details.get("text") if isinstance(details, dict) else None
    where = issue.get("expression") or issue.get("location")
    place = str(where[0]) if isinstance(where, list) and where else ""
    said = str(issue.get("diagnostics") or coded or "")
    return f"{place}: {said}" if place and said else said or place


def _words(response: httpx.Response, failures: list[tuple[str, str]]) -> str:
    said = "; ".join(dict.fromkeys(text for _, text in failures if text))
    request = _request(response)
    token = request.headers.get("authorization", "").partition(" ")[2] if request else ""
    return http.plain_text(said, hide=(token,))


def _operation(response: httpx.Response) -> str:
    """Return what was asked for: `create Patient`, `update Patient`, never an id or an address."""
    request = _request(response)
    if request is None:
        return ""
    verb = {"POST": "create", "PUT": "update", "GET": "search"}.get(request.method, "call")
    parts = request.url.path.rstrip("/").split("/")
    kind = parts[-2] if request.method == "PUT" else parts[-1]  # an id may look like a kind
    return f"{verb} {kind}" if _RESOURCE.fullmatch(kind) else verb


def _request(response: httpx.Response) -> httpx.Request | None:
    try:
        return response.request
    except RuntimeError:  # a response that was built without its request
        return None
