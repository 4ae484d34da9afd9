"""What a job has been through travels in its headers, and stays small."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from classifiers.errors import JobError, NetworkError, Pending, RateLimited, UserError
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


def waited(history, error, *, delay=2.5, at=0.0, spends="Pending"):
    return failed(history, error, spends=spends, waits=True, delay=delay, at=at)


def test_a_wait_that_repeats_itself_is_one_entry():
    history = FRESH
    for number in range(40):
        history = waited(history, Pending(f"{number} %", service="kie"), at=100.0 + number)

    assert history.entries == (
        {
            "error": "Pending",
            "code": "",
            "service": "kie",
            "detail": "kie – 39 %",
            "at": 139.0,
            "since": 100.0,
            "times": 40,
            "delay": 100.0,
            "action": "park",
        },
    )
    assert history.times("Pending") == 40
    assert history.waited == {"Pending": 100.0}


@pytest.mark.parametrize(
    "other",
    [
        lambda history: waited(history, RateLimited(service="kie", code="1")),
        lambda history: waited(history, Pending(service="telegram", code="1")),
        lambda history: waited(history, Pending(service="kie", code="2")),
        lambda history: failed(history, Pending(service="kie", code="1")),
    ],
    ids=["another error", "another service", "another code", "a retry"],
)
def test_what_is_no_repetition_has_an_entry_of_its_own(other):
    def wait(history):
        return waited(history, Pending(service="kie", code="1"))

    history = wait(other(wait(FRESH)))

    assert len(history.entries) == 3
    assert not any("times" in entry for entry in history.entries)


def test_a_failure_that_repeats_itself_is_told_each_time():
    assert len(many(3).entries) == 3


def test_a_wait_and_the_death_after_it_are_two_entries():
    history = waited(FRESH, Pending())
    last = history.after(Pending(), action="dead_letter", delay=0.0, spends="", waits=True, at=1.0)

    assert [entry["action"] for entry in last.entries] == ["park", "dead_letter"]


def test_a_repeated_wait_counts_in_the_curve_of_the_next_one():
    history = waited(failed(waited(waited(FRESH, Pending()), Pending()), NetworkError()), Pending())

    assert history.times("Pending") == 1
    assert waited(history, Pending()).times("Pending") == 2


def test_a_repeated_wait_leaves_the_rest_of_a_long_story_alone():
    history = many(REMEMBERED)
    for _ in range(3):
        history = waited(history, Pending())

    assert len(history.entries) == REMEMBERED
    assert [entry["detail"] for entry in history.entries[:2]] == ["number 0", "number 2"]
    assert history.entries[-1]["times"] == 3


@pytest.mark.parametrize(
    "entry",
    [
        {"times": "many", "delay": "long", "since": None},
        {"times": True, "delay": None},
        {"times": -1, "delay": float("nan")},
        {"times": 10**400, "delay": float("inf")},
        {"times": 0, "delay": 10**400},
    ],
    ids=["words", "truth", "negative", "endless", "none"],
)
def test_an_entry_that_makes_no_sense_can_be_repeated(entry):
    before = {"error": "Pending", "code": "", "service": "", "action": "park", **entry}
    history = waited(History.from_headers({"history": [before]}), Pending(), delay=2.5)

    assert (history.entries[-1]["times"], history.entries[-1]["delay"]) == (2, 2.5)
    assert history.times("Pending") == 2


def test_a_history_never_changes():
    before = many(3)
    failed(before, NetworkError())

    assert before == many(3)

    parked = waited(FRESH, Pending())
    waited(parked, Pending())

    assert parked == waited(FRESH, Pending())


@pytest.mark.parametrize("count", [0, 1, 7, REMEMBERED, 200])
def test_what_travels_comes_back_as_it_was(count):
    history = many(count)
    for _ in range(2):
        history = failed(history, RateLimited(), spends="RateLimited", waits=True, delay=0.5)

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
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["spent", "waited", "history", "id"]), anything))
@example({"spent": [1], "waited": "long", "history": "none"})
@example({"spent": {"Retryable": "3"}, "waited": {"RateLimited": None}, "history": [1, None]})
@example({"history": [{"no": "error"}]})
def test_headers_that_make_no_sense_harm_nobody(headers):
    history = History.from_headers(headers)
    after = waited(failed(history, JobError()), JobError())

    assert history.attempts >= 0
    assert history.waited_in_all() >= 0
    assert after.times("JobError") >= 2
    assert json.dumps(after.to_headers())


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 10**400, -1e9],
    ids=["nan", "inf", "more than a float", "less"],
)
def test_no_header_makes_a_job_immortal(value):
    headers = {"waited": {"RateLimited": value}, "spent": {"Retryable": value}}
    history = History.from_headers(headers)

    assert history == FRESH


def test_a_job_that_has_got_on_has_all_its_attempts_again_and_keeps_its_story():
    history = failed(many(3), RateLimited(), spends="RateLimited", waits=True, delay=60.0)

    rested = history.rested()

    assert rested.spent == {}
    assert rested.waited == {"RateLimited": 60.0}
    assert rested.entries == history.entries
