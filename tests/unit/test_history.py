"""What a job has been through travels in its headers, and stays small."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.errors import JobError, NetworkError, RateLimited, UserError
from config.history import REMEMBERED, History

FRESH = History()


def failed(history, error, *, spends="Retryable", waits=False, delay=1.0, at=0.0):
    action = "park" if waits else "retry"
    return history.after(error, action=action, delay=delay, spends=spends, waits=waits, at=at)


def many(count, *, error=NetworkError):
    history = FRESH
    for number in range(count):
        history = failed(history, error(f"number {number}"))
    return history


def test_a_job_without_headers_has_no_history():
    assert History.from_headers(None) == History.from_headers({}) == FRESH
    assert FRESH.attempts == 0
    assert FRESH.waited_in_all() == 0


def test_an_entry_tells_the_whole_failure():
    error = NetworkError(
        "no route", service="bitrix", operation="crm.deal.add", code="ConnectError"
    )

    assert failed(FRESH, error, delay=2.25, at=1700000000.12345).entries == (
        {
            "error": "NetworkError",
            "code": "ConnectError",
            "service": "bitrix",
            "detail": "bitrix crm.deal.add: ConnectError – no route",
            "at": 1700000000.123,
            "delay": 2.25,
            "action": "retry",
        },
    )


def test_a_retry_spends_the_attempts_of_its_row_alone():
    history = failed(failed(FRESH, NetworkError()), UserError(reason="x"), spends="InvalidData")

    assert history.spent == {"Retryable": 1, "InvalidData": 1}
    assert history.attempts == 2
    assert history.waited == {}


def test_a_wait_spends_seconds_of_its_row_alone():
    history = failed(FRESH, RateLimited(), spends="RateLimited", waits=True, delay=30)
    history = failed(history, RateLimited(), spends="RateLimited", waits=True, delay=30)
    history = failed(history, RateLimited(), spends="Paused", waits=True, delay=5)

    assert history.waited == {"RateLimited": 60, "Paused": 5}
    assert history.waited_in_all() == 65
    assert history.attempts == 0


def test_a_history_never_changes():
    before = many(3)
    failed(before, NetworkError())

    assert before == many(3)


@pytest.mark.parametrize("count", [0, 1, 7, REMEMBERED, 200])
def test_what_travels_comes_back_as_it_was(count):
    history = failed(many(count), RateLimited(), spends="RateLimited", waits=True, delay=0.5)

    assert History.from_headers(json.loads(json.dumps(history.to_headers()))) == history


@pytest.mark.parametrize("count", [REMEMBERED - 1, REMEMBERED, REMEMBERED + 1, 3 * REMEMBERED])
def test_the_first_and_the_newest_are_remembered(count):
    entries = many(count).entries
    told = [entry["detail"] for entry in entries]
    newest = [f"number {n}" for n in range(count)][-REMEMBERED + 1 :]

    assert len(entries) == min(count, REMEMBERED)
    assert told[0] == "number 0"
    assert told[1:] == (newest if count >= REMEMBERED else newest[1:])


def test_attempts_are_counted_beyond_what_is_remembered():
    assert many(3 * REMEMBERED).attempts == 3 * REMEMBERED


def test_a_long_story_stays_short():
    history = FRESH
    for _ in range(200):
        history = failed(history, NetworkError("d" * 10_000, code="c" * 10_000, service="bitrix"))

    assert len(json.dumps(history.to_headers())) < 32_000
    assert len(history.entries[0]["detail"]) == 200
    assert len(history.entries[0]["code"]) == 100


@pytest.mark.parametrize(
    ("happened", "expected"),
    [
        ([], 0),
        (["RateLimited"], 1),
        (["RateLimited", "RateLimited", "RateLimited"], 3),
        (["RateLimited", "NetworkError"], 0),
        (["RateLimited", "NetworkError", "RateLimited", "RateLimited"], 2),
    ],
    ids=["never", "once", "always", "not the last time", "again since"],
)
def test_times_counts_how_often_in_a_row_up_to_now(happened, expected):
    kinds = {"RateLimited": RateLimited, "NetworkError": NetworkError}
    history = FRESH
    for name in happened:
        history = failed(history, kinds[name]())

    assert history.times("RateLimited") == expected


def test_times_takes_every_class_for_itself():
    class Deeper(RateLimited):
        pass

    assert failed(FRESH, Deeper()).times("RateLimited") == 0


words = st.sampled_from(["", "error", "Retryable", "RateLimited", "9"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["spent", "waited", "history", "id"]), anything))
@example({"spent": [1], "waited": "long", "history": "none"})
@example({"spent": {"Retryable": "3"}, "waited": {"RateLimited": None}, "history": [1, None]})
@example({"history": [{"no": "error"}]})
def test_headers_that_make_no_sense_harm_nobody(headers):
    history = History.from_headers(headers)
    after = failed(history, JobError())

    assert history.attempts >= 0
    assert history.waited_in_all() >= 0
    assert after.times("JobError") >= 1
    assert json.dumps(after.to_headers())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9], ids=["nan", "inf", "less"])
def test_no_header_makes_a_job_immortal(value):
    headers = {"waited": {"RateLimited": value}, "spent": {"Retryable": value}}
    history = History.from_headers(headers)

    assert history == FRESH
