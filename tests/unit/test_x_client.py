"""What goes to X and comes back, whose tokens are renewed and when, and what the gate hears."""

from __future__ import annotations

import logging
import pickle
import traceback
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import parse_qsl

import httpx
import pytest

from classifiers import x as classifier
from classifiers.errors import (
    BillingExhausted,
    CredentialHeld,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    Pending,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from clients import http
from clients import x as client
from clients.http import Upstream
from clients.x import METHOD_CODES, App, Page, X, read
from config import services
from config.settings import Settings, settings
from reliability import connection
from reliability.gate import Gate
from storage import credentials
from storage.bookmarks import Bookmark
from storage.credentials import Tokens
from storage.upgrade import upgrade

BASE = "https://api.x.example"
USER, OTHER = "2244994945", "17"
ACCESS, REFRESH, SECRET = "acc3ss-t0ken", "r3fresh-t0ken", "cl1ent-s3cret"
NEW = {
    "token_type": "bearer",
    "expires_in": 7200,
    "access_token": "acc3ss-2",
    "refresh_token": "r3fresh-2",
}
POST = {"id": "1", "text": "one"}
PUBLIC = App("client-id")
PROBLEMS = "https://api.x.com/2/problems/"


def good(*items, token=None, errors=None, headers=None):
    meta = {"result_count": len(items)} | ({"next_token": token} if token else {})
    body = ({"data": items} if items else {}) | {"meta": meta}
    return httpx.Response(
        200, json=body | ({"errors": errors} if errors else {}), headers=headers or {}
    )


def bad(status, title="", kind="about:blank", *, headers=None, **facts):
    body = {"title": title, "detail": title, "type": kind, "status": status, **facts}
    return httpx.Response(status, json=body, headers=headers or {})


def limits(remaining, seconds):
    """The headers of a rate limit that ends in so many seconds, by the clock of X."""
    return {
        "Date": "Sun, 22 Nov 2026 12:00:00 GMT",
        "x-rate-limit-remaining": str(remaining),
        "x-rate-limit-reset": str(
            int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()) + seconds
        ),
    }


EXPIRED = bad(401, "Unauthorized")
SPENT = httpx.Response(
    400,
    json={
        "error": "invalid_request",
        "error_description": "Value passed for the token was invalid.",
    },
)


def unknown(name):
    """The answer to a parameter that X does not have."""
    problem = {
        "parameters": {name: ["author_id,created_at"]},
        "message": f"The query parameter [{name}] is not one of [id,max_results]",
    }
    return bad(400, "Invalid Request", PROBLEMS + "invalid-request", errors=[problem])


def field_of(request):
    return next(name for name in request.url.params if name.endswith(".fields"))


@pytest.fixture
def site():
    """X: each list of answers is used up from its beginning, its last answer serves for ever."""
    site = SimpleNamespace(requests=[], pages=[good(POST)], tokens=[httpx.Response(200, json=NEW)])

    def answer(request):
        site.requests.append(request)
        answers = site.tokens if request.url.path == "/2/oauth2/token" else site.pages
        given = answers.pop(0) if len(answers) > 1 else answers[0]
        given = given(request) if callable(given) else given
        if isinstance(given, Exception):
            raise given
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    site.transport = httpx.MockTransport(answer)
    return site


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """What the seam has slept, instead of sleeping it."""
    slept = []
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append))
    return slept


@pytest.fixture(autouse=True)
def stored(monkeypatch, tmp_path):
    """An empty database; `stored(user)` saves a credential and returns it."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'x.db'}")
    settings.cache_clear()
    upgrade()

    def save(user=USER, access=ACCESS, refresh=REFRESH, ends_in=None):
        ends = None if ends_in is None else datetime.now(UTC) + timedelta(seconds=ends_in)
        credentials.save("x", user, access_token=access, refresh_token=refresh, expires_at=ends)
        return credentials.get("x", user)

    yield save
    monkeypatch.undo()
    settings.cache_clear()


@pytest.fixture
def build(site, redis_client):
    """Return an X behind a real gate."""

    def build(app=PUBLIC, scale=1.0):
        service = services.x(Settings(x_rate=1000))
        upstream = Upstream(
            service,
            Gate(redis_client, service, scale=scale),
            client.about_a_page,
            base_url=BASE,
            method_codes=METHOD_CODES,
            transport=site.transport,
        )
        return X(upstream, app, scale=scale)

    return build


@pytest.fixture
def api(build, stored):
    """An X that knows one user."""
    stored()
    return build()


def error_of(call, kind=JobError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def asked(site):
    """What was asked, in short: the page of which user with which token, or a renewal."""
    return [
        (request.url.path.split("/")[3], request.headers["authorization"].removeprefix("Bearer "))
        if request.method == "GET"
        else ("renewal", dict(parse_qsl(request.content.decode()))["refresh_token"])
        for request in site.requests
    ]


# -- pages


def test_a_page_is_one_request(api, site):
    site.pages = [good(POST, {"id": "2"}, token="p2")]

    assert api.page(USER) == Page((POST, {"id": "2"}), "p2")

    (request,) = site.requests
    assert request.url.path == f"/2/users/{USER}/bookmarks"
    assert dict(request.url.params) == {
        "max_results": "90",
        "tweet.fields": "author_id,created_at",
    }
    assert request.headers["authorization"] == f"Bearer {ACCESS}"


def test_a_later_page_is_asked_for_by_its_token(api, site):
    api.page(USER, "p2")

    assert site.requests[0].url.params["pagination_token"] == "p2"


@pytest.mark.parametrize(
    ("body", "page"),
    [
        ({"meta": {"result_count": 0}}, Page(())),
        ({"data": [], "meta": {"result_count": 0}}, Page(())),
        ({"data": [POST], "meta": {"result_count": 1, "next_token": ""}}, Page((POST,))),
        ({"data": [POST], "meta": {"result_count": 1, "next_token": None}}, Page((POST,))),
        ({"data": [POST]}, Page((POST,))),
        ({"data": [None, 7, "x", {}], "meta": {}}, Page((None, 7, "x", {}))),
        ({"meta": {"result_count": 0, "next_token": "p2"}}, Page((), "p2")),
    ],
    ids=["none", "empty", "no more", "null", "without meta", "invalid items", "empty, not last"],
)
def test_every_page_is_read(api, site, body, page):
    site.pages = [httpx.Response(200, json=body)]

    assert api.page(USER, "p1") == page


@pytest.mark.parametrize(
    "meta",
    [{"next_token": 7}, {"next_token": ["p2"]}, {"next_token": "p1"}, ["p2"], "p2"],
    ids=["number", "list", "itself", "meta is a list", "meta is text"],
)
def test_a_next_page_that_makes_no_sense_does_not_pass_for_the_end(api, site, meta):
    site.pages = [httpx.Response(200, json={"data": [POST], "meta": meta})]

    assert error_of(lambda: api.page(USER, "p1"), InternalError)


def test_what_x_left_out_is_told_beside_the_page(api, site):
    left_out = {"title": "Not Found", "type": PROBLEMS + "resource-not-found", "detail": "gone"}
    site.pages = [good(POST, errors=[left_out])]
    page = api.page(USER)

    assert page.items == (POST,)
    assert len(page.warnings) == 1
    assert "gone" in page.warnings[0]


def test_a_page_that_x_has_forgotten_is_none(api, site):
    problem = {"parameters": {"pagination_token": ["p9"]}, "message": "is invalid"}
    site.pages = [bad(400, "Invalid Request", PROBLEMS + "invalid-request", errors=[problem])]

    assert api.page(USER, "p9") is None
    assert error_of(lambda: api.page(USER), InvalidData)


@pytest.mark.parametrize(
    ("user", "path"), [("1/../2", "1%2F..%2F2"), ("a?b=c", "a%3Fb%3Dc"), ("me", "me")]
)
def test_whatever_an_id_holds_it_leads_to_no_other_address(api, site, user, path):
    credentials.save("x", user, access_token="t")
    api.page(user)

    assert site.requests[0].url.raw_path.startswith(f"/2/users/{path}/bookmarks?".encode())


def empty(**meta):
    gone = {"type": PROBLEMS + "resource-not-found", "title": "Not Found Error", "value": "1"}
    return httpx.Response(200, json={"errors": [gone], "meta": meta})


@pytest.mark.parametrize("token", [None, "p9"], ids=["first", "later"])
def test_a_page_of_which_nothing_may_be_shown_is_an_empty_one(api, site, token):
    site.pages = [empty(result_count=0)]

    assert api.page(USER, token).items == ()


def test_errors_that_are_no_page_are_errors(api, site):
    site.pages = [empty()]

    assert error_of(lambda: api.page(USER, "p9"), NotFound)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ConnectError(""), NetworkError),
        (httpx.ReadTimeout(""), ServiceUnavailable),
        (httpx.Response(503, text="over capacity"), ServiceUnavailable),
        (bad(402, "CreditsDepleted", PROBLEMS + "credits"), BillingExhausted),
        (bad(429, "UsageCapExceeded", PROBLEMS + "usage-capped"), BillingExhausted),
        (bad(403, "Forbidden"), Forbidden),
        (httpx.Response(200, text="<html>"), InternalError),
    ],
    ids=["not reached", "silent", "503", "402", "usage cap", "403", "not json"],
)
def test_what_goes_wrong_is_raised_as_what_it_means(api, site, answer, kind):
    site.pages = [answer]

    assert type(error_of(lambda: api.page(USER))) is kind
    assert len(site.requests) == 1


# -- both generations of field names


def only(name):
    return lambda request: good(POST) if field_of(request) == name else unknown(field_of(request))


@pytest.mark.parametrize("first", ["tweet.fields", "post.fields"])
def test_the_names_of_fields_that_x_takes_are_found_and_kept(api, site, first):
    other = "post.fields" if first == "tweet.fields" else "tweet.fields"
    api.fields = first
    site.pages = [only(other)]

    assert [api.page(USER).items, api.page(USER).items] == [(POST,)] * 2
    assert [field_of(request) for request in site.requests] == [first, other, other]


def test_where_x_takes_neither_name_that_is_an_error(api, site):
    site.pages = [lambda request: unknown(field_of(request))]

    assert error_of(lambda: api.page(USER), InvalidData).code == classifier.UNKNOWN_FIELDS
    assert len(site.requests) == 2


# -- who may be asked for


def test_a_user_who_has_given_no_access_waits_for_it(api, site, stored):
    error = error_of(lambda: api.page(OTHER), CredentialHeld)

    assert f"X user {OTHER} has not given us access" in error.detail
    assert f"celery -A tasks bookmarks authorize {OTHER}" in error.detail
    assert site.requests == []

    stored(OTHER)

    assert api.page(OTHER)


def test_a_user_whose_access_is_lost_waits_for_a_new_one(api, site, stored):
    credentials.lose(credentials.get("x", USER), "X has taken it back")
    error = error_of(lambda: api.page(USER), CredentialHeld)

    assert "X has taken it back" in error.detail
    assert f"celery -A tasks bookmarks authorize {USER}" in error.detail
    assert site.requests == []

    stored()

    assert api.page(USER)


# -- renewal


@pytest.mark.parametrize(
    ("app", "form", "authorization"),
    [
        (PUBLIC, {"client_id": "client-id"}, None),
        (
            App("client-id", SECRET),
            {},
            "Basic " + b64encode(f"client-id:{SECRET}".encode()).decode(),
        ),
    ],
    ids=["public", "confidential"],
)
def test_a_token_is_renewed_before_it_ends(build, site, stored, app, form, authorization):
    stored(ends_in=50)
    build(app).page(USER)

    assert asked(site) == [("renewal", REFRESH), (USER, NEW["access_token"])]
    renewal = site.requests[0]
    assert str(renewal.url) == f"{BASE}/2/oauth2/token"
    assert dict(parse_qsl(renewal.content.decode())) == {
        "grant_type": "refresh_token",
        "refresh_token": REFRESH,
        **form,
    }
    assert renewal.headers.get("authorization") == authorization


@pytest.mark.parametrize(
    ("refresh", "ends_in"),
    [(REFRESH, None), (REFRESH, 100), (None, 50), (None, -50)],
    ids=["nobody knows", "time enough", "no refresh token", "over, and no refresh token"],
)
def test_another_token_serves_until_x_refuses_it(build, site, stored, refresh, ends_in):
    stored(refresh=refresh, ends_in=ends_in)
    build().page(USER)

    assert asked(site) == [(USER, ACCESS)]


def test_a_drill_renews_later(build, site, stored):
    stored(ends_in=50)
    build(scale=0.1).page(USER)

    assert asked(site) == [(USER, ACCESS)]


def test_a_new_pair_is_stored_with_its_end(build, site, stored):
    stored(ends_in=-1)
    build().page(USER)
    kept = credentials.get("x", USER)

    assert (kept.access_token, kept.refresh_token) == (NEW["access_token"], NEW["refresh_token"])
    assert abs(kept.expires_at - datetime.now(UTC) - timedelta(hours=2)) < timedelta(seconds=30)


@pytest.mark.parametrize(
    ("told", "refresh", "known"),
    [
        ({}, REFRESH, False),
        ({"refresh_token": None, "expires_in": None}, REFRESH, False),
        ({"refresh_token": 7, "expires_in": "soon"}, REFRESH, False),
        ({"refresh_token": " r2 ", "expires_in": -5}, "r2", False),
        ({"refresh_token": "r2", "expires_in": 1e300}, "r2", False),
        ({"refresh_token": "r2", "expires_in": 10**400}, "r2", False),
        ({"refresh_token": "r2", "expires_in": 90.5}, "r2", True),
    ],
    ids=["silent", "null", "wrong", "negative", "for ever", "longer", "a fraction"],
)
def test_whatever_comes_beside_a_new_token_it_is_kept(build, site, stored, told, refresh, known):
    stored()
    site.pages = [EXPIRED, good(POST)]
    site.tokens = [httpx.Response(200, json={"access_token": "a2", **told})]
    build().page(USER)
    kept = credentials.get("x", USER)

    assert (kept.access_token, kept.refresh_token) == ("a2", refresh)
    assert (kept.expires_at is not None) == known


def test_a_refused_token_is_renewed_and_asked_with_again(api, site):
    site.pages = [EXPIRED, good(POST)]

    assert api.page(USER, "p2").items == (POST,)
    assert asked(site) == [(USER, ACCESS), ("renewal", REFRESH), (USER, NEW["access_token"])]
    assert site.requests[2].url.params["pagination_token"] == "p2"


def test_what_another_job_has_renewed_is_taken(api, site, stored):
    def meanwhile(request):
        stored(access="a7", refresh="r7")
        return EXPIRED

    site.pages = [meanwhile, good(POST)]

    assert api.page(USER)
    assert asked(site) == [(USER, ACCESS), (USER, "a7")]


def test_while_another_job_renews_this_one_waits(api, site, build):
    met = []

    def meanwhile(request):
        met.append(error_of(lambda: build().page(USER), Pending))
        return httpx.Response(200, json=NEW)

    site.pages = [EXPIRED, EXPIRED, good(POST)]
    site.tokens = [meanwhile]

    assert api.page(USER)
    assert len(met) == 1
    assert 0 < met[0].retry_after <= api.lease
    assert [what for what, _ in asked(site)].count("renewal") == 1


def test_a_new_token_that_is_refused_too_is_held_for_its_user_alone(api, site, stored):
    stored(OTHER, access="other")
    site.pages = [EXPIRED, EXPIRED, good(POST)]
    error = error_of(lambda: api.page(USER))
    held = error_of(lambda: api.page(USER))

    assert [type(error), type(held)] == [Unauthorized, CredentialHeld]
    assert len(asked(site)) == 3
    assert api.page(OTHER)
    assert not credentials.get("x", USER).lost  # X may err: a reset of the gate is enough then

    stored(access="a9")

    assert api.page(USER)


@pytest.mark.parametrize(
    "answer",
    [
        bad(403, "Unsupported Authentication", PROBLEMS + "unsupported-authentication"),
        bad(403, "insufficient scope: bookmark.read"),
    ],
    ids=["app-only", "scope"],
)
def test_a_token_without_the_right_is_held_and_not_renewed(api, site, answer):
    site.pages = [answer]
    error = error_of(lambda: api.page(USER))
    held = error_of(lambda: api.page(USER))

    assert [type(error), type(held)] == [Unauthorized, CredentialHeld]
    assert asked(site) == [(USER, ACCESS)]


def test_a_refused_token_that_cannot_be_renewed_is_held(build, site, stored):
    stored(refresh=None)
    site.pages = [EXPIRED]
    api = build()
    error = error_of(lambda: api.page(USER), Unauthorized)
    held = error_of(lambda: api.page(USER))

    assert "authorize" in error.detail
    assert type(held) is CredentialHeld
    assert asked(site) == [(USER, ACCESS)]


def test_a_spent_refresh_token_is_lost(api, site, stored):
    site.pages, site.tokens = [EXPIRED, good(POST)], [SPENT]
    error = error_of(lambda: api.page(USER))
    held = error_of(lambda: api.page(USER))

    assert [type(error), type(held)] == [Unauthorized, CredentialHeld]
    assert credentials.get("x", USER).lost
    assert len(site.requests) == 2

    stored()

    assert api.page(USER)


def test_an_answer_that_is_lost_in_a_renewal_leaves_it_to_the_next_try(api, site):
    site.pages = [EXPIRED, EXPIRED, good(POST)]
    site.tokens = [httpx.ReadTimeout(""), httpx.Response(200, json=NEW)]

    assert error_of(lambda: api.page(USER), OutcomeUnknown)
    assert api.page(USER)
    assert asked(site)[-1] == (USER, NEW["access_token"])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ConnectError(""), NetworkError),
        (httpx.Response(502, text="Bad Gateway"), OutcomeUnknown),
        (httpx.Response(200, json={"token_type": "bearer"}), OutcomeUnknown),
        (bad(429, "Too Many Requests"), RateLimited),
    ],
    ids=["not reached", "502", "no token", "429"],
)
def test_a_renewal_that_fails_says_whether_the_token_may_be_spent(api, site, answer, kind):
    site.pages, site.tokens = [EXPIRED], [answer]

    assert type(error_of(lambda: api.page(USER))) is kind
    assert not credentials.get("x", USER).lost


# -- the client id


def test_without_a_client_id_only_who_needs_it_waits(build, site, stored):
    stored(ends_in=10)
    stored(OTHER, access="other")
    api = build(app=None)
    error = error_of(lambda: api.page(USER), NotConfigured)

    assert "X_CLIENT_ID" in error.detail
    assert api.page(OTHER)
    assert asked(site) == [(OTHER, "other")]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(400, json={"error": "invalid_client"}),
        httpx.Response(401, json={"error": "unauthorized_client"}),
        httpx.Response(401, json={"title": "Unauthorized"}),
        httpx.Response(
            400,
            json={
                "error": "invalid_request",
                "error_description": "Missing required parameter [client_id].",
            },
        ),
    ],
    ids=["client", "secret", "401", "missing"],
)
def test_a_client_id_that_x_refuses_stops_only_who_needs_it(api, site, stored, answer):
    stored(OTHER, access="other")
    site.pages, site.tokens = [EXPIRED, good(POST)], [answer]

    assert error_of(lambda: api.page(USER), NotConfigured)
    assert api.page(OTHER)
    assert not credentials.get("x", USER).lost


def test_an_app_that_may_not_call_x_stops_everybody(api, site, stored):
    stored(OTHER)
    refusal = bad(403, "Client Forbidden", PROBLEMS + "client-forbidden")
    site.pages = [refusal]
    error_of(lambda: api.page(USER), NotConfigured)

    assert api.upstream.gate.state().state == "paused"


# -- the rate limit


def test_the_last_request_of_a_user_closes_the_gate_until_the_reset(api, site, stored):
    stored(OTHER)
    site.pages = [good(POST, token="p2", headers=limits(0, 400)), good(POST)]

    assert api.page(USER).next_token == "p2"

    spent = [error_of(lambda: api.page(USER, "p2"), RateLimited) for _ in range(2)]

    assert [error.retry_after for error in spent] == [pytest.approx(400, abs=3)] * 2
    assert len(site.requests) == 1
    assert api.page(OTHER)


def test_while_requests_are_left_nothing_waits(api, site):
    site.pages = [good(POST, headers=limits(1, 400))]

    assert [api.page(USER).items, api.page(USER).items] == [(POST,)] * 2


@pytest.mark.parametrize(
    ("headers", "scale", "seconds"),
    [(limits(0, 400), 0.01, 400), ({}, 1.0, 900), ({}, 0.1, 90)],
    ids=["until the reset", "for 15 minutes", "for so long in a drill"],
)
def test_a_user_who_is_limited_waits_alone(build, site, stored, headers, scale, seconds):
    stored()
    stored(OTHER)
    site.pages = [bad(429, "Too Many Requests", headers=headers), good(POST)]
    api = build(scale=scale)
    first = error_of(lambda: api.page(USER), RateLimited)
    second = error_of(lambda: api.page(USER), RateLimited)

    assert first.retry_after == pytest.approx(seconds, abs=3)
    assert second.retry_after == pytest.approx(seconds, abs=3)
    assert len(site.requests) == 1
    assert api.page(OTHER)


# -- secrets


@pytest.mark.parametrize(
    ("page", "token"),
    [
        (bad(403, f"{ACCESS} may not"), None),
        (httpx.ConnectError(ACCESS), None),
        (EXPIRED, bad(400, f"{REFRESH} of {SECRET}", error="invalid_request")),
        (EXPIRED, httpx.ReadTimeout(REFRESH)),
        (EXPIRED, httpx.Response(200, json={"refresh_token": REFRESH})),
        (EXPIRED, httpx.Response(200, json=NEW)),
    ],
    ids=["403", "not reached", "echoed", "silent", "half an answer", "refused anew"],
)
def test_no_token_is_in_an_error_or_a_log(build, site, stored, caplog, page, token):
    caplog.set_level(logging.DEBUG)
    stored()
    site.pages, site.tokens = [page], [token]
    api = build(App("client-id", SECRET))
    error = error_of(lambda: api.page(USER))
    told = "".join(traceback.format_exception(error)) + repr(vars(error)) + caplog.text
    told += repr([api.app, Tokens(ACCESS, REFRESH), credentials.get("x", USER)])

    assert not [
        secret for secret in (ACCESS, REFRESH, SECRET, *NEW.values()) if str(secret) in told
    ]
    assert pickle.loads(pickle.dumps(error)).detail == error.detail


def test_no_token_gets_into_redis(api, site, redis_client):
    site.pages = [EXPIRED]
    error_of(lambda: api.page(USER))
    kept = [(key, redis_client.hgetall(key)) for key in redis_client.keys("*")]

    assert kept
    assert not [s for s in (ACCESS, REFRESH, NEW["access_token"]) if s in str(kept)]


# -- bookmarks


@pytest.mark.parametrize(
    ("item", "author", "posted"),
    [
        (POST, None, None),
        (
            {**POST, "author_id": "7", "created_at": "2021-01-02T03:04:05.000Z"},
            "7",
            datetime(2021, 1, 2, 3, 4, 5, tzinfo=UTC),
        ),
        (
            {**POST, "author_id": 7, "created_at": "2021-01-02T05:04:05+02:00"},
            "7",
            datetime(2021, 1, 2, 3, 4, 5, tzinfo=UTC),
        ),
        ({**POST, "created_at": "2021-01-02"}, None, datetime(2021, 1, 2, tzinfo=UTC)),
        ({**POST, "author_id": [], "created_at": 7}, None, None),
        ({**POST, "author_id": "me", "created_at": "yesterday"}, None, None),
        ({**POST, "created_at": "0001-01-01T00:00:00+23:00"}, None, None),
        ({**POST, "edit_history_post_ids": ["1"]}, None, None),
        ({**POST, "edit_history_tweet_ids": ["1"]}, None, None),
    ],
    ids=[
        "least",
        "all",
        "elsewhere",
        "a day",
        "other types",
        "nonsense",
        "before time",
        "post",
        "tweet",
    ],
)
def test_a_bookmark_is_read_with_what_is_there(item, author, posted):
    assert read(item) == Bookmark("1", "one", author, posted, item)


@pytest.mark.parametrize(
    ("item", "tweet_id", "text"),
    [
        ({"id": 12, "text": "x"}, "12", "x"),
        ({"id": "007", "text": "x"}, "007", "x"),
        ({"id": "1", "text": ""}, "1", ""),
        ({"id": "1", "text": "\ud83d \x00"}, "1", "\ud83d \x00"),
    ],
    ids=["number", "zeros", "an empty text", "half a pair"],
)
def test_what_is_unusual_is_a_bookmark_all_the_same(item, tweet_id, text):
    assert read(item) == Bookmark(tweet_id, text, None, None, item)


@pytest.mark.parametrize(
    ("item", "code"),
    [
        *((item, "not_an_object") for item in (None, 7, "x", True, [POST])),
        *(({"text": "x"} | given, "no_id") for given in ({}, {"id": None}, {"id": ""})),
        *(
            ({"id": wrong, "text": "x"}, "no_id")
            for wrong in ("x1", "1 ", "-1", "1.0", "١", "1\n", True, -1, 1.0, [], {})
        ),
        *(({"id": "1"} | given, "no_text") for given in ({}, {"text": None}, {"text": 7})),
    ],
)
def test_what_is_no_bookmark_says_why(item, code):
    found = read(item)

    assert isinstance(found, InvalidData)
    assert (found.service, found.code) == ("x", code)
    assert found.detail


# -- of this process


@pytest.fixture
def configured(monkeypatch):
    def forget():
        settings.cache_clear()
        connection.redis.cache_clear()
        client.x.forget()

    monkeypatch.setenv("REDIS_URL", "redis://nowhere.invalid:1/0")
    monkeypatch.setenv("X_BASE_URL", "http://127.0.0.1:9/sim")
    monkeypatch.setenv("X_CLIENT_ID", "client-id")
    forget()
    yield monkeypatch
    forget()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["public", "confidential"])
def test_x_is_called_as_the_settings_say(configured, secret):
    if secret:
        configured.setenv("X_CLIENT_SECRET", secret)
    configured.setenv("RETRY_TIME_SCALE", "0.5")
    built = client.x()
    request = built.upstream.client.build_request("GET", "2/users/1/bookmarks")

    assert built is client.x()
    assert str(request.url) == "http://127.0.0.1:9/sim/2/users/1/bookmarks"
    assert built.app == App("client-id", secret)
    assert (built.margin, built.lease) == (timedelta(seconds=30), services.x(Settings()).lease / 2)


def test_without_a_client_id_x_is_called_all_the_same(configured):
    configured.delenv("X_CLIENT_ID")

    assert client.x().app is None


def test_a_closed_x_has_let_its_connections_go(api):
    api.close()

    assert api.upstream.client.is_closed


# -- the app


def oauth(error, description):
    body = {"error": error, "error_description": description}
    return httpx.Response(400, json=body)


@pytest.mark.parametrize("app", [PUBLIC, App("client-id", "s3cr3t")])
def test_an_app_is_known_where_x_refuses_no_more_than_a_token_that_nobody_has(
    build, site, stored, app
):
    stored()
    site.tokens = [oauth("invalid_request", "Value passed for the token was invalid.")]

    build(app).check_app(within=5.0)

    assert asked(site) == [("renewal", client.NOBODYS)]
    assert credentials.get("x", USER).lost is None


@pytest.mark.parametrize("app", [PUBLIC, App("client-id", "s3cr3t"), None])
def test_an_app_that_x_does_not_know_is_set_up_wrongly(build, site, app):
    site.tokens = [oauth("unauthorized_client", "Missing valid authorization header")]

    error_of(lambda: build(app).check_app(within=5.0), NotConfigured)
