"""What a letter takes over from the message and the worker it died in."""

from __future__ import annotations

import pytest
from kombu.message import Message

from config.settings import settings
from reliability.redaction import redaction
from tasks import failures


def died(**headers):
    facts = {"task": "nobody.knows", "args": (), "kwargs": {}, "queue": "bitrix"}
    return failures.letter("job-1", error=ValueError("x"), headers=headers, **facts)


@pytest.fixture(autouse=True)
def _worker(nowhere):
    """The settings of a worker."""
    nowhere.setenv("RELEASE", "1.4.2")
    settings.cache_clear()


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({}, 1),
        ({"payload_version": 3}, 3),
        ({"payload_version": "3"}, 0),
        ({"payload_version": None}, 0),
        ({"payload_version": True}, 0),
    ],
    ids=["none", "given", "text", "null", "truth"],
)
def test_a_letter_says_which_version_its_payload_has(headers, version):
    """0 is none that anybody reads: the job is not taken for what it may not be."""
    assert died(**headers).payload_version == version


@pytest.mark.parametrize(
    ("count", "replays"), [(2, 2), (True, 0), (-1, 0), ("2", 0), (10**18, 0), (1.5, 0)]
)
def test_a_count_of_replays_that_makes_no_sense_is_none(count, replays):
    assert died(replays=count).replays == replays


def test_what_a_foreign_message_gives_for_names_becomes_text():
    """A search joins them, and no index has a place for anything else."""
    names = {"task": "nobody.knows", "queue": 7, "trace_id": [1]}
    dead = failures.letter(5, args=(), kwargs={}, error=ValueError("x"), headers={}, **names)

    assert (dead.message_id, dead.original_queue, dead.metadata.trace_id) == ("5", "7", "[1]")


@pytest.mark.parametrize(
    ("headers", "flaw"),
    [
        ({}, ""),
        ({"id": 5}, "its id is no text"),
        ({"eta": "tomorrow"}, "its eta is no time: tomorrow"),
        ({"expires": "9999-12-31T23:59:59-14:00"}, "its expires is no time: 9999"),
        ({"expires": "2026-11-22T12:00:00Z"}, ""),
    ],
)
def test_what_celery_would_make_an_endless_job_of_is_known_before(headers, flaw):
    message = Message(
        b"[[], {}, {}]",
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "nobody.knows", "id": "job-1"} | headers,
    )

    assert failures.flaw_of(message).startswith(flaw)
    assert bool(failures.flaw_of(message)) == bool(flaw)


@pytest.mark.parametrize("before", [0, 150, 170])
def test_no_half_of_a_secret_is_left_where_a_failure_is_cut(nowhere, before):
    nowhere.setenv("ADMIN_TOKEN", "s3cret-token-of-the-admin")
    settings.cache_clear()
    redaction.cache_clear()
    facts = {"task": "nobody.knows", "args": (), "kwargs": {}, "queue": "bitrix", "headers": {}}
    error = ValueError("x" * before + " s3cret-token-of-the-admin")
    dead = failures.letter("job-1", error=error, **facts)
    redaction.cache_clear()

    assert "s3cret" not in str(dead.history)


def test_a_letter_says_in_which_release_its_job_died():
    assert died().release == "1.4.2"
