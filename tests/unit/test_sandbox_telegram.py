"""The simulated Bot API: its answers, limits and faults, and what has really been delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.bot import Bot, BotSettings
from sandbox.bot_refusals import ROWS
from sandbox.telegram import create_app

TOKEN = "100200300:sandbox"
MP4 = b"\0\0\0\x18ftypmp42" + b"\0" * 88
LINK = "https://files.example/v.mp4"
TARGET = "https://api.example/webhooks/telegram"
RETRY = {"inline_keyboard": [[{"text": "Retry", "callback_data": "retry:o-1"}]]}
UNLIMITED = {"rate": 0, "chat_rate": 0, "group_rate": 0}


def mp4_behind_the_link(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "video/mp4"}, content=MP4)


class Site:
    """A bot's server without a socket, at a clock that stands until it is moved."""

    def __init__(self, outside: Callable[[httpx.Request], Any], **settings: Any) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.bot = Bot(
            BotSettings(token=TOKEN, **settings),
            clock=lambda: self.now,
            sleep=self._pause,
            transport=httpx.MockTransport(outside),
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def request(self, verb: str, path: str, **content: Any) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(self.bot))
        async with httpx.AsyncClient(transport=transport, base_url="http://telegram") as client:
            return await client.request(verb, path, **content)

    def call(self, method: str, token: str = TOKEN, **params: Any) -> httpx.Response:
        return asyncio.run(self.request("POST", f"/bot{token}/{method}", json=params))

    def text(self, chat_id: Any = 5, text: str = "hello", **params: Any) -> httpx.Response:
        return self.call("sendMessage", chat_id=chat_id, text=text, **params)

    def video(self, chat_id: Any = 5, video: str = LINK, **params: Any) -> httpx.Response:
        return self.call("sendVideo", chat_id=chat_id, video=video, **params)

    def upload(self, content: bytes = MP4, name: str = "video", **params: Any) -> httpx.Response:
        data = {"chat_id": "5", **params}
        files = {name: ("v.mp4", content, "video/mp4")}
        return asyncio.run(self.request("POST", f"/bot{TOKEN}/sendVideo", data=data, files=files))

    def control(self, name: str, orders: Any = None) -> Any:
        verb = "GET" if orders is None else "POST"
        return asyncio.run(self.request(verb, f"/_sandbox/{name}", json=orders)).json()

    def arm(self, **fault: Any) -> None:
        self.control("faults", [fault])

    @property
    def sent(self) -> list[tuple[str, str]]:
        return [(message["kind"], message["text"]) for message in self.control("messages")]


@pytest.fixture
def site() -> Site:
    return Site(mp4_behind_the_link)


def error(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert body["ok"] is False
    assert body["error_code"] == response.status_code
    return response.status_code, body["description"]


def row(response: httpx.Response) -> str:
    seen = error(response)
    return next(name for name, known in ROWS.items() if known == seen)


def test_a_sent_message_comes_back_as_the_chat_has_it(site: Site) -> None:
    assert site.text(reply_markup=RETRY).json() == {
        "ok": True,
        "result": {
            "message_id": 1,
            "from": {
                "id": 100200300,
                "is_bot": True,
                "first_name": "Sandbox",
                "username": "sandbox_bot",
            },
            "chat": {"id": 5, "first_name": "Sandbox", "type": "private"},
            "date": 1000,
            "text": "hello",
            "reply_markup": RETRY,
        },
    }


@pytest.mark.parametrize(
    ("verb", "content"),
    [
        pytest.param(
            "POST", {"json": {"chat_id": 5, "text": "x", "reply_markup": RETRY}}, id="json"
        ),
        pytest.param(
            "POST",
            {"json": {"chat_id": "5", "text": "x", "reply_markup": json.dumps(RETRY)}},
            id="json-of-strings",
        ),
        pytest.param(
            "POST",
            {"data": {"chat_id": "5", "text": "x", "reply_markup": json.dumps(RETRY)}},
            id="form",
        ),
        pytest.param(
            "POST",
            {
                "data": {"chat_id": "5", "text": "x", "reply_markup": json.dumps(RETRY)},
                "files": {"unused": b""},
            },
            id="multipart",
        ),
        pytest.param(
            "GET",
            {"params": {"chat_id": "5", "text": "x", "reply_markup": json.dumps(RETRY)}},
            id="query",
        ),
    ],
)
def test_parameters_come_in_any_form(site: Site, verb: str, content: dict[str, Any]) -> None:
    answer = asyncio.run(site.request(verb, f"/bot{TOKEN}/sendmessage", **content)).json()

    assert answer["result"]["chat"]["id"] == 5
    assert answer["result"]["reply_markup"] == RETRY


def test_a_video_is_uploaded_once_and_sent_again_by_its_id(site: Site) -> None:
    first = site.upload(caption="yours", duration="15", reply_markup=json.dumps(RETRY)).json()
    video = first["result"]["video"]
    again = site.video(chat_id=6, video=video["file_id"]).json()["result"]

    assert first["result"]["caption"] == "yours"
    assert (video["duration"], video["width"], video["height"]) == (15, 1280, 720)
    assert video["file_size"] == len(MP4)
    assert again["video"] == video
    assert "caption" not in again


def test_a_part_of_the_body_is_found_by_its_name(site: Site) -> None:
    assert site.upload(name="part", video="attach://part").status_code == 200


def test_what_is_no_mp4_arrives_as_a_document(site: Site) -> None:
    result = site.upload(b"<html>").json()["result"]

    assert "video" not in result
    assert result["document"]["file_size"] == 6
    assert site.control("summary")["videos"] == 0


@pytest.mark.parametrize(
    ("behind", "url", "seen"),
    [
        pytest.param((200, "video/mp4", MP4), LINK, "", id="mp4"),
        pytest.param((403, "video/mp4", MP4), LINK, "url_failed", id="expired"),
        pytest.param((200, "text/html", MP4), LINK, "wrong_page_type", id="type"),
        pytest.param((200, "video/mp4", b"<html>"), LINK, "wrong_page_type", id="content"),
        pytest.param((200, "video/mp4", MP4 + b"\0"), LINK, "wrong_file", id="too-big"),
        pytest.param(httpx.ConnectError("down"), LINK, "url_failed", id="down"),
        pytest.param((200, "video/mp4", MP4), "http://", "wrong_url", id="no-host"),
        pytest.param((200, "video/mp4", MP4), "http://[::1/v", "wrong_url", id="no-url"),
    ],
)
def test_a_link_is_followed(behind: Any, url: str, seen: str) -> None:
    def outside(_: httpx.Request) -> httpx.Response:
        if isinstance(behind, Exception):
            raise behind
        status, kind, content = behind
        return httpx.Response(status, headers={"Content-Type": kind}, content=content)

    site = Site(outside, url_limit=len(MP4))
    response = site.video(video=url)

    assert (row(response) if seen else response.status_code) == (seen or 200)
    assert len(site.sent) == (not seen)


@pytest.mark.parametrize(
    ("content", "params", "seen"),
    [
        pytest.param(MP4, {}, "", id="as-big-as-allowed"),
        pytest.param(MP4 + b"\0", {}, "too_large", id="too-big"),
        pytest.param(b"", {}, "file_empty", id="empty"),
        pytest.param(MP4, {"video": "attach://other"}, "no_video", id="other-part"),
        pytest.param(MP4, {"caption": "x" * 1025}, "caption_too_long", id="caption"),
    ],
)
def test_an_upload_is_checked(content: bytes, params: dict[str, str], seen: str) -> None:
    site = Site(mp4_behind_the_link, upload_limit=len(MP4))
    response = site.upload(content, **params)

    assert (row(response) if seen else response.status_code) == (seen or 200)


def keyboard(**button: Any) -> dict[str, Any]:
    return {"reply_markup": {"inline_keyboard": [[button]]}}


@pytest.mark.parametrize(
    ("method", "params", "seen"),
    [
        pytest.param("sendMessage", {"text": "x"}, "chat_id_empty", id="no-chat"),
        pytest.param("sendMessage", {"chat_id": "@name", "text": "x"}, "not_found", id="name"),
        pytest.param("sendMessage", {"chat_id": 0, "text": "x"}, "not_found", id="chat-zero"),
        pytest.param("sendMessage", {"chat_id": 5}, "text_empty", id="no-text"),
        pytest.param("sendMessage", {"chat_id": 5, "text": None}, "text_empty", id="null-text"),
        pytest.param("sendMessage", {"chat_id": 5, "text": " \n"}, "text_empty", id="blank-text"),
        pytest.param(
            "sendMessage", {"chat_id": 5, "text": "x" * 4097}, "text_too_long", id="long-text"
        ),
        pytest.param("sendVideo", {"chat_id": 5}, "no_video", id="no-video"),
        pytest.param("sendVideo", {"chat_id": 5, "video": "AgAD"}, "wrong_file_id", id="file-id"),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", **keyboard(text="T", callback_data="я" * 33)},
            "button_data_invalid",
            id="data-of-66-bytes",
        ),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", **keyboard(text="T", callback_data="")},
            "button_data_invalid",
            id="empty-data",
        ),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", **keyboard(text="T", url="example")},
            "button_url_invalid",
            id="button-url",
        ),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", **keyboard(text="T")},
            "text_button",
            id="inert",
        ),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", **keyboard(callback_data="d")},
            "bad_button",
            id="no-label",
        ),
        pytest.param(
            "sendMessage", {"chat_id": 5, "text": "x", "reply_markup": "{"}, "bad_markup", id="json"
        ),
        pytest.param(
            "sendMessage",
            {"chat_id": 5, "text": "x", "reply_markup": []},
            "markup_not_object",
            id="list",
        ),
        pytest.param("setWebhook", {"url": TARGET, "secret_token": "ü"}, "bad_secret", id="secret"),
        pytest.param("sendPhoto", {"chat_id": 5}, "unknown_method", id="method"),
    ],
)
def test_a_wrong_call_is_refused(
    site: Site, method: str, params: dict[str, Any], seen: str
) -> None:
    assert row(site.call(method, **params)) == seen
    assert site.sent == []
    assert site.control("summary")["refusals"] == {seen: 1}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        pytest.param("sendMessage", {"text": "x" * 4096}, id="text"),
        pytest.param("sendVideo", {"video": LINK, "caption": "x" * 1024}, id="caption"),
        pytest.param(
            "sendMessage", {"text": "x", **keyboard(text="T", callback_data="я" * 32)}, id="data"
        ),
        pytest.param(
            "sendMessage", {"text": "x", "reply_markup": {"force_reply": True}}, id="other"
        ),
    ],
)
def test_the_longest_allowed_goes_through(site: Site, method: str, params: dict[str, Any]) -> None:
    assert site.call(method, chat_id=5, **params).status_code == 200


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        pytest.param("/bot100200300:other/getMe", (401, "Unauthorized"), id="wrong-token"),
        pytest.param("/botsandbox/getMe", (404, "Not Found"), id="malformed-token"),
        pytest.param("/getMe", (404, "Not Found"), id="no-token"),
        pytest.param(f"/bot{TOKEN}/close", (404, "Not Found: method not found"), id="method"),
    ],
)
def test_only_the_bot_itself_gets_in(site: Site, path: str, seen: tuple[int, str]) -> None:
    assert error(asyncio.run(site.request("GET", path))) == seen


@pytest.mark.parametrize("body", ["{", "[]", '"x"'])
def test_a_body_that_is_no_json_object_is_refused(site: Site, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    path = f"/bot{TOKEN}/sendMessage?chat_id=5&text=x"

    assert row(asyncio.run(site.request("POST", path, content=body, headers=headers))) == "bad_json"


def test_get_me_says_who_the_bot_is(site: Site) -> None:
    assert site.call("getMe").json()["result"]["username"] == "sandbox_bot"


def paced(site: Site, *chats: int) -> list[int]:
    """Send to *chats* in a moment; 0 for what went through, or the seconds asked for."""
    answers = [site.text(chat_id) for chat_id in chats]
    for answer in answers:
        if answer.status_code == 429:
            wait = answer.json()["parameters"]["retry_after"]
            assert error(answer)[1] == f"Too Many Requests: retry after {wait}"
            assert answer.headers["Retry-After"] == str(wait)
    return [int(answer.headers.get("Retry-After", 0)) for answer in answers]


def test_a_chat_takes_a_burst_and_then_one_a_second(site: Site) -> None:
    first = paced(site, 5, 5, 5, 5, 6)
    site.now += 1
    second = paced(site, 5, 5)

    assert (first, second) == ([0, 0, 1, 1, 0], [0, 1])
    assert site.control("summary")["limit_answers_by_chat"] == {"5": 3}
    assert site.control("chats")["5"] == {"text": 3, "limit_answers": 3}


def test_all_chats_together_have_a_limit() -> None:
    site = Site(mp4_behind_the_link, rate=2, burst=4)
    first = paced(site, 1, 2, 3, 4, 5)
    site.now += 0.5
    second = paced(site, 5, 6)

    assert (first, second) == ([0, 0, 0, 0, 1], [0, 1])
    assert site.control("summary")["limit_answers_by_limit"] == {"all": 2, "chat": 0, "group": 0}


def test_a_group_has_a_limit_a_minute_besides() -> None:
    site = Site(mp4_behind_the_link, chat_rate=0)
    first = paced(site, *[-5] * 21)
    site.now += 3

    assert first == [0] * 20 + [3]
    assert paced(site, -5, -5, 5) == [0, 3, 0]
    assert site.control("summary")["limit_answers_by_limit"] == {"all": 0, "chat": 0, "group": 2}


def test_a_pace_at_the_rate_is_never_refused_by_the_clock_of_today() -> None:
    site = Site(mp4_behind_the_link, rate=28, burst=1, chat_rate=0)
    waits = []
    for n in range(60):
        site.now = 1_800_000_000 + n / 28
        waits += paced(site, 5)

    assert waits == [0] * 60


def test_a_refused_call_counts_for_no_limit(site: Site) -> None:
    assert [site.text(text="").status_code for _ in range(5)] == [400] * 5
    assert paced(site, 5, 5) == [0, 0]


@pytest.mark.parametrize(
    ("state", "status"),
    [
        pytest.param("blocked", 403, id="blocked"),
        pytest.param("deactivated", 403, id="deactivated"),
        pytest.param("not_started", 403, id="not-started"),
        pytest.param("kicked", 403, id="kicked"),
        pytest.param("not_a_member", 403, id="not-a-member"),
        pytest.param("group_deleted", 403, id="group-deleted"),
        pytest.param("is_a_bot", 403, id="bot"),
        pytest.param("not_found", 400, id="not-found"),
        pytest.param("no_rights", 400, id="no-rights"),
        pytest.param("no_write_access", 400, id="no-write-access"),
    ],
)
def test_a_chat_can_be_out_of_reach(site: Site, state: str, status: int) -> None:
    site.control("chats", [{"chat_id": "5", "state": state}])
    response = site.video()

    assert (response.status_code, row(response)) == (status, state)
    assert site.text(chat_id=6).status_code == 200
    site.control("chats", [{"chat_id": "5", "state": "ok"}])
    assert site.text().status_code == 200


def test_a_migrated_group_says_where_it_is(site: Site) -> None:
    site.control("chats", [{"chat_id": -5, "state": "migrated", "migrate_to": -1005}])
    response = site.text(chat_id=-5)

    assert row(response) == "migrated"
    assert response.json()["parameters"] == {"migrate_to_chat_id": -1005}
    assert site.text(chat_id=-1005).json()["result"]["chat"]["type"] == "supergroup"


@pytest.mark.parametrize("name", ROWS)
def test_every_row_can_be_scripted(site: Site, name: str) -> None:
    site.arm(kind="error", code=name)

    assert error(site.text()) == ROWS[name]
    assert site.control("journal")[0]["error"] == name


@pytest.mark.parametrize(
    ("fault", "seen", "sent"),
    [
        pytest.param({"kind": "error", "code": "url_failed"}, 400, 0, id="row"),
        pytest.param({"kind": "error", "code": "restart", "after": True}, 500, 1, id="row-after"),
        pytest.param({"kind": "error", "code": "immediately_deleted"}, 500, 1, id="deleted"),
        pytest.param({"kind": "non_json", "status": 502}, 502, 0, id="non-json"),
        pytest.param({"kind": "status", "status": 504, "after": True}, 504, 1, id="page-after"),
        pytest.param({"kind": "lost_answer"}, httpx.ReadError, 1, id="lost"),
        pytest.param({"kind": "lost_answer", "drop": "hang"}, httpx.ReadTimeout, 1, id="hang"),
        pytest.param({"kind": "refuse"}, httpx.ReadError, 0, id="refuse"),
        pytest.param({"kind": "slow", "seconds": 9}, 200, 1, id="slow"),
    ],
)
def test_what_is_seen_and_what_happens(site: Site, fault: Any, seen: Any, sent: int) -> None:
    site.arm(**fault)
    if isinstance(seen, int):
        assert site.video().status_code == seen
    else:
        with pytest.raises(seen):
            site.video()

    assert len(site.sent) == sent
    assert site.pauses == ([9] if fault["kind"] == "slow" else [])
    assert site.video().status_code == 200


def test_a_message_that_was_deleted_at_once_is_marked(site: Site) -> None:
    site.arm(kind="error", code="immediately_deleted")
    site.text()
    site.text()

    assert [message["deleted"] for message in site.control("messages")] == [True, False]
    assert site.control("summary")["deleted"] == 1
    assert site.control("journal")[0]["effect"] == "text 1 sent and deleted"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"code": "too_many_requests", "seconds": 7}, id="row"),
        pytest.param({"status": 429, "description": "Too Many Requests: retry after 7"}, id="text"),
    ],
)
def test_a_scripted_limit_says_its_seconds_three_times(site: Site, fault: dict[str, Any]) -> None:
    site.arm(kind="error", **fault)

    assert paced(site, 5) == [7]


def test_an_error_can_have_any_status_and_text(site: Site) -> None:
    site.arm(kind="error", status=420, description="FROZEN_METHOD_INVALID")
    site.arm(kind="error", code="PEER_ID_INVALID")

    assert error(site.text()) == (420, "FROZEN_METHOD_INVALID")
    assert error(site.text()) == (400, "Bad Request: PEER_ID_INVALID")


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        pytest.param({"method": "sendVideo"}, True, id="method"),
        pytest.param({"method": "sendMessage"}, False, id="another-method"),
        pytest.param({"about": "5"}, True, id="chat"),
        pytest.param({"about": "order 17"}, True, id="caption"),
        pytest.param({"about": "order 18"}, False, id="another-caption"),
    ],
)
def test_a_fault_hits_what_it_matches(site: Site, rule: dict[str, Any], hit: bool) -> None:
    site.arm(kind="error", code="restart", **rule)

    assert (site.video(caption="your order 17").status_code == 500) == hit


class Webhook:
    """The API that is pressed: answers each press through the Bot API, if it is told to."""

    def __init__(self, status: int = 202, answer: str = "") -> None:
        self.status = status
        self.text = answer
        self.got: list[httpx.Request] = []
        self.site = Site(self.take, webhook_target=TARGET, secret="s-1", **UNLIMITED)

    @property
    def presses(self) -> list[dict[str, Any]]:
        return [json.loads(request.content)["callback_query"] for request in self.got]

    async def take(self, request: httpx.Request) -> httpx.Response:
        self.got.append(request)
        if not self.status:
            raise httpx.ConnectError("down", request=request)
        if self.text:
            params = {"callback_query_id": self.presses[-1]["id"], "text": self.text}
            await self.site.request("POST", f"/bot{TOKEN}/answerCallbackQuery", json=params)
        return httpx.Response(self.status)


def test_a_press_arrives_as_an_update() -> None:
    webhook = Webhook()
    message = webhook.site.text(reply_markup=RETRY).json()["result"]
    webhook.site.control("press", {"chat_id": "5", "message_id": 1, "data": "retry:o-1"})
    (request,) = webhook.got

    assert str(request.url) == TARGET
    assert request.headers["X-Telegram-Bot-Api-Secret-Token"] == "s-1"
    assert json.loads(request.content) == {
        "update_id": 100000001,
        "callback_query": {
            "id": "4000000000000000001",
            "from": {"id": 5, "is_bot": False, "first_name": "Sandbox", "language_code": "ru"},
            "message": message,
            "chat_instance": "5242880",
            "data": "retry:o-1",
        },
    }


def test_a_double_tap_is_two_presses_and_each_is_answered() -> None:
    webhook = Webhook(answer="On it")
    webhook.site.text(reply_markup=RETRY)
    told = webhook.site.control("press", {"chat_id": 5, "label": "Retry", "times": 2})["presses"]

    assert len({json.loads(request.content)["update_id"] for request in webhook.got}) == 2
    assert len({press["id"] for press in webhook.presses}) == 2
    assert [(press["status"], press["answers"]) for press in told] == [(202, ["On it"])] * 2
    assert webhook.site.control("presses") == told
    summary = webhook.site.control("summary")
    assert summary["presses"] == {"made": 2, "answered": 2}
    assert summary["webhooks"] == {"sent": 2, "failed": 0}


def test_the_newest_button_that_fits_is_pressed() -> None:
    webhook = Webhook()
    for _ in range(2):
        webhook.site.text(reply_markup=RETRY)
    webhook.site.text()
    webhook.site.control("press", {"chat_id": 5, "data": "retry:o-1"})

    assert [press["message"]["message_id"] for press in webhook.presses] == [2]


@pytest.mark.parametrize("status", [500, 0])
def test_a_webhook_that_fails_is_not_asked_again(status: int) -> None:
    webhook = Webhook(status)
    webhook.site.text(reply_markup=RETRY)
    told = webhook.site.control("press", {"chat_id": 5, "label": "Retry"})

    assert [press["status"] for press in told["presses"]] == [status or None]
    assert webhook.site.control("summary")["webhooks"] == {"sent": 0, "failed": 1}


@pytest.mark.parametrize(
    ("callback_id", "later", "text", "seen"),
    [
        pytest.param("4000000000000000001", 15, "x" * 200, "", id="in-time"),
        pytest.param("4000000000000000001", 15.1, "x", "query_too_old", id="too-late"),
        pytest.param("4000000000000000009", 0, "x", "query_too_old", id="unknown"),
        pytest.param("4000000000000000001", 0, "x" * 201, "answer_too_long", id="too-long"),
    ],
)
def test_an_answer_must_be_short_and_in_time(
    callback_id: str, later: float, text: str, seen: str
) -> None:
    site = Webhook().site
    site.text(reply_markup=RETRY)
    site.control("press", {"chat_id": 5, "label": "Retry"})
    site.now += later
    answer = site.call("answerCallbackQuery", callback_query_id=callback_id, text=text)

    assert (row(answer) if seen else answer.json()["result"]) == (seen or True)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param({"chat_id": 5, "label": "Other"}, id="label"),
        pytest.param({"chat_id": 5, "data": "other"}, id="data"),
        pytest.param({"chat_id": 5}, id="nothing"),
        pytest.param({"chat_id": 6, "label": "Retry"}, id="chat"),
        pytest.param({"chat_id": 5, "message_id": 2, "label": "Retry"}, id="message"),
        pytest.param({"chat_id": 5, "message_id": 3, "label": "Retry"}, id="deleted"),
    ],
)
def test_only_a_button_that_is_there_can_be_pressed(order: dict[str, Any]) -> None:
    webhook = Webhook()
    webhook.site.text(reply_markup=RETRY)
    webhook.site.text()
    webhook.site.arm(kind="error", code="immediately_deleted")
    webhook.site.text(reply_markup=RETRY)

    assert webhook.site.control("press", order) == {"error": "there is no such button"}
    assert webhook.got == []


def test_set_webhook_says_where_presses_go(site: Site) -> None:
    site.text(reply_markup=RETRY)
    press = {"chat_id": 5, "label": "Retry"}

    assert site.control("press", press) == {"error": "there is no webhook"}
    assert site.call("setWebhook", url=TARGET, secret_token="s-2").json()["result"] is True
    assert site.control("press", press)["presses"][0]["status"] == 200
    site.call("setWebhook", url="")
    assert site.control("press", press) == {"error": "there is no webhook"}


def test_what_was_delivered_is_listed_by_chat_and_kind(site: Site) -> None:
    file_id = site.video(caption="yours", reply_markup=RETRY).json()["result"]["video"]["file_id"]
    site.text()
    site.text(chat_id=6)
    video, text = site.control("messages?chat_id=5")
    content = video.pop("content")

    assert video == {
        "message_id": 1,
        "chat_id": 5,
        "at": 1000.0,
        "kind": "video",
        "text": "yours",
        "buttons": RETRY["inline_keyboard"],
        "source": "url",
        "url": LINK,
        "file_id": file_id,
        "size": len(MP4),
        "deleted": False,
    }
    assert (text["kind"], text["source"], text["file_id"]) == ("text", "", "")
    assert content
    assert [message["message_id"] for message in site.control("messages?kind=text")] == [2, 3]


def test_doubles_are_found_by_content_caption_and_text() -> None:
    site = Site(mp4_behind_the_link, **UNLIMITED)
    file_id = site.video(caption="a").json()["result"]["video"]["file_id"]
    site.video(video=file_id, caption="b")
    site.upload(MP4 + b"2", caption="b")
    site.video(chat_id=6, caption="a")
    site.upload(MP4 + b"3")
    site.upload(MP4 + b"4")
    for chat_id, text in [(5, "x"), (5, "x"), (5, "y"), (6, "x")]:
        site.text(chat_id, text)
    content = site.control("messages?chat_id=6&kind=video")[0]["content"]

    assert site.control("summary")["duplicates"] == {
        "videos": [[5, content, 2]],
        "captions": [[5, "b", 2]],
        "texts": [[5, "x", 2]],
    }


def test_the_summary_counts(site: Site) -> None:
    site.control("chats", [{"chat_id": 7, "state": "blocked"}])
    site.arm(kind="lost_answer", about="hello")
    with pytest.raises(httpx.ReadError):
        site.text()
    site.video()
    site.video()
    site.upload(chat_id="6")
    site.text(chat_id=7)

    assert site.control("summary") == {
        "requests": 5,
        "videos": 2,
        "messages": {"text": 1, "video": 2, "document": 0},
        "sources": {"url": 1, "upload": 1},
        "deleted": 0,
        "chats": 2,
        "duplicates": {"videos": [], "captions": [], "texts": []},
        "limit_answers": 1,
        "limit_answers_by_limit": {"all": 0, "chat": 1, "group": 0},
        "limit_answers_by_chat": {"5": 1},
        "refusals": {"too_many_requests": 1, "blocked": 1},
        "by_method": {"sendMessage": 2, "sendVideo": 3},
        "by_status": {"no answer": 1, "200": 2, "429": 1, "403": 1},
        "faults_fired": {"lost_answer": 1},
        "presses": {"made": 0, "answered": 0},
        "webhooks": {"sent": 0, "failed": 0},
    }


def test_the_journal_tells_what_happened_and_never_the_token(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    site = Site(mp4_behind_the_link, journal=path)
    site.video(caption="yours")
    site.call("getMe", token="100200300:another")
    video, me = site.control("journal")

    assert (video["method"], video["effect"], video["answered"]) == (
        "sendVideo",
        "video 1 sent",
        True,
    )
    assert video["about"] == {"chat_id": "5", "caption": "yours", "message_id": "1"}
    assert (me["error"], me["status"]) == ("unauthorized", 401)
    assert len(path.read_text().splitlines()) == 2
    assert "sandbox" not in path.read_text()
    assert "another" not in path.read_text()


def test_reset_forgets_everything(site: Site) -> None:
    file_id = site.video().json()["result"]["video"]["file_id"]
    site.text()
    site.control("chats", [{"chat_id": 5, "state": "blocked"}])
    site.control("reset", {})
    refused = site.video(video=file_id)

    assert row(refused) == "wrong_file_id"
    assert site.control("messages") == []
    assert site.text().json()["result"]["message_id"] == 1


@pytest.mark.parametrize(
    ("name", "orders"),
    [
        pytest.param("chats", [{"chat_id": 5, "state": "bored"}], id="state"),
        pytest.param("chats", [{"chat_id": 5, "state": "migrated"}], id="migrated-nowhere"),
        pytest.param("chats", [{"chat_id": 5, "state": "ok", "migrate_to": 6}], id="not-migrated"),
        pytest.param("chats", [{"chat_id": "five", "state": "ok"}], id="chat"),
        pytest.param("press", {"chat_id": 5, "lable": "Retry"}, id="misspelt"),
        pytest.param("press", {"chat_id": 5, "label": "Retry", "times": 0}, id="never"),
        pytest.param("messages?chat_id=five", None, id="messages"),
    ],
)
def test_an_order_that_is_not_understood_is_refused(site: Site, name: str, orders: Any) -> None:
    verb = "GET" if orders is None else "POST"
    response = asyncio.run(site.request(verb, f"/_sandbox/{name}", json=orders))

    assert response.status_code == 422
    assert response.json()["error"]
