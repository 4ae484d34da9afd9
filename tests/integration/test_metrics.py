"""What is counted is told once, and what Prometheus reads is all of it, at a flat cost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from fixtures.brokers import PREFIX, Worker, on_every_server
from fixtures.waiting import eventually
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from admin.metrics import exposition
from classifiers.errors import (
    Duplicate,
    InvalidData,
    JobError,
    Pending,
    ServiceUnavailable,
    UserError,
    Waiting,
    kinds,
)
from config.policies import Action
from config.settings import settings
from reliability import connection, keys, liveness, queues
from reliability.counters import Tally, label, sums, tally
from reliability.dead_letters import dead_letters
from reliability.parking import Kind, Parking
from reliability.spool import Backlog
from storage import bookmarks, credits, videos
from storage.bookmarks import Checkpoint
from storage.videos import Order
from tasks import app, failures, measures
from tasks.bookmarks import keep
from tasks.video import make_good, settle

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
RUNBOOK = PAGE.with_name("runbook.md")
ROW = re.compile(r"^\| `(?P<name>[a-z_]+)` \|(?P<labels>.*?)\| (?P<meaning>.+) \|$", re.MULTILINE)


@pytest.fixture
def our_redis(application, redis_server, redis_client, monkeypatch, tmp_path):
    """An empty Redis that our own code finds by the settings; nothing is counted yet."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SPOOL_DIR", str(tmp_path / "spool"))
    _forget()
    told_by_hand(tally())
    yield redis_client
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    tally().forget()
    reached = (connection.redis, connection.redis_bytes, queues._broker, dead_letters)
    for known in (settings, *reached):
        known.cache_clear()


def counted(name: str) -> dict:
    """What this process has counted, by its labels, as Redis has it."""
    tally().tell()
    return sums(connection.redis()).get(name, {})


LABELS = ("task", "service", "queue", "host", "outcome", "error_type", "category", "reason")


def scrape() -> dict[tuple, float]:
    """What Prometheus reads: the value of each sample, by its name and the values of its labels.

    These are in the order of the page.
    """
    order = (*LABELS, "state", "le")
    return {
        (sample.name, *(sample.labels[n] for n in order if n in sample.labels)): sample.value
        for family in text_string_to_metric_families(exposition().decode())
        for sample in family.samples
    }


# -- telling


def by_hand(client: Redis, prefix: str = "") -> Tally:
    return told_by_hand(Tally(lambda: client, prefix=prefix))


def told_by_hand(counts: Tally) -> Tally:
    """Have *counts* told when the test says so, and not by a thread of their own."""
    counts._teller = threading.current_thread()
    return counts


def test_what_all_threads_and_processes_count_is_one_sum(redis_client: Redis):
    of_a_process = [by_hand(redis_client, "t:") for _ in range(3)]

    def count(number: int) -> None:
        for _ in range(100):
            of_a_process[number % 3].count("jobs", "a.b", "done")
            of_a_process[number % 3].count("seconds", by=number)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(count, range(12)))
    for counts in of_a_process:
        counts.tell()

    assert sums(redis_client, prefix="t:") == {
        "jobs": {("a.b", "done"): 1200},
        "seconds": {(): 100 * sum(range(12))},
    }
    assert {key.split(":")[0] for key in redis_client.scan_iter()} == {"t"}


def test_a_process_tells_by_itself(redis_client: Redis):
    Tally(lambda: redis_client).count("jobs")

    assert eventually(lambda: sums(redis_client).get("jobs")) == {(): 1}


def test_a_batch_whose_answer_was_lost_counts_once(own_redis):
    hasty = Redis(
        host="127.0.0.1",
        port=own_redis.port,
        socket_timeout=0.1,
        decode_responses=True,
        retry=Retry(NoBackoff(), 2),  # as in life, it sends again what it has no answer to
    )
    with hasty as client:
        counts = by_hand(client)
        counts.count("jobs")
        counts.tell()
        counts.count("jobs")
        own_redis.process.send_signal(signal.SIGSTOP)  # it takes what is sent, and says nothing
        with pytest.raises(RedisError):
            counts.tell()
        own_redis.process.send_signal(signal.SIGCONT)
        with own_redis.client() as look:
            eventually(lambda: sums(look)["jobs"] == {(): 2})  # it has come all the same
        counts.count("jobs")
        counts.tell()

        assert sums(client)["jobs"] == {(): 3}


def test_counts_wait_for_a_redis_that_is_away(own_redis):
    with own_redis.client() as client:
        counts = by_hand(client)
        counts.count("jobs", "before")
        own_redis.stop()
        with pytest.raises(RedisError):
            counts.tell()
        counts.count("jobs", "before")
        counts.count("jobs", "meanwhile")
        own_redis.start()
        counts.tell()
        counts.tell()

        assert sums(client)["jobs"] == {("before",): 2, ("meanwhile",): 1}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", "none"),
        ("video.send", "video.send"),
        ("kie-queries", "kie-queries"),
        ("target_gone", "target_gone"),
        ("two\nlines", "other"),
        ("created\n", "other"),
        ("a sentence", "other"),
        ("x" * 65, "other"),
        ("ё", "other"),
    ],
)
def test_a_label_is_a_word(value: str, shown: str):
    assert label(value) == shown


# -- what is counted


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"outcome": "created", "deal_id": "7"}, "created"),
        ({"outcome": 7}, "done"),
        ({"outcome": "a secret, perhaps"}, "other"),
        ({"deal_id": "7"}, "done"),
        ("created", "done"),
        (None, "done"),
    ],
)
def test_a_job_that_is_done_counts_under_the_word_of_its_result(our_redis, result, outcome):
    measures.succeeded("bitrix.create_deal", result)

    assert counted("jobs_total") == {("bitrix.create_deal", outcome): 1}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_failure_counts_as_an_error_and_no_wait_does(our_redis, kind: type[JobError]):
    own = {Duplicate: {"existing_id": "7"}, UserError: {"reason": "bad_photo"}}.get(kind, {})
    measures.failed(kind("why", service="kie", **own))
    facts = ("kie", kind.__name__, kind.category)

    assert counted("job_errors_total") == ({} if issubclass(kind, Waiting) else {facts: 1})
    unclassified = {("kie",): 1} if kind.__name__ == "Unclassified" else {}
    assert counted("unclassified_errors_total") == unclassified


@pytest.mark.parametrize(
    ("action", "counter"),
    [
        (Action.RETRY, "job_retries_total"),
        (Action.RECONCILE, "job_retries_total"),
        (Action.SHUTDOWN, "job_retries_total"),
        (Action.PARK, "job_waits_total"),
        (Action.ABORT, "job_waits_total"),
    ],
)
def test_what_spends_a_try_is_a_retry_and_the_rest_waits(our_redis, action, counter):
    measures.comes_back("video.send", ServiceUnavailable("why"), action)
    both = {name: counted(name) for name in ("job_retries_total", "job_waits_total")}

    assert {name: counts for name, counts in both.items() if counts} == {
        counter: {("video.send", "ServiceUnavailable"): 1}
    }


def test_runs_are_in_the_bucket_of_their_length_and_their_sum_is_exact(our_redis):
    for seconds in (0.0, 0.01, 0.011, 3.0, 300.0, 3_000.0):
        measures.ran("video.send", seconds)
    tally().tell()
    found = scrape()

    at = {
        bound: found["job_duration_seconds_bucket", "video.send", bound]
        for bound in ("0.01", "0.025", "2.5", "5.0", "120.0", "300.0", "+Inf")
    }
    assert list(at.values()) == [2, 3, 3, 4, 4, 5, 6]
    assert found["job_duration_seconds_count", "video.send"] == 6
    assert found["job_duration_seconds_sum", "video.send"] == pytest.approx(3303.021)


def test_what_counts_goes_on_where_no_thread_can_be_had(redis_client, monkeypatch):
    counts = Tally(lambda: redis_client)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as crowded:
        crowded.setattr(threading.Thread, "start", refuse)
        counts.count("jobs")
    counts.count("jobs")

    eventually(lambda: redis_client.hget(keys.COUNTS, "jobs") == "2")


def test_runs_that_were_told_by_half_are_told_all_the_same(our_redis):
    our_redis.hset(keys.COUNTS, "job_duration_seconds\nvideo.send\n0.25", 2)
    found = scrape()

    assert found["job_duration_seconds_count", "video.send"] == 2
    assert found["job_duration_seconds_sum", "video.send"] == 0


def test_a_bucket_of_another_release_still_counts(our_redis):
    our_redis.hset(keys.COUNTS, "job_duration_seconds\nvideo.send\n0.3", 2)
    our_redis.hset(keys.COUNTS, "job_duration_microseconds\nvideo.send", 500_000)
    found = scrape()

    assert found["job_duration_seconds_bucket", "video.send", "0.25"] == 0
    assert found["job_duration_seconds_bucket", "video.send", "0.5"] == 2


def test_tasks_that_are_none_of_ours_count_as_one(our_redis):
    for number in range(3):
        error = InvalidData("no such task")
        told = {"args": (), "kwargs": {}, "error": error, "queue": "x", "headers": {}}
        failures.bury(failures.letter(f"job-{number}", task=f"no.such_{number}", **told))
    tally().tell()
    found = scrape()

    assert found["jobs_total", "unknown", "dead"] == 3
    assert found["dead_letters_total", "unknown", "InvalidData"] == 3
    assert found["dead_letters_open", "unknown"] == 3
    assert not [name for name in found if any("no.such" in part for part in name)]


def test_a_death_that_is_told_twice_counts_once(our_redis):
    error = InvalidData("why")
    told = {"args": (), "kwargs": {}, "error": error, "queue": "bitrix", "headers": {}}
    dead = failures.letter("job", task="bitrix.create_deal", **told)
    failures.bury(dead)
    failures.bury(dead)

    assert counted("jobs_total") == {("bitrix.create_deal", "dead"): 1}


def test_who_is_refunded_twice_was_refunded_once(our_redis, database):
    app.finalize()
    credits.grant("7", 25, "welcome")
    photo = "https://shop.example/cat.jpg"
    for number in range(2):
        order = Order(str(number), "7", "70", photo, "it dances", Decimal(4), "ru")
        videos.begin(order, f"job-{number}", 0)
    for _ in range(2):  # as after a crash
        make_good.body(
            task="video.generate",
            payload={"order_id": "0"},
            job_id="job-0",
            replays=0,
            error_type="InternalError",
            category="system",
            reason="",
            refund=True,
            tell=False,
        )

    assert counted("refunds_total") == {(): 1}
    assert credits.totals()["refunded"] == 4

    assert settle("1", arrived=False, by="ann") is None  # nobody doubts that one
    assert counted("refunds_total") == {(): 1}


def test_each_checkpoint_of_a_crawl_counts(our_redis, database):
    session = bookmarks.begin("7", None, "job", None, None)
    for step in (10, 20):
        session = keep(session, [], Checkpoint(None, 0, step), over=step == 20)
    keep(session, [], Checkpoint(None, 0, 30), over=False)  # it is over

    assert counted("checkpoints_total") == {(): 2}


# -- parked jobs, by their kind


def park(broker, job: str = "job", service: str = "kie", reason: str = "Pending", **headers):
    due = datetime.now(UTC) + timedelta(seconds=headers.pop("seconds", 3600))
    facts = {"reason": reason, "service": service}
    headers = {"id": job, "task": "video.generate", "eta": due.isoformat(), "accepted_at": 1e9} | (
        {"parking": facts} if reason else {}
    )
    broker.publish([[], {}, {}], headers=headers)


@pytest.fixture
def parking(broker):
    with broker.server.client() as client:
        yield Parking(client, prefix=PREFIX)


def waiting(parking: Parking) -> dict[tuple[str, str], int]:
    return {(kind.service, kind.reason): kind.count for kind in parking.kinds() if kind.count}


@on_every_server
def test_parked_jobs_are_counted_by_service_and_reason_whatever_becomes_of_them(broker, parking):
    park(broker, "looked at")
    park(broker, "moved on")
    park(broker, "cancelled", "bitrix", "RateLimited")
    park(broker, "later", "", "")
    park(broker, "looked at")

    assert waiting(parking) == {
        ("kie", "Pending"): 2,
        ("bitrix", "RateLimited"): 1,
        ("none", "Scheduled"): 1,
    }

    park(broker, "moved on", "telegram", "CircuitOpen")
    parking.cancel("cancelled")
    parking.cancel("cancelled")
    parking.release("looked at")
    Worker(broker.connect(bell_timeout=0.1)).get(1)

    assert waiting(parking) == {("telegram", "CircuitOpen"): 1, ("none", "Scheduled"): 1}
    assert sum(waiting(parking).values()) == parking.count() == broker.parked()


def test_a_job_that_borrowed_an_id_is_counted_as_well(broker, parking):
    for body in ("one", "other", "other"):
        headers = {"id": "job", "task": "t", "eta": "2100-01-01T00:00:00+00:00"}
        broker.publish(body, headers=headers)

    assert waiting(parking) == {("none", "Scheduled"): 2}
    assert broker.parked() == 2


def test_what_is_no_word_does_not_become_a_kind(broker, parking):
    park(broker, "one", "a b", "c d")
    park(broker, "two", "e\nf", "x" * 100)

    assert waiting(parking) == {("other", "other"): 2}


@pytest.mark.parametrize(
    ("headers", "since"),
    [
        ({"accepted_at": 5.0}, 5.0),
        ({"accepted_at": 5.0, "sent_again_at": 9.0}, 9.0),
        ({"accepted_at": 5.0, "sent_again_at": "soon"}, 5.0),
    ],
    ids=["accepted", "sent again", "nonsense"],
)
def test_the_oldest_of_a_kind_is_known_by_when_it_was_asked_for(broker, parking, headers, since):
    eta = "2100-01-01T00:00:00+00:00"
    broker.publish("young", headers={"id": "young", "eta": eta, "accepted_at": time.time()})
    broker.publish("old", headers={"id": "old", "eta": eta} | headers)

    assert parking.kinds() == [Kind("none", "Scheduled", 2, since)]

    parking.cancel("old")
    (left,) = parking.kinds()

    assert left.oldest == pytest.approx(time.time(), abs=60)


def test_what_nobody_moves_is_overdue(broker, parking):
    before = parking.overdue()
    park(broker, seconds=0.05)

    assert before == 0
    assert eventually(parking.overdue) < 60

    Worker(broker.connect(bell_timeout=0.1)).get(1)

    assert parking.overdue() == 0


# -- what Prometheus reads


def everything_at_once(broker: Redis) -> None:
    """Make every metric there is say something."""
    measures.succeeded("bitrix.create_deal", {"outcome": "created"})
    measures.failed(ServiceUnavailable("why", service="bitrix"))
    measures.comes_back("bitrix.create_deal", ServiceUnavailable("why"), Action.RETRY)
    measures.comes_back("video.generate", Pending("why"), Action.PARK)
    measures.ran("bitrix.create_deal", 0.2)
    tally().tell()
    error = InvalidData("why")
    told = {"args": (), "kwargs": {}, "error": error, "queue": "bitrix", "headers": {}}
    failures.bury(failures.letter("job", task="bitrix.create_deal", **told))
    app.tasks["bitrix.create_deal"].apply_async(
        kwargs={"order_id": "7", "title": "x"}, countdown=60
    )
    broker.hset(keys.SPOOLS, "elsewhere", "2 1")


def test_the_page_names_every_metric_with_its_labels_and_nothing_else(our_redis):
    app.loader.import_default_modules()
    everything_at_once(our_redis)
    families = text_string_to_metric_families(exposition().decode())
    found = {
        family.name + ("_total" if family.type == "counter" else ""): {
            name for sample in family.samples for name in sample.labels if name != "le"
        }
        for family in families
    }
    page = {
        row["name"]: set(re.findall(r"`([a-z_]+)`", row["labels"]))
        for row in ROW.finditer(PAGE.read_text())
    }

    assert found == page


def test_what_is_there_is_told(our_redis):
    app.loader.import_default_modules()
    everything_at_once(our_redis)
    our_redis.lpush("kie", "one", "two")
    our_redis.lpush("kie\x06\x169", "three")
    our_redis.lpush(keys.quarantine("kie"), "four")
    our_redis.hset("unacked", "tag", "five")
    liveness.heard("upkeep")
    liveness.report()
    found = scrape()

    assert found["jobs_total", "bitrix.create_deal", "created"] == 1
    assert found["job_queue_length", "kie"] == 4
    assert found["job_queue_length", "x"] == 0
    assert found["jobs_unacknowledged",] == 1
    assert found["jobs_parked", "none", "Scheduled"] == 1
    assert 0 <= found["jobs_parked_oldest_age_seconds", "none", "Scheduled"] < 60
    assert found["jobs_parked_overdue_seconds",] == 0
    assert found["dead_letters_open", "bitrix.create_deal"] == 1
    assert found["dead_letters_total", "bitrix.create_deal", "InvalidData"] == 1
    assert found["compensations_owed",] == 0
    assert found["gate_state", "bitrix"] == 0
    assert found["gate_budget_remaining", "bitrix"] > 0
    assert found["canary_age_seconds", "upkeep"] < 60
    assert ("canary_age_seconds", "kie") not in found  # there is no key for it here
    assert found["quarantine_suspects", "kie"] == 1
    assert found["spool_letters", "elsewhere", "waiting"] == 2
    assert found["spool_letters", "elsewhere", "torn"] == 1
    assert found["workers_seen",] == 1
    assert found["redis_up",] == 1

    liveness.leave()

    assert scrape()["workers_seen",] == 0


def test_what_has_to_be_noticed_the_first_time_is_there_before(our_redis):
    found = scrape()

    assert found["refunds_total",] == found["checkpoints_total",] == 0
    assert found["unclassified_errors_total", "kie"] == 0
    assert found["unclassified_errors_total", "none"] == 0
    assert found["jobs_total", "video.send", "dead"] == 0
    assert found["canary_age_seconds", "upkeep"] == float("inf")  # beat or worker are missing


@pytest.mark.parametrize(
    ("close", "value"),
    [
        (lambda gate: gate.pause(by="ann"), 3),
        (lambda gate: gate.hold_credential("code"), 3),
        (lambda gate: [gate.report_failure(gate.admit()) for _ in range(3)], 2),
    ],
    ids=["paused", "held", "open"],
)
def test_a_closed_gate_is_told_by_its_number(our_redis, close, value):
    from admin.view import gate_of
    from config.services import bitrix

    close(gate_of(bitrix(settings())))

    assert scrape()["gate_state", "bitrix"] == value


def test_the_spool_of_a_host_is_known_until_it_is_empty(our_redis, tmp_path):
    host, none = liveness.own_spool()
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "dead-letters.jsonl").write_text("{}\n{}\n")
    liveness.report()

    assert none == Backlog(0, 0)
    assert liveness.spools() == {host: Backlog(2, 0)}

    (folder / "dead-letters.jsonl").rename(folder / "dead-letters.corrupt")
    liveness.report()

    assert liveness.spools() == {host: Backlog(0, 2)}

    (folder / "dead-letters.corrupt").unlink()
    liveness.report()

    assert liveness.spools() == {}


def test_without_redis_it_says_so_and_what_lies_here(monkeypatch, tmp_path, our_redis):
    host, _ = liveness.own_spool()
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "dead-letters.jsonl").write_text("{}\n")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    for known in (settings, connection.redis):
        known.cache_clear()

    assert scrape() == {
        ("redis_up",): 0,
        ("spool_letters", host, "waiting"): 1,
        ("spool_letters", host, "torn"): 0,
    }


@pytest.fixture
def redis_of_ours(our_redis, own_redis, monkeypatch):
    """A server that may be limited, or forbidden something, and that our code finds."""
    monkeypatch.setenv("REDIS_URL", own_redis.url)
    _forget()
    with own_redis.client() as client:
        yield client


def memory() -> dict[str, float]:
    return {name: value for (name, *_), value in scrape().items() if name.startswith("redis_mem")}


def test_how_full_redis_is_is_told_in_bytes(redis_of_ours):
    redis_of_ours.config_set("maxmemory", "100mb")
    redis_of_ours.set("ballast", b"x" * 10_000_000)
    found = memory()

    assert found["redis_memory_limit_bytes"] == 100 * 2**20
    assert found["redis_memory_used_bytes"] > 10_000_000


def test_a_redis_without_a_limit_has_that_of_its_host(redis_of_ours):
    redis_of_ours.config_set("maxmemory", 0)
    of_the_host = redis_of_ours.info("memory")["total_system_memory"]

    assert memory()["redis_memory_limit_bytes"] == of_the_host > 0


def test_a_redis_that_does_not_tell_how_full_it_is_hides_nothing_else(redis_of_ours, caplog):
    redis_of_ours.execute_command("ACL", "SETUSER", "default", "-info")
    found = scrape()

    assert memory() == {}
    assert found["redis_up",] == 1
    assert found["job_queue_length", "kie"] == 0
    assert "left out" not in caplog.text


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({}, {}),
        ({"used_memory": 5}, {"redis_memory_used_bytes": 5}),
        ({"used_memory": 5, "maxmemory": 0}, {"redis_memory_used_bytes": 5}),
        (
            {"used_memory": 5, "maxmemory": 0, "total_system_memory": 0},
            {"redis_memory_used_bytes": 5},
        ),
        ({"used_memory": "5M", "maxmemory": "none"}, {}),
    ],
    ids=["nothing", "no limit", "without limit", "unknown host", "in words"],
)
def test_what_a_managed_redis_leaves_out_is_left_out(our_redis, monkeypatch, told, shown):
    monkeypatch.setattr(Redis, "info", lambda *_: told)

    assert memory() == shown


@pytest.mark.services
def test_what_the_runbook_says_of_a_full_redis_works_as_it_is_written(redis_of_ours, own_redis):
    if shutil.which("redis-cli") is None:
        missing = "redis-cli is not installed (Debian: redis-tools)"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(missing)
    app.loader.import_default_modules()
    told = {"args": (), "kwargs": {}, "error": InvalidData("why"), "queue": "x", "headers": {}}
    failures.bury(failures.letter("job", task="bitrix.create_deal", **told))
    redis_of_ours.lpush("kie", "one")
    redis_of_ours.hset(keys.PARKED, "two", "message")
    redis_of_ours.set(app.backend.get_key_for_task("a b"), "done")
    section = RUNBOOK.read_text().partition("\n## RedisNearlyFull\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    (redis-cli (?:.*\|\n)?.*)$", section, re.MULTILINE)

    said = {
        command: subprocess.run(
            ["bash", "-c", command.replace("redis-cli", f"redis-cli -p {own_redis.port}")],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for command in commands
    }

    sizes = [int(text) for command, text in said.items() if "MEMORY USAGE" in command]
    (results,) = (int(text) for command, text in said.items() if "wc -l" in command)
    assert len(sizes) == 3
    assert results == 1
    assert redis_of_ours.config_get("maxmemory")["maxmemory"] == str(1200 * 2**20)
    assert not list(redis_of_ours.scan_iter("perennial:result:*"))
    assert redis_of_ours.exists("kie", keys.PARKED, "perennial:dead:letters") == 3


def test_a_scrape_asks_no_more_where_more_is_parked_and_dead(our_redis):
    def commands() -> int:
        before = our_redis.info("stats")["total_commands_processed"]
        exposition()
        return our_redis.info("stats")["total_commands_processed"] - before

    def more(count: int) -> None:
        for _ in range(count):
            job = str(time.monotonic_ns())
            task = app.tasks["bitrix.create_deal"]
            task.apply_async(kwargs={"order_id": job, "title": "x"}, countdown=3600)
            told = {"args": (), "kwargs": {}, "queue": "bitrix", "headers": {}}
            error = InvalidData("why")
            failures.bury(failures.letter(job, task="bitrix.create_deal", error=error, **told))

    app.loader.import_default_modules()
    more(2)
    exposition()
    few = commands()
    more(100)

    assert commands() == few
    assert scrape()["jobs_parked", "none", "Scheduled"] == 102
