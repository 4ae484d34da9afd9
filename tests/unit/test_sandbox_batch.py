"""Batch requests against the facts of UPSTREAMS 1.1 and 1.2."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from sandbox.phpforms import build
from sandbox.portal import Portal, PortalSettings, Request


def command(method: str, params: Mapping[str, Any]) -> str:
    return f"{method}?{build(params)}"


class Batches:
    """A portal without HTTP, one request at a time."""

    def __init__(self, **settings: Any) -> None:
        self.portal = Portal(PortalSettings(**settings), clock=lambda: 1000.0)

    def send(self, cmd: Any, **params: Any) -> dict[str, Any]:
        request = Request("1", "sandbox", "batch", {"cmd": cmd, **params})
        reply = asyncio.run(self.portal.answer(request))
        assert reply.status == 200
        return json.loads(reply.body)["result"]


@pytest.fixture
def batches() -> Batches:
    return Batches()


ADD = command("crm.deal.add", {"fields": {"TITLE": "One & two", "ORIGIN_ID": "o-1"}})
MISSING = "crm.deal.get?id=99"


def test_every_command_has_its_result_and_its_time(batches: Batches) -> None:
    found = batches.send({"a": ADD, "b": "crm.deal.get?id=1", "c": "crm.deal.list?select[]=ID"})

    assert found["result"]["a"] == 1
    assert found["result"]["b"]["TITLE"] == "One & two"
    assert found["result"]["c"] == [{"ID": "1"}]
    assert found["result_total"] == {"c": 1}
    assert found["result_time"]["a"]["operating_reset_at"] == 1600


def test_empty_maps_come_as_lists(batches: Batches) -> None:
    found = batches.send({"a": MISSING})

    assert [found[name] for name in ("result", "result_total", "result_next", "result_time")] == [
        [],
        [],
        [],
        [],
    ]


def test_commands_without_names_come_back_as_a_list(batches: Batches) -> None:
    assert batches.send([ADD, "crm.deal.list?select[]=ID"])["result"] == [1, [{"ID": "1"}]]


def test_a_gap_turns_the_list_into_a_map(batches: Batches) -> None:
    found = batches.send([MISSING, ADD])

    assert found["result"] == {"1": 1}
    assert found["result_error"] == [{"error": "", "error_description": "Not found"}]


def test_errors_stand_inside_a_success(batches: Batches) -> None:
    found = batches.send({"bad": MISSING, "unknown": "crm.deal.lst", "good": ADD})

    assert found["result_error"]["bad"] == {"error": "", "error_description": "Not found"}
    assert found["result_error"]["unknown"]["error"] == "ERROR_METHOD_NOT_FOUND"
    assert found["result"] == {"good": 1}


@pytest.mark.parametrize(
    ("halt", "expected"),
    [
        pytest.param(0, {"good": 1}, id="go-on"),
        pytest.param("0", {"good": 1}, id="go-on-as-text"),
        pytest.param(1, [], id="stop"),
        pytest.param(True, [], id="stop-as-flag"),
        pytest.param("false", [], id="php-takes-any-text-for-true"),
    ],
)
def test_halt_stops_at_the_first_error(batches: Batches, halt: object, expected: object) -> None:
    assert batches.send({"bad": MISSING, "good": ADD}, halt=halt)["result"] == expected


def test_the_fiftieth_command_runs_and_the_next_is_refused(batches: Batches) -> None:
    found = batches.send({f"c{n}": ADD for n in range(51)})

    assert len(found["result"]) == 50
    assert found["result_error"]["c50"]["error"] == "ERROR_BATCH_LENGTH_EXCEEDED"
    assert batches.portal.summary()["deals"] == 50


def test_a_batch_in_a_batch_is_refused(batches: Batches) -> None:
    found = batches.send({"inner": "batch?cmd[a]=crm.deal.list"})

    assert found["result_error"]["inner"]["error"] == "ERROR_BATCH_METHOD_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("$result[deal]", "1", id="scalar"),
        pytest.param("$result[find][0][ORIGIN_ID]", "o-1", id="path"),
        pytest.param("deal $result[deal] of $total[find]", "deal 1 of 1", id="in-a-text"),
        pytest.param("a $result[none] b", "a Array b", id="missing"),
        pytest.param("costs $result or $100", "costs $result or $100", id="no-reference"),
    ],
)
def test_references_are_put_into_any_value(batches: Batches, text: str, expected: str) -> None:
    found = batches.send(
        {
            "deal": ADD,
            "find": command("crm.deal.list", {"filter": {"=ORIGIN_ID": "o-1"}}),
            "next": command("crm.deal.update", {"id": 1, "fields": {"TITLE": text}}),
            "read": "crm.deal.get?id=$result[deal]",
        }
    )

    assert found["result"]["read"]["TITLE"] == expected


def test_a_reference_to_a_failed_command_is_no_id(batches: Batches) -> None:
    found = batches.send({"bad": MISSING, "read": "crm.deal.get?id=$result[bad]"})

    assert found["result_error"]["read"]["error_description"] == "ID is not defined or invalid."


def test_an_unescaped_hash_cuts_the_command_off(batches: Batches) -> None:
    batches.send({"a": "crm.deal.add?fields[TITLE]=Order #12&fields[ORIGIN_ID]=o-1"})
    found = batches.send({"a": "crm.deal.get?id=1"})["result"]["a"]

    assert (found["TITLE"], found["ORIGIN_ID"]) == ("Order ", None)


def test_a_batch_counts_as_one_request() -> None:
    batches = Batches(burst=2)
    for _ in range(2):
        batches.send({f"c{n}": ADD for n in range(50)})
    reply = asyncio.run(batches.portal.answer(Request("1", "sandbox", "batch", {})))

    assert reply.status == 503
    summary = batches.portal.summary()
    assert (summary["requests"], summary["operations"], summary["deals"]) == (3, 100, 100)


def test_operating_time_is_counted_per_command_and_refused_inside() -> None:
    batches = Batches(operating_limit=1, operating_costs={"crm.deal.add": 1})
    found = batches.send({"a": ADD, "b": ADD, "c": ADD, "d": "crm.deal.get?id=1"})

    assert list(found["result"]) == ["a", "b", "d"]
    assert found["result_error"]["c"]["error"] == "OPERATION_TIME_LIMIT"


def test_a_batch_without_commands_is_an_empty_success(batches: Batches) -> None:
    assert batches.send("nonsense")["result"] == []
