"""What a FHIR server's answer means."""

from __future__ import annotations

import pickle
from typing import Any

import httpx
import pytest

from classifiers.errors import (
    BillingExhausted,
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
)
from classifiers.fhir import ISSUES, classify

TOKEN = "s3cr3t-t0ken"
BASE = "https://fhir.example.com/r4"

# Value set `issue-type` of R4: everything that can be said of a failure.
CODES = {
    *("invalid", "structure", "required", "value", "invariant", "security", "login", "unknown"),
    *("expired", "forbidden", "suppressed", "processing", "not-supported", "duplicate"),
    *("multiple-matches", "not-found", "deleted", "too-long", "code-invalid", "extension"),
    *("too-costly", "business-rule", "conflict", "transient", "lock-error", "no-store"),
    *("exception", "timeout", "incomplete", "throttled"),
}


def outcome(code: str, severity: str = "error", **more: Any) -> dict[str, Any]:
    issue = {"severity": severity, "code": code, **more}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def answer(status: int, body: Any = None, verb: str = "POST", path: str = "/Patient", **headers):
    request = httpx.Request(verb, BASE + path, headers={"Authorization": f"Bearer {TOKEN}"})
    content = (
        {} if body is None else {"content": body} if isinstance(body, bytes) else {"json": body}
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, request=request, headers=named, **content)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "response",
    [
        pytest.param(answer(201), id="created, without a body"),
        pytest.param(answer(200, {"resourceType": "Patient", "id": "7"}), id="stored"),
        pytest.param(answer(200, outcome("informational", "information")), id="a remark"),
        pytest.param(answer(200, outcome("invalid", "warning")), id="a warning"),
        pytest.param(answer(200, b"<html>"), id="no JSON, after all a success"),
        pytest.param(answer(200, {"resourceType": "OperationOutcome", "issue": {}}), id="no list"),
    ],
)
def test_what_was_taken_is_a_success(response, safe):
    assert classify(response, safe=safe) is None


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "structure", InvalidData),
        (422, "required", MissingFields),
        (422, "business-rule", BusinessRule),
        (422, "value", InvalidData),
        (400, "not-supported", InvalidData),
        (409, "duplicate", BusinessRule),
        (409, "lock-error", ServiceUnavailable),
        (412, "multiple-matches", BusinessRule),
        (400, "expired", Unauthorized),
        (400, "throttled", RateLimited),
        (503, "throttled", RateLimited),
        (401, "login", Unauthorized),
        (401, "processing", Unauthorized),  # the status speaks for itself
        (402, "business-rule", BillingExhausted),
        (403, "forbidden", Forbidden),
        (404, "not-found", NotFound),
        (405, "", NotConfigured),
        (405, "not-supported", InvalidData),  # this resource may not be put under an id of ours
        (410, "deleted", NotFound),
        (429, "processing", RateLimited),
        (400, "", InvalidData),
        (409, "", BusinessRule),
        (301, "", NotConfigured),
    ],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
def test_a_refusal_means_what_its_status_and_its_code_say(status, code, kind, safe):
    body = outcome(code) if code else None

    error = classify(answer(status, body), safe=safe)

    assert type(error) is kind
    assert error.code == (code or str(status))
    assert error.service == "integration"


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "exception"), (500, "processing"), (502, ""), (503, ""), (504, "timeout"), (408, "")],
)
def test_a_server_that_breaks_leaves_a_doubt_where_repeating_is_not_safe(status, code):
    response = answer(status, outcome(code) if code else None)

    assert type(classify(response, safe=True)) is ServiceUnavailable
    assert type(classify(response, safe=False)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("code", "kind"),
    [("ok", None), ("fatal-error", InvalidData), ("transient-error", ServiceUnavailable)],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
def test_a_message_in_reply_says_whether_ours_was_processed(code, kind, safe):
    header = {"resourceType": "MessageHeader", "response": {"identifier": "1", "code": code}}
    entries = [{"resource": header}, {"resource": outcome("value", diagnostics="no such ward")}]
    reply = {"resourceType": "Bundle", "type": "message", "entry": entries}

    error = classify(answer(200, reply, path="/$process-message"), safe=safe)

    assert type(error) is (kind or type(None))
    assert error is None or (error.code, error.detail) == (code, "no such ward")


@pytest.mark.parametrize(
    "entries", [None, [], ["x"], [{}], [{"resource": 1}], [{"resource": {"response": "ok"}}]]
)
def test_a_message_in_reply_may_be_odd(entries):
    reply = {"resourceType": "Bundle", "type": "message", "entry": entries}

    assert classify(answer(200, reply), safe=False) is None


def test_a_page_for_people_is_no_success():
    page = answer(200, b"<html>please log in", Content_Type="text/html; charset=utf-8")

    assert type(classify(page, safe=True)) is InternalError
    assert type(classify(page, safe=False)) is OutcomeUnknown


def test_an_answer_without_its_request_has_no_operation():
    error = classify(httpx.Response(422, json=outcome("required", diagnostics="x")), safe=True)

    assert (type(error), error.operation, error.detail) == (MissingFields, "", "x")


def test_a_timeout_that_is_told_with_a_refusal_leaves_a_doubt_all_the_same():
    assert type(classify(answer(400, outcome("timeout")), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize(
    ("code", "kind"),
    [("required", MissingFields), ("exception", OutcomeUnknown), ("nonsense", InvalidData)],
)
def test_an_error_in_a_success_is_no_success(code, kind):
    assert type(classify(answer(200, outcome(code, "fatal")), safe=False)) is kind


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_of_an_issue_is_known(code):
    assert issubclass(ISSUES[code], JobError)


def test_no_code_is_made_up():
    assert set(ISSUES) <= CODES


def test_the_first_code_that_we_know_decides():
    body = {
        "resourceType": "OperationOutcome",
        "issue": [
            {"severity": "warning", "code": "forbidden"},
            {"severity": "error", "code": "of-their-own"},
            {"severity": "error", "code": "required", "diagnostics": "name"},
            "no object",
        ],
    }

    assert type(classify(answer(422, body), safe=False)) is MissingFields


def test_a_rate_limit_says_when_to_come_back():
    error = classify(answer(429, outcome("throttled"), Retry_After="17"), safe=False)

    assert error.retry_after == 17


def test_the_detail_tells_where_and_what_and_no_secret():
    issue = outcome(
        "value",
        expression=["Patient.birthDate"],
        diagnostics=f"not a date; sent with Bearer {TOKEN} to https://fhir.example.com/r4/Patient",
    )

    error = classify(answer(422, issue, path="/Patient"), safe=False)

    assert error.detail.startswith("Patient.birthDate: not a date")
    assert TOKEN not in str(error)
    assert "fhir.example.com" not in str(error)


@pytest.mark.parametrize(
    ("verb", "path", "operation"),
    [
        ("POST", "/Patient", "create Patient"),
        ("PUT", "/Patient/81-7", "update Patient"),
        ("PUT", "/Patient/Ivanova", "update Patient"),
        ("GET", "/Observation?_tag=x", "search Observation"),
        ("POST", "", "create"),
    ],
)
def test_the_operation_names_the_kind_of_resource_and_no_id(verb, path, operation):
    error = classify(answer(500, verb=verb, path=path), safe=True)

    assert error.operation == operation


def test_an_error_travels_with_its_facts():
    error = classify(answer(422, outcome("required")), safe=False)

    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
