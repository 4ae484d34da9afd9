"""Who has killed a worker: suspects run alone, the innocent finish, the guilty one is taken out."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from contextlib import suppress

import pytest
from click.testing import CliRunner
from fixtures.brokers import LONG, PREFIX, Broker, Worker, on_every_server
from fixtures.redis_servers import RedisServer
from fixtures.waiting import eventually

from admin import cli
from config.settings import settings
from reliability import connection, keys, quarantine
from reliability.dead_letters import dead_letters
from reliability.quarantine import Suspect
from tasks.failures import bury_poison

BEAT = 0.4  # seconds between two beats; no test waits for one


def job(name="pill", deaths=0, queue="q", body="W1tdLCB7fSwge31d"):
    """A message as it lies in a queue, after so many workers died with it."""
    properties = {
        "body_encoding": "base64",
        "delivery_tag": f"tag of {name}",
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
    }
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": name, "task": "crm.sync", "lang": "py"},
        "properties": properties | ({"deaths": deaths} if deaths else {}),
    }


def queued(broker: Broker, *names: str, deaths=0, queue="q"):
    """Put jobs where they lie after so many deaths, the first to be taken first."""
    place = keys.quarantine(queue) if deaths >= quarantine.SUSPECT_AFTER else queue
    for name in names:
        broker.redis.lpush(broker.key(place), json.dumps(job(name, deaths, queue)))


def waiting(broker: Broker, name="q") -> dict[str, int]:
    """The jobs in a list, each with its deaths, the next first."""
    found = [json.loads(raw) for raw in reversed(broker.redis.lrange(broker.key(name), 0, -1))]
    return {m["headers"]["id"]: m["properties"].get("deaths", 0) for m in found}


def in_quarantine(broker: Broker, queue="q") -> dict[str, int]:
    return waiting(broker, keys.quarantine(queue))


def poisoned(broker: Broker) -> list[tuple[str, bytes]]:
    """What would be buried, once."""
    found: list[tuple[str, bytes]] = []
    quarantine.drain(broker.redis, lambda *pill: found.append(pill), prefix=PREFIX)
    return found


def dies(worker: Worker):
    """End a worker without a word; nobody vouches for what it holds any more."""
    worker.channel._keeper.leave()
    worker.channel._keeper.join()
    worker.channel.qos.forget()
    worker.connection.collect()


def long_silence(broker: Broker):
    """Let the time pass in which a worker that lives would have vouched for its jobs."""
    index, now = broker.key("unacked_index"), time.time()
    tags = broker.redis.zrange(index, 0, -1)
    broker.redis.zadd(index, dict.fromkeys(tags, now - 100), xx=True)
    broker.redis.set(broker.key(keys.BEAT), f"{now} {now - 500}")  # others have beaten all along


def found_dead(broker: Broker, *workers: Worker):
    """Let workers die, and another one notice."""
    for worker in workers:
        dies(worker)
    long_silence(broker)
    broker.connect().default_channel.beat(BEAT)


def taking(broker: Broker, count=0, nap=LONG, **how) -> Worker:
    """A worker that has taken *count* jobs and works on them."""
    worker = Worker(broker.connect(bell_timeout=nap), acks=False, **how)
    if count:
        worker.get(count)
    return worker


def names(worker: Worker) -> list[str]:
    return [message.headers["id"] for message in worker.messages]


# -- from a death to a suspicion


@on_every_server
@pytest.mark.parametrize("prefetch", [0, 8], ids=["no prefetch limit", "prefetch"])
def test_the_first_death_suspects_nobody(broker, prefetch):
    queued(broker, "pill", "bystander")
    found_dead(broker, taking(broker, 2, prefetch=prefetch))

    assert waiting(broker) == {"pill": 1, "bystander": 1}
    assert in_quarantine(broker) == {}

    again = taking(broker, 2, prefetch=prefetch)

    assert sorted(names(again)) == ["bystander", "pill"]


@on_every_server
def test_after_the_second_death_all_that_were_there_are_suspects(broker):
    queued(broker, "pill", "bystander", deaths=1)
    queued(broker, "newcomer")
    found_dead(broker, taking(broker, 3, prefetch=8))

    assert in_quarantine(broker) == {"pill": 2, "bystander": 2}
    assert waiting(broker) == {"newcomer": 1}


def test_a_suspect_stays_in_its_own_queue(broker):
    queued(broker, "pill", deaths=1, queue="other")
    found_dead(broker, taking(broker, 1, queues=("other",)))
    stranger = taking(broker, queues=("q",))
    stranger.rest()

    assert in_quarantine(broker, "other") == {"pill": 2}
    assert names(stranger) == []
    assert names(taking(broker, 1, queues=("q", "other"))) == ["pill"]


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda w: w.connection.close(), id="shutdown"),
        pytest.param(lambda w: w.messages.pop().requeue(), id="requeue"),
        pytest.param(lambda w: w.channel.basic_recover(requeue=True), id="give back"),
    ],
)
def test_what_is_given_back_has_not_died(broker, leave, deaths):
    queued(broker, "job", deaths=deaths)
    leave(taking(broker, 1))

    assert waiting(broker) | in_quarantine(broker) == {"job": deaths}
    assert bool(in_quarantine(broker)) == (deaths == 2)


def test_a_server_that_restarts_forgets_no_death(tmp_path):
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    server = RedisServer(tmp_path).start(*durable)
    try:
        with server.client(decode_responses=False) as client:
            broker = Broker(server, client)
            queued(broker, "pill", deaths=1)
            found_dead(broker, taking(broker, 1))
            for connection in broker.connections:
                with suppress(OSError):
                    connection.release()
            server.stop()
            server.start(*durable)
        with server.client(decode_responses=False) as client:
            broker = Broker(server, client)
            found_dead(broker, taking(broker, 1))

            assert [queue for queue, _ in poisoned(broker)] == ["q"]
    finally:
        server.stop()


# -- alone


@on_every_server
@pytest.mark.parametrize("prefetch", [0, 8], ids=["no prefetch limit", "prefetch"])
def test_a_suspect_is_alone_with_its_worker(broker, prefetch):
    queued(broker, "first", "second", deaths=2)
    queued(broker, "normal")
    worker = taking(broker, 1, prefetch=prefetch)
    for _ in range(5):
        worker.step()
    alone = names(worker)
    worker.messages[0].ack()
    worker.get(2)
    worker.messages[1].ack()
    worker.get(3)

    assert alone == ["first"]
    assert names(worker) == ["first", "second", "normal"]


def test_one_suspect_is_run_at_a_time_and_the_others_work_on(broker):
    queued(broker, "first", "second", deaths=2)
    queued(broker, "normal 1", "normal 2")
    tested = taking(broker, 1)
    other = taking(broker, 2, prefetch=8)
    other.rest()

    assert (names(tested), names(other)) == (["first"], ["normal 1", "normal 2"])
    assert in_quarantine(broker) == {"second": 2}


def test_a_busy_worker_makes_room_for_a_suspect(broker):
    queued(broker, "before")
    worker = taking(broker, 1, nap=0.01, prefetch=8)
    queued(broker, "suspect", deaths=2)
    queued(broker, "behind")
    for _ in range(5):
        worker.step()
    meanwhile = names(worker)
    worker.messages[0].ack()
    worker.get(2)

    assert meanwhile == ["before"]
    assert names(worker) == ["before", "suspect"]


def test_a_worker_with_a_job_that_hangs_works_on_and_leaves_the_suspect_to_another(broker):
    queued(broker, "hangs")
    worker = taking(broker, 1, nap=0.01, prefetch=8)
    worker.channel._room_for_suspects.seconds = 0.2
    queued(broker, "suspect", deaths=2)
    queued(broker, "behind")
    worker.get(2)

    assert names(worker) == ["hangs", "behind"]
    assert in_quarantine(broker) == {"suspect": 2}
    assert names(taking(broker, 1)) == ["suspect"]


def test_an_idle_worker_hears_of_a_suspect_at_once(broker):
    queued(broker, "pill", deaths=1)
    dying, idle = taking(broker, 1), taking(broker)  # it would sleep for an hour
    idle.rest()
    found_dead(broker, dying)

    assert names_of_next(idle) == ["pill"]


def names_of_next(worker: Worker) -> list[str]:
    worker.get(len(worker.messages) + 1)
    return names(worker)


def test_a_suspect_goes_on_alone_across_a_lost_connection(broker):
    queued(broker, "suspect", deaths=2)
    worker = taking(broker, 1)
    worker.connection.collect()  # what Celery does when the connection broke
    queued(broker, "normal")
    again = taking(broker, prefetch=8)
    for _ in range(5):
        again.step()
    meanwhile = names(again)
    worker.messages[0].ack()  # still in our memory, as in a cycle of Celery's
    again.get(1)

    assert meanwhile == []
    assert names(again) == ["normal"]
    eventually(lambda: broker.unacked() == 1)


def test_a_single_get_brings_nothing_beside_a_suspect(broker):
    queued(broker, "suspect", deaths=2)
    queued(broker, "normal")
    channel = broker.connect().default_channel
    suspect = channel.basic_get("q")

    assert channel.basic_get("q") is None

    suspect.ack()

    assert channel.basic_get("q").headers["id"] == "normal"


def test_rubbish_in_quarantine_is_set_aside_and_stops_nobody(broker):
    broker.redis.lpush(broker.key(keys.quarantine("q")), b"rubbish")
    queued(broker, "suspect", deaths=2)

    assert names(taking(broker, 1)) == ["suspect"]
    assert broker.corrupt() == [b"q\nrubbish"]


# -- the end of a suspicion


@on_every_server
def test_an_innocent_suspect_is_forgotten_when_it_is_done(broker):
    queued(broker, "innocent", deaths=1)
    found_dead(broker, taking(broker, 1))
    worker = taking(broker, 1)
    worker.messages[0].ack()
    left = eventually(lambda: broker.unacked() == 0) and broker.redis.keys(broker.key("*quar*"))
    again = worker.messages[0]
    broker.publish(again.payload, headers=again.headers)  # a retry: the same job once more

    assert left == []
    assert waiting(broker) == {"innocent": 0}


@on_every_server
def test_one_that_dies_alone_is_taken_out_and_its_message_is_the_true_one(broker):
    true = b64encode(b'[[], {"order_id": "\xc3\xa9"}, {}]').decode()
    place = broker.key(keys.quarantine("q"))
    broker.redis.lpush(place, json.dumps(job("pill", 2, body=true)))
    queued(broker, "innocent", deaths=2)
    found_dead(broker, taking(broker, 1))
    [(queue, raw)] = poisoned(broker)
    message, deaths = quarantine.opened(raw)

    assert (queue, message.headers["id"], deaths) == ("q", "pill", 3)
    assert message.body == b'[[], {"order_id": "\xc3\xa9"}, {}]'
    assert message.decode() == [[], {"order_id": "é"}, {}]
    assert poisoned(broker) == []
    assert in_quarantine(broker) == {"innocent": 2}
    assert names(taking(broker, 1)) == ["innocent"]


def test_a_pill_stays_until_it_is_buried(broker):
    queued(broker, "pill", deaths=2)
    found_dead(broker, taking(broker, 1))

    def refuse(*_):
        raise OSError("no letter today")

    with pytest.raises(OSError, match="no letter today"):
        quarantine.drain(broker.redis, refuse, prefix=PREFIX)

    assert len(poisoned(broker)) == 1


def test_two_who_notice_a_death_count_it_once(broker):
    queued(broker, "job")
    dying = taking(broker, 1)
    tag = dying.messages[0].delivery_tag
    dies(dying)
    long_silence(broker)
    first, second = (broker.connect().default_channel for _ in range(2))
    first.give_back(tag, silence=BEAT)
    second.give_back(tag, silence=BEAT)

    assert waiting(broker) == {"job": 1}


def test_what_another_has_given_back_and_a_third_works_on_is_left_alone(broker):
    queued(broker, "job")
    dying = taking(broker, 1)
    tag = dying.messages[0].delivery_tag
    found_dead(broker, dying)
    third = taking(broker, 1)
    broker.connect().default_channel.give_back(tag, silence=BEAT)  # it has heard of it before

    assert names(third) == ["job"]
    assert broker.unacked() == 1
    assert waiting(broker) == {}


# -- the letter


@pytest.fixture
def letters(redis_server, redis_client, monkeypatch, tmp_path):
    """The dead letters of this process, none yet."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    known = (settings, connection.redis, connection.redis_bytes, dead_letters)
    for one in known:
        one.cache_clear()
    yield dead_letters()
    monkeypatch.undo()
    for one in known:
        one.cache_clear()


def test_a_pill_becomes_one_letter_however_often_it_is_buried(letters):
    call = b64encode(b'[[], {"order_id": "7"}, {}]').decode()
    pill = json.dumps(job("pill", 3, body=call)).encode()
    for _ in range(2):  # a worker that ended in between
        bury_poison("crm", pill)
    [letter] = letters.each()

    assert (letter.message_id, letter.error_type, letter.original_queue) == (
        "pill",
        "PoisonPill",
        "crm",
    )
    assert letter.message_body.task == "crm.sync"
    assert letter.message_body.kwargs == {"order_id": "7"}
    assert letter.replayable


def test_a_pill_that_cannot_be_read_is_kept_byte_for_byte(letters):
    true = b"\xff\x00 no JSON"
    bury_poison("crm", json.dumps(job("pill", 3, body=b64encode(true).decode())).encode())
    [letter] = letters.each()

    assert b64decode(letter.raw) == true
    assert not letter.replayable


# -- seen and swept


def test_suspects_are_seen_by_name(broker):
    queued(broker, "first", "second", deaths=2)
    queued(broker, "third", deaths=2, queue="other")
    holder = taking(broker, 1)
    seen = list(quarantine.suspects(broker.redis, ["q", "other"], prefix=PREFIX))
    holder.messages[0].ack()
    eventually(lambda: broker.unacked() == 0)
    later = list(quarantine.suspects(broker.redis, ["q", "other"], prefix=PREFIX))

    assert seen == [
        Suspect("first", "crm.sync", "q", 2, running=True),
        Suspect("second", "crm.sync", "q", 2),
        Suspect("third", "crm.sync", "other", 2),
    ]
    assert later == seen[1:]


def test_suspects_are_listed_before_what_is_parked(redis_server, redis_client, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    for known in (settings, connection.redis, connection.redis_bytes):
        known.cache_clear()
    call = b64encode(b'[[], {"order_id": "7"}, {}]').decode()
    redis_client.lpush(keys.quarantine("bitrix"), json.dumps(job("first", 2, body=call)))
    listed = CliRunner().invoke(cli.parked, ["ls", "--json"])
    shown = CliRunner().invoke(cli.parked, ["show", "first"])
    (row,) = json.loads(listed.output)

    assert (row["message_id"], row["state"], row["reason"]) == ("first", "suspect", "Suspect")
    assert (row["kwargs"], row["since"], row["due"], row["attempts"]) == (
        {"order_id": "7"},
        None,
        None,
        0,
    )
    assert "2 workers have died with it" in row["detail"]
    assert json.loads(shown.output) == row
    assert "Suspect" in CliRunner().invoke(cli.parked, ["ls"]).output


@pytest.mark.parametrize("sweep", ["queue_purge", "queue_delete"])
def test_a_queue_is_swept_with_its_suspects(broker, sweep):
    queued(broker, "suspect", deaths=2)
    queued(broker, "normal")
    worker = taking(broker)
    counted = worker.channel._size("q")
    getattr(worker.channel, sweep)("q")

    assert counted == 2
    assert waiting(broker) | in_quarantine(broker) == {}
