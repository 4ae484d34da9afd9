"""`celery -A tasks doctor` on a good set-up, and on broken ones: it names what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from acceptance.system import QUICK, System
from fixtures.refusing import refusing_broker
from fixtures.waiting import eventually

from reliability import keys
from sandbox.redis_server import free_port
from sandbox.stack import ROOT, Stack

DESTINATION = '{"lab": {"url": "http://127.0.0.1:9/r4"}}'
SECRET = "s3cr3t-passw0rd"
USUAL = {"VISIBILITY_TIMEOUT": "30", "RETRY_TIME_SCALE": "1"}  # what the doctor is told
SERVED = ("bitrix", "kie", "telegram", "x", "upkeep")


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Iterator[System]:
    """Everything is well: a worker, beat, and canaries that come and go."""
    stack = Stack(tmp_path_factory.mktemp("clinic"), env=QUICK)
    stack.redis.password = SECRET
    system = System(stack)
    system.worker()
    stack.start_beat()
    canaries = [f"{keys.CANARY}{queue}" for queue in SERVED]
    eventually(lambda: system.redis.exists(*canaries) == len(canaries))
    yield system
    system.end()
    stack.stop(signal.SIGKILL, keep_files=True)


def run(system: System, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*system.stack.celery(), "doctor", *options],
        env={**os.environ, **system.stack.env, **USUAL, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def findings(system: System, **env: str) -> dict[tuple[str, str], str]:
    """What the doctor says: (check, state) → all that was found, and the advice."""
    done = run(system, "--json", **env)
    said: dict[tuple[str, str], str] = {}
    for each in json.loads(done.stdout):
        key = each["name"], each["state"]
        said[key] = f"{said.get(key, '')} {each['found']} {each['advice']}".strip()
    problems = any(state == "problem" for _, state in said)
    assert done.returncode == (1 if problems else 0), done.stderr
    assert SECRET not in done.stdout + done.stderr
    return said


def problems(said: dict[tuple[str, str], str]) -> set[str]:
    return {name for name, state in said if state == "problem"}


def test_a_good_set_up_has_no_problem(system):
    said = findings(system, INTEGRATION_DESTINATIONS="")

    assert problems(said) == set()
    assert [key for key in said if key[1] == "warning"] == [("configuration", "warning")]
    assert "integration is left alone" in said["configuration", "warning"]
    assert all(queue in said["consumers", "ok"] for queue in SERVED)


def test_the_table_is_for_people_and_ends_with_a_count(system):
    done = run(system)

    assert done.returncode == 0
    assert "what to do" in done.stdout
    assert done.stdout.rstrip().endswith("0 problems, 1 warnings")


def test_an_unknown_option_is_wrong_use(system):
    assert run(system, "--nonsense").returncode == 2


@contextmanager
def configured(system: System, **options: str | int) -> Iterator[None]:
    """Change the configuration of Redis for a while."""
    before = {name: system.redis.config_get(name)[name] for name in options}
    for name, value in options.items():
        system.redis.config_set(name, value)
    yield
    for name, value in before.items():
        system.redis.config_set(name, value)


def without_append_only_file(system):
    return configured(system, appendonly="no")


def that_evicts(system):
    return configured(system, **{"maxmemory-policy": "allkeys-lru", "maxmemory": "1gb"})


def that_is_nearly_full(system):
    used = int(system.redis.info("memory")["used_memory"])
    return configured(system, maxmemory=int(used / 0.9))


@pytest.mark.parametrize(
    ("broken", "check", "state", "words"),
    [
        (without_append_only_file, "persistence", "problem", "appendonly yes"),
        (that_evicts, "memory", "problem", "maxmemory-policy is allkeys-lru"),
        (that_is_nearly_full, "memory", "warning", "raise maxmemory"),
    ],
)
def test_a_redis_that_could_lose_jobs_is_named(
    system, broken: Callable[..., object], check, state, words
):
    with broken(system):
        said = findings(system)

    assert words in said[check, state]
    assert problems(said) <= {check, "consumers"}  # a full Redis takes no answers of workers


@pytest.mark.parametrize(
    ("env", "check", "words"),
    [
        pytest.param(
            {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, "redis", "start it", id="no Redis"
        ),
        pytest.param(
            {"REDIS_URL": "redis://:wrong@127.0.0.1:{port}/0"}, "redis", "password", id="no entry"
        ),
        pytest.param(
            {"DATABASE_URL": "sqlite:////nowhere/at/all.db"},
            "database",
            "mend DATABASE_URL",
            id="no database",
        ),
        pytest.param(
            {"DATABASE_URL": "sqlite:///{folder}/empty.db"},
            "database",
            "has no tables yet",
            id="no schema",
        ),
        pytest.param(
            {"CELERY_BROKER_URL": f"amqp://guest:{SECRET}@127.0.0.1:{free_port()}//"},
            "broker",
            "mend CELERY_BROKER_URL",
            id="no broker",
        ),
        pytest.param(
            {"INTEGRATION_DESTINATIONS": DESTINATION},
            "consumers",
            "no worker serves the queue integration",
            id="a queue that nobody serves",
        ),
    ],
)
def test_what_does_not_answer_is_named_once(system, env, check, words):
    told = {"folder": system.stack.folder, "port": system.stack.redis.port}
    filled = {
        name: value.replace("{folder}", str(told["folder"])).replace("{port}", str(told["port"]))
        for name, value in env.items()
    }

    said = findings(system, **filled)

    assert words in said[check, "problem"]
    assert problems(said) <= {check, "canaries"}
    if check == "redis":
        skipped = {name for name, state in said if state == "skipped"}
        assert skipped >= {"canaries", "gates"}
        assert ("database", "ok") in said


def test_a_redis_that_is_named_and_not_used_is_a_warning(system):
    url = f"redis://:{SECRET}@127.0.0.1:{system.stack.redis.port}/0?"
    said = findings(system, CELERY_BROKER_URL=url)

    assert "REDIS_URL is not used" in said["configuration", "warning"]
    assert problems(said) == set()


def test_a_broker_that_does_not_know_us_is_a_problem_and_no_traceback(system):
    with refusing_broker() as port:
        said = findings(system, CELERY_BROKER_URL=f"amqp://guest:{SECRET}@127.0.0.1:{port}//")

    assert "AccessRefused" in said["broker", "problem"]
    assert ("consumers", "skipped") in said


def test_each_setting_that_breaks_a_promise_is_a_warning(system):
    broken = {
        "VISIBILITY_TIMEOUT": ("2", "VISIBILITY_TIMEOUT is 2 s"),
        "RETRY_TIME_SCALE": ("0.5", "leases are shorter than slow calls"),
        "ADMIN_TOKEN": ("", "API and console stay closed"),
        "PUBLIC_URL": ("", "KIE.AI cannot call back"),
        "TELEGRAM_WEBHOOK_SECRET": ("", "buttons below messages do nothing"),
        "BITRIX_APPLICATION_TOKEN": ("", "the portal's webhooks are refused"),
        "KEEP_RESULTS": ("false", "has nothing to read"),
    }

    said = findings(system, **{name: value for name, (value, _) in broken.items()})

    told = said["configuration", "warning"]
    assert [name for name, (_, words) in broken.items() if words not in told] == []


def test_a_setting_that_cannot_be_read_ends_it_with_one_sentence(system):
    done = run(system, DATABASE_URL=f"nonsense-{SECRET}")

    assert done.returncode == 2
    assert "DATABASE_URL: must look like" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


def test_a_queue_whose_canaries_are_not_taken_any_more_is_a_problem(system):
    seconds, _ = system.redis.time()
    system.redis.set(f"{keys.CANARY}integration", seconds - 500)

    said = findings(system, INTEGRATION_DESTINATIONS=DESTINATION)

    told = r"nobody has taken a job from the queue integration for 5\d\d"
    assert re.search(told, said["canaries", "problem"])
    assert all(queue in said["canaries", "ok"] for queue in SERVED)


def test_what_a_person_or_an_upstream_has_closed_is_told_with_the_way_out(system):
    system.operate("gate", "pause", "kie", "--note", "their maintenance")
    system.operate("hold", "add", "--task", "bitrix.create_deal", "--note", "bad release [/x]")

    said = findings(system)
    tables = run(system).stdout, system.operate("hold", "ls")

    assert re.search(
        r"kie is paused by \S+ since \d\d:\d\d UTC: their maint", said["gates", "warning"]
    )
    assert "celery -A tasks gate resume kie" in said["gates", "warning"]
    assert "bad release" in said["holds", "warning"]
    assert all("[/x]" in table for table in tables)  # what people write is no markup
    assert "celery -A tasks hold lift" in said["holds", "warning"]
    assert problems(said) == set()


def test_a_letter_that_cannot_be_read_from_the_disk_is_a_problem(system, tmp_path):
    (tmp_path / "dead-letters.corrupt").write_text("half a lin\n")

    said = findings(system, SPOOL_DIR=str(tmp_path))

    assert "delete dead-letters.corrupt" in said["spools", "problem"]
