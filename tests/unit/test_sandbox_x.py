"""The simulated X API against the facts of UPSTREAMS 4."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandbox import serving
from sandbox.x import create_app
from sandbox.x_answers import ROWS
from sandbox.x_platform import Platform, PlatformSettings

BEGIN = 1_765_184_045.5
USER = "1001"
TOKEN = "/2/oauth2/token"


class Api:
    """The platform behind its HTTP interface, with a clock that is set by hand."""

    def __init__(self, **settings: Any) -> None:
        self.now = BEGIN
        self.platform = Platform(
            PlatformSettings(**{"client_secret": "s3cret"} | settings),
            clock=lambda: self.now,
            sleep=self._sleep,
        )
        self.loop = asyncio.new_event_loop()
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(self.platform)), base_url="http://x"
        )

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        self.loop.run_until_complete(self.http.aclose())
        self.loop.run_until_complete(self.platform.close())
        self.loop.close()

    def call(self, verb: str, path: str, **options: Any) -> httpx.Response:
        return self.loop.run_until_complete(self.http.request(verb, path, **options))

    def control(self, name: str, order: Any = None) -> Any:
        verb = "GET" if order is None else "POST"
        return self.call(verb, f"/_sandbox/{name}", json=order).raise_for_status().json()

    def welcome(self, bookmarks: int = 0, **arrival: Any) -> dict[str, Any]:
        given = {"id": USER, "access_token": "a0", "refresh_token": "r0"} | arrival
        return self.control("users", [{**given, "bookmarks": bookmarks}])[0]

    def sight(self, user: str = USER) -> dict[str, Any]:
        return self.control(f"users?id={user}")[0]

    def list(self, user: str = USER, *, bearer: str = "a0", **params: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {bearer}"}
        return self.call("GET", f"/2/users/{user}/bookmarks", params=params, headers=headers)

    def walk(self, **params: Any) -> list[dict[str, Any]]:
        """Read all pages; return their bodies."""
        pages = [self.list(**params).json()]
        while token := pages[-1]["meta"].get("next_token"):
            pages.append(self.list(pagination_token=token, **params).json())
        return pages

    def renew(self, refresh: str = "r0", **options: Any) -> httpx.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh}
        return self.call("POST", TOKEN, **{"data": form, "auth": ("sandbox", "s3cret")} | options)

    def fault(self, **fault: Any) -> None:
        self.control("faults", [fault])


def ids(pages: list[dict[str, Any]]) -> list[str]:
    return [post["id"] for page in pages for post in page.get("data", [])]


@pytest.fixture
def open_api() -> Iterator[Any]:
    made: list[Api] = []

    def open_one(**settings: Any) -> Api:
        made.append(Api(**settings))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


@pytest.fixture
def api(open_api: Any) -> Api:
    return open_api()


# -- pages


def test_a_listing_goes_through_all_bookmarks_once_the_newest_first(api: Api) -> None:
    valid = api.welcome(200)["valid"]
    pages = api.walk(max_results=90)

    assert ids(pages) == valid == sorted(valid, reverse=True)
    assert [page["meta"]["result_count"] for page in pages] == [90, 90, 20]
    assert len(set(valid)) == 200


def test_the_last_page_may_be_a_full_one(api: Api) -> None:
    api.welcome(180)

    assert [len(page["data"]) for page in api.walk(max_results=90)] == [90, 90]


def test_no_bookmarks_are_no_data(api: Api) -> None:
    api.welcome(0)

    assert api.list().json() == {"meta": {"result_count": 0}}


@pytest.mark.parametrize(
    ("size", "read"),
    [
        pytest.param({}, 100, id="usual-size"),
        pytest.param({"max_results": 100}, 100, id="100"),
        pytest.param({"max_results": 91}, 91, id="91"),
        pytest.param({"max_results": 90}, 250, id="90"),
    ],
)
def test_above_ninety_the_listing_ends_early(api: Api, size: dict[str, int], read: int) -> None:
    api.welcome(250)

    assert len(ids(api.walk(**size))) == read


def test_new_bookmarks_do_not_move_the_pages_behind_a_token(api: Api) -> None:
    old = api.welcome(20)["valid"]
    token = api.list(max_results=5).json()["meta"]["next_token"]
    added = api.control("bookmarks", {"id": USER, "bookmarks": 3})["added"]

    assert ids([api.list(max_results=5, pagination_token=token).json()]) == old[5:10]
    assert api.sight()["valid"] == added + old


def test_the_token_of_a_page_stays_the_same(api: Api) -> None:
    api.welcome(20)
    first, again = (api.list(max_results=5).json()["meta"]["next_token"] for _ in range(2))

    assert first == again
    assert first.isalnum()


def test_ids_of_two_users_differ(api: Api) -> None:
    ours, others = api.welcome(50)["valid"], api.welcome(50, id="1002")["valid"]

    assert not set(ours) & set(others)


# -- names of fields


@pytest.mark.parametrize(
    ("generation", "asked", "history"),
    [
        pytest.param("tweet", "tweet.fields", {"edit_history_tweet_ids"}, id="tweet"),
        pytest.param("post", "post.fields", {"edit_history_post_ids"}, id="post"),
        pytest.param(
            "both",
            "tweet.fields",
            {"edit_history_tweet_ids", "edit_history_post_ids"},
            id="both-by-tweet",
        ),
        pytest.param(
            "both",
            "post.fields",
            {"edit_history_tweet_ids", "edit_history_post_ids"},
            id="both-by-post",
        ),
    ],
)
def test_a_generation_takes_its_names_and_answers_with_them(
    open_api: Any, generation: str, asked: str, history: set[str]
) -> None:
    api = open_api(generation=generation)
    api.welcome(1)
    (post,) = api.list(**{asked: "created_at,author_id"}).json()["data"]

    assert set(post) == {"id", "text", "created_at", "author_id"} | history
    assert all(post[name] == [post["id"]] for name in history)


@pytest.mark.parametrize(
    ("generation", "asked"), [("tweet", "post.fields"), ("post", "tweet.fields")]
)
def test_a_generation_refuses_the_names_of_the_other(
    open_api: Any, generation: str, asked: str
) -> None:
    api = open_api(generation=generation)
    api.welcome(1)
    response = api.list(**{asked: "created_at"})

    assert response.status_code == 400
    assert response.json()["errors"][0]["parameters"] == {asked: ["created_at"]}


def test_without_asking_a_post_is_id_text_and_history(api: Api) -> None:
    api.welcome(1)
    (post,) = api.list().json()["data"]

    assert set(post) == {"id", "text", "edit_history_tweet_ids"}


def test_authors_are_included_when_they_are_expanded(api: Api) -> None:
    api.welcome(3)
    page = api.list(expansions="author_id", **{"tweet.fields": "author_id"}).json()

    assert {user["id"] for user in page["includes"]["users"]} == {
        post["author_id"] for post in page["data"]
    }


# -- refusals


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"max_results": "0"}, id="no-results"),
        pytest.param({"max_results": "101"}, id="too-many"),
        pytest.param({"max_results": "many"}, id="not-a-number"),
        pytest.param({"pagination_token": "zzz"}, id="unknown-token"),
        pytest.param({"tweet.fields": "id,colour"}, id="unknown-field"),
        pytest.param({"colour": "red"}, id="unknown-parameter"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(api: Api, params: dict[str, str]) -> None:
    api.welcome(5)
    response = api.list(**params)
    body = response.json()

    assert response.status_code == 400
    assert body["type"] == "https://api.x.com/2/problems/invalid-request"
    assert body["errors"][0]["parameters"] == {name: [value] for name, value in params.items()}
    assert api.sight()["pages"] == {}


def test_the_token_of_one_user_is_unknown_for_another(api: Api) -> None:
    api.welcome(20)
    api.welcome(20, id="1002", access_token="a2")
    token = api.list(max_results=5).json()["meta"]["next_token"]

    assert api.list("1002", bearer="a2", pagination_token=token).status_code == 400


def test_a_user_sees_only_their_own_bookmarks(api: Api) -> None:
    api.welcome(1)
    api.welcome(1, id="1002", access_token="a2")
    response = api.list(USER, bearer="a2")

    assert response.status_code == 400
    assert response.json()["errors"][0] == {
        "parameters": {"id": [USER]},
        "message": "The `id` query parameter value [1001] must be the same as the authenticating "
        "user [1002]",
    }


def test_an_unknown_bearer_is_unauthorized(api: Api) -> None:
    api.welcome(1)
    response = api.list(bearer="nobody")

    assert response.status_code == response.json()["status"] == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert "x-rate-limit-remaining" not in response.headers


def test_a_grant_without_the_scope_is_forbidden(api: Api) -> None:
    api.welcome(1, scopes=["tweet.read", "users.read"])

    assert api.list().json() == {
        "title": "Forbidden",
        "detail": "Forbidden",
        "type": "about:blank",
        "status": 403,
    }


# -- the rate limit


def limit(response: httpx.Response) -> tuple[str, ...]:
    names = ("limit", "remaining", "reset")
    return tuple(response.headers[f"x-rate-limit-{name}"] for name in names)


def test_every_answer_tells_what_is_left(api: Api) -> None:
    api.welcome(1)
    reset = str(int(BEGIN + 900.5))

    assert limit(api.list()) == ("180", "179", reset)
    api.now += 10
    assert limit(api.list(max_results=0)) == ("180", "178", reset)


def test_the_limit_ends_at_the_reset_and_not_before(open_api: Any) -> None:
    api = open_api(limit=2, window=60.0)
    api.welcome(1)
    reset = int(limit([api.list() for _ in range(2)][-1])[2])
    api.now = reset - 0.1
    refused = api.list()
    api.now = reset

    assert (refused.status_code, limit(refused)) == (429, ("2", "0", str(reset)))
    assert refused.json() == ROWS["too_many_requests"][1]
    assert limit(api.list()) == ("2", "1", str(reset + 60))
    assert api.control("summary")["limit_answers"] == {USER: 1}


def test_the_limit_is_each_users_own(open_api: Any) -> None:
    api = open_api(limit=1)
    api.welcome(1)
    api.welcome(1, id="1002", access_token="a2")
    api.list()

    assert api.list("1002", bearer="a2").status_code == 200
    assert api.list().status_code == 429


def test_without_a_limit_there_are_no_headers(open_api: Any) -> None:
    api = open_api(limit=0)
    api.welcome(1)

    assert not [name for name in api.list().headers if name.startswith("x-rate")]


def test_the_limit_changes_while_it_runs(api: Api) -> None:
    api.welcome(1)
    api.list()
    settings = api.control("settings", {"limit": 1, "window": 5})

    assert (settings["limit"], settings["window"]) == (1, 5.0)
    assert [api.list().status_code for _ in range(2)] == [200, 429]


# -- tokens


def test_a_renewal_gives_a_new_pair_and_ends_the_old_one(api: Api) -> None:
    api.welcome(1)
    pair = api.renew().json()

    assert pair == {
        "token_type": "bearer",
        "expires_in": 7200,
        "access_token": api.sight()["access_token"],
        "scope": "bookmark.read tweet.read users.read offline.access",
        "refresh_token": api.sight()["refresh_token"],
    }
    assert api.list(bearer="a0").status_code == 401
    assert api.list(bearer=pair["access_token"]).status_code == 200
    assert api.renew(pair["refresh_token"]).status_code == 200


def test_a_spent_token_is_refused_and_the_pair_stays_good(api: Api) -> None:
    api.welcome(1)
    pair = api.renew().json()
    refused = api.renew()

    assert (refused.status_code, refused.json()) == (
        400,
        {
            "error": "invalid_request",
            "error_description": "Value passed for the token was invalid.",
        },
    )
    assert api.list(bearer=pair["access_token"]).status_code == 200


def test_an_access_token_ends_in_its_time(open_api: Any) -> None:
    api = open_api(expires_in=60)
    api.welcome(1)
    api.now += 59
    before = api.list().status_code
    api.now += 1

    assert (before, api.list().status_code) == (200, 401)
    assert api.renew().json()["expires_in"] == 60


def test_an_expired_token_can_be_renewed(api: Api) -> None:
    api.welcome(1)
    api.control("expire", {"id": USER})

    assert api.list().status_code == 401
    assert api.renew().status_code == 200


def test_a_revoked_grant_cannot_be_renewed_until_it_is_given_anew(api: Api) -> None:
    api.welcome(1)
    api.control("revoke", {"id": USER})
    gone = [api.list().status_code, api.renew().status_code]
    api.control("authorize", {"id": USER, "access_token": "a1", "refresh_token": "r1"})

    assert gone == [401, 400]
    assert [api.list(bearer="a1").status_code, api.renew("r1").status_code] == [200, 200]
    assert api.sight()["tokens_issued"] == 3


def test_without_offline_access_there_is_no_refresh_token(api: Api) -> None:
    assert api.welcome(1, refresh_token=None)["refresh_token"] is None


@pytest.mark.parametrize(
    ("secret", "sent", "status", "error"),
    [
        pytest.param("s3cret", {"auth": None}, 401, "unauthorized_client", id="no-basic"),
        pytest.param(
            "s3cret", {"auth": ("sandbox", "wrong")}, 401, "unauthorized_client", id="wrong-secret"
        ),
        pytest.param("", {"auth": None}, 400, "invalid_request", id="public-without-id"),
        pytest.param(
            "",
            {"auth": None, "data": {"client_id": "another"}},
            401,
            "invalid_client",
            id="public-wrong-id",
        ),
        pytest.param(
            "s3cret", {"data": {"grant_type": "password"}}, 400, "invalid_request", id="no-token"
        ),
        pytest.param(
            "s3cret",
            {"data": {"grant_type": "password", "refresh_token": "r0"}},
            400,
            "unsupported_grant_type",
            id="another-grant",
        ),
        pytest.param(
            "s3cret",
            {"data": None, "json": {"grant_type": "refresh_token", "refresh_token": "r0"}},
            400,
            "invalid_request",
            id="not-a-form",
        ),
    ],
)
def test_a_wrong_renewal_is_refused_and_spends_nothing(
    open_api: Any, secret: str, sent: dict[str, Any], status: int, error: str
) -> None:
    api = open_api(client_secret=secret)
    api.welcome(1)
    response = api.renew(**sent)

    assert (response.status_code, response.json()["error"]) == (status, error)
    assert api.sight()["refresh_token"] == "r0"


def test_a_public_client_renews_with_its_id_in_the_form(open_api: Any) -> None:
    api = open_api(client_secret="")
    api.welcome(1)
    form = {"grant_type": "refresh_token", "refresh_token": "r0", "client_id": "sandbox"}

    assert api.renew(auth=None, data=form).status_code == 200


# -- bookmarks with flaws


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        pytest.param("not_an_object", lambda post: isinstance(post, str), id="not-an-object"),
        pytest.param("no_id", lambda post: "id" not in post, id="no-id"),
        pytest.param("empty_id", lambda post: post["id"] == "", id="empty-id"),
        pytest.param("null_id", lambda post: post["id"] is None, id="null-id"),
        pytest.param("non_digit_id", lambda post: not post["id"].isdigit(), id="non-digit-id"),
        pytest.param("no_text", lambda post: "text" not in post, id="no-text"),
    ],
)
def test_an_invalid_bookmark_stands_where_it_was_ordered(api: Api, kind: str, shown: Any) -> None:
    sight = api.welcome(3, invalid=[{"position": 1, "kind": kind}])
    data = api.list().json()["data"]

    assert shown(data[1])
    assert [data[0]["id"], data[2]["id"]] == sight["valid"]
    assert [(flaw["position"], flaw["kind"]) for flaw in sight["invalid"]] == [(1, kind)]


@pytest.mark.parametrize(
    ("kind", "slug"),
    [("gone", "resource-not-found"), ("protected", "not-authorized-for-resource")],
)
def test_an_unavailable_bookmark_is_a_problem_beside_the_data(
    api: Api, kind: str, slug: str
) -> None:
    sight = api.welcome(3, invalid=[{"position": 1, "kind": kind}])
    page = api.list().json()
    (problem,) = page["errors"]

    assert ids([page]) == sight["valid"]
    assert page["meta"]["result_count"] == 2
    assert problem["type"] == f"https://api.x.com/2/problems/{slug}"
    assert [problem["resource_id"]] == [flaw["id"] for flaw in sight["unavailable"]]
    assert sight["invalid"] == []


def test_a_page_of_unavailable_bookmarks_has_problems_and_a_next_page(api: Api) -> None:
    api.welcome(2, invalid=[{"position": 0, "kind": "gone"}])
    page = api.list(max_results=1).json()

    assert set(page) == {"errors", "meta"}
    assert set(page["meta"]) == {"result_count", "next_token"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [("nul_text", "\x00"), ("lone_surrogate", "\ud83e"), ("unhydrated", "Bookmark")],
)
def test_an_odd_bookmark_is_valid_all_the_same(api: Api, kind: str, text: str) -> None:
    sight = api.welcome(1, invalid=[{"position": 0, "kind": kind}])
    page = api.list().json()

    assert ids([page]) == sight["valid"]
    assert text in page["data"][0]["text"]
    assert ("errors" in page) == (kind == "unhydrated")


@pytest.mark.parametrize(
    "order",
    [
        pytest.param({"id": "x1"}, id="id-not-digits"),
        pytest.param({"id": USER, "colour": "red"}, id="unknown-name"),
        pytest.param(
            {"id": USER, "bookmarks": 1, "invalid": [{"position": 1, "kind": "no_id"}]},
            id="position-beyond",
        ),
        pytest.param(
            {"id": USER, "bookmarks": 1, "invalid": [{"position": 0, "kind": "odd"}]},
            id="unknown-kind",
        ),
    ],
)
def test_a_misspelt_user_is_refused(api: Api, order: dict[str, Any]) -> None:
    assert api.call("POST", "/_sandbox/users", json=[order]).status_code == 422
    assert api.control("users") == []


@pytest.mark.parametrize("name", ["bookmarks", "authorize", "expire", "revoke"])
def test_orders_about_nobody_are_refused(api: Api, name: str) -> None:
    assert api.call("POST", f"/_sandbox/{name}", json={"id": "7"}).status_code == 404


# -- faults


@pytest.mark.parametrize("code", ROWS)
def test_every_row_can_be_scripted(api: Api, code: str) -> None:
    api.welcome(1)
    api.fault(kind="error", method="bookmarks", code=code)
    response = api.list()
    status, body = ROWS[code]

    assert (response.status_code, response.json()) == (status, body)
    assert api.list().status_code == 200
    assert api.control("summary")["errors"] == {code: 1}


@pytest.mark.parametrize(
    ("code", "media_type"),
    [
        ("unauthorized", "application/problem+json"),
        ("legacy_limit", "application/json; charset=utf-8"),
        ("plain_error", "application/json; charset=utf-8"),
    ],
)
def test_only_problems_have_the_media_type_of_problems(
    api: Api, code: str, media_type: str
) -> None:
    api.welcome(1)
    api.fault(kind="error", code=code)

    assert api.list().headers["content-type"] == media_type


def test_problems_can_be_at_the_old_host(open_api: Any) -> None:
    api = open_api(problems="api.twitter.com")
    api.welcome(1)

    assert api.list(max_results=0).json()["type"].startswith("https://api.twitter.com/2/problems/")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        pytest.param(0, {}, id="untold"),
        pytest.param(
            30,
            {
                "x-rate-limit-limit": "180",
                "x-rate-limit-remaining": "0",
                "x-rate-limit-reset": str(int(BEGIN + 30.5)),
            },
            id="in-30-seconds",
        ),
    ],
)
@pytest.mark.parametrize("code", ["too_many_requests", "legacy_limit"])
def test_a_scripted_limit_tells_its_reset_or_does_not(
    api: Api, code: str, seconds: int, told: dict[str, str]
) -> None:
    api.welcome(1)
    api.fault(kind="error", code=code, seconds=seconds)
    headers = api.list().headers

    assert {name: value for name, value in headers.items() if name.startswith("x-rate")} == told
    assert api.sight()["limit_answers"] == 1


def test_a_script_has_the_last_word(api: Api) -> None:
    api.welcome(1)
    given = {"content-type": "text/plain", "x-rate-limit-remaining": "0"}
    api.fault(kind="error", code="forbidden", status=418, description="No tea.", headers=given)
    response = api.list()

    assert (response.status_code, response.json()["detail"]) == (418, "No tea.")
    assert {name: response.headers[name] for name in given} == given
    assert response.headers["x-rate-limit-limit"] == "180"


def test_a_fault_can_choose_its_user_and_page(api: Api) -> None:
    for user in ("1", "11"):
        api.welcome(20, id=user, access_token=f"a{user}", refresh_token=f"r{user}")
    api.fault(kind="error", code="unavailable", about="/1/10/")
    tokens = {
        user: api.list(user, bearer=f"a{user}", max_results=10).json()["meta"]["next_token"]
        for user in ("1", "11")
    }
    second = [
        api.list(user, bearer=f"a{user}", pagination_token=token).status_code
        for user, token in tokens.items()
    ]

    assert second == [503, 200]


@pytest.mark.parametrize(
    ("fault", "renewed"),
    [
        pytest.param({"kind": "refuse"}, 0, id="before-it-happens"),
        pytest.param({"kind": "lost_answer"}, 1, id="after-it-happened"),
        pytest.param({"kind": "lost_answer", "drop": "hang"}, 1, id="hangs"),
    ],
)
def test_a_renewal_can_be_lost_before_and_after_its_effect(
    api: Api, fault: dict[str, Any], renewed: int
) -> None:
    api.welcome(1)
    api.fault(method="token", **fault)
    with pytest.raises(httpx.TransportError):
        api.renew()

    assert api.sight()["refreshes"] == renewed
    assert api.renew().status_code == (400 if renewed else 200)


def test_a_renewal_can_answer_without_the_token_it_made(api: Api) -> None:
    api.welcome(1)
    api.fault(kind="error", method="token", code="no_access_token", after=True)
    response = api.renew()

    assert (response.status_code, "access_token" in response.json()) == (200, False)
    assert api.renew().status_code == 400


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param({"kind": "status", "status": 502}, 502, id="page-of-a-proxy"),
        pytest.param({"kind": "non_json"}, 200, id="page-instead-of-json"),
    ],
)
def test_an_answer_can_be_a_page(api: Api, fault: dict[str, Any], status: int) -> None:
    api.welcome(1)
    api.fault(**fault)
    response = api.list()

    assert response.status_code == status
    assert response.headers["content-type"].startswith("text/html")


def test_a_token_that_ends_while_a_page_is_slow_is_still_good(open_api: Any) -> None:
    api = open_api(expires_in=30)
    api.welcome(1)
    api.fault(kind="slow", seconds=40)

    assert api.list().status_code == 200
    assert api.now == BEGIN + 40


# -- what is told of it


def test_pages_are_counted_by_their_token(api: Api) -> None:
    api.welcome(20)
    token = api.list(max_results=10).json()["meta"]["next_token"]
    for _ in range(2):
        api.list(max_results=10, pagination_token=token)

    sight = api.sight()
    assert sight["pages"] == {"": 1, token: 2}
    assert (sight["requests"], sight["refetched"]) == (3, 1)


def test_a_page_whose_answer_was_lost_counts_as_one_that_was_not_fetched_does_not(
    api: Api,
) -> None:
    api.welcome(1)
    for kind in ("lost_answer", "refuse"):
        api.fault(kind=kind)
        with pytest.raises(httpx.TransportError):
            api.list()

    sight = api.sight()
    assert (sight["requests"], sight["pages"]) == (2, {"": 1})


def test_the_summary_counts_everything(open_api: Any) -> None:
    api = open_api(limit=3)
    api.welcome(10)
    token = api.list(max_results=5).json()["meta"]["next_token"]
    for _ in range(3):
        api.list(pagination_token=token)
    api.list(bearer="nobody")
    api.renew()

    assert api.control("summary") == {
        "requests": 6,
        "users": 1,
        "by_user": {USER: 5},
        "limit_answers": {USER: 1},
        "refreshes": 1,
        "pages": 3,
        "refetched": 1,
        "errors": {"too_many_requests": 1, "unauthorized": 1},
        "by_method": {"bookmarks": 5, "token": 1},
        "by_status": {"200": 4, "429": 1, "401": 1},
        "faults_fired": {},
    }


def test_the_journal_knows_every_call_and_no_token_of_a_user(api: Api) -> None:
    api.welcome(10)
    token = api.list(max_results=5).json()["meta"]["next_token"]
    api.list(pagination_token=token)
    api.renew()
    journal = api.control("journal")

    assert [(entry["method"], entry["about"], entry["effect"]) for entry in journal] == [
        ("bookmarks", {"user": USER, "page": "", "position": "0"}, ""),
        ("bookmarks", {"user": USER, "page": token, "position": "5"}, ""),
        ("token", {"user": USER}, f"pair 2 of {USER} issued"),
    ]
    assert not [secret for secret in ("a0", "r0", "s3cret") if f'"{secret}"' in json.dumps(journal)]


def test_a_user_who_comes_again_begins_anew(api: Api) -> None:
    api.welcome(20)
    token = api.list(max_results=5).json()["meta"]["next_token"]
    api.welcome(3, access_token="a9")

    assert api.list().status_code == 401
    assert api.list(bearer="a9", pagination_token=token).status_code == 400
    assert (api.sight()["requests"], len(api.sight()["valid"])) == (2, 3)


def test_reset_brings_back_the_start(api: Api) -> None:
    api.welcome(3)
    api.control("settings", {"generation": "post"})
    api.fault(kind="refuse")
    api.control("reset", {})
    api.welcome(3)

    assert "edit_history_tweet_ids" in api.list().json()["data"][0]
    assert api.control("summary")["requests"] == len(api.control("journal")) == 1


# -- over a real connection


@pytest.fixture
def site() -> Iterator[httpx.Client]:
    """A platform behind a socket of its own, in a thread."""
    server, listener = serving.create_server(create_app(Platform())), serving.bound()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer a0"}) as client:
        yield client
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("drop", "error"),
    [
        pytest.param("close", httpx.RemoteProtocolError, id="closed"),
        pytest.param("reset", httpx.ReadError, id="reset"),
        pytest.param("hang", httpx.ReadTimeout, id="held-open"),
    ],
)
def test_a_connection_ends_as_the_fault_says(
    site: httpx.Client, drop: str, error: type[Exception]
) -> None:
    site.post("/_sandbox/users", json=[{"id": USER, "access_token": "a0", "bookmarks": 1}])
    site.post("/_sandbox/faults", json=[{"kind": "lost_answer", "drop": drop}])
    with pytest.raises(error):
        site.get(f"/2/users/{USER}/bookmarks", timeout=0.3)

    response = site.get(f"/2/users/{USER}/bookmarks")
    assert response.headers["x-rate-limit-remaining"] == "178"
    assert "date" in response.headers
