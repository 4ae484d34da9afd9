"""What a letter takes over from the message and the worker it died in."""

from __future__ import annotations

import pytest

from config.settings import settings
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


def test_a_letter_says_in_which_release_its_job_died():
    assert died().release == "1.4.2"
