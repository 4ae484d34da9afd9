"""Parked jobs on their way to another broker: at least once, whoever dies when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from redis import Redis

from reliability import keys, quarantine
from reliability.deaths import Deaths
from reliability.departures import Departures
from reliability.parking import Kind, Parking
from reliability.quarantine import Suspect
from sandbox.redis_server import RedisServer

PREFIX = "app:"
HEADERS = {"task": "t", "accepted_at": 5.0}
MESSAGE = json.dumps({"body": "[[], {}, {}]", "headers": HEADERS, "properties": {}})
RUN = ("job", 0)


@pytest.fixture
def client(redis_server: RedisServer, redis_client: Redis):  # the latter has emptied it
    with redis_server.client(decode_responses=False) as client:
        yield client


@pytest.fixture
def departures(client: Redis) -> Departures:
    return Departures(client, prefix=PREFIX)


@pytest.fixture
def parking(redis_client: Redis) -> Parking:
    return Parking(redis_client, prefix=PREFIX)


def test_a_job_leaves_when_it_is_due_and_not_before(departures: Departures, parking: Parking):
    departures.park("now", "bitrix", MESSAGE, time.time())
    departures.park("later", "bitrix", MESSAGE, time.time() + 100)
    until_next, due = departures.take()

    assert [(one.job, one.queue, one.message) for one in due] == [
        (b"now", "bitrix", MESSAGE.encode())
    ]
    assert 95 < until_next <= 100
    assert parking.get("now") is None  # nobody can cancel what may be sent already
    assert parking.get("later").queue == "bitrix"
    assert [kind.count for kind in parking.kinds()] == [1]


def test_two_workers_do_not_take_the_same_job(departures: Departures):
    departures.park("one", "bitrix", MESSAGE, 0.0)

    assert len(departures.take()[1]) == 1
    assert departures.take() == (None, [])


def test_what_the_broker_has_is_forgotten(departures: Departures, client: Redis):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    departures.sent(departures.take()[1])

    assert [key for key in client.scan_iter() if b"kinds" not in key] == []


def test_what_the_broker_may_not_have_waits_again_at_once(departures: Departures, parking: Parking):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    departures.put_back(departures.take()[1])

    assert parking.get("one") is not None
    assert [kind.count for kind in parking.kinds()] == [1]
    assert [one.job for one in departures.take()[1]] == [b"one"]


def put_back(departures: Departures, client: Redis) -> None:
    departures.put_back(departures.take()[1])


def die(departures: Departures, client: Redis) -> None:
    departures.take()
    client.zincrby(PREFIX + keys.LEAVING_SINCE, -31.0, "one")  # half a minute later
    departures._run(0)  # as another worker does that takes what is due


@pytest.mark.parametrize("leave", [put_back, die], ids=["put back", "its worker has died"])
def test_a_job_that_comes_back_is_as_old_as_it_was(
    departures: Departures, parking: Parking, client: Redis, leave: Callable[..., None]
):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    before = parking.kinds()
    client.delete(PREFIX + keys.PARKED_KINDS)  # as where nothing of its kind was left
    leave(departures, client)

    assert before == parking.kinds() == [Kind("none", "Scheduled", 1, 5.0)]
    assert client.exists(PREFIX + keys.LEAVING_ACCEPTED) == 0


def test_a_job_that_the_release_before_let_go_is_as_old_as_its_wait(
    departures: Departures, parking: Parking, client: Redis
):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    waits_since = parking.get("one").since
    departures.take()
    client.delete(PREFIX + keys.LEAVING_ACCEPTED)
    client.zincrby(PREFIX + keys.LEAVING_SINCE, -31.0, "one")
    departures._run(0)

    assert [kind.oldest for kind in parking.kinds()] == [waits_since]


def test_what_a_dead_worker_was_about_to_send_is_sent_by_another(
    departures: Departures, client: Redis
):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    departures.take()  # and its worker dies
    client.zincrby(PREFIX + keys.LEAVING_SINCE, -31.0, "one")  # half a minute later

    assert [one.job for one in departures.take()[1]] == [b"one"]


def test_a_job_that_was_sent_and_is_parked_anew_is_not_sent_as_it_was(
    departures: Departures, client: Redis
):
    departures.park("one", "bitrix", MESSAGE, 0.0)
    departures.take()  # sent, but its worker dies before it can say so
    departures.park("one", "bitrix", MESSAGE, time.time() + 100)  # it has run, and waits
    client.zincrby(PREFIX + keys.LEAVING_SINCE, -31.0, "one")

    assert departures.take()[1] == []
    assert client.hlen(PREFIX + keys.LEAVING) == 0


def test_what_is_no_job_is_kept_for_a_dead_letter(departures: Departures, client: Redis):
    client.hset(PREFIX + keys.PARKED, "one", "nonsense")
    client.zadd(PREFIX + keys.PARKED_DUE, {"one": 0.0})

    assert departures.take()[1] == []
    assert client.lrange(PREFIX + keys.CORRUPT, 0, -1) == [b"parked\nnonsense"]


def test_a_delivery_that_comes_again_is_a_death(client: Redis):
    deaths = Deaths(client, prefix=PREFIX)

    assert [deaths.after_another(RUN) for _ in range(3)] == [1, 2, 3]
    assert deaths.after_another(("job", 1)) == 1  # a retry starts without any


def test_a_worker_that_lives_to_let_go_of_a_job_is_no_death(client: Redis):
    deaths = Deaths(client, prefix=PREFIX)
    deaths.after_another(RUN)
    deaths.spare([RUN])

    assert deaths.after_another(RUN) == 1
    assert deaths.after_another(RUN) == 2  # it was spared once


def test_a_suspect_is_shown_until_it_has_ended(client: Redis):
    deaths, queues = Deaths(client, prefix=PREFIX), ("bitrix", "kie")
    message = {"body": "[[7], {}, {}]", "headers": HEADERS | {"id": "job"}}
    message |= {"properties": {"delivery_tag": "tag", "deaths": 2}}
    deaths.accuse(RUN, "bitrix", json.dumps(message))
    deaths.accuse(RUN, "bitrix", json.dumps(message))  # set aside once more, as a worker leaves
    (shown,) = quarantine.suspects(client, queues, prefix=PREFIX)

    assert shown == Suspect("job", "t", "bitrix", deaths=2, running=None)
    assert shown.args == [7]
    assert quarantine.counts(client, queues, prefix=PREFIX) == {"bitrix": 1, "kie": 0}
    assert deaths.accused(queues) == {"bitrix": [RUN], "kie": []}

    deaths.dismiss([RUN], "bitrix")

    assert list(quarantine.suspects(client, queues, prefix=PREFIX)) == []
    assert quarantine.counts(client, queues, prefix=PREFIX) == {"bitrix": 0, "kie": 0}
