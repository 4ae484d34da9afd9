"""A worker that is set up wrongly says so in one sentence, ends, and leaves the jobs alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from acceptance.system import PATIENCE, System
from fixtures.waiting import eventually

UNSET = ""  # what a variable is when somebody has left it empty
WRONG = {
    "no Redis": (
        [],
        {"REDIS_URL": UNSET},
        "Redis is not configured: set REDIS_URL (redis://host:6379/0), VALKEY_URL or REDIS_HOST.",
    ),
    "an address of Redis that is none": (
        [],
        {"REDIS_URL": "localhost:6379"},
        "the configuration cannot be used: REDIS_URL: must start with redis://",
    ),
    "a webhook that is none": (
        [],
        {"BITRIX_WEBHOOK_URL": "https://portal.example/s3cr3t"},
        "the configuration cannot be used: BITRIX_WEBHOOK_URL: must look like https://",
    ),
    "no webhook, and only its queue": (
        ["-Q", "bitrix"],
        {"BITRIX_WEBHOOK_URL": UNSET},
        "perennial: the queue bitrix cannot be served: BITRIX_WEBHOOK_URL is not set",
    ),
    "nothing to do": (
        [],
        {"BITRIX_WEBHOOK_URL": UNSET},
        "perennial: there is no queue to serve (bitrix: BITRIX_WEBHOOK_URL is not set",
    ),
    "a database that is not there": (
        [],
        {"DATABASE_URL": "sqlite:////nowhere/perennial.db"},
        "perennial: the database cannot be used: ",
    ),
    "a database of another kind": (
        [],
        {"DATABASE_URL": "mysql://localhost/perennial"},
        "the configuration cannot be used: DATABASE_URL: must look like sqlite:///file",
    ),
    "a queue that nobody knows": (
        ["-Q", "bitrxi"],
        {},
        "perennial: there is no queue bitrxi",
    ),
}


@pytest.fixture
def queued(empty_office: System, order: str) -> Iterator[System]:
    """A system with one job in its queue."""
    empty_office.send("create_deal", order_id=order, title="Waiting")
    yield empty_office
    empty_office.redis.delete("bitrix")


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_ends_the_worker_with_one_sentence(queued: System, case: str):
    options, env, sentence = WRONG[case]
    worker = queued.stack.worker(f"wrong-{case.replace(' ', '-')}", *options, env=env)
    worker.start()
    code = worker.running.wait(PATIENCE)
    said = worker.log.read_text()
    (told,) = (line for line in said.splitlines() if line.startswith(("perennial: ", "Error: ")))

    assert sentence in told
    assert code == 2
    assert "Traceback" not in said
    assert "s3cr3t" not in said
    assert queued.leftovers() == {"bitrix": 1}


def test_a_worker_waits_for_a_redis_that_is_not_there_yet(queued: System):
    queued.stack.redis.stop()
    worker = queued.stack.worker("early")
    worker.start()
    eventually(lambda: worker.says("Cannot connect to"), within=PATIENCE)
    queued.stack.start_redis()
    eventually(lambda: worker.says(" ready."), within=PATIENCE)
    queued.calm()

    assert worker.says("Connection refused")
    assert not worker.says("Traceback")


def test_a_worker_waits_for_a_database_server_that_is_not_there_yet(queued: System):
    url = "postgresql+psycopg://perennial:s3cr3t@127.0.0.1:1/perennial"
    worker = queued.stack.worker("without-postgres", env={"DATABASE_URL": url})
    worker.start()
    eventually(lambda: worker.says("waiting for the database"), within=PATIENCE)

    assert worker.alive
    assert not worker.says("Traceback")
    assert not worker.says("s3cr3t")
    assert queued.leftovers() == {"bitrix": 1}
