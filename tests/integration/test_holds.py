"""Jobs that a person holds back: parked by a worker that comes to them, and let go in order."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from celery._state import _task_stack
from celery.exceptions import Retry
from click.testing import CliRunner, Result
from fixtures.waiting import eventually
from redis import Redis

from admin import cli, view
from classifiers.errors import InternalError, Paused
from config.services import services
from config.settings import settings
from reliability import connection, keys
from reliability.connection import redis
from reliability.departures import departures
from reliability.gate import Gate
from reliability.holds import (
    CLAIM,
    FRESH,
    GRACE,
    HOLDS,
    LAST,
    RECHECK,
    SETTLED,
    UNPACED,
    Hold,
    Holds,
    Snapshot,
    holds,
)
from reliability.parking import GATE_REASONS, HELD, kind_of, parking
from tasks import bitrix  # as a module: pytest looks at names, and a task at its settings then

NOW = 1_000_000.0
LATER = 1e10  # a due time that no release gives


@pytest.fixture
def broker(redis_server, redis_client, monkeypatch):
    """The queues, empty; Celery is configured by the first who asks, for the same server."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    _forget()
    yield redis_client
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    """Let this process read its settings anew."""
    for known in (settings, connection.redis, connection.redis_bytes):
        known.cache_clear()


# -- what a hold is about


@pytest.mark.parametrize(
    ("where", "held"),
    [
        ({"order_id": "42"}, True),
        ({"order_id": "4"}, False),
        ({"amount": "5"}, True),
        ({"fields.TENANT": "x"}, True),
        ({"fields.TENANT": "y"}, False),
        ({"fields.PAID": "true"}, True),
        ({"fields.PLACES": "3"}, True),
        ({"fields": "{}"}, False),
        ({"title.TENANT": "x"}, False),
        ({"contact_user_id": "None"}, False),
        ({"nowhere": "x"}, False),
        ({"order_id": "42", "fields.TENANT": "x"}, True),
        ({"order_id": "42", "fields.TENANT": "y"}, False),
        ({}, True),
    ],
    ids=str,
)
def test_a_hold_is_about_jobs_with_all_its_arguments(broker, where, held):
    fields = {"TENANT": "x", "PAID": True, "PLACES": 3}
    arguments = {"order_id": 42, "title": "Sofa", "amount": 5, "fields": fields}
    payload = bitrix.create_deal.payload.read((), arguments)

    assert Hold("hold-1", where=where).matches(payload) is held


@pytest.mark.parametrize(
    ("hold", "held"),
    [
        (Hold("hold-1", task="bitrix.create_deal"), True),
        (Hold("hold-1", task="bitrix.create"), False),
        (Hold("hold-1", service="bitrix"), True),
        (Hold("hold-1", service="kie"), False),
        (Hold("hold-1", task="bitrix.create_deal", service="kie"), False),
    ],
    ids=["task", "part of a name", "queue", "other queue", "task in another queue"],
)
def test_a_hold_is_about_a_task_and_a_queue(hold, held):
    assert hold.concerns("bitrix.create_deal", "bitrix") is held


@pytest.mark.parametrize(
    ("until", "scale", "wait"),
    [
        (None, 1.0, RECHECK),
        (None, 0.01, RECHECK * 0.01),
        (NOW + 60, 1.0, 60 + GRACE),
        (NOW + 10 * RECHECK, 1.0, RECHECK),
        (NOW - 60, 1.0, GRACE),
    ],
    ids=["until lifted", "in a drill", "for a minute", "for long", "over, as others know"],
)
def test_a_held_job_looks_again_by_itself(until, scale, wait):
    """Should nobody call it back: whoever lifts a hold may die over it."""
    assert Hold("hold-1", until=until).refusal(NOW, scale).retry_after == wait


def test_a_held_job_is_told_by_whom_since_when_and_why():
    refusal = Hold("hold-1", by="ann", note="wrong prices", at=0.0).refusal(NOW, 1.0)

    assert isinstance(refusal, Paused)
    assert str(refusal) == "hold-1 – held by ann since 01 Jan 00:00 UTC: wrong prices"


# -- what is kept


def test_holds_are_kept_in_the_order_they_were_made(redis_client):
    kept = Holds(redis_client, prefix="app:")
    first = kept.add(by="ann", task="bitrix.create_deal", note="заказ", until=NOW * 1e4)
    second = kept.add(by="bob", where={"order_id": "42"}, service="bitrix")

    assert kept.each() == [first, second]
    assert kept.standing() == (first, second)
    assert first.id != second.id
    assert abs(first.at - time.time()) < 60
    assert {key.split(":")[0] for key in redis_client.scan_iter()} == {"app"}


@pytest.mark.parametrize("what", [{}, {"service": "kie"}], ids=["nothing", "a whole service"])
def test_a_hold_of_everything_is_refused(redis_client, what):
    with pytest.raises(ValueError, match="its gate"):
        Holds(redis_client).add(by="ann", **what)

    assert Holds(redis_client).each() == []


def test_a_hold_counts_until_it_is_over(redis_client):
    kept = Holds(redis_client)
    kept.add(by="ann", task="a.b", until=time.time() - 1)
    standing = kept.add(by="ann", task="a.b", until=time.time() + 60)

    assert kept.standing() == (standing,)


def test_a_hold_that_was_ended_counts_no_more_and_ends_once(redis_client):
    kept = Holds(redis_client)
    hold = kept.add(by="ann", task="a.b")
    ended = kept.end(hold.id)

    assert kept.standing() == ()
    assert kept.each() == [ended]
    assert kept.end(hold.id) == ended
    assert kept.end("hold-0") is None


# -- what a process knows


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_process_asks_once_a_second_however_many_jobs_it_runs(redis_client):
    clock, kept = Clock(), Holds(redis_client)
    snapshot = Snapshot(kept.standing, clock)
    before = redis_client.info("commandstats").get("cmdstat_hvals", {"calls": 0})["calls"]
    for _ in range(50):
        snapshot.holds()
        clock.now += FRESH / 20

    assert redis_client.info("commandstats")["cmdstat_hvals"]["calls"] - before == 3


def test_a_process_knows_a_new_hold_and_its_end_after_a_second(redis_client):
    clock, kept = Clock(), Holds(redis_client)
    snapshot = Snapshot(kept.standing, clock)
    at_first = snapshot.holds()
    hold = kept.add(by="ann", task="a.b")
    unaware = snapshot.holds()
    clock.now += FRESH
    aware = snapshot.holds()
    kept.end(hold.id)
    clock.now += FRESH

    assert (at_first, unaware, aware, snapshot.holds()) == ((), (), (hold,), ())


def test_no_thread_goes_by_what_is_out_of_date_while_another_reads(redis_client):
    clock, kept = Clock(), Holds(redis_client)
    reading, go_on = threading.Event(), threading.Event()
    go_on.set()

    def read() -> tuple[Hold, ...]:
        reading.set()
        go_on.wait()
        return kept.standing()

    snapshot = Snapshot(read, clock)
    snapshot.holds()
    hold = kept.add(by="ann", task="a.b")
    clock.now += FRESH
    reading.clear()
    go_on.clear()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(snapshot.holds)
        reading.wait()
        second = threads.submit(snapshot.holds)
        wait([second], timeout=0.2)  # time enough to come to a wrong answer
        go_on.set()

    assert (first.result(), second.result()) == ((hold,), (hold,))


def test_no_hold_is_lifted_by_an_outage(own_redis):
    with own_redis.client() as client:
        clock, kept = Clock(), Holds(client)
        hold = kept.add(by="ann", task="a.b")
        snapshot = Snapshot(kept.standing, clock)
        snapshot.holds()
        own_redis.stop()
        clock.now += FRESH

        assert snapshot.holds() == (hold,)


def test_who_has_never_heard_of_holds_lets_no_job_through(own_redis):
    with own_redis.client() as client:
        own_redis.stop()
        clock = Clock()
        snapshot = Snapshot(Holds(client).standing, clock)

        for _ in range(2):
            with pytest.raises(InternalError, match="the holds cannot be read"):
                snapshot.holds()


# -- what becomes of the jobs


def run(task: Any, job_id: str, **payload: Any) -> Any:
    """Come to a job as a worker does."""
    facts = {"called_directly": False, "delivery_info": {"routing_key": "bitrix", "exchange": ""}}
    headers = {"accepted_at": 5.0, "payload_version": 1}
    task.push_request(id=job_id, headers=headers, args=(), kwargs=payload, **facts)
    _task_stack.push(task)
    try:
        return task.run(**payload)
    finally:
        _task_stack.pop()
        task.pop_request()


def test_a_held_job_is_parked_where_a_person_finds_it_and_lets_it_go(broker, monkeypatch):
    # Its own snapshot, since that of this process may be a second old.
    monkeypatch.setattr(
        bitrix.update_deal.__class__, "holds", staticmethod(lambda: holds().standing())
    )
    hold = holds().add(by="ann", where={"order_id": "42"}, note="asked by phone")
    with pytest.raises(Retry):
        run(bitrix.update_deal, "j1", order_id=42, fields={})
    parked = parking().get("j1")
    freed = holds().release(holds().end(hold.id))

    assert (parked.reason, parked.code, parked.queue) == ("Paused", hold.id, "bitrix")
    assert (parked.accepted_at, parked.attempts, parked.payload_version) == (5.0, 0, 1)
    assert "asked by phone" in parked.detail
    assert parked.due == pytest.approx(time.time() + RECHECK, abs=60)
    assert freed == 1
    assert parking().get("j1").due == pytest.approx(time.time(), abs=60)


def park(
    broker: Redis,
    job_id: str,
    hold: Hold,
    *,
    queue: str = "bitrix",
    until: float = LATER,
    **headers: Any,
) -> None:
    """Park a job as the transport does, since 1970, for a hold unless *headers* say otherwise."""
    message = held_message(job_id, hold, **headers)
    departures().park(job_id, queue, message, until)
    rewrite(broker, job_id, kind_of(json.loads(message)["headers"]))


def held_message(job_id: str, hold: Hold, **headers: Any) -> str:
    parked = {"reason": "Paused", "code": hold.id, "service": ""}
    headers = {"id": job_id, "task": "bitrix.update_deal", "parking": parked} | headers
    return json.dumps({"body": "[[], {}, {}]", "headers": headers, "properties": {}})


def park_as_before(broker: Redis, job_id: str, hold: Hold, **headers: Any) -> None:
    """Park a job as a release did that knew one kind for all that is held."""
    park(broker, job_id, hold, **headers)
    broker.zrem(f"{keys.PARKED_OF}{HELD}:{hold.id}", job_id)
    broker.zadd(f"{keys.PARKED_OF}{HELD}", {job_id: 5})
    rewrite(broker, job_id, HELD)


def rewrite(broker: Redis, job_id: str, kind: str) -> None:
    """Have Redis say of a parked job that it has waited since 1970, as one of a *kind*."""
    place, bell, _, message = broker.hget(keys.PARKED, job_id).split("\n", 3)
    broker.hset(keys.PARKED, job_id, f"{place}\n{bell}\n5 {kind}\n{message}")


def dues(*job_ids: str) -> list[float]:
    return [parking().get(job_id).due for job_id in job_ids]


def apart(*job_ids: str) -> list[float]:
    return [later - earlier for earlier, later in pairwise(dues(*job_ids))]


def spacing(name: str) -> float:
    return next(Gate(redis(), service).spacing for service in services() if service.name == name)


@pytest.fixture
def over(broker) -> Hold:
    """A hold that is over; its jobs are still to be released."""
    return holds().end(holds().add(by="ann", task="bitrix.update_deal").id)


def test_jobs_come_back_in_the_order_they_were_sent_paced_to_the_budget(broker, over):
    for job_id, at in {"j1": 30.0, "j2": 10.0, "j3": 20.0}.items():
        park(broker, job_id, over, accepted_at=at)
    freed = holds().release(over)

    assert freed == 3
    assert dues("j2")[0] == pytest.approx(time.time(), abs=60)
    assert apart("j2", "j3", "j1") == pytest.approx([spacing("bitrix")] * 2, abs=1e-4)
    assert holds().each() == []


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ({"accepted_at": 10.0, "history": [{"at": 90.0}]}, 0),
        ({"history": [{"at": 30.0}, {"at": 90.0}]}, 1),
        ({"accepted_at": "long ago", "history": [{"at": 30.0}]}, 1),
        ({"accepted_at": math.nan}, 0),
        ({"accepted_at": 1e300}, 0),
        ({"history": "none"}, 0),
        ({}, 0),
    ],
    ids=["accepted", "tried", "in words", "nan", "too late", "no history", "parked alone"],
)
def test_a_job_that_does_not_say_when_it_was_sent_has_the_earliest_place_known(
    broker, over, headers, place
):
    park(broker, "known", over, accepted_at=20.0)
    park(broker, "j1", over, **headers)
    holds().release(over)

    assert (dues("j1") > dues("known")) == bool(place)


@pytest.mark.parametrize(("queue", "seconds"), [("telegram", None), ("upkeep", UNPACED)])
def test_each_queue_is_a_line_of_its_own(broker, over, queue, seconds):
    for n, where in enumerate(["bitrix", queue, "bitrix", queue]):
        park(broker, f"j{n}", over, queue=where, accepted_at=1.0 + n)
    holds().release(over)

    assert apart("j0", "j1") == [0.0]
    assert apart("j0", "j2") == pytest.approx([spacing("bitrix")], abs=1e-4)
    assert apart("j1", "j3") == pytest.approx([seconds or spacing(queue)], abs=1e-4)


def test_the_pace_is_that_of_the_queue_whatever_its_keys_begin_with(broker, monkeypatch):
    monkeypatch.setenv("REDIS_STREAM_PREFIX", "app:")
    settings.cache_clear()
    hold = holds().end(holds().add(by="ann", task="bitrix.update_deal").id)
    for n in range(2):
        departures().park(
            f"j{n}", "bitrix", held_message(f"j{n}", hold, accepted_at=1.0 + n), LATER
        )
    holds().release(hold)

    assert parking().get("j0").queue == "bitrix"
    assert apart("j0", "j1") == pytest.approx([spacing("bitrix")], abs=1e-4)


@pytest.mark.parametrize(
    "parked",
    [
        {"reason": "Paused", "code": "hold-99", "service": ""},
        {"reason": "Paused", "code": "", "service": "bitrix"},
        {"reason": "ServiceUnavailable", "code": "hold-1", "service": "bitrix"},
        {},
    ],
    ids=["another hold", "its gate", "a code that looks alike", "a countdown"],
)
def test_jobs_that_wait_for_something_else_keep_their_time(broker, over, parked):
    park(broker, "j1", over, parking=parked)

    assert over.id == "hold-1"
    assert holds().release(over) == 0
    assert dues("j1") == [LATER]


def test_a_gate_that_opens_lets_no_held_job_go(broker, over):
    park(broker, "j1", over)

    assert parking().release_service("bitrix", start=0.0, spacing=0.1) == 0
    assert dues("j1") == [LATER]


def test_a_job_that_leaves_meanwhile_does_not_come_twice(broker, over):
    park(broker, "j1", over)
    broker.zrem("perennial:parked:due", "j1")  # as if taken between the look and the release
    holds().release(over)

    assert parking().get("j1") is None


def test_thousands_of_jobs_are_all_let_go(broker, over):
    for n in range(1200):
        park(broker, f"j{n}", over, accepted_at=1.0 + n)

    assert holds().release(over) == 1200
    assert broker.zcount("perennial:parked:due", LATER, "+inf") == 0


def waiting_for(service: str, reason: str, code: str = "") -> dict[str, str]:
    return {"reason": reason, "service": service, "code": code}


def test_jobs_are_found_by_what_they_wait_for(broker, over):
    for reason in ("Unauthorized", "CredentialHeld", "RateLimited"):
        park(broker, reason, over, parking=waiting_for("x", reason))
    park(broker, "elsewhere", over, parking=waiting_for("kie", "Unauthorized"))
    found = parking().waiting_for("x", ["Unauthorized", "CredentialHeld"])

    assert {job.message_id for job in found} == {"Unauthorized", "CredentialHeld"}


def test_a_gate_that_opens_lets_its_jobs_come_back_in_their_order_and_no_others(broker, over):
    for place, reason in enumerate(sorted(GATE_REASONS)):
        due = LATER - place  # the other way round than they were parked
        park(broker, reason, over, until=due, parking=waiting_for("bitrix", reason))
    park(broker, "elsewhere", over, parking=waiting_for("kie", "RateLimited"))
    park(broker, "failed", over, parking=waiting_for("bitrix", "ServiceUnavailable"))
    freed = parking().release_service("bitrix", start=NOW, spacing=0.5)
    line = sorted(GATE_REASONS, reverse=True)

    assert freed == len(GATE_REASONS)
    assert dues(*line) == [NOW + 0.5 * place for place in range(len(line))]
    assert dues("elsewhere", "failed") == [LATER, LATER]


HELD_BY = waiting_for("", "Paused", "hold-1")
AT_THE_GATE = waiting_for("bitrix", "RateLimited")


@pytest.mark.parametrize("facts", [HELD_BY, AT_THE_GATE], ids=["a hold", "a gate"])
def test_no_job_is_left_behind_while_others_leave(broker, over, monkeypatch, facts):
    leaving = [f"leaving-{n:03}" for n in range(600)]
    staying = [f"staying-{n:03}" for n in range(600)]
    for n, job_id in enumerate(leaving + staying):
        park(broker, job_id, over, parking=facts, accepted_at=1.0 + n, until=LATER + n)
    execute = Redis.execute_command

    def as_some_leave(client: Redis, *command: Any, **options: Any) -> Any:
        answer = execute(client, *command, **options)
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr(Redis, "execute_command", execute)
            for _ in range(100):
                if leaving:
                    parking().cancel(leaving.pop(0))
        return answer

    monkeypatch.setattr(Redis, "execute_command", as_some_leave)
    if facts is HELD_BY:
        holds().release(over)
    else:
        parking().release_service("bitrix", start=NOW, spacing=0.1)
    monkeypatch.setattr(Redis, "execute_command", execute)

    assert [job_id for job_id in staying if dues(job_id)[0] >= LATER] == []


def read_by(broker: Redis, look: Callable[[], Any]) -> int:
    """Return how many bytes Redis sends while somebody looks."""
    before = broker.info("stats")["total_net_output_bytes"]
    look()
    return broker.info("stats")["total_net_output_bytes"] - before


def looks(hold: Hold) -> list[Callable[[], Any]]:
    return [
        view.holds,
        parking().kinds,
        lambda: parking().release_held(hold.id, start=LATER, spacings={}, otherwise=1.0),
        lambda: parking().release_service("bitrix", start=LATER, spacing=1.0),
        lambda: list(parking().waiting_for("x", ["Unauthorized", "CredentialHeld"])),
    ]


def test_nobody_reads_what_waits_for_something_else(broker, over):
    """A look at ten jobs that are held costs no more when a thousand others wait."""
    others = [waiting_for("bitrix", "Pending"), waiting_for("kie", "Paused")]
    others += [waiting_for("", "Paused", "hold-99"), {}]
    for n in range(10):
        park(broker, f"held-{n}", over)
        park(broker, f"at the gate-{n}", over, parking=AT_THE_GATE)
    for n, facts in enumerate(others):
        park(broker, f"first other-{n}", over, parking=facts)
    before = [read_by(broker, look) for look in looks(over)]
    for n in range(1000):
        park(broker, f"other-{n}", over, parking=others[n % len(others)])
    after = [read_by(broker, look) for look in looks(over)]

    assert after == pytest.approx(before, abs=500)  # a job alone has some 300 bytes


# -- jobs that a release before this one has parked


def test_what_the_release_before_has_parked_is_counted_and_let_go_in_its_order(broker, over):
    park_as_before(broker, "j1", over, accepted_at=10.0)
    park(broker, "j2", over, accepted_at=20.0)
    park_as_before(broker, "j3", over, accepted_at=30.0)
    park_as_before(broker, "of another", Hold("hold-99"))
    (row,) = view.holds()

    assert row["jobs"] == 3
    assert holds().release(over) == 3
    assert apart("j1", "j2", "j3") == pytest.approx([spacing("bitrix")] * 2, abs=1e-4)
    assert dues("of another") == [LATER]


def test_what_the_release_before_has_parked_is_counted_once_when_it_is_held_again(broker, over):
    park_as_before(broker, "j1", over)
    park(broker, "j1", over)

    assert [row["jobs"] for row in view.holds()] == [1]
    assert [(kind.service, kind.reason, kind.count) for kind in parking().kinds()] == [
        ("none", "Paused", 1)
    ]


# -- which holds are known as kinds


def test_held_jobs_are_of_one_kind_for_whoever_counts_kinds(broker):
    for number, at in enumerate([30.0, 10.0, 20.0]):
        park(broker, f"j{number}", Hold(f"hold-{number}"), accepted_at=at)

    (kind,) = parking().kinds()

    assert (kind.service, kind.reason, kind.count, kind.oldest) == ("none", "Paused", 3, 10.0)


def test_a_hold_that_nothing_waits_for_is_forgotten_when_the_next_one_comes(broker):
    for number in range(3):
        park(broker, f"j{number}", Hold(f"hold-{number}"))
    parking().cancel("j1")
    park(broker, "j3", Hold("hold-3"))

    kinds = {f"{HELD}:hold-{number}" for number in (0, 2, 3)}
    assert broker.smembers(keys.PARKED_KINDS) == kinds


# -- the end of a hold


@pytest.mark.parametrize(
    ("until", "freed"),
    [(-60.0, 1), (-SETTLED / 4, 0), (60.0, 0), (None, 0)],
    ids=["over", "a moment ago", "to come", "until lifted"],
)
def test_the_upkeep_releases_what_is_over_for_everybody(broker, until, freed):
    end = None if until is None else time.time() + until
    park(broker, "j1", holds().add(by="ann", task="bitrix.update_deal", until=end))

    assert holds().release_ended() == freed
    assert (dues("j1") == [LATER]) == (freed == 0)
    assert len(holds().each()) == 1 - freed


def test_only_one_of_many_releases_at_a_time(broker, over):
    park(broker, "j1", over)
    broker.set(f"{CLAIM}{over.id}", 1)

    assert holds().release(over) == 0
    assert dues("j1") == [LATER]


def test_what_a_crash_has_left_is_released_by_the_next(broker, over):
    """Whoever claimed the release has died; the hold is still there, and says that it is over."""
    park(broker, "j1", over)
    broker.set(f"{CLAIM}{over.id}", 1, px=20)
    eventually(lambda: not broker.exists(f"{CLAIM}{over.id}"))

    assert holds().release(over) == 1


def test_a_release_leaves_nothing_behind(broker, over):
    holds().release(over)

    assert list(broker.scan_iter(f"{HOLDS}*")) == [LAST]


# -- by hand


def hold(*arguments: str) -> Result:
    return CliRunner().invoke(cli.hold, arguments)


def listed() -> list[dict[str, Any]]:
    return json.loads(hold("ls", "--json").output)


def test_a_person_holds_looks_and_lifts(broker):
    added = hold("add", "--task", "bitrix.update_deal", "--where", "order_id=42", "--note", "why")
    (row,) = listed()
    park(broker, "j1", Hold(row["id"]))
    (counted,) = listed()
    shown = hold("ls")
    lifted = hold("lift", row["id"])

    assert (added.exit_code, shown.exit_code, lifted.exit_code) == (0, 0, 0)
    assert f"hold lift {row['id']}" in added.output
    expected = {"task": "bitrix.update_deal", "where": {"order_id": "42"}, "note": "why", "jobs": 0}
    assert expected.items() <= row.items()
    assert counted["jobs"] == 1
    assert "order_id=42" in shown.output
    assert "1 jobs come back" in lifted.output
    assert listed() == []
    assert hold("ls").output == "nothing is held\n"


def test_a_lifted_hold_is_over_for_everybody_before_its_jobs_are_released(broker):
    """A job parked by the last second's knowledge would be left behind."""
    added = json.loads(
        hold("add", "--task", "bitrix.update_deal", "--note", "why", "--json").output
    )
    began = time.monotonic()
    hold("lift", added["id"])

    assert time.monotonic() - began >= SETTLED


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86_400),
        ("2100-01-01T00:00:00+00:00", datetime(2100, 1, 1, tzinfo=UTC)),
    ],
    ids=["minutes", "hours", "a day", "ISO 8601"],
)
def test_a_hold_may_end_by_itself(broker, until, seconds):
    hold("add", "--task", "bitrix.update_deal", "--note", "why", "--until", until)
    (kept,) = holds().each()
    ends = seconds.timestamp() if isinstance(seconds, datetime) else time.time() + seconds

    assert kept.until == pytest.approx(ends, abs=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--task or --where"),
        (["--service", "kie"], "gate pause kie"),
        (["--task", "bitrix.no"], "no task is called bitrix.no"),
        (["--where", "ordre_id=42"], "no argument is called ordre_id"),
        (["--task", "telegram.notify", "--where", "order_id=42"], "no argument is called order_id"),
        (["--where", "order_id"], "name=value"),
        (["--where", "order_id="], "name=value"),
        (["--where", "order_id=1", "--where", "order_id=2"], "once"),
        (["--where", "order_id=1", "--service", "kei"], "no queue is that of kei"),
        (["--where", "order_id=1", "--until", "soon"], "ISO 8601"),
        (["--where", "order_id=1", "--until", "2001-01-01"], "over already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_hold_nothing_or_everything_is_refused(broker, arguments, said):
    refused = hold("add", "--note", "why", *arguments)

    assert refused.exit_code == 2
    assert said in " ".join(refused.output.replace("│", " ").split())
    assert holds().each() == []


def test_a_hold_without_a_reason_is_refused(broker):
    assert hold("add", "--task", "bitrix.update_deal").exit_code == 2


def test_whoever_lifts_what_is_not_held_is_told(broker):
    lifted = hold("lift", "hold-0")

    assert lifted.exit_code == 1
    assert "there is no hold hold-0" in lifted.output
