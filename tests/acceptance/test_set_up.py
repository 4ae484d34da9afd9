"""A worker that is set up wrongly says so in one sentence, ends, and leaves the jobs alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from acceptance.system import PATIENCE, System
from acceptance.visits import new_order, opened
from fixtures.waiting import eventually

from sandbox.stack import Stack

LONG = 2 * PATIENCE  # all of them start at once
UNSET = ""  # what a variable is when somebody has left it empty
WRONG = {
    "no Redis": (
        [],
        {"REDIS_URL": UNSET},
        "Redis is not configured: set REDIS_URL (redis://host:6379/0), VALKEY_URL or REDIS_HOST.",
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
    "no key of KIE, and only its queue": (
        ["-Q", "kie"],
        {"KIE_API_KEY": UNSET},
        "perennial: the queue kie cannot be served: KIE_API_KEY is not set",
    ),
    "no bot, and only its queue": (
        ["-Q", "telegram"],
        {"TELEGRAM_BOT_TOKEN": UNSET},
        "perennial: the queue telegram cannot be served: TELEGRAM_BOT_TOKEN is not set",
    ),
    "no app at X, and only its queue": (
        ["-Q", "x"],
        {"X_BASE_URL": UNSET, "X_CLIENT_ID": UNSET},
        "perennial: the queue x cannot be served: X_CLIENT_ID is not set",
    ),
    "nothing to do": (
        [],
        dict.fromkeys(
            (
                "BITRIX_WEBHOOK_URL",
                "KIE_API_KEY",
                "TELEGRAM_BOT_TOKEN",
                "X_BASE_URL",
                "X_CLIENT_ID",
            ),
            UNSET,
        ),
        "perennial: there is no queue to serve (bitrix: BITRIX_WEBHOOK_URL is not set",
    ),
    "a database that is not there": (
        [],
        {"DATABASE_URL": "sqlite:////nowhere/perennial.db"},
        "perennial: the database cannot be used: ",
    ),
    "a queue that nobody knows": (
        ["-Q", "bitrxi"],
        {},
        "perennial: there is no queue bitrxi",
    ),
}


@pytest.fixture(scope="module")
def system(site: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with one job in its queue, and all the wrong workers side by side."""
    with opened(tmp_path_factory.mktemp("set-up"), site) as system:
        system.caller  # noqa: B018 - it starts beside the workers
        for name, (options, env, _) in WRONG.items():
            system.stack.worker(name, *options, env=env).start()
        system.send("create_deal", order_id=new_order(), title="Waiting")
        yield system


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_ends_the_worker_with_one_sentence(system: System, name: str):
    worker = next(process for process in system.stack.processes if process.name == name)
    code = worker.running.wait(LONG)
    said = worker.log.read_text()
    spoken = [line for line in said.splitlines() if line.startswith(("perennial: ", "Error: "))]
    (told,) = (line for line in spoken if "is left alone" not in line)

    assert WRONG[name][-1] in told
    assert code == 2
    assert "Traceback" not in said
    assert "s3cr3t" not in said


def test_wrong_workers_leave_the_jobs_alone(system: System):
    for process in system.stack.processes:
        process.running.wait(LONG)

    assert system.leftovers() == {"bitrix": 1}


def test_a_worker_waits_for_a_redis_that_is_not_there_yet(empty_office: System, order: str):
    office = empty_office
    job = office.send("create_deal", order_id=order, title="Patient")
    office.stack.redis.stop()
    worker = office.stack.worker("early")
    worker.start()
    eventually(lambda: worker.says("Cannot connect to"), within=PATIENCE)
    office.stack.start_redis()

    assert office.result(job)["outcome"] == "created"
    assert worker.says("Connection refused")
    assert not worker.says("Traceback")


def test_a_worker_waits_for_a_database_server_that_is_not_there_yet(empty_office: System):
    url = "postgresql+psycopg://perennial:s3cr3t@127.0.0.1:1/perennial"
    worker = empty_office.stack.worker("without-postgres", env={"DATABASE_URL": url})
    worker.start()
    eventually(lambda: worker.says("waiting for the database"), within=PATIENCE)

    assert worker.alive
    assert not worker.says("Traceback")
    assert not worker.says("s3cr3t")
