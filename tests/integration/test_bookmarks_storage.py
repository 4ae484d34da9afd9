"""Crawls of bookmarks: each is stored and counted once, whoever stops, dies, races or comes late."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from classifiers.database import classify
from classifiers.errors import DatabaseError, InternalError, InvalidData, Pending
from storage import bookmarks
from storage import database as storage_database
from storage.bookmarks import Bookmark, Checkpoint, Session, Skipped
from storage.models import bookmarks as table
from storage.models import crawl_sessions as crawls

pytestmark = pytest.mark.usefixtures("database")

USER = "7"
JOB, OTHER = "job-1", "job-2"
FIRST, SECOND = Checkpoint(), Checkpoint("page-2", 1, 0)
MIDDLE = Checkpoint("page-2", 1, 10)
POSTED = datetime(2026, 11, 22, 10, tzinfo=UTC)
EARLIER, LATER = timedelta(hours=-1), timedelta(hours=1)


def mark(tweet_id, said="hello", **options):
    told = {"text": said, "author_id": "70", "posted_at": POSTED}
    return Bookmark(str(tweet_id), raw={"id": str(tweet_id), "text": said}, **(told | options))


def marks(*tweet_ids):
    return [mark(tweet_id) for tweet_id in tweet_ids]


def invalid(key, reason="no_text", **options):
    told = {"tweet_id": None, "detail": "it has no text", "raw": {"id": "9"}}
    return Skipped(key, reason=reason, **(told | options))


def begin(session_id=None, job=JOB, *, user_id=USER, asked_at=None, wait=None):
    return bookmarks.begin(user_id, session_id, job, asked_at, wait)


def refuse(error):
    """Skip nothing."""
    raise error


def skip(error):
    """Skip what is one row's fault."""
    if isinstance(classify(error), InvalidData):
        return "database"
    raise error


def keep(session, items=(), then=None, *, skipped=(), over=False, may_skip=refuse):
    at = session.checkpoint
    then = then or Checkpoint(at.page_token, at.page, at.in_page + 10)
    return bookmarks.keep(session, items, skipped, then, over=over, may_skip=may_skip)


def reach(state, **options):
    """A session of the user in *state*."""
    session = begin(**options)
    if state == "completed":
        return keep(session, over=True)
    if state != "running":
        bookmarks.cancel(session.id)
    if state == "cancelled":
        return keep(session)
    return bookmarks.get(session.id)


def refuse_rows(where):
    """Have the database refuse bookmarks, as it would a broken value."""
    with storage_database.write() as connection:
        if connection.dialect.name == "postgresql":
            constraint = f"ALTER TABLE bookmarks ADD CONSTRAINT refuses CHECK (NOT ({where}))"
            connection.execute(text(constraint))
        else:
            trigger = (
                "CREATE TRIGGER refuses BEFORE INSERT ON bookmarks "
                f"WHEN {where.replace('tweet_id', 'NEW.tweet_id')} "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
            connection.execute(text(trigger))


def accept_rows():
    with storage_database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ALTER TABLE bookmarks DROP CONSTRAINT IF EXISTS refuses"))
        else:
            connection.execute(text("DROP TRIGGER IF EXISTS refuses"))


@pytest.fixture(autouse=True)
def _acceptance(database):
    yield
    accept_rows()


def stored():
    """The bookmarks of the user, by id."""
    with storage_database.read() as connection:
        rows = connection.execute(select(table).where(table.c.user_id == USER))
        return {row.tweet_id: row for row in rows}


def counts(session):
    return session.stored, session.known, session.skipped, session.pages


# ── Which session ────────────────────────────────────────────────────────────────────────────


def test_first_crawl_begins_at_the_first_page():
    session = begin()

    assert session == bookmarks.get(JOB) == bookmarks.latest(USER)
    assert (session.id, session.user_id, session.job, session.state) == (JOB, USER, JOB, "running")
    assert session.checkpoint == FIRST
    assert counts(session) == (0, 0, {}, 0)
    assert (session.waits, session.waited, session.last_wait) == (0, 0.0, None)
    assert session.ended_at is None


@pytest.mark.parametrize("job", [JOB, OTHER], ids=["its job again", "another job"])
@pytest.mark.parametrize("session_id", [None, JOB], ids=["unnamed", "named"])
def test_unfinished_crawl_goes_on_from_its_checkpoint(session_id, job):
    left = keep(begin(), marks(1), MIDDLE)
    session = begin(session_id, job)

    assert session == replace(left, job=job, updated_at=session.updated_at)


@pytest.mark.parametrize("session_id", [None, JOB], ids=["unnamed", "named"])
def test_cancelled_crawl_goes_on_from_its_checkpoint(session_id):
    keep(begin(), marks(1), MIDDLE)
    bookmarks.cancel(JOB)
    bookmarks.end_cancelled(JOB)
    session = begin(session_id, OTHER)

    assert (session.id, session.state, session.job) == (JOB, "running", OTHER)
    assert (session.checkpoint, session.ended_at, session.stored) == (MIDDLE, None, 1)


@pytest.mark.parametrize("state", ["cancelling", "cancelled"])
@pytest.mark.parametrize("job", [JOB, OTHER], ids=["its job again", "another job"])
@pytest.mark.parametrize(
    ("since", "expected"), [(EARLIER, "cancelled"), (timedelta(0), "cancelled"), (LATER, "running")]
)
def test_job_that_was_asked_for_before_the_cancellation_is_cancelled_too(
    state, job, since, expected
):
    asked_to_end = reach(state).ended_at
    session = begin(job=job, asked_at=asked_to_end + since)

    assert (session.id, session.state) == (JOB, expected)
    assert session.ended_at == (asked_to_end if expected == "cancelled" else None)
    assert session == bookmarks.get(JOB)


def test_completed_crawl_is_left_as_it_is_for_its_own_job():
    completed = reach("completed")

    assert begin() == begin(JOB, OTHER) == completed


@pytest.mark.parametrize(
    ("since", "is_new"),
    [
        pytest.param(EARLIER, False, id="asked for before it began"),
        pytest.param(LATER, True, id="asked for later"),
        pytest.param(None, True, id="asked for nobody knows when"),
    ],
)
def test_completed_crawl_serves_who_asked_before_it_began(since, is_new):
    completed = reach("completed")
    session = begin(job=OTHER, asked_at=since and completed.begun_at + since)

    assert session == (bookmarks.get(OTHER) if is_new else completed)


def test_last_crawl_decides_what_follows():
    reach("cancelled")
    completed = reach("completed", session_id="s2")

    assert begin(job=OTHER, asked_at=completed.begun_at + LATER).id == OTHER


def test_crawl_that_is_named_and_unknown_is_begun_under_that_name():
    assert begin("s1").id == "s1"
    assert bookmarks.get("s1").job == JOB


@pytest.mark.parametrize("session_id", ["s1", None], ids=["named", "of the job"])
def test_crawl_of_another_user_is_refused(session_id):
    before = begin(session_id)
    with pytest.raises(InvalidData, match="another user"):
        begin(session_id, user_id="8")

    assert bookmarks.sessions() == [before]


@pytest.mark.parametrize("state", ["running", "cancelling"])
def test_second_crawl_of_a_user_waits_for_the_end_of_the_first(state):
    before = reach(state)
    with pytest.raises(Pending):
        begin("s2", OTHER)

    assert bookmarks.sessions() == [before]


def test_cancelled_crawl_waits_for_the_end_of_the_one_begun_since():
    reach("cancelled")
    begin("s2", OTHER)
    with pytest.raises(Pending):
        begin(JOB)

    assert bookmarks.get(JOB).state == "cancelled"


def test_users_do_not_wait_for_each_other():
    sessions = [begin(job=f"job-{user}", user_id=str(user)) for user in range(3)]

    assert [session.user_id for session in sessions] == ["0", "1", "2"]


def test_one_of_many_that_begin_at_once_begins():
    def work(number):
        try:
            return begin(f"s{number}", f"job-{number}")
        except Pending as pending:
            return pending

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(work, range(16)))

    assert [each for each in outcomes if isinstance(each, Session)] == bookmarks.sessions()
    assert len(bookmarks.sessions()) == 1


def test_database_allows_one_open_session_of_a_user():
    begin()
    with storage_database.read() as connection:
        row = dict(connection.execute(select(crawls)).mappings().one())

    with pytest.raises(IntegrityError), storage_database.write() as connection:
        connection.execute(insert(crawls).values(row | {"id": "s2", "state": "cancelling"}))


# ── Waits and notes ──────────────────────────────────────────────────────────────────────────


def test_each_wait_is_counted_once():
    for wait in [("w1", 900.0), ("w1", 900.0), None, ("w2", 1.5), ("w2", 1.5)]:
        session = begin(wait=wait)

    assert (session.waits, session.waited, session.last_wait) == (2, 901.5, "w2")


@pytest.mark.parametrize("state", ["completed", "cancelled"])
def test_wait_is_not_counted_where_nothing_is_left_to_do(state):
    ended = reach(state)

    assert begin(asked_at=ended.ended_at, wait=("w1", 900.0)) == ended


# ── Keeping ──────────────────────────────────────────────────────────────────────────────────


def test_bookmarks_and_checkpoint_are_kept_together():
    session = keep(begin(), marks(1, 2), MIDDLE)
    row = stored()["1"]

    assert session == bookmarks.get(JOB)
    assert (session.checkpoint, session.stored) == (MIDDLE, 2)
    assert (row.text, row.author_id, row.posted_at) == ("hello", "70", POSTED)
    assert row.raw == {"id": "1", "text": "hello"}
    assert (row.session, row.seen_in) == (JOB, JOB)
    assert bookmarks.count(USER) == 2
    assert bookmarks.count("8") == 0


def test_bookmark_without_author_and_time_is_kept():
    keep(begin(), [mark(1, author_id=None, posted_at=None)])

    assert (stored()["1"].author_id, stored()["1"].posted_at) == (None, None)


def test_same_bookmark_of_two_users_is_two():
    keep(begin(), marks(1))
    keep(begin(user_id="8", job=OTHER), marks(1))

    assert (bookmarks.count(USER), bookmarks.count("8")) == (1, 1)


@pytest.mark.parametrize("pages", [[[1, 2], [2, 3]], [[1, 2, 3, 1, 3]]], ids=["pages", "one page"])
def test_what_comes_twice_in_a_crawl_is_counted_once(pages):
    session = begin()
    for page in pages:
        session = keep(session, marks(*page))

    assert (session.stored, session.known) == (3, 0)
    assert stored().keys() == {"1", "2", "3"}


def test_page_that_is_fetched_again_is_counted_once():
    keep(begin(), marks(1, 2), SECOND)
    keep(begin(), marks(3, 4), MIDDLE)
    session = keep(begin(), marks(3, 4, 5), Checkpoint("page-3", 2, 0))

    assert counts(session) == (5, 0, {}, 2)


def test_bookmark_of_an_earlier_crawl_is_known_and_told_anew():
    keep(begin(), marks(1), over=True)
    session = keep(begin(job=OTHER), [mark(1, "edited"), mark(2)])
    again = keep(session, [mark(1, "edited")])

    assert (session.stored, session.known) == (again.stored, again.known) == (1, 1)
    row = stored()["1"]
    assert (row.text, row.raw["text"], row.session, row.seen_in) == ("edited", "edited", JOB, OTHER)
    assert row.updated_at > row.created_at


@pytest.mark.parametrize(
    ("then", "pages"),
    [
        pytest.param(Checkpoint(None, 0, 10), 0, id="within the page"),
        pytest.param(SECOND, 1, id="to the next"),
        pytest.param(Checkpoint(None, 1, 0), 1, id="behind the last"),
    ],
)
def test_page_is_counted_when_it_is_left(then, pages):
    assert keep(begin(), marks(1), then).pages == pages


def test_end_of_the_last_page_completes_the_crawl():
    session = keep(begin(), marks(1), Checkpoint(None, 1, 0), over=True)

    assert (session.state, session.open, session.stored) == ("completed", False, 1)
    assert session.ended_at > session.begun_at


def test_page_without_bookmarks_moves_the_checkpoint():
    assert keep(begin(), [], SECOND).checkpoint == SECOND


@pytest.mark.parametrize(
    "said",
    ["nul\0", "half \ud83d", "\udc00\ud800", "whole \U0001f600"],
    ids=["nul", "half a pair", "wrong order", "whole"],
)
def test_every_text_is_kept_and_its_truth_stays_in_raw(said):
    keep(begin(), [mark(1, said, author_id=said)])
    row = stored()["1"]

    assert row.raw["text"] == said
    plain = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in said)
    assert (row.text, row.author_id) == (plain, plain)


def test_number_that_json_has_not_is_kept_as_a_word():
    item = {"likes": [float("nan"), float("inf"), 1.5]}
    keep(begin(), [mark(1)], skipped=[invalid("k1", raw=item)])

    assert bookmarks.skipped(JOB)[0].raw == {"likes": ["NaN", "Infinity", 1.5]}


def test_hundreds_at_once_are_kept():
    session = keep(begin(), marks(*range(800)))

    assert session.stored == bookmarks.count(USER) == 800


# ── What is left out ─────────────────────────────────────────────────────────────────────────


def test_invalid_items_are_reported_once_and_counted_by_reason():
    items = [invalid("k1"), invalid("k2"), invalid("k3", "no_id", tweet_id="9")]
    session = keep(begin(), marks(1), SECOND, skipped=items[:2])
    session = keep(session, skipped=items)
    found = bookmarks.skipped(JOB)

    assert (session.stored, session.skipped) == (1, {"no_text": 2, "no_id": 1})
    assert [(each.key, each.reason, each.page) for each in found] == [
        ("k1", "no_text", 0),
        ("k2", "no_text", 0),
        ("k3", "no_id", 1),
    ]
    assert (found[2].tweet_id, found[2].detail, found[2].raw) == (
        "9",
        "it has no text",
        {"id": "9"},
    )
    assert (found[2].session_id, found[2].user_id) == (JOB, USER)


def test_same_invalid_item_twice_in_a_page_is_reported_once():
    assert keep(begin(), skipped=[invalid("k1"), invalid("k1")]).skipped == {"no_text": 1}


@pytest.mark.parametrize("raw", [None, 7, "text", [1], {"text": "\0\ud800"}], ids=repr)
def test_whatever_was_in_place_of_a_bookmark_is_kept(raw):
    keep(begin(), skipped=[invalid("k\0", raw=raw, detail="half \ud83d", tweet_id="\udc00")])
    found = bookmarks.skipped(JOB)[0]

    assert (found.raw, found.key, found.detail) == (raw, "k\ufffd", "half \ufffd")


def test_skipped_are_found_by_crawl_and_by_user():
    keep(begin(), skipped=[invalid("k1")], over=True)
    keep(begin(job=OTHER), skipped=[invalid("k1"), invalid("k2")])
    keep(begin(user_id="8", job="job-8"), skipped=[invalid("k3")])

    def keys(*args, **options):
        return [each.key for each in bookmarks.skipped(*args, **options)]

    assert keys(OTHER) == ["k1", "k2"]
    assert keys(user_id=USER) == ["k1", "k1", "k2"]
    assert keys(JOB, USER) == ["k1"]
    assert keys("none") == []


@pytest.mark.parametrize("bad", [["3"], ["1", "3", "5"], ["1", "2", "3", "4", "5"]], ids=len)
def test_bookmark_that_the_database_refuses_is_left_out_alone(bad):
    refuse_rows(f"tweet_id IN ({', '.join(map(repr, bad))})")
    asked = []

    def may_skip(error):
        asked.append(error)
        return skip(error)

    session = keep(begin(), marks(1, 2, 3, 4, 5), MIDDLE, may_skip=may_skip)
    found = bookmarks.skipped(JOB)

    assert (session.stored, session.skipped) == (5 - len(bad), {"database": len(bad)})
    assert session.checkpoint == MIDDLE
    assert stored().keys() == {"1", "2", "3", "4", "5"} - set(bad)
    assert [(each.key, each.tweet_id) for each in found] == [(each, each) for each in bad]
    assert [each.raw for each in found] == [mark(each).raw for each in bad]
    assert len(asked) == len(bad)


def test_refused_bookmark_is_reported_once_however_often_it_comes():
    refuse_rows("tweet_id = '3'")
    session = keep(begin(), marks(2, 3), may_skip=skip)
    session = keep(session, marks(2, 3, 4), may_skip=skip)

    assert counts(session) == (2, 0, {"database": 1}, 0)


def test_reason_for_a_refusal_does_not_quote_the_text():
    refuse_rows("tweet_id = '3'")
    keep(begin(), [mark(3, "very private")], may_skip=skip)

    assert "private" not in bookmarks.skipped(JOB)[0].detail


@pytest.mark.parametrize("answer", [refuse, lambda _: None], ids=["raised", "no reason"])
def test_refusal_that_may_not_be_skipped_keeps_nothing(answer):
    before = begin()
    refuse_rows("tweet_id = '3'")
    with pytest.raises(DBAPIError):
        keep(before, marks(1, 2, 3), skipped=[invalid("k1")], may_skip=answer)

    assert stored() == {}
    assert bookmarks.skipped(JOB) == []
    assert bookmarks.get(JOB) == before


def test_database_in_trouble_skips_no_bookmark():
    before = begin()
    with storage_database.write() as connection:
        connection.execute(text("ALTER TABLE bookmarks RENAME TO elsewhere"))
    try:
        with pytest.raises(DBAPIError) as trouble:
            keep(before, marks(1, 2), may_skip=skip)
    finally:
        with storage_database.write() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO bookmarks"))

    assert isinstance(classify(trouble.value), DatabaseError)
    assert bookmarks.get(JOB) == before


# ── Retrying ─────────────────────────────────────────────────────────────────────────────────


def left_out():
    """A bookmark that the database has refused."""
    refuse_rows("tweet_id = '3'")
    session = keep(begin(), marks(3), over=True, may_skip=skip)
    return session, bookmarks.skipped(JOB)[0]


def test_skipped_bookmark_is_stored_when_the_database_takes_it():
    session, row = left_out()
    accept_rows()

    assert bookmarks.retry(row, mark(3), may_skip=skip)
    assert (stored()["3"].text, stored()["3"].session) == ("hello", JOB)
    assert bookmarks.skipped(JOB) == []
    assert bookmarks.get(JOB) == session


def test_skipped_bookmark_stays_so_while_the_database_refuses_it():
    _, row = left_out()

    assert not bookmarks.retry(row, mark(3), may_skip=skip)
    assert bookmarks.skipped(JOB) == [row]
    with pytest.raises(DBAPIError):
        bookmarks.retry(row, mark(3), may_skip=lambda _: None)


def test_retry_takes_nothing_back_that_a_later_crawl_has_stored():
    _, row = left_out()
    accept_rows()
    keep(begin(job=OTHER), [mark(3, "edited")])

    assert bookmarks.retry(row, mark(3), may_skip=skip)
    assert (stored()["3"].text, stored()["3"].seen_in) == ("edited", OTHER)
    assert bookmarks.skipped(JOB) == []


def test_retry_brings_what_is_newer_than_a_former_crawl_has_stored():
    keep(begin(job=OTHER), [mark(3, "old")], over=True)
    keep(begin(), skipped=[invalid("3", reason="database")], over=True)
    (row,) = bookmarks.skipped(JOB)

    assert bookmarks.retry(row, mark(3, "new"), may_skip=skip)
    assert stored()["3"].text == "new"


# ── Being stopped ────────────────────────────────────────────────────────────────────────────


def test_cancelled_crawl_ends_with_what_it_is_just_storing():
    session = begin()
    asked = bookmarks.cancel(JOB)
    ended = keep(session, marks(1), MIDDLE)

    assert (asked.state, asked.open) == ("cancelling", True)
    assert (ended.state, ended.open) == ("cancelled", False)
    assert (ended.checkpoint, ended.stored, ended.ended_at) == (MIDDLE, 1, asked.ended_at)


def test_crawl_that_comes_to_its_end_is_completed_though_it_was_to_be_cancelled():
    session = begin()
    bookmarks.cancel(JOB)

    assert keep(session, marks(1), over=True).state == "completed"


@pytest.mark.parametrize("session_id", [None, "s1"], ids=["its job's", "named"])
@pytest.mark.parametrize(
    ("since", "expected"), [(EARLIER, "cancelled"), (LATER, "running")], ids=["before", "after"]
)
def test_crawl_that_was_cancelled_before_it_began_ends_when_it_comes(session_id, since, expected):
    asked = bookmarks.cancel(session_id or JOB)
    session = begin(session_id=session_id, asked_at=asked.ended_at + since)

    assert (asked.state, asked.stored) == ("cancelled", 0)
    assert (session.id, session.user_id, session.state) == (session_id or JOB, USER, expected)


def test_a_cancellation_that_comes_late_leaves_a_crawl_alone_that_was_resumed_since():
    asked = reach("cancelled").ended_at
    resumed = begin(asked_at=asked + LATER)
    late = bookmarks.cancel(JOB, asked)

    assert resumed.state == late.state == "running"
    assert bookmarks.cancel(JOB, asked + 2 * LATER).state == "cancelling"


def test_a_listing_that_goes_round_in_circles_is_noticed():
    session = begin()
    for number in (1, 2, 3):
        session = keep(session, then=Checkpoint("AB"[number % 2], number, 0))

    with pytest.raises(InternalError, match="round in circles"):
        keep(session, then=Checkpoint("A", 4, 0))


def test_a_listing_that_begins_anew_does_not_go_round_in_circles():
    session = begin()
    for _lap in range(2):
        for number in range(1, 10):
            session = keep(session, then=Checkpoint(f"t{number}", number, 0))
        session = bookmarks.clear_checkpoint(JOB)

    assert session.pages == 18


def test_what_was_skipped_and_is_stored_after_all_is_counted_once():
    first = keep(begin(), skipped=[invalid("1", reason="database"), invalid("2")])
    again = keep(first, [mark("1")])

    assert first.skipped == {"database": 1, "no_text": 1}
    assert (again.stored, again.skipped) == (1, {"no_text": 1})
    assert [row.key for row in bookmarks.skipped(JOB)] == ["2"]


@pytest.mark.parametrize("state", ["cancelling", "cancelled", "completed"])
def test_only_a_running_crawl_is_cancelled(state):
    before = reach(state)

    assert bookmarks.cancel(JOB) == before


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", "running"),
        ("cancelling", "cancelled"),
        ("cancelled", "cancelled"),
        ("completed", "completed"),
    ],
)
def test_only_what_was_to_be_cancelled_is_ended(state, expected):
    reach(state)

    assert bookmarks.end_cancelled(JOB).state == expected
    assert bookmarks.end_cancelled("none") is None


@pytest.mark.parametrize("state", ["cancelled", "completed"])
def test_late_run_changes_nothing_of_a_crawl_that_has_ended(state):
    session = begin()
    ended = reach(state)

    assert keep(session, marks(1), MIDDLE, skipped=[invalid("k1")]) == ended == bookmarks.get(JOB)
    assert stored() == {}


def test_run_that_another_has_overtaken_moves_nothing_back():
    slow = begin()
    fast = keep(begin(), marks(1), MIDDLE)
    with pytest.raises(Pending, match="was moved"):
        keep(slow, marks(2), SECOND)

    assert bookmarks.get(JOB) == fast
    assert stored().keys() == {"1"}


def test_run_heeds_a_checkpoint_that_a_person_has_moved():
    session = keep(begin(), marks(1), MIDDLE)
    bookmarks.clear_checkpoint(JOB)
    with pytest.raises(Pending):
        keep(session, marks(2))

    assert begin().checkpoint == FIRST


def test_of_two_runs_at_once_one_goes_on():
    session = begin()

    def work(number):
        try:
            return keep(session, marks(1, number), Checkpoint("page-2", 1, number)).state
        except Pending:
            return "pending"

    with ThreadPoolExecutor(4) as threads:
        outcomes = sorted(threads.map(work, range(2, 10)))

    assert outcomes == ["pending"] * 7 + ["running"]
    assert bookmarks.get(JOB).stored == len(stored()) == 2


# ── By hand ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["running", "cancelling", "cancelled"])
def test_checkpoint_is_moved_and_forgotten_by_hand(state):
    before = reach(state)
    moved = bookmarks.save_checkpoint(JOB, MIDDLE)

    assert moved.checkpoint == MIDDLE
    assert moved == replace(
        before, page_token="page-2", page=1, in_page=10, updated_at=moved.updated_at
    )
    assert bookmarks.clear_checkpoint(JOB).checkpoint == FIRST


def test_checkpoint_of_a_completed_crawl_stays():
    completed = reach("completed")

    assert bookmarks.save_checkpoint(JOB, MIDDLE) == bookmarks.clear_checkpoint(JOB) == completed
    assert bookmarks.clear_checkpoint("none") is None


def test_what_a_crawl_has_seen_is_not_counted_again_after_a_new_beginning():
    keep(begin(), marks(1, 2), MIDDLE)
    bookmarks.clear_checkpoint(JOB)
    session = keep(begin(), marks(1, 2, 3), SECOND)

    assert (session.stored, session.known) == (3, 0)


def test_crawls_are_listed_newest_first():
    reach("completed")
    reach("completed", session_id="s2")
    begin("s3", user_id="8")

    def ids(*args, **options):
        return [session.id for session in bookmarks.sessions(*args, **options)]

    assert ids() == ids(limit=None) == ["s3", "s2", JOB]
    assert ids(USER) == ["s2", JOB]
    assert ids(USER, limit=1) == ["s2"]
    assert bookmarks.latest(USER).id == "s2"
    assert bookmarks.latest("9") is None
