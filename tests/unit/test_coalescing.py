"""Many threads, one request: who goes together, who waits, and that nobody is left hanging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from classifiers.errors import CircuitOpen, InternalError, NotFound, RateLimited
from clients import coalescing
from clients.coalescing import Coalescer
from reliability.gate import Permit

DEADLINE = 20.0  # seconds; generous, because only a hanging test ever waits for it
NEVER = 3600.0


class Upstream:
    """Stands for gate and wire: counts what is asked of it, and holds requests back on demand."""

    def __init__(self) -> None:
        self.asked: list[int] = []  # how many were waiting when a permit was asked for
        self.requests: list[list[object]] = []
        self.closed: Exception | None = None
        self.open_gate = threading.Event()
        self.answering = threading.Event()
        self.answer: Callable[[object], object] = lambda call: f"answer to {call}"
        self.open_gate.set()
        self.answering.set()

    def permit(self, waiting: int) -> Permit:
        self.asked.append(waiting)
        assert self.open_gate.wait(DEADLINE)
        if self.closed is not None:
            raise self.closed
        return Permit(wait=0.0)

    def send(self, permit, waiters) -> None:
        self.requests.append([waiter.call for waiter in waiters])
        assert self.answering.wait(DEADLINE)
        for waiter in waiters:
            try:
                waiter.future.set_result(self.answer(waiter.call))
            except NotFound as error:
                waiter.future.set_exception(error)

    def coalescer(self, *, size=50, in_flight=8, patience=NEVER, **options) -> Coalescer:
        return Coalescer(
            options.pop("permit", self.permit),
            options.pop("send", self.send),
            behind,
            name="upstream",
            size=size,
            in_flight=in_flight,
            patience=patience,
            **options,
        )


def behind(refusal, place):
    own = type(refusal)(refusal.detail, service=refusal.service)
    own.retry_after = refusal.retry_after + place * 0.5
    return own


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch):
    """Nothing goes out only because time has passed, unless a test says so."""
    monkeypatch.setattr(coalescing, "LINGER", NEVER)


def start(work: Callable[..., object], *arguments: object) -> Future:
    """Work in a thread that nobody has to wait for: a call that hangs fails its test alone."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except Exception as error:  # noqa: BLE001  # it is what the test looks at
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


def queued(coalescer: Coalescer) -> list[object]:
    return [waiter.call for waiter in list(coalescer._queue)]


def send_in_order(coalescer, calls) -> list[Future]:
    """Let one thread each make these calls, in this order."""
    futures = []
    for call in calls:
        before = queued(coalescer)
        futures.append(start(coalescer.call, call))
        until(lambda before=before, call=call: queued(coalescer) == [*before, call])
    return futures


def errors_of(futures) -> list[BaseException]:
    return [future.exception(DEADLINE) for future in futures]


@contextmanager
def one_under_way(upstream, coalescer) -> Iterator[Future]:
    """Hold a first request back, so that what comes meanwhile has to wait."""
    upstream.answering.clear()
    first = start(coalescer.call, "first")
    until(lambda: upstream.requests == [["first"]])
    try:
        yield first
    finally:
        upstream.answering.set()
    assert first.result(DEADLINE) == "answer to first"


def test_a_lone_call_goes_out_at_once_and_alone(upstream):
    answer = start(upstream.coalescer().call, "a").result(DEADLINE)

    assert answer == "answer to a"
    assert upstream.requests == [["a"]]
    assert upstream.asked == [1]


def test_calls_that_come_while_a_request_is_under_way_go_together(upstream):
    coalescer = upstream.coalescer()
    with one_under_way(upstream, coalescer):
        futures = send_in_order(coalescer, "abcd")
    answers = [future.result(DEADLINE) for future in futures]

    assert answers == [f"answer to {call}" for call in "abcd"]
    assert upstream.requests == [["first"], ["a", "b", "c", "d"]]
    assert upstream.asked == [1, 4]


def test_calls_that_come_while_the_gate_is_asked_go_together(upstream):
    coalescer = upstream.coalescer()
    upstream.open_gate.clear()
    futures = [start(coalescer.call, "a")]
    until(lambda: upstream.asked == [1])
    futures += [start(coalescer.call, call) for call in "bcd"]
    until(lambda: len(queued(coalescer)) == 4)
    upstream.open_gate.set()
    errors = errors_of(futures)

    assert errors == [None] * 4
    assert [sorted(request) for request in upstream.requests] == [["a", "b", "c", "d"]]


def test_a_full_request_does_not_wait_for_the_one_before(upstream):
    coalescer = upstream.coalescer(size=3)
    with one_under_way(upstream, coalescer):
        for call in "abc":
            start(coalescer.call, call)
        until(lambda: len(upstream.requests) == 2)

        assert sorted(upstream.requests[1]) == ["a", "b", "c"]


def test_no_request_carries_more_than_fit(upstream):
    coalescer = upstream.coalescer(size=3, in_flight=1)
    with one_under_way(upstream, coalescer):
        futures = send_in_order(coalescer, "abcdefgh")
    errors = errors_of(futures)

    assert errors == [None] * 8
    assert upstream.requests[1:] == [["a", "b", "c"], ["d", "e", "f"], ["g", "h"]]


def test_a_call_does_not_wait_for_ever_for_company(upstream, monkeypatch):
    monkeypatch.setattr(coalescing, "LINGER", 0.01)
    coalescer = upstream.coalescer()
    with one_under_way(upstream, coalescer):
        start(coalescer.call, "late")
        until(lambda: upstream.requests == [["first"], ["late"]])


def test_what_must_go_alone_does_and_keeps_its_turn(upstream):
    coalescer = upstream.coalescer(in_flight=1, alone=lambda call: call.isupper())
    with one_under_way(upstream, coalescer):
        futures = send_in_order(coalescer, "abCDef")
    errors = errors_of(futures)

    assert errors == [None] * 6
    assert upstream.requests[1:] == [["a", "b"], ["C"], ["D"], ["e", "f"]]


def test_the_error_of_one_call_does_not_touch_the_others(upstream):
    def answer(call):
        if call == "b":
            raise NotFound("gone")
        return f"answer to {call}"

    upstream.answer = answer
    coalescer = upstream.coalescer()
    with one_under_way(upstream, coalescer):
        futures = send_in_order(coalescer, "abc")
    errors = errors_of(futures)

    assert [type(error) for error in errors] == [type(None), NotFound, type(None)]
    assert futures[2].result() == "answer to c"


def test_a_closed_gate_turns_everybody_away_one_behind_the_other(upstream):
    upstream.open_gate.clear()
    upstream.closed = CircuitOpen("it is down", service="bitrix", retry_after=10.0)
    coalescer = upstream.coalescer()
    first = start(coalescer.call, "first")
    until(lambda: upstream.asked == [1])
    futures = [first, *send_in_order(coalescer, "abcd")]
    upstream.open_gate.set()
    errors = errors_of(futures)

    assert {type(error) for error in errors} == {CircuitOpen}
    assert [error.retry_after for error in errors] == [10.0, 10.5, 11.0, 11.5, 12.0]
    assert {error.service for error in errors} == {"bitrix"}
    assert upstream.requests == []


def test_a_gate_that_cannot_be_asked_fails_each_call_and_is_asked_again(upstream):
    upstream.open_gate.clear()
    upstream.closed = InternalError("Redis is away", code="ConnectionError")
    coalescer = upstream.coalescer()
    first = start(coalescer.call, "first")
    until(lambda: upstream.asked == [1])
    futures = [first, *send_in_order(coalescer, "ab")]
    upstream.open_gate.set()
    errors = errors_of(futures)
    upstream.closed = None
    later = start(coalescer.call, "later").result(DEADLINE)

    assert {type(error) for error in errors} == {InternalError}
    assert {error.code for error in errors} == {"ConnectionError"}
    assert later == "answer to later"


class UncopyableError(Exception):
    """Cannot be copied, as some foreign classes cannot."""

    def __init__(self, one, two) -> None:
        super().__init__("some words")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (InternalError("no sense", code="X"), InternalError),
        (KeyError("result"), KeyError),
        (UncopyableError(1, 2), RuntimeError),
    ],
    ids=["ours", "foreign", "foreign and odd"],
)
def test_every_thread_gets_an_exception_of_its_own(upstream, failure, kind):
    def send(permit, waiters):
        if [waiter.call for waiter in waiters] == ["first"]:
            upstream.send(permit, waiters)
        else:
            raise failure

    coalescer = upstream.coalescer(send=send)
    with one_under_way(upstream, coalescer):
        futures = send_in_order(coalescer, "abc")
    errors = errors_of(futures)

    assert {type(error) for error in errors} == {kind}
    assert len({id(error) for error in [failure, *errors]}) == 4
    assert {id(error.__cause__) for error in errors} == {id(failure)}


def test_a_bug_while_answers_are_handed_out_leaves_nobody_hanging(upstream):
    def send(permit, waiters):
        if len(waiters) == 1:
            return upstream.send(permit, waiters)
        waiters[0].future.set_result("in time")
        raise ZeroDivisionError

    coalescer = upstream.coalescer(send=send)
    with one_under_way(upstream, coalescer):
        a, b, c = send_in_order(coalescer, "abc")
    errors = errors_of([b, c])
    later = start(coalescer.call, "later").result(DEADLINE)

    assert a.result(DEADLINE) == "in time"
    assert [type(error) for error in errors] == [ZeroDivisionError] * 2
    assert later == "answer to later"


def test_a_call_that_everybody_forgot_is_in_doubt_and_not_hanging(upstream):
    coalescer = upstream.coalescer(send=lambda permit, waiters: None)
    error = start(coalescer.call, "a").exception(DEADLINE)

    # Nothing of ours: a JobError would promise to know that nothing has happened.
    assert type(error) is RuntimeError


def test_who_finds_no_place_in_a_request_comes_back_later(upstream, monkeypatch):
    monkeypatch.setattr(coalescing, "LINGER", 0.01)
    coalescer = upstream.coalescer(size=1, in_flight=2)
    upstream.answering.clear()
    under_way = [start(coalescer.call, "a")]
    until(lambda: len(upstream.requests) == 1)
    under_way.append(start(coalescer.call, "b"))
    until(lambda: len(upstream.requests) == 2)
    coalescer._patience = 0.05
    errors = errors_of([start(coalescer.call, call) for call in "cdef"])
    upstream.answering.set()
    answers = [future.result(DEADLINE) for future in under_way]

    assert {type(error) for error in errors} == {RateLimited}
    assert {error.service for error in errors} == {"upstream"}
    assert min(error.retry_after for error in errors) == pytest.approx(0.05)
    assert answers == ["answer to a", "answer to b"]
    assert upstream.asked == [1, 1]  # no permit is wasted on calls that cannot be sent


def test_what_has_waited_too_long_for_its_permit_is_not_sent_any_more(upstream):
    coalescer = upstream.coalescer(permit=lambda _: Permit(wait=0.05), patience=0.01)
    error = start(coalescer.call, "a").exception(DEADLINE)

    assert isinstance(error, RateLimited)
    assert upstream.requests == []


def test_a_process_that_is_ending_says_so(upstream):
    coalescer = upstream.coalescer()
    coalescer._senders.shutdown()
    error = start(coalescer.call, "a").exception(DEADLINE)

    assert isinstance(error, InternalError)
    assert "ending" in error.detail


def test_many_threads_and_many_rounds_all_get_their_own_answer(upstream, monkeypatch):
    monkeypatch.setattr(coalescing, "LINGER", 0.001)
    rounds, ready = 20, threading.Barrier(200)
    coalescer = upstream.coalescer()

    def work(number: int) -> list[bool]:
        ready.wait(DEADLINE)
        calls = [f"{number}.{turn}" for turn in range(rounds)]
        return [coalescer.call(call) == f"answer to {call}" for call in calls]

    flushers = {t.ident for t in threading.enumerate() if t.name == "upstream-flusher"}
    done = [start(work, number) for number in range(200)]
    right = [future.result(3 * DEADLINE) for future in done]
    new = [
        thread
        for thread in threading.enumerate()
        if thread.name == "upstream-flusher" and thread.ident not in flushers
    ]

    sent = [call for request in upstream.requests for call in request]
    assert right == [[True] * rounds] * 200
    assert len(sent) == len(set(sent)) == 200 * rounds
    assert max(map(len, upstream.requests)) <= 50
    assert len(new) == 1
