"""What an X API answer means."""

from __future__ import annotations

import base64
import json
import pickle
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.errors import (
    BillingExhausted,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Retryable,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
)
from classifiers.x import GRANT_WORDS, NAMES, UNPAID_NAMES, Window, classify, partial_errors, window

ACCESS, REFRESH, SECRET = "VVhfYWNjZXNz-a1", "cmVmcmVzaA-r1", "cl13nt-s3cr3t"
PAGE = "https://api.x.example/2/users/2244994945/bookmarks"
RENEWAL = "https://api.x.example/2/oauth2/token"
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
BOTH = pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
HOSTS = pytest.mark.parametrize("host", ["api.x.com", "api.twitter.com"])


def ask(url: str) -> httpx.Request:
    """A request as it leaves us, with all that is secret in it."""
    if url != RENEWAL:
        return httpx.Request("GET", url, headers={"Authorization": f"Bearer {ACCESS}"})
    basic = base64.b64encode(f"client:{SECRET}".encode()).decode()
    form = {"grant_type": "refresh_token", "refresh_token": REFRESH}
    return httpx.Request("POST", url, data=form, headers={"Authorization": f"Basic {basic}"})


def answer(body: object, *, status: int = 200, url: str = PAGE, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=content, headers=named, request=ask(url))


def problem(name: str, host: str = "api.x.com", **more: object) -> dict[str, object]:
    kind = f"https://{host}/2/problems/{name}" if name else "about:blank"
    return {"title": "A Title", "detail": f"Because of {name or 'it'}.", "type": kind, **more}


def invalid(parameter: str, message: str) -> dict[str, object]:
    """A 400 as X writes it: the type outside, the parameters inside."""
    entry = {"parameters": {parameter: ["v"]}, "message": message}
    detail = "One or more parameters to your request was invalid."
    return problem("invalid-request", errors=[entry], detail=detail)


# UPSTREAMS 4.1: status, name of the type, more fields, class, code
ROWS = {
    "401": (401, "", {"title": "Unauthorized"}, Unauthorized, "401"),
    "402": (402, "credits", {"title": "CreditsDepleted"}, BillingExhausted, "credits"),
    "402 variant": (402, "credits-depleted", {}, BillingExhausted, "credits-depleted"),
    "402 bare": (402, "", {"title": "Payment Required"}, BillingExhausted, "402"),
    "spend cap": (403, "credits", {"title": "SpendCapReached"}, BillingExhausted, "credits"),
    "spend cap by title": (403, "", {"title": "SpendCapReached"}, BillingExhausted, "403"),
    "usage cap": (429, "usage-capped", {"period": "Monthly"}, BillingExhausted, "usage-capped"),
    "usage cap by title": (429, "", {"title": "UsageCapExceeded"}, BillingExhausted, "429"),
    "429": (429, "", {"title": "Too Many Requests"}, RateLimited, "429"),
    "app-only": (403, "unsupported-authentication", {}, Unauthorized, "unsupported-authentication"),
    "scope": (403, "", {"detail": "Missing OAuth2 scope: bookmark.read"}, Unauthorized, "403"),
    "not enrolled": (
        403,
        "client-forbidden",
        {"reason": "client-not-enrolled"},
        NotConfigured,
        "client-forbidden",
    ),
    "not enrolled, untyped": (
        403,
        "",
        {"reason": "client-not-enrolled"},
        NotConfigured,
        "client-not-enrolled",
    ),
    "403": (403, "", {"title": "Forbidden"}, Forbidden, "403"),
    "not ours": (
        403,
        "not-authorized-for-resource",
        {},
        Forbidden,
        "not-authorized-for-resource",
    ),
    "not our field": (
        403,
        "not-authorized-for-field",
        {},
        Forbidden,
        "not-authorized-for-field",
    ),
    "disallowed": (400, "disallowed-resource", {}, Forbidden, "disallowed-resource"),
    "404": (404, "resource-not-found", {}, NotFound, "resource-not-found"),
    "404 bare": (404, "", {"title": "Not Found"}, NotFound, "404"),
    "unavailable": (404, "resource-unavailable", {}, NotFound, "resource-unavailable"),
    "400": (400, "invalid-request", {}, InvalidData, "invalid-request"),
    "405": (405, "", {"title": "Method Not Allowed"}, NotConfigured, "405"),
}


def shapes(body: dict[str, object]) -> dict[str, dict[str, object]]:
    """The same complaint alone, in a list, and in a list under a heading of its own."""
    return {
        "problem": body,
        "list": {"errors": [body]},
        "headed list": {"errors": [body], "title": "Error", "detail": "x", "type": "about:blank"},
    }


@BOTH
@HOSTS
@pytest.mark.parametrize("shape", ["problem", "list", "headed list"])
@pytest.mark.parametrize(("status", "name", "more", "kind", "code"), ROWS.values(), ids=ROWS)
def test_a_problem_means_the_same_in_every_shape(status, name, more, kind, code, shape, host, safe):
    body = shapes(problem(name, host, **more))[shape]

    verdict = classify(answer(body, status=status), safe=safe)

    assert type(verdict) is kind
    assert verdict.code == code
    assert (verdict.service, verdict.operation) == ("x", "bookmarks")
    assert verdict.detail


def test_every_name_is_met_by_a_row():
    met = {row[1] for row in ROWS.values()} | {row[2].get("reason") for row in ROWS.values()}
    failures = {"internal-error", "field-hydration-failure"}  # below: they are in doubt

    assert set(NAMES) | UNPAID_NAMES == met - {"", None, "invalid-request"} | failures


@BOTH
@pytest.mark.parametrize("status", [200, 400, 403, 429])
@pytest.mark.parametrize("code", [88, "88"], ids=["number", "text"])
@pytest.mark.parametrize("listed", [True, False], ids=["legacy", "plain error"])
def test_legacy_code_88_is_a_rate_limit(code, status, listed, safe):
    body: dict[str, object] = {"code": code, "message": "Rate limit exceeded"}

    verdict = classify(answer({"errors": [body]} if listed else body, status=status), safe=safe)

    assert type(verdict) is RateLimited
    assert verdict.detail == "Rate limit exceeded"


@BOTH
def test_a_plain_error_is_judged_by_its_status(safe):
    verdict = classify(answer({"code": 5, "message": "No such user"}, status=404), safe=safe)

    assert type(verdict) is NotFound
    assert verdict.detail == "No such user"


FAILURES = {
    "503": (503, problem("")),
    "500": (500, problem("internal-error")),
    "502 html": (502, b"<html>Bad Gateway</html>"),
    "504 nothing": (504, b""),
    "not found in a 500": (500, problem("resource-not-found")),
    "a grant in a 500": (500, {"error": "invalid_grant"}),
    "408": (408, problem("")),
    "hydration": (200, {"errors": [problem("field-hydration-failure")]}),
    "internal": (200, {"errors": [problem("internal-error")]}),
}


@pytest.mark.parametrize("url", [PAGE, RENEWAL], ids=["page", "renewal"])
@pytest.mark.parametrize(("status", "body"), FAILURES.values(), ids=FAILURES)
def test_a_failure_of_theirs_is_in_doubt_unless_safe(status, body, url):
    response = answer(body, status=status, url=url)

    assert type(classify(response, safe=True)) is ServiceUnavailable
    assert type(classify(response, safe=False)) is OutcomeUnknown


REFUSED = {
    "old fields": (invalid("tweet.fields", "x"), "unknown_fields"),
    "new fields": (invalid("post.fields", "x"), "unknown_fields"),
    "page": (invalid("pagination_token", "x"), "pagination_token"),
    "other": (invalid("max_results", "x"), "invalid-request"),
    "fields in a sentence": (
        problem(
            "invalid-request",
            detail="The query parameter [post.fields] is not one of [id,pagination_token]",
        ),
        "unknown_fields",
    ),
    "page in a sentence": (
        problem("", detail="The `pagination_token` query parameter value [x] is not valid"),
        "pagination_token",
    ),
    "welcome names in a sentence": (
        problem("", detail="The query parameter [a] is not one of [tweet.fields,pagination_token]"),
        "invalid-request",
    ),
    "parameter": (problem("invalid-request", parameter="post.fields"), "unknown_fields"),
    "both, fields first": (
        problem("", errors=[problem("", parameter="post.fields"), problem("", parameter="a")]),
        "unknown_fields",
    ),
    "both, fields last": (
        {
            "errors": [
                problem("", parameter="pagination_token"),
                {"parameters": {"post.fields": []}},
            ]
        },
        "unknown_fields",
    ),
    "no type": ({"errors": [{"message": "Bad"}]}, "invalid-request"),
}


@BOTH
@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_tells_what_to_ask_otherwise(body, code, safe):
    verdict = classify(answer(body, status=400), safe=safe)

    assert type(verdict) is InvalidData
    assert verdict.code == code


OTHER_GRANT = {
    "somebody else's": (
        400,
        invalid(
            "id",
            "The `id` query parameter value [1] must be the same as the authenticating user [2]",
        ),
        {},
    ),
    "scopes": (403, problem("", detail="Your token lacks the required scopes"), {}),
    "challenge": (
        403,
        problem(""),
        {"www_authenticate": 'Bearer error="insufficient_scope"'},
    ),
}


@BOTH
@pytest.mark.parametrize(("status", "body", "headers"), OTHER_GRANT.values(), ids=OTHER_GRANT)
def test_a_grant_that_does_not_fit_has_to_be_given_anew(status, body, headers, safe):
    verdict = classify(answer(body, status=status, **headers), safe=safe)

    assert type(verdict) is Unauthorized
    assert verdict.code != "401"  # a renewed token would fare no better
    assert "bookmark.read" in verdict.detail


# -- renewals: status, body, class, code
SPENT = "Value passed for the token was invalid."
RENEWALS = {
    "spent": (400, {"error": "invalid_request", "error_description": SPENT}, Unauthorized),
    "no grant": (400, {"error": "invalid_grant", "error_description": SPENT}, Unauthorized),
    "no grant, 401": (401, {"error": "invalid_grant"}, Unauthorized),
    "no grant, 200": (200, {"error": "invalid_grant"}, Unauthorized),
    "no client": (400, {"error": "invalid_client"}, NotConfigured),
    "no client, 401": (401, {"error": "invalid_client"}, NotConfigured),
    "wrong secret": (
        401,
        {
            "error": "unauthorized_client",
            "error_description": "Missing valid authorization header",
        },
        NotConfigured,
    ),
    "no client id": (
        400,
        {
            "error": "invalid_request",
            "error_description": "Missing required parameter [client_id].",
        },
        NotConfigured,
    ),
    "401 problem": (401, problem(""), NotConfigured),
    "404 problem": (404, problem(""), NotConfigured),
    "401 of a stranger": (401, b"<html>", NotConfigured),
    "403 of a stranger": (403, b"<html>", NotConfigured),
    "404 of a stranger": (404, b"", NotConfigured),
    "other word": (400, {"error": "unsupported_grant_type"}, InvalidData),
    "400 problem": (400, problem("invalid-request"), InvalidData),
    "400 of a stranger": (400, b"<html>", InvalidData),
    "403": (403, problem(""), Forbidden),
    "plan": (403, problem("client-forbidden"), NotConfigured),
    "wrong way": (403, problem("unsupported-authentication"), NotConfigured),
    "429": (429, problem(""), RateLimited),
    "money": (402, problem("credits"), BillingExhausted),
}


@BOTH
@pytest.mark.parametrize(("status", "body", "kind"), RENEWALS.values(), ids=RENEWALS)
def test_a_renewal_blames_the_grant_only_where_x_does(status, body, kind, safe):
    verdict = classify(answer(body, status=status, url=RENEWAL), safe=safe)

    assert type(verdict) is kind
    assert verdict.operation == "token"


@pytest.mark.parametrize("word", GRANT_WORDS)
def test_a_refused_renewal_keeps_the_word(word):
    assert classify(answer({"error": word}, status=400, url=RENEWAL), safe=False).code == word


@BOTH
def test_new_tokens_are_a_success(safe):
    body = {"token_type": "bearer", "expires_in": 7200, "access_token": "new"}

    assert classify(answer(body, url=RENEWAL), safe=safe) is None


NO_TOKENS = {
    "nothing": b"",
    "cut short": b'{"token_type":"bearer","access_tok',
    "null": {"access_token": None},
    "empty": {"access_token": " "},
    "number": {"access_token": 7},
    "list": [{"access_token": "new"}],
    "a page": {"meta": {"result_count": 0}},
}


@pytest.mark.parametrize("body", NO_TOKENS.values(), ids=NO_TOKENS)
def test_a_renewal_without_a_token_may_have_spent_the_old_one(body):
    response = answer(body, url=RENEWAL)

    assert type(classify(response, safe=False)) is OutcomeUnknown
    assert type(classify(response, safe=True)) is InternalError


@pytest.mark.parametrize(
    ("body", "status", "url", "setting"),
    [
        ({"error": "invalid_client"}, 401, RENEWAL, "X_CLIENT_ID"),
        (b"<html>", 404, PAGE, "X_BASE_URL"),
        (problem("client-forbidden"), 403, PAGE, "plan"),
    ],
    ids=["client", "address", "plan"],
)
def test_what_somebody_must_set_right_is_named(body, status, url, setting):
    assert setting in classify(answer(body, status=status, url=url), safe=False).detail


# -- 200

ITEM = {"id": "1", "text": "a"}
PAGES = {
    "bookmarks": {"data": [ITEM], "meta": {"result_count": 1, "next_token": "n"}},
    "empty": {"meta": {"result_count": 0}},
    "empty list": {"data": [], "meta": {"result_count": 0}},
    "no meta": {"data": [ITEM]},
    "null data": {"data": None, "meta": {"result_count": 0}},
    "partial": {"data": [ITEM], "errors": [problem("resource-not-found")]},
    "partial money": {"data": [ITEM], "errors": [problem("credits")]},
    "odd items": {"data": [None, 1, "x"]},
    "none of it may be shown, another page follows": {
        "errors": [problem("not-authorized-for-resource")],
        "meta": {"result_count": 0, "next_token": "n"},
    },
}


@BOTH
@pytest.mark.parametrize("body", PAGES.values(), ids=PAGES)
def test_a_page_is_a_success(body, safe):
    assert classify(answer(body), safe=safe) is None


ERRORS_ALONE = {
    "not found": ("resource-not-found", NotFound),
    "unavailable": ("resource-unavailable", NotFound),
    "not authorised": ("not-authorized-for-resource", Forbidden),
    "field": ("not-authorized-for-field", Forbidden),
    "disallowed": ("disallowed-resource", Forbidden),
    "credits": ("credits", BillingExhausted),
}


@HOSTS
@pytest.mark.parametrize("meta", [{}, {"meta": {"result_count": 0}}], ids=["bare", "meta"])
@pytest.mark.parametrize("data", [{}, {"data": None}], ids=["no data", "null"])
@pytest.mark.parametrize(("name", "kind"), ERRORS_ALONE.values(), ids=ERRORS_ALONE)
def test_errors_without_data_are_an_error(name, kind, data, meta, host):
    body = {"errors": [problem("new-thing"), problem(name, host), problem("x")], **data, **meta}

    verdict = classify(answer(body), safe=True)

    assert type(verdict) is kind
    assert verdict.code == name


def test_an_unheard_of_error_alone_is_counted_as_such():
    body = {"errors": [problem("new-thing")]}

    assert type(classify(answer(body), safe=True)) is Unclassified
    assert type(classify(answer(body), safe=False)) is OutcomeUnknown


NONSENSE = {
    "nothing": b"",
    "html": b"<html><title>X / ?</title></html>",
    "cut short": b'{"data":[{"id":"1"',
    "not text": b"\xff\xfe\x00\xd8",
    "list": b"[1]",
    "number": b"7",
    "null": b"null",
    "empty": b"{}",
    "errors of another type": b'{"errors": {"a": 1}}',
    "errors of nothing": b'{"errors": [null, 1, "x", {}, []]}',
    "data of another type": b'{"data": {"id": "1"}}',
    "meta of another type": b'{"meta": [1]}',
    "odd types": b'{"title": [1], "detail": {"a": 1}, "type": 7, "code": {}, "reason": true}',
    "endless": b"[" * 100_000,
    "huge number": b"9" * 10_000,
}
EVERY_NONSENSE = pytest.mark.parametrize("body", NONSENSE.values(), ids=list(NONSENSE))


@EVERY_NONSENSE
def test_a_200_that_makes_no_sense_is_in_doubt_unless_safe(body):
    assert type(classify(answer(body), safe=True)) is InternalError
    assert type(classify(answer(body), safe=False)) is OutcomeUnknown


@BOTH
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, NotConfigured),
        (400, InvalidData),
        (401, Unauthorized),
        (402, BillingExhausted),
        (403, NotConfigured),
        (404, NotConfigured),
        (405, NotConfigured),
        (429, RateLimited),
    ],
)
@EVERY_NONSENSE
def test_a_strangers_refusal_blames_no_right_and_no_user(body, status, kind, safe):
    verdict = classify(answer(body, status=status), safe=safe)

    assert type(verdict) is kind
    assert verdict.code == str(status)
    assert str(status) in verdict.detail


@BOTH
@pytest.mark.parametrize("body", [problem(""), b""], ids=["problem", "nothing"])
def test_a_rejected_token_is_told_from_every_other_refusal(body, safe):
    assert classify(answer(body, status=401), safe=safe).code == "401"


# -- limits

RESETS = {
    "by its own date": (600, 0, 600.0),
    "at once": (0, 0, 1.0),
    "just over": (-30, 0, 1.0),
    "our clock is wrong": (600, 7200, 600.0),
    "long over": (-3600, 0, None),
    "too far": (100_000, 0, None),
}


@pytest.mark.parametrize(("reset", "skew", "wait"), RESETS.values(), ids=RESETS)
def test_a_rate_limit_ends_at_the_reset_by_the_date_of_the_answer(reset, skew, wait):
    date = NOW.timestamp() + skew
    headers = {
        "date": format_datetime(datetime.fromtimestamp(date, UTC), usegmt=True),
        "x_rate_limit_reset": str(int(date) + reset),
    }

    verdict = classify(answer(problem(""), status=429, **headers), safe=True)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == wait


@pytest.mark.parametrize("date", [{}, {"date": "soon"}], ids=["no date", "no date at all"])
def test_without_a_date_our_own_clock_has_to_do(date):
    reset = {"x_rate_limit_reset": str(int(time.time()) + 600)}

    wait = classify(answer(problem(""), status=429, **reset, **date), safe=True).retry_after

    assert 500 < wait <= 600


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "7", "x_rate_limit_reset": str(int(NOW.timestamp()) + 600)}, 7.0),
        ({"retry_after": "x", "x_rate_limit_reset": str(int(NOW.timestamp()) + 600)}, 600.0),
        ({"x_rate_limit_reset": "soon"}, None),
        ({"x_rate_limit_reset": "-5"}, None),
        ({"x_rate_limit_reset": "9" * 500}, None),
        ({"x_rate_limit_reset": "inf"}, None),
    ],
    ids=["none", "proxy", "both", "odd", "word", "negative", "endless", "infinite"],
)
@pytest.mark.parametrize("body", [problem(""), b"<html>"], ids=["problem", "stranger"])
def test_a_rate_limit_waits_as_told(headers, wait, body):
    date = format_datetime(NOW, usegmt=True)

    verdict = classify(answer(body, status=429, date=date, **headers), safe=True)

    assert verdict.retry_after == wait


def test_an_empty_purse_does_not_fill_when_the_window_ends():
    reset = str(int(NOW.timestamp()) + 600)
    date = format_datetime(NOW, usegmt=True)
    response = answer(problem("usage-capped"), status=429, date=date, x_rate_limit_reset=reset)

    assert classify(response, safe=True).retry_after is None


def test_a_failing_server_may_say_when_to_come_back():
    assert classify(answer(b"", status=503, retry_after="20"), safe=True).retry_after == 20


@pytest.mark.parametrize(
    ("remaining", "reset", "found"),
    [
        ("12", 600, Window(12, 600.0)),
        ("0", -1, Window(0, 1.0)),
        ("", 600, None),
        ("-1", 600, None),
        ("many", 600, None),
        ("9" * 400, 600, None),
        ("12", None, None),
        ("12", -3600, None),
    ],
)
@pytest.mark.parametrize("status", [200, 429])
def test_every_answer_tells_what_is_left(remaining, reset, found, status):
    headers = {"date": format_datetime(NOW, usegmt=True), "x_rate_limit_remaining": remaining}
    if reset is not None:
        headers["x_rate_limit_reset"] = str(int(NOW.timestamp()) + reset)

    assert window(answer({"data": []}, status=status, **headers)) == found


# -- warnings


def test_each_partial_error_is_one_short_line():
    body = {
        "data": [ITEM],
        "errors": [
            problem("resource-not-found", detail="Could not find tweet with ids: [9]."),
            problem("", "api.x.com", detail="", title="Odd"),
            {"code": 144, "message": "No status <b>found</b>\nhere \ud800"},
            {},
            None,
            7,
            problem("internal-error", detail="я " * 999),
        ],
    }

    lines = partial_errors(body)

    assert lines[:3] == (
        "resource-not-found: Could not find tweet with ids: [9].",
        "Odd",
        "No status found here",
    )
    assert len(lines) == 4
    assert lines[3].startswith("internal-error: я я")
    assert all(len(line) <= 160 and line.isprintable() for line in lines)


@pytest.mark.parametrize("errors", [None, [], {}, "x", 7], ids=str)
def test_no_partial_error_is_no_line(errors):
    assert partial_errors({"data": [ITEM], "errors": errors}) == ()
    assert partial_errors({"data": [ITEM]}) == ()


# -- whatever comes


@pytest.mark.parametrize(
    "echo",
    [
        lambda secret: {"error": "invalid_request", "error_description": f"{secret} is spent"},
        lambda secret: problem("", detail=f"<b>{secret}</b>", title=secret),
        problem,
        lambda secret: {"error": secret},
        lambda secret: {"errors": [{"code": secret, "message": f"see https://x/{secret}"}]},
        lambda secret: f"<html>{secret}</html>".encode(),
    ],
    ids=["word", "tags", "type", "error", "address", "bare"],
)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 502])
@pytest.mark.parametrize(
    ("url", "secret"),
    [(PAGE, ACCESS), (RENEWAL, REFRESH), (RENEWAL, SECRET)],
    ids=["access", "refresh", "client"],
)
def test_no_token_gets_out(url, secret, status, echo):
    verdict = classify(answer(echo(secret), status=status, url=url), safe=False)

    assert secret not in f"{verdict!s} {verdict!r} {vars(verdict)}"


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        (PAGE, "bookmarks"),
        (f"{PAGE}/", "bookmarks"),
        (f"{PAGE}?max_results=90&pagination_token=n", "bookmarks"),
        ("http://127.0.0.1:8027/mounted/2/oauth2/token", "token"),
        ("https://api.x.example/2/users/2244994945", ""),
        ("https://api.x.example/", ""),
    ],
)
def test_the_operation_is_the_last_word_of_the_path(url, operation):
    assert classify(answer(problem(""), status=404, url=url), safe=True).operation == operation


def test_an_answer_without_its_request_is_judged_all_the_same():
    verdict = classify(httpx.Response(402, json=problem("credits")), safe=True)

    assert type(verdict) is BillingExhausted
    assert verdict.operation == ""


def test_a_request_whose_body_is_gone_hides_what_is_left_of_it():
    sent = httpx.Request(
        "POST", RENEWAL, content=iter([b"x"]), headers={"Authorization": f"Bearer {ACCESS}"}
    )

    verdict = classify(httpx.Response(400, json={"error": f"{ACCESS}?"}, request=sent), safe=True)

    assert ACCESS not in str(verdict)


def test_a_long_detail_is_cut():
    verdict = classify(answer(problem("", detail="<p>я\x00</p>" * 999), status=404), safe=True)

    assert len(verdict.detail) == 300


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
words = st.sampled_from(
    [
        *(f"https://api.x.com/2/problems/{name}" for name in (*NAMES, *UNPAID_NAMES)),
        *GRANT_WORDS,
        *("tweet.fields", "pagination_token", "SpendCapReached", "88", 88, ACCESS, REFRESH),
    ]
)
keys = ("title", "detail", "type", "code", "message", "parameters", "parameter", "reason", "error")
anything = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(keys), inner),
    max_leaves=6,
)
bodies = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*keys, "data", "meta", "errors", "access_token"), anything),
)
urls = st.sampled_from([PAGE, RENEWAL])


@given(bodies | anything, urls, st.integers(100, 599), st.booleans())
@example({"detail": "\ud800"}, PAGE, 400, False)
@example({"code": 10**400, "errors": [{"code": 10**400}]}, PAGE, 200, True)
def test_any_answer_is_judged_and_can_be_sent_on(body, url, status, safe):
    verdict = classify(answer(body, status=status, url=url), safe=safe)

    if verdict is None:
        assert body["access_token"].strip() if url == RENEWAL else body.keys() & {"data", "meta"}
    else:
        facts = json.dumps(vars(pickle.loads(pickle.dumps(verdict))), ensure_ascii=False)
        assert facts.encode()
        assert (REFRESH if url == RENEWAL else ACCESS) not in facts


@given(bodies, st.integers(100, 599))
def test_a_renewal_is_only_repeated_where_the_old_token_cannot_be_spent(body, status):
    verdict = classify(answer(body, status=status, url=RENEWAL), safe=False)

    if isinstance(verdict, Retryable):
        assert status == 425  # RFC 8470: refused before it was looked at


@given(bodies | anything, st.integers(100, 599), st.booleans())
def test_a_grant_is_only_lost_by_a_word_that_says_so(body, status, safe):
    verdict = classify(answer(body, status=status, url=RENEWAL), safe=safe)

    if isinstance(verdict, Unauthorized):
        assert verdict.code in {"invalid_request", "invalid_grant"}


@given(st.binary(max_size=200), urls, st.integers(100, 599), st.booleans())
def test_any_bytes_are_judged(body, url, status, safe):
    assert isinstance(classify(answer(body, status=status, url=url), safe=safe), JobError)


@given(bodies)
@example({"errors": [{"code": 10**5000}]})
def test_any_partial_errors_are_lines(body):
    assert all(line.isprintable() for line in partial_errors(body))


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


@given(printable, printable, printable, printable)
def test_no_header_is_too_strange(remaining, reset, date, retry_after):
    headers = {
        "x_rate_limit_remaining": remaining,
        "x_rate_limit_reset": reset,
        "date": date,
        "retry_after": retry_after,
    }
    response = answer(problem(""), status=429, **headers)
    wait, left = classify(response, safe=True).retry_after, window(response)

    assert wait is None or 0 <= wait < float("inf")
    assert left is None or (left.remaining >= 0 and left.reset_in >= 1)
