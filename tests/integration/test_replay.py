"""Dead jobs sent again: what would come of it, after an edit, in a ramp, and from a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery.exceptions import Ignore
from click.testing import CliRunner

from admin.cli import dlq
from classifiers.errors import OutcomeUnknown, Pending
from config.services import bitrix
from config.settings import settings
from reliability import connection, holds
from reliability.causes import Verdict
from reliability.dead_letters import (
    HIDDEN,
    Body,
    Compensation,
    DeadLetters,
    Filter,
    Letter,
    Metadata,
    dead_letters,
)
from reliability.gate import Gate
from reliability.parking import parking
from reliability.replays import Run, note_success, replays
from storage import credits, effects, videos
from storage.upgrade import upgrade
from storage.videos import Order
from tasks import replay, retention, upkeep
from tasks.dry_run import dry_run
from tasks.failures import bury

DOWN = "the portal is down"
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def broker(redis_server, redis_client, monkeypatch, tmp_path):
    """Empty queues, no letters and an empty database."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'replay.db'}")
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("BITRIX_RATE", "100")
    _forget()
    upgrade()
    yield redis_client
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for known in (settings, connection.redis, connection.redis_bytes, dead_letters, replays):
        known.cache_clear()


def letter(job: str = "j1", age: float = 60.0, message: str = DOWN, **facts: Any) -> Letter:
    """The letter of a deal that was not made, *age* seconds ago."""
    body = Body("bitrix.create_deal", (), {"order_id": job, "title": "A sofa"})
    known = {
        "original_queue": "bitrix",
        "error_type": "ServiceUnavailable",
        "error_message": message,
        "message_body": body,
        "metadata": Metadata(failed_at=datetime.now(UTC) - timedelta(seconds=age)),
    }
    return Letter(**{"message_id": job, **known, **facts})


def died(job: str = "j1", **facts: Any) -> Letter:
    dead_letters().bury(letter(job, **facts))
    return dead_letters().get(job)


def body(task: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"message_body": Body(task, args, kwargs)}


def queued(broker, queue: str = "bitrix") -> list[dict[str, Any]]:
    """The messages in a queue, in the order they were sent, with their *kwargs*."""
    messages = [json.loads(item) for item in reversed(broker.lrange(queue, 0, -1))]
    return [
        message["headers"] | {"kwargs": json.loads(base64.b64decode(message["body"]))[1]}
        for message in messages
    ]


def taken(broker, queue: str = "bitrix") -> list[dict[str, Any]]:
    """The same, taken out of the queue as a worker would."""
    messages = queued(broker, queue)
    broker.delete(queue)
    return messages


def states(*jobs: str) -> list[str]:
    return [dead_letters().get(job).state for job in jobs]


def cli(*command: str, says: str | None = None) -> tuple[int, str]:
    """The exit code of a command, and all it prints; *says* is what is typed."""
    outcome = CliRunner().invoke(dlq, command, input=says)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


# -- what would come of it


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"raw": "AAAA"}, "could not be read"),
        (body("crm.conquer", x=1), "no task is called 'crm.conquer' here"),
        (body("bitrix.create_deal", order_id="1"), "title: is missing"),
        (body("bitrix.create_deal", order_id=HIDDEN, title="x"), "held a secret"),
        ({"payload_version": 9}, "newer release"),
    ],
    ids=["unreadable", "no such task", "invalid", "hidden", "from the future"],
)
def test_what_cannot_be_sent_is_skipped_and_says_why(facts, why):
    (outlook,) = dry_run([died(**facts)])

    assert outlook.verdict == "skip"
    assert why in outlook.why


def test_a_settled_letter_is_skipped():
    dead = died()
    dead_letters().discard("j1")
    (outlook,) = dry_run([dead_letters().get("j1")])

    assert (outlook.verdict, outlook.why) == ("skip", "it is discarded")
    assert next(dry_run([dead])).verdict == "replay"


def test_a_dry_run_tells_of_a_closed_gate_and_of_holds():
    dead = died()
    gate = Gate(connection.redis(), bitrix(settings()))
    open_gate = next(dry_run([dead]))
    gate.pause("anna")
    paused = next(dry_run([dead]))
    holds.holds().add(by="anna", task="bitrix.create_deal", where={"order_id": "j1"})
    held = next(dry_run([dead]))

    assert (open_gate.verdict, open_gate.gate, open_gate.why) == ("replay", "closed", "")
    assert (paused.verdict, paused.gate) == ("replay", "paused")
    assert "the gate of bitrix is paused" in paused.why
    assert (held.verdict, held.gate) == ("replay", "held")


def made(key: str, how: str) -> None:
    """Have an effect as *how* says."""

    def do():
        if how == "unknown":
            raise OutcomeUnknown("no answer")
        return {"id": "1"}

    with suppress(OutcomeUnknown):
        effects.once(key, do, owner="j0", lease=60)


@pytest.mark.parametrize(
    ("task", "kwargs", "key"),
    [
        ("bitrix.create_deal", {"order_id": "7", "title": "x"}, "bitrix.deal:7"),
        ("bitrix.create_contact", {"user_id": "7", "name": "x"}, "bitrix.contact:7"),
        ("video.send", {"order_id": "7"}, videos.sending_key("j1")),
    ],
)
@pytest.mark.parametrize("how", ["done", "unknown"])
def test_a_dry_run_tells_of_the_effect(task, kwargs, key, how):
    dead = died(**body(task, **kwargs))
    before = next(dry_run([dead]))
    made(key, how)
    after = next(dry_run([dead]))

    assert (before.effect, after.effect) == ("", how)
    assert (before.verdict, after.verdict) == ("replay", "replay")
    assert "its effect" in after.why


ORDER = Order("7", "u", "9", "https://shop.example/sofa.jpg", "it turns", Decimal(2), "en")


def paid() -> None:
    credits.grant("u", 2, "a gift")
    videos.begin(ORDER, "j1", 0)


def refunded() -> None:
    paid()
    videos.give_up_making("7", "j1", 0, "down")


def spent() -> None:
    refunded()
    videos.begin(replace(ORDER, order_id="8"), "j2", 0)


@pytest.mark.parametrize(
    ("before", "verdict", "why"),
    [
        (lambda: None, "skip", "user u has 0.00 credits of 2.00"),
        (paid, "replay", ""),
        (refunded, "replay", ""),
        (spent, "skip", "user u has 0.00 credits of 2.00"),
    ],
    ids=["never had any", "is paid for", "was refunded", "has spent them since"],
)
def test_a_dry_run_counts_the_credits_of_a_video(before, verdict, why):
    before()
    kwargs = {
        "order_id": "7",
        "user_id": "u",
        "chat_id": "9",
        "image_url": ORDER.image_url,
        "prompt": ORDER.prompt,
        "cost": "2.00",
    }
    (outlook,) = dry_run([died(original_queue="kie", **body("video.generate", **kwargs))])

    assert (outlook.verdict, outlook.why) == (verdict, why)


def test_a_dry_run_changes_nothing(broker):
    died()
    before = {key: broker.dump(key) for key in broker.scan_iter()}
    code, output = cli("replay", "--all", "--dry-run")

    assert code == 0
    assert "replay 1" in output
    assert {key: broker.dump(key) for key in broker.scan_iter()} == before


# -- sent again


def test_a_replay_carries_the_version_of_its_payload(broker):
    died(payload_version=1)
    cli("replay", "j1")
    (message,) = queued(broker)

    assert (message["id"], message["payload_version"], message["replays"]) == ("j1", 1, 1)
    assert "replay" not in message


def test_a_replay_says_what_it_did_not_send_and_why(broker):
    died("j1")
    died("j2", **body("crm.conquer"))
    code, output = cli("replay", "--all", "--yes")

    assert code == 1
    assert "sent 1 of 2 again" in output
    assert "1 not: no task is called 'crm.conquer' here" in output
    assert states("j1", "j2") == ["replayed", "open"]


@pytest.fixture
def quick_worker(broker, monkeypatch):
    """Have each job end, in the way that is given, before its sender has noted that it was sent."""

    def ends_by(end: Callable[[dict[str, Any]], None]) -> None:
        mark = DeadLetters.mark_replayed

        def late(*args: Any, **options: Any) -> bool:
            for message in taken(broker):
                end(message)
            return mark(*args, **options)

        monkeypatch.setattr(DeadLetters, "mark_replayed", late)

    return ends_by


def test_a_letter_that_is_named_twice_is_sent_once(broker):
    died("j1")
    died("j2")

    assert cli("replay", "j1", "j1") == (0, "sent 1 of 1 again\n")
    assert cli("replay", "j2", "j2", "--ramp")[0] == 0
    (run,) = replays().each()
    driven(run)
    assert [message["id"] for message in queued(broker)] == ["j1", "j2"]


def test_a_job_that_has_ended_well_before_its_mark_was_sent_by_somebody(quick_worker):
    dead = died()
    quick_worker(lambda message: note_success(message, message["id"]))
    sent = cli("replay", "j1")
    settled = dead_letters().get("j1")

    assert sent == (0, "sent 1 of 1 again\n")
    assert (settled.state, settled.replays) == ("replayed", 1)
    assert settled.settled_by
    assert not dead_letters().mark_replayed(dead, by="bert")  # who was slower has settled nothing


@pytest.mark.parametrize("ignored", [False, True], ids=["open", "ignored"])
def test_a_job_that_has_died_again_before_its_mark_was_sent_all_the_same(
    broker, quick_worker, ignored
):
    dead = died()
    if ignored:
        verdict = Verdict("ignored", "anna", "theirs", NOW).to_json()
        broker.hset("perennial:dead:verdicts", dead.fingerprint, verdict)  # given a moment ago
    again = {"age": 0, "replays": 1, "headers": {"replays": 1}}
    quick_worker(lambda message: dead_letters().bury(letter(message["id"], **again)))

    assert cli("replay", "j1") == (0, "sent 1 of 1 again\n")
    assert states("j1") == ["discarded" if ignored else "open"]


def test_every_way_to_replay_can_tell_in_json_what_it_did(broker):
    died("j1")
    died("j2")
    sent = json.loads(cli("replay", "j1", "--json")[1])
    run = json.loads(cli("replay", "j2", "--ramp", "--json")[1])

    assert sent == {"sent": 1, "refused": {}}
    assert (run["ids"], run["state"]) == (["j2"], "running")


# -- which letters


def buried() -> None:
    died("old", age=7200, error_type="NotFound")
    died("new", **body("bitrix.update_deal", order_id="Sofa-9", fields={}))


@pytest.mark.parametrize(
    ("options", "jobs"),
    [
        ((), ["new", "old"]),
        (("--task", "bitrix.update_deal"), ["new"]),
        (("--error", "NotFound"), ["old"]),
        (("--since", "1h"), ["new"]),
        (("--until", "1h"), ["old"]),
        (("--since", (NOW - timedelta(hours=1)).isoformat()), ["new"]),
        (("--grep", "sofa-9"), ["new"]),
        (("--grep", "nobody"), []),
    ],
)
def test_every_filter_filters(options, jobs):
    buried()
    code, output = cli("ls", "--json", *options)

    assert code == 0
    assert [row["message_id"] for row in json.loads(output)] == jobs


@pytest.mark.parametrize("name", ["--group", "--fingerprint"])
def test_a_group_is_picked_by_either_name(name):
    buried()
    group = dead_letters().get("old").fingerprint
    output = cli("ls", "--json", name, group)[1]

    assert [row["message_id"] for row in json.loads(output)] == ["old"]


@pytest.mark.parametrize(
    "command",
    [
        ("replay",),
        ("discard",),
        ("replay", "j1", "--task", "bitrix.create_deal"),
        ("discard", "j1", "--all"),
        ("ls", "--since", "yesterday"),
        ("replay", "j1", "--dry-run", "--ramp"),
        ("replay", "j1", "--wait"),
        ("replays", "--cancel"),
        ("edit", "j1"),
        ("edit", "j1", "--set", "title"),
        ("ignore", "abc"),
        ("ignore", "abc", "--note", "x", "--until", "2020-01-01"),
        ("edit", "j1", "--unset", "colour"),
        ("fixed", "abc", "--in", "soon"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_two_and_does_nothing(broker, command):
    died()

    assert cli(*command)[0] == 2
    assert states("j1") == ["open"]
    assert queued(broker) == []


@pytest.mark.parametrize("command", ["show", "replay", "discard", "edit", "replays"])
def test_an_unknown_id_ends_with_one(command):
    options = ("--set", "a=b") if command == "edit" else ()

    assert cli(command, "nobody", *options)[0] == 1


def test_many_letters_are_touched_after_a_yes_only(broker):
    died("j1")
    died("j2")
    code, output = cli("replay", "--all", says="n\n")

    assert code == 1
    assert "Send 2 letters?" in output
    assert "bitrix.create_deal" in output
    assert queued(broker) == []
    assert cli("replay", "--all", says="y\n")[0] == 0
    assert len(queued(broker)) == 2


# -- edited


def test_an_edited_job_is_sent_with_its_new_arguments_and_the_old_ones_are_kept(broker):
    died()
    changes = ("--set", "title=A chair", "--set", "amount=12.5", "--set", "fields.STAGE_ID=WON")
    code, output = cli("edit", "j1", *changes, "--replay", says="y\n")
    (message,) = queued(broker)
    (edit,) = dead_letters().get("j1").edits
    after = {"order_id": "j1", "title": "A chair", "amount": 12.5, "fields": {"STAGE_ID": "WON"}}

    assert code == 0
    assert '-  "title": "A sofa"' in output
    assert '+  "title": "A chair"' in output
    assert message["kwargs"] == after
    assert (edit.before, edit.after) == ({"order_id": "j1", "title": "A sofa"}, after)
    assert edit.by
    assert "A chair" in cli("show", "j1")[1]


def test_an_edit_that_the_task_could_not_work_with_is_refused(broker):
    died()
    code, output = cli("edit", "j1", "--set", "amount=lots", "--yes", "--replay")

    assert code == 1
    assert "amount" in output
    assert dead_letters().get("j1").edits == ()
    assert queued(broker) == []


def test_a_letter_that_was_archived_is_shown_all_the_same():
    retention.keep([died()])
    for key in connection.redis().scan_iter("perennial:dead:*"):
        connection.redis().delete(key)
    code, output = cli("show", "j1")

    assert code == 0
    assert DOWN in output
    assert "A sofa" in output


def test_the_archive_is_searched_like_the_letters():
    retention.keep([letter("old", age=7200), letter("new"), letter("kie", error_type="NotFound")])
    died("in redis")

    def found(*options: str) -> list[str]:
        output = cli("ls", "--archived", "--json", *options)[1]
        return [row["message_id"] for row in json.loads(output)]

    assert found() == ["kie", "new", "old"]
    assert found("--limit", "1") == ["kie"]
    assert found("--error", "NotFound") == ["kie"]
    assert found("--until", "1h") == ["old"]
    assert found("--grep", "order_id=NEW") == ["new"]
    assert found("--state", "discarded") == []
    assert "old" in cli("ls", "--archived")[1]


def test_a_letter_whose_history_makes_no_sense_is_shown_all_the_same():
    """A message may come from any program; so may what it says of itself."""
    died(history=({"x": 1}, {"at": "noon", "error": 5}), compensation=Compensation("failed"))
    code, output = cli("show", "j1")

    assert code == 0
    assert "compensation  failed" in output


@pytest.mark.parametrize("command", ["ls", "groups"])
def test_nothing_is_an_empty_array(command):
    assert json.loads(cli(command, "--json")[1]) == []


def test_an_edit_to_a_secret_of_ours_says_that_it_cannot_be_sent(broker, monkeypatch):
    monkeypatch.setenv("ADMIN_TOKEN", "s3cr3t-t0ken")
    _forget()
    died()
    code, output = cli("edit", "j1", "--set", "title=s3cr3t-t0ken", "--yes", "--replay")

    assert code == 1
    assert "held a secret" in output
    assert queued(broker) == []


def test_an_edit_is_stored_after_a_yes_only():
    died()

    assert cli("edit", "j1", "--set", "title=x", says="n\n")[0] == 1
    assert dead_letters().get("j1").edits == ()


def test_all_arguments_come_from_a_file(tmp_path):
    died()
    file = tmp_path / "arguments.json"
    file.write_text('{"order_id": "j1", "title": "From a file"}')

    assert cli("edit", "j1", "--json", str(file), "--yes")[0] == 0
    assert dead_letters().get("j1").message_body.kwargs["title"] == "From a file"


def test_a_secret_that_was_not_kept_can_be_put_back():
    died(**body("bitrix.create_deal", order_id="j1", title=HIDDEN))

    assert cli("edit", "j1", "--set", "title=x", "--yes")[0] == 0
    assert next(dry_run([dead_letters().get("j1")])).verdict == "replay"


@pytest.mark.parametrize("value", ["red", None])
def test_an_argument_can_be_left_out(value):
    died(**body("bitrix.create_deal", order_id="j1", title="x", colour=value))

    assert cli("edit", "j1", "--unset", "colour", "--yes")[0] == 0
    assert dead_letters().get("j1").message_body.kwargs == {"order_id": "j1", "title": "x"}


# -- a ramp


def many(count: int) -> str:
    """So many letters of one group, and its fingerprint."""
    for number in range(count):
        died(f"j{number}", age=60 + number)
    return dead_letters().get("j0").fingerprint


def begun(group: str = "") -> Run:
    return replay.begin_ramp(Filter(fingerprint=group), by="anna")


def driven(run: Run) -> Run:
    """The run after a look of its driver."""
    replay.look_after_the_silent(run.id)
    while replay.sent_some(replay.at(run.id)):
        pass
    return replay.at(run.id)


def ends(messages: list[dict[str, Any]]) -> None:
    """Jobs end well, as their workers tell."""
    for message in messages:
        note_success(message, message["id"])


def dies(message: dict[str, Any], text: str = DOWN) -> None:
    """A job dies, as its worker tells."""
    again = letter(message["id"], age=0, message=text, headers=message, replays=message["replays"])
    bury(again)


def test_a_ramp_sends_one_then_ten_then_a_hundred_and_then_the_rest(broker):
    run, steps = begun(many(150)), []
    while driven(run).under_way:
        messages = taken(broker)
        steps.append(len(messages))
        ends(messages)

    assert steps == [1, 10, 100, 39]
    assert replay.at(run.id).ended == 150
    assert dead_letters().count() == 0


def test_nothing_more_is_sent_before_a_step_has_ended(broker):
    run = begun(many(20))
    driven(run)
    ends(taken(broker))
    driven(run)
    *most, _ = taken(broker)
    ends(most)

    assert driven(run).under_way == 1
    assert queued(broker) == []


def test_the_same_failure_stops_a_ramp_at_once(broker):
    run = begun(many(20))
    driven(run)
    dies(taken(broker)[0])
    stopped = driven(run)

    assert stopped.state == "stopped"
    assert "the failure came back" in stopped.why
    assert (stopped.sent, stopped.died, stopped.returned) == (1, 1, 1)
    assert dead_letters().count() == 20
    assert queued(broker) == []


def test_it_stops_in_the_middle_of_a_step_too(broker):
    run = begun(many(120))
    for _ in range(2):
        driven(run)
        ends(taken(broker))
    assert replay.sent_some(replay.at(run.id))
    dies(taken(broker)[0])

    assert driven(run).sent == 1 + 10 + replay.CHUNK


@pytest.mark.parametrize(("dead", "state"), [(1, "running"), (2, "stopped")])
def test_a_tenth_may_die_of_something_else_and_no_more(broker, dead, state):
    run = begun(many(30))
    driven(run)
    ends(taken(broker))
    driven(run)
    messages = taken(broker)
    for message in messages[:dead]:
        dies(message, "something else")
    ends(messages[dead:])
    now = driven(run)

    assert now.state == state
    assert now.returned == 0
    assert sum(now.causes.values()) == dead


def test_a_job_that_died_again_stays_open_and_is_not_sent_by_the_same_run(broker):
    run = begun(many(12))
    driven(run)
    ends(taken(broker))
    driven(run)
    first, *others = taken(broker)
    dies(first, "something else")
    ends(others)
    driven(run)
    sent = [message["id"] for message in taken(broker)]

    assert first["id"] not in sent
    assert states(first["id"]) == ["open"]
    assert not replay.may_go(dead_letters().get(first["id"]), run)


def test_what_dies_after_the_beginning_is_not_sent(broker):
    run = begun(many(1))
    died("late", age=-5)
    driven(run)
    ends(taken(broker))

    assert driven(run).exhausted
    assert states("late") == ["open"]


def test_the_end_of_a_job_counts_once(broker):
    run = begun(many(2))
    driven(run)
    (message,) = taken(broker)
    ends([message, message])

    assert replay.at(run.id).ended == 1


def test_what_cannot_be_sent_is_passed_over(broker):
    died("j1", age=1, **body("crm.conquer"))
    died("j2", age=2)
    run = begun()
    now = driven(run)

    assert [message["id"] for message in taken(broker)] == ["j2"]
    assert (now.sent, now.passed_over) == (1, 1)


def test_letters_that_are_named_are_sent_and_no_others(broker):
    many(5)
    run = replay.begin_ramp(Filter(), ids=("j3", "j1"))
    driven(run)
    first = taken(broker)
    ends(first)
    driven(run)
    second = taken(broker)
    ends(second)

    assert [message["id"] for message in (*first, *second)] == ["j3", "j1"]
    assert driven(run).exhausted


def test_a_closed_gate_keeps_a_ramp_waiting(broker):
    run = begun(many(2))
    gate = Gate(connection.redis(), bitrix(settings()))
    gate.pause("anna")
    assert driven(run).sent == 0
    gate.resume()

    assert driven(run).sent == 1


def looked_at(run: Run) -> Run:
    """The run after a whole look of its driver."""
    with suppress(Pending):
        replay.ramp.body(run.id)
    return replay.at(run.id)


def test_a_ramp_before_a_closed_gate_says_so_until_it_goes_on(broker):
    run = begun(many(2))
    gate = Gate(connection.redis(), bitrix(settings()))
    gate.pause("anna")
    waiting = looked_at(run)
    told = cli("replays")[1], cli("replays", run.id)[1]
    gate.resume()

    assert waiting.waits == "the gate of bitrix is paused"
    assert all(waiting.waits in text for text in told)
    assert (looked_at(run).waits, replay.at(run.id).sent) == ("", 1)


def test_a_ramp_whose_jobs_are_held_says_so_and_does_not_count_as_hung(broker, monkeypatch):
    run = begun(many(2))
    looked_at(run)
    (message,) = taken(broker)
    reason = {"reason": "Paused", "code": "hold-1", "detail": "hold-1 – held by ann: wrong prices"}
    facts = {"parking": reason, "history": []} | {name: message[name] for name in ("replay", "id")}
    task = replay.app.tasks["bitrix.create_deal"]
    task.apply_async(kwargs=message["kwargs"], task_id="j0", countdown=3600, headers=facts)
    for known in ("SILENT", "UNHEARD"):
        monkeypatch.setattr(replay, known, 0.0)
    held = looked_at(run)
    parking().release("j0", at=1.0)
    parking().cancel("j0")
    note_success(message, "j0")

    assert (held.state, held.waits) == (
        "running",
        "j0 is parked: hold-1 – held by ann: wrong prices",
    )
    assert looked_at(run).waits == ""


def test_a_ramp_goes_no_faster_than_the_budget_of_its_upstream(broker, monkeypatch):
    monkeypatch.setenv("BITRIX_RATE", "1")
    monkeypatch.setenv("BITRIX_COALESCE", "false")
    settings.cache_clear()
    run = begun(many(60))
    for _ in range(2):
        driven(run)
        ends(taken(broker))

    assert driven(run).under_way + 11 <= replay.AHEAD + 11


@pytest.mark.parametrize(("action", "state"), [("--cancel", "cancelled")])
def test_a_cancelled_ramp_sends_no_more_until_it_is_resumed(broker, action, state):
    run = begun(many(20))
    driven(run)
    assert cli("replays", run.id, action)[0] == 0
    ends(taken(broker))
    assert driven(run).state == state
    assert queued(broker) == []
    assert cli("replays", run.id, "--resume")[0] == 0

    assert driven(run).sent == 2


def test_runs_are_listed_with_how_far_they_are(broker):
    run = begun(many(3))
    driven(run)
    (row,) = json.loads(cli("replays", "--json")[1])

    assert (row["id"], row["state"], row["sent"], row["by"]) == (run.id, "running", 1, "anna")
    assert run.id in cli("replays")[1]
    assert "1 sent" in cli("replays", run.id)[1]


# -- crashes


def crashed_before_sending(run: Run) -> None:
    """The driver dies when the next job is written down, and not sent."""
    page = replay.selected(run, 1)
    assert replays().send(
        run, page.letters, cursor=page.cursor, exhausted=False, passed_over=0, paced_until=0
    )


def test_a_job_that_was_written_down_and_not_sent_is_sent_later(broker, monkeypatch):
    run = begun(many(2))
    crashed_before_sending(run)
    assert driven(run).under_way == 1
    assert queued(broker) == []
    monkeypatch.setattr(replay, "SILENT", 0.0)
    driven(run)

    assert [message["id"] for message in queued(broker)] == ["j0"]


def test_a_job_that_was_sent_and_not_marked_is_no_open_letter_once_it_has_ended_well(
    broker, monkeypatch
):
    run = begun(many(1))
    with monkeypatch.context() as crash:
        crash.setattr(DeadLetters, "mark_replayed", lambda *_, **__: None)
        driven(run)
    assert states("j0") == ["open"]
    ends(taken(broker))

    assert states("j0") == ["replayed"]


def test_two_drivers_send_each_job_once(broker):
    run = begun(many(20))
    assert replay.sent_some(run)

    assert not replay.sent_some(run)
    assert len(queued(broker)) == 1


def test_a_death_that_was_not_told_is_found_by_its_letter(broker, monkeypatch):
    run = begun(many(2))
    driven(run)
    (message,) = taken(broker)
    died(message["id"], age=0, headers=message, replays=1)
    monkeypatch.setattr(replay, "SILENT", 0.0)

    assert driven(run).state == "stopped"


def test_a_job_whose_letter_was_discarded_meanwhile_is_waited_for_no_more(broker, monkeypatch):
    run = begun(many(2))
    crashed_before_sending(run)
    dead_letters().discard("j0")
    monkeypatch.setattr(replay, "SILENT", 0.0)
    driven(run)

    assert [message["id"] for message in queued(broker)] == ["j1"]


def test_an_end_that_was_not_told_is_found_by_its_result(broker, monkeypatch):
    run = begun(many(2))
    driven(run)
    (message,) = taken(broker)
    replay.app.backend.store_result(message["id"], {"outcome": "created"}, "SUCCESS")
    monkeypatch.setattr(replay, "SILENT", 0.0)

    assert driven(run).ended == 1


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
def test_a_death_that_only_its_result_tells_of_is_none_the_less_a_death(broker, monkeypatch, state):
    """Its letter was lost, or is in the spool of a host that is down."""
    run = begun(many(2))
    driven(run)
    (message,) = taken(broker)
    replay.app.backend.store_result(message["id"], ValueError(DOWN), state)
    monkeypatch.setattr(replay, "SILENT", 0.0)
    now = driven(run)

    assert (now.state, now.died, now.causes) == ("stopped", 1, {"unknown": 1})


def test_a_job_that_nobody_has_heard_of_for_long_stops_the_ramp(broker, monkeypatch):
    run = begun(many(2))
    driven(run)
    taken(broker)
    monkeypatch.setattr(replay, "SILENT", 0.0)
    assert driven(run).is_running
    monkeypatch.setattr(replay, "UNHEARD", 0.0)
    now = driven(run)

    assert (now.state, "nothing was heard of j0" in now.why) == ("stopped", True)


def test_the_driver_comes_back_until_its_run_is_over(broker):
    run = begun(many(1))
    (message,) = taken(broker, "upkeep")
    assert message["id"] == run.driver
    with pytest.raises(Pending):
        replay.ramp.body(run.id)
    ends(taken(broker))

    assert replay.ramp.body(run.id) == {"outcome": "done", "sent": 1, "ended": 1, "died": 0}
    assert replay.ramp.body(run.id)["outcome"] == "done"


def test_a_run_that_has_lost_its_driver_gets_another_one(broker):
    """Whoever has begun it may die before its first job is sent; Redis may lose a second."""
    run = begun(many(2))
    taken(broker, "upkeep")
    sent = replay.drive_what_stands_still()
    (message,) = taken(broker, "upkeep")
    parked = {"history": [], "parking": {"reason": "Pending"}}
    replay.ramp.apply_async(
        kwargs={"run": run.id}, task_id=run.driver, countdown=60, headers=parked
    )
    while_it_waits = replay.drive_what_stands_still()
    parking().cancel(run.driver)
    died(run.driver, **body("replay.ramp", run=run.id), original_queue="upkeep")
    when_it_is_dead = replay.drive_what_stands_still()
    replays().close(run.id, "cancelled")
    dead_letters().discard(run.driver)
    when_it_is_over = replay.drive_what_stands_still()

    assert (sent, message["id"], message["kwargs"]) == (1, run.driver, {"run": run.id})
    assert (while_it_waits, when_it_is_dead, when_it_is_over) == (0, 0, 0)


@pytest.mark.parametrize(
    ("headers", "redelivered", "over"),
    [
        ({"accepted_at": 5.0}, True, True),
        ({"accepted_at": 5.0}, False, False),
        ({"accepted_at": 5.0, "replays": 1}, True, False),
        ({"accepted_at": 6.0}, True, False),
        ({}, True, False),
    ],
    ids=["the run that died", "not come back", "a later run", "sent anew", "sent past `delay()`"],
)
def test_a_job_that_comes_back_after_its_death_is_not_done_after_all(headers, redelivered, over):
    """Its worker was killed in the moment in which an acknowledgement is on its way."""
    before = {"accepted_at": 5.0} if headers else {}
    died(headers=before, **body("upkeep.canary", queue="bitrix"))
    delivery = {"routing_key": "upkeep", "redelivered": redelivered}
    job = upkeep.canary
    job.push_request(id="j1", headers=headers, called_directly=False, delivery_info=delivery)
    try:
        with pytest.raises(Ignore) if over else nullcontext():
            assert job.run(queue="bitrix") == {"outcome": "heard"}
    finally:
        job.pop_request()


# -- files


def exported(path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_exported_comes_back_as_it_was(broker, tmp_path):
    for job in ("open", "gone", "again"):
        died(job)
    dead_letters().discard("gone", by="anna", note="of no use")
    replay.send_again(dead_letters().get("again"), by="bert")
    file = tmp_path / "letters.jsonl"
    assert cli("export", str(file), "--state", "all")[0] == 0
    before = {row["message_id"]: row for row in exported(file)}
    broker.flushall()
    code, output = cli("import", str(file))
    after = {job: dead_letters().get(job) for job in before}

    assert (code, "imported 3" in output) == (0, True)
    assert {job: one.state for job, one in after.items()} == {
        "open": "open",
        "gone": "discarded",
        "again": "replayed",
    }
    assert (after["gone"].note, after["again"].replays) == ("of no use", 1)
    for job, one in after.items():
        assert json.loads(one.to_json())["message_body"] == before[job]["message_body"]
    assert "imported 0, known already 3" in cli("import", str(file))[1]


def test_an_import_leaves_what_is_known_as_it_is(tmp_path):
    died()
    file = tmp_path / "letters.jsonl"
    cli("export", str(file))
    dead_letters().discard("j1")
    cli("import", str(file))

    assert states("j1") == ["discarded"]


@pytest.mark.parametrize(("state", "told"), [("needed", True), ("sent", True), ("done", False)])
def test_an_import_tells_of_the_debts_that_come_with_it(broker, tmp_path, state, told):
    died(compensation=Compensation(state))
    died("j2")
    file = tmp_path / "letters.jsonl"
    cli("export", str(file))
    broker.flushall()
    code, output = cli("import", str(file))

    assert code == 0
    assert ("the jobs of 1 of them had begun is made good from here" in output) == told
    assert "made good" not in cli("import", str(file))[1]


def test_a_line_that_is_no_letter_is_told_and_the_others_are_buried(broker, tmp_path):
    died()
    file = tmp_path / "letters.jsonl"
    cli("export", str(file))
    file.write_text("{}\nnonsense\n\n" + file.read_text())
    broker.flushall()
    code, output = cli("import", str(file))

    assert code == 1
    assert "line 1:" in output
    assert "line 2:" in output
    assert states("j1") == ["open"]


SECOND = {"message_id": "j2"}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ({"message_id": None}, "message_id: "),
        ({"message_id": ""}, "message_id: "),
        ({"replays": "x"}, "replays: "),
        ({"headers": None}, "headers: "),
        ({"state": "dead"}, "state: "),
        ({"raw": "bytes"}, "base64"),
        ({"message_body": {"task": "bitrix.create_deal", "args": None}}, "message_body.args: "),
        ({"metadata": {"failed_at": "9999-12-31T23:59:59-14:00"}}, "failed_at"),
        ({"metadata": {"failed_at": "0001-01-01T00:00:00"}}, "out of range"),
        ({"note": "\udcff"}, "not a dead letter"),
    ],
    ids=ascii,
)
def test_what_a_person_has_mistaken_in_a_letter_is_told_and_the_others_are_buried(
    broker, tmp_path, mistake, told
):
    died()
    file = tmp_path / "letters.jsonl"
    cli("export", str(file))
    (line,) = exported(file)
    lines = [json.dumps(line | change, ensure_ascii=False) for change in (mistake, SECOND)]
    file.write_text("\n".join(lines), errors="surrogateescape")
    broker.flushall()
    code, output = cli("import", str(file))

    assert (code, output.count("line 1: ")) == (1, 1)
    assert told in output
    assert [found.message_id for found in dead_letters().each(Filter("all"))] == ["j2"]


def test_an_export_may_go_to_the_output():
    died("j1")
    died("j2", age=90)
    lines = cli("export", "-")[1].splitlines()

    assert [json.loads(line)["message_id"] for line in lines[:2]] == ["j1", "j2"]


def test_an_export_is_for_the_eyes_of_its_owner(tmp_path):
    died()
    file = tmp_path / "letters.jsonl"
    cli("export", str(file), "--task", "bitrix.create_deal")

    assert file.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir() if "letters" in path.name] == [file.name]


@pytest.mark.parametrize("file", ["nowhere/letters", "letters/letters"])
def test_a_file_that_cannot_be_written_is_told_in_a_sentence(tmp_path, file):
    (tmp_path / "letters").touch()
    code, output = cli("export", str(tmp_path / file))

    assert (code, "cannot be written" in output) == (1, True)


# -- groups


@pytest.mark.parametrize("verdict", [("ignore", "--note", "theirs"), ("fixed", "--in", "1.2")])
def test_a_verdict_on_a_cause_that_nobody_has_seen_is_refused(verdict):
    command, *options = verdict

    assert cli(command, "69e1017ac65f", *options) == (
        1,
        "Error: no dead letter has the cause 69e1017ac65f\n",
    )
    assert dead_letters().verdicts() == {}


def test_a_group_is_ignored_fixed_and_as_any_other_again():
    group = died().fingerprint

    assert cli("ignore", group, "--note", "theirs", "--until", "7d", "--yes")[0] == 0
    assert states("j1") == ["discarded"]
    died("j2")
    assert states("j2") == ["discarded"]
    assert cli("fixed", group, "--in", "1.2")[0] == 0
    assert dead_letters().verdict(group).version == "1.2"
    (row,) = json.loads(cli("groups", "--state", "all", "--json")[1])
    assert row["verdict"]["state"] == "fixed"
    (said,) = json.loads(cli("verdicts", "--json")[1])
    assert said == {"fingerprint": group} | row["verdict"]
    assert group in cli("verdicts")[1]
    assert "fixed in 1.2" in cli("groups", "--state", "all")[1]
    assert cli("unsay", group)[0] == 0
    assert cli("unsay", group)[0] == 1
