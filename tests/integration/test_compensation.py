"""What a job has begun is made good when it dies or is taken out, whatever happens in between."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from classifiers.errors import InvalidData, JobError, OutcomeUnknown, ServiceUnavailable
from config.settings import settings
from reliability import connection
from reliability.dead_letters import Body, Letter, dead_letters
from reliability.parking import parking
from tasks import compensation, failures
from tasks.replay import send_again
from tasks.video import make_good, send

SEND = {"order_id": "7"}
DOWN = ServiceUnavailable("502", service="telegram")


@pytest.fixture
def broker(redis_server, redis_client, monkeypatch, tmp_path):
    """The queues, empty; Celery is configured by the first who asks, for the same server."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    _forget()
    yield redis_client
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    """Let this process read its settings anew."""
    for known in (settings, connection.redis, connection.redis_bytes, dead_letters):
        known.cache_clear()


def died(
    error: Exception = DOWN,
    *,
    task: str = "video.send",
    **facts: Any,
) -> Letter:
    """The letter of a job that has died of *error*."""
    options = {"args": (), "kwargs": SEND, "queue": "telegram", "headers": {"accepted_at": 5.0}}
    return failures.letter("j1", task=task, error=error, **options | facts)


def queued(broker, queue: str = "telegram") -> list[tuple[str, str, dict[str, Any]]]:
    """(task, id, arguments) of what waits in a queue, in the order it was sent."""
    messages = [json.loads(item) for item in reversed(broker.lrange(queue, 0, -1))]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    headers = [message["headers"] for message in messages]
    return [(at["task"], at["id"], body[1]) for at, body in zip(headers, bodies, strict=True)]


def state() -> str:
    return dead_letters().get("j1").compensation.state


def test_what_a_dead_job_has_begun_is_made_good(broker):
    failures.bury(died(headers={"replays": 2}))
    ((task, job, told),) = queued(broker)

    assert (task, job) == (make_good.name, "j1-amends-2")
    assert told == {
        "task": "video.send",
        "payload": SEND,
        "job_id": "j1",
        "replays": 2,
        "error_type": "ServiceUnavailable",
        "category": "transient",
        "reason": "",
        "refund": True,
        "tell": True,
    }
    assert state() == "sent"


def test_what_may_have_arrived_is_not_paid_back(broker):
    failures.bury(died(OutcomeUnknown()))
    ((_, _, told),) = queued(broker)

    assert told["refund"] is False


@pytest.mark.parametrize(
    ("error", "category"),
    [(ValueError("a bug"), "system"), (TimeoutError(), "system"), (JobError("no"), "permanent")],
    ids=["foreign", "time limit", "ours"],
)
def test_whatever_a_job_dies_of_is_made_good(broker, error, category):
    failures.bury(died(error))
    ((_, _, told),) = queued(broker)

    assert (told["category"], told["refund"]) == (category, True)


@pytest.mark.parametrize("task", ["bitrix.create_deal", "video.make_good", "crm.conquer", ""])
def test_a_job_that_begins_nothing_has_nothing_to_be_made_good(broker, task):
    failures.bury(died(task=task))

    assert queued(broker) == []
    assert state() == "none"


@pytest.mark.parametrize(
    "facts",
    [{"kwargs": {}}, {"kwargs": {"order_id": True}}, {"args": (1, 2, 3)}],
    ids=["missing", "wrong", "too many"],
)
def test_a_payload_that_nobody_could_work_with_has_begun_nothing(broker, facts):
    failures.bury(died(InvalidData(), **facts))

    assert queued(broker) == []
    assert state() == "none"
    assert dead_letters().owed() == []


def test_the_same_death_told_twice_is_one_compensation(broker):
    for _ in range(2):
        failures.bury(died())

    assert {job for _, job, _ in queued(broker)} == {"j1-amends-0"}


def test_a_crash_between_letter_and_compensation_is_made_up_for(broker):
    dead_letters().bury(died())
    for _ in range(2):
        compensation.send_what_is_owed()

    assert [job for _, job, _ in queued(broker)] == ["j1-amends-0"]
    assert state() == "sent"


@pytest.mark.parametrize(
    ("kwargs", "sent", "then"),
    [(SEND, ["j1-amends-0"], "sent"), ({}, [], "none")],
    ids=["something begun", "nothing begun"],
)
def test_a_redis_that_refuses_everything_only_delays_it(broker, kwargs, sent, then):
    broker.config_set("maxmemory", 1)
    try:
        failures.bury(died(kwargs=kwargs))
        compensation.send_what_is_owed()
    finally:
        broker.config_set("maxmemory", 0)
    refused = queued(broker), dead_letters().get("j1")
    dead_letters().drain_spool()
    compensation.send_what_is_owed()

    assert refused == ([], None)
    assert [job for _, job, _ in queued(broker)] == sent
    assert state() == then


def test_a_compensation_that_comes_late_is_about_the_run_that_died(broker):
    dead_letters().bury(died())
    send_again(dead_letters().get("j1"))
    compensation.send_what_is_owed()
    (_, replay, _), (_, job, told) = queued(broker)

    assert (replay, job) == ("j1", "j1-amends-0")
    assert told["replays"] == 0  # whoever works on the replay is left alone


def test_a_debt_that_cannot_be_sent_does_not_keep_others_from_theirs(broker):
    """A letter of another release, or of another program: nobody here knows how to make it good."""
    unknown = replace(died(), message_body=Body("crm.conquer"), message_id="j0")
    dead_letters().bury(unknown)
    broker.zadd("perennial:dead:owed", {"j0": 1})  # the oldest of all
    dead_letters().bury(died())
    sent = compensation.send_what_is_owed()

    assert sent == 1
    assert [job for _, job, _ in queued(broker)] == ["j1-amends-0"]
    assert dead_letters().get("j0").compensation.state == "needed"
    assert dead_letters().owed() == []  # for an hour


def test_a_compensation_that_waits_for_its_next_try_is_not_sent_once_more(broker):
    """It would begin to count its tries afresh, each hour, and never be given up."""
    failures.bury(died())
    ((_, _, told),) = queued(broker)
    broker.delete("telegram")
    tried = {"history": [], "spent": {"InternalError": 250}, "accepted_at": 5.0}
    make_good.apply_async(kwargs=told, task_id="j1-amends-0", countdown=600, headers=tried)
    broker.zincrby("perennial:dead:owed", -3700, "j1")
    sent = compensation.send_what_is_owed()

    assert sent == 0
    assert queued(broker) == []
    assert parking().get("j1-amends-0").attempts == 250
    assert dead_letters().owed() == []
    assert state() == "sent"


@pytest.mark.parametrize(("args", "kwargs"), [(5, {}), ([], 5), ([], [1])], ids=repr)
def test_what_are_no_arguments_at_all_have_begun_nothing(args, kwargs):
    assert compensation.ids_to_amend("video.send", args, kwargs, 1) == {}


@pytest.mark.parametrize("act", [send_again, compensation.compensate])
def test_a_job_of_a_queue_that_is_gone_goes_where_its_task_goes_now(broker, act):
    dead_letters().bury(died(queue="videos-of-old"))

    assert act(dead_letters().get("j1"))
    assert len(queued(broker)) + len(queued(broker, "kie")) == 1


def test_a_replay_begins_anew_but_for_when_it_was_accepted(broker):
    headers = {"accepted_at": 5.0, "asked_for_patience": True, "spent": {"Retryable": 5}}
    dead_letters().bury(died(headers=headers))
    before = time.time()
    send_again(dead_letters().get("j1"))
    ours = json.loads(broker.lindex("telegram", 0))["headers"]

    assert (ours["accepted_at"], ours["replays"]) == (5.0, 1)
    assert before <= ours["sent_again_at"] <= time.time()
    assert not {"asked_for_patience", "spent", "waited", "history"} & set(ours)


# -- what a person takes out


def park(reason: str = "Paused") -> None:
    facts = {"reason": reason, "service": "telegram", "detail": ""}
    headers = {"parking": facts, "replays": 1}
    send.apply_async(kwargs=SEND, task_id="j1", countdown=3600, headers=headers)


def test_a_job_that_is_taken_out_is_made_good(broker):
    park()
    cancelled = compensation.cancel(parking().get("j1"))
    ((task, job, told),) = queued(broker)

    assert cancelled
    assert parking().get("j1") is None
    assert (task, job) == (make_good.name, "j1-amends-1")
    assert (told["error_type"], told["refund"], told["tell"]) == ("Cancelled", True, True)
    assert (told["payload"], told["replays"]) == (SEND, 1)


def test_a_job_that_begins_nothing_is_just_taken_out(broker):
    from tasks.bitrix import update_deal

    update_deal.apply_async(kwargs={"order_id": "7", "fields": {}}, task_id="j1", countdown=3600)

    assert compensation.cancel(parking().get("j1"))
    assert parking().get("j1") is None
    assert queued(broker, "bitrix") == []


def test_whoever_takes_out_a_job_that_has_just_left_is_told(broker):
    park()
    seen = parking().get("j1")
    parking().cancel("j1")

    assert not compensation.cancel(seen)


def test_a_job_is_not_taken_out_if_it_cannot_be_made_good(broker):
    park()
    job = parking().get("j1")
    broker.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="maxmemory"):
            compensation.cancel(job)
    finally:
        broker.config_set("maxmemory", 0)

    assert parking().get("j1") == job
