"""The word that a job has in common with all that follows from it."""

from __future__ import annotations

from uuid import UUID

import pytest

from tasks import traces

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"00-{TRACE}-{SPAN}-00", TRACE),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", TRACE),
        (f"00-{TRACE}-{SPAN}-01-too-long", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        ("nonsense", ""),
        ("", ""),
    ],
)
def test_a_callers_trace_is_carried_where_it_makes_sense(header: str, trace_id: str):
    with traces.carrying({"traceparent": header}):
        inside, headers = traces.carried(), {}
        told = traces.hand_on(headers)

    assert (inside, told) == (trace_id, trace_id)
    assert ("traceparent" in headers) == bool(trace_id)
    assert traces.carried() == ""


def test_the_number_of_a_trace_is_that_of_its_word():
    job = "28e33c0a-9c27-47d7-acda-47182de20f3c"

    assert traces.number(job) == UUID(job).int
    assert traces.number(TRACE) == int(TRACE, 16)


@pytest.mark.parametrize("word", ["video-7-amends-0", "", "0" * 32])
def test_a_word_that_is_no_uuid_has_a_number_too_and_always_the_same(word: str):
    assert 0 < traces.number(word) < 2**128
    assert traces.number(word) == traces.number(word)
    assert traces.number(word) != traces.number(f"{word}1")
