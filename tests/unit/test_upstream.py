"""One call through the seam: a place, a permit, one request, one report."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import HTTPServer, SimpleHTTPRequestHandler
from types import SimpleNamespace

import httpx
import pytest

from classifiers import bitrix as classifier
from classifiers.errors import (
    BillingExhausted,
    CircuitOpen,
    CredentialHeld,
    InvalidData,
    JobError,
    NetworkError,
    OutcomeUnknown,
    Paused,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from clients import http
from clients.http import Upstream
from config.services import Service
from reliability.gate import Gate, key_of

SECRET = "123:s3cr3t"
SERVICE = Service(
    name="bot",
    rate=50.0,
    burst=100,
    max_wait=2.0,
    connect_timeout=5.0,
    read_timeout=60.0,
    in_flight=2,
)
DEADLINE = 20.0  # s that a test waits for another thread before it fails


def answering(status=200, **options):
    return lambda request: httpx.Response(status, **(options or {"json": {"result": True}}))


def raising(error):
    def answer(request):
        raise error

    return answer


def refused(code, status=400, **options):
    return answering(status, json={"error": code, "error_description": ""}, **options)


@pytest.fixture
def upstream(redis_client):
    """Return an upstream that answers so, behind a real gate."""

    def build(answer, service=SERVICE, **options):
        return Upstream(
            service,
            Gate(redis_client, service),
            classifier.classify,
            base_url=f"https://api.example/bot{SECRET}/",
            credential=SECRET,
            transport=httpx.MockTransport(answer),
            **options,
        )

    return build


@pytest.fixture
def clock(monkeypatch):
    """The seam's own clock; who sleeps moves it."""
    clock = SimpleNamespace(now=1000.0, slept=[])
    clock.monotonic = lambda: clock.now

    def sleep(seconds):
        clock.slept.append(seconds)
        clock.now += seconds

    clock.sleep = sleep
    monkeypatch.setattr(http, "time", clock)
    return clock


def error_of(call, kind=JobError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value


# -- what goes out and comes back


def test_a_call_is_one_request_as_it_was_said(upstream):
    seen = []

    def answer(request):
        seen.append(request)
        return httpx.Response(200, json={"result": 7})

    calls = upstream(answer, headers={"Authorization": "Bearer k"})
    answers = [
        calls.call("GET", "look", safe=True, params={"id": "5 6"}),
        calls.call("POST", "make", safe=False, json={"a": 1}),
        calls.call("POST", "send", safe=False, data={"a": "1"}, files={"f": ("n", b"xyz", "t/p")}),
    ]

    assert [answer.json() for answer in answers] == [{"result": 7}] * 3
    assert [request.method for request in seen] == ["GET", "POST", "POST"]
    assert str(seen[0].url) == f"https://api.example/bot{SECRET}/look?id=5+6"
    assert seen[1].content == b'{"a":1}'
    assert b'name="a"\r\n\r\n1\r\n' in seen[2].content
    assert b'filename="n"\r\nContent-Type: t/p\r\n\r\nxyz\r\n' in seen[2].content
    assert {request.headers["Authorization"] for request in seen} == {"Bearer k"}
    assert {request.headers["User-Agent"] for request in seen} == {"perennial"}


@pytest.mark.parametrize(
    ("answer", "safe", "kind"),
    [
        (refused("ERROR_CORE"), False, InvalidData),
        (answering(502), False, OutcomeUnknown),
        (answering(502), True, ServiceUnavailable),
        (raising(httpx.ReadTimeout("")), False, OutcomeUnknown),
        (raising(httpx.ReadTimeout("")), True, ServiceUnavailable),
        (raising(httpx.ConnectError("")), False, NetworkError),
    ],
    ids=["refused", "502", "502, safe", "silent", "silent, safe", "not reached"],
)
def test_what_goes_wrong_is_raised_as_what_it_means(upstream, answer, safe, kind):
    error = error_of(lambda: upstream(answer).call("POST", "v1/crm.deal.add", safe=safe))

    assert type(error) is kind
    assert error.operation == "crm.deal.add"


def test_the_gate_hears_of_it(upstream):
    calls = upstream(answering(502))
    for _ in range(3):
        error_of(lambda: calls.call("GET", "look", safe=True))

    assert error_of(lambda: calls.call("GET", "look", safe=True), CircuitOpen)


def test_a_refused_credential_is_held_for_every_subject(upstream):
    calls = upstream(refused("INVALID_CREDENTIALS", 401))
    error_of(lambda: calls.call("GET", "look", safe=True, subject="1", pace=1.0))

    another = error_of(lambda: calls.call("GET", "look", safe=True, subject="2", pace=1.0))
    whole = error_of(lambda: calls.call("GET", "look", safe=True))

    assert [type(another), type(whole)] == [CredentialHeld] * 2


def test_a_credential_of_one_subject_is_refused_and_held_for_it_alone(upstream):
    answers = {"a": refused("INVALID_CREDENTIALS", 401), "b": answering()}
    calls = upstream(lambda request: answers[request.headers["authorization"]](request))

    def call(subject, key, **options):
        return calls.call(
            "GET",
            "look",
            safe=True,
            subject=subject,
            credential=key,
            headers={"Authorization": key},
            **options,
        )

    refusals = [error_of(lambda: call("1", "a", hold=False)) for _ in range(2)]
    refusals.append(error_of(lambda: call("1", "a")))
    held = error_of(lambda: call("1", "a"))
    answers["a"] = answering()

    assert [type(error) for error in refusals] == [Unauthorized] * 3
    assert type(held) is CredentialHeld
    assert call("2", "a")
    assert call("1", "b")
    assert calls.call("GET", "look", safe=True, headers={"Authorization": "b"})


def test_who_can_do_nothing_else_holds_a_credential_by_hand(upstream):
    calls = upstream(answering())
    calls.close_gate(Unauthorized("no way to renew it"), credential="a", subject="1")
    held = error_of(lambda: calls.call("GET", "look", safe=True, subject="1", credential="a"))

    assert type(held) is CredentialHeld
    assert "no way to renew it" in held.detail
    assert calls.call("GET", "look", safe=True, subject="1", credential="b")


def test_what_is_wrong_with_the_whole_upstream_pauses_it_whoever_can_renew(upstream):
    calls = upstream(refused("OVERLOAD_LIMIT", 503))
    error_of(lambda: calls.call("GET", "x", safe=True, subject="1", credential="a", hold=False))
    error = error_of(lambda: calls.call("GET", "x", safe=True, subject="2", credential="b"))

    assert type(error) is Paused


# -- permits


def test_a_call_waits_for_the_moment_that_is_reserved_for_it(upstream, clock):
    calls = upstream(answering())
    for _ in range(2):
        calls.call("POST", "send", safe=False, subject="1", pace=1.5)

    assert clock.slept == [0, pytest.approx(1.5, abs=0.7)]


def test_a_limit_of_one_subject_stops_it_alone(upstream):
    answers = {"1": refused("QUERY_LIMIT_EXCEEDED", 503), "2": answering()}
    calls = upstream(lambda request: answers[request.url.params["to"]](request))
    limited = error_of(
        lambda: calls.call("GET", "x", safe=True, subject="1", pace=9.0, params={"to": "1"})
    )

    assert type(limited) is RateLimited
    assert limited.retry_after == pytest.approx(9, abs=0.9)
    assert calls.call("GET", "x", safe=True, subject="2", pace=9.0, params={"to": "2"})


def test_a_limit_without_a_time_lasts_as_long_as_we_have_decided(upstream):
    calls = upstream(refused("QUERY_LIMIT_EXCEEDED", 503), replace(SERVICE, pause=900.0))
    errors = [error_of(lambda: calls.call("GET", "x", safe=True, subject="1")) for _ in range(2)]

    assert [type(error) for error in errors] == [RateLimited] * 2
    assert [error.retry_after for error in errors] == [pytest.approx(900, abs=2)] * 2


def test_for_want_of_money_every_job_waits_with_the_same_error(upstream, redis_client):
    seen = []

    def answer(request):
        seen.append(request)
        return refused("PAYMENT_REQUIRED", 401)(request)

    calls = upstream(answer)
    errors = [error_of(lambda: calls.call("POST", "make", safe=False)) for _ in range(5)]

    assert [type(error) for error in errors] == [BillingExhausted] * 5
    assert all(58 < error.retry_after < 62 for error in errors)
    assert len(seen) == 1

    redis_client.hset(key_of(SERVICE), "unpaid_until", 1)
    error_of(lambda: calls.call("POST", "make", safe=False))

    assert len(seen) == 2


# -- the bulkhead


def test_no_more_requests_are_under_way_than_the_service_bears(upstream):
    release, begun = threading.Event(), threading.Semaphore(0)

    def answer(request):
        begun.release()
        assert release.wait(DEADLINE)
        return httpx.Response(200, json={"result": True})

    calls = upstream(answer, replace(SERVICE, max_wait=0.05))
    with ThreadPoolExecutor(2) as pool:
        under_way = [pool.submit(calls.call, "GET", "x", safe=True) for _ in range(2)]
        assert all(begun.acquire(timeout=DEADLINE) for _ in under_way)
        crowded = error_of(lambda: calls.call("GET", "x", safe=True))
        release.set()
        assert all(future.result(DEADLINE) for future in under_way)

    assert type(crowded) is RateLimited
    assert 0.1 <= crowded.retry_after <= 0.2
    assert calls.call("GET", "x", safe=True)


@pytest.mark.parametrize(
    "answer",
    [refused("ERROR_CORE"), raising(httpx.ConnectError("")), raising(RuntimeError("a bug"))],
    ids=["refused", "not reached", "a bug"],
)
def test_a_place_comes_free_whatever_happens(upstream, answer):
    calls = upstream(answer, replace(SERVICE, in_flight=1, max_wait=0.05, failure_threshold=9))
    for _ in range(3):
        with suppress(RuntimeError, InvalidData, NetworkError):
            calls.call("GET", "x", safe=True)


def test_who_finds_no_place_asks_for_no_permit(upstream, redis_client):
    calls = upstream(answering(), replace(SERVICE, max_wait=0.01))
    for _ in range(SERVICE.in_flight):
        calls._slots.acquire()
    error_of(lambda: calls.call("GET", "x", safe=True), RateLimited)

    assert not redis_client.exists(key_of(SERVICE))


# -- deadlines


def test_what_an_upload_takes_is_missing_when_the_answer_is_waited_for(upstream, clock, tmp_path):
    allowed = []

    def answer(request):
        allowed.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json={"result": True})

    calls = upstream(answer)
    calls.call("POST", "send", safe=False, files={"f": ("n", Slow(clock, 3, 10.0), "t/p")})
    calls.call("POST", "send", safe=False, files={"f": ("n", Slow(clock, 0, 0.0), "t/p")})

    assert allowed == [30.0, 60.0]


def test_an_upload_that_never_ends_is_given_up(upstream, clock):
    calls = upstream(answering())
    endless = Slow(clock, 10**9, 10.0)
    error = error_of(lambda: calls.call("POST", "x", safe=False, files={"f": ("n", endless, "t")}))

    assert type(error) is OutcomeUnknown
    assert clock.now == 1000 + 60


class Trickle(httpx.SyncByteStream):
    """An answer that never ends, a byte each so many seconds."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __iter__(self):
        while True:
            self.clock.now += self.seconds
            yield b" "


def test_an_answer_has_what_the_upload_has_left(upstream, clock):
    calls = upstream(lambda request: httpx.Response(200, stream=Trickle(clock, 10.0)))
    error = error_of(
        lambda: calls.call("POST", "x", safe=False, files={"f": ("n", Slow(clock, 4, 10.0), "t")})
    )

    assert type(error) is OutcomeUnknown
    assert clock.now == 1000 + 60


def test_what_a_person_asks_is_given_up_sooner(upstream, clock):
    calls = upstream(lambda request: httpx.Response(200, stream=Trickle(clock, 1.0)))
    error = error_of(lambda: calls.call("GET", "x", safe=True, within=4.0))

    assert type(error) is ServiceUnavailable
    assert clock.now == 1000 + 4


@pytest.mark.parametrize("code", ["INVALID_CREDENTIALS", "PORTAL_DELETED", "OVERLOAD_LIMIT"])
def test_what_a_person_asks_closes_no_gate(upstream, code):
    calls = upstream(refused(code))
    error = error_of(lambda: calls.call("GET", "x", safe=True, within=4.0))

    assert error.code == code
    assert calls.gate.state().state == "closed"


class Slow:
    """A file of so many pieces, each of which takes its time to be sent."""

    def __init__(self, clock, pieces, seconds):
        self.clock, self.pieces, self.seconds = clock, pieces, seconds

    def read(self, size):
        if self.pieces == 0:
            return b""
        self.pieces -= 1
        self.clock.now += self.seconds
        return b"x"


# -- the end of a process


def test_a_closed_upstream_has_let_its_connections_go(upstream):
    calls = upstream(answering())
    calls.close()

    assert calls.client.is_closed


# -- secrets


@pytest.mark.parametrize(
    "answer",
    [
        answering(404, text=f"no such page /bot{SECRET}/x"),
        answering(302, headers={"Location": f"https://new.example/bot{SECRET}/"}),
        raising(httpx.UnsupportedProtocol(f"what is https://api.example/bot{SECRET}/?")),
        raising(httpx.ConnectError(f"no route to https://api.example/bot{SECRET}/")),
    ],
    ids=["page", "moved", "protocol", "unreachable"],
)
def test_neither_address_nor_credential_is_in_an_error(upstream, answer):
    error = error_of(lambda: upstream(answer).call("POST", "x", safe=False))

    assert "api.example/" not in repr(vars(error))
    assert error.__cause__ is None
    assert error.__context__ is None


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture
def server():
    """The address of a real one, which is a poor proxy, too: it answers whatever it is asked."""
    served = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture
def environment(monkeypatch):
    """Say of proxies this, and nothing else."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return lambda said: [monkeypatch.setenv(*item) for item in said.items()]


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("", {}),
        ("", {"NO_PROXY": "localhost,127.0.0.1"}),
        ("", {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}),
        ("", {"ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"}),
        ("", {"HTTPS_PROXY": "http://127.0.0.1:9"}),
        ("portal.example", {"HTTP_PROXY": "http://{server}"}),
        ("portal.example", {"http_proxy": "{server}", "NO_PROXY": "other.example"}),
        ("portal.example", {"ALL_PROXY": "http://{server}"}),
    ],
    ids=[
        "nothing said",
        "no proxy for it",
        "one for others",
        "one for nobody",
        "one for https",
        "by a proxy",
        "by one without a scheme",
        "by one for all",
    ],
)
def test_the_kernel_gives_up_sending_when_we_have_given_up_waiting(
    environment, server, redis_client, host, said
):
    environment({name: words.format(server=server) for name, words in said.items()})
    address = f"http://{host or server}/"
    calls = Upstream(SERVICE, Gate(redis_client, SERVICE), classifier.classify, base_url=address)
    try:
        with calls.client.stream("GET", "") as answer:
            wire = answer.extensions["network_stream"].get_extra_info("socket")
            milliseconds = wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    finally:
        calls.close()

    assert milliseconds == SERVICE.connect_timeout * 1000
    assert milliseconds < (SERVICE.lease - SERVICE.read_timeout) * 1000
