"""Links: remembered once, moved forward only, told apart from what is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.exc import StatementError

from storage import database as storage_database
from storage import effects, links

pytestmark = pytest.mark.usefixtures("database")

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOON + timedelta(microseconds=1)
EARLIER = NOON - timedelta(days=1)


def remember(entity="deal", local_id="7", remote_id="70", **columns):
    with storage_database.transaction() as connection:
        links.remember(connection, entity, local_id, remote_id, **columns)


def test_unknown_link_is_none():
    assert links.get("deal", "7") is None


def test_remembered_link_is_found():
    remember(digest="abc", version=NOON, given=["TITLE"], awaiting="u1")

    link = links.get("deal", "7")
    assert (link.entity, link.local_id, link.remote_id) == ("deal", "7", "70")
    assert (link.digest, link.version, link.accepted) == ("abc", NOON, None)
    assert (link.given, link.awaiting, link.gone, link.remote) == (("TITLE",), "u1", False, None)
    assert links.get("contact", "7") is None


def test_link_is_remembered_with_its_effect_or_not_at_all():
    def fails_after(connection, result):
        links.remember(connection, "deal", "7", result["deal_id"])
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        effects.once("deal:7", lambda: {"deal_id": "70"}, owner="o", lease=60, record=fails_after)
    assert links.get("deal", "7") is None
    assert effects.get("deal:7").state == "intended"


def test_remembering_again_changes_the_twin_and_only_what_is_named():
    remember(digest="abc", version=NOON, given=[])
    links.gone("deal", "70", NOON)
    remember(remote_id="71", version=EARLIER, given=None)

    link = links.get("deal", "7")
    assert (link.remote_id, link.gone, link.digest) == ("71", False, "abc")
    assert (link.version, link.given) == (NOON, None)


@pytest.mark.parametrize("column", ["version", "accepted"])
@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        pytest.param([NOON], NOON, id="first"),
        pytest.param([NOON, LATER], LATER, id="forward"),
        pytest.param([NOON, EARLIER], NOON, id="not back"),
        pytest.param([NOON, None], NOON, id="not cleared"),
        pytest.param(
            [NOON, LATER.astimezone(timezone(timedelta(hours=-9)))], LATER, id="another zone"
        ),
    ],
)
def test_versions_only_move_forward(column, moments, expected):
    remember()
    for moment in moments:
        assert links.applied("deal", "7", **{column: moment})

    assert getattr(links.get("deal", "7"), column) == expected


def test_newest_of_many_concurrent_updates_wins():
    remember()
    moments = [NOON + timedelta(seconds=second) for second in range(32)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda m: links.applied("deal", "7", version=m), reversed(moments)))

    assert links.get("deal", "7").version == moments[-1]


def test_applied_leaves_clears_and_replaces():
    remember(given=["TITLE"], awaiting="u1")
    links.applied("deal", "7", version=NOON)
    left = links.get("deal", "7")
    links.applied("deal", "7", given=["TITLE", "STAGE"])
    replaced = links.get("deal", "7")
    links.applied("deal", "7", given=None, awaiting=None)
    cleared = links.get("deal", "7")

    assert (left.given, left.awaiting) == (("TITLE",), "u1")
    assert (replaced.given, replaced.awaiting) == (("TITLE", "STAGE"), "u1")
    assert (cleared.given, cleared.awaiting, cleared.version) == (None, None, NOON)


def test_nothing_given_is_not_the_same_as_no_create_to_come():
    remember(given=[])

    assert links.get("deal", "7").given == ()


def test_update_of_no_link_says_so():
    assert links.applied("deal", "7", version=NOON) is False
    assert links.saw("deal", "70", {}, NOON) is False
    assert links.gone("deal", "70", NOON) is False


def test_naive_time_is_refused():
    with pytest.raises(StatementError, match="without a time zone"):
        remember(version=NOON.replace(tzinfo=None))


def test_portal_is_believed_in_its_own_order():
    remember()
    assert links.saw("deal", "70", {"ID": "70", "TITLE": "ünï\x00"}, NOON)
    assert links.saw("deal", "70", {"ID": "old"}, EARLIER) is False
    seen = links.get("deal", "7")
    assert links.gone("deal", "70", LATER)
    assert links.saw("deal", "70", {"ID": "old"}, NOON) is False
    gone = links.get("deal", "7")
    assert links.saw("deal", "70", {"ID": "back"}, LATER + timedelta(hours=1))
    back = links.get("deal", "7")

    assert (seen.remote, seen.seen_at, seen.gone) == ({"ID": "70", "TITLE": "ünï\x00"}, NOON, False)
    assert (gone.remote, gone.seen_at, gone.gone) == (seen.remote, LATER, True)
    assert (back.remote, back.gone) == ({"ID": "back"}, False)


def test_waiting_deals_are_listed_oldest_first_without_the_gone():
    for local_id in ("3", "1", "2"):
        remember(local_id=local_id, remote_id=f"{local_id}0", awaiting="u1")
    remember(local_id="4", awaiting="u2")
    links.gone("deal", "10", NOON)

    assert [link.local_id for link in links.awaiting("u1")] == ["3", "2"]
