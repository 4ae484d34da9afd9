"""What a Telegram Bot API answer means."""

from __future__ import annotations

import json
import pickle

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.errors import (
    BillingExhausted,
    Blocked,
    BusinessRule,
    Duplicate,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    Permanent,
    RateLimited,
    Retryable,
    ServiceUnavailable,
    Unauthorized,
    UserError,
)
from classifiers.telegram import TEXTS, classify

SECRET = "AAF-s3cr3t_half"
TOKEN = f"123456:{SECRET}"
BASE = f"https://api.telegram.example/bot{TOKEN}/"
BOTH = pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])


def answer(body: object, *, status: int = 200, url: str = f"{BASE}sendVideo", **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(
        status, content=content, headers=headers, request=httpx.Request("POST", url)
    )


def refused(number: object, text: object, **parameters: object) -> dict[str, object]:
    body: dict[str, object] = {"ok": False, "error_code": number, "description": text}
    return {**body, "parameters": parameters} if parameters else body


# UPSTREAMS 3.3: (error_code, description, class, code)
ROWS = {
    "wrong file": (
        400,
        "Bad Request: wrong file identifier/HTTP URL specified",
        InvalidData,
        "source_refused",
    ),
    "wrong url": (400, "Bad Request: wrong HTTP URL specified", InvalidData, "source_refused"),
    "wrong page": (
        400,
        "Bad Request: wrong type of the web page content",
        InvalidData,
        "source_refused",
    ),
    "wrong remote file": (
        400,
        "Bad Request: wrong remote file identifier specified: can't unserialize it",
        InvalidData,
        "source_refused",
    ),
    "wrong file url": (
        400,
        "Bad Request: invalid file HTTP URL specified: Unsupported URL protocol",
        InvalidData,
        "source_refused",
    ),
    "media invalid": (400, "Bad Request: MEDIA_INVALID", InvalidData, "source_refused"),
    "old reference": (400, "Bad Request: FILE_REFERENCE_EXPIRED", InvalidData, "source_refused"),
    "empty file": (400, "Bad Request: file must be non-empty", InvalidData, "source_refused"),
    "no content": (
        400,
        "Bad Request: failed to get HTTP URL content",
        InvalidData,
        "source_refused",
    ),
    "no upload": (400, "Bad Request: can't upload file by URL", InvalidData, "source_refused"),
    "other type": (
        400,
        "Bad Request: can't use file of type Photo as Video",
        InvalidData,
        "source_refused",
    ),
    "media empty": (400, "Bad Request: MEDIA_EMPTY", InvalidData, "source_refused"),
    "curl failed": (400, "Bad Request: WEBPAGE_CURL_FAILED", InvalidData, "source_refused"),
    "page empty": (400, "Bad Request: WEBPAGE_MEDIA_EMPTY", InvalidData, "source_refused"),
    "big": (400, "Bad Request: file is too big", InvalidData, "too_big"),
    "big, size": (
        400,
        "Bad Request: File of size 60000000 bytes is too big for a video",
        InvalidData,
        "too_big",
    ),
    "413": (413, "Request Entity Too Large", InvalidData, "too_big"),
    "413 in other words": (413, "Payload", InvalidData, "too_big"),
    "long": (400, "Bad Request: message is too long", InvalidData, "400"),
    "long caption": (400, "Bad Request: message caption is too long", InvalidData, "400"),
    "entities": (
        400,
        "Bad Request: can't parse entities: Unsupported start tag at byte offset 1",
        InvalidData,
        "400",
    ),
    "no text": (400, "Bad Request: message text is empty", InvalidData, "400"),
    "long markup": (400, "Bad Request: reply markup is too long", InvalidData, "400"),
    "button": (400, "Bad Request: BUTTON_URL_INVALID", InvalidData, "400"),
    "anything": (400, "Bad Request: something new", InvalidData, "400"),
    "late press": (
        400,
        "Bad Request: query is too old and response timeout expired or query ID is invalid",
        NotFound,
        "query_too_old",
    ),
    "frozen": (400, "Bad Request: FROZEN_METHOD_INVALID", Blocked, "400"),
    "401": (401, "Unauthorized", Unauthorized, "401"),
    "401 token": (401, "Unauthorized: invalid token specified", Unauthorized, "401"),
    "404": (404, "Not Found", Unauthorized, "404"),
    "409 getUpdates": (
        409,
        "Conflict: terminated by other getUpdates request; make sure that only one runs",
        NotConfigured,
        "409",
    ),
    "409 webhook": (
        409,
        "Conflict: can't use getUpdates method while webhook is active; delete it first",
        NotConfigured,
        "409",
    ),
    "421": (421, "Misdirected Request: unallowed token specified", NotConfigured, "421"),
    "429": (429, "Too Many Requests: retry after 12", RateLimited, "429"),
    "429, about a chat": (429, "Too Many Requests: chat not found", RateLimited, "429"),
    "immediately deleted": (
        500,
        "Internal Server Error: sent message was immediately deleted and can't be returned",
        BusinessRule,
        "immediately_deleted",
    ),
    "402": (402, "Payment Required", BillingExhausted, "402"),
}

UNREACHABLE = {
    "chat": (400, "Bad Request: chat not found"),
    "peer": (400, "Bad Request: PEER_ID_INVALID"),
    "private chat": (400, "Bad Request: private chat not found"),
    "no chat": (400, "Bad Request: chat_id is empty"),
    "user": (400, "Bad Request: user not found"),
    "upgraded, no new id": (400, "Bad Request: group chat was upgraded to a supergroup chat"),
    "rights": (400, "Bad Request: not enough rights to send videos to the chat"),
    "rights, 403": (403, "Forbidden: not enough rights to send text messages to the chat"),
    "no rights": (400, "Bad Request: have no rights to send a message"),
    "write access": (400, "Bad Request: have no write access to the chat"),
    "administrator": (400, "Bad Request: need administrator rights in the channel chat"),
    "raw rights": (400, "Bad Request: CHAT_WRITE_FORBIDDEN"),
    "raw videos": (400, "Bad Request: CHAT_SEND_VIDEOS_FORBIDDEN"),
    "raw administrator": (400, "Bad Request: CHAT_ADMIN_REQUIRED"),
    "raw restricted": (400, "Bad Request: CHAT_RESTRICTED"),
    "raw privacy": (400, "Bad Request: USER_PRIVACY_RESTRICTED"),
    "raw blocked": (400, "Bad Request: USER_IS_BLOCKED"),
    "raw bot": (400, "Bad Request: USER_IS_BOT"),
    "blocked": (403, "Forbidden: bot was blocked by the user"),
    "deactivated": (403, "Forbidden: user is deactivated"),
    "initiate": (403, "Forbidden: bot can't initiate conversation with a user"),
    "kicked": (403, "Forbidden: bot was kicked from the supergroup chat"),
    "no member": (403, "Forbidden: bot is not a member of the channel chat"),
    "deleted": (403, "Forbidden: the group chat was deleted"),
    "bots": (403, "Forbidden: bot can't send messages to bots"),
    "any 403": (403, "Forbidden: something new"),
    "bare 403": (403, ""),
}


@BOTH
@pytest.mark.parametrize("spell", [str, str.upper, str.lower], ids=["as is", "upper", "lower"])
@pytest.mark.parametrize(("number", "text", "kind", "code"), ROWS.values(), ids=ROWS)
def test_a_refusal_means_the_same_for_every_call(number, text, kind, code, spell, safe):
    verdict = classify(answer(refused(number, spell(text)), status=number), safe=safe)

    assert type(verdict) is kind
    assert verdict.code == code
    assert (verdict.service, verdict.operation) == ("telegram", "sendVideo")
    assert verdict.detail.startswith(spell(text))


@BOTH
@pytest.mark.parametrize("spell", [str, str.upper, str.lower], ids=["as is", "upper", "lower"])
@pytest.mark.parametrize(("number", "text"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_whom_the_bot_may_not_write_to_is_unreachable(number, text, spell, safe):
    verdict = classify(answer(refused(number, spell(text)), status=number), safe=safe)

    assert type(verdict) is UserError
    assert verdict.reason == "recipient_unreachable"
    assert verdict.code == str(number)


def test_every_sign_is_met_by_a_row():
    texts = [row[1].casefold() for row in (*ROWS.values(), *UNREACHABLE.values())]

    unmet = {sign for _, signs in TEXTS for sign in signs if not any(sign in t for t in texts)}

    assert not unmet


FAILED = {
    "restart": (500, "Internal Server Error: restart"),
    "aborted": (500, "Internal Server Error: Request aborted"),
    "bare": (500, "Internal Server Error"),
    "gateway": (502, "Bad Gateway"),
    "gateway timeout": (504, "Gateway Timeout"),
}


@pytest.mark.parametrize(("number", "text"), FAILED.values(), ids=FAILED)
def test_a_failed_server_leaves_a_message_in_doubt(number, text):
    body = refused(number, text)

    assert type(classify(answer(body, status=number), safe=True)) is ServiceUnavailable
    assert type(classify(answer(body, status=number), safe=False)) is OutcomeUnknown


@BOTH
def test_a_message_that_was_deleted_at_once_is_never_sent_again(safe):
    text = "Internal Server Error: sent message was immediately deleted and can't be returned"

    verdict = classify(answer(refused(500, text), status=500), safe=safe)

    assert isinstance(verdict, Permanent)
    assert not isinstance(verdict, Retryable | OutcomeUnknown | UserError)


@BOTH
@pytest.mark.parametrize("chat", [-1001234567890, "-1001234567890"], ids=["number", "text"])
def test_a_group_that_moved_tells_its_new_id(chat, safe):
    text = "Bad Request: group chat was upgraded to a supergroup chat"

    verdict = classify(answer(refused(400, text, migrate_to_chat_id=chat), status=400), safe=safe)

    assert type(verdict) is Duplicate
    assert (verdict.existing_id, verdict.code) == ("-1001234567890", "migrated")


@pytest.mark.parametrize("chat", [None, 0, "", True, -1.5, "@name", [1], {}, "-0"], ids=str)
def test_a_new_id_that_is_none_leaves_the_group_unreachable(chat):
    text = "Bad Request: group chat was upgraded to a supergroup chat"

    verdict = classify(answer(refused(400, text, migrate_to_chat_id=chat)), safe=False)

    assert type(verdict) is UserError


WAITS = {
    "parameter": ({"retry_after": 12}, {}, 12.0),
    "parameter first": ({"retry_after": 12}, {"retry-after": "7"}, 12.0),
    "as text": ({"retry_after": "12"}, {}, 12.0),
    "fraction": ({"retry_after": 1.5}, {}, 1.5),
    "header": ({}, {"retry-after": "7"}, 7.0),
    "none": ({}, {}, None),
    "null": ({"retry_after": None}, {"retry-after": "7"}, 7.0),
    "negative": ({"retry_after": -1}, {}, None),
    "endless": ({"retry_after": float("inf")}, {}, None),
    "huge": ({"retry_after": 10**30}, {}, None),
    "true": ({"retry_after": True}, {}, None),
    "list": ({"retry_after": [1]}, {}, None),
}


@BOTH
@pytest.mark.parametrize(("parameters", "headers", "wait"), WAITS.values(), ids=WAITS)
def test_a_rate_limit_waits_as_told(parameters, headers, wait, safe):
    body = refused(429, "Too Many Requests: retry after 12", **parameters)

    verdict = classify(answer(body, status=429, **headers), safe=safe)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == wait


@pytest.mark.parametrize("parameters", [None, [], [12], "12", 12, True], ids=str)
def test_parameters_of_another_type_are_none(parameters):
    body = {**refused(429, "Too Many Requests: retry after 12"), "parameters": parameters}

    assert classify(answer(body, status=429), safe=False).retry_after is None


@BOTH
def test_a_server_that_shuts_down_has_dropped_the_query(safe):
    body = refused(429, "Too Many Requests: retry after 5", retry_after=5)

    verdict = classify(answer(body, status=429), safe=safe)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == 5


@pytest.mark.parametrize(
    ("number", "status", "kind"),
    [
        (429, 200, RateLimited),
        (403, 500, UserError),
        ("403", 500, UserError),
        (500, 400, OutcomeUnknown),
        (None, 403, UserError),
        ("soon", 429, RateLimited),
        (True, 401, Unauthorized),
        (0, 404, Unauthorized),
        (99999, 400, InvalidData),
        (None, 200, OutcomeUnknown),
    ],
    ids=str,
)
def test_the_bodys_number_outweighs_the_status(number, status, kind):
    verdict = classify(answer(refused(number, "Something"), status=status), safe=False)

    assert type(verdict) is kind


@BOTH
@pytest.mark.parametrize("result", [{"message_id": 7}, True, False, 0, [], {}, "x"], ids=str)
@pytest.mark.parametrize(
    "more", [{}, {"description": "Webhook was set"}], ids=["bare", "described"]
)
def test_any_result_is_success(result, more, safe):
    assert classify(answer({"ok": True, "result": result, **more}), safe=safe) is None


NONSENSE = {
    "nothing": b"",
    "html": b"<html><title>502 Bad Gateway</title></html>",
    "cut short": b'{"ok": true, "result": {"message_id": 4',
    "not text": b"\xff\xfe\x00\xd8",
    "list": b"[1]",
    "number": b"7",
    "null": b"null",
    "empty": b"{}",
    "no result": b'{"ok": true}',
    "null result": b'{"ok": true, "result": null}',
    "no result, described": b'{"ok": true, "description": "done"}',
    "ok as text": b'{"ok": "true", "result": 1}',
    "not ok, no reason": b'{"ok": false}',
    "odd types": b'{"ok": false, "error_code": [1], "description": {"a": 1}, "parameters": 7}',
    "endless": b"[" * 100_000,
    "huge number": b"9" * 10_000,
}
EVERY_NONSENSE = pytest.mark.parametrize("body", NONSENSE.values(), ids=list(NONSENSE))


@EVERY_NONSENSE
def test_a_200_that_makes_no_sense_is_in_doubt(body):
    assert type(classify(answer(body), safe=True)) is InternalError
    assert type(classify(answer(body), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520])
@EVERY_NONSENSE
def test_a_gateway_leaves_a_message_in_doubt(body, status):
    assert type(classify(answer(body, status=status), safe=True)) is ServiceUnavailable
    assert type(classify(answer(body, status=status), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [301, 302, 401, 403, 404, 405, 407, 410, 421])
@EVERY_NONSENSE
def test_a_stranger_blames_neither_the_token_nor_the_chat(body, status):
    verdict = classify(answer(body, status=status), safe=False)

    assert type(verdict) is NotConfigured
    assert "TELEGRAM_BASE_URL" in verdict.detail


@BOTH
def test_a_proxy_may_find_the_video_too_big(safe):
    verdict = classify(answer(b"<html>413</html>", status=413), safe=safe)

    assert type(verdict) is InvalidData
    assert verdict.code == "too_big"


@BOTH
def test_a_proxy_may_limit_the_rate(safe):
    verdict = classify(answer(b"<html>", status=429, **{"retry-after": "9"}), safe=safe)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == 9


@pytest.mark.parametrize(
    ("number", "setting"),
    [(404, "TELEGRAM_BOT_TOKEN"), (421, "TELEGRAM_BASE_URL"), (409, "updates")],
)
def test_what_somebody_must_set_right_is_named(number, setting):
    assert setting in classify(answer(refused(number, "No")), safe=False).detail


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        (f"{BASE}sendVideo", "sendVideo"),
        (f"{BASE}sendVideo/", "sendVideo"),
        (f"{BASE}sendMessage?chat_id=1", "sendMessage"),
        (f"{BASE}test/sendMessage", "sendMessage"),
        (f"http://127.0.0.1:8081/mounted/bot{TOKEN}/getMe", "getMe"),
        (f"http://robots.example/robots/bot{TOKEN}/getMe", "getMe"),
        (BASE, ""),
        (f"https://api.telegram.example/bot{TOKEN}", ""),
        (f"https://api.telegram.example/bot123456%3A{SECRET}/getMe", "getMe"),
        (f"https://api.telegram.example/bot{SECRET}", ""),
        (f"https://api.telegram.example/bot{SECRET}/getMe", "getMe"),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        refused(401, f"Unauthorized: {TOKEN} is wrong, see {BASE}getMe"),
        refused(404, f"Not Found: /bot{TOKEN}/sendVideo"),
        refused(400, f"Bad Request: <b>{SECRET}</b> chat not found"),
        refused(500, f"Internal Server Error: {SECRET}"),
        refused(f"{TOKEN}", TOKEN),
        f"<html>{BASE}</html>".encode(),
        refused(400, f"moved {TOKEN}", migrate_to_chat_id=-5),
    ],
    ids=["address", "path", "tags", "failure", "number", "bare", "moved"],
)
@pytest.mark.parametrize("status", [200, 404, 502])
def test_the_token_never_gets_out(url, operation, body, status):
    verdict = classify(answer(body, status=status, url=url), safe=False)

    assert verdict.operation == operation
    assert SECRET not in f"{verdict!s} {verdict!r} {vars(verdict)}"


def test_an_answer_without_its_request_is_judged_all_the_same():
    verdict = classify(httpx.Response(400, json=refused(400, "chat not found")), safe=True)

    assert type(verdict) is UserError
    assert verdict.operation == ""


def test_a_long_description_is_cut():
    verdict = classify(answer(refused(400, "<p>я\x00</p>" * 999)), safe=True)

    assert len(verdict.detail) == 300


@given(st.binary(max_size=200), st.integers(100, 599), st.booleans())
def test_any_bytes_are_judged(body, status, safe):
    assert isinstance(classify(answer(body, status=status), safe=safe), JobError)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
signs = st.sampled_from([sign for _, row in TEXTS for sign in row])
anything = st.recursive(
    scalars | signs | st.sampled_from([*range(400, 430), TOKEN, SECRET, BASE]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["retry_after", "migrate_to_chat_id"]), inner)
    ),
    max_leaves=4,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "ok": st.booleans() | anything,
        "result": anything,
        "error_code": anything,
        "description": anything,
        "parameters": anything,
    },
)


@given(bodies | anything, st.integers(100, 599), st.booleans())
@example({"ok": False, "description": "\ud800"}, 400, False)
@example({"ok": False, "error_code": 400, "parameters": {"migrate_to_chat_id": 10**400}}, 400, True)
def test_any_answer_is_judged_and_can_be_sent_on(body, status, safe):
    verdict = classify(answer(body, status=status), safe=safe)

    if verdict is None:
        assert body["ok"] is True
    else:
        facts = json.dumps(vars(pickle.loads(pickle.dumps(verdict))), ensure_ascii=False)
        assert facts.encode()
        assert SECRET not in facts


@given(bodies, st.integers(100, 599))
def test_a_message_is_never_repeated_after_an_answer_that_leaves_a_doubt(body, status):
    verdict = classify(answer(body, status=status), safe=False)

    if isinstance(verdict, Retryable):
        assert verdict.code == "425"  # RFC 8470: refused before it was looked at
