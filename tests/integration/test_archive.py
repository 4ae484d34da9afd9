"""Dead letters leave Redis for the archive: the oldest first, none lost, none twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from config.settings import settings
from reliability.dead_letters import (
    CHUNK,
    Body,
    Compensation,
    DeadLetters,
    Filter,
    Letter,
    Metadata,
)
from storage import archive
from storage import database as storage_database
from storage.archive import Archived, Which
from storage.models import archived_letters
from tasks import retention

DAY = timedelta(days=1)
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def letter(message_id="job-1", *, days=0.0, error_type="InvalidData", **facts):
    """One that died *days* ago."""
    facts = {
        "original_queue": "bitrix",
        "error_message": "the field is unknown",
        "message_body": Body("bitrix.create_deal", (), {"order_id": "17"}),
        "metadata": Metadata(failed_at=datetime.now(UTC) - days * DAY),
    } | facts
    return Letter(message_id=message_id, error_type=error_type, **facts)


def record(message_id="job-1", *, minute=0, **facts):
    facts = {
        "state": "open",
        "task": "bitrix.create_deal",
        "error_type": "InvalidData",
        "fingerprint": "f1",
        "letter": '{"message_id": "job-1"}',
    } | facts
    return Archived(message_id=message_id, failed_at=NOON + timedelta(minutes=minute), **facts)


def ids(letters):
    return [each.message_id for each in letters]


@pytest.fixture
def dead(redis_client):
    return DeadLetters(redis_client, prefix="t:")


# Trimming


def trim(dead, **bounds):
    """Trim into a list; return it."""
    kept = []
    dead.trim(lambda letters: kept.extend(ids(letters)), **({"days": 30, "kept": 100} | bounds))
    return kept


def test_letters_past_their_time_leave_the_oldest_first(dead):
    for days in (29, 31, 33, 32):
        dead.bury(letter(f"{days} days", days=days))

    assert trim(dead) == ["33 days", "32 days", "31 days"]
    assert ids(dead.each()) == ["29 days"]
    assert trim(dead) == []


def test_letters_beyond_the_number_leave_the_oldest_first_whatever_their_state(dead):
    for days in range(6):
        dead.bury(letter(f"{days} days", days=days))
    dead.discard("5 days")
    dead.discard("0 days")
    dead.mark_replayed(dead.get("4 days"))

    assert trim(dead, kept=3) == ["5 days", "4 days", "3 days"]
    assert ids(dead.each(Filter("all"))) == ["0 days", "1 days", "2 days"]


def test_one_run_takes_no_more_than_it_is_told_to(dead):
    for days in range(40, 45):
        dead.bury(letter(f"{days} days", days=days))

    assert trim(dead, at_most=2) == ["44 days", "43 days"]
    assert trim(dead, at_most=2) == ["42 days", "41 days"]


def test_more_letters_than_one_read_holds_all_leave(dead):
    count = 2 * CHUNK + 10
    moment = Metadata(failed_at=datetime.now(UTC) - 40 * DAY)
    for n in range(count):
        dead.bury(letter(f"job-{n}", metadata=moment))

    assert len(set(trim(dead))) == count
    assert dead.count(Filter("all")) == 0


@pytest.mark.parametrize(
    ("state", "stays"),
    [("none", False), ("needed", True), ("sent", True), ("done", False), ("failed", False)],
)
def test_letter_whose_compensation_is_owed_stays(dead, state, stays):
    dead.bury(letter("owed", days=50, compensation=Compensation("needed", {"order_id": "17"})))
    dead.compensate("owed", state)
    dead.bury(letter("other", days=40))

    assert trim(dead, at_most=1) == (["other"] if stays else ["owed"])


def test_nothing_of_a_letter_is_left_behind(dead, redis_client):
    dead.bury(letter("failed", days=40, compensation=Compensation("failed")))
    dead.bury(letter("discarded", days=40))
    dead.discard("discarded")
    trim(dead)

    left = set(redis_client.keys("*"))
    assert left == {"t:perennial:dead:total", "t:perennial:dead:tasks"}
    assert dead.open_by_task() == {"bitrix.create_deal": 0}
    assert dead.totals() == {("bitrix.create_deal", "InvalidData"): 2}


def test_letter_that_changes_while_it_is_archived_stays_for_the_next_time(dead):
    dead.bury(letter("job-1", days=40))
    kept = []

    def archive_slowly(letters):
        kept.extend((each.message_id, each.state) for each in letters)
        dead.discard("job-1")  # the first time only: it is settled then

    first = dead.trim(archive_slowly, days=30, kept=100)
    second = dead.trim(archive_slowly, days=30, kept=100)

    assert (first, second) == (0, 1)
    assert kept == [("job-1", "open"), ("job-1", "discarded")]


def test_what_the_archive_refuses_stays(dead):
    dead.bury(letter(days=40))

    def refuse(_letters):
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011  it is our own
        dead.trim(refuse, days=30, kept=100)
    assert dead.get("job-1").state == "open"


def test_redis_that_is_full_can_be_trimmed(own_redis):
    client = own_redis.client()
    dead = DeadLetters(client)
    dead.bury(letter(days=40))
    client.set("ballast", b"x" * 2_000_000)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")

    assert trim(dead) == ["job-1"]
    assert dead.count(Filter("all")) == 0


# From Redis to SQL


@pytest.fixture
def both(redis_server, redis_client, database, monkeypatch):
    """The dead letters of the process, and an archive."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DEAD_LETTER_DAYS", "7")
    monkeypatch.setenv("DEAD_LETTERS_KEPT", "2")
    settings.cache_clear()
    store = DeadLetters(redis_client)
    monkeypatch.setattr(retention, "dead_letters", lambda: store)
    return store


def test_what_is_trimmed_is_whole_in_the_archive(both):
    raw = letter(days=8, headers={"nul": "a\0b", "emoji": "🙂"}, traceback="Traceback …")
    both.bury(raw)
    both.discard("job-1", by="anna", note="twice")
    before = both.get("job-1")

    assert retention.trim() == 1
    found = archive.get("job-1")
    assert Letter.from_json(found.letter) == before
    assert (found.state, found.task, found.error_type, found.fingerprint, found.failed_at) == (
        "discarded",
        "bitrix.create_deal",
        "InvalidData",
        before.fingerprint,
        before.metadata.failed_at,
    )


def test_settings_say_what_is_trimmed(both):
    for days in (1, 2, 3, 8):
        both.bury(letter(f"{days} days", days=days))

    assert retention.trim() == 2
    assert ids(both.each()) == ["1 days", "2 days"]
    assert ids(archive.each()) == ["3 days", "8 days"]


def test_crash_between_archive_and_redis_loses_and_doubles_nothing(both):
    written = [f"job-{n}" for n in range(5)]
    for n, message_id in enumerate(written):
        both.bury(letter(message_id, days=8 + n))

    def crash(letters):
        retention.keep(letters)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both.trim(crash, days=7, kept=2)
    between = ids(both.each()), ids(archive.each())
    trimmed = retention.trim()

    assert between == (written, written)
    assert trimmed == 5
    assert (ids(both.each()), ids(archive.each())) == ([], written)


def test_job_that_dies_once_more_is_archived_by_each_of_its_deaths(both):
    both.bury(letter(days=9))
    retention.trim()
    both.bury(letter(days=8, error_type="NotFound", replays=1))
    retention.trim()

    assert [each.error_type for each in archive.each()] == ["NotFound", "InvalidData"]
    assert archive.get("job-1").error_type == "NotFound"


# The archive


@pytest.mark.usefixtures("database")
def test_unknown_letter_is_none():
    assert archive.get("nobody") is None
    assert list(archive.each()) == []
    archive.keep([])


@pytest.mark.usefixtures("database")
def test_letter_that_is_kept_again_is_brought_up_to_date():
    archive.keep([record()])
    archive.keep([replace(record(), state="discarded", letter="{}")])

    assert list(archive.each()) == [replace(record(), state="discarded", letter="{}")]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Which(), ["c", "b", "a"]),
        (Which(state="discarded"), ["b"]),
        (Which(task="video.send"), ["a"]),
        (Which(error_type="NotFound"), ["c"]),
        (Which(fingerprint="f2"), ["c"]),
        (Which(since=NOON + timedelta(minutes=1)), ["c", "b"]),
        (Which(until=NOON + timedelta(minutes=1)), ["a"]),
        (Which(task="bitrix.create_deal", error_type="InvalidData"), ["b"]),
        (Which(task="nobody's"), []),
    ],
    ids=["all", "state", "task", "error", "group", "since", "until", "both", "none"],
)
def test_letters_are_found_newest_first(which, expected):
    archive.keep(
        [
            record("a", task="video.send"),
            record("c", minute=2, error_type="NotFound", fingerprint="f2"),
            record("b", minute=1, state="discarded"),
        ]
    )

    assert ids(archive.each(which)) == expected


@pytest.mark.usefixtures("database")
def test_many_letters_of_one_moment_are_all_found():
    written = [f"{n:04}" for n in range(2 * archive.CHUNK + 5)]
    archive.keep([record(message_id) for message_id in written])

    assert ids(archive.each()) == written[::-1]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", ["a\0b", "half \ud83d of a pair"], ids=["nul", "surrogate"])
def test_name_that_no_database_takes_is_kept_all_the_same(name):
    archive.keep([record(name, task=name, error_type=name, fingerprint=name)])

    assert archive.get(name).letter == record().letter
    assert len(list(archive.each(Which(task=name)))) == 1


@pytest.mark.usefixtures("database")
def test_time_of_archiving_is_kept():
    archive.keep([record()])

    with storage_database.read() as connection:
        at = connection.execute(archived_letters.select()).one().archived_at
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=1)
