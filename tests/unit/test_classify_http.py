"""What the HTTP layer alone can tell."""

from __future__ import annotations

import errno
import inspect
import socket
import ssl
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.errors import (
    BillingExhausted,
    BusinessRule,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from classifiers.http import (
    TRANSPORT,
    classify_status,
    classify_transport,
    parse_retry_after,
    plain_text,
    retry_after,
)

SECRET = "s3cr3tc0de"
ADDRESS = f"https://portal.example/rest/1/{SECRET}/crm.deal.add.json"
NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def httpx_errors() -> set[type[httpx.RequestError]]:
    return {
        kind
        for kind in vars(httpx).values()
        if inspect.isclass(kind) and issubclass(kind, httpx.RequestError)
    }


# kind of break → (when repeating is safe, when it is not)
BREAKS = {
    httpx.ConnectError: (NetworkError, NetworkError),
    httpx.ConnectTimeout: (NetworkError, NetworkError),
    httpx.PoolTimeout: (NetworkError, NetworkError),
    httpx.ProxyError: (NetworkError, NetworkError),
    httpx.UnsupportedProtocol: (NotConfigured, NotConfigured),
    httpx.LocalProtocolError: (InternalError, InternalError),
    httpx.TooManyRedirects: (NotConfigured, NotConfigured),
    httpx.ReadTimeout: (ServiceUnavailable, OutcomeUnknown),
    httpx.WriteTimeout: (ServiceUnavailable, OutcomeUnknown),
    httpx.TimeoutException: (ServiceUnavailable, OutcomeUnknown),
    httpx.ReadError: (ServiceUnavailable, OutcomeUnknown),
    httpx.WriteError: (ServiceUnavailable, OutcomeUnknown),
    httpx.CloseError: (ServiceUnavailable, OutcomeUnknown),
    httpx.NetworkError: (ServiceUnavailable, OutcomeUnknown),
    httpx.RemoteProtocolError: (ServiceUnavailable, OutcomeUnknown),
    httpx.ProtocolError: (ServiceUnavailable, OutcomeUnknown),
    httpx.TransportError: (ServiceUnavailable, OutcomeUnknown),
    httpx.RequestError: (ServiceUnavailable, OutcomeUnknown),
    httpx.DecodingError: (InternalError, OutcomeUnknown),
}


def test_every_error_of_httpx_stands_in_the_table():
    assert set(TRANSPORT) == httpx_errors()
    assert set(BREAKS) == httpx_errors()


@pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
@pytest.mark.parametrize("kind", BREAKS, ids=lambda kind: kind.__name__)
def test_a_break_is_judged_by_whether_bytes_may_have_left(kind, safe):
    verdict = classify_transport(kind("x"), safe=safe, service="bitrix", operation="batch")

    assert type(verdict) is BREAKS[kind][0 if safe else 1]
    assert (verdict.service, verdict.operation) == ("bitrix", "batch")
    assert verdict.code == kind.__name__


def test_the_nearest_ancestor_decides():
    class SlowConnect(httpx.ConnectTimeout):
        """Its ancestors disagree: ConnectTimeout was not sent, TimeoutException may have been."""

    assert type(classify_transport(SlowConnect("x"), safe=False)) is NetworkError


def test_an_unheard_of_error_counts_as_sent():
    class Novelty(httpx.TransportError):
        pass

    assert type(classify_transport(Novelty("x"), safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("kind", BREAKS, ids=lambda kind: kind.__name__)
def test_a_break_never_tells_the_address(kind):
    error = kind(f"cannot reach {ADDRESS}", request=httpx.Request("POST", ADDRESS))
    error.__cause__ = OSError(errno.ECONNREFUSED, f"refused by {ADDRESS}", ADDRESS)

    verdict = classify_transport(error, safe=False)

    assert SECRET not in f"{verdict!s} {verdict!r} {verdict.detail} {vars(verdict)}"
    assert "portal.example" not in verdict.detail


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "name could not be resolved"),
        (ssl.SSLCertVerificationError(1, "x"), "certificate was not accepted"),
        (ssl.SSLError(1, "x"), "no secure connection"),
        (OSError("x"), "could not connect"),
    ],
    ids=["refused", "name", "certificate", "tls", "without number"],
)
def test_a_break_tells_what_the_system_said(cause, words):
    lower = RuntimeError("httpcore")
    lower.__context__ = cause
    error = httpx.ConnectError("x")
    error.__cause__ = lower

    assert words in classify_transport(error, safe=True).detail


def test_a_real_refusal_is_a_network_error():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = unheard.getsockname()[1]
        with pytest.raises(httpx.ConnectError) as caught:
            httpx.get(f"http://127.0.0.1:{port}/rest/1/{SECRET}/profile", trust_env=False)

    verdict = classify_transport(caught.value, safe=False)

    assert type(verdict) is NetworkError
    assert verdict.detail == "could not connect: Connection refused"


def test_causes_in_a_circle_end():
    error = httpx.ReadError("x")
    error.__cause__ = RuntimeError("y")
    error.__cause__.__cause__ = error

    assert type(classify_transport(error, safe=True)) is ServiceUnavailable


EXACT = {
    400: InvalidData,
    401: Unauthorized,
    402: BillingExhausted,
    403: Forbidden,
    404: NotFound,
    405: NotConfigured,
    407: NotConfigured,
    409: BusinessRule,
    410: NotFound,
    412: BusinessRule,
    413: InvalidData,
    415: InvalidData,
    418: InvalidData,
    422: InvalidData,
    425: ServiceUnavailable,
    429: RateLimited,
    431: InvalidData,
    451: Forbidden,
}


@pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
@pytest.mark.parametrize(("status", "kind"), EXACT.items(), ids=str)
def test_a_refusal_means_the_same_for_every_call(status, kind, safe):
    assert type(classify_status(status, safe=safe)) is kind


@pytest.mark.parametrize("status", [408, *range(500, 600)])
def test_a_failure_on_their_side_is_in_doubt_unless_safe(status):
    assert type(classify_status(status, safe=True)) is ServiceUnavailable
    assert type(classify_status(status, safe=False)) is OutcomeUnknown


@pytest.mark.parametrize("status", [100, 101, 199, 600, 999])
def test_what_is_no_final_answer_is_in_doubt(status):
    assert type(classify_status(status, safe=True)) is InternalError
    assert type(classify_status(status, safe=False)) is OutcomeUnknown


def test_every_status_from_300_is_classified():
    verdicts = [
        classify_status(status, safe=safe) for status in range(300, 600) for safe in (True, False)
    ]

    assert all(isinstance(verdict, JobError) for verdict in verdicts)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success_is_none(status):
    assert classify_status(status, safe=False) is None


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_a_setting_to_repair(status):
    assert type(classify_status(status, safe=False)) is NotConfigured


def test_a_status_carries_the_facts_it_was_given():
    verdict = classify_status(
        429,
        safe=True,
        service="x",
        operation="GET /2/users",
        code="88",
        detail="slow",
        retry_after=9,
    )

    assert vars(verdict) == {
        "service": "x",
        "operation": "GET /2/users",
        "code": "88",
        "detail": "slow",
        "retry_after": 9,
    }


def test_a_bare_status_is_its_own_code():
    verdict = classify_status(502, safe=True)

    assert (verdict.code, verdict.detail) == ("502", "answered with HTTP status 502")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("Sun, 22 Nov 2026 12:01:30 GMT", 90.0),
        ("Sun, 22 Nov 2026 15:01:30 +0300", 90.0),
        ("Sun, 22 Nov 2026 12:01:30", 90.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("9" * 400, None),
        ("٣", None),
        ("5, 7", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
    assert parse_retry_after(value, now=NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_is_too_strange(value):
    seconds = parse_retry_after(value, now=NOW)

    assert seconds is None or 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Sun, 22 Nov 2026 12:01:30 GMT"}, None),
        (
            {
                "Retry-After": "Sun, 22 Nov 2026 12:01:30 GMT",
                "Date": "Sun, 22 Nov 2026 12:01:00 GMT",
            },
            30.0,
        ),
        ({}, None),
    ],
    ids=["seconds", "date alone", "date against date", "none"],
)
def test_a_date_counts_from_the_date_of_the_answer(headers, seconds):
    assert retry_after(httpx.Response(429, headers=headers)) == seconds


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Not found", "Not found"),
        ("no title<br>\r\n\x00  next", "no title next"),
        ("field &quot;Title&quot; &lt;b&gt;is&lt;/b&gt; empty", 'field "Title" is empty'),
        (f"see {ADDRESS}?a=1 now", "see (address) now"),
        (f"see rest/1/{SECRET}/batch", "see (address)"),
        (f"see portal.example/rest/1/{SECRET}/batch", "see (address)"),
        ("half \ud83d pair", "half pair"),
        ("Элемент не найден", "Элемент не найден"),
        ("the rest is fine", "the rest is fine"),
    ],
)
def test_an_upstreams_words_become_one_safe_line(text, plain):
    assert plain_text(text) == plain


def test_words_are_cut_and_secrets_hidden():
    text = plain_text(f"{SECRET} " + "я" * 1000, hide=("", SECRET))

    assert text.startswith("*** я")
    assert len(text) == 300


@given(st.text())
def test_words_can_always_be_written_on_one_line(text):
    plain = plain_text(text)

    assert len(plain) <= 300
    assert plain.isprintable()
    assert plain.encode() or not plain
