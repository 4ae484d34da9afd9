"""Crawls of bookmarks, end to end: each category of failure, cancellation, crashes, the operator.

A user has 200 bookmarks if not said otherwise: pages at 0, 90 and 180.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from acceptance.library import BOOKMARKS, SCALE, Library, among, fault, flaws, library
from acceptance.system import PATIENCE
from acceptance.visits import LOGS, PASSED
from fixtures.waiting import eventually

from sandbox.stack import Process

DEBUG, INFO, WARNING = logging.DEBUG, logging.INFO, logging.WARNING
ERROR, CRITICAL = logging.ERROR, logging.CRITICAL
PAGES = 3
FIRST_PAGE = (0, 0)
SECOND_PAGE = (1, 0)  # a checkpoint: one page is done, and nothing of the next
DEAD = "dead letter"


@pytest.fixture(scope="module")
def open_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with library(tmp_path_factory.mktemp("library"), "-l", "DEBUG") as opened:
        yield opened


@pytest.fixture
def shelves(open_library: Library, request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library for one test after the other; nothing may wait or run when a test leaves."""
    request.node.stash[LOGS] = open_library.stack.folder
    yield open_library
    if request.node.stash.get(PASSED, False):
        open_library.calm()
    open_library.clear()


# -- a: the categories


def saved_anew(shelves: Library, user: str, job: str) -> None:
    shelves.x.tell("authorize", user)
    shelves.authorize(user)


def authorized(shelves: Library, user: str, job: str) -> None:
    """A person brings new tokens; the crawl would not have looked again for an hour."""
    eventually(lambda: shelves.parking.release(job, at=time.time() + 3600), within=PATIENCE)
    shelves.x.tell("authorize", user)
    tokens = json.dumps(shelves.tokens(user))
    shelves.operate("bookmarks", "authorize", user, told=tokens)


def let_in(shelves: Library, user: str, job: str) -> None:
    """A person knows that the limit is over."""
    shelves.gate.reset()
    shelves.parking.release(job)


def replayed(shelves: Library, user: str, job: str) -> None:
    shelves.operate("dlq", "replay", job)


def mended(shelves: Library, user: str, job: str) -> None:
    shelves.ddl("DROP TRIGGER refusal")


def page_2(kind: str, **more: Any) -> Mapping[str, Any]:
    return {"kind": kind, **more}


def token(kind: str, **more: Any) -> Mapping[str, Any]:
    return {"kind": kind, "method": "token", **more}


@dataclass(frozen=True)
class Row:
    """A failure of a category, injected into a crawl of three pages, and what follows.

    *stops* is what the job is parked for, or `DEAD`; *checkpoint* is where; *wait* how long it is
    parked (seconds at scale 1), *delays* those of its retries. *relief* is what a person does then.
    *extra* are the requests beyond one for each page, *logs* what the worker's log says of it.
    """

    category: str
    injected: str
    happens: str
    faults: Sequence[Mapping[str, Any]] = ()
    invalid: Mapping[int, str] = field(default_factory=dict)
    trigger: str = ""
    limit: tuple[int, float] | None = None
    stops: str = ""
    checkpoint: tuple[int, int] = SECOND_PAGE
    wait: float | None = None
    delays: Sequence[float] = ()
    relief: Callable[[Library, str, str], None] | None = None
    extra: Collection[int] = (0,)
    skipped: Mapping[str, int] = field(default_factory=dict)
    logs: Sequence[tuple[int, str]] = ()

    @property
    def name(self) -> str:
        return f"{self.category}: {self.injected}"


SAVED = (INFO, "checkpoint of crawl")
RESUMED = (INFO, "goes on at page 2")
INVALID = {
    92: "not_an_object",
    93: "not_an_object",
    95: "no_id",
    96: "empty_id",
    110: "null_id",
    111: "non_digit_id",
    179: "no_text",
    # As good as any, and difficult all the same.
    120: "nul_text",
    121: "lone_surrogate",
}
ONE = "WHEN NEW.tweet_id LIKE '%0000100' BEGIN SELECT RAISE(ABORT, 'it does not fit'); END"
ALL = "BEGIN INSERT INTO nowhere VALUES (1); END"
FULL = (
    "WHEN NEW.tweet_id LIKE '%0000060' BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
)

ROWS = (
    Row(
        "AUTH",
        "401, and the refresh token is refused; later other tokens are stored",
        "held, nothing more is asked for this user; goes on by itself with the new tokens",
        faults=(page_2("error", code="unauthorized"), token("error", code="spent_token")),
        stops="Unauthorized",
        relief=saved_anew,
        extra=(1,),
        logs=(SAVED, (ERROR, "is good no more"), RESUMED),
    ),
    Row(
        "AUTH",
        "401, and the answer with the next pair is lost; later `bookmarks authorize`",
        "held as a lost refresh; goes on at once when a person authorises",
        faults=(page_2("error", code="unauthorized"), token("lost_answer")),
        stops="Unauthorized",
        relief=authorized,
        extra=(2,),
        logs=((WARNING, "OutcomeUnknown"), (ERROR, "the next one never arrived"), RESUMED),
    ),
    Row(
        "RATE_LIMIT",
        "429 with x-rate-limit-reset",
        "parked until the reset, goes on by itself",
        faults=(page_2("error", code="too_many_requests", seconds=0.2),),
        stops="RateLimited",
        extra=(1,),
        logs=(SAVED, (WARNING, "RateLimited"), RESUMED),
    ),
    Row(
        "RATE_LIMIT",
        "429 that does not say until when",
        "parked for 15 minutes",
        faults=(page_2("error", code="legacy_limit"),),
        stops="RateLimited",
        wait=900.0,
        relief=let_in,
        extra=(1,),
        logs=((WARNING, "RateLimited"), RESUMED),
    ),
    Row(
        "RATE_LIMIT",
        "x-rate-limit-remaining: 0 in a good answer",
        "parked until the reset before a request is refused",
        limit=(2, 0.5),
        stops="RateLimited",
        checkpoint=(2, 0),
        logs=((WARNING, "its rate limit is reached"), (INFO, "goes on at page 3")),
    ),
    Row(
        "NETWORK",
        "the connection breaks, twice",
        "tried again after 1 and 2 s",
        faults=(page_2("refuse", drop="reset", times=2),),
        extra=(2,),
        logs=(
            (DEBUG, "retry after 1 attempts, back in 0.0 s: ServiceUnavailable"),
            (DEBUG, "retry after 2 attempts"),
            RESUMED,
        ),
    ),
    Row(
        "NETWORK",
        "503, six times; later the dead letter is replayed",
        "tried again after 1, 2, 4, 8 and 16 s, then a dead letter; goes on from the checkpoint",
        faults=(page_2("status", status=503, times=6),),
        stops=DEAD,
        delays=(1, 2, 4, 8, 16),
        relief=replayed,
        extra=(6,),
        logs=((DEBUG, "retry after 5 attempts"), (ERROR, "dead-lettered: "), SAVED),
    ),
    Row(
        "VALIDATION",
        "items that are no object, or without an id of digits, or without a text",
        "each is skipped, counted by reason and kept",
        invalid=INVALID,
        skipped={"not_an_object": 2, "no_id": 4, "no_text": 1},
        logs=((WARNING, "skipped a bookmark: "), SAVED),
    ),
    Row(
        "DATABASE",
        "one bookmark is refused",
        "it is skipped and kept, the other nine of its ten are stored",
        trigger=ONE,
        skipped={"database": 1},
        logs=((WARNING, "skipped a bookmark: "), SAVED),
    ),
    Row(
        "DATABASE",
        "every bookmark is refused, for a while",
        "nothing is skipped; tried again",
        trigger=ALL,
        stops="DatabaseError",
        checkpoint=FIRST_PAGE,
        relief=mended,
        extra=range(1, 6),
        logs=((ERROR, "DatabaseError"),),
    ),
    Row(
        "BILLING",
        "402 CreditsDepleted",
        "parked until there is money; looks again each minute",
        faults=(page_2("error", code="credits_depleted"),),
        stops="BillingExhausted",
        wait=60.0,
        extra=(1,),
        logs=((ERROR, "BillingExhausted"), RESUMED),
    ),
    Row(
        "BILLING",
        "429 usage-capped",
        "the same: no rate limit",
        faults=(page_2("error", code="usage_capped"),),
        stops="BillingExhausted",
        wait=60.0,
        extra=(1,),
        logs=((ERROR, "BillingExhausted"), RESUMED),
    ),
    Row(
        "FATAL",
        "out of memory",
        "the worker shuts down, another goes on from the checkpoint",
        checkpoint=(1, 50),
        extra=(1,),
        logs=((CRITICAL, "this worker stops: MemoryError"), SAVED),
    ),
    Row(
        "FATAL",
        "the disk is full",
        "the worker shuts down, another goes on from the checkpoint",
        trigger=FULL,
        checkpoint=(1, 50),
        extra=(1,),
        logs=((CRITICAL, "the disk is full"), SAVED),
    ),
)
FATAL = [row for row in ROWS if row.category == "FATAL"]
OTHERS = [row for row in ROWS if row not in FATAL]


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row.name)
def test_a_failure_ends_as_its_category_says(shelves: Library, row: Row):
    user = shelves.reader(invalid=flaws(row.invalid))
    begun = shelves.duty.log.stat().st_size
    with injected(shelves, row, user):
        job = shelves.crawl(user)
        if row.stops:
            has_stopped(shelves, row, user, job)
        if row.relief:
            row.relief(shelves, user, job)
        outcome = shelves.result(job)

    assert_all_is_there(shelves, row, user, outcome)
    assert_is_told(shelves.lines(after=begun), row)


@contextmanager
def injected(shelves: Library, row: Row, user: str) -> Iterator[None]:
    """Have all of a row go wrong."""
    for each in row.faults:
        about = f"/{user}/" if each.get("method") == "token" else f"/{user}/90/"
        shelves.x.arm({"method": "bookmarks", "about": about, **each})
    if row.limit:
        shelves.x.change(limit=row.limit[0], window=row.limit[1])
    with shelves.refusing(row.trigger) if row.trigger else nullcontext():
        yield
    if row.limit:
        shelves.x.change(limit=180, window=900)


def has_stopped(shelves: Library, row: Row, user: str, job: str) -> None:
    """Wait until the crawl has come to where it stops, and see that it has left all in order."""
    if row.stops == DEAD:
        history = shelves.letter(job).history
    else:
        history = shelves.parked(job, row.stops).history
    wait = history[-1]["delay"] / SCALE
    delays = [entry["delay"] / SCALE for entry in history if entry["action"] == "retry"]

    assert shelves.session(user)["state"] == "running"
    assert shelves.checkpoint(user) == row.checkpoint
    if row.wait:
        assert wait == pytest.approx(row.wait, rel=0.1)
    if row.delays:
        assert len(delays) == len(row.delays)
        assert all(least <= d <= 1.3 * least for d, least in zip(delays, row.delays, strict=True))


def assert_all_is_there(shelves: Library, row: Row, user: str, outcome: Mapping[str, Any]) -> None:
    skipped = sum(row.skipped.values())
    stored = BOOKMARKS - skipped
    valid = shelves.x.user(user)["valid"]
    refused = [one["tweet_id"] for one in shelves.left_out(user) if one["reason"] == "database"]
    limited = row.category == "RATE_LIMIT" and not row.limit

    counts = {"stored": stored, "known": 0, "skipped": dict(row.skipped), "pages": PAGES}
    assert outcome == outcome | {"outcome": "completed", **counts}
    assert len(shelves.x.asked(user)) - PAGES in row.extra
    assert shelves.stored(user) == [tweet for tweet in valid if tweet not in refused]
    assert len(shelves.left_out(user)) == skipped
    assert shelves.x.user(user)["limit_answers"] == limited


def assert_is_told(lines: Sequence[tuple[int, str]], row: Row) -> None:
    for level, part in row.logs:
        assert among(lines, level, part), (logging.getLevelName(level), part)
    # Louder than a row says it would wake somebody up.
    loudest = max(level for level, _ in row.logs)
    assert [text for level, text in lines if level > loudest] == []
    assert len(among(lines, WARNING, "skipped a bookmark")) == sum(row.skipped.values())


@pytest.mark.parametrize("row", FATAL, ids=lambda row: row.name)
def test_a_fatal_failure_ends_the_worker_and_another_goes_on(shelves: Library, row: Row):
    user = shelves.reader()
    point = "none" if row.trigger else "exhausted"
    with shelves.off_duty(), victim(shelves, point) as worker, injected(shelves, row, user):
        job = shelves.crawl(user)
        code = worker.running.wait(PATIENCE)
        checkpoint = shelves.checkpoint(user)
    outcome = shelves.result(job)

    assert code == 0
    assert checkpoint == row.checkpoint
    assert_all_is_there(shelves, row, user, outcome)
    assert_is_told(shelves.lines(of=worker), row)


@contextmanager
def victim(shelves: Library, point: str) -> Iterator[Process]:
    """A worker beside the one on duty, that does not get past a *point*."""
    folder = shelves.stack.folder
    name = f"{point}-{len(shelves.stack.processes)}"
    pauses = () if point == "none" else ("-I", "tests.acceptance.crawl_pauses")
    worker = shelves.worker(name, *pauses, POINT=point, PAUSES=str(folder))
    try:
        yield worker
    finally:
        worker.kill()


def test_a_lost_grant_holds_every_crawl_of_its_user_and_nobody_elses(shelves: Library):
    user, other = shelves.reader(), shelves.reader()
    shelves.x.tell("revoke", user)
    first = shelves.crawl(user)
    shelves.parked(first, "Unauthorized")
    asked = shelves.x.asked(user)
    shelves.parking.release(first)
    second = shelves.crawl(user)
    held = [shelves.parked(job, "CredentialHeld") for job in (second, first)]
    meanwhile = shelves.crawled(other)
    still_asked = shelves.x.asked(user)
    shelves.x.tell("authorize", user)
    shelves.authorize(user)
    for job in (first, second):
        shelves.parking.release(job)
    outcomes = shelves.results([first, second])

    assert f"celery -A tasks bookmarks authorize {user}" in held[0].detail
    assert [job.attempts for job in held] == [0, 0]
    assert meanwhile["stored"] == BOOKMARKS
    assert asked == still_asked == [0]
    assert [outcome["outcome"] for outcome in outcomes] == ["completed"] * 2
    assert shelves.stored(user) == shelves.x.user(user)["valid"]


# -- b: cancellation


def slow(user: str, position: int, seconds: float = 2.0) -> dict[str, Any]:
    """A page that leaves time to do something meanwhile."""
    return fault("slow", user, position, seconds=seconds)


@pytest.mark.parametrize("by", ["its session", "a plain crawl"])
def test_a_cancelled_crawl_goes_on_with_the_page_it_was_at(shelves: Library, by: str):
    user = shelves.reader(invalid=flaws({91: "no_text", 150: "no_id"}))
    shelves.x.arm(slow(user, 90))
    job = shelves.crawl(user)
    shelves.reached(user, 90)
    ended = shelves.done("bookmarks.cancel", session_id=job)
    cancelled = shelves.result(job)
    checkpoint = shelves.checkpoint(user)
    resumed = shelves.crawled(user, **({"session_id": job} if by == "its session" else {}))

    counts = {"stored": 99, "known": 0, "skipped": {"no_text": 1}, "pages": 1}
    assert cancelled == cancelled | {"outcome": "cancelled", "session_id": job, **counts}
    assert ended == ended | {"outcome": "cancelled", **counts}
    assert checkpoint == (1, 10)
    counts = {"stored": 198, "known": 0, "skipped": {"no_text": 1, "no_id": 1}, "pages": 3}
    assert resumed == resumed | {"outcome": "completed", "session_id": job, **counts}
    assert shelves.x.asked(user) == [0, 90, 90, 180]
    assert shelves.stored(user) == shelves.x.user(user)["valid"]


def test_a_parked_crawl_is_cancelled_at_once(shelves: Library):
    user = shelves.reader()
    shelves.x.arm(fault("error", user, 90, code="legacy_limit"))
    job = shelves.crawl(user)
    due = shelves.parked(job, "RateLimited").due
    ended = shelves.done("bookmarks.cancel", session_id=job)
    outcome = shelves.result(job)
    early = due - time.time()

    assert ended["outcome"] == "cancelled"
    assert outcome == outcome | {"outcome": "cancelled", "stored": 90, "pages": 1}
    assert early > 5
    assert shelves.x.asked(user) == [0, 90]


def test_a_crawl_that_was_cancelled_before_it_began_never_begins(shelves: Library):
    user = shelves.reader()
    session = f"crawl-of-{user}"
    with shelves.off_duty():
        job = shelves.crawl(user, session_id=session)
        cancel = shelves.send("bookmarks.cancel", session_id=session)
        late = shelves.worker("late")
        outcomes = shelves.results([cancel, job])
        again = shelves.result(shelves.crawl(user, session_id=session))
        late.stop()

    assert [outcome["outcome"] for outcome in outcomes] == ["cancelled"] * 2
    assert [outcome["stored"] for outcome in outcomes] == [0, 0]
    assert again["outcome"] == "completed"


# -- c: crashes, hand-overs, and crawls side by side


def test_a_kill_in_the_middle_loses_and_doubles_nothing(shelves: Library):
    user = shelves.reader(invalid=flaws({100: "no_text"}))
    with shelves.off_duty(), victim(shelves, "halfway") as worker:
        job = shelves.crawl(user)
        eventually((shelves.stack.folder / "halfway").exists, within=PATIENCE)
        worker.kill()
        before = shelves.checkpoint(user), len(shelves.stored(user))
    outcome = shelves.result(job)

    assert before == ((1, 50), 139)
    counts = {"stored": 199, "known": 0, "skipped": {"no_text": 1}, "pages": 3}
    assert outcome == outcome | {"outcome": "completed", "session_id": job, **counts}
    assert shelves.x.asked(user) == [0, 90, 90, 180]
    assert shelves.stored(user) == shelves.x.user(user)["valid"]


def test_a_worker_that_ends_hands_its_crawl_over_at_the_next_checkpoint(shelves: Library):
    user = shelves.reader()
    shelves.x.arm(slow(user, 90))
    with shelves.off_duty(), victim(shelves, "none") as worker:
        job = shelves.crawl(user)
        shelves.reached(user, 90)
        code = worker.stop()
        before = shelves.checkpoint(user), len(shelves.stored(user))
        waiting = shelves.leftovers()
    outcome = shelves.result(job)

    assert code == 0
    assert before == ((1, 10), 100)
    assert waiting == {"parked": 1}
    assert outcome == outcome | {"outcome": "completed", "stored": 200, "known": 0, "pages": 3}
    assert shelves.x.asked(user) == [0, 90, 90, 180]
    assert shelves.stored(user) == shelves.x.user(user)["valid"]
    assert among(shelves.lines(of=worker), INFO, "checkpoint of crawl")
    assert among(shelves.lines(of=worker), ERROR, "") == []


def test_a_user_is_crawled_once_at_a_time_and_what_is_known_is_told_apart(shelves: Library):
    user = shelves.reader()
    shelves.x.arm(slow(user, 90))
    # Its turns are long enough for a whole crawl: at their end another job might go on with it.
    with shelves.off_duty():
        patient = shelves.worker("patient", RETRY_TIME_SCALE="0.5")
        first = shelves.crawl(user)
        shelves.reached(user, 90)
        second = shelves.crawl(user)
        waiting = shelves.parked(second, "Pending")
        outcomes = shelves.results([first, second])
        shelves.x.tell("bookmarks", user, bookmarks=30)
        outcomes.append(shelves.crawled(user))
        patient.stop()

    assert waiting.attempts == 0
    counts = [(each["stored"], each["known"], each["pages"]) for each in outcomes]
    assert counts == [(200, 0, 3), (0, 200, 3), (30, 200, 3)]
    assert shelves.x.asked(user) == [0, 90, 180] * 3  # one after the other
    assert shelves.stored(user) == shelves.x.user(user)["valid"]


def test_two_calls_at_the_same_moment_are_one_crawl(shelves: Library):
    user = shelves.reader()
    with shelves.off_duty():
        jobs = shelves.send_all([("bookmarks.crawl", {"user_id": user})] * 2)
    first, second = shelves.results(jobs)

    assert first == second
    assert first["stored"] == 200
    assert shelves.x.asked(user) == [0, 90, 180]


def test_a_token_that_expires_in_the_middle_is_renewed_once_for_all_workers(shelves: Library):
    user = shelves.reader()
    shelves.x.arm(slow(user, 90))
    with victim(shelves, "none") as other:
        job = shelves.crawl(user)
        shelves.reached(user, 90)
        shelves.x.tell("expire", user)
        jobs = [job, *shelves.send_all([("bookmarks.crawl", {"user_id": user})] * 3)]
        outcomes = shelves.results(jobs)
        with shelves.off_duty():  # the other takes the pair that is stored
            outcomes.append(shelves.crawled(user))
        other.stop()

    assert [outcome["outcome"] for outcome in outcomes] == ["completed"] * 5
    assert shelves.x.user(user)["refreshes"] == 1
    assert shelves.x.user(user)["tokens_issued"] == 2
    assert shelves.x.asked(user)[:4] == [0, 90, 180, 180]


def test_a_crawl_that_somebody_waits_for_overtakes_those_in_the_queue(shelves: Library):
    *patient, urgent = (shelves.reader(10) for _ in range(5))
    shelves.x.begin()
    with shelves.off_duty():
        jobs = [shelves.crawl(user) for user in patient]
        said = shelves.operate("bookmarks", "crawl", urgent, "--no-follow")
        single = shelves.worker("single", WORKER_THREADS="1")
        shelves.results([*jobs, said.split()[1]])
        single.stop()

    assert shelves.x.first_asked() == [urgent, *patient]


# -- d: the operator


def test_a_crawl_is_followed_and_what_it_has_skipped_is_listed(shelves: Library):
    user = shelves.reader(invalid=flaws({0: "no_text", 1: "no_id"}))
    said = shelves.operate("bookmarks", "crawl", user)
    job = said.split()[1]
    (crawl,), skipped = at_once(
        lambda: shelves.look("bookmarks", "ls", user),
        lambda: shelves.look("bookmarks", "skipped", job),
    )

    assert json.loads(said[said.index("{") :]) == shelves.result(job)
    shown = {"id": job, "user_id": user, "state": "completed", "stored": 198, "known": 0}
    assert crawl == crawl | shown | {"skipped": 2, "reasons": {"no_text": 1, "no_id": 1}}
    assert {row["reason"]: row["page"] for row in skipped} == {"no_text": 0, "no_id": 0}
    assert all(row["raw"]["text"] for row in skipped if row["reason"] == "no_id")


def at_once(*looks: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor() as pool:
        return [look.result() for look in [pool.submit(look) for look in looks]]


def test_a_checkpoint_is_shown_cleared_and_saved_by_hand(shelves: Library, tmp_path: Path):
    user = shelves.reader()
    shelves.x.arm(fault("error", user, 180, code="legacy_limit"))
    job = shelves.crawl(user)
    shelves.parked(job, "RateLimited")
    # A person takes longer over the commands than its quarter of an hour lasts here.
    eventually(lambda: shelves.parking.release(job, at=time.time() + 3600))
    shown = shelves.operate("bookmarks", "checkpoint", "show", job)
    shelves.operate("bookmarks", "checkpoint", "clear", job, "--yes")
    cleared = shelves.checkpoint(user)
    shelves.operate("bookmarks", "checkpoint", "save", job, told=shown)
    saved = shelves.checkpoint(user)
    shelves.operate("bookmarks", "cancel", job)
    cancelled = shelves.result(job)
    shelves.gate.reset()
    said = shelves.operate("bookmarks", "resume", job, "--no-follow")
    resumed = shelves.result(said.split()[1])

    assert json.loads(shown) == json.loads(shown) | {"page": 2, "in_page": 0}
    assert (cleared, saved) == ((0, 0), (2, 0))
    assert cancelled["outcome"] == "cancelled"
    assert resumed == resumed | {"outcome": "completed", "session_id": job, "stored": 200}
    assert shelves.x.asked(user) == [0, 90, 180, 180]


def test_what_was_skipped_is_retried_by_hand(shelves: Library):
    user = shelves.reader(invalid=flaws({5: "no_text"}))
    with shelves.refusing(ONE):
        job = shelves.crawl(user)
        skipped = shelves.result(job)["skipped"]
    asked = shelves.x.asked(user)
    retried = shelves.stack.operate("bookmarks", "retry", job)

    assert skipped == {"no_text": 1, "database": 1}
    assert retried.returncode == 1  # one of them has no text still
    assert "stored 1, 1 cannot be stored" in retried.stdout
    assert [row["reason"] for row in shelves.left_out(user)] == ["no_text"]
    assert shelves.stored(user) == shelves.x.user(user)["valid"]
    assert shelves.x.asked(user) == asked


def test_a_crawl_waits_for_access_which_is_given_in_either_form(shelves: Library):
    users = [shelves.stranger(10), shelves.stranger(10)]
    jobs = [shelves.crawl(user) for user in users]
    details = [shelves.parked(job, "CredentialHeld").detail for job in jobs]
    tokens = [shelves.tokens(user) for user in users]
    forms = [json.dumps({**tokens[0], "expires_in": 7200}), "\n".join(tokens[1].values())]
    said = at_once(
        *(
            lambda user=user, form=form: shelves.operate("bookmarks", "authorize", user, told=form)
            for user, form in zip(users, forms, strict=True)
        )
    )
    outcomes = shelves.results(jobs)
    logs = "".join(path.read_text() for path in shelves.stack.folder.glob("*.log"))

    assert all("has not given us access" in detail for detail in details)
    assert all("has given access" in words for words in said)
    assert [outcome["stored"] for outcome in outcomes] == [10, 10]
    secrets = [secret for pair in tokens for secret in pair.values()]
    assert [secret for secret in secrets if secret in "".join(said) + logs] == []


UNKNOWN = (
    ("resume", "nobody"),
    ("retry", "nobody"),
    ("checkpoint", "show", "nobody"),
)


def test_an_unknown_crawl_is_an_error_in_one_sentence(shelves: Library):
    ended = at_once(
        *(lambda words=words: shelves.stack.operate("bookmarks", *words) for words in UNKNOWN)
    )

    assert [outcome.returncode for outcome in ended] == [1] * len(UNKNOWN)
    assert {outcome.stderr for outcome in ended} == {"Error: no crawl has the id nobody\n"}
