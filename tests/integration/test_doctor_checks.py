"""The doctor's checks that need no worker, on a Redis and on folders of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.api import forget

from admin import doctor


@pytest.fixture
def clinic(api_settings, own_redis, monkeypatch, tmp_path) -> Iterator[pytest.MonkeyPatch]:
    api_settings.setenv("REDIS_URL", own_redis.url)
    api_settings.setenv("MEDIA_DIR", str(tmp_path / "media"))
    api_settings.setenv("KIE_API_KEY", "key")
    # Nobody works here, and each look for somebody takes a second.
    monkeypatch.setattr(doctor, "consumers", lambda: iter(()))
    forget()
    return api_settings


def problems() -> dict[str, str]:
    """What the doctor says of each check that is not well, but for want of workers."""
    said: dict[str, str] = {}
    for each in doctor.examine():
        if each.state == doctor.PROBLEM and each.name != "persistence":
            said[each.name] = said.get(each.name, "") + f"{each.found}: {each.advice}"
    return said


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("maxmemory", "1", "it is full: raise maxmemory"),
        ("min-replicas-to-write", "1", "min-replicas-to-write asks for: start them"),
        ("replicaof", "127.0.0.1 1", "REDIS_URL has to name the master"),
    ],
    ids=["full", "without its replicas", "a replica"],
)
def test_a_redis_that_takes_no_writes_is_a_problem_and_the_rest_is_still_told(
    clinic, own_redis, option, value, words
):
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        if option == "replicaof":
            client.replicaof(*value.split())
        else:
            client.config_set(option, value)
    said = problems()

    assert words in said.pop("writes")
    assert set(said) <= {"memory"}
    assert "letters" in {each.name for each in doctor.examine() if each.state == doctor.OK}


def test_a_redis_that_takes_writes_has_no_problem(clinic):
    assert problems() == {}


@pytest.mark.parametrize("setting", ["SPOOL_DIR", "MEDIA_DIR"])
def test_a_folder_that_cannot_be_written_is_a_problem(clinic, tmp_path, setting):
    (tmp_path / "file").touch()
    clinic.setenv(setting, str(tmp_path / "file" / "folder"))
    forget()
    said = problems()

    assert f"mend {setting}" in said["folders"]
    assert set(said) == {"folders"}


def test_a_folder_that_is_yet_to_be_made_is_well_and_is_not_made(clinic, tmp_path: Path):
    clinic.setenv("SPOOL_DIR", str(tmp_path / "to" / "come"))
    forget()

    assert [each.state for each in doctor.folders()] == [doctor.OK, doctor.OK]
    assert not (tmp_path / "to").exists()


def test_where_no_videos_are_made_nobody_asks_for_their_folder(clinic, tmp_path):
    clinic.delenv("KIE_API_KEY")
    forget()

    assert [each.found for each in doctor.folders()] == ["SPOOL_DIR can be written"]
