"""What goes to Telegram, what comes back, and what the gate hears of it."""

from __future__ import annotations

import json
import traceback
from types import SimpleNamespace

import httpx
import pytest

from classifiers import telegram as classifier
from classifiers.errors import (
    Duplicate,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    UserError,
)
from clients import http
from clients import telegram as client
from clients.http import Upstream
from clients.telegram import Button, FileId, Link, Sent, Telegram
from config import services
from config.settings import Settings, settings
from reliability import connection
from reliability.gate import Gate, key_of

TOKEN = "123:s3cr3t"
BASE = f"https://api.telegram.example/bot{TOKEN}/"
VIDEO = {"message_id": 77, "video": {"file_id": "F1"}}


def good(result):
    return httpx.Response(200, json={"ok": True, "result": result})


def bad(code, description, **parameters):
    body = {"ok": False, "error_code": code, "description": description, "parameters": parameters}
    return httpx.Response(code, json=body)


@pytest.fixture
def site():
    """A Bot API that gives the next of these answers to each call, the last one again and again."""
    site = SimpleNamespace(requests=[], answers=[good(VIDEO)])

    def answer(request):
        request.read()
        site.requests.append(request)
        given = site.answers.pop(0) if len(site.answers) > 1 else site.answers[0]
        if isinstance(given, Exception):
            raise given
        return given

    site.transport = httpx.MockTransport(answer)
    return site


@pytest.fixture
def slept(monkeypatch):
    """What the seam has slept, instead of sleeping it."""
    slept = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(http, "time", clock)
    return slept


@pytest.fixture
def service():
    return services.telegram(Settings(telegram_rate=1000))


@pytest.fixture
def bot(site, redis_client, service, slept):
    upstream = Upstream(
        service,
        Gate(redis_client, service),
        classifier.classify,
        base_url=BASE,
        credential=TOKEN,
        transport=site.transport,
    )
    return Telegram(upstream, largest=1000)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "видео.mp4"
    path.write_bytes(b"0123456789" * 100)
    return path


def error_of(call, kind=JobError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def calls(site):
    return [(str(r.url).removeprefix(BASE), json.loads(r.content)) for r in site.requests]


def parts(request):
    """The parts of a form: name → what it holds."""
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    found = {}
    for part in request.content.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        found[name] = content.removesuffix(b"\r\n")
    return found


# -- messages


def test_a_message_is_one_call(bot, site):
    site.answers = [good({"message_id": 5})]

    assert bot.send_message("42", "Привет") == Sent("5")
    assert calls(site) == [("sendMessage", {"chat_id": "42", "text": "Привет"})]


def test_every_button_has_a_row_of_its_own(bot, site):
    bot.send_message("42", "x", [Button("Send again", "s:7"), Button("No", "n:7")])

    assert calls(site)[0][1]["reply_markup"] == {
        "inline_keyboard": [
            [{"text": "Send again", "callback_data": "s:7"}],
            [{"text": "No", "callback_data": "n:7"}],
        ]
    }


@pytest.mark.parametrize("data", ["", "x" * 65, "ж" * 33], ids=["none", "65", "66 bytes"])
def test_the_data_of_a_button_fits(data):
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        Button("x", data)


def test_the_longest_data_of_a_button_is_64_bytes():
    assert Button("x", "ж" * 32).data


# -- videos


@pytest.mark.parametrize(
    ("source", "sent"), [(FileId("F1"), "F1"), (Link("https://x/y.mp4"), "https://x/y.mp4")]
)
def test_a_video_that_telegram_can_get_is_named(bot, site, source, sent):
    assert bot.send_video("42", source, "Sofa", [Button("Again", "a:7")]) == Sent("77", "F1")
    assert calls(site) == [
        (
            "sendVideo",
            {
                "chat_id": "42",
                "video": sent,
                "caption": "Sofa",
                "supports_streaming": True,
                "reply_markup": {"inline_keyboard": [[{"text": "Again", "callback_data": "a:7"}]]},
            },
        )
    ]


def test_a_file_of_ours_is_uploaded(bot, site, file):
    assert bot.send_video("-42", file, "Софа", [Button("Again", "a:7")]) == Sent("77", "F1")

    (request,) = site.requests
    assert str(request.url) == f"{BASE}sendVideo"
    assert parts(request) == {
        "chat_id": b"-42",
        "supports_streaming": b"true",
        "caption": "Софа".encode(),
        "reply_markup": b'{"inline_keyboard": [[{"text": "Again", "callback_data": "a:7"}]]}',
        "video": file.read_bytes(),
    }
    assert b"Content-Type: video/mp4" in request.content


def test_an_upload_is_read_piece_by_piece(bot, site, tmp_path):
    large = tmp_path / "7.mp4"
    with large.open("wb") as file:
        file.truncate(10_000_000)
    bot.largest = 10_000_000
    pieces = []

    def answer(request):
        pieces.extend(map(len, request.stream))
        return good(VIDEO)

    class Streaming(httpx.BaseTransport):
        def handle_request(self, request):
            return answer(request)

    bot.upstream.client._transport = Streaming()

    assert bot.send_video("42", large)
    assert sum(pieces) > 10_000_000
    assert max(pieces) <= 100_000


def test_without_a_caption_none_is_sent(bot, site):
    bot.send_video("42", FileId("F1"))

    assert calls(site)[0][1] == {"chat_id": "42", "supports_streaming": True, "video": "F1"}


@pytest.mark.parametrize(
    "answer",
    [
        bad(400, "Bad Request: wrong file identifier/HTTP URL specified"),
        bad(400, "Bad Request: wrong type of the web page content"),
        bad(400, "Bad Request: failed to get HTTP URL content"),
        bad(400, "Bad Request: file is too big"),
        bad(413, "Request Entity Too Large"),
        httpx.Response(413, text="<html>413</html>"),
    ],
    ids=["file id", "page", "failed to get", "too big", "413", "413 of a proxy"],
)
def test_a_source_that_telegram_refuses_is_no_error(bot, site, answer):
    site.answers = [answer]

    assert bot.send_video("42", Link("https://x/y.mp4")) is None


def test_a_file_that_cannot_be_sent_is_not_sent(bot, site, file):
    bot.largest = 999

    assert bot.send_video("42", file) is None
    assert bot.send_video("42", file.with_name("gone.mp4")) is None
    assert site.requests == []


@pytest.mark.parametrize(
    ("result", "file_id"),
    [
        (VIDEO, "F1"),
        ({"message_id": 77, "animation": {"file_id": "A1"}, "document": {"file_id": "D1"}}, "A1"),
        ({"message_id": 77, "document": {"file_id": "D1"}}, "D1"),
        ({"message_id": 77, "video": {}}, ""),
        ({"message_id": 77, "video": None}, ""),
        ({"message_id": 77}, ""),
    ],
    ids=["video", "animation", "document", "nameless", "null", "none"],
)
def test_the_file_is_kept_under_whatever_name_telegram_gives_it(bot, site, result, file_id):
    site.answers = [good(result)]

    assert bot.send_video("42", Link("https://x")) == Sent("77", file_id)


@pytest.mark.parametrize("result", [True, {}, [], {"message_id": None}, {"message_id": True}])
def test_an_answer_that_names_no_message_leaves_it_in_doubt(bot, site, result):
    site.answers = [good(result)]

    assert error_of(lambda: bot.send_video("42", FileId("F1")), OutcomeUnknown)
    assert error_of(lambda: bot.send_message("42", "x"), OutcomeUnknown)


# -- what goes wrong

FAILURES = {
    "silent": (httpx.ReadTimeout(""), OutcomeUnknown),
    "broken off": (httpx.WriteError(""), OutcomeUnknown),
    "502": (httpx.Response(502, text="Bad Gateway"), OutcomeUnknown),
    "restart": (bad(500, "Internal Server Error: restart"), OutcomeUnknown),
    "not reached": (httpx.ConnectError(""), NetworkError),
    "caption": (bad(400, "Bad Request: message caption is too long"), InvalidData),
    "blocked": (bad(403, "Forbidden: bot was blocked by the user"), UserError),
}


@pytest.mark.parametrize(("answer", "kind"), FAILURES.values(), ids=FAILURES)
def test_whoever_cannot_know_does_not_send_again(bot, site, file, answer, kind):
    site.answers = [answer]
    errors = [
        error_of(lambda: bot.send_message("42", "x")),
        error_of(lambda: bot.send_video("43", file)),
    ]

    assert [type(error) for error in errors] == [kind, kind]


def test_a_chat_that_has_moved_says_where_it_is_now(bot, site):
    moved = bad(400, "Bad Request: group chat was upgraded", migrate_to_chat_id=-100123)
    site.answers = [moved]
    error = error_of(lambda: bot.send_video("-5", FileId("F1")), Duplicate)

    assert (error.existing_id, error.code) == ("-100123", "migrated")


@pytest.mark.parametrize("answer", [*(answer for answer, _ in FAILURES.values())], ids=FAILURES)
def test_the_token_is_in_no_error(bot, site, answer):
    site.answers = [answer]
    error = error_of(lambda: bot.send_message("42", "x"))
    told = "".join(traceback.format_exception(error)) + repr(vars(error))

    assert TOKEN not in told


# -- the pace


@pytest.mark.parametrize(
    ("chat", "pace"),
    [("42", 1.05), ("-42", 3.15), ("-100123", 3.15), ("@shop", 3.15)],
    ids=["a person", "a group", "a supergroup", "a channel"],
)
def test_a_chat_is_written_to_at_its_pace(bot, redis_client, chat, pace):
    bot.send_message(chat, "x")
    free_at = redis_client.hget(f"{key_of(bot.upstream.service)}:{chat}", "free_at")
    seconds, microseconds = redis_client.time()

    assert float(free_at) - seconds - microseconds / 1e6 == pytest.approx(pace, abs=0.5)


def test_texts_and_videos_of_one_chat_share_its_pace(bot, slept):
    bot.send_message("42", "x")
    bot.send_video("42", FileId("F1"))
    bot.send_message("43", "x")

    assert slept == [0, pytest.approx(1.05, abs=0.5), pytest.approx(0, abs=0.5)]


def test_a_limit_stops_the_chat_that_it_is_about(bot, site):
    site.answers = [bad(429, "Too Many Requests: retry after 40", retry_after=40), good(VIDEO)]
    first = error_of(lambda: bot.send_message("42", "x"), RateLimited)
    second = error_of(lambda: bot.send_video("42", FileId("F1")), RateLimited)

    assert first.retry_after == pytest.approx(40, abs=0.5)
    assert second.retry_after == pytest.approx(41.05, abs=0.5)
    assert len(site.requests) == 1
    assert bot.send_message("43", "x")


# -- presses


def test_a_press_is_answered(bot, site, slept, redis_client):
    site.answers = [good(True)]
    bot.answer_press("cb1", "It is on its way")

    assert calls(site) == [
        ("answerCallbackQuery", {"callback_query_id": "cb1", "text": "It is on its way"})
    ]
    assert redis_client.keys(f"{key_of(bot.upstream.service)}:*") == []  # it is no message


def test_a_press_that_is_answered_too_late_is_no_error(bot, site):
    text = "Bad Request: query is too old and response timeout expired or query ID is invalid"
    site.answers = [bad(400, text)]

    assert bot.answer_press("cb1", "x") is None


def test_an_answer_to_a_press_may_be_repeated(bot, site):
    site.answers = [httpx.ReadTimeout("")]

    assert error_of(lambda: bot.answer_press("cb1", "x"), ServiceUnavailable)


def test_another_refusal_of_an_answer_to_a_press_is_an_error(bot, site):
    site.answers = [bad(400, "Bad Request: MESSAGE_TOO_LONG")]

    assert error_of(lambda: bot.answer_press("cb1", "x"), InvalidData)


# -- of this process


@pytest.fixture
def configured(monkeypatch):
    def forget():
        settings.cache_clear()
        connection.redis.cache_clear()
        client.telegram.forget()

    monkeypatch.setenv("REDIS_URL", "redis://nowhere.invalid:1/0")
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", TOKEN)
    forget()
    yield monkeypatch
    forget()


@pytest.mark.parametrize(
    ("base", "largest"),
    [("https://api.telegram.org", 50_000_000), ("http://127.0.0.1:9/sim", 2_000_000_000)],
    ids=["official", "local"],
)
def test_a_bot_is_called_as_the_settings_say(configured, base, largest):
    configured.setenv("TELEGRAM_BASE_URL", base)
    built = client.telegram()
    request = built.upstream.client.build_request("POST", "sendVideo")

    assert built is client.telegram()
    assert str(request.url) == f"{base}/bot{TOKEN}/sendVideo"
    assert (built.upstream.credential, built.largest) == (TOKEN, largest)


def test_without_a_token_there_is_no_bot(configured):
    configured.delenv("TELEGRAM_BOT_TOKEN")

    with pytest.raises(NotConfigured, match="TELEGRAM_BOT_TOKEN is not set"):
        client.telegram()
