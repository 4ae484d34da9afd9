"""What beat sends and what comes of it; what a worker sees to without one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.schedules import crontab
from celery.worker.request import Request

from classifiers.errors import InvalidData, ServiceUnavailable
from config.settings import settings
from reliability import connection, corrupt, keys, liveness
from reliability.dead_letters import Filter, Letter, dead_letters
from storage import archive
from storage.upgrade import upgrade
from tasks import app, caretaker, failures, retention, upkeep
from tasks.base import Operation
from tasks.schedule import Scheduler, Slotted

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()  # where slots of an hour begin
SERVED = ("bitrix", "x", "upkeep")  # queues without an obstacle in these tests
EACH = {"trim": 3600.0, "compensate": 60.0, "ramps": 60.0}
EACH |= {f"canary-{queue}": 30.0 for queue in SERVED}


@pytest.fixture(autouse=True)
def broker(redis_server, redis_client, monkeypatch, tmp_path):
    """Empty queues, no letters and an empty database."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'upkeep.db'}")
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    _forget()
    yield redis_client
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for known in (settings, connection.redis, connection.redis_bytes, dead_letters):
        known.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """The time of all schedules, to be set; noon to begin with."""

    def at(seconds: float) -> None:
        monkeypatch.setattr(Slotted, "clock", staticmethod(lambda: NOON + seconds))

    at(0.0)
    return at


def entry(name: str) -> dict[str, Any]:
    """An entry of our schedule as it is where time is not scaled."""
    queue = name.removeprefix("canary-")
    canary = {"task": "upkeep.canary", "kwargs": {"queue": queue}, "options": {"queue": queue}}
    return (canary if queue != name else {"task": f"upkeep.{name}"}) | {"schedule": EACH[name]}


@pytest.fixture
def beat(clock):
    """Return a beat that has just started, with a schedule of its own or with ours."""
    made = []

    def start(schedule: dict[str, Any] | None = None) -> Scheduler:
        scheduler = Scheduler(app)
        scheduler.schedule = {}
        scheduler.update_from_dict(schedule or {name: entry(name) for name in EACH})
        made.append(scheduler)
        return scheduler

    yield start
    for scheduler in made:
        scheduler.close()
    app.conf.task_send_sent_event = True


def turn(*beats: Scheduler) -> float:
    """Let each send what is due; return the seconds until the last of them looks again."""
    for scheduler in beats:
        while not (pause := scheduler.tick()):
            pass
    return pause


def taken(broker) -> Counter[tuple[str, str]]:
    """(queue, task) of all that is queued; it is not there any more."""
    found = Counter()
    for queue in settings().queues:
        for item in broker.lrange(queue, 0, -1):
            found[queue, json.loads(item)["headers"]["task"]] += 1
        broker.delete(queue)
    return found


CANARIES = Counter((queue, "upkeep.canary") for queue in SERVED)
MINUTELY = Counter([("upkeep", "upkeep.compensate"), ("upkeep", "upkeep.ramps")])
HOURLY = Counter([("upkeep", "upkeep.trim")])


# -- when beat sends what


def test_a_beat_that_starts_sends_everything_and_then_each_in_its_time(broker, beat, clock):
    scheduler = beat()
    sent = {}
    for at in (0, 10, 30, 59, 60, 90, 3599, 3600):
        clock(at)
        turn(scheduler)
        sent[at] = taken(broker)

    assert sent == {
        0: CANARIES + MINUTELY + HOURLY,
        10: Counter(),
        30: CANARIES,
        59: Counter(),
        60: CANARIES + MINUTELY,
        90: CANARIES,
        3599: CANARIES + MINUTELY,
        3600: CANARIES + MINUTELY + HOURLY,
    }


@pytest.mark.parametrize(("at", "pause"), [(0, 30.0), (29.5, 0.5), (47, 13.0)])
def test_a_beat_sleeps_until_the_next_slot(beat, clock, at, pause):
    clock(at)

    assert turn(beat()) == pytest.approx(pause, abs=1e-3)


def test_of_two_beats_each_slot_is_sent_by_one(broker, beat, clock):
    both = beat(), beat()
    turn(*both)
    first = taken(broker)
    clock(30)
    turn(*reversed(both))

    assert first == CANARIES + MINUTELY + HOURLY
    assert taken(broker) == CANARIES


def test_a_beat_that_is_started_again_and_again_sends_nothing_twice_and_leaves_nothing_out(
    broker, beat, clock
):
    sent = Counter()
    for at in range(0, 7200, 1200):
        for _ in range(2):
            turn(beat())
        sent += taken(broker)
        clock(at + 1200)

    assert sent["upkeep", "upkeep.trim"] == 2
    assert sent["upkeep", "upkeep.compensate"] == 6


def test_another_beat_takes_over_in_the_next_slot(broker, beat, clock):
    first, second = beat(), beat()
    turn(first, second)
    first.close()
    taken(broker)
    clock(30)
    turn(second)

    assert taken(broker) == CANARIES


def test_a_clock_that_is_behind_by_less_than_a_slot_sends_nothing_again(broker, beat, clock):
    ahead, behind = beat(), beat()
    for at in (0, 30, 60, 90):
        clock(at)
        turn(ahead)
        clock(at - 20)
        turn(behind)

    assert taken(broker)["bitrix", "upkeep.canary"] == 5  # the slot before noon was nobody's yet


def test_a_crontab_is_sent_by_one_beat_too(broker, beat, clock):
    hourly = crontab(minute=1, nowfun=lambda: datetime.fromtimestamp(Slotted.clock(), UTC))
    report = {"report": {"task": "upkeep.trim", "schedule": hourly}}
    both = beat(report), beat(report)
    turn(*both)
    before = taken(broker)
    clock(60)
    turn(*both)

    assert before == Counter()
    assert taken(broker) == HOURLY


def test_a_redis_that_takes_no_writes_costs_a_slot_and_not_the_beat(broker, beat, clock):
    scheduler = beat()
    broker.config_set("maxmemory", 1)
    try:
        turn(scheduler)
    finally:
        broker.config_set("maxmemory", 0)
    refused = taken(broker)
    clock(30)
    turn(scheduler)

    assert refused == Counter()
    assert taken(broker) == CANARIES


@pytest.mark.parametrize("came", [True, False], ids=["left alone since", "never served"])
def test_a_queue_that_nobody_serves_does_not_fill_up_with_canaries(broker, beat, clock, came):
    scheduler = beat()
    turn(scheduler)
    if came:
        upkeep.canary("x")
    key = f"{keys.CANARY}x" if came else f"{keys.CANARY}x:asked"
    broker.incrbyfloat(key, -3700)  # an hour passes, in which nobody comes
    taken(broker)
    for at in range(30, 7200, 30):
        clock(at)
        turn(scheduler)
    sent = taken(broker)
    upkeep.canary("x")
    clock(7200)
    turn(scheduler)

    assert sent["x", "upkeep.canary"] == 2
    assert sent["bitrix", "upkeep.canary"] == 239
    assert taken(broker)["x", "upkeep.canary"] == 1


def test_claims_end_by_themselves(broker, beat):
    turn(beat())
    claims = {key: broker.pttl(key) for key in broker.scan_iter(f"{keys.SLOT}*")}

    assert len(claims) == len(EACH)
    assert all(0 < left <= 2 * 3600 * 1000 for left in claims.values())


def test_nobody_is_told_of_what_beat_sends(beat):
    """Flower would show a canary that nobody comes to as one that waits for ever."""
    beat()

    assert app.conf.task_send_sent_event is False


# -- the schedule we have


def test_what_is_sent_by_the_clock_is_good_until_the_next_and_no_letter_after():
    app.loader.import_default_modules()
    for name, each in app.conf.beat_schedule.items():
        assert each["options"]["expires"] == each["schedule"], name
        assert app.tasks[each["task"]].recurring, name


def test_every_recurring_task_is_scheduled():
    app.loader.import_default_modules()
    scheduled = {each["task"] for each in app.conf.beat_schedule.values()}
    recurring = {
        name for name, task in app.tasks.items() if isinstance(task, Operation) and task.recurring
    }

    assert scheduled == recurring


# -- canaries


def test_the_age_of_a_canary_is_unknown_before_the_first_and_grows_after_it(broker):
    before = liveness.canary_age("bitrix")
    upkeep.canary("bitrix")
    after = liveness.canary_age("bitrix")
    broker.incrbyfloat(f"{keys.CANARY}bitrix", -100)

    assert before is None
    assert 0 <= after < 60
    assert 100 <= liveness.canary_age("bitrix") < 160
    assert liveness.canary_age("kie") is None


def test_a_canary_that_redis_does_not_hear_ends_all_the_same(broker):
    broker.config_set("maxmemory", 1)
    try:
        outcome = upkeep.canary.apply(kwargs={"queue": "bitrix"})
    finally:
        broker.config_set("maxmemory", 0)

    assert outcome.get() == {"outcome": "unheard"}
    assert liveness.canary_age("bitrix") is None


def revoked(task: Operation, **kwargs: Any) -> bool:
    """Send a job that has expired, and take it from its queue as a worker does."""
    sent = task.apply_async(kwargs=kwargs, queue="bitrix", expires=datetime(2026, 1, 1, tzinfo=UTC))
    with app.connection_for_read() as lines:
        message = lines.default_channel.basic_get("bitrix")
        assert message.headers["id"] == sent.id
        request = Request(message, app=app, hostname="here", on_ack=lambda *_: message.ack())
        return request.revoked()


def test_a_canary_that_expires_is_no_dead_letter_and_is_heard():
    assert revoked(upkeep.canary, queue="bitrix")
    assert list(dead_letters().each(Filter(state="all"))) == []
    assert liveness.canary_age("bitrix") < 60


def test_any_other_job_that_expires_is_a_dead_letter_and_no_canary():
    create = app.tasks["bitrix.create_deal"]

    assert revoked(create, order_id="1", title="A sofa")
    assert [x.code for x in dead_letters().each(Filter(state="open"))] == ["expired"]
    assert liveness.canary_age("bitrix") is None


# -- trimming, and debts


def buried(count: int, *, days: float = 0.0) -> None:
    """Letters of so many days ago."""
    for number in range(count):
        dead = failures.letter(
            f"j{number}",
            task="bitrix.create_deal",
            args=(),
            kwargs={"order_id": str(number)},
            error=InvalidData("no"),
            queue="bitrix",
            headers={},
        )
        long_ago = dead.metadata.failed_at - timedelta(days=days, seconds=count - number)
        dead_letters().bury(replace(dead, metadata=replace(dead.metadata, failed_at=long_ago)))


def delivery(job: str = "v1") -> Letter:
    """The letter of a delivery, which has to be made good."""
    error = ServiceUnavailable("502", service="telegram")
    call = {"task": "video.send", "args": (), "kwargs": {"order_id": job}}
    return failures.letter(job, error=error, queue="telegram", headers={}, **call)


def owing(*jobs: str) -> None:
    """Letters whose compensation was never sent."""
    for job in jobs:
        dead_letters().bury(delivery(job))


def test_trimming_goes_on_until_nothing_is_left_to_trim(monkeypatch):
    upgrade()
    monkeypatch.setattr(retention, "AT_ONCE", 3)
    buried(8, days=40)

    assert upkeep.trim() == {"outcome": "trimmed", "archived": 8}
    assert upkeep.trim() == {"outcome": "trimmed", "archived": 0}
    assert dead_letters().groups() == []
    assert len(list(archive.each())) == 8


def test_all_debts_are_paid_however_many(broker):
    owing(*(f"v{number}" for number in range(230)))

    assert upkeep.compensate() == {"outcome": "sent", "compensations": 230}
    assert taken(broker) == Counter({("telegram", "video.make_good"): 230})
    assert dead_letters().owed() == []
    assert upkeep.compensate()["compensations"] == 0


def test_a_debt_that_cannot_be_paid_now_ends_the_job_and_is_paid_later(broker):
    owing("v1")
    broker.config_set("maxmemory", 1)
    try:
        outcome = upkeep.compensate()
    finally:
        broker.config_set("maxmemory", 0)

    assert outcome["compensations"] == 0
    assert upkeep.compensate()["compensations"] == 1


# -- what a worker sees to without a beat


def test_a_spooled_letter_is_written_and_its_debt_paid_at_once(broker):
    broker.config_set("maxmemory", 1)
    try:
        failures.bury(delivery())
    finally:
        broker.config_set("maxmemory", 0)
    caretaker.go_round()

    assert dead_letters().get("v1").compensation.state == "sent"
    assert taken(broker) == Counter({("telegram", "video.make_good"): 1})


def test_what_was_no_message_becomes_a_letter(broker):
    broker.lpush(keys.CORRUPT, b"bitrix\n\xff\xfe")
    caretaker.go_round()

    assert [x.code for x in dead_letters().each(Filter(state="open"))] == ["corrupt_item"]
    assert broker.llen(keys.CORRUPT) == 0


def test_what_the_caretaker_cannot_do_keeps_it_from_nothing_else(broker, tmp_path):
    """A disk that is full must not hold up the letters of a queue, nor the end of a hold."""
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "dead-letters.jsonl").write_text(delivery().to_json() + "\n")
    (spool / "dead-letters.rest").mkdir()  # where what stays is written
    broker.lpush(keys.CORRUPT, b"bitrix\n\xff\xfe")
    caretaker.go_round()

    assert broker.llen(keys.CORRUPT) == 0


def test_all_debts_of_a_spool_are_paid_at_once(broker):
    broker.config_set("maxmemory", 1)
    try:
        for number in range(120):
            dead_letters().bury_or_spool(delivery(f"v{number}"))
    finally:
        broker.config_set("maxmemory", 0)
    caretaker.go_round()

    assert taken(broker) == Counter({("telegram", "video.make_good"): 120})


def test_one_item_that_cannot_be_buried_keeps_no_other_from_it(broker):
    broker.rpush(keys.CORRUPT, b"kie\nthe other", b"bitrix\nfirst")
    found = []

    def bury(queue: str, raw: bytes) -> None:
        if queue == "bitrix":
            raise KeyError("a letter that cannot be written")
        found.append(raw)

    assert corrupt.drain(connection.redis_bytes(), bury) == 1
    assert found == [b"the other"]
    assert connection.redis_bytes().lrange(keys.CORRUPT, 0, -1) == [b"bitrix\nfirst"]
