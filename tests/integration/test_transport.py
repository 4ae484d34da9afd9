"""The broker transport on real servers: nothing is lost, nothing waits in a worker."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import pytest
from fixtures.brokers import OURS, PREFIX, Worker, on_every_server
from fixtures.redis_servers import RedisServer
from fixtures.waiting import eventually
from flower.utils.broker import Broker as FlowerBroker
from kombu import Connection, Exchange, Producer, Queue
from kombu.asynchronous import Hub

from reliability import keys
from reliability.parking import Parking

STOCK = "kombu.transport.redis:Transport"
TIMEOUT = 1.0  # visibility timeout where a test has to live through one


def soon(seconds=0.3):
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def envelope(body="job", tag="tag-1", **changes):
    """A message as it lies in a queue."""
    message = {
        "body": b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": "q"},
        },
    }
    return message | changes


def raw(**changes):
    return json.dumps(envelope(**changes)).encode()


# -- taking and acknowledging


@on_every_server
def test_a_message_is_in_the_queue_or_unacknowledged_until_it_is_done(broker):
    broker.publish()
    worker = Worker(broker.connect(), acks=False)

    assert (broker.length("q"), broker.unacked()) == (1, 0)

    worker.get(1)

    assert (broker.length("q"), broker.unacked()) == (0, 1)

    worker.messages[0].ack()

    assert broker.unacked() == 0
    assert not broker.redis.exists(broker.key("unacked_index"))


@on_every_server
def test_what_was_taken_and_never_read_comes_back_within_the_timeout(broker):
    broker.publish("lost in the socket")
    dying = broker.connect(visibility_timeout=TIMEOUT).default_channel
    dying.run("take", *dying._visit(["q"], room=1, acks=(), no_acks=set()))
    assert (broker.length("q"), broker.unacked()) == (0, 1)

    worker = Worker(broker.connect(visibility_timeout=TIMEOUT))
    started = time.monotonic()

    assert worker.get(1) == ["lost in the socket"]
    assert worker.messages[0].headers["redelivered"] is True
    assert time.monotonic() - started < 2 * TIMEOUT


def test_what_a_living_worker_holds_is_not_taken_from_it(broker):
    broker.publish()
    holder = Worker(broker.connect(visibility_timeout=TIMEOUT), acks=False)
    holder.get(1)
    other = Worker(broker.connect(visibility_timeout=TIMEOUT))
    ended = time.monotonic() + 2.5 * TIMEOUT

    while time.monotonic() < ended:
        other.step()  # the holder is busy: no event of its own is handled

    assert not other.messages
    assert broker.unacked() == 1


def test_closing_gives_back_what_is_not_done_in_its_order(broker):
    for number in range(3):
        broker.publish(number)
    leaving = Worker(broker.connect(), prefetch=3, acks=False)
    leaving.get(3)

    leaving.connection.release()

    assert broker.unacked() == 0
    assert Worker(broker.connect()).get(3) == [0, 1, 2]


def test_the_rest_of_a_visit_goes_back_when_a_callback_raises(broker):
    for number in range(3):
        broker.publish(number)
    worker = Worker(broker.connect(), prefetch=3)
    worker.consumer.on_message = lambda message: 1 / 0

    with pytest.raises(ZeroDivisionError):
        worker.get(1)

    assert (broker.length("q"), broker.unacked()) == (2, 1)
    assert Worker(broker.connect()).get(2) == [1, 2]


def test_an_answer_to_a_cancelled_consumer_goes_back(broker):
    broker.publish()
    worker = Worker(broker.connect())
    worker.connection.transport.cycle.on_poll_start()
    eventually(broker.unacked)

    worker.consumer.cancel()

    assert (broker.length("q"), broker.unacked()) == (1, 0)
    assert not worker.messages


def test_requeueing_puts_a_message_at_the_end(broker):
    for number in range(2):
        broker.publish(number)
    worker = Worker(broker.connect(), prefetch=1, acks=False)
    worker.get(1)
    worker.messages.pop().requeue()
    worker.acks = True

    assert worker.get(2) == [1, 0]


@on_every_server
def test_one_message_to_two_queues_is_two_messages(broker):
    publisher = broker.connect()
    both = Exchange("both", type="direct")
    for name in ("q", "other"):
        Queue(name, both, routing_key="both")(publisher.default_channel).declare()
    producer = Producer(publisher.default_channel, both, serializer="json")
    producer.publish("twice", routing_key="both")
    worker = Worker(broker.connect(), queues=("q", "other"), acks=False)
    worker.get(2)
    worker.messages[0].ack()

    assert worker.bodies == ["twice", "twice"]
    assert broker.unacked() == 1


def test_two_workers_never_get_the_same_message(broker):
    publisher = broker.connect()
    for number in range(200):
        broker.publish(number, by=publisher)
    workers = [Worker(broker.connect(), prefetch=7) for _ in range(2)]
    done = threading.Event()

    def work(worker):
        while not done.is_set():
            worker.step()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(len(worker.messages) for worker in workers) >= 200)
    done.set()
    for thread in threads:
        thread.join()

    assert sorted(workers[0].bodies + workers[1].bodies) == list(range(200))
    assert all(worker.messages for worker in workers)


@on_every_server
def test_consuming_survives_a_flush_of_the_scripts(broker):
    worker = Worker(broker.connect())
    for number in range(3):
        broker.publish(number)
        worker.get(number + 1)
        broker.redis.script_flush()

    assert worker.bodies == [0, 1, 2]
    assert broker.unacked() == 0


def test_a_single_get_takes_and_acknowledges_like_a_consumer(broker):
    broker.redis.lpush(broker.key("q"), b"rubbish")
    broker.publish()
    channel = broker.connect().default_channel
    message = channel.basic_get("q")

    assert json.loads(message.body) == "job"
    assert broker.unacked() == 1

    message.ack()

    assert channel.basic_get("q") is None
    assert broker.unacked() == 0


def test_a_lower_prefetch_limit_does_not_hold_up_what_is_under_way(broker):
    worker = Worker(broker.connect(), prefetch=3, acks=False)
    broker.publish(0)
    worker.get(1)
    for number in (1, 2):
        broker.publish(number)
    worker.connection.transport.cycle.on_poll_start()
    eventually(lambda: broker.unacked() == 3)
    worker.consumer.qos(prefetch_count=1)

    assert worker.get(3) == [0, 1, 2]


# -- with an event loop


class Loop:
    """A worker in an event loop that this test turns by hand."""

    def __init__(self, broker, **options):
        self.hub = Hub()
        self.worker = Worker(broker.connect(**options), prefetch=2, acks=False)
        self.worker.connection.register_with_event_loop(self.hub)
        self.channel = self.worker.channel

    def until(self, condition):
        def turned():
            self.hub.timer.call_after(0.02, lambda: None)  # no turn waits longer than that
            self.hub.run_once()
            return condition()

        return eventually(turned, within=5, every=0)

    def without_keeper(self):
        self.channel._keeper.leave()
        self.channel._keeper.join()
        return self


def test_acknowledgements_ride_on_the_next_visit(broker):
    for number in range(30):
        broker.publish(number)
    loop = Loop(broker).without_keeper()
    loop.channel.flush_acks = lambda: pytest.fail("a round trip of its own")
    done = 0

    def work():
        nonlocal done
        for message in loop.worker.messages[done:]:
            message.ack()
            done += 1
        return done == 30

    loop.until(work)
    loop.until(lambda: broker.unacked() == 0)
    del loop.channel.flush_acks


def test_an_acknowledgement_does_not_wait_for_a_sleeping_or_a_full_worker(broker):
    loop = Loop(broker).without_keeper()
    for number in range(2):
        broker.publish(number)
    loop.until(lambda: len(loop.worker.messages) == 2)
    loop.worker.consumer.qos(prefetch_count=1)  # no room even after one of them is done
    loop.worker.messages[0].ack()
    loop.until(lambda: broker.unacked() == 1)
    loop.worker.messages[1].ack()
    loop.until(lambda: broker.unacked() == 0)
    broker.publish()
    loop.until(lambda: len(loop.worker.messages) == 3)
    loop.worker.consumer.qos(prefetch_count=2)
    loop.until(lambda: loop.channel._asleep)
    loop.worker.messages[2].ack()

    loop.until(lambda: broker.unacked() == 0)


def test_an_acknowledgement_is_made_when_the_loop_has_ended(broker):
    broker.publish()
    loop = Loop(broker)
    loop.until(lambda: loop.worker.messages)

    loop.worker.messages[0].ack()

    eventually(lambda: broker.unacked() == 0, within=3)


# -- lost connections


def test_a_job_goes_on_across_a_lost_connection_and_is_acknowledged_after_it(broker):
    broker.publish()
    connection = broker.connect(visibility_timeout=TIMEOUT)
    worker = Worker(connection, acks=False)
    worker.get(1)
    running = worker.messages.pop()

    connection.collect()  # what Celery does when the connection broke
    again = Worker(broker.connect(visibility_timeout=TIMEOUT))
    ended = time.monotonic() + 2 * TIMEOUT
    while time.monotonic() < ended:
        again.step()

    assert not again.messages
    assert broker.unacked() == 1

    running.ack()

    eventually(lambda: broker.unacked() == 0)
    assert not again.messages


def test_what_a_lost_connection_dropped_comes_back(broker):
    broker.publish("dropped")
    connection = broker.connect(visibility_timeout=TIMEOUT)
    worker = Worker(connection, acks=False)
    worker.get(1)

    connection.collect()
    message = worker.messages.pop()
    message.itself = message  # Celery's requests sit in such cycles
    gc.disable()  # no luck
    del message  # nobody works on it any more
    again = Worker(broker.connect(visibility_timeout=TIMEOUT))
    try:
        assert again.get(1) == ["dropped"]
    finally:
        gc.enable()


def test_what_is_requeued_after_a_lost_connection_is_an_error_the_worker_survives(broker):
    broker.publish("requeued")
    connection = broker.connect(visibility_timeout=TIMEOUT)
    errors = connection.connection_errors
    worker = Worker(connection, acks=False)
    worker.get(1)
    connection.collect()

    with pytest.raises(errors):
        worker.messages.pop().requeue()

    assert Worker(broker.connect(visibility_timeout=TIMEOUT)).get(1) == ["requeued"]


def test_acknowledgements_of_a_lost_visit_are_said_again(broker):
    broker.publish()
    connection = broker.connect()
    worker = Worker(connection, acks=False)
    worker.get(1)
    channel = worker.channel
    channel._keeper.leave()
    channel._keeper.join()
    channel.ledger.acks.append(worker.messages[0].delivery_tag)
    broker.redis.client_pause(300)  # the server does not hear the visit that carries it
    connection.transport.cycle.on_poll_start()
    sent = list(channel._acks_sent)
    channel._in_poll.disconnect()
    broker.redis.client_unpause()

    worker.rest()

    assert sent
    eventually(lambda: broker.unacked() == 0)


@on_every_server
def test_a_server_that_refuses_makes_the_worker_reconnect(broker, tmp_path):
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RedisServer(folder, broker.server.binary).start()
    try:
        connection = Connection(server.url, transport=OURS)
        worker = Worker(connection)
        worker.step()
        with server.client() as client:
            client.replicaof("127.0.0.1", 1)
        with pytest.raises(connection.connection_errors):
            eventually(worker.step, within=5)
    finally:
        server.stop()


@on_every_server
def test_no_job_is_given_away_while_workers_come_back_from_an_outage(broker):
    """All scores are old when Redis returns; the living need a moment to vouch."""
    broker.publish()
    connection = broker.connect(visibility_timeout=2.0)
    holder = Worker(connection, acks=False)
    holder.get(1)
    holder.channel._keeper.leave()
    holder.channel._keeper.join()
    tag = holder.messages[0].delivery_tag
    broker.redis.zadd(broker.key("unacked_index"), {tag: time.time() - 100})
    broker.redis.set(broker.key("perennial:beat"), f"{time.time() - 99} {time.time() - 500}")
    first = broker.connect(visibility_timeout=2.0).default_channel

    first.beat(0.4)
    holder.channel.beat(0.4)
    first.beat(0.4)

    assert broker.unacked() == 1


# -- parking


@pytest.mark.parametrize(
    "eta",
    [
        lambda when: when.isoformat(),
        lambda when: when.astimezone(timezone(timedelta(hours=5))).isoformat(),
        lambda when: when.replace(tzinfo=None).isoformat(),
        lambda when: when.isoformat().replace("+00:00", "Z"),
    ],
    ids=["utc", "other zone", "naive", "zulu"],
)
def test_a_delayed_message_waits_in_redis_and_comes_once_when_due(broker, eta):
    worker = Worker(broker.connect())
    worker.rest()
    publisher = broker.connect()
    due = datetime.now(UTC) + timedelta(seconds=0.5)
    broker.publish(by=publisher, headers={"id": "job", "eta": eta(due)})
    [(job, score)] = broker.redis.zrange(broker.key(keys.PARKED_DUE), 0, -1, withscores=True)

    assert (job, score) == (b"job", pytest.approx(due.timestamp()))
    assert (broker.length("q"), broker.unacked()) == (0, 0)

    # a bell nobody rings: an idle worker wakes by itself when the job is due
    worker.channel.bell_timeout = 0.2
    worker.connection.default_channel.plain.lpush(broker.key(keys.bell("q")), 1)
    worker.get(1)

    assert datetime.now(UTC) >= due
    assert worker.messages[0].headers["eta"] is None
    assert broker.parked() == 0
    assert not broker.redis.exists(broker.key(keys.PARKED))


@pytest.mark.parametrize(
    "eta",
    ["2001-01-01T00:00:00+00:00", "0001-01-01T00:00:00", "next week", 5, ["x"], {}],
    ids=["past", "year one", "words", "number", "list", "mapping"],
)
def test_a_past_or_unreadable_eta_does_not_wait(broker, eta):
    broker.publish(headers={"eta": eta})

    assert broker.parked() == 0
    assert Worker(broker.connect()).get(1) == ["job"]


def test_a_past_eta_does_not_reach_the_workers_timer(broker):
    broker.publish(headers={"eta": soon(-5)})
    worker = Worker(broker.connect())
    worker.get(1)

    assert worker.messages[0].headers["eta"] is None


@on_every_server
@pytest.mark.parametrize(
    ("second", "jobs"),
    [
        ({}, 1),
        ({"body": "other"}, 2),
        ({"queue": "other"}, 2),
        ({"task": "other"}, 2),
    ],
    ids=["same", "other body", "other queue", "other task"],
)
def test_one_job_parked_twice_is_one_job_and_another_is_kept(broker, second, jobs):
    def park(body="job", queue="q", task="task", **headers):
        headers = {"id": "id", "task": task, "eta": soon(60)} | headers
        broker.publish(body, queue, headers=headers)

    park()
    park(**second, retries=1)
    park(**second, retries=2)

    assert broker.parked() == broker.redis.hlen(broker.key(keys.PARKED)) == jobs
    stored = b"".join(broker.redis.hvals(broker.key(keys.PARKED)))
    assert b'"retries": 2' in stored
    assert b'"retries": 1' not in stored


@on_every_server
@pytest.mark.parametrize(
    "entry",
    [b"no lines at all", b"", b"list\nbell\n0", b"app:a-hash\napp:perennial:bell:q\n0\n{}"],
    ids=["no lines", "empty", "too few lines", "key is no list"],
)
def test_a_malformed_parked_entry_is_set_aside_and_stops_nobody(broker, entry):
    broker.redis.hset(broker.key("a-hash"), "field", 1)
    broker.redis.hset(broker.key(keys.PARKED), "bad", entry)
    broker.redis.zadd(broker.key(keys.PARKED_DUE), {"bad": 1, "without an entry": 1})
    broker.publish(headers={"id": "good", "eta": soon(0.1)})

    assert Worker(broker.connect(bell_timeout=0.1)).get(1) == ["job"]
    assert broker.corrupt() == [b"parked\n" + entry]
    assert broker.parked() == 0


def test_a_stock_publishers_delay_does_not_wait_in_the_worker(broker):
    worker = Worker(broker.connect(bell_timeout=0.1))
    broker.publish(by=broker.connect(STOCK), headers={"id": "job", "eta": soon(0.4)})
    due = time.time() + 0.3

    eventually(lambda: worker.step() or broker.parked())
    eventually(lambda: broker.unacked() == 0)

    assert worker.get(1) == ["job"]
    assert time.time() >= due


@on_every_server
def test_a_batch_is_published_at_once_and_its_delayed_messages_are_parked(broker):
    publisher = broker.connect()
    producer = Producer(publisher.default_channel)
    assert producer.supports_batch_publish
    with producer.batch():
        for number in range(3):
            producer.publish(number, routing_key="q", serializer="json")
            eta = soon(0.3)
            headers = {"id": f"later-{number}", "eta": eta}
            producer.publish(number + 10, routing_key="q", serializer="json", headers=headers)
        assert broker.length("q") == 0

    assert (broker.length("q"), broker.parked()) == (3, 3)
    worker = Worker(broker.connect(bell_timeout=0.1))
    assert worker.get(3) == [0, 1, 2]
    assert sorted(worker.get(6)) == [0, 1, 2, 10, 11, 12]


# -- news for what is parked


@pytest.fixture
def parking(broker):
    with broker.server.client() as client:
        yield Parking(client, prefix=PREFIX)


def park(broker, reason, **headers):
    """Park a job for an hour, for this *reason*."""
    facts = {"reason": reason, "service": "kie", "detail": "not yet"}
    headers = {"id": "job", "task": "video.generate", "eta": soon(3600), "parking": facts} | headers
    broker.publish([[], {"order_id": "7"}, {}], headers=headers)


@pytest.mark.parametrize("reason", ["Pending", "OutcomeUnknown"])
def test_a_job_that_waits_for_news_is_woken_by_them(broker, parking, reason):
    park(broker, reason)
    worker = Worker(broker.connect())  # it sleeps until the bell rings
    worker.rest()

    assert parking.wake("job")
    assert worker.get(1) == [[[], {"order_id": "7"}, {}]]
    assert parking.get("job") is None


@pytest.mark.parametrize(
    "reason", ["RateLimited", "CircuitOpen", "Paused", "BillingExhausted", "NetworkError", ""]
)
def test_a_job_that_waits_for_something_else_keeps_its_place(broker, parking, reason):
    park(broker, reason)
    before = parking.get("job")

    assert parking.wake("job")
    assert parking.get("job") == before
    assert before.due > time.time() + 3000


def test_a_job_that_does_not_wait_is_not_woken(broker, parking):
    assert not parking.wake("job")

    park(broker, "Pending")
    parking.release("job")
    Worker(broker.connect(bell_timeout=0.1)).get(1)

    assert not parking.wake("job")
    assert broker.parked() == 0


@pytest.mark.parametrize("woken", [False, True])
def test_who_yields_comes_back_behind_the_others_unless_it_is_woken(broker, parking, woken):
    facts = {"reason": "Pending", "yields": True}
    park(broker, "Pending", parking=facts)
    broker.publish("new", priority=3)
    assert parking.wake("job") if woken else parking.release("job")
    bodies = Worker(broker.connect(bell_timeout=0.1), prefetch=8).get(2)

    assert bodies.index("new") == int(woken)


@pytest.mark.parametrize(("headers", "replays"), [({}, 0), ({"replays": 2}, 2)])
def test_a_parked_job_says_how_often_it_was_sent_again(broker, parking, headers, replays):
    park(broker, "Pending", **headers)
    (job,) = parking.jobs()

    assert (job.replays, job.kwargs, job.reason) == (replays, {"order_id": "7"}, "Pending")


# -- order


@on_every_server
def test_priorities_are_kept_directly_after_parking_and_after_a_restore(broker):
    for priority in (9, 0, 6, 3):
        broker.publish(priority, priority=priority)
        headers = {"id": str(priority), "eta": soon(0.05)}
        broker.publish(priority, priority=priority, headers=headers)
    eventually(lambda: time.time() > broker.redis.zrange(broker.key(keys.PARKED_DUE), -1, -1, withscores=True)[0][1])  # fmt: skip
    leaving = Worker(broker.connect(), prefetch=8, acks=False)
    expected = [0, 0, 3, 3, 6, 6, 9, 9]

    assert leaving.get(8) == expected

    leaving.connection.release()

    assert Worker(broker.connect(), prefetch=8).get(8) == expected


@pytest.mark.parametrize("priority", [0, 6], ids=["as urgent", "less urgent"])
def test_a_flooded_queue_does_not_starve_another(broker, priority):
    publisher = broker.connect()
    for number in range(100):
        broker.publish(number, "flood", by=publisher)
    for number in range(3):
        broker.publish(f"other {number}", "other", by=publisher, priority=priority)
    worker = Worker(broker.connect(), queues=("flood", "other"), prefetch=1)
    worker.get(10)

    assert [body for body in worker.bodies if isinstance(body, str)] == [
        "other 0",
        "other 1",
        "other 2",
    ]


def test_flower_reads_the_queue_lengths(broker):
    publisher = broker.connect()
    for priority in (0, 3, 6, 9):
        broker.publish(priority=priority, by=publisher)
    flower = FlowerBroker(broker.server.url, broker_options={"global_keyprefix": PREFIX})

    assert asyncio.run(flower.queues(["q"])) == [{"name": "q", "messages": 4}]
    assert publisher.default_channel.queue_declare("q", passive=True).message_count == 4


# -- waking


def test_an_idle_worker_hears_a_publisher_and_a_restore_at_once(broker):
    idle = Worker(broker.connect())
    idle.rest()
    broker.publish("new")
    idle.get(1)
    idle.consumer.cancel()
    broker.publish("returned")
    leaving = Worker(broker.connect(), acks=False)
    leaving.get(1)
    idle.consumer.consume()
    idle.rest()

    leaving.messages[0].requeue()
    leaving.consumer.cancel()

    assert idle.get(2) == ["new", "returned"]


def test_what_a_full_worker_leaves_wakes_another(broker):
    idle = Worker(broker.connect())
    idle.rest()
    full = Worker(broker.connect(), prefetch=1, acks=False)
    for number in range(4):  # nobody rings
        broker.redis.lpush(broker.key("q"), raw(body=number, tag=str(number)))
    full.get(1)

    assert idle.get(3) == [1, 2, 3]


def test_a_publisher_that_does_not_ring_is_served_within_the_bell_timeout(broker):
    worker = Worker(broker.connect(bell_timeout=0.3))
    worker.rest()
    broker.publish(by=broker.connect(STOCK))

    assert worker.get(1, within=3) == ["job"]


def test_a_stock_worker_and_ours_share_a_queue(broker):
    publisher = broker.connect()
    ours = Worker(broker.connect(bell_timeout=0.1))
    theirs = Worker(broker.connect(STOCK))
    for number in range(40):
        broker.publish(number, by=publisher)
    eventually(
        lambda: theirs.step() or ours.step() or len(ours.messages) + len(theirs.messages) >= 40
    )

    assert Counter(ours.bodies + theirs.bodies) == dict.fromkeys(range(40), 1)
    assert broker.unacked() == 0


# -- what cannot be read

CORRUPT = {
    "not JSON": b"not json",
    "empty": b"",
    "a number": b"5",
    "a list": b"[1, 2]",
    "a bare object": b"{}",
    "no tag": raw(properties={"delivery_info": {}}),
    "no body": raw(body="x").replace(b'"body"', b'"boddy"'),
    "null headers": raw(headers=None),
    "headers a list": raw(headers=[1]),
    "properties a list": raw(properties=[1]),
    "delivery info a list": raw(properties={"delivery_tag": "t", "delivery_info": [1]}),
    "tag a number": raw(properties={"delivery_tag": 5, "delivery_info": {}}),
    "not UTF-8": raw(headers={"x": "Z"}).replace(b"Z", b"\xff\xfe"),
    "tag not UTF-8": raw(tag="Z").replace(b"Z", b"\xff\xfe"),
    "too deep for Lua": raw(headers={"x": 1}).replace(b"1}", b"[" * 5000 + b"]" * 5000 + b"}", 1),
    "too deep for Python": raw(headers={"x": "Z"}).replace(b'"Z"', b"[" * 990 + b"]" * 990),
    "a type of kombu's, broken": raw(headers={"x": {"__type__": "uuid", "__value__": 5}}),
    "a type nobody knows": raw(headers={"x": {"__type__": "gone", "__value__": 5}}),
}


@on_every_server
@pytest.mark.parametrize("item", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_item_is_set_aside_and_the_others_run(broker, item):
    broker.publish("before")
    broker.redis.lpush(broker.key("q"), item)
    broker.publish("after")
    worker = Worker(broker.connect())

    assert worker.get(2) == ["before", "after"]
    assert broker.corrupt() == [b"q\n" + item]
    assert broker.unacked() == 0
    assert not broker.redis.exists(broker.key("unacked_index"))


UNDECODABLE = {
    "base64": raw() and json.dumps(envelope() | {"body": "%%%not base64"}).encode(),
    "encoding": raw(properties=envelope()["properties"] | {"body_encoding": "rot13"}),
    "encoding is no text": raw(properties=envelope()["properties"] | {"body_encoding": 13}),
    "compression": raw(headers={"compression": "application/x-gzip"}),
}


@pytest.mark.parametrize("item", UNDECODABLE.values(), ids=UNDECODABLE)
def test_an_undecodable_body_is_reported_to_the_consumer(broker, item):
    broker.redis.lpush(broker.key("q"), item)
    broker.publish("good")
    worker = Worker(broker.connect())

    assert worker.get(1) == ["good"]
    [(message, error)] = worker.undecodable
    assert isinstance(error, Exception)
    assert broker.unacked() == 1

    message.ack()

    assert broker.unacked() == 0


def test_a_huge_message_passes(broker):
    huge = "x" * 5_000_000
    broker.publish(huge)

    assert Worker(broker.connect()).get(1) == [huge]


@on_every_server
@pytest.mark.parametrize(
    "entry",
    [b"rubbish", b"\xff", b"[1,2]", b"[{},1,2]", b'[{"headers":{}},"",null]', b"[" * 3000],
    ids=["not JSON", "not UTF-8", "two", "bare", "no queue", "deep"],
)
def test_a_malformed_unacknowledged_entry_does_not_keep_others_from_coming_back(broker, entry):
    broker.redis.hset(broker.key("unacked"), "bad", entry)
    broker.redis.hset(broker.key("unacked"), "good", b"[" + raw() + b',"","q"]')
    broker.redis.zadd(broker.key("unacked_index"), {"bad": 1, "good": 2, "gone": 3})

    assert Worker(broker.connect(visibility_timeout=TIMEOUT)).get(1) == ["job"]
    eventually(lambda: broker.corrupt() == [b"unacked\n" + entry])
    assert broker.unacked() == 0


@pytest.mark.parametrize(
    ("bound", "queues"),
    [((), ["key"]), (("a",), ["a"]), (("a", "b"), ["a", "b"])],
    ids=["binding is gone", "one queue", "two queues"],
)
def test_what_a_stock_worker_held_goes_back_where_its_exchange_leads(broker, bound, queues):
    publisher = broker.connect()
    for name in bound:
        Queue(name, Exchange("ex"), routing_key="key")(publisher.default_channel).declare()
    broker.redis.hset(broker.key("unacked"), "tag", b"[" + raw() + b',"ex","key"]')

    publisher.default_channel.give_back("tag")

    assert [broker.length(name) for name in queues] == [1] * len(queues)
    assert broker.unacked() == 0


# -- the server


@on_every_server
def test_a_full_server_can_still_be_drained(broker):
    publisher = broker.connect()
    broker.publish("queued", by=publisher)
    broker.publish("parked", by=publisher, headers={"id": "p", "eta": soon(0.2)})
    worker = Worker(broker.connect(visibility_timeout=TIMEOUT, bell_timeout=0.1), acks=False)
    worker.get(1)
    broker.connect(visibility_timeout=TIMEOUT).default_channel._keep()  # would find it abandoned
    broker.redis.config_set("maxmemory-policy", "noeviction")
    broker.redis.config_set("maxmemory", 1)
    try:
        worker.get(2)
        ended = time.monotonic() + 1.5 * TIMEOUT
        while time.monotonic() < ended:
            worker.step()
        for message in worker.messages:
            message.ack()
    finally:
        broker.redis.config_set("maxmemory", 0)

    assert worker.bodies == ["queued", "parked"]
    assert broker.unacked() == 0
    assert broker.length("q") == 0


@on_every_server
def test_every_key_has_the_prefix(broker):
    publisher = broker.connect()
    broker.publish("now", by=publisher)
    broker.publish("later", by=publisher, headers={"id": "later", "eta": soon(60)})
    broker.publish("other", "expiring", by=publisher)
    broker.redis.lpush(broker.key("q"), b"rubbish")
    channel = publisher.default_channel
    Queue("expiring", Exchange("x"), routing_key="expiring", expires=60)(channel).declare()
    broker.publish("expires", "expiring", by=publisher)
    worker = Worker(broker.connect(visibility_timeout=TIMEOUT), acks=False)
    worker.get(1)
    eventually(lambda: broker.redis.exists(broker.key("perennial:beat")))
    present = {key.decode() for key in broker.redis.keys("*")}

    assert {key for key in present if not key.startswith(PREFIX)} == set()
    assert {"app:unacked", "app:unacked_index", "app:perennial:parked", "app:expiring"} <= present
    assert broker.redis.ttl(broker.key("expiring")) > 0


def test_purging_counts_and_deleting_leaves_no_bell(broker):
    publisher = broker.connect()
    queue = Queue("q", Exchange("q"), routing_key="q")(publisher.default_channel)
    queue.declare()
    broker.publish(by=publisher)
    broker.publish(by=publisher, priority=9)
    broker.publish(by=publisher, headers={"id": "later", "eta": soon(60)})

    assert queue.purge() == 2
    assert broker.parked() == 1

    broker.publish(by=publisher)
    queue.delete()

    assert broker.length("q") == 0
    assert not broker.redis.exists(broker.key(keys.bell("q")))
