"""The simulated KIE.AI against the facts of UPSTREAMS 2."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandbox import mp4
from sandbox.kie import create_app, create_server
from sandbox.studio import Studio, StudioSettings

MODEL = "sora-2-image-to-video"
IMAGE = "https://shop.example/photo.jpg"
CALLBACK = "https://jobs.example/webhooks/kie/g-1"
CREATE = "/api/v1/jobs/createTask"
LOOK = "/api/v1/jobs/recordInfo"
LINK = "/api/v1/common/download-url"
BEGIN = 1_765_184_045.5
DURATION = 100.0


class Account:
    """A studio behind its HTTP interface, with a clock that is set by hand."""

    def __init__(self, **settings: Any) -> None:
        self.now = BEGIN
        self.handler_status = 202
        self.heard: list[httpx.Request] = []
        self.at_once = self.most_at_once = 0
        usual = {"duration": DURATION, "spread": 0.0, "create_limit": 0, "query_limit": 0}
        self.studio = Studio(
            StudioSettings(**usual | settings),
            clock=lambda: self.now,
            sleep=self._sleep,
            transport=httpx.MockTransport(self._hear),
        )
        self.loop = asyncio.new_event_loop()
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(self.studio)),
            base_url="http://kie",
            headers={"Authorization": "Bearer sandbox"},
        )

    async def _sleep(self, seconds: float) -> None:
        self.now += seconds

    async def _hear(self, request: httpx.Request) -> httpx.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.heard.append(request)
        if self.handler_status == 0:
            raise httpx.ConnectError("nobody there")
        return httpx.Response(self.handler_status)

    def close(self) -> None:
        self.loop.run_until_complete(self.http.aclose())
        self.loop.run_until_complete(self.studio.close())
        self.loop.close()

    def call(self, verb: str, path: str, **options: Any) -> httpx.Response:
        return self.loop.run_until_complete(self.http.request(verb, path, **options))

    def control(self, name: str, order: Any = None) -> Any:
        verb = "GET" if order is None else "POST"
        response = self.call(verb, f"/_sandbox/{name}", json=order)
        return response.raise_for_status().json()

    def plan(self, **plan: Any) -> None:
        self.control("plans", [plan])

    def create(self, callback: str | None = None, **given: Any) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": given.pop("model", MODEL),
            "input": {"prompt": "a cup that turns", "image_urls": [IMAGE]} | given,
        }
        if callback:
            body["callBackUrl"] = callback
        return self.call("POST", CREATE, json=body).json()

    def created(self, callback: str | None = None, **given: Any) -> str:
        return self.create(callback, **given)["data"]["taskId"]

    def look(self, task_id: str) -> dict[str, Any]:
        return self.call("GET", LOOK, params={"taskId": task_id}).json()

    def after(self, seconds: float) -> None:
        """Let time pass, and send the callbacks that have become due."""
        self.now += seconds
        self.loop.run_until_complete(self.studio.callbacks.settle())

    def finished(self, callback: str | None = None, **given: Any) -> str:
        """Make a task and wait for it; return where its result is."""
        task_id = self.created(callback, **given)
        self.after(DURATION)
        return json.loads(self.look(task_id)["data"]["resultJson"])["resultUrls"][0]


@pytest.fixture
def account() -> Iterator[Account]:
    made = Account()
    yield made
    made.close()


@pytest.fixture
def open_account() -> Iterator[Any]:
    made: list[Account] = []

    def open_one(**settings: Any) -> Account:
        made.append(Account(**settings))
        return made[-1]

    yield open_one
    for each in made:
        each.close()


# -- a task, from its creation to its result


def test_a_finished_task_has_the_documented_record(account: Account) -> None:
    task_id = account.created(CALLBACK)
    account.after(DURATION + 5)
    answer = account.look(task_id)
    record = answer["data"]
    created = int(BEGIN * 1000)

    param = json.loads(record.pop("param"))
    (url,) = json.loads(record.pop("resultJson"))["resultUrls"]
    assert (answer["code"], answer["msg"]) == (200, "success")
    assert param == {
        "model": MODEL,
        "input": {"prompt": "a cup that turns", "image_urls": [IMAGE]},
        "callBackUrl": CALLBACK,
    }
    assert record == {
        "taskId": task_id,
        "model": MODEL,
        "state": "success",
        "failCode": None,
        "failMsg": None,
        "costTime": 100_000,
        "completeTime": created + 100_000,
        "createTime": created,
        "updateTime": created + 100_000,
        "creditsConsumed": 30.0,
        "progress": 100,
    }
    assert url.startswith("http://kie/files/")
    assert url.endswith(".mp4")


def test_a_task_goes_through_the_documented_states(account: Account) -> None:
    task_id = account.created()
    seen = []
    for _ in range(21):
        record = account.look(task_id)["data"]
        seen.append((record["state"], record["progress"]))
        account.now += DURATION / 20

    states = [state for state, _ in seen]
    assert list(dict.fromkeys(states)) == ["waiting", "queuing", "generating", "success"]
    assert [progress for _, progress in seen] == list(range(0, 101, 5))


def test_only_sora_says_how_far_it_is(account: Account) -> None:
    task_id = account.created(model="wan/2-6-image-to-video")

    assert "progress" not in account.look(task_id)["data"]


def test_a_task_is_unknown_until_it_is_visible(open_account: Any) -> None:
    account = open_account(visible_after=60.0)
    task_id = account.created()
    hidden = account.look(task_id)
    account.now += 60

    assert hidden == {"code": 422, "msg": "recordInfo is null", "data": None}
    assert account.look(task_id)["data"]["taskId"] == task_id


def test_how_long_a_task_takes_comes_from_the_seed(open_account: Any) -> None:
    def times(seed: int) -> list[float]:
        account = open_account(seed=seed, duration=10.0, spread=20.0)
        for _ in range(50):
            account.created()
        return [task["due"] - task["created"] for task in account.control("tasks")]

    assert times(1) == times(1) != times(2)
    assert all(10 <= taken <= 30 for taken in times(1))
    assert max(times(1)) - min(times(1)) > 10


def test_ids_do_not_come_back_after_a_restart(open_account: Any) -> None:
    first, second = open_account(), open_account()
    second.now += 1

    assert first.created() != second.created()


# -- refusals


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"image_urls": None}, "image_urls is required", id="no-picture"),
        pytest.param({"image_urls": []}, "image_urls is required", id="empty-list"),
        pytest.param({"prompt": ""}, "prompt is required", id="no-prompt"),
        pytest.param({"image_urls": [IMAGE, IMAGE]}, "maximum limit", id="two-pictures"),
        pytest.param({"prompt": "x" * 10_001}, "maximum limit", id="long-prompt"),
        pytest.param({"n_frames": 10}, "n_frames is not within the range", id="number-for-text"),
        pytest.param({"n_frames": "20"}, "n_frames is not within the range", id="option"),
        pytest.param({"image_urls": IMAGE}, "image_urls is not within", id="text-for-list"),
        pytest.param({"model": "sora-3"}, "The model name you specified", id="model"),
        pytest.param(
            {"model": "hailuo/2-3-image-to-video-standard"}, "image_url is required", id="image_url"
        ),
        pytest.param({"model": "kling-2.6/image-to-video"}, "sound is required", id="sound"),
    ],
)
def test_a_wrong_request_is_a_500_in_a_200(
    account: Account, changed: dict[str, Any], said: str
) -> None:
    answer = account.create(**changed)

    assert (answer["code"], answer["data"]) == (500, None)
    assert said in answer["msg"]
    assert account.control("summary")["creates"] == 0
    assert account.control("summary")["spent"] == 0


@pytest.mark.parametrize(
    ("model", "given"),
    [
        pytest.param("sora-2-image-to-video", {"n_frames": "15"}, id="sora"),
        pytest.param("bytedance/v1-pro-image-to-video", {"image_url": IMAGE}, id="bytedance"),
        pytest.param("hailuo/2-3-image-to-video-standard", {"image_url": IMAGE}, id="hailuo"),
        pytest.param("kling-2.6/image-to-video", {"sound": False, "duration": "5"}, id="kling"),
        pytest.param("wan/2-6-image-to-video", {"duration": "15"}, id="wan"),
    ],
)
def test_every_model_takes_what_it_documents(
    account: Account, model: str, given: dict[str, Any]
) -> None:
    assert account.create(model=model, **given)["code"] == 200


@pytest.mark.parametrize("path", [CREATE, LINK])
@pytest.mark.parametrize("sent", ["", "Bearer wrong"])
def test_a_wrong_key_is_a_401_in_a_200(account: Account, path: str, sent: str) -> None:
    response = account.call("POST", path, json={}, headers={"Authorization": sent})

    assert (response.status_code, response.json()["code"]) == (200, 401)


@pytest.mark.parametrize(
    ("params", "code", "said"),
    [
        pytest.param({}, 400, "taskId parameter is required", id="missing"),
        pytest.param({"taskId": "nobody's"}, 422, "recordInfo is null", id="unknown"),
    ],
)
def test_a_question_about_nothing(
    account: Account, params: dict[str, str], code: int, said: str
) -> None:
    answer = account.call("GET", LOOK, params=params).json()

    assert answer == {"code": code, "msg": said, "data": None}


def test_a_paused_model_is_paused_until_it_is_not(account: Account) -> None:
    account.control("settings", {"paused": [MODEL]})
    paused = account.create()
    account.control("settings", {"paused": []})

    assert (paused["code"], paused["msg"]) == (500, "This interface is temporarily paused")
    assert account.create()["code"] == 200


@pytest.mark.parametrize("code", [402, 500])
def test_credits_are_spent_and_run_out(open_account: Any, code: int) -> None:
    account = open_account(credits=65.0, cost=30.0, short_as=code)
    account.created()
    account.created()
    refused = account.create()
    balance = account.call("GET", "/api/v1/chat/credit").json()
    account.control("settings", {"credits": 30})

    assert refused["code"] == code
    assert refused["msg"].startswith("Credits insufficient")
    assert balance == {"code": 200, "msg": "success", "data": 5.0}
    assert account.create()["code"] == 200
    assert account.control("summary")["spent"] == 90.0


def test_the_account_takes_twenty_tasks_in_ten_seconds(open_account: Any) -> None:
    account = open_account(create_limit=20)
    body = {"model": MODEL, "input": {"prompt": "p", "image_urls": [IMAGE]}}
    statuses = [account.call("POST", CREATE, json=body).status_code for _ in range(22)]
    account.now += 10
    again = account.call("POST", CREATE, json=body)
    summary = account.control("summary")

    assert statuses == [200] * 20 + [429] * 2
    assert again.json()["code"] == 200
    assert (summary["creates"], summary["limit_answers"]) == (21, {"createTask": 2})
    assert summary["max_creates"] == 20


def test_a_key_may_ask_ten_questions_a_second(open_account: Any) -> None:
    account = open_account(query_limit=10)
    task_id = account.created()
    codes = [account.look(task_id)["code"] for _ in range(11)]
    account.now += 1

    assert codes == [200] * 10 + [429]
    assert account.look(task_id)["code"] == 200


# -- plans


def test_a_planned_failure_has_a_code_and_a_message(account: Account) -> None:
    said = "We currently do not support uploads of images containing photorealistic people."
    account.plan(about="people", fail_code="422", fail_message=said)
    task_id = account.created(prompt="people at a table")
    account.after(DURATION)
    record = account.look(task_id)["data"]

    assert (record["state"], record["failCode"], record["failMsg"]) == ("fail", "422", said)
    assert record["resultJson"] is None


@pytest.mark.parametrize(
    "about",
    [
        pytest.param("cup that", id="prompt"),
        pytest.param("photo.jpg", id="picture"),
        pytest.param("kie/g-1", id="callback"),
    ],
)
def test_a_plan_knows_its_task_by(account: Account, about: str) -> None:
    account.plan(about=about, fail_message="Timeout", times=3)
    account.plan(about="somebody else's", fail_message="Timeout")
    account.created(CALLBACK)
    account.created(CALLBACK)

    assert account.control("plans")["used"] == {about: 2}


def test_a_plan_is_used_as_often_as_it_says(account: Account) -> None:
    account.plan(about="cup", fail_message="Timeout", times=2)
    for _ in range(3):
        account.created()
    account.now += DURATION

    assert account.control("summary")["states"] == {"fail": 2, "success": 1}


def test_plans_can_be_left_to_chance(account: Account) -> None:
    account.plan(probability=0.3, fail_message="Timeout")
    for _ in range(200):
        account.created()

    assert 30 < account.control("plans")["used"][""] < 90


def test_a_plan_sets_the_time_and_a_state_that_nobody_knows(account: Account) -> None:
    account.plan(duration=7, state="dreaming")
    task_id = account.created()
    before = account.look(task_id)["data"]["state"]
    account.now += 7

    assert before == "dreaming"
    assert account.look(task_id)["data"]["state"] == "success"


def test_dropped_plans_are_forgotten(account: Account) -> None:
    account.plan(fail_message="Timeout")
    account.call("DELETE", "/_sandbox/plans")
    account.created()
    account.now += DURATION

    assert account.control("summary")["states"] == {"success": 1}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        pytest.param("plans", [{"fail_cod": "422"}], id="plan"),
        pytest.param("plans", [{"file": "broken"}], id="file"),
        pytest.param("settings", {"credit": 5}, id="setting"),
    ],
)
def test_a_misspelt_order_is_refused(account: Account, name: str, order: Any) -> None:
    assert account.call("POST", f"/_sandbox/{name}", json=order).status_code == 422


# -- files


def boxes(data: bytes) -> dict[str, bytes]:
    """The boxes of one level of an MP4 file, by kind; they must fill it exactly."""
    found, at = {}, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        assert 8 <= size <= len(data) - at
        found[kind.decode()] = data[at + 8 : at + size]
        at += size
    return found


def test_the_result_is_an_mp4_with_one_picture_in_a_video_track(account: Account) -> None:
    response = account.call("GET", account.finished())
    whole = response.content
    outer = boxes(whole)
    track = boxes(boxes(outer["moov"])["trak"])
    media = boxes(track["mdia"])
    table = boxes(boxes(media["minf"])["stbl"])
    (offset,) = struct.unpack(">I", table["stco"][8:])
    (size,) = struct.unpack(">I", table["stsz"][12:])

    assert response.headers["content-type"] == "video/mp4"
    assert list(outer) == ["ftyp", "free", "moov", "mdat"]
    assert media["hdlr"][8:12] == b"vide"
    assert table["stsd"][12:16] == b"avc1"
    assert whole[offset : offset + size] == outer["mdat"]
    # One unit of H.264, as long as its own head says: a picture that needs no other (type 5).
    assert struct.unpack(">I", outer["mdat"][:4]) == (size - 4,)
    assert outer["mdat"][4] & 31 == 5


def test_every_task_has_a_video_of_its_own(account: Account) -> None:
    first, second = account.finished(), account.finished()

    assert account.call("GET", first).content == account.call("GET", first).content
    assert account.call("GET", first).content != account.call("GET", second).content


@pytest.mark.parametrize(
    ("file", "kind", "length"),
    [
        pytest.param("ok", "video/mp4", len(mp4.video("0" * 32)), id="ok"),
        pytest.param("truncated", "video/mp4", len(mp4.video("0" * 32)) // 2, id="truncated"),
        pytest.param("empty", "video/mp4", 0, id="empty"),
        pytest.param("html", "text/html; charset=utf-8", None, id="html"),
    ],
)
def test_what_is_in_a_file_can_be_planned(
    account: Account, file: str, kind: str, length: int | None
) -> None:
    account.plan(file=file)
    response = account.call("GET", account.finished())

    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert length in (None, len(response.content))
    assert int(response.headers["content-length"]) == len(response.content)


def test_a_huge_file_has_the_length_it_says_and_the_right_boxes() -> None:
    length, pieces = mp4.huge_video("task", padding=200_000)
    whole = b"".join(pieces)

    assert len(whole) == length
    assert list(boxes(whole)) == ["ftyp", "free", "moov", "mdat"]
    assert mp4.HUGE > 50_000_000


def test_there_is_no_file_before_its_time(account: Account) -> None:
    first = account.finished()
    account.plan(fail_message="Timeout")
    unfinished, failed = account.created(), account.created()

    assert account.call("GET", first).status_code == 200
    assert account.call("GET", "/files/0123.mp4").status_code == 404
    for task_id in (unfinished, failed):
        assert account.look(task_id)["data"]["resultJson"] is None


@pytest.mark.parametrize("status", [403, 404])
def test_a_result_expires(open_account: Any, status: int) -> None:
    account = open_account(result_life=86_400.0, expired_status=status)
    url = account.finished()
    account.now += 86_399
    just = account.call("GET", url).status_code
    account.now += 1

    assert (just, account.call("GET", url).status_code) == (200, status)


def test_a_planned_result_has_expired_at_once_and_a_fresh_link_helps(account: Account) -> None:
    account.plan(expired=True)
    url = account.finished()
    expired = account.call("GET", url).status_code
    fresh = account.call("POST", LINK, json={"url": url}).json()
    served = account.call("GET", fresh["data"])
    account.now += 1_200
    later = account.call("GET", fresh["data"]).status_code

    assert (expired, served.status_code, later) == (403, 200, 403)
    assert "mdat" in boxes(served.content)


def test_a_fresh_link_can_be_refused(account: Account) -> None:
    account.plan(expired=True, fresh_link=False)
    url = account.finished()
    refused = account.call("POST", LINK, json={"url": url}).json()
    foreign = account.call("POST", LINK, json={"url": IMAGE}).json()

    assert (refused["code"], foreign["code"]) == (422, 422)


# -- callbacks


def test_a_callback_says_what_a_question_would(account: Account) -> None:
    task_id = account.created(CALLBACK)
    account.after(DURATION)
    (request,) = account.heard

    assert str(request.url) == CALLBACK
    assert json.loads(request.content) == {
        "code": 200,
        "msg": "Playground task completed successfully.",
        "data": account.look(task_id)["data"],
    }
    assert "x-webhook-signature" not in request.headers


def test_a_failure_is_called_back_with_501(account: Account) -> None:
    account.plan(fail_code="500", fail_message="Internal Error, Please try again later.")
    account.created(CALLBACK)
    account.after(DURATION)
    body = json.loads(account.heard[0].content)

    assert (body["code"], body["data"]["state"], body["data"]["failCode"]) == (501, "fail", "500")


def test_nothing_is_called_before_its_time_or_without_an_address(account: Account) -> None:
    account.created(CALLBACK)
    account.created()
    account.after(DURATION - 1)
    early = len(account.heard)
    account.after(1)

    assert (early, len(account.heard)) == (0, 1)


@pytest.mark.parametrize(
    ("plan", "genuine"),
    [
        pytest.param("once", True, id="right"),
        pytest.param("wrong_signature", False, id="wrong"),
    ],
)
def test_callbacks_are_signed_where_a_key_is_set(
    open_account: Any, plan: str, genuine: bool
) -> None:
    account = open_account(hmac_key="key-1")
    account.plan(callback=plan)
    task_id = account.created(CALLBACK)
    account.after(DURATION)
    headers = account.heard[0].headers
    signed = f"{task_id}.{int(BEGIN + DURATION)}".encode()
    expected = base64.b64encode(hmac.new(b"key-1", signed, hashlib.sha256).digest()).decode()

    assert headers["x-webhook-timestamp"] == str(int(BEGIN + DURATION))
    assert (headers["x-webhook-signature"] == expected) is genuine


@pytest.mark.parametrize(
    ("plan", "heard"),
    [
        pytest.param("none", [0, 0, 0], id="none"),
        pytest.param("once", [1, 1, 1], id="once"),
        pytest.param("twice", [1, 2, 2], id="twice"),
        pytest.param("late", [0, 0, 1], id="late"),
    ],
)
def test_how_often_and_when_it_calls_can_be_planned(
    account: Account, plan: str, heard: list[int]
) -> None:
    account.plan(callback=plan)
    account.created(CALLBACK)
    seen = []
    for pause in (DURATION, 2, 20):
        account.after(pause)
        seen.append(len(account.heard))

    assert seen == heard


def test_of_one_task_nothing_is_called_twice_at_the_same_time(account: Account) -> None:
    account.plan(callback="twice")
    account.created(CALLBACK)
    account.after(DURATION + 60)
    account.after(60)

    assert (len(account.heard), account.most_at_once) == (2, 1)


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        pytest.param(202, {"sent": 1, "answered": 1, "failed": 0}, id="taken"),
        pytest.param(500, {"sent": 1, "answered": 0, "failed": 1}, id="refused"),
        pytest.param(0, {"sent": 1, "answered": 0, "failed": 1}, id="nobody-there"),
    ],
)
def test_answers_are_counted_and_nothing_is_tried_again(
    account: Account, status: int, counts: dict[str, int]
) -> None:
    account.handler_status = status
    account.created(CALLBACK)
    account.after(DURATION)
    account.after(3600)

    assert account.control("summary")["callbacks"] == counts | {"waiting": 0, "flying": 0}
    assert account.control("tasks")[0]["callbacks"] == [status]


# -- faults, the journal, the summary


@pytest.mark.parametrize(
    ("fault", "creates"),
    [
        pytest.param({"kind": "lost_answer"}, 1, id="lost-answer"),
        pytest.param({"kind": "refuse"}, 0, id="refuse"),
    ],
)
def test_a_create_without_an_answer(account: Account, fault: dict[str, Any], creates: int) -> None:
    account.control("faults", [fault | {"method": "createTask", "about": "g-1"}])
    with pytest.raises(httpx.ReadError):
        account.create(CALLBACK)
    summary = account.control("summary")
    (entry,) = account.control("journal")

    assert (summary["creates"], summary["spent"]) == (creates, creates * 30.0)
    assert (bool(entry["effect"]), entry["answered"]) == (bool(creates), False)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        pytest.param({"kind": "status", "status": 502}, 502, None, id="status"),
        pytest.param({"kind": "non_json"}, 200, None, id="non-json"),
        pytest.param({"kind": "error", "code": "455"}, 200, 455, id="error"),
        pytest.param({"kind": "error"}, 200, 500, id="error-by-default"),
        pytest.param({"kind": "error", "code": "429"}, 429, 429, id="limit"),
        pytest.param({"kind": "error", "code": "500", "status": 503}, 503, 500, id="both"),
    ],
)
@pytest.mark.parametrize("method", ["createTask", "recordInfo", "credit", "download-url"])
def test_every_call_can_go_wrong(
    account: Account, method: str, fault: dict[str, Any], status: int, code: int | None
) -> None:
    paths = {
        "createTask": ("POST", CREATE),
        "recordInfo": ("GET", LOOK),
        "credit": ("GET", "/api/v1/chat/credit"),
        "download-url": ("POST", LINK),
    }
    account.control("faults", [fault | {"method": method}])
    response = account.call(*paths[method])
    page = response.headers["content-type"].startswith("text/html")

    assert (response.status_code, None if page else response.json()["code"]) == (status, code)


def test_a_download_can_go_wrong(account: Account) -> None:
    url = account.finished(CALLBACK)
    account.control("faults", [{"kind": "status", "method": "download", "about": "g-1"}])

    assert account.call("GET", url).status_code == 500
    assert account.call("GET", url).status_code == 200


def test_slow_takes_the_time_it_says(account: Account) -> None:
    account.control("faults", [{"kind": "slow", "seconds": 40, "after": True}])
    account.create()

    assert account.now == BEGIN + 40


def test_the_journal_tells_every_call_and_what_it_was_about(account: Account) -> None:
    task_id = account.created(CALLBACK)
    account.after(DURATION)
    url = json.loads(account.look(task_id)["data"]["resultJson"])["resultUrls"][0]
    account.call("GET", url)
    account.create(image_urls=None)
    entries = account.control("journal")
    known = {"order": "g-1", "task": task_id}

    assert entries[0]["about"] == known | {"prompt": "a cup that turns", "image": IMAGE}
    assert [entry["about"] for entry in entries[1:3]] == [known, known]
    assert [(entry["method"], entry["effect"], entry["error"]) for entry in entries] == [
        ("createTask", f"task {task_id} created", None),
        ("recordInfo", "", None),
        ("download", "file sent", None),
        ("createTask", "", "500"),
    ]
    assert all(entry["answered"] for entry in entries)


def test_the_summary_counts_everything(account: Account) -> None:
    account.plan(about="first", fail_message="Timeout")
    account.created(CALLBACK, prompt="first")
    account.after(DURATION)
    account.call("GET", account.finished(CALLBACK))
    account.created("https://jobs.example/webhooks/kie/g-2")
    account.create(model="sora-3")

    assert account.control("summary") == {
        "requests": 6,
        "creates": 3,
        "states": {"fail": 1, "success": 1, "waiting": 1},
        "queries": 1,
        "downloads": 1,
        "expired": 0,
        "links": 0,
        "credits": 999_910.0,
        "spent": 90.0,
        "errors": {"500": 1},
        "limit_answers": {},
        "max_creates": 2,
        "max_queries": 1,
        "callbacks": {"sent": 2, "answered": 2, "failed": 0, "waiting": 1, "flying": 0},
        "creates_by_callback": {"g-1": 2, "g-2": 1},
        "duplicates": [],
        "plans_used": {"first": 1},
        "by_method": {"createTask": 4, "recordInfo": 1, "download": 1},
        "by_status": {"200": 6},
        "faults_fired": {},
    }


def test_two_tasks_for_one_order_are_a_double_unless_one_has_failed(account: Account) -> None:
    account.created(CALLBACK)
    account.created(CALLBACK)
    account.created()
    account.created()

    assert account.control("summary")["duplicates"] == [["g-1", 2]]


def test_tasks_can_be_looked_for(account: Account) -> None:
    account.created(CALLBACK)
    account.created(prompt="a spoon")

    tasks = account.call("GET", "/_sandbox/tasks?about=g-1").json()
    assert [(task["order"], task["state"]) for task in tasks] == [("g-1", "waiting")]


def test_reset_brings_back_the_start(account: Account) -> None:
    account.created()
    account.plan(fail_message="Timeout")
    account.control("faults", [{"kind": "refuse"}])
    account.control("settings", {"credits": 0, "paused": [MODEL]})
    account.control("reset", {})
    account.finished()
    summary = account.control("summary")

    assert (summary["states"], summary["spent"], summary["requests"]) == ({"success": 1}, 30.0, 2)
    assert len(account.control("journal")) == 2


def test_a_reset_calls_nobody(account: Account) -> None:
    account.created(CALLBACK)
    account.control("reset", {})
    account.after(DURATION)

    assert account.heard == []


# -- over a real connection


@pytest.fixture
def site() -> Iterator[httpx.Client]:
    """A studio behind a socket of its own, in a thread."""
    server, listener = create_server(Studio(StudioSettings(duration=0.0, spread=0.0)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer sandbox"}) as client:
        yield client
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def finished_at(site: httpx.Client, **plan: Any) -> str:
    site.post("/_sandbox/plans", json=[plan])
    body = {"model": MODEL, "input": {"prompt": "p", "image_urls": [IMAGE]}}
    task_id = site.post(CREATE, json=body).json()["data"]["taskId"]
    record = site.get(LOOK, params={"taskId": task_id}).json()["data"]
    return json.loads(record["resultJson"])["resultUrls"][0]


def test_a_file_can_end_halfway(site: httpx.Client) -> None:
    got: list[bytes] = []
    with site.stream("GET", finished_at(site, file="cut")) as response:
        length = int(response.headers["content-length"])
        with pytest.raises(httpx.RemoteProtocolError):
            got.extend(response.iter_raw())

    assert sum(map(len, got)) == length // 2
    assert site.get("/_sandbox/journal").json()[-1]["answered"] is False


def test_a_huge_file_is_sent_while_it_is_read(site: httpx.Client) -> None:
    with site.stream("GET", finished_at(site, file="huge")) as response:
        first = next(response.iter_raw())

    assert int(response.headers["content-length"]) > 50_000_000
    assert first[4:8] == b"ftyp"
