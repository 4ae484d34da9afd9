"""RabbitMQ as the broker: jobs queue there, wait in Redis, and none is lost or doubled."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Iterator
from uuid import uuid4

import pytest
from acceptance.system import PATIENCE, QUICK, RATE, Portal
from acceptance.visits import visited
from fixtures.rabbitmq import RabbitSystem, running_rabbitmq
from fixtures.supervisor import Supervisor
from fixtures.waiting import eventually
from kombu import Producer

from reliability import quarantine
from reliability.rabbitmq_queues import SUSPECTS_OF
from sandbox.rabbitmq_server import RabbitServer
from sandbox.stack import Stack

KILLERS = ("-I", "tests.acceptance.killers")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """One node for all of these tests; who ends it starts it again."""
    yield from running_rabbitmq(tmp_path_factory.mktemp("rabbitmq"))


@pytest.fixture(scope="module")
def house(
    broker: RabbitServer, site: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RabbitSystem]:
    shared = {name: site.env[name] for name in ("BITRIX_WEBHOOK_URL", "BITRIX_APPLICATION_TOKEN")}
    env = {**QUICK, **RATE, **shared, "CELERY_BROKER_URL": broker.url}
    stack = Stack(tmp_path_factory.mktemp("house"), env=env)
    portal = Portal(site.url("portal"), site.env["BITRIX_WEBHOOK_URL"])
    system = RabbitSystem(stack, portal, broker)
    yield system
    system.end()
    for process in stack.processes:
        process.kill()
    stack.stop(keep_files=True)


@pytest.fixture
def staffed_house(house: RabbitSystem, request: pytest.FixtureRequest) -> Iterator[RabbitSystem]:
    """The system with a worker, the same for all tests that want no more of it."""
    if not any(process.alive for process in house.stack.processes):
        house.worker()
    yield from visited(house, request)


@pytest.fixture
def empty_house(house: RabbitSystem, request: pytest.FixtureRequest) -> Iterator[RabbitSystem]:
    """The system without a worker; nothing may wait or be doubled when a test leaves it."""
    for process in house.stack.processes:
        process.stop()
    yield from visited(house, request)
    for process in house.stack.processes:
        process.kill()


def send(house: RabbitSystem, *orders: str, **options: float) -> list[str]:
    calls = [("create_deal", {"order_id": order, "title": "x"}) for order in orders]
    return house.send_all(calls, **options)


def test_what_waits_is_parked_in_redis_and_moved_by_hand(staffed_house: RabbitSystem, order: str):
    house = staffed_house
    soon = send(house, f"{order}-soon", countdown=1.0)
    released, cancelled = send(house, f"{order}-1", f"{order}-2", countdown=3600)
    waiting = house.parked(released)
    outcomes = house.results(soon)
    listed = {row["message_id"] for row in house.look("parked", "ls")}
    house.operate("parked", "cancel", cancelled)
    house.operate("parked", "release", released)

    assert (waiting.reason, waiting.queue) == ("Scheduled", "bitrix")
    assert [outcome["outcome"] for outcome in outcomes] == ["created"]
    assert listed == {released, cancelled}
    assert house.result(released)["outcome"] == "created"
    assert house.portal.calls("crm.deal.add", f"{order}-2") == []


def test_a_retry_is_parked_with_its_reason_and_comes_back(staffed_house: RabbitSystem, order: str):
    house = staffed_house
    house.portal.arm({"kind": "status", "status": 503, "about": order, "times": 1})
    (job,) = send(house, order)
    waiting = house.parked(job)

    assert (waiting.reason, waiting.attempts, waiting.queue) == ("OutcomeUnknown", 1, "bitrix")
    assert house.result(job)["outcome"] in {"created", "adopted"}


def test_held_jobs_wait_until_they_are_let_go(staffed_house: RabbitSystem, order: str):
    house = staffed_house
    where = ("--where", f"order_id={order}")
    house.operate("hold", "add", "--task", "bitrix.create_deal", *where, "--note", "recall")
    (job,) = send(house, order)
    held = house.parked(job, "Paused")
    house.operate("hold", "lift", held.code)

    assert held.attempts == 0
    assert house.result(job)["outcome"] == "created"


def test_a_wait_that_another_program_has_sent_holds_no_worker(
    staffed_house: RabbitSystem, order: str
):
    house, job = staffed_house, str(uuid4())
    headers = {"id": job, "task": "bitrix.create_deal", "eta": "2100-01-01T00:00:00+00:00"}
    with house.connect() as connection:
        body = json.dumps([[], {"order_id": order, "title": "x"}, {}]).encode()
        kind = {"content_type": "application/json", "content_encoding": "utf-8"}
        Producer(connection).publish(body, routing_key="bitrix", headers=headers, **kind)
    parked = house.parked(job)
    house.operate("parked", "cancel", job)

    assert parked.kwargs["order_id"] == order


def test_a_parked_message_that_cannot_be_sent_holds_up_no_other(
    staffed_house: RabbitSystem, order: str
):
    house = staffed_house
    send(house, f"{order}-odd", countdown=0.2, headers={"number": 2**70})  # too long for AMQP
    (job,) = send(house, order, countdown=0.2)

    assert house.result(job)["outcome"] == "created"
    (letter,) = eventually(house.open_letters, within=PATIENCE)
    assert letter.code == "corrupt_item"
    assert f"{order}-odd".encode() in b64decode(json.loads(b64decode(letter.raw))["body"])


def test_a_job_that_outlives_its_connection_is_run_once(staffed_house: RabbitSystem, order: str):
    house = staffed_house
    (worker,) = (process for process in house.stack.processes if process.alive)
    slow = {"kind": "slow", "seconds": 8, "method": "crm.deal.add", "about": order, "times": 99}
    house.portal.arm(slow)
    (job,) = send(house, order)
    eventually(lambda: house.portal.calls("crm.deal.add", order))
    house.broker.drop_connections()
    eventually(lambda: worker.log.read_text().count("Connected to amqp") >= 2, within=30)
    outcome = house.result(job)

    assert outcome["outcome"] == "created"
    assert worker.log.read_text().count(f"[{job}] received") == 1


def test_what_a_worker_does_while_it_leaves_is_acknowledged(
    staffed_house: RabbitSystem, order: str
):
    house = staffed_house
    (worker,) = (process for process in house.stack.processes if process.alive)
    slow = {"kind": "slow", "seconds": 1.5, "method": "crm.deal.add", "about": order, "times": 99}
    house.portal.arm(slow)
    jobs = send(house, order)
    eventually(lambda: house.portal.calls("crm.deal.add", order))
    worker.stop()

    assert house.ended(jobs) == jobs
    assert house.waiting("bitrix") == 0  # what is not acknowledged would be there again


def test_no_job_is_lost_or_doubled_when_workers_and_the_broker_are_killed(
    empty_house: RabbitSystem, order: str
):
    house = empty_house
    orders = [f"{order}-{n:02}" for n in range(40)]
    slow = {"kind": "slow", "seconds": 0.5, "method": "crm.deal.add", "about": order, "times": 99}
    house.portal.arm(slow)
    worker = house.worker(BITRIX_COALESCE="false", WORKER_THREADS="8")
    jobs = send(house, *orders)
    eventually(lambda: len(house.portal.calls("crm.deal.add", order)) >= 8)
    worker.kill()
    survivor = house.worker("survivor", BITRIX_COALESCE="false", WORKER_THREADS="8")
    eventually(lambda: len(house.portal.calls("crm.deal.add", order)) >= 20)
    pid = survivor.running.pid
    house.broker.kill()
    house.broker.start()
    outcomes = house.results(jobs)
    survivor_pid = survivor.running.pid
    survivor.stop()

    assert {outcome["outcome"] for outcome in outcomes} <= {"created", "adopted"}
    assert [len(house.portal.rows("deal", one)) for one in orders] == [1] * len(orders)
    assert survivor_pid == pid
    assert house.leftovers() == {}
    assert house.open_letters() == []


def test_the_guilty_is_taken_out_and_the_innocent_are_done(empty_house: RabbitSystem, order: str):
    house = empty_house
    innocent = [f"{order}-beside-{n}" for n in range(4)]
    pill, *others = send(house, f"{order}-pill", *innocent)
    on_duty = Supervisor(house.workers({"worker": KILLERS}))
    on_duty.until(lambda: suspected(house))
    # Nobody looks after the worker meanwhile: the guilty one cannot die more than once more.
    listed = {row["message_id"]: row for row in house.look("parked", "ls")}
    on_duty.until(lambda: len(house.ended([pill, *others])) == 5)
    (letter,) = house.open_letters()

    assert (letter.message_id, letter.error_type) == (pill, "PoisonPill")
    assert letter.error_message.startswith("3 workers have died with it")
    assert letter.original_queue == "bitrix"
    assert {outcome["outcome"] for outcome in house.results(others)} == {"created"}
    assert [len(house.portal.rows("deal", one)) for one in innocent] == [1] * 4
    assert on_duty.deaths == 3
    assert house.waiting(SUSPECTS_OF + "bitrix") == 0
    assert listed.keys() <= {pill, *others}
    assert (listed[pill]["state"], listed[pill]["queue"]) == ("suspect", "bitrix")
    assert listed[pill]["kwargs"]["order_id"] == f"{order}-pill"
    eventually(lambda: not suspected(house))


def suspected(house: RabbitSystem) -> int:
    """How many jobs are known as suspects."""
    with house.stack.redis.client(decode_responses=False) as client:
        return sum(quarantine.counts(client, ["bitrix"]).values())


def test_a_job_that_expires_is_a_dead_letter(empty_house: RabbitSystem, order: str):
    house = empty_house
    (job,) = send(house, order, expires=0.2)
    eventually(lambda: house.waiting("bitrix") == 1)
    time.sleep(0.3)  # what is waited for is that nothing happens at the expiry
    still_there = house.waiting("bitrix")
    house.worker()

    assert still_there == 1  # RabbitMQ would have dropped it, and nobody would know
    assert house.letter(job).code == "expired"


def test_a_job_goes_to_no_queue_that_somebody_has_deleted(empty_house: RabbitSystem, order: str):
    house = empty_house
    first = send(house, order)
    with house.connect() as connection:
        connection.default_channel.queue_delete("bitrix")
    second = send(house, f"{order}-2")
    house.worker()

    assert [outcome["outcome"] for outcome in house.results(second)] == ["created"]
    assert house.ended(first) == []  # it went with its queue, as whoever deletes one wants
