"""The demo's verdict on crawls: nothing to say of a right end, a sentence for whatever is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import Delete, Insert, Update, delete, insert, select, update

from clients.x import FIELDS, Page
from config.settings import settings
from sandbox.crawl_load import BEFORE, IN_ORDER, READERS, Reader, outcomes
from sandbox.crawl_report import Sight, compare, lines
from sandbox.load import CRAWL
from sandbox.report import Report
from sandbox.x_platform import Platform
from sandbox.x_posts import Invalid, shown
from sandbox.x_users import ARRIVALS
from storage import bookmarks
from storage import database as storage_database
from storage.bookmarks import Checkpoint
from storage.models import bookmarks as kept
from storage.models import crawl_sessions as crawls
from storage.models import skipped_bookmarks as left_out
from storage.upgrade import upgrade
from tasks.bookmarks import keep, sorted_out

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

PLAIN = next(reader for reader in READERS if reader.story.name == IN_ORDER)
LATER = next(reader for reader in READERS[::-1] if reader.story.name == IN_ORDER)
FLAWED = next(reader for reader in READERS if len(reader.story.flaws) > len(get_args(Invalid)))
ODD = next(reader for reader in READERS if reader.story.name.startswith("half a character"))
CANCELLED = next(reader for reader in READERS if reader.story.cancelled)
AGAIN = next(reader for reader in READERS if reader.story.given_again)
TWICE = next(reader for reader in READERS if reader.story.asked > 1)
LIMITED = next(reader for reader in READERS if reader.story.limit_answers)


@pytest.fixture(scope="module")
def right_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which every crawl has come to the end that its story wants."""
    path = tmp_path_factory.mktemp("crawls") / "perennial.db"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_URL", f"sqlite:///{path}")
        settings.cache_clear()
        upgrade(f"sqlite:///{path}")
        for reader in READERS:
            crawl(reader)
        storage_database.engine().dispose()
    settings.cache_clear()
    return path


@pytest.fixture
def ended(right_end: Path, database: str) -> None:
    """The same, copied: storing thousands of bookmarks takes longer than a test."""
    with (
        closing(sqlite3.connect(right_end)) as source,
        closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as copy,
    ):
        source.backup(copy)


def crawl(reader: Reader, session_id: str = "") -> None:
    session = bookmarks.begin(reader.id, session_id or f"crawl-{reader.id}", "job", None, None)
    there = [item for item in reader.items[::-1] if item.kind not in {"gone", "protected"}]
    page = Page(tuple(shown(item, FIELDS.split(","), "tweet") for item in there))
    keep(session, sorted_out(page, 0), Checkpoint(None, 1), over=True)


def sight(*changes: tuple[Reader, dict[str, int]]) -> Sight:
    """What X has seen where all has ended well, but for *changes*, which are added."""
    platform = Platform()
    for arrival in ARRIVALS.validate_python([reader.arrival for reader in READERS]):
        platform.welcome(arrival)
    users = {}
    for reader in READERS:
        story = reader.story
        counts = {
            "requests": story.pages + story.in_vain,
            "limit_answers": story.limit_answers,
            "refreshes": story.renewals,
            "tokens_issued": 1 + story.renewals + story.given_again,
        }
        users[reader.id] = platform.sight(platform.users[reader.id]) | counts
    for reader, more in changes:
        for name, by in more.items():
            users[reader.id][name] += by
    return Sight(platform.summary() | {"refreshes": 3, "limit_answers": {"1": 2}}, users)


def findings(*changes: tuple[Reader, dict[str, int]]) -> list[str]:
    return compare(sight(*changes), outcomes())


def execute(statement: Delete | Insert | Update) -> None:
    with storage_database.transaction() as connection:
        assert connection.execute(statement).rowcount == 1


def of(reader: Reader, number: int) -> Sequence[Any]:
    """Return what picks the row of the bookmark that is *number*, from the oldest on."""
    return kept.c.user_id == reader.id, kept.c.tweet_id == reader.items[number - 1].id


def test_an_end_that_is_right_leaves_nothing_to_say(ended: None):
    assert findings() == []


def test_what_is_crawled_again_is_known(ended: None):
    crawl(TWICE, "another")

    assert findings((TWICE, {"requests": TWICE.story.pages})) == []


@pytest.mark.parametrize("reader", [BEFORE[0], CANCELLED], ids=["killed", "cancelled"])
def test_a_page_at_work_in_the_middle_may_be_fetched_again_once(ended: None, reader: Reader):
    (found,) = findings((reader, {"requests": 2}))
    least = reader.story.pages + reader.story.in_vain

    assert findings((reader, {"requests": 1})) == []
    assert f"{least + 2} requests, not {least} or {least + 1}" in found


@pytest.mark.parametrize(
    ("reader", "change", "finding"),
    [
        pytest.param(LATER, {"requests": 1}, "4 requests, not 3", id="a-request-too-many"),
        pytest.param(LATER, {"requests": -1}, "2 requests, not 3", id="a-fault-that-never-struck"),
        pytest.param(PLAIN, {"limit_answers": 1}, "1 limit answers, not 0", id="limit-broken"),
        pytest.param(LIMITED, {"limit_answers": -1}, "0 limit answers, not 1", id="no-limit"),
        pytest.param(
            PLAIN, {"refreshes": 1, "tokens_issued": 1}, "1 renewals, not 0", id="renewed"
        ),
        pytest.param(
            AGAIN, {"tokens_issued": -1}, "1 times that access was given, not 2", id="never-lost"
        ),
    ],
)
def test_what_x_tells_otherwise_is_found(
    ended: None, reader: Reader, change: dict[str, int], finding: str
):
    assert findings((reader, change)) == [f"X user {reader.id} ({reader.story.name}): {finding}"]


def lost(reader: Reader) -> str:
    execute(delete(kept).where(*of(reader, 7)))
    return f"bookmark {reader.items[6].id} is lost"


def nobodys(reader: Reader) -> str:
    columns = [column for column in kept.c if column.name != "tweet_id"]
    row = select(*columns, kept.c.tweet_id + "0").where(*of(reader, 7))
    execute(insert(kept).from_select([*(c.name for c in columns), "tweet_id"], row))
    return f"bookmark {reader.items[6].id}0 is nobody's"


def another_text(reader: Reader) -> str:
    execute(update(kept).where(*of(reader, 7)).values(text="another"))
    return f"bookmark {reader.items[6].id} is ('another', "


def other_content(reader: Reader) -> str:
    execute(update(kept).where(*of(reader, 7)).values(raw={"id": "7"}))
    return """, '{"id": "7"}'), not"""


def left_open(reader: Reader) -> str:
    execute(update(crawls).where(crawls.c.user_id == reader.id).values(state="running"))
    return f"crawl crawl-{reader.id} is running"


def counted_twice(reader: Reader) -> str:
    row = update(crawls).where(crawls.c.user_id == reader.id)
    execute(row.values(known=crawls.c.known + 1))
    return f"has counted {len(reader.items) + 1} of {len(reader.items)}"


def new_for_known(reader: Reader) -> str:
    row = update(crawls).where(crawls.c.user_id == reader.id)
    execute(row.values(stored=crawls.c.stored - 1, known=1))
    return f"{len(reader.items) - 1} bookmarks were counted as new, not {len(reader.items)}"


def not_begun(reader: Reader) -> str:
    execute(delete(crawls).where(crawls.c.user_id == reader.id))
    return "no crawl was begun"


@pytest.mark.parametrize(
    "spoil",
    [
        lost,
        nobodys,
        another_text,
        other_content,
        left_open,
        counted_twice,
        new_for_known,
        not_begun,
    ],
)
def test_what_we_have_stored_otherwise_is_found(ended: None, spoil: Callable[[Reader], str]):
    finding = spoil(PLAIN)

    assert any(
        found.startswith(f"X user {PLAIN.id} ({IN_ORDER}): ") and finding in found
        for found in findings()
    )


def test_half_a_character_that_was_cut_off_is_found(ended: None):
    half = next(item for item in ODD.items if item.kind == "lone_surrogate")
    text = shown(half, (), "tweet")["text"].removesuffix("\ud83e")
    execute(update(kept).where(*of(ODD, half.number)).values(text=text))
    (found,) = findings()

    assert f"bookmark {half.id} is" in found


def one_skipped() -> Any:
    one = select(left_out.c.key).where(left_out.c.user_id == FLAWED.id).limit(1).scalar_subquery()
    return left_out.c.user_id == FLAWED.id, left_out.c.key == one


def test_an_invalid_bookmark_that_was_not_reported_is_found(ended: None):
    execute(delete(left_out).where(*one_skipped()))
    (found,) = findings()

    assert f"crawl crawl-{FLAWED.id} reports" in found


def test_an_invalid_bookmark_that_was_reported_twice_is_found(ended: None):
    columns = [column for column in left_out.c if column.name != "key"]
    row = select(*columns, left_out.c.key + "2").where(*one_skipped())
    execute(insert(left_out).from_select([*(c.name for c in columns), "key"], row))
    (found,) = findings()

    assert f"crawl crawl-{FLAWED.id} reports" in found


def test_invalid_bookmarks_that_were_counted_wrongly_are_found(ended: None):
    execute(update(crawls).where(crawls.c.user_id == FLAWED.id).values(skipped={"no_id": 1}))
    (found,) = findings()

    assert found.endswith("has skipped no_id 1, not no_id 8, no_text 2, not_an_object 2")


# -- jobs


@pytest.mark.parametrize(
    "ends",
    [
        pytest.param({"completed": outcomes()["completed"]}, id="none-was-cancelled"),
        pytest.param({**outcomes(), "completed": 3}, id="some-never-ended"),
        pytest.param({**outcomes(), "skipped": 1}, id="another-word"),
    ],
)
def test_crawls_that_ended_otherwise_are_found(ended: None, ends: dict[str, int]):
    (found,) = compare(sight(), ends)

    assert found.startswith("crawls ended ")


def test_the_ends_of_crawls_are_those_of_their_jobs(database: str):
    jobs = {"a": CRAWL, "b": CRAWL, "c": CRAWL, "d": "video.send"}
    words = {"a": "completed", "b": "cancelled", "d": "sent"}

    assert Report(jobs, {}, words, 0, 0, 0, []).ends(CRAWL) == {"completed": 1, "cancelled": 1}


# -- what X is asked for


def test_x_is_asked_for_all_its_users(database: str):
    seen = sight()
    answers = {"/_sandbox/summary": seen.summary, "/_sandbox/users": list(seen.users.values())}
    handler = httpx.MockTransport(lambda asked: httpx.Response(200, json=answers[asked.url.path]))
    with httpx.Client(base_url="http://sandbox", transport=handler) as x:
        assert Sight.now(x) == seen


def test_what_is_told_of_the_crawls(ended: None):
    seen = sight()
    told = lines(replace(seen, summary=seen.summary | {"by_method": {"bookmarks": 120}}))
    pages = sum(reader.story.pages for reader in READERS)
    in_vain = sum(reader.story.in_vain for reader in READERS)

    assert told["X"].startswith(f"120 requests, at least {pages + in_vain} were needed: {pages} ")
    assert "2 users gave access again, 2 limit answers" in told["X"]
    assert told["crawls"].startswith(f"completed {len(READERS)}; 0 waits")
