"""Effects in doubt, which a person looks for, finds out about and settles."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from admin import cli
from classifiers.errors import OutcomeUnknown
from config.settings import settings
from reliability import connection
from reliability.dead_letters import Body, Letter, Metadata, dead_letters
from storage import database as storage_database
from storage import effects, links

LEASE = 60.0


@pytest.fixture(autouse=True)
def everything(redis_server, redis_client, database, monkeypatch):
    """An empty database, and no letters."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for known in (settings, connection.redis, dead_letters):
        known.cache_clear()


def in_doubt(key: str, *, job: str = "j1", over: bool = True) -> None:
    """A call went out, and no answer came; it can take effect no more if it is *over*."""

    def call() -> dict[str, Any]:
        raise OutcomeUnknown("no answer")

    with suppress(OutcomeUnknown):
        effects.once(key, call, owner=job, lease=LEASE)
    if over:
        past = datetime.now(UTC) - timedelta(hours=1)
        with storage_database.write() as connection:
            connection.execute(
                text("UPDATE effects SET called_until = :past WHERE key = :key"),
                {"past": past, "key": key},
            )


def done(key: str) -> None:
    effects.once(key, lambda: {"id": "1"}, owner="j1", lease=LEASE)


def at_it(key: str) -> None:
    """A run is at it: it has been claimed, and has not come back."""
    effects._claim(key, "j1", LEASE, LEASE, call_at_once=True)


def run(*command: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(cli.effects, command)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def listed(*options: str) -> list[str]:
    return [row["key"] for row in json.loads(run("ls", "--json", *options)[1])]


def test_what_is_in_doubt_is_listed_the_oldest_first_and_nothing_else():
    for key in ("bitrix.deal:2", "bitrix.deal:1", "bitrix.dealer:1"):
        in_doubt(key)
    done("bitrix.deal:3")
    at_it("bitrix.deal:4")

    assert listed() == ["bitrix.deal:2", "bitrix.deal:1", "bitrix.dealer:1"]
    assert listed("--kind", "bitrix.deal") == ["bitrix.deal:2", "bitrix.deal:1"]
    assert listed("--limit", "1") == ["bitrix.deal:2"]


def test_more_than_are_read_at_once_are_all_listed(monkeypatch):
    monkeypatch.setattr(effects, "_CHUNK", 2)
    keys = [f"bitrix.deal:{number}" for number in range(5)]
    for key in keys:
        in_doubt(key)

    assert listed() == keys


def test_an_effect_is_shown_as_it_is_written_down():
    in_doubt("bitrix.deal:7")
    code, output = run("show", "bitrix.deal:7")
    row = json.loads(output)

    assert code == 0
    assert (row["state"], row["owner"]) == ("unknown", "j1")
    assert "no answer" in row["error"]


@pytest.mark.parametrize(
    ("key", "outcome", "result"),
    [
        ("bitrix.deal:7", "4711", {"id": "4711"}),
        ("bitrix.contact:7", '{"id": "4711"}', {"id": "4711"}),
        ("kie.create:g1", "12e45", {"task_id": "12e45"}),
        ("telegram.message:j1", "99", {"message_id": "99"}),
        ("trip.pay:42:1", '{"receipt": 5}', {"receipt": 5}),
    ],
)
def test_what_has_happened_is_the_result_of_every_later_run(key, outcome, result):
    in_doubt(key)
    code, output = run("settle", key, "--done", outcome, "--note", "seen in the portal")

    assert (code, output) == (0, f"{key} is done\n")
    assert effects.get(key).result == result
    assert "seen in the portal" in effects.get(key).error
    assert effects.once(key, pytest.fail, owner="j2", lease=LEASE).result == result


@pytest.mark.parametrize("entity", ["deal", "contact"])
def test_who_says_which_row_was_made_ties_it_to_its_twin(entity):
    in_doubt(f"bitrix.{entity}:order:7")
    run("settle", f"bitrix.{entity}:order:7", "--done", "4711", "--note", "seen")

    assert links.get(entity, "order:7").remote_id == "4711"


def test_what_has_not_happened_is_had_anew():
    in_doubt("bitrix.deal:7")
    code, _ = run("settle", "bitrix.deal:7", "--undone", "--note", "looked for it")

    assert code == 0
    assert effects.once("bitrix.deal:7", lambda: {"id": "8"}, owner="j2", lease=LEASE).how == "done"


def test_the_letter_of_the_job_is_named():
    metadata = Metadata(failed_at=datetime.now(UTC))
    body = Body("bitrix.create_deal", (), {"order_id": "7", "title": "x"})
    dead_letters().bury(Letter("j1", "bitrix", "OutcomeUnknown", "no answer", body, metadata))
    in_doubt("bitrix.deal:7")

    assert "`dlq replay j1`" in run("settle", "bitrix.deal:7", "--undone", "--note", "x")[1]


@pytest.mark.parametrize(
    ("prepare", "how", "why"),
    [
        (done, ("--undone",), "is not in doubt, it is done"),
        (at_it, ("--done", "5"), "may still take effect"),
        (lambda key: in_doubt(key, over=False), ("--undone",), "may still take effect"),
        (in_doubt, ("--done", '{"deal": "5"}'), "its id, or an object with a text as id"),
        (in_doubt, ("--done", '{"id": 5}'), "its id, or an object with a text as id"),
        (lambda key: None, ("--undone",), "no effect is called bitrix.deal:7"),
    ],
    ids=["done", "at work", "too early", "another object", "a number", "unknown"],
)
def test_what_cannot_be_settled_so_is_left_as_it_is(prepare, how, why):
    prepare("bitrix.deal:7")
    before = effects.get("bitrix.deal:7")
    code, output = run("settle", "bitrix.deal:7", *how, "--note", "x")

    assert code == 1
    assert why in output
    assert "DATABASE_URL" not in output  # it is not the database that is wrong
    assert effects.get("bitrix.deal:7") == before
    assert links.get("deal", "7") is None


@pytest.mark.parametrize(
    ("key", "outcome"),
    [("telegram.video:j1", "5"), ("trip.pay:42:1", "5")],
    ids=["a video, which was paid for", "a step, whose result has no name"],
)
def test_what_wants_more_than_an_id_is_refused(key, outcome):
    in_doubt(key)

    assert run("settle", key, "--done", outcome, "--note", "x")[0] == 1
    assert effects.get(key).state == "unknown"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--note", "x"),
        ("--undone",),
        ("--undone", "--done", "5", "--note", "x"),
        ("--done", "{5", "--note", "x"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_two(options):
    in_doubt("bitrix.deal:7")

    assert run("settle", "bitrix.deal:7", *options)[0] == 2
    assert effects.get("bitrix.deal:7").state == "unknown"


def test_an_effect_that_nobody_knows_cannot_be_shown():
    assert run("show", "bitrix.deal:7")[0] == 1
