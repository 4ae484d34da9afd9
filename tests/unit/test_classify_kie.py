"""What a KIE.AI answer means, and what a failed generation means."""

from __future__ import annotations

import json
import pickle
import re

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
    MissingFields,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    Retryable,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
    UserError,
)
from classifiers.kie import (
    CODES,
    GENERATION_OVER,
    TEXTS,
    classify,
    classify_failure,
    classify_kie_error,
    task_id,
)

KEY = "k1e-s3cr3t-key"
BASE = "https://api.kie.example/api/v1/"
CREATE, LOOK, CREDIT = "jobs/createTask", "jobs/recordInfo?taskId=t1", "chat/credit"
BOTH = pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])

CREDITS = (
    "Credits insufficient : Your current balance isn't enough to run this request. "
    "Please top up to continue."
)
PAUSED = "This interface is temporarily paused"
UNKNOWN_MODEL = (
    "The model name you specified is not supported. Please verify your input and use one of "
    "the supported models provided by KIE."
)
PEOPLE = "We currently do not support uploads of images containing photorealistic people."


def answer(body: object, call: str = CREATE, *, status: int = 200, **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = httpx.Request("POST", f"{BASE}{call}", headers={"Authorization": f"Bearer {KEY}"})
    return httpx.Response(status, content=content, headers=headers, request=request)


def said(code: object, msg: object = "Something happened", data: object = None) -> dict:
    return {"code": code, "msg": msg, "data": data}


# UPSTREAMS 2.2: (code, msg) → class on createTask, whatever the call's safety
CREATE_ROWS = {
    "400": (400, "Something is wrong", InvalidData),
    "400 missing": (400, "taskId parameter is required", MissingFields),
    "401": (401, "Unauthorized", Unauthorized),
    "401 permissions": (401, "You do not have access permissions", Unauthorized),
    "402": (402, "Insufficient credits", BillingExhausted),
    "402 in other words": (402, "Payment needed", BillingExhausted),
    "404": (404, "Not found", NotConfigured),
    "404 model": (404, UNKNOWN_MODEL, NotConfigured),
    "408": (408, "No result for more than 10 minutes", ServiceUnavailable),
    "422": (422, "Validation error", InvalidData),
    "422 missing": (422, "This field is required", MissingFields),
    "422 option": (422, "aspect_ratio is not within the range of allowed options", InvalidData),
    "422 model": (422, UNKNOWN_MODEL, NotConfigured),
    "422 page": (422, "Page does not exist or is not published", NotConfigured),
    "429": (429, "Rate limited", RateLimited),
    "433": (433, "Sub-key usage limit exceeded", BillingExhausted),
    "455": (455, "Service under maintenance", ServiceUnavailable),
    "500 missing": (500, "image_urls is required", MissingFields),
    "500 missing, any": (500, "This field is required", MissingFields),
    "500 missing, other": (500, "Missing required parameter: prompt", MissingFields),
    "500 empty": (500, "The prompt cannot be empty", MissingFields),
    "500 option, other": (500, "duration must be one of 5, 10", InvalidData),
    "500 option": (500, "resolution is not within the range of allowed options", InvalidData),
    "500 paused": (500, PAUSED, NotConfigured),
    "500 model": (500, "The model name you specified is not supported.", NotConfigured),
    "500 model, named": (500, "Model 'sora-2/x' does not exist", NotConfigured),
    "500 credits, other": (500, "Not enough credits", BillingExhausted),
    "500 balance": (500, "Your balance is not enough", BillingExhausted),
    "500 top up": (500, "Please top up your account", BillingExhausted),
    "500 credits": (500, CREDITS, BillingExhausted),
    "501": (501, "Internal Error, Please try again later.", ServiceUnavailable),
    "501 unheard of": (501, "Zorp", ServiceUnavailable),
    "505": (505, "This feature is disabled", NotConfigured),
    "403": (403, "Your IP is not on the list", Forbidden),
    "200 without a task": (200, "success", InternalError),
    "200, credits": (200, CREDITS, BillingExhausted),
    "200, paused": (200, PAUSED, NotConfigured),
}


@BOTH
@pytest.mark.parametrize("spell", [int, str], ids=["number", "text"])
@pytest.mark.parametrize(("code", "msg", "kind"), CREATE_ROWS.values(), ids=CREATE_ROWS)
def test_a_refused_create_means_the_same_for_every_call(code, msg, kind, spell, safe):
    verdict = classify(answer(said(spell(code), msg)), safe=safe)

    assert type(verdict) is kind
    assert (verdict.service, verdict.operation, verdict.code) == ("kie", "createTask", str(code))
    assert verdict.detail.startswith(msg)


LOOK_ROWS = {
    "400": (400, "taskId parameter is required", MissingFields),
    "401": (401, "Unauthorized", Unauthorized),
    "402": (402, "Insufficient credits", BillingExhausted),
    "404": (404, "Task not found", NotFound),
    "404 bare": (404, "", NotFound),
    "408": (408, "Upstream timeout", ServiceUnavailable),
    "422 null": (422, "recordInfo is null", NotFound),
    "422 not found": (422, "The record does not exist", NotFound),
    "422": (422, "taskId is malformed", InvalidData),
    "429": (429, "Too many requests", RateLimited),
    "455": (455, "Maintenance", ServiceUnavailable),
    "500": (500, "Server exception", ServiceUnavailable),
    "500 paused": (500, PAUSED, ServiceUnavailable),
    "501": (501, "Generation failed", ServiceUnavailable),
    "501 user": (501, PEOPLE, UserError),
    "500 missing": (500, "taskId is required", ServiceUnavailable),
    "505": (505, "Disabled", NotConfigured),
}


@pytest.mark.parametrize(("code", "msg", "kind"), LOOK_ROWS.values(), ids=LOOK_ROWS)
def test_a_look_has_classes_of_its_own(code, msg, kind):
    verdict = classify(answer(said(code, msg), LOOK), safe=True)

    assert type(verdict) is kind
    assert (verdict.operation, verdict.code) == ("recordInfo", str(code))


@pytest.mark.parametrize("call", [CREATE, LOOK, CREDIT])
@pytest.mark.parametrize("code", [400, 401, 404, 422, 429, 500, 503, 530])
def test_an_empty_purse_hides_behind_any_code(code, call):
    assert type(classify(answer(said(code, CREDITS), call), safe=False)) is BillingExhausted


@pytest.mark.parametrize("call", [CREATE, CREDIT])
def test_only_a_look_can_find_nothing(call):
    assert type(classify(answer(said(422, "input is null"), call), safe=True)) is InvalidData


def test_every_known_code_stands_in_the_tables():
    assert set(CODES) <= {code for code, *_ in CREATE_ROWS.values()}


@pytest.mark.parametrize("msg", ["Server exception", "Timeout", "Try again later", "", None, 7])
@pytest.mark.parametrize("code", [500, 502, 503, 530])
def test_a_failed_server_leaves_a_create_in_doubt(code, msg):
    assert type(classify(answer(said(code, msg)), safe=True)) is ServiceUnavailable
    assert type(classify(answer(said(code, msg)), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("code", [402, 429, 455, 505])
@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_the_code_outweighs_the_status(code, status):
    verdict = classify(answer(said(code), status=status), safe=False)

    assert type(verdict) is CODES[code].kind
    assert verdict.code == str(code)


@pytest.mark.parametrize("code", [None, "", "abc", "4 29", -429, 1.5, True, [429], {"code": 429}])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (402, BillingExhausted), (429, RateLimited), (500, OutcomeUnknown)],
)
def test_without_a_usable_code_the_status_stands_for_it(code, status, kind):
    verdict = classify(answer(said(code), status=status), safe=False)

    assert type(verdict) is kind
    assert verdict.code == f"HTTP {status}"


@pytest.mark.parametrize("code", [0, 1, 199, 600, 99999])
@pytest.mark.parametrize("call", [CREATE, LOOK, CREDIT])
def test_an_unheard_of_code_is_in_doubt(call, code):
    assert type(classify(answer(said(code), call), safe=True)) is InternalError
    assert type(classify(answer(said(code), call), safe=False)) is OutcomeUnknown


def test_a_status_of_408_may_be_a_proxys():
    assert type(classify(answer({"msg": "timeout"}, status=408), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("status", "call", "msg", "kind"),
    [
        (404, LOOK, "Task not found", NotFound),
        (404, CREATE, "Not found", NotConfigured),
        (422, LOOK, "recordInfo is null", NotFound),
        (500, CREATE, PAUSED, NotConfigured),
        (500, CREATE, "Oops", OutcomeUnknown),
    ],
)
def test_a_text_without_a_code_is_read_with_the_status(status, call, msg, kind):
    assert type(classify(answer({"msg": msg}, call, status=status), safe=False)) is kind


# Texts that say what is wrong with the user's photo or words → reason
USER_TEXTS = {
    "people": (PEOPLE, "photo_has_people"),
    "people, prefix": (f"OpenAI c{PEOPLE[4:]}", "photo_has_people"),
    "people, capitals": (PEOPLE.upper(), "photo_has_people"),
    "real people": ("Pictures of real people are refused", "photo_has_people"),
    "faces": ("Image contains faces.", "photo_has_people"),
    "guardrails, third party": (
        "This content may violate our guardrails concerning similarity to third-party content.",
        "content_not_allowed",
    ),
    "content policies": ("This content may violate our content policies.", "content_not_allowed"),
    "guardrails, nudity": (
        "This content may violate our guardrails around nudity, sexuality, or erotic content.",
        "content_not_allowed",
    ),
    "prohibited": (
        "Invalid prompt: prompt contains prohibited content",
        "content_not_allowed",
    ),
    "guardrails alone": ("Blocked by guardrails", "content_not_allowed"),
    "policy alone": ("Blocked by our usage policy", "content_not_allowed"),
    "terms": ("This request violates our terms", "content_not_allowed"),
    "nsfw": ("NSFW detected", "content_not_allowed"),
    "moderation": ("Content moderation check failed: sexual", "content_not_allowed"),
    "sensitive": ("The input is Sensitive", "content_not_allowed"),
    "violation": ("Policy violation", "content_not_allowed"),
    "inappropriate": (
        "Inappropriate content, please try another prompt.",
        "content_not_allowed",
    ),
    "dark": ("The photo is too dark", "photo_too_dark"),
    "brightness": ("Image brightness is below the threshold", "photo_too_dark"),
    "low light": ("Taken in low light", "photo_too_dark"),
    "underexposed": ("Underexposed picture", "photo_too_dark"),
    "no product": ("No product in the image", "photo_no_product"),
    "product invisible": ("The product is not visible", "photo_no_product"),
    "product undetected": ("Product could not be detected", "photo_no_product"),
    "no subject": ("no subject found", "photo_no_product"),
    "cannot find": ("Unable to detect the product", "photo_no_product"),
    "small": ("Image is too small", "photo_too_small"),
    "resolution": ("Image resolution must be higher", "photo_too_small"),
    "low-resolution": ("A low-resolution picture", "photo_too_small"),
    "low resolution": ("Resolution is too low", "photo_too_small"),
    "minimum": ("The minimum width is 300 pixels", "photo_too_small"),
    "at least": ("Width and height must be at least 256 x 256 px", "photo_too_small"),
    "type": ("File type not supported", "photo_wrong_format"),
    "image type": ("Unsupported image type image/heic", "photo_wrong_format"),
    "invalid type": ("Invalid file type", "photo_wrong_format"),
    "unsupported image": ("You sent an unsupported image", "photo_wrong_format"),
    "invalid image": ("This is not a valid image", "photo_wrong_format"),
    "format": ("Image format is not supported", "photo_wrong_format"),
    "decode": ("Failed to decode image", "photo_wrong_format"),
    "corrupt": ("The image is corrupted", "photo_wrong_format"),
    "download": ("The image could not be downloaded", "photo_unreachable"),
    "download error": ("Image download error", "photo_unreachable"),
    "fetch": ("Image fetch failed. Check access settings", "photo_unreachable"),
    "fetch, in two lines": ("Unable to\nfetch the photo", "photo_unreachable"),
    "fetch, other": (
        "Failed to fetch the image from https://cdn.example/a.png",
        "photo_unreachable",
    ),
    "inaccessible": ("Inaccessible URL", "photo_unreachable"),
    "unreachable": ("The image URL is unreachable", "photo_unreachable"),
    "large": ("File size exceeds the limit of 10MB", "photo_rejected"),
    "large, other": ("This exceeds the maximum image size", "photo_rejected"),
    "large image": ("The image is too large", "photo_rejected"),
    "large resolution": ("Image resolution too high", "photo_rejected"),
}
EVERY_USER_TEXT = pytest.mark.parametrize(
    ("text", "reason"), USER_TEXTS.values(), ids=list(USER_TEXTS)
)


def test_every_reason_has_a_text():
    reasons = {meaning.reason for meaning, _ in TEXTS if meaning.kind is UserError}

    assert reasons == {reason for _, reason in USER_TEXTS.values()}


@EVERY_USER_TEXT
@pytest.mark.parametrize("code", ["422", "500", "501", "400", "", None, 500, 429, 402])
def test_a_generation_refused_for_its_photo_is_the_users_to_mend(text, reason, code):
    verdict = classify_failure(code, text)

    assert type(verdict) is UserError
    assert verdict.reason == reason
    assert (verdict.service, verdict.code) == ("kie", str(code or ""))


@BOTH
@EVERY_USER_TEXT
@pytest.mark.parametrize("code", [400, 422, 500, 501])
def test_a_create_refused_for_its_photo_is_the_users_to_mend(text, reason, code, safe):
    verdict = classify(answer(said(code, text)), safe=safe)

    assert type(verdict) is UserError
    assert verdict.reason == reason


@EVERY_USER_TEXT
def test_a_users_error_is_told_by_its_text_alone(text, reason):
    assert classify_kie_error(text) == "user_error"


@pytest.mark.parametrize("code", [401, 404, 429, 455, 505])
def test_a_clear_code_is_not_overruled_by_a_text_about_the_photo(code):
    verdict = classify(answer(said(code, PEOPLE)), safe=False)

    assert not isinstance(verdict, UserError)


@pytest.mark.parametrize("call", [LOOK, "common/download-url"])
def test_only_a_create_is_refused_for_its_photo(call):
    verdict = classify(answer(said(422, "Invalid URL, inaccessible"), call), safe=True)

    assert type(verdict) is InvalidData


TRANSIENT_TEXTS = {
    "internal": "Internal Error, Please try again later.",
    "unavailable": "Service Unavailable",
    "timeout": "Timeout",
    "generation timeout": "Generation timeout exceeded",
    "timed out": "image generation TIMED OUT",
    "image timeout": "Image processing timeout exceeded",
    "overloaded": "The model is overloaded",
    "load": "moderate load, try again in a minute",
    "busy": "System busy",
}


@pytest.mark.parametrize("text", TRANSIENT_TEXTS.values(), ids=TRANSIENT_TEXTS)
@pytest.mark.parametrize("code", ["500", "501", "422", "400", "", None, 7])
def test_a_generation_that_failed_of_itself_may_be_repeated(text, code):
    assert type(classify_failure(code, text)) is ServiceUnavailable
    assert classify_kie_error(text) == "transient"


FAILURES = {
    "no word at all": (None, None, ServiceUnavailable),
    "empty": ("", "", ServiceUnavailable),
    "bare 500": ("500", None, ServiceUnavailable),
    "unheard of, 500": ("500", "Zorp", ServiceUnavailable),
    "unheard of, 501": (501, "Zorp", ServiceUnavailable),
    "unheard of, 429": (429, "Zorp", ServiceUnavailable),  # of KIE's own supplier, not of ours
    "429": ("429", "Too many requests", ServiceUnavailable),
    "401": ("401", "Zorp", ServiceUnavailable),
    "408": ("408", "", ServiceUnavailable),
    "455": ("455", "maintenance", ServiceUnavailable),
    "unheard of, no code": (None, "Zorp", Unclassified),
    "unheard of, strange code": ("E-17", "Zorp", Unclassified),
    "unheard of, far code": (1001, "Zorp", Unclassified),
    "strange types": (["500"], {"a": 1}, ServiceUnavailable),
    "no user's text": ("500", "Model names are case-sensitive", ServiceUnavailable),
    "no user's text, 2": ("500", "Integrity constraint violation: 1062", ServiceUnavailable),
    "no user's text, 3": ("500", "We do not have access to this image model", ServiceUnavailable),
    "credits": ("500", CREDITS, BillingExhausted),
    "402": ("402", "Zorp", BillingExhausted),
    "402, later": ("402", "Internal error, try again later", BillingExhausted),
    "433": (433, None, BillingExhausted),
    "505": ("505", "Zorp", NotConfigured),
    "paused": ("500", PAUSED, NotConfigured),
    "missing": ("422", "prompt is required", MissingFields),
    "option, image": (
        "500",
        "Image resolution is not within the range of allowed options",
        InvalidData,
    ),
    "option": ("422", "n_frames is not within the range of allowed options", InvalidData),
}


@pytest.mark.parametrize(("code", "text", "kind"), FAILURES.values(), ids=FAILURES)
def test_a_failed_generation_is_judged_by_its_text_then_by_its_code(code, text, kind):
    assert type(classify_failure(code, text)) is kind


@pytest.mark.parametrize("code", ["400", 413, "415", 422, " 422 "])
@pytest.mark.parametrize("text", ["Zorp", "", None, "Please try again with another picture"])
def test_a_refusal_that_nobody_knows_is_about_the_users_photo(code, text):
    verdict = classify_failure(code, text)

    assert type(verdict) is UserError
    assert verdict.reason == "photo_rejected"


@pytest.mark.parametrize("text", ["Zorp", "", None, CREDITS, PAUSED, "This field is required"])
def test_what_neither_the_user_nor_time_mends_is_unknown(text):
    assert classify_kie_error(text) == "unknown"


def test_a_failure_keeps_its_facts():
    verdict = classify_failure(" 422 ", f"{PEOPLE}\n See https://kie.example/help?task=1")

    assert verdict.operation == "generation"
    assert verdict.code == "422"
    assert verdict.detail == f"{PEOPLE} See (address)"


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"failCode": "422", "failMsg": "Zorp"}, UserError),
        ({"failCode": "500", "failMsg": PEOPLE}, UserError),
        ({"failCode": 500, "failMsg": "Zorp"}, ServiceUnavailable),
        ({"failCode": "", "failMsg": ""}, ServiceUnavailable),
        ({}, ServiceUnavailable),
    ],
    ids=["refused", "people", "theirs", "empty", "nothing"],
)
def test_a_look_at_a_failed_generation_reads_what_failed(told, kind):
    verdict = classify(answer(said(501, "Generation failed", told), LOOK), safe=True)

    assert type(verdict) is kind
    assert verdict.code in GENERATION_OVER


@pytest.mark.parametrize(
    ("response", "over"),
    [
        (answer(said(408), LOOK), True),
        (answer(said("501"), LOOK), True),
        (answer(said(500), LOOK), False),
        (answer(b"", LOOK, status=408), False),
        (answer(b"", LOOK, status=501), False),
        (answer({"msg": "timeout"}, LOOK, status=408), False),
    ],
    ids=["408", "501", "500", "HTTP 408", "HTTP 501", "HTTP 408 without a code"],
)
def test_only_kies_own_code_says_that_the_generation_is_over(response, over):
    assert (classify(response, safe=True).code in GENERATION_OVER) is over


@BOTH
@pytest.mark.parametrize(
    "state", ["waiting", "queuing", "generating", "success", "fail", "new", None]
)
def test_a_look_succeeds_whatever_the_state(state, safe):
    data = {"taskId": "t1", "state": state, "failCode": "500", "failMsg": CREDITS}

    assert classify(answer(said(200, "success", data), LOOK), safe=safe) is None


@pytest.mark.parametrize("data", [None, [], "", "success", 0])
def test_a_look_that_shows_nothing_makes_no_sense(data):
    assert type(classify(answer(said(200, "success", data), LOOK), safe=True)) is InternalError
    assert type(classify(answer(said(200, "success", data), LOOK), safe=False)) is OutcomeUnknown


CREATED = {
    "as documented": said(200, "success", {"taskId": "t1"}),
    "code as text": said("200", "success", {"taskId": "t1"}),
    "other spelling": said(200, "success", {"task_id": "t1"}),
    "outside data": {"code": 200, "taskId": "t1"},
    "outside data, other spelling": {"code": 200, "task_id": "t1", "data": None},
    "no code": {"data": {"taskId": "t1"}},
    "strange text": said(200, CREDITS, {"taskId": "t1"}),
}


@BOTH
@pytest.mark.parametrize("body", CREATED.values(), ids=CREATED)
def test_a_create_that_names_its_task_has_succeeded(body, safe):
    assert classify(answer(body), safe=safe) is None
    assert task_id(body) == "t1"


@BOTH
@pytest.mark.parametrize(
    "data",
    [None, {}, [], "t1", {"taskId": None}, {"taskId": ""}, {"taskId": " "}, {"taskId": True}],
)
def test_a_create_that_names_no_task_is_safe_to_repeat(data, safe):
    verdict = classify(answer(said(200, "success", data)), safe=safe)

    assert type(verdict) is InternalError
    assert "names no task" in verdict.detail


def test_an_answer_that_is_not_kies_own_does_not_say_that_there_is_no_task():
    assert type(classify(answer({"msg": "success"}), safe=False)) is OutcomeUnknown


def test_a_task_id_does_not_outweigh_an_error():
    assert type(classify(answer(said(500, "", {"taskId": "t1"})), safe=False)) is OutcomeUnknown
    assert type(classify(answer({"taskId": "t1"}, status=500), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"data": {"taskId": 1765184045509}}, "1765184045509"),
        ({"data": {"taskId": " t1 ", "task_id": "t2"}, "taskId": "t3"}, "t1"),
        ({"data": {"taskId": [1]}, "taskId": "t3"}, "t3"),
        ({"data": ["t1"]}, ""),
        ([], ""),
        (None, ""),
    ],
    ids=["number", "nearest", "next", "list", "no object", "nothing"],
)
def test_a_task_id_is_found_wherever_it_stands(body, found):
    assert task_id(body) == found


@pytest.mark.parametrize("data", [100, 12.5, 0, None])
def test_another_call_needs_no_shape_of_its_own(data):
    assert classify(answer(said(200, "success", data), CREDIT), safe=True) is None


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({}, 10.0), ({"retry-after": "25"}, 25.0), ({"retry-after": "soon"}, 10.0)],
    ids=["none", "given", "strange"],
)
@pytest.mark.parametrize(
    ("body", "status"),
    [(said(429), 200), (said("429"), 429), ({"msg": "slow"}, 429), (b"error code: 1015", 429)],
    ids=["code", "both", "status", "Cloudflare"],
)
@pytest.mark.parametrize("call", [CREATE, LOOK])
def test_a_rate_limit_waits_as_told_or_ten_seconds(call, body, status, headers, wait):
    verdict = classify(answer(body, call, status=status, **headers), safe=False)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == wait


def test_only_a_rate_limit_has_a_time_of_its_own():
    assert classify(answer(said(455)), safe=False).retry_after is None
    assert classify(answer(said(455), **{"retry-after": "60"}), safe=False).retry_after == 60


@pytest.mark.parametrize(
    ("code", "msg"),
    [(500, PAUSED), (422, UNKNOWN_MODEL), (404, "Not found"), (505, "Disabled")],
    ids=["paused", "unknown", "404", "505"],
)
def test_a_model_that_is_gone_says_which_setting_to_change(code, msg):
    verdict = classify(answer(said(code, msg)), safe=False)

    assert type(verdict) is NotConfigured
    assert "KIE_MODEL" in verdict.detail


@BOTH
def test_a_refused_user_agent_is_no_refused_key(safe):
    verdict = classify(answer(b"error code: 1010", status=403), safe=safe)

    assert type(verdict) is NotConfigured
    assert "1010" in verdict.detail
    assert "User-Agent" in verdict.detail


FOREIGN = {
    "nothing": b"",
    "html": b"<html><title>502 Bad Gateway</title></html>",
    "cut short": b'{"code": 200, "data": {"taskId": "t',
    "not text": b"\xff\xfe\x00\xd8",
    "list": b"[1]",
    "null": b"null",
    "empty": b"{}",
    "another server": b'{"timestamp": 1, "status": 404, "error": "Not Found"}',
    "endless": b"[" * 100_000,
    "huge number": b"9" * 10_000,
    "huge code": b'{"code": ' + b"9" * 4000 + b"}",
    "not a number": b'{"code": NaN}',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("call", [CREATE, LOOK, CREDIT])
def test_a_200_that_makes_no_sense_is_in_doubt(body, call):
    assert type(classify(answer(body, call), safe=True)) is InternalError
    assert type(classify(answer(body, call), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [408, 500, 502, 504, 520, 524])
@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_a_gateway_leaves_a_create_in_doubt(body, status):
    assert type(classify(answer(body, status=status), safe=True)) is ServiceUnavailable
    assert type(classify(answer(body, status=status), safe=False)) is OutcomeUnknown


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
    ],
)
@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_a_strangers_refusal_means_what_its_status_says(body, status, kind):
    verdict = classify(answer(body, LOOK, status=status), safe=False)

    assert type(verdict) is kind
    assert str(status) in verdict.detail


@pytest.mark.parametrize(
    "body",
    [
        said(401, f"Bearer {KEY} is wrong, see {BASE}?key={KEY}"),
        said(422, f"{KEY} <b>{KEY}</b>"),
        said(500, f"{PAUSED} {KEY}"),
        said(501, "x", {"failMsg": f"{PEOPLE} {KEY}"}),
        said(KEY, KEY),
        f"{KEY} error code: 1010".encode(),
    ],
    ids=["address", "tags", "model", "failure", "code", "bare"],
)
@pytest.mark.parametrize("status", [200, 403, 502])
def test_the_key_never_gets_out(body, status):
    verdict = classify(answer(body, status=status), safe=False)

    assert KEY not in f"{verdict!s} {verdict!r} {vars(verdict)}"
    assert "://" not in verdict.detail


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (CREATE, "createTask"),
        (LOOK, "recordInfo"),
        (CREDIT, "credit"),
        ("common/download-url/", "download-url"),
        ("jobs/0123456789abcdef", ""),
        ("", ""),
    ],
)
def test_the_operation_is_the_last_word_of_the_path(call, operation):
    assert classify(answer(said(401), call), safe=True).operation == operation


def test_an_answer_without_its_request_is_judged_all_the_same():
    verdict = classify(httpx.Response(200, json=said(402, "x")), safe=True)

    assert type(verdict) is BillingExhausted
    assert verdict.operation == ""


def test_a_long_text_is_cut():
    verdict = classify_failure("E" * 9999, "я " * 9999)

    assert len(verdict.detail) == 300
    assert len(verdict.code) == 40


@pytest.mark.parametrize("word", ["image ", "not ", "minimum ", "at least 1", "x", "\n"])
def test_only_the_beginning_of_an_endless_text_is_read(word):
    verdict = classify_failure("500", word * 2000 + PEOPLE)

    assert type(verdict) is ServiceUnavailable


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
words = st.sampled_from([*CODES, "200", 200, 501, PEOPLE, PAUSED, CREDITS, "t1", KEY, BASE + KEY])
anything = st.recursive(
    scalars | words,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["taskId", "state", "failCode", "failMsg"]), inner)
    ),
    max_leaves=4,
)
bodies = st.fixed_dictionaries({}, optional={"code": anything, "msg": anything, "data": anything})
calls = st.sampled_from([CREATE, LOOK, CREDIT, ""])


@given(bodies | anything, calls, st.integers(100, 599), st.booleans())
@example({"code": 500, "msg": "\ud800"}, CREATE, 200, False)
def test_any_answer_is_judged_and_can_be_sent_on(body, call, status, safe):
    verdict = classify(answer(body, call, status=status), safe=safe)

    if verdict is None:
        assert call != CREATE or task_id(body)
    else:
        facts = json.dumps(vars(pickle.loads(pickle.dumps(verdict))), ensure_ascii=False)
        assert facts.encode()
        assert KEY not in facts


@given(bodies, st.integers(100, 599))
def test_a_create_is_only_repeated_where_nothing_can_have_come_of_it(body, status):
    verdict = classify(answer(body, status=status), safe=False)

    if isinstance(verdict, Retryable):
        # KIE gave up, maintenance, a generation that failed, no task; 425 is RFC 8470's refusal.
        assert re.fullmatch(r"408|455|501|2[0-9][0-9]|(HTTP )?425", verdict.code)


@given(st.binary(max_size=200), st.integers(100, 599), st.booleans())
def test_any_bytes_are_judged(body, status, safe):
    verdict = classify(answer(body, status=status), safe=safe)

    assert isinstance(verdict, JobError)


@given(anything, anything)
@example(10**5000, 10**5000)
def test_any_failure_is_judged(code, text):
    assert isinstance(classify_failure(code, text), JobError)
    assert classify_kie_error(text) in {"user_error", "transient", "unknown"}
