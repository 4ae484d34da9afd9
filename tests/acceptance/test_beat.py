"""Beats and workers as processes: what is due comes once, and somebody notices when it does not."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
from acceptance.system import PATIENCE, QUICK, System
from acceptance.visits import opened
from fixtures.waiting import eventually

from reliability import keys, liveness
from sandbox.stack import Stack

SLOT = 30 * float(QUICK["RETRY_TIME_SCALE"])  # seconds between two canaries of a queue
QUEUES = ("bitrix", "telegram", "upkeep", "x")


@pytest.fixture
def watched(site: Stack, tmp_path, monkeypatch):
    """A system with one worker, and its canaries as this process would see them."""
    with opened(tmp_path / "watched", site) as system:
        monkeypatch.setattr(liveness, "redis", lambda: system.redis)
        system.worker("worker", "-Q", ",".join(QUEUES))
        yield system


def ages(system: System) -> dict[str, float | None]:
    return {queue: liveness.canary_age(queue) for queue in QUEUES}


def all_fresh(system: System) -> bool:
    return all(age is not None and age < 3 * SLOT for age in ages(system).values())


def sent(*beats) -> Counter[str]:
    """How often each entry was sent, as the beats' own logs have it."""
    lines = [line for beat in beats for line in beat.log.read_text().splitlines()]
    said = [json.loads(line)["event"] for line in lines if "Sending due task" in line]
    return Counter(event.split()[-2] for event in said)


def test_each_queue_is_heard_of_and_stale_where_nobody_serves_it_or_no_beat_runs(watched: System):
    before = ages(watched)
    beat = watched.stack.start_beat()
    eventually(lambda: all_fresh(watched), within=PATIENCE)
    beat.stop()
    eventually(lambda: min(ages(watched).values()) > 3 * SLOT, within=PATIENCE)

    assert before == dict.fromkeys(QUEUES)
    assert liveness.canary_age("kie") is None  # no worker serves it
    assert watched.redis.llen("kie") > 0
    assert watched.open_letters() == []


def test_of_two_beats_one_sends_and_the_other_goes_on_when_it_is_killed(watched: System):
    first, second = (watched.stack.start_beat(name) for name in ("first", "second"))
    begun, before = time.time(), sent(first, second)
    eventually(lambda: (sent(first, second) - before)["canary-x"] >= 6, within=PATIENCE)
    together = sent(first, second) - before
    slots = (time.time() - begun) / SLOT + 2  # the one that had begun, and the one under way
    first.kill()
    before = sent(second)
    eventually(lambda: (sent(second) - before)["canary-x"] >= 3, within=PATIENCE)

    eventually(lambda: all_fresh(watched))

    assert all(together[f"canary-{queue}"] <= slots for queue in QUEUES)


def test_a_beat_outlives_its_redis_and_leaves_no_file(watched: System):
    beat = watched.stack.start_beat()
    eventually(lambda: all_fresh(watched), within=PATIENCE)
    watched.stack.redis.stop()
    watched.stack.start_redis()
    watched.redis.delete(*(f"{keys.CANARY}{queue}" for queue in QUEUES))
    eventually(lambda: all_fresh(watched), within=PATIENCE)

    assert beat.alive
    assert not list(watched.stack.folder.parent.rglob("celerybeat*"))


def test_canaries_that_nobody_came_to_are_swept_away_and_are_no_letters(watched: System):
    (worker,) = (p for p in watched.stack.processes if p.name == "worker")
    worker.stop()
    beat = watched.stack.start_beat()
    eventually(lambda: watched.redis.llen("bitrix") >= 3, within=PATIENCE)
    beat.stop()
    time.sleep(SLOT)  # the last of them expires
    watched.worker("next")
    watched.calm()

    assert watched.open_letters() == []
    assert not list(watched.letters.each())
    assert all_fresh(watched)  # whoever sweeps them away is at work
