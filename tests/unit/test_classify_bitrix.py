"""What a Bitrix24 answer means."""

from __future__ import annotations

import json
import pickle

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.bitrix import CODES, classify, classify_error
from classifiers.errors import (
    BillingExhausted,
    Blocked,
    BusinessRule,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    MissingFields,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
)

SECRET = "s3cr3tc0de"
BASE = f"https://portal.example/rest/1/{SECRET}/"
BOTH = pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])


def answer(
    status: int, body: object, *, url: str = f"{BASE}crm.deal.add.json", **headers: str
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(
        status, content=content, headers=headers, request=httpx.Request("POST", url)
    )


def error(code: object, text: object = "Something happened") -> dict[str, object]:
    return {"error": code, "error_description": text}


# UPSTREAMS 1.3: code → (statuses of both columns, class)
ROWS = {
    "QUERY_LIMIT_EXCEEDED": ((503,), RateLimited),
    "OPERATION_TIME_LIMIT": ((429, 200), RateLimited),
    "OVERLOAD_LIMIT": ((503, 401), Blocked),
    "NO_AUTH_FOUND": ((401,), Unauthorized),
    "INVALID_CREDENTIALS": ((403, 401), Unauthorized),
    "insufficient_scope": ((403, 401), Forbidden),
    "expired_token": ((401,), Unauthorized),
    "user_access_error": ((403, 401), Forbidden),
    "ACCESS_DENIED": ((403, 401, 400), Forbidden),
    "INVALID_REQUEST": ((400, 401), NotConfigured),
    "PORTAL_DELETED": ((500, 403), NotConfigured),
    "ERROR_METHOD_NOT_FOUND": ((404, 400), NotConfigured),
    "PAYMENT_REQUIRED": ((401, 402), BillingExhausted),
    "ERROR_BATCH_LENGTH_EXCEEDED": ((400, 405, 200), InvalidData),
    "ERROR_BATCH_METHOD_NOT_ALLOWED": ((400, 405, 200), InvalidData),
    "ERROR_CORE": ((400,), InvalidData),
    "NOT_FOUND": ((400, 404), NotFound),
    "INVALID_ARG_VALUE": ((400,), InvalidData),
    "CRM_FIELD_ERROR_VALUE_NOT_VALID": ((400,), InvalidData),
    "CRM_FIELD_ERROR_REQUIRED": ((400,), MissingFields),
    "100": ((400,), InvalidData),
    "allowed_only_intranet_user": ((403,), Forbidden),
    "METHOD_CONFIRM_WAITING": ((401,), Forbidden),
    "METHOD_CONFIRM_DENIED": ((403,), Forbidden),
}
DOUBTFUL = ("INTERNAL_SERVER_ERROR", "ERROR_UNEXPECTED_ANSWER")


def test_the_rows_are_the_codes():
    assert {code.upper() for code in (*ROWS, *DOUBTFUL)} == set(CODES)


@BOTH
@pytest.mark.parametrize("spell", [str, str.upper, str.lower], ids=["as is", "upper", "lower"])
@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [(code, status, kind) for code, (statuses, kind) in ROWS.items() for status in statuses],
)
def test_a_code_decides_whatever_its_status_and_spelling(code, status, kind, spell, safe):
    verdict = classify(answer(status, error(spell(code))), safe=safe)

    assert type(verdict) is kind
    assert verdict.code == spell(code)
    assert verdict.service == "bitrix"
    assert verdict.operation == "crm.deal.add"
    assert verdict.detail == "Something happened"
    assert verdict.retry_after is None


@pytest.mark.parametrize("status", [500, 200])
@pytest.mark.parametrize("code", DOUBTFUL)
def test_a_failed_portal_leaves_a_write_in_doubt(code, status):
    assert type(classify(answer(status, error(code)), safe=True)) is ServiceUnavailable
    assert type(classify(answer(status, error(code)), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("code", [100, "100", 100.5, None, True, ["a"], {"code": "100"}])
def test_a_code_may_be_of_any_type(code):
    assert isinstance(classify(answer(400, error(code)), safe=False), InvalidData)


TEXTS = {
    "not found": ("Not found", NotFound),
    "entity not found": ("Contact is not found", NotFound),
    "not found, Russian": ("Элемент не найден", NotFound),
    "not found, Russian, she": ("Сделка НЕ НАЙДЕНА", NotFound),
    "denied": ("Access denied.", Forbidden),
    "denied, Russian": ("Доступ запрещён", Forbidden),
    "denied or not found": ("Element not found or access denied", Forbidden),
    "bad id": ("ID is not defined or invalid.", InvalidData),
    "bad fields": ("Parameter 'fields' must be array.", InvalidData),
    "currency": ('Invalid value for the "Currency" field', InvalidData),
    "required": ('The field "Title" is required.', MissingFields),
    "required, Russian": ("Поле обязательно для заполнения", MissingFields),
    "required, not found": ("Required parameter is not found", MissingFields),
    "exists": ("Element already exists", BusinessRule),
    "disk": ("Disk resource exhausted", NotConfigured),
    "nothing known": ("Что-то пошло не так", InvalidData),
}


@BOTH
@pytest.mark.parametrize(("text", "kind"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("code", ["", None, "  "], ids=["empty", "null", "blank"])
def test_without_a_code_the_text_decides(code, text, kind, safe):
    verdict = classify(answer(400, error(code, text)), safe=safe)

    assert type(verdict) is kind
    assert verdict.code == ""
    assert verdict.detail == text


@BOTH
@pytest.mark.parametrize(("text", "kind"), TEXTS.values(), ids=TEXTS)
def test_a_text_may_stand_where_the_code_should(text, kind, safe):
    verdict = classify(answer(400, {"error": text}), safe=safe)

    assert type(verdict) is kind
    assert verdict.detail == text


def test_a_communication_type_is_invalid_data():
    verdict = classify(answer(400, {"error": "Communication type is not defined"}), safe=True)

    assert type(verdict) is InvalidData
    assert verdict.detail == "Communication type is not defined"


@pytest.mark.parametrize("text", ["Failed to get list. General error", "Internal server error"])
def test_a_failed_list_is_a_failure_of_theirs(text):
    assert type(classify(answer(400, error("", text)), safe=True)) is ServiceUnavailable
    assert type(classify(answer(400, error("", text)), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("status", "safe", "kind"),
    [
        (401, False, Unauthorized),
        (403, False, Forbidden),
        (404, False, NotFound),
        (500, True, ServiceUnavailable),
        (500, False, OutcomeUnknown),
    ],
)
def test_without_a_code_another_status_than_400_decides(status, safe, kind):
    assert type(classify(answer(status, error("", "Not found?")), safe=safe)) is kind


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("ERROR_CORE", "Status already exists", BusinessRule),
        ("ERROR_CORE", "Элемент уже существует", BusinessRule),
        ("ERROR_CORE", "Task title is not specified<br>", MissingFields),
        ("ERROR_CORE", "The field Work e-mail contains an incorrect address", InvalidData),
        ("ERROR_CORE", "Responsible user not found", InvalidData),
        ("ERROR_CORE", "Access denied", InvalidData),
        (100, "Could not find value for parameter {fields} (internal error)", MissingFields),
        (100, "Invalid value {x} to match with parameter {id}.", InvalidData),
        ("INVALID_ARG_VALUE", "The field is required", MissingFields),
        ("NOT_FOUND", "The field is required", NotFound),
        ("ACCESS_DENIED", "Commercial plan required", Forbidden),
    ],
)
def test_a_text_only_says_more_exactly_what_the_code_says(code, text, kind):
    assert type(classify(answer(400, error(code, text)), safe=False)) is kind


@pytest.mark.parametrize(
    ("status", "safe", "kind"),
    [
        (400, False, InvalidData),
        (401, False, Unauthorized),
        (403, False, Forbidden),
        (404, False, NotFound),
        (429, False, RateLimited),
        (500, True, ServiceUnavailable),
        (500, False, OutcomeUnknown),
        (503, False, OutcomeUnknown),
        (200, True, Unclassified),
        (200, False, OutcomeUnknown),  # what nobody knows promises nothing
    ],
)
def test_an_unknown_code_leaves_the_status_to_decide(status, safe, kind):
    verdict = classify(answer(status, error("BRAND_NEW")), safe=safe)

    assert type(verdict) is kind
    assert (verdict.code, verdict.detail) == ("BRAND_NEW", "Something happened")


@pytest.mark.parametrize(
    "result",
    [394, True, False, 0, None, [], {}, "", {"result": [], "result_error": {"a": error("X")}}],
    ids=str,
)
@pytest.mark.parametrize(
    "more", [{}, {"time": {}}, {"error": None}, {"error": ""}, error("", "")], ids=str
)
def test_any_result_is_success(result, more):
    assert classify(answer(200, {"result": result, **more}), safe=False) is None


@pytest.mark.parametrize("status", [200, 201])
def test_an_error_outweighs_a_result(status):
    verdict = classify(answer(status, {"result": True, **error("NOT_FOUND")}), safe=False)

    assert type(verdict) is NotFound


def test_a_description_alone_outweighs_a_result():
    verdict = classify(answer(200, {"result": None, **error("", "Not found")}), safe=True)

    assert type(verdict) is NotFound


def test_a_code_may_stand_in_an_object():
    body = {"error": {"code": "INSUFFICIENT_SCOPE", "message": "Needs crm"}}

    verdict = classify(answer(400, body), safe=True)

    assert type(verdict) is Forbidden
    assert (verdict.code, verdict.detail) == ("INSUFFICIENT_SCOPE", "Needs crm")


NONSENSE = {
    "nothing": b"",
    "html": b"<html><title>502 Bad Gateway</title></html>",
    "cut short": b'{"result": {"ID": "4',
    "not text": b"\xff\xfe\x00\xd8",
    "list": b"[1]",
    "number": b"7",
    "null": b"null",
    "empty": b"{}",
    "only time": b'{"time": {}}',
    "null error": b'{"error": null}',
    "odd error": b'{"error": [1], "result": 1}',
    "true for a code": b'{"error": true}',
    "endless": b"[" * 100_000,
    "huge number": b"9" * 10_000,
}


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_a_200_that_makes_no_sense_is_in_doubt(body):
    assert type(classify(answer(200, body), safe=True)) is InternalError
    assert type(classify(answer(200, body), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520])
@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_a_gateway_leaves_a_write_in_doubt(body, status):
    assert type(classify(answer(status, body), safe=True)) is ServiceUnavailable
    assert type(classify(answer(status, body), safe=False)) is OutcomeUnknown


def test_a_result_with_a_bad_status_is_no_success():
    assert type(classify(answer(500, {"result": 394}), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [404, 410])
def test_a_foreign_not_found_is_not_a_missing_deal(status):
    verdict = classify(answer(status, b"<html>nginx</html>"), safe=True)

    assert type(verdict) is NotConfigured
    assert "BITRIX_WEBHOOK_URL" in verdict.detail


@pytest.mark.parametrize("body", [b"", b"<html>", error("QUERY_LIMIT_EXCEEDED"), {"result": 1}])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_moved_portal_tells_its_host_alone(status, body):
    location = f"https://user:{SECRET}@new.example/rest/1/{SECRET}/crm.deal.add?auth={SECRET}"

    verdict = classify(answer(status, body, location=location), safe=False)

    assert type(verdict) is NotConfigured
    assert verdict.detail == "the portal moved to new.example: update BITRIX_WEBHOOK_URL"
    assert SECRET not in repr(vars(verdict))


@pytest.mark.parametrize(
    "location", [None, "", f"/rest/1/{SECRET}/", "https://new.example:port/", "//"]
)
def test_a_moved_portal_may_not_say_where(location):
    headers = {} if location is None else {"location": location}

    verdict = classify(answer(302, b"", **headers), safe=False)

    assert verdict.detail == "the portal moved to another address: update BITRIX_WEBHOOK_URL"


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        (f"{BASE}crm.deal.add.json", "crm.deal.add"),
        (f"{BASE}crm.deal.add", "crm.deal.add"),
        (f"{BASE}crm.deal.add/", "crm.deal.add"),
        (f"{BASE}batch.json?halt=0", "batch"),
        (f"{BASE}profile", "profile"),
        (f"http://127.0.0.1:8080/rest/api/1/{SECRET}/crm.item.get", "crm.item.get"),
        (f"http://127.0.0.1/1/{SECRET}/crm.deal.get", "crm.deal.get"),
        (BASE, ""),
        (f"https://portal.example/rest/1/{SECRET}", ""),
        (f"https://portal.example/rest/1/{SECRET}.json", ""),
        ("https://portal.example", ""),
    ],
)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            400,
            error("ERROR_CORE", f"webhook {SECRET} is wrong, see {BASE}profile or rest/1/{SECRET}"),
        ),
        (401, error("INVALID_CREDENTIALS", f"&lt;a href={BASE}&gt;{SECRET}&lt;/a&gt;")),
        (400, error(SECRET, SECRET)),
        (400, error(BASE, "")),
        (500, error(f"{BASE}x", BASE)),
        (200, error(SECRET, BASE)),
        (502, f"<html>{BASE}</html>".encode()),
        (404, f"{BASE} not found".encode()),
    ],
)
def test_the_webhook_code_never_gets_out(url, operation, status, body):
    verdict = classify(answer(status, body, url=url), safe=False)

    assert verdict.operation == operation
    if SECRET in url:
        assert SECRET not in f"{verdict!s} {verdict!r} {vars(verdict)}"


def test_an_answer_without_its_request_has_no_operation():
    response = httpx.Response(400, json=error("ERROR_CORE"))

    assert classify(response, safe=True).operation == ""


def test_the_users_number_is_no_secret():
    verdict = classify(answer(400, error("ERROR_CORE", "row 1"), url=BASE), safe=True)

    assert verdict.detail == "row 1"


def test_a_long_description_is_cut():
    verdict = classify(answer(400, error("ERROR_CORE", "<p>я\x00</p>" * 999)), safe=True)

    assert len(verdict.detail) == 300
    assert verdict.detail.startswith("я я я")


@pytest.mark.parametrize("body", [b"<html>", error("QUERY_LIMIT_EXCEEDED")], ids=["proxy", "code"])
def test_a_time_to_wait_is_kept_when_there_is_one(body):
    verdict = classify(answer(429, body, **{"retry-after": "9"}), safe=False)

    assert type(verdict) is RateLimited
    assert verdict.retry_after == 9


@pytest.mark.parametrize(
    ("entry", "safe", "kind"),
    [
        (("OPERATION_TIME_LIMIT", "Method is blocked"), False, RateLimited),
        (("INTERNAL_SERVER_ERROR", ""), True, ServiceUnavailable),
        (("INTERNAL_SERVER_ERROR", ""), False, OutcomeUnknown),
        (("", "Not found"), True, NotFound),
        ((100, "Could not find value for parameter {id}"), True, MissingFields),
        (("Access denied", None), True, Forbidden),
        (("Something odd", ""), True, InvalidData),
        (("BRAND_NEW", ""), True, Unclassified),
        (("BRAND_NEW", ""), False, OutcomeUnknown),
        (("", ""), True, InvalidData),
    ],
    ids=str,
)
def test_a_failure_inside_a_batch_has_no_status_of_its_own(entry, safe, kind):
    verdict = classify_error(*entry, safe=safe, operation="crm.deal.update")

    assert type(verdict) is kind
    assert (verdict.service, verdict.operation) == ("bitrix", "crm.deal.update")


def test_a_bare_error_uses_the_status_it_is_given():
    assert type(classify_error("BRAND_NEW", "", safe=False, status=500)) is OutcomeUnknown


def test_a_description_gives_no_address_away():
    verdict = classify_error(f"see {BASE}", f"{BASE}batch?x=1", safe=True)

    assert SECRET not in f"{verdict!s} {verdict!r}"


@given(st.binary(max_size=200), st.integers(100, 599), st.booleans())
@example(b'{"error": "\\ud800", "error_description": "\\ud800"}', 400, False)
def test_any_bytes_are_judged(body, status, safe):
    verdict = classify(answer(status, body), safe=safe)

    assert verdict is None or isinstance(verdict, JobError)
    assert verdict is not None or httpx.codes.is_success(status)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars | st.sampled_from([*CODES, "Not found"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
bodies = st.fixed_dictionaries(
    {}, optional={"result": anything, "error": anything, "error_description": anything}
)


@given(bodies, st.integers(100, 599), st.booleans(), st.text(max_size=30))
def test_any_object_is_judged_and_can_be_sent_on(body, status, safe, header):
    headers = {"retry-after": header.encode("utf-8", "replace"), "location": header.encode()}
    response = httpx.Response(
        status,
        content=json.dumps(body).encode(),
        headers=headers,
        request=httpx.Request("POST", BASE),
    )

    verdict = classify(response, safe=safe)

    if verdict is None:
        assert "result" in body
    else:
        facts = vars(pickle.loads(pickle.dumps(verdict)))
        assert json.dumps(facts, ensure_ascii=False).encode()
        assert len(verdict.detail) <= 400
