"""The journal and the summary: what really happened, and who knows of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from sandbox.bitrix import create_app
from sandbox.portal import Portal, PortalSettings

BASE = "/rest/1/sandbox/"


async def _run(portal: Portal, *steps: tuple[str, str, Any]) -> list[Any]:
    transport = httpx.ASGITransport(create_app(portal))
    answers: list[Any] = []
    async with httpx.AsyncClient(transport=transport, base_url="http://portal") as client:
        for verb, path, body in steps:
            try:
                answers.append((await client.request(verb, path, json=body)).json())
            except httpx.ReadError as error:
                answers.append(error)
    await portal.close()
    return answers


def run(portal: Portal, *steps: tuple[str, str, Any]) -> list[Any]:
    return asyncio.run(_run(portal, *steps))


def deal(origin: str) -> tuple[str, str, Any]:
    fields = {"ORIGINATOR_ID": "p", "ORIGIN_ID": origin}
    return "POST", BASE + "crm.deal.add", {"fields": fields}


def test_an_entry_tells_what_was_asked_what_happened_and_who_knows() -> None:
    portal = Portal(clock=lambda: 1000.0)
    fault = ("POST", "/_sandbox/faults", [{"kind": "lost_answer", "about": "o-2"}])
    *_, entries = run(portal, fault, deal("o-1"), deal("o-2"), ("GET", "/_sandbox/journal", None))

    digests = [entry.pop("digest") for entry in entries]
    common = {"at": 1000.0, "method": "crm.deal.add", "inside_batch": False, "key": ""}
    first = {"ID": "1", "ORIGINATOR_ID": "p", "ORIGIN_ID": "o-1"}
    assert entries[0] == common | {
        "n": 1,
        "request": 1,
        "about": first,
        "effect": "deal 1 added",
        "error": None,
        "answered": True,
        "status": 200,
    }
    assert entries[1] == common | {
        "n": 2,
        "request": 2,
        "about": first | {"ID": "2", "ORIGIN_ID": "o-2"},
        "effect": "deal 2 added",
        "error": None,
        "answered": False,
        "status": 0,
    }
    assert digests[0] != digests[1]


def test_every_command_of_a_batch_has_an_entry() -> None:
    portal = Portal()
    cmd = {"a": "crm.deal.add?fields[ORIGIN_ID]=o-1", "b": "crm.deal.get?id=9"}
    run(portal, ("POST", BASE + "batch", {"cmd": cmd}))

    assert [
        (entry.method, entry.inside_batch, entry.key, entry.effect, entry.error, entry.answered)
        for entry in portal.journal.entries
    ] == [
        ("batch", False, "", "", None, True),
        ("crm.deal.add", True, "a", "deal 1 added", None, True),
        ("crm.deal.get", True, "b", "", "", True),
    ]


def test_the_journal_is_read_on_from_where_one_stopped() -> None:
    _, _, entries = run(
        Portal(), deal("o-1"), deal("o-2"), ("GET", "/_sandbox/journal?after=1", None)
    )

    assert [entry["n"] for entry in entries] == [2]


def test_the_summary_counts_and_finds_doubles() -> None:
    portal = Portal(PortalSettings(burst=5), clock=lambda: 1000.0)
    line = {"PHONE": [{"VALUE": "+79000000001"}]}
    contact = ("POST", BASE + "crm.contact.add", {"fields": {"ORIGIN_ID": "u-1", **line}})
    steps = [deal("o-1"), deal("o-2"), deal("o-2"), contact, contact, deal("o-3")]
    *_, summary = run(portal, *steps, ("GET", "/_sandbox/summary", None))

    assert summary == {
        "requests": 6,
        "operations": 5,
        "limit_answers": 1,
        "operating_answers": 0,
        "deals": 3,
        "contacts": 2,
        "duplicates": {
            "deals": [["p", "o-2", 2]],
            "contacts": [["", "u-1", 2]],
            "lines": [["PHONE", "79000000001", 2]],
        },
        "max_bucket": 5.0,
        "by_method": {"crm.deal.add": 4, "crm.contact.add": 2},
        "by_status": {"200": 5, "503": 1},
        "faults_fired": {},
        "webhooks": {"sent": 0, "failed": 0},
    }


def test_reset_forgets_everything() -> None:
    portal = Portal(PortalSettings(burst=1))
    reset = ("POST", "/_sandbox/reset", None)
    fault = ("POST", "/_sandbox/faults", [{"kind": "refuse"}])
    *_, summary, again = run(
        portal, deal("o-1"), fault, reset, ("GET", "/_sandbox/summary", None), deal("o-1")
    )

    assert (summary["requests"], summary["deals"], summary["by_status"]) == (0, 0, {})
    assert again["result"] == 1


def test_disarmed_faults_do_not_fire() -> None:
    fault = ("POST", "/_sandbox/faults", [{"kind": "refuse"}])
    *_, answer = run(Portal(), fault, ("DELETE", "/_sandbox/faults", None), deal("o-1"))

    assert answer["result"] == 1


def test_a_misspelt_fault_is_answered_with_its_name() -> None:
    (answer,) = run(Portal(), ("POST", "/_sandbox/faults", [{"kind": "refuse", "tmies": 1}]))

    assert "tmies" in answer["error"]


def test_the_file_has_a_line_for_every_settled_call(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(Portal(PortalSettings(journal=path)), deal("o-1"), ("POST", "/_sandbox/reset", None))
    run(Portal(PortalSettings(journal=path)), deal("o-2"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    assert [line.get("effect", "reset") for line in lines] == [
        "deal 1 added",
        "reset",
        "deal 1 added",
    ]
