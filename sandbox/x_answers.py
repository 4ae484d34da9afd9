"""What the simulated X API says beside bookmarks: the rows of UPSTREAMS 4.1, each with a name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox.faults import Fault
from sandbox.journal import Entry
from sandbox.replies import Reply

PROBLEMS = "https://api.x.com/2/problems/"
JSON = "application/json; charset=utf-8"
PROBLEM_JSON = "application/problem+json"
# Rows of the rate limit; a usage cap is a 429, too, but no waiting ends it.
LIMIT_ROWS = ("too_many_requests", "legacy_limit")

# Slug of the type of a problem inside a 200 → title and detail. Those of the first two were seen in
# answers; the other titles and all other details are ours.
_PARTIAL: dict[str, tuple[str, str]] = {
    "resource-not-found": ("Not Found Error", "Could not find tweet with ids: [{}]."),
    "not-authorized-for-resource": (
        "Authorization Error",
        "Sorry, you are not authorized to see the Tweet with ids: [{}].",
    ),
    "not-authorized-for-field": (
        "Field Authorization Error",
        "Sorry, you are not authorized to access the field of [{}].",
    ),
    "resource-unavailable": ("Resource Unavailable", "The Tweet [{}] is unavailable."),
    "disallowed-resource": ("Disallowed Resource", "The Tweet [{}] is disallowed."),
    "field-hydration-failure": ("Field Hydration Error", "A field of [{}] could not be read."),
    "internal-error": ("Internal Error", "Something went wrong with [{}]."),
}


def partial(slug: str, resource_id: str) -> dict[str, Any]:
    """Return a problem as it stands in `errors` of a 200, about one post."""
    title, detail = _PARTIAL[slug]
    return {
        "value": resource_id,
        "detail": detail.format(resource_id),
        "title": title,
        "resource_type": "tweet",
        "parameter": "id",
        "resource_id": resource_id,
        "type": PROBLEMS + slug,
    }


def _problem(status: int, title: str, detail: str, slug: str = "", **more: str) -> tuple[int, Any]:
    kind = PROBLEMS + slug if slug else "about:blank"
    return status, {"title": title, "detail": detail, "type": kind, "status": status, **more}


def _invalid(parameter: str, value: str, message: str) -> tuple[int, Any]:
    return 400, {
        "errors": [{"parameters": {parameter: [value]}, "message": message}],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": f"{PROBLEMS}invalid-request",
    }


def _oauth(status: int, error: str, description: str) -> tuple[int, Any]:
    return status, {"error": error, "error_description": description}


def _legacy(status: int, code: int, message: str) -> tuple[int, Any]:
    return status, {"errors": [{"code": code, "message": message}]}


# Name → HTTP status and body. What UPSTREAMS 4.1 quotes no words of has words of ours.
ROWS: dict[str, tuple[int, Any]] = {
    # The request.
    "invalid_request": _invalid("id", "x", "The `id` query parameter value [x] is not valid"),
    "unknown_fields": _invalid(
        "tweet.fields", "text", "The query parameter [tweet.fields] is not one of [post.fields]"
    ),
    "pagination_token": _invalid(
        "pagination_token", "x", "The `pagination_token` query parameter value [x] is not valid"
    ),
    "not_found": _problem(404, "Not Found Error", "Could not find user.", "resource-not-found"),
    # Who asks. Those who met it were told of a missing scope with the bare `forbidden`.
    "unauthorized": _problem(401, "Unauthorized", "Unauthorized"),
    "forbidden": _problem(403, "Forbidden", "Forbidden"),
    "missing_scope": _problem(403, "Forbidden", "The token lacks the scope [bookmark.read]."),
    "unsupported_authentication": _problem(
        403,
        "Unsupported Authentication",
        "Authenticating with OAuth 2.0 Application-Only is forbidden for this endpoint.  "
        "Supported authentication types are [OAuth 1.0a User Context, OAuth 2.0 User Context].",
        "unsupported-authentication",
    ),
    "client_not_enrolled": _problem(
        403,
        "Client Forbidden",
        "When authenticating requests to the X API v2 endpoints, you must use keys and tokens "
        "from a developer App that is attached to a Project.",
        "client-forbidden",
        reason="client-not-enrolled",
        required_enrollment="Appropriate Level of API Access",
    ),
    "not_authorized": _problem(
        403, "Authorization Error", "Sorry, you are not authorized.", "not-authorized-for-resource"
    ),
    # Who pays.
    "credits_depleted": _problem(
        402,
        "CreditsDepleted",
        "Your enrolled account [1] does not have any credits to fulfill this request.",
        "credits",
    ),
    "payment_required": _problem(
        402, "Payment Required", "Your account has no credits.", "credits-depleted"
    ),
    "spend_cap_reached": _problem(
        403,
        "SpendCapReached",
        "Your enrolled account [1] has reached its billing cycle spend cap.",
        "credits",
        reset_date="2027-01-01",
    ),
    "usage_capped": _problem(
        429,
        "UsageCapExceeded",
        "Usage cap exceeded: Monthly product cap",
        "usage-capped",
        period="Monthly",
        scope="Product",
    ),
    # How often.
    "too_many_requests": _problem(429, "Too Many Requests", "Too Many Requests"),
    "legacy_limit": _legacy(429, 88, "Rate limit exceeded"),
    # The server.
    "internal_error": _problem(500, "Internal Error", "Internal Error", "internal-error"),
    "unavailable": _problem(503, "Service Unavailable", "Service Unavailable"),
    "over_capacity": _legacy(503, 130, "Over capacity"),
    "plain_error": (500, {"code": 131, "message": "Internal error"}),
    # Answers with 200 that are none.
    **{
        f"only_{slug.replace('-', '_')}": (200, {"errors": [partial(slug, "1")]})
        for slug in _PARTIAL
    },
    "not_an_object": (200, []),
    "no_access_token": (200, {"token_type": "bearer", "expires_in": 7200}),
    # /2/oauth2/token. Words as X is quoted by those who met them.
    "spent_token": _oauth(400, "invalid_request", "Value passed for the token was invalid."),
    "invalid_grant": _oauth(400, "invalid_grant", "Value passed for the token was invalid."),
    "no_parameter": _oauth(400, "invalid_request", "Missing required parameter."),
    "unsupported_grant": _oauth(400, "unsupported_grant_type", "The grant type is not supported."),
    "invalid_client": _oauth(401, "invalid_client", "Value passed for the client was invalid."),
    "unauthorized_client": _oauth(401, "unauthorized_client", "Missing valid authorization header"),
}


class Refused(Exception):  # noqa: N818 - the word is already a failure
    """An answer that is a row of `ROWS`; *body* may stand in for the row's own."""

    def __init__(self, row: str, body: Any = None) -> None:
        super().__init__(row)
        self.row = row
        self.status, usual = ROWS[row]
        self.body = usual if body is None else body


def invalid(parameter: str, value: str, message: str) -> Refused:
    """Return the refusal of a request because of one of its parameters."""
    return Refused("invalid_request", _invalid(parameter, value, message)[1])


def said(body: Any, entries: Sequence[Entry], status: int = 200) -> Reply:
    """Return *body* as JSON in ASCII: a text may hold half of a surrogate pair."""
    text = json.dumps(body, separators=(",", ":"))
    return Reply(status, text.encode(), {"Content-Type": JSON}, entries=tuple(entries))


def refused(refusal: Refused, entry: Entry) -> Reply:
    """Return the answer of a call that was refused, and note its row."""
    entry.error = refusal.row
    return said(refusal.body, [entry], refusal.status)


def worded(fault: Fault) -> tuple[Any, int]:
    """Return the body and the HTTP status of the row that *fault* names by its code."""
    unknown = _problem(fault.status or 400, fault.code, fault.code)
    status, body = ROWS.get(fault.code, unknown)
    if fault.description and isinstance(body, Mapping):
        body = {**body, "detail": fault.description}
    return body, fault.status or status


def media_type(reply: Reply) -> str:
    """Return the `Content-Type` of an error in JSON: a problem has one of its own (RFC 9457)."""
    body = json.loads(reply.body)
    return PROBLEM_JSON if isinstance(body, Mapping) and "type" in body else JSON
