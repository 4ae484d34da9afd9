"""What goes to KIE.AI, what comes back, and what the gates hear of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import httpx
import pytest

from classifiers import kie as classifier
from classifiers.errors import (
    BillingExhausted,
    CredentialHeld,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    OutcomeUnknown,
    Paused,
    Pending,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    UserError,
)
from clients import kie as client
from clients.http import Upstream
from clients.kie import MODELS, Kie, Progress
from config import services
from config.settings import Settings, settings
from reliability import connection
from reliability.gate import Gate

KEY = "k3y-s3cr3t"
PHOTO = "https://shop.example/sofa.jpg"
CALLBACK = "https://jobs.example/webhooks/kie/7"
VIDEO = "https://files.example/video.mp4"


def good(data):
    return httpx.Response(200, json={"code": 200, "msg": "success", "data": data})


def bad(code, msg="no", status=200, **more):
    return httpx.Response(status, json={"code": code, "msg": msg, **more})


@pytest.fixture
def site():
    """KIE.AI that gives the next of these answers to each request, the last one again and again."""
    site = SimpleNamespace(requests=[], answers=[good({"taskId": "task_1"})])

    def answer(request):
        site.requests.append(request)
        given = site.answers.pop(0) if len(site.answers) > 1 else site.answers[0]
        if isinstance(given, Exception):
            raise given
        return given

    site.transport = httpx.MockTransport(answer)
    return site


@pytest.fixture
def kie(site, redis_client):
    """Return the client with this model, behind real gates; they let a burst of calls pass."""

    def build(model="wan/2-6-image-to-video"):
        config = Settings(kie_rate=1000, kie_query_rate=1000)

        def upstream(service, classify):
            return Upstream(
                service,
                Gate(redis_client, service),
                classify,
                base_url="https://api.example",
                credential=KEY,
                headers={"Authorization": f"Bearer {KEY}"},
                transport=site.transport,
            )

        creates = upstream(services.kie(config), classifier.classify)
        queries = upstream(services.kie_queries(config), client.about_the_question)
        return Kie(creates, queries, model)

    return build


def error_of(call, kind=JobError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def body(request):
    return json.loads(request.content)


# -- begin


def test_a_generation_is_begun_by_one_request(kie, site):
    assert kie().create(PHOTO, "It turns", CALLBACK) == "task_1"

    (request,) = site.requests
    assert (request.method, str(request.url)) == (
        "POST",
        "https://api.example/api/v1/jobs/createTask",
    )
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert body(request) == {
        "model": "wan/2-6-image-to-video",
        "input": {"prompt": "It turns", "image_urls": [PHOTO]},
        "callBackUrl": CALLBACK,
    }


def test_without_an_address_of_ours_none_is_named(kie, site):
    kie().create(PHOTO, "It turns", None)

    assert "callBackUrl" not in body(site.requests[0])


INPUTS = {
    "sora-2-image-to-video": {"image_urls": [PHOTO], "upload_method": "s3"},
    "kling-2.6/image-to-video": {"image_urls": [PHOTO], "sound": False, "duration": "5"},
    "wan/2-6-image-to-video": {"image_urls": [PHOTO]},
    "hailuo/2-3-image-to-video-standard": {"image_url": PHOTO},
    "bytedance/v1-pro-image-to-video": {"image_url": PHOTO},
}


@pytest.mark.parametrize("model", MODELS)
def test_each_model_gets_its_own_input(kie, site, model):
    kie(model).create(PHOTO, "It turns", None)

    assert body(site.requests[0]) == {
        "model": model,
        "input": {"prompt": "It turns", **INPUTS[model]},
    }


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_may_be_as_long_as_the_model_takes_it(kie, site, model):
    longest = MODELS[model].prompt
    kie(model).create(PHOTO, "ж" * longest, None)
    error = error_of(lambda: kie(model).create(PHOTO, "ж" * (longest + 1), None))

    assert (type(error), error.reason) == (UserError, "prompt_too_long")
    assert str(longest) in error.detail
    assert len(site.requests) == 1


def test_a_model_nobody_knows_is_held_at_the_gate_without_a_request(kie, site):
    error = error_of(lambda: kie("sora-9").create(PHOTO, "It turns", None))
    others = error_of(lambda: kie().create(PHOTO, "It turns", None))

    assert type(error) is NotConfigured
    assert "KIE_MODEL 'sora-9' is not known" in error.detail
    assert all(model in error.detail for model in MODELS)
    assert type(others) is Paused
    assert "paused by settings" in others.detail
    assert site.requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "afterwards"),
    [
        (bad(401, "You do not have access permissions"), Unauthorized, CredentialHeld),
        (bad(500, "This interface is temporarily paused"), NotConfigured, Paused),
        (bad(505), NotConfigured, Paused),
        (bad(402, "Credits insufficient"), BillingExhausted, BillingExhausted),
        (bad(500, "Credits insufficient"), BillingExhausted, BillingExhausted),
        (bad(429, status=429), RateLimited, RateLimited),
    ],
    ids=["key", "paused", "disabled", "credits", "credits as 500", "limit"],
)
def test_one_answer_closes_the_gate_for_creates_and_finished_videos_are_still_seen(
    kie, site, answer, kind, afterwards
):
    site.answers = [answer, good({"state": "success"})]
    first = error_of(lambda: kie().create(PHOTO, "It turns", None))
    second = error_of(lambda: kie().create(PHOTO, "It turns", None))

    assert [type(first), type(second)] == [kind, afterwards]
    assert len(site.requests) == 1
    assert kie().look("task_1").state == "success"


@pytest.mark.parametrize(
    "answer", [httpx.ReadTimeout(""), bad(500, "Server error"), httpx.Response(502)]
)
def test_a_create_without_a_clear_answer_may_have_been_paid(kie, site, answer):
    site.answers = [answer]

    assert error_of(lambda: kie().create(PHOTO, "It turns", None), OutcomeUnknown)


# -- look


def record(**fields):
    asked = {"model": "m", "callBackUrl": CALLBACK, "input": {}}
    return {"taskId": "task_1", "state": "waiting", "param": json.dumps(asked), **fields}


def test_a_look_asks_for_one_task(kie, site):
    site.answers = [good(record(state="generating"))]

    assert kie().look("task 1") == Progress("task 1", "generating", callback_url=CALLBACK)
    assert site.requests[0].method == "GET"
    assert site.requests[0].url.path == "/api/v1/jobs/recordInfo"
    assert dict(site.requests[0].url.params) == {"taskId": "task 1"}


@pytest.mark.parametrize(
    ("said", "state"),
    [("waiting", "waiting"), ("Success", "success"), ("new word", "new word"), (None, "unknown")],
    ids=repr,
)
def test_a_state_is_the_word_of_kie(kie, site, said, state):
    site.answers = [good(record(state=said))]

    assert kie().look("task_1").state == state


@pytest.mark.parametrize(
    "result",
    [
        json.dumps({"resultUrls": [VIDEO]}),
        json.dumps({"resultUrls": ["", None, VIDEO, "https://second"]}),
        {"resultUrls": [VIDEO]},
        json.dumps({"resultUrl": VIDEO}),
        json.dumps({"video_url": VIDEO}),
        json.dumps({"resultUrls": json.dumps([VIDEO])}),
        json.dumps([VIDEO]),
        VIDEO,
    ],
    ids=["documented", "with gaps", "not a string", "one", "another name", "twice", "list", "bare"],
)
def test_the_result_is_found_however_it_is_written(kie, site, result):
    site.answers = [good(record(state="success", resultJson=result))]

    assert kie().look("task_1").result_url == VIDEO


@pytest.mark.parametrize(
    "result",
    [None, "", "{", "[" * 100_000, "null", 5, {}, [], {"resultUrls": ["ftp://x/y", "y.mp4", 7]}],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_link_is_no_result(kie, site, result):
    site.answers = [good(record(state="success", resultJson=result))]
    progress = kie().look("task_1")

    assert (progress.state, progress.result_url) == ("success", None)


@pytest.mark.parametrize("param", [None, "", "{", "[]", 5, json.dumps({"input": {}})], ids=repr)
def test_a_task_without_an_address_of_ours_names_none(kie, site, param):
    site.answers = [good(record(param=param))]

    assert kie().look("task_1").callback_url is None


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (good(record(state="fail", failCode="422", failMsg="nudity")), "422", "nudity"),
        (good(record(state="fail", failCode=500, failMsg=None)), "500", ""),
        (bad(501, "Generation failed"), "501", "Generation failed"),
        (bad(501, "failed", data={"failCode": "422", "failMsg": "nudity"}), "422", "nudity"),
        (bad(501, "failed", data={"failCode": None, "failMsg": ""}), "501", "failed"),
        (bad(408, "no result for ten minutes"), "408", "no result for ten minutes"),
    ],
    ids=["state", "a number", "501", "501 with its record", "501 with a void record", "408"],
)
def test_a_failed_generation_is_an_answer_and_no_failure_of_kie(kie, site, answer, code, message):
    site.answers = [answer]
    seen = [kie().look("task_1") for _ in range(4)]  # three failures would open the breaker

    assert {(look.state, look.fail_code, look.fail_message) for look in seen} == {
        ("fail", code, message)
    }


@pytest.mark.parametrize(
    "answer", [bad(404, "Task not found"), bad(422, "recordInfo is null")], ids=["404", "422"]
)
def test_a_task_that_kie_does_not_know_yet_has_no_state(kie, site, answer):
    site.answers = [answer]

    assert kie().look("task_1") == Progress("task_1")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ConnectError(""),
        httpx.ReadTimeout(""),
        httpx.Response(502),
        bad(500, "Server error"),
        bad(455, "maintenance"),
    ],
    ids=["not reached", "silent", "502", "500", "maintenance"],
)
def test_a_look_that_fails_is_no_failed_generation(kie, site, answer):
    site.answers = [answer]
    error = error_of(lambda: kie().look("task_1"))

    assert type(error) is Pending
    assert error.detail.startswith("KIE could not be asked: ")
    assert error.retry_after is None


def test_an_answer_that_never_makes_sense_is_not_waited_for(kie, site):
    site.answers = [httpx.Response(200, text="nonsense")]

    assert type(error_of(lambda: kie().look("task_1"))) is InternalError


@pytest.mark.parametrize(
    ("failure", "then"),
    [
        (NotConfigured("the model is paused"), Paused),
        (BillingExhausted("no credits"), BillingExhausted),
        (ServiceUnavailable("Timeout"), None),
        (UserError("too dark", reason="photo_too_dark"), None),
    ],
    ids=["model", "billing", "transient", "photo"],
)
def test_a_failed_generation_stops_those_that_would_fail_as_well(kie, site, failure, then):
    made = kie()
    made.stop_creating(failure)

    if then is None:
        assert made.create(PHOTO, "It turns", None) == "task_1"
    else:
        assert type(error_of(lambda: made.create(PHOTO, "It turns", None))) is then
        assert site.requests == []


def test_the_next_look_is_behind_those_who_stand_in_line(kie, site):
    made = kie()
    made.queries.gate.pause("anna")
    alone = made.next_look(20.0)
    error_of(lambda: made.look("task_1"), Paused)

    assert alone == 20.0
    assert made.next_look(20.0) == pytest.approx(60, abs=2)
    assert made.next_look(90.0) == 90.0


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(bad(401), Unauthorized), (bad(429, status=429), RateLimited), (bad(400), InvalidData)],
    ids=["key", "limit", "request"],
)
def test_what_waiting_does_not_mend_passes(kie, site, answer, kind):
    site.answers = [answer]

    assert type(error_of(lambda: kie().look("task_1"))) is kind


# -- a fresh link


@pytest.mark.parametrize("data", [VIDEO, {"url": VIDEO}], ids=["bare", "an object"])
def test_a_link_is_renewed(kie, site, data):
    site.answers = [good(data)]

    assert kie().fresh_link("https://old") == VIDEO
    assert site.requests[0].url.path == "/api/v1/common/download-url"
    assert body(site.requests[0]) == {"url": "https://old"}


@pytest.mark.parametrize(
    "answer",
    [bad(404), bad(422, "the url has expired"), bad(400), good(None), good("nothing")],
    ids=["404", "422", "400", "no data", "no link"],
)
def test_a_link_that_cannot_be_renewed_is_none(kie, site, answer):
    site.answers = [answer]

    assert kie().fresh_link("https://old") is None


@pytest.mark.parametrize("answer", [bad(501, "Generation failed"), bad(500)], ids=["501", "500"])
def test_a_renewal_that_fails_may_be_tried_again(kie, site, answer):
    site.answers = [answer]

    assert error_of(lambda: kie().fresh_link("https://old"), ServiceUnavailable)


# -- of this process


@pytest.fixture
def configured(monkeypatch):
    def forget():
        settings.cache_clear()
        connection.redis.cache_clear()
        client.kie.forget()

    monkeypatch.setenv("REDIS_URL", "redis://nowhere.invalid:1/0")
    monkeypatch.setenv("KIE_API_KEY", KEY)
    forget()
    yield monkeypatch
    forget()


def test_kie_is_called_as_the_settings_say(configured):
    configured.setenv("KIE_BASE_URL", "http://127.0.0.1:9/sim")
    configured.setenv("KIE_MODEL", "kling-2.6/image-to-video")
    built = client.kie()

    assert built is client.kie()
    assert built.model == "kling-2.6/image-to-video"
    assert [up.gate.service.name for up in (built.creates, built.queries)] == ["kie", "kie-queries"]
    for upstream in (built.creates, built.queries):
        request = upstream.client.build_request("GET", client.LOOK)
        assert str(request.url) == "http://127.0.0.1:9/sim/api/v1/jobs/recordInfo"
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert upstream.credential == KEY


def test_without_a_key_there_is_no_kie(configured):
    configured.delenv("KIE_API_KEY")

    with pytest.raises(NotConfigured, match="KIE_API_KEY is not set"):
        client.kie()


def test_the_default_model_is_known():
    assert Settings.model_fields["kie_model"].default in MODELS


# -- credits


@pytest.mark.parametrize(("said", "left"), [(100, 100.0), (0.5, 0.5), (-3, -3.0)])
def test_the_credits_that_are_left_are_a_number(kie, site, said, left):
    site.answers = [good(said)]

    assert kie().credits(within=5.0) == left
    assert [str(request.url) for request in site.requests] == [
        "https://api.example/api/v1/chat/credit"
    ]


@pytest.mark.parametrize("said", [None, "many", {"left": 5}, True])
def test_an_answer_without_a_number_of_credits_is_an_error(kie, site, said):
    site.answers = [good(said)]

    error_of(lambda: kie().credits(within=5.0), InternalError)
