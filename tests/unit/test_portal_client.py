"""What goes over the wire to a portal, what comes back, and what the gate hears of it."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers import bitrix as classifier
from classifiers.errors import (
    BillingExhausted,
    Blocked,
    CircuitOpen,
    InternalError,
    InvalidData,
    NetworkError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from clients import bitrix
from clients.bitrix import Call, Portal
from clients.http import Upstream
from config.services import Service
from config.settings import settings
from reliability import connection
from reliability.gate import Permit
from sandbox.phpforms import as_php_array, parse

SECRET = "s3cr3tc0de"
BASE = f"https://portal.example/rest/1/{SECRET}/"
DEADLINE = 20.0
SERVICE = Service(
    name="bitrix",
    rate=2.0,
    burst=50,
    max_wait=5.0,
    connect_timeout=5.0,
    read_timeout=65.0,
    ops_per_permit=50,
)


class Gate:
    """Stands for the shared gate: admits, and remembers what it was told."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self.told: list[tuple[Any, ...]] = []
        self.refusal: Exception | None = None
        self.deaf = False  # Redis is away when it is told something
        self.open = threading.Event()
        self.open.set()

    def admit(self, *, waiting=1, credential="", subject="", pace=0.0, yields=False):
        self.asked.append((waiting, credential))
        assert self.open.wait(DEADLINE)
        if self.refusal is not None:
            raise self.refusal
        return Permit(wait=0.0)

    def behind(self, refusal, place):
        own = type(refusal)(refusal.detail, service=refusal.service)
        own.retry_after = refusal.retry_after + place
        return own

    def report_success(self, permit):
        self.told.append(("success",))

    def report_failure(self, permit):
        self.told.append(("failure",))
        return False

    def report_limited(self, permit, retry_after=None, *, waiting=1):
        self.told.append(("limited", retry_after, waiting))
        return 7.0

    def report_unpaid(self, permit, note="", *, waiting=1):
        self.told.append(("unpaid", note, waiting))
        return 60.0

    def hold_credential(self, credential, note="", *, subject=""):
        self._listen("held", credential, note)

    def pause(self, by, note=""):
        self._listen("paused", by, note)

    def _listen(self, *words):
        if self.deaf:
            raise InternalError("the gate cannot be asked")
        self.told.append(words)


@dataclass(frozen=True)
class Refused:
    """A refusal of one call, alone or inside a batch."""

    code: str = ""
    text: str = "Something happened"
    status: int = 400

    @property
    def body(self) -> dict[str, str]:
        return {"error": self.code, "error_description": self.text}


@dataclass
class Site:
    """A portal that answers from memory, as PHP prints JSON."""

    answer: Callable[[str, dict[str, Any]], Any] = lambda method, params: True
    whole: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
    times: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        method = request.url.path.rsplit("/", 1)[-1]
        body = json.loads(request.content)
        self.urls.append(str(request.url))
        if method != "batch":
            self.requests.append((method, body))
            return self.whole(request) or self._single(method, body)
        commands = {name: _command(text) for name, text in body["cmd"].items()}
        self.requests.append((method, commands))
        return self.whole(request) or self._batch(commands)

    def _single(self, method, params):
        result = self.answer(method, params)
        if isinstance(result, Refused):
            return httpx.Response(result.status, json=result.body)
        return httpx.Response(200, json={"result": result, "time": self.times})

    def _batch(self, commands):
        results = {name: self.answer(*command) for name, command in commands.items()}
        good = {n: r for n, r in results.items() if not isinstance(r, Refused) and r is not MISSING}
        bad = {name: r.body for name, r in results.items() if isinstance(r, Refused)}
        parts = {
            "result": good,
            "result_error": bad,
            "result_time": dict.fromkeys(good, self.times),
        }
        printed = {part: as_php_array(entries) for part, entries in parts.items()}
        return httpx.Response(200, json={"result": printed})

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.requests]

    @property
    def commands(self) -> list[tuple[str, dict[str, Any]]]:
        """The commands of the only request, which is a batch."""
        ((method, commands),) = self.requests
        assert method == "batch"
        return list(commands.values())


MISSING = object()


def _command(text: str) -> tuple[str, dict[str, Any]]:
    method, _, query = text.partition("?")
    return method, parse(query)


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def gate() -> Gate:
    return Gate()


def client(site, gate, service=SERVICE, **options) -> Portal:
    upstream = Upstream(
        service,
        gate,
        classifier.classify,
        base_url=BASE,
        credential=BASE,
        method_codes=bitrix.METHOD_CODES,
        transport=httpx.MockTransport(site),
    )
    return Portal(upstream, "perennial", **options)


@pytest.fixture
def portal(site, gate) -> Portal:
    return client(site, gate)


def start(call: Callable[[], Any]) -> Future:
    """Call in a thread that nobody has to wait for: a call that hangs fails its test alone."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001  # it is what the test looks at
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(portal: Portal, *calls: Callable[[], Any]) -> list[Future]:
    """Make these calls from a thread each, in this order, so that they go in one request."""
    gate = portal.upstream.gate
    gate.open.clear()
    futures = []
    for number, call in enumerate(calls, 1):
        futures.append(start(call))
        deadline = time.monotonic() + DEADLINE
        while len(portal._coalescer._queue) < number:
            assert time.monotonic() < deadline
            assert not futures[-1].done(), futures[-1].exception()
            time.sleep(0.001)
    gate.open.set()
    for future in futures:
        future.exception(DEADLINE)
    return futures


def error_of(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test looks at what it is
        call()
    return caught.value


def kinds(futures: list[Future]) -> list[type]:
    return [type(future.exception()) for future in futures]


# -- one call


def test_a_lone_call_is_a_request_of_its_own(portal, site, gate):
    site.answer = lambda method, params: {"ID": "5", "TITLE": "Sofa"}

    assert portal.get("deal", "5") == {"ID": "5", "TITLE": "Sofa"}
    assert site.requests == [("crm.deal.get", {"id": "5"})]
    assert site.urls == [f"{BASE}crm.deal.get"]
    assert gate.asked == [(1, BASE)]
    assert gate.told == [("success",)]


def test_a_row_of_ours_is_marked(portal, site):
    site.answer = lambda method, params: 394

    assert portal.add("deal", "order-7", {"TITLE": "Sofa"}) == "394"
    assert site.requests == [
        (
            "crm.deal.add",
            {"fields": {"TITLE": "Sofa", "ORIGINATOR_ID": "perennial", "ORIGIN_ID": "order-7"}},
        )
    ]


def test_the_marks_cannot_be_overwritten(portal, site):
    site.answer = lambda method, params: 1
    portal.add("deal", "7", {"ORIGIN_ID": "8", "ORIGINATOR_ID": "other"})

    assert site.requests[0][1]["fields"] == {"ORIGIN_ID": "7", "ORIGINATOR_ID": "perennial"}


@pytest.mark.parametrize("answer", [None, True, False, 0, "0", "", [], {}, {"id": 5}], ids=repr)
def test_an_add_that_names_no_id_may_have_worked(portal, site, answer):
    site.answer = lambda method, params: answer
    error = error_of(lambda: portal.add("contact", "7", {}))

    assert type(error) is OutcomeUnknown
    assert error.operation == "crm.contact.add"


def test_an_update_writes_the_row_it_names(portal, site):
    portal.update("contact", "12", {"NAME": "Ann"})

    assert site.requests == [("crm.contact.update", {"id": "12", "fields": {"NAME": "Ann"}})]


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ({"CONTACT": [30, 4, 12]}, ["4", "12", "30"]),
        ({"CONTACT": {"0": 30, "2": 4}}, ["4", "30"]),
        ({"CONTACT": []}, []),
        ({"LEAD": [1]}, []),
        ([], []),
    ],
    ids=["oldest first", "a list with a gap", "none", "only a lead", "an empty map"],
)
def test_contacts_are_found_by_their_address(portal, site, answer, ids):
    site.answer = lambda method, params: answer

    assert portal.contacts_with("EMAIL", "ann@example.org") == ids
    assert site.requests == [
        (
            "crm.duplicate.findbycomm",
            {"type": "EMAIL", "values": ["ann@example.org"], "entity_type": "CONTACT"},
        )
    ]


@pytest.mark.parametrize(
    ("answer", "rights"),
    [(["crm", "user"], ["crm", "user"]), ({"1": "crm"}, ["crm"]), ([], []), (True, [])],
)
def test_the_rights_of_a_webhook_are_asked_for_alone(portal, site, gate, answer, rights):
    site.answer = lambda method, params: answer

    assert portal.rights(within=5.0) == rights
    assert site.requests == [("scope", {})]
    assert gate.asked == [(1, BASE)]


def test_a_refusal_is_classified_and_raised(portal, site):
    site.answer = lambda method, params: Refused("", "Not found")
    error = error_of(lambda: portal.get("deal", "5"))

    assert type(error) is NotFound
    assert (error.service, error.operation) == ("bitrix", "crm.deal.get")


# -- many calls, one request


def test_calls_that_wait_together_go_as_one_batch(portal, site, gate):
    site.answer = lambda method, params: params["id"]
    futures = together(portal, *(lambda n=n: portal.get("deal", str(n)) for n in range(3)))

    assert [future.result() for future in futures] == ["0", "1", "2"]
    assert site.methods == ["batch"]
    assert site.commands == [("crm.deal.get", {"id": str(n)}) for n in range(3)]
    assert gate.asked == [(1, BASE)]
    assert gate.told == [("success",)]


def test_a_batch_goes_on_after_an_error(portal, site):
    bodies = []
    site.whole = lambda request: bodies.append(json.loads(request.content))
    together(portal, lambda: portal.get("deal", "1"), lambda: portal.get("deal", "2"))

    assert bodies[0]["halt"] == 0
    assert set(bodies[0]) == {"halt", "cmd"}


def test_without_coalescing_every_call_is_a_request_of_its_own(site, gate):
    portal = client(site, gate, replace(SERVICE, ops_per_permit=1))
    together(portal, lambda: portal.get("deal", "1"), lambda: portal.get("deal", "2"))

    assert site.methods == ["crm.deal.get"] * 2


def test_an_error_in_a_batch_reaches_its_own_caller_alone(portal, site):
    def answer(method, params):
        if method == "crm.deal.add":
            return 77
        return {"5": {"ID": "5"}, "6": Refused("", "Not found"), "7": Refused("ERROR_CORE")}[
            params["id"]
        ]

    site.answer = answer
    five, six, add, seven = together(
        portal,
        lambda: portal.get("deal", "5"),
        lambda: portal.get("deal", "6"),
        lambda: portal.add("deal", "order", {}),
        lambda: portal.update("contact", "7", {}),
    )

    assert five.result() == {"ID": "5"}
    assert type(six.exception()) is NotFound
    assert add.result() == "77"
    assert type(seven.exception()) is InvalidData
    assert [f.exception().operation for f in (six, seven)] == ["crm.deal.get", "crm.contact.update"]


@pytest.mark.parametrize("refusal", ["Not found", ["Not found"], 5], ids=repr)
def test_an_error_in_a_batch_may_have_any_shape(portal, site, refusal):
    site.whole = lambda request: httpx.Response(
        200,
        json={"result": {"result": [], "result_error": {"c0": refusal, "c1": refusal}}},
    )
    futures = together(portal, lambda: portal.get("deal", "1"), lambda: portal.get("deal", "2"))

    assert all(future.exception().service == "bitrix" for future in futures)


@pytest.mark.parametrize(
    "result",
    [
        [],
        {"result": [], "result_error": [], "result_time": []},
        {"result": None, "result_error": None},
        {"result": {"c9": 1}, "result_error": [], "result_time": []},
    ],
    ids=["nothing at all", "empty maps", "nulls", "somebody else's"],
)
def test_a_batch_that_forgets_a_call_has_done_it_or_not(portal, site, result):
    site.whole = lambda request: httpx.Response(200, json={"result": result})
    futures = together(
        portal,
        lambda: portal.get("deal", "1"),
        lambda: portal.add("deal", "order", {}),
        lambda: portal.find("deal", "order"),
    )

    assert kinds(futures) == [ServiceUnavailable, OutcomeUnknown, ServiceUnavailable]
    assert futures[1].exception().operation == "crm.deal.add"


def test_answers_are_told_apart_by_name_and_not_by_order(portal, site):
    site.whole = lambda request: httpx.Response(
        200, json={"result": {"result": {"c1": {"ID": "b"}, "c0": {"ID": "a"}}}}
    )
    futures = together(portal, lambda: portal.get("deal", "a"), lambda: portal.get("deal", "b"))

    assert [future.result()["ID"] for future in futures] == ["a", "b"]


# -- how a call is spelt inside a batch


def as_php(value: Any) -> Any:
    """What PHP reads where a form says *value*."""
    match value:
        case bool():
            return str(int(value))
        case dict() if value:
            return {name: as_php(inner) for name, inner in value.items()}
        case list() if value:
            return [as_php(inner) for inner in value]
        case None | [] | {}:
            return ""
        case _:
            return str(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"TITLE": "Sofa"},
        {"TITLE": "Ä & B = C + D ? 100% #1; 'q' \"q\" / \\"},
        {"TITLE": "Заказ №5 😀\nline\ttab"},
        {"OPPORTUNITY": "1499.90", "QUANTITY": 3, "RATE": 1.5},
        {"OPENED": True, "CLOSED": False, "COMMENTS": None, "EMPTY": ""},
        {"CONTACT_IDS": ["5", "7"]},
        {"EMAIL": [{"VALUE": "a@b", "VALUE_TYPE": "WORK"}, {"VALUE": "c+d@e", "ID": 5}]},
        {"CONTACT_IDS": [], "UF_MAP": {}},
        {"UF_DEEP": {"a": {"b": [[1, 2], [3]]}, "c.d": "e f"}},
    ],
    ids="+".join,
)
def test_nested_values_arrive_as_they_left(portal, site, fields):
    together(
        portal,
        lambda: portal.update("deal", "1", fields),
        lambda: portal.update("deal", "2", {"TITLE": "other"}),
    )

    assert site.commands == [
        ("crm.deal.update", {"id": "1", "fields": as_php(fields)}),
        ("crm.deal.update", {"id": "2", "fields": {"TITLE": "other"}}),
    ]


leaves = st.none() | st.booleans() | st.integers() | st.text("aЯ&=+%#?/'\"$\n []", max_size=8)
names = st.sampled_from(["TITLE", "UF_CRM_1", "ЦВЕТ", "=ID", "@ORIGIN_ID", "a&b", "50%", "x=y"])
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(names, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, nested, max_size=4))
def test_a_command_can_be_read_back(fields):
    method, params = _command(Call("crm.deal.update", {"fields": fields}, safe=True).as_command())

    assert method == "crm.deal.update"
    assert params == {"fields": as_php(fields)}


@pytest.mark.parametrize(
    "fields",
    [
        {"TITLE": "$result[c0]"},
        {"TITLE": "costs $RESULT[c0][ID] dollars"},
        {"UF": [{"a": "x $next[c0] y"}]},
        {"$total[c0]": "x"},
        {"UF[0]": "x"},
        {"UF": {"]x[": "y"}},
    ],
    ids=str,
)
def test_what_a_batch_would_misread_goes_alone_and_as_it_is(portal, site, fields):
    together(
        portal,
        lambda: portal.get("deal", "1"),
        lambda: portal.update("deal", "2", fields),
        lambda: portal.get("deal", "3"),
    )

    assert ("crm.deal.update", {"id": "2", "fields": fields}) in site.requests
    assert sorted(site.methods) == ["crm.deal.get", "crm.deal.get", "crm.deal.update"]


def test_an_origin_that_a_batch_would_misread_is_looked_for_alone(portal, site):
    site.answer = lambda method, params: []
    together(
        portal, lambda: portal.find("deal", "$result[c1]"), lambda: portal.find("deal", "order")
    )

    assert site.methods == ["crm.deal.list"] * 2


def test_a_value_that_cannot_be_written_harms_its_own_call_alone(portal, site, gate):
    gate.open.clear()
    other = start(lambda: portal.get("deal", "1"))
    error = start(lambda: portal.update("deal", "1", {"TITLE": "\ud800"})).exception(DEADLINE / 4)
    gate.open.set()

    assert isinstance(error, UnicodeEncodeError)
    assert other.result(DEADLINE) is True
    assert site.methods == ["crm.deal.get"]


# -- finding


def rows(*pairs) -> list[dict[str, str]]:
    return [{"ID": str(row_id), "ORIGIN_ID": origin} for row_id, origin in pairs]


def test_finds_that_wait_together_are_one_list(portal, site):
    site.answer = lambda method, params: rows((3, "c"), (8, "a"))
    a, b, c, a_again = together(
        portal, *(lambda origin=origin: portal.find("deal", origin) for origin in "abca")
    )

    assert [f.result() for f in (a, b, c, a_again)] == ["8", None, "3", "8"]
    assert site.requests == [
        (
            "crm.deal.list",
            {
                "select": ["ID", "ORIGIN_ID"],
                "filter": {"=ORIGINATOR_ID": "perennial", "@ORIGIN_ID": ["a", "b", "c"]},
                "order": {"ID": "ASC"},
                "start": -1,
            },
        )
    ]


def test_finds_go_beside_other_calls_and_apart_by_entity(portal, site):
    def answer(method, params):
        return rows((3, "a")) if method.endswith("list") else {"ID": "5"}

    site.answer = answer
    futures = together(
        portal,
        lambda: portal.find("deal", "a"),
        lambda: portal.get("deal", "5"),
        lambda: portal.find("contact", "a"),
        lambda: portal.find("deal", "b"),
    )

    assert [future.result() for future in futures] == ["3", {"ID": "5"}, "3", None]
    assert sorted(method for method, _ in site.commands) == [
        "crm.contact.list",
        "crm.deal.get",
        "crm.deal.list",
    ]


def test_a_list_asks_for_half_a_page_at_most(portal, site):
    site.answer = lambda method, params: []
    together(portal, *(lambda n=n: portal.find("deal", f"order-{n}") for n in range(40)))
    asked = [params["filter"]["@ORIGIN_ID"] for _, params in site.commands]

    assert [len(origins) for origins in asked] == [25, 15]
    assert {origin for origins in asked for origin in origins} == {f"order-{n}" for n in range(40)}


def test_of_several_rows_the_oldest_is_ours(portal, site):
    site.answer = lambda method, params: rows((3, "b"), (5, "a"), (9, "a"))

    assert portal.find("deal", "a") == "5"


def test_an_origin_is_compared_as_text(portal, site):
    site.answer = lambda method, params: [{"ID": 5, "ORIGIN_ID": 7}]

    assert portal.find("deal", "7") == "5"


@pytest.mark.parametrize(
    "answer",
    [
        rows(*((n, "other") for n in range(1, 51))),
        None,
        True,
        "none",
        {"items": []},
        {"deals": {"0": {}}},
        [5],
        [{"ORIGIN_ID": "a"}],
        [{"ID": None, "ORIGIN_ID": "a"}],
    ],
    ids=lambda answer: repr(answer)[:30],
)
@pytest.mark.parametrize("company", [False, True], ids=["alone", "in a batch"])
def test_an_answer_that_does_not_say_is_not_taken_for_not_found(portal, site, answer, company):
    site.answer = lambda method, params: answer if method.endswith("list") else True
    calls = [lambda: portal.find("deal", "a"), lambda: portal.find("deal", "b")]
    futures = together(portal, *calls, *([lambda: portal.update("deal", "1", {})] * company))

    assert kinds(futures[:2]) == [InternalError] * 2
    assert futures[0].exception() is not futures[1].exception()
    assert futures[0].exception().operation == "crm.deal.list"
    assert not company or futures[2].exception() is None


def test_a_full_page_with_our_row_on_it_is_an_answer(portal, site):
    page = rows(*((n, "other") for n in range(1, 50)), (50, "a"))
    site.answer = lambda method, params: page

    assert portal.find("deal", "a") == "50"


@pytest.mark.parametrize("answer", [[], {}, {"0": {"ID": "5", "ORIGIN_ID": "b"}}], ids=repr)
def test_not_found_is_an_answer(portal, site, answer):
    site.answer = lambda method, params: answer

    assert portal.find("deal", "a") is None


# -- limits


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1_700_000_000.0)
    clock.time = lambda: clock.now
    monkeypatch.setattr(bitrix, "time", clock)
    return clock


OVER = Refused("OPERATION_TIME_LIMIT", "Method is blocked", status=429)


@pytest.mark.parametrize("company", [False, True], ids=["alone", "in a batch"])
def test_a_method_over_its_operating_time_rests_until_the_portal_resets_it(
    portal, site, gate, clock, company
):
    site.times = {"operating": 470, "operating_reset_at": clock.now + 300}
    portal.update("deal", "1", {})
    site.answer = lambda method, params: OVER if method == "crm.deal.update" else {"ID": "1"}
    calls = [lambda: portal.update("deal", "1", {}), *([lambda: portal.get("deal", "1")] * company)]
    error = together(portal, *calls)[0].exception()
    sent = len(site.requests)
    clock.now += 299
    again = error_of(lambda: portal.update("deal", "2", {}))

    assert (type(error), error.retry_after) == (RateLimited, 300)
    assert (type(again), again.retry_after, again.code) == (RateLimited, 1, "OPERATION_TIME_LIMIT")
    assert len(site.requests) == sent

    portal.get("deal", "1")  # only that method rests
    clock.now += 1.5
    site.answer = lambda method, params: True
    portal.update("deal", "2", {})

    assert len(site.requests) == sent + 2
    assert ("limited",) not in {told[:1] for told in gate.told}
    assert ("failure",) not in gate.told


@pytest.mark.parametrize(
    "reset_at",
    [None, "soon", -1, 1_699_999_999.0, 1_700_000_000_000, [], True],
    ids=["unknown", "a word", "negative", "past", "in ms", "a list", "a flag"],
)
def test_a_portal_that_names_no_usable_time_gets_a_minute(portal, site, clock, reset_at):
    site.times = {"operating_reset_at": reset_at}
    portal.update("deal", "1", {})
    site.answer = lambda method, params: OVER
    error = error_of(lambda: portal.update("deal", "1", {}))

    assert error.retry_after == 60


def test_the_minute_is_ours_and_scaled(site, gate, clock):
    site.answer = lambda method, params: OVER

    assert error_of(lambda: client(site, gate, scale=0.1).get("deal", "1")).retry_after == 6


def test_a_list_that_rests_is_not_asked_by_a_find(portal, site, clock):
    site.answer = lambda method, params: OVER
    first = error_of(lambda: portal.find("deal", "a"))
    second = error_of(lambda: portal.find("deal", "b"))

    assert (type(first), type(second)) == (RateLimited, RateLimited)
    assert site.methods == ["crm.deal.list"]
    assert error_of(lambda: portal.find("contact", "a")).retry_after == 60


def test_the_gate_hears_of_calls_over_the_rate_and_says_when_to_come_back(portal, site, gate):
    site.whole = lambda request: httpx.Response(503, json=Refused("QUERY_LIMIT_EXCEEDED").body)
    futures = together(
        portal, lambda: portal.add("deal", "7", {}), *[lambda: portal.find("deal", "a")] * 2
    )

    assert kinds(futures) == [RateLimited] * 3
    assert len({id(future.exception()) for future in futures}) == 3
    assert [future.exception().retry_after for future in futures] == [7.0] * 3
    assert gate.told == [("limited", None, 3)]


def test_the_gate_hears_how_long_the_upstream_asks_for(portal, site, gate):
    site.whole = lambda request: httpx.Response(
        429, json=Refused("QUERY_LIMIT_EXCEEDED").body, headers={"Retry-After": "40"}
    )
    error_of(lambda: portal.get("deal", "7"))

    assert gate.told == [("limited", 40.0, 1)]


@pytest.mark.parametrize("kind", [CircuitOpen, BillingExhausted])
def test_a_closed_gate_is_not_passed(portal, site, gate, kind):
    gate.refusal = kind("closed", service="bitrix", retry_after=10.0)
    futures = together(portal, *[lambda: portal.get("deal", "1")] * 3)

    assert kinds(futures) == [kind] * 3
    assert sorted(future.exception().retry_after for future in futures) == [10.0, 11.0, 12.0]
    assert site.requests == []


# -- failures of a whole request


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def whole(request: httpx.Request) -> httpx.Response:
        raise error

    return whole


def answering(status: int, **options) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, **options)


DOWN = {
    "500": (answering(500, text="<h1>oops</h1>"), OutcomeUnknown, ServiceUnavailable),
    "502": (answering(502), OutcomeUnknown, ServiceUnavailable),
    "its own 500": (
        answering(500, json=Refused("INTERNAL_SERVER_ERROR").body),
        OutcomeUnknown,
        ServiceUnavailable,
    ),
    "no answer": (raising(httpx.ReadTimeout("slow")), OutcomeUnknown, ServiceUnavailable),
    "broken off": (
        raising(httpx.RemoteProtocolError("closed")),
        OutcomeUnknown,
        ServiceUnavailable,
    ),
    "not reached": (raising(httpx.ConnectError("refused")), NetworkError, NetworkError),
    "not in time": (raising(httpx.ConnectTimeout("slow")), NetworkError, NetworkError),
}


@pytest.mark.parametrize(("whole", "unsafe", "safe"), DOWN.values(), ids=DOWN)
def test_a_failure_means_to_each_call_of_a_batch_what_it_means_to_it(
    portal, site, gate, whole, unsafe, safe
):
    site.whole = whole
    futures = together(
        portal,
        lambda: portal.add("deal", "7", {}),
        lambda: portal.get("deal", "1"),
        lambda: portal.update("deal", "1", {}),
        lambda: portal.find("deal", "7"),
        lambda: portal.contacts_with("EMAIL", "a@b"),
    )

    assert kinds(futures) == [unsafe, safe, safe, safe, safe]
    assert gate.told == [("failure",)]
    assert len({id(future.exception()) for future in futures}) == 5


@pytest.mark.parametrize(("whole", "unsafe", "safe"), DOWN.values(), ids=DOWN)
def test_a_failure_of_a_lone_call_is_told_to_the_gate(portal, site, gate, whole, unsafe, safe):
    site.whole = whole

    assert type(error_of(lambda: portal.add("deal", "7", {}))) is unsafe
    assert type(error_of(lambda: portal.get("deal", "7"))) is safe
    assert gate.told == [("failure",)] * 2


@pytest.mark.parametrize(
    "refusal",
    [
        Refused("", "Not found"),
        Refused("ERROR_CORE"),
        Refused("ACCESS_DENIED", status=403),
        Refused("ERROR_METHOD_NOT_FOUND", status=404),
    ],
    ids=lambda refusal: refusal.code or refusal.text,
)
def test_an_upstream_that_says_no_is_alive(portal, site, gate, refusal):
    site.answer = lambda method, params: refusal
    error_of(lambda: portal.get("deal", "1"))

    assert gate.told == [("success",)]


def test_a_refused_credential_is_held(portal, site, gate):
    site.answer = lambda method, params: Refused("INVALID_CREDENTIALS", "Bad", status=401)
    error = error_of(lambda: portal.get("deal", "1"))

    assert type(error) is Unauthorized
    assert gate.told == [("success",), ("held", BASE, str(error))]


def test_an_upstream_that_blocks_us_is_paused_until_a_person_acts(portal, site, gate):
    site.answer = lambda method, params: Refused("OVERLOAD_LIMIT", "Blocked", status=503)
    error = error_of(lambda: portal.get("deal", "1"))

    assert type(error) is Blocked
    assert gate.told == [("success",), ("paused", "upstream", str(error))]


def test_a_portal_that_wants_money_says_so_to_all_who_wait(portal, site, gate):
    refusal = Refused("PAYMENT_REQUIRED", "Pay", status=401)
    site.whole = lambda request: httpx.Response(401, json=refusal.body)
    futures = together(portal, *[lambda: portal.get("deal", "1")] * 3)
    errors = [future.exception() for future in futures]

    assert kinds(futures) == [BillingExhausted] * 3
    assert [error.retry_after for error in errors] == [60.0] * 3
    assert [(told[0], told[2]) for told in gate.told] == [("unpaid", 3)]


@pytest.mark.parametrize(
    ("code", "kind"), [("INVALID_CREDENTIALS", Unauthorized), ("OVERLOAD_LIMIT", Blocked)]
)
def test_an_answer_counts_even_if_the_gate_cannot_be_told(portal, site, gate, code, kind):
    gate.deaf = True
    site.answer = lambda method, params: Refused(code, status=401)

    assert type(error_of(lambda: portal.add("deal", "1", {}))) is kind


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(portal, site, status):
    site.whole = answering(status, headers={"Location": "https://elsewhere.example/rest/"})
    error = error_of(lambda: portal.add("deal", "1", {}))

    assert type(error) is NotConfigured
    assert "elsewhere.example" in error.detail
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"null", b'{"result"', b"{}", b"\xff\xfe", b"[" * 100_000]
)
@pytest.mark.parametrize("company", [0, 1], ids=["alone", "in a batch"])
def test_an_answer_that_makes_no_sense_leaves_a_write_in_doubt(portal, site, body, company):
    site.whole = answering(200, content=body)
    futures = together(
        portal, lambda: portal.add("deal", "1", {}), *[lambda: portal.get("deal", "1")] * company
    )

    assert kinds(futures) == [OutcomeUnknown, *[InternalError] * company]


# -- the portal of this process


@pytest.fixture
def configured(monkeypatch):
    """Settings of our own for the portal; nothing is called, so nobody needs to be there."""

    def forget():
        settings.cache_clear()
        connection.redis.cache_clear()
        bitrix.portal.forget()

    monkeypatch.setenv("REDIS_URL", "redis://nowhere.invalid:1/0")
    monkeypatch.setenv("BITRIX_WEBHOOK_URL", BASE)
    forget()
    yield monkeypatch
    forget()


def test_all_threads_of_a_process_share_one_portal(configured):
    ready = threading.Barrier(40)

    def ask() -> Portal:
        ready.wait(DEADLINE)
        return bitrix.portal()

    portals = [future.result(DEADLINE) for future in [start(ask) for _ in range(40)]]

    assert len({id(portal) for portal in portals}) == 1


def test_a_portal_is_built_as_the_settings_say(configured):
    configured.setenv("BITRIX_ORIGINATOR_ID", "shop")
    configured.setenv("BITRIX_RATE", "5")
    configured.setenv("RETRY_TIME_SCALE", "0.5")
    configured.setenv("BITRIX_COALESCE", "false")
    built = bitrix.portal()

    assert (built.originator, built.operating_pause) == ("shop", 30)
    assert built.upstream.service.rate == 5
    assert built._coalescer._size == 1
    assert built.upstream.credential == BASE
    assert str(built.upstream.client.base_url) == BASE
    assert built.upstream.client.follow_redirects is False


def test_without_a_webhook_there_is_no_portal(configured):
    configured.delenv("BITRIX_WEBHOOK_URL")

    with pytest.raises(NotConfigured, match="BITRIX_WEBHOOK_URL is not set"):
        bitrix.portal()


def test_a_forked_child_builds_a_portal_of_its_own(configured):
    mine = bitrix.portal()
    child = os.fork()
    if child == 0:  # whatever happens: two processes must not go on with these tests
        with suppress(Exception):
            os._exit(1 if bitrix.portal() is mine else 0)
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bitrix.portal() is mine


# -- secrets


@pytest.mark.parametrize(
    "whole",
    [
        *(whole for whole, *_ in DOWN.values()),
        raising(httpx.ConnectError(f"cannot connect to {BASE}")),
        raising(httpx.UnsupportedProtocol(f"what is {BASE}?")),
        answering(404, text=f"no such page: {BASE}crm.deal.add"),
        answering(302, headers={"Location": f"https://new.example/rest/1/{SECRET}/"}),
        answering(401, json=Refused("INVALID_CREDENTIALS", f"{SECRET} is not active").body),
        answering(503, json=Refused("OVERLOAD_LIMIT", f"{BASE} is blocked").body),
        answering(200, text="nonsense"),
        answering(200, json={"result": 5}),
    ],
)
def test_the_webhook_is_nowhere_to_be_read(portal, site, gate, whole, caplog):
    site.whole = whole
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore"):
        caplog.set_level(logging.DEBUG, logger=name)
    calls = [lambda: portal.add("deal", "1", {}), lambda: portal.get("deal", "1")]
    futures = [*together(portal, *calls), *together(portal, calls[0])]
    errors = [future.exception() for future in futures if future.exception()]
    told = [caplog.text, *(str(words) for words in gate.told if words[0] != "held")]
    told += ["".join(traceback.format_exception(error)) for error in errors]
    told += [repr(vars(error)) for error in errors]

    assert errors
    assert [text for text in told if SECRET in text] == []
    assert all(SECRET not in words[2] for words in gate.told if words[0] == "held")


@pytest.mark.parametrize("name", ["httpx", "httpcore.connection", "httpcore.http11"])
def test_what_would_log_the_address_stays_silent_at_any_level(name, caplog):
    caplog.set_level(logging.DEBUG, logger=name)
    logging.getLogger(name).info("POST %s", BASE)
    logging.getLogger(name).warning("something odd")

    assert caplog.messages == ["something odd"]


class Endless(httpx.SyncByteStream):
    """A body of which there is always a little more."""

    def __iter__(self):
        while True:
            yield b" "


def test_an_answer_that_never_ends_is_given_up(gate):
    def trickle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Endless())

    upstream = Upstream(
        replace(SERVICE, read_timeout=0.05),
        gate,
        classifier.classify,
        base_url=BASE,
        credential=BASE,
        transport=httpx.MockTransport(trickle),
    )
    answer = upstream.send(Permit(wait=0.0), "POST", "crm.deal.add", json={})

    assert isinstance(answer.error(False), OutcomeUnknown)
    assert isinstance(answer.error(True), ServiceUnavailable)
    assert gate.told == [("failure",)]


@pytest.mark.parametrize("for_update", [False, True])
def test_an_add_that_refers_to_a_missing_row_is_no_end_of_an_update(portal, site, for_update):
    site.answer = lambda method, params: Refused("", "Contact is not found")
    error = error_of(lambda: portal.add("deal", "1", {}, for_update=for_update))

    assert isinstance(error, InvalidData if for_update else NotFound)


@pytest.mark.parametrize("gone", [True, False], ids=["the row", "a row it refers to"])
def test_an_update_finds_out_which_row_is_gone(portal, site, gone):
    def answer(method, params):
        there = method.endswith(".get") and not gone
        return {"ID": "1"} if there else Refused("", "Not found")

    site.answer = answer
    error = error_of(lambda: portal.update("deal", "1", {"CONTACT_IDS": ["5"]}))

    assert isinstance(error, NotFound if gone else InvalidData)


def test_an_update_leaves_the_marks_alone(portal, site):
    portal.update("deal", "1", {"TITLE": "x", "ORIGIN_ID": "9"})

    assert site.requests[-1][1]["fields"] == {"TITLE": "x"}


def test_a_portal_that_has_moved_closes_its_gate(portal, site, gate):
    site.answer = lambda method, params: Refused("PORTAL_DELETED", status=403)
    error_of(lambda: portal.get("deal", "1"))

    assert [told[0] for told in gate.told] == ["success", "paused"]


def test_a_bulky_call_goes_alone():
    assert Call("crm.deal.add", {"fields": {"COMMENTS": "x" * 30_000}}, safe=False).must_go_alone
    assert not Call("crm.deal.add", {"fields": {"COMMENTS": "x"}}, safe=False).must_go_alone
