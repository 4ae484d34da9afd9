"""Effects: at most once, whoever races, dies, times out or comes late."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from classifiers.errors import (
    CircuitOpen,
    Duplicate,
    Fatal,
    InvalidData,
    JobError,
    NetworkError,
    OutcomeUnknown,
    Pending,
    RateLimited,
    ServiceUnavailable,
    Unclassified,
    UserError,
)
from storage import database as storage_database
from storage import effects, links
from storage.effects import Effect
from storage.models import effects as effects_table

pytestmark = pytest.mark.usefixtures("database")

only_on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
only_on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

KEY = "deal:7"
DEAL = {"deal_id": "70"}
OTHER = {"deal_id": "71"}
LONG = 60.0  # a lease that no test outlives
SHORT = 0.2  # a lease that a test waits for


class Upstream:
    """What a call does, and how often it was called and looked at."""

    def __init__(self, *answers, finds=()):
        self.answers, self.finds = list(answers), list(finds)
        self.calls = self.looks = 0

    def do(self):
        self.calls += 1
        return self._give(self.answers)

    def find(self):
        self.looks += 1
        return self._give(self.finds)

    @staticmethod
    def _give(answers):
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def once(do, key=KEY, *, owner="job-1", lease=LONG, **options):
    return effects.once(key, do, owner=owner, lease=lease, **options)


def fail(error, key=KEY, **options):
    with pytest.raises(type(error)) as caught:
        once(Upstream(error).do, key, **options)
    assert caught.value is error


def must_not_be_called():
    raise AssertionError("called although it must not be")


def crash(key=KEY, *, lease=LONG, ago=0.0):
    """Leave the row as a worker does that dies in its call."""
    once(lambda: DEAL, key, lease=lease)
    with storage_database.write() as connection:
        until = storage_database.now(plus=lease - ago)
        connection.execute(
            update(effects_table)
            .where(effects_table.c.key == key)
            .values(state="intended", result=None, lease_until=until, called_until=until)
        )


def pass_time(column, key=KEY):
    """Let the time in *column* pass at once."""
    with storage_database.write() as connection:
        connection.execute(
            update(effects_table)
            .where(effects_table.c.key == key)
            .values({column: storage_database.now(plus=-0.001)})
        )


def rename(table, name):
    """Put the database in trouble, or out of it."""
    with storage_database.write() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO {name}"))


def eventually(condition, deadline=10.0):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# ── No doubt ─────────────────────────────────────────────────────────────────────────────────


def test_first_run_calls_and_the_next_gets_what_is_stored():
    upstream = Upstream(DEAL)

    assert once(upstream.do) == Effect(DEAL, "done")
    assert once(upstream.do, owner="job-2") == Effect(DEAL, "stored")
    assert upstream.calls == 1


def test_row_of_a_done_effect_is_at_rest():
    once(lambda: DEAL)

    row = effects.get(KEY)
    assert (row.key, row.state, row.owner, row.runs) == (KEY, "done", "job-1", 1)
    assert (row.result, row.error, row.doubt) == (DEAL, None, False)
    assert (row.lease_until, row.called_until) == (None, None)
    assert row.created_at <= row.updated_at


def test_intent_is_written_before_the_call():
    seen = []
    once(lambda: seen.append(effects.get(KEY)) or DEAL)

    assert (seen[0].state, seen[0].owner, seen[0].result) == ("intended", "job-1", None)
    assert abs((seen[0].called_until - seen[0].lease_until).total_seconds()) < 1


def test_unknown_key_has_no_row():
    assert effects.get("nobody") is None


def test_result_is_what_json_makes_of_it():
    effect = once(lambda: {"ids": (1, 2), "text": "né\x00\ud800"})

    assert effect.result == {"ids": [1, 2], "text": "né\x00\ud800"}
    assert once(must_not_be_called).result == effect.result


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(NetworkError("no route"), id="retryable"),
        pytest.param(ServiceUnavailable("503"), id="unavailable"),
        pytest.param(RateLimited("slow down", retry_after=9), id="rate limit"),
        pytest.param(CircuitOpen("shut"), id="waiting"),
        pytest.param(InvalidData("no title"), id="permanent"),
        pytest.param(Duplicate("there", existing_id="5"), id="duplicate"),
        pytest.param(UserError("a cat", reason="photo"), id="user error"),
        pytest.param(Fatal("disk full"), id="fatal"),
    ],
)
def test_error_that_promises_no_effect_undoes_the_intent(error):
    fail(error)
    row = effects.get(KEY)
    upstream = Upstream(DEAL)

    assert (row.state, row.lease_until, row.called_until) == ("undone", None, None)
    assert row.error == f"{type(error).__name__}: {error}"
    assert once(upstream.do, find=must_not_be_called) == Effect(DEAL, "done")
    assert effects.get(KEY).runs == 2


@pytest.mark.parametrize("owner", ["job-1", "job-2"], ids=["redelivered", "another"])
def test_live_lease_lets_nobody_in_not_even_its_owner(owner):
    crash(lease=LONG)

    with pytest.raises(Pending) as pending:
        once(must_not_be_called, owner=owner, find=must_not_be_called)
    assert pending.value.retry_after == pytest.approx(LONG, abs=5)
    assert effects.get(KEY).runs == 1


# ── Looking first ────────────────────────────────────────────────────────────────────────────


def test_look_first_adopts_what_is_there():
    upstream = Upstream(finds=[DEAL])

    assert once(upstream.do, find=upstream.find, look_first=True) == Effect(DEAL, "found")
    assert upstream.calls == 0


def test_look_first_calls_when_nothing_is_there():
    upstream = Upstream(DEAL, finds=[None])

    assert once(upstream.do, find=upstream.find, look_first=True) == Effect(DEAL, "done")


def test_look_first_needs_something_to_look_with():
    with pytest.raises(ValueError, match="nothing to look with"):
        once(must_not_be_called, look_first=True)
    assert effects.get(KEY) is None


def test_failed_look_before_the_first_call_leaves_no_doubt():
    error = CircuitOpen("shut")
    with pytest.raises(CircuitOpen):
        once(must_not_be_called, find=Upstream(finds=[error]).find, look_first=True)

    assert effects.get(KEY).state == "undone"
    assert once(lambda: DEAL) == Effect(DEAL, "done")


def test_death_in_the_look_before_the_first_call_leaves_no_doubt():
    seen = []
    look = Upstream(finds=[lambda: seen.append(effects.get(KEY).called_until)]).find
    once(lambda: DEAL, find=look, look_first=True)
    crash(ago=LONG + 1)
    with storage_database.write() as connection:
        connection.execute(update(effects_table).values(called_until=None))

    assert seen == [None]
    assert once(lambda: OTHER) == Effect(OTHER, "done")


def test_call_after_a_long_look_has_a_whole_lease():
    seen = []
    upstream = Upstream(
        lambda: seen.append(effects.get(KEY)) or DEAL,
        finds=[lambda: pass_time("lease_until")],
    )
    once(upstream.do, find=upstream.find, look_first=True)

    assert (seen[0].lease_until - seen[0].updated_at).total_seconds() == pytest.approx(LONG, abs=1)
    assert (seen[0].called_until - seen[0].updated_at).total_seconds() == pytest.approx(LONG, abs=1)


# ── Doubt ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "words"),
    [
        pytest.param(OutcomeUnknown("timeout"), "OutcomeUnknown: timeout", id="timeout"),
        pytest.param(JobError("odd"), "JobError: odd", id="bare job error"),
        pytest.param(Unclassified("what?"), "Unclassified: what?", id="unclassified"),
        pytest.param(ValueError("https://secret"), "ValueError", id="bug, without its words"),
        pytest.param(MemoryError(), "MemoryError", id="memory"),
        pytest.param(SystemExit(1), "SystemExit", id="exit"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt", id="interrupt"),
    ],
)
def test_any_other_end_of_a_call_leaves_the_outcome_unknown(error, words):
    fail(error)

    row = effects.get(KEY)
    assert (row.state, row.error, row.lease_until) == ("unknown", words, None)
    assert (row.called_until - row.created_at).total_seconds() == pytest.approx(LONG, abs=1)


@pytest.mark.parametrize("value", [object(), float("nan")], ids=["object", "not a number"])
def test_result_that_json_cannot_hold_leaves_the_outcome_unknown(value):
    with pytest.raises((TypeError, ValueError)):
        once(lambda: {"deal": value})
    assert effects.get(KEY).state == "unknown"


def test_unknown_outcome_that_is_found_is_adopted_at_once():
    fail(OutcomeUnknown("timeout"))
    upstream = Upstream(finds=[DEAL])

    assert once(upstream.do, find=upstream.find) == Effect(DEAL, "found")
    assert once(must_not_be_called) == Effect(DEAL, "stored")
    assert (upstream.calls, upstream.looks) == (0, 1)


def test_not_found_is_not_believed_while_the_call_may_still_take_effect():
    fail(OutcomeUnknown("timeout"))
    before = effects.get(KEY)
    with pytest.raises(OutcomeUnknown, match="may still take effect") as unknown:
        once(must_not_be_called, find=lambda: None, lease=10 * LONG)

    after = effects.get(KEY)
    assert unknown.value.retry_after == pytest.approx(LONG, abs=5)
    assert (after.state, after.error) == ("unknown", before.error)
    assert after.called_until == before.called_until


def test_not_found_is_not_believed_if_the_look_began_before_the_end():
    fail(OutcomeUnknown("timeout"))
    with pytest.raises(OutcomeUnknown):
        once(must_not_be_called, find=lambda: pass_time("called_until"))
    assert effects.get(KEY).state == "unknown"


def test_not_found_after_the_end_is_called_again():
    fail(OutcomeUnknown("timeout"))
    pass_time("called_until")
    upstream = Upstream(OTHER, finds=[None])

    assert once(upstream.do, find=upstream.find) == Effect(OTHER, "done")


def test_call_sent_again_is_in_doubt_anew():
    fail(OutcomeUnknown("timeout"))
    pass_time("called_until")
    fail(OutcomeUnknown("again"), find=lambda: None)

    with pytest.raises(OutcomeUnknown, match="may still") as unknown:
        once(must_not_be_called, find=lambda: None)
    assert unknown.value.retry_after == pytest.approx(LONG, abs=5)
    assert effects.get(KEY).error == "OutcomeUnknown: again"


def test_call_sent_again_that_was_refused_is_undone():
    fail(OutcomeUnknown("timeout"))
    pass_time("called_until")
    fail(InvalidData("no"), find=lambda: None)

    assert effects.get(KEY).state == "undone"
    assert once(lambda: DEAL) == Effect(DEAL, "done")


def test_crash_is_looked_for_when_its_lease_has_passed():
    crash(ago=LONG + 1)
    upstream = Upstream(finds=[DEAL])

    assert once(upstream.do, find=upstream.find) == Effect(DEAL, "found")


def test_crash_that_left_nothing_is_called_again():
    crash(ago=LONG + 1)
    upstream = Upstream(DEAL, finds=[None])

    assert once(upstream.do, find=upstream.find) == Effect(DEAL, "done")


@pytest.mark.parametrize("error", [CircuitOpen("shut"), RuntimeError(), SystemExit()], ids=repr)
def test_failed_look_changes_nothing(error):
    fail(OutcomeUnknown("timeout"))
    before = effects.get(KEY)
    with pytest.raises(type(error)):
        once(must_not_be_called, find=Upstream(finds=[error]).find)

    after = effects.get(KEY)
    assert (after.state, after.called_until, after.error, after.lease_until) == (
        "unknown",
        before.called_until,
        before.error,
        None,
    )


@pytest.mark.parametrize(
    ("leave", "why"),
    [
        pytest.param(lambda: crash(ago=LONG + 1), "its worker died", id="crash"),
        pytest.param(lambda: fail(OutcomeUnknown("timeout")), "timeout", id="timeout"),
    ],
)
def test_doubt_that_nothing_can_clear_waits_for_a_person(leave, why):
    leave()
    for _ in range(2):
        with pytest.raises(OutcomeUnknown, match=f"{why}.*a person's decision") as unknown:
            once(must_not_be_called)
        assert unknown.value.retry_after is None
        assert effects.get(KEY).state == "unknown"


def test_error_of_a_former_call_is_not_told_of_a_later_one():
    fail(InvalidData("no title"))
    seen = []
    once(lambda: seen.append(effects.get(KEY).error) or DEAL)

    assert seen == [None]


# ── A look that sees late ────────────────────────────────────────────────────────────────────


LATE = 10 * LONG  # as long as a callback takes


def die_in_the_call(ago, **options):
    """Leave the row as a worker does that was killed in its call, *ago* seconds since."""
    taken = []

    def do():
        taken.append(effects.get(KEY))
        return DEAL

    once(do, found_within=LATE, **options)
    with storage_database.write() as connection:
        connection.execute(
            update(effects_table).values(
                state="intended",
                result=None,
                lease_until=taken[0].lease_until - timedelta(seconds=ago),
                called_until=taken[0].called_until - timedelta(seconds=ago),
            )
        )


CALLS = [
    pytest.param({}, id="first call"),
    pytest.param({"find": lambda: None, "look_first": True}, id="call after a look"),
]


@pytest.mark.parametrize("options", CALLS)
def test_dead_run_whose_effect_is_seen_late_is_looked_for_when_its_lease_has_passed(options):
    die_in_the_call(ago=LONG / 2, **options)
    with pytest.raises(Pending) as pending:
        once(must_not_be_called, find=must_not_be_called, found_within=LATE)
    pass_time("lease_until")

    assert pending.value.retry_after == pytest.approx(LONG / 2, abs=10)
    assert once(must_not_be_called, find=lambda: DEAL, found_within=LATE) == Effect(DEAL, "found")


@pytest.mark.parametrize("options", CALLS)
def test_effect_that_is_seen_late_is_not_had_again_before(options):
    die_in_the_call(ago=LONG + 1, **options)
    for _ in range(2):  # the look of the first moves nothing
        with pytest.raises(OutcomeUnknown, match="may still") as unknown:
            once(must_not_be_called, find=lambda: None, found_within=LATE)
        assert unknown.value.retry_after == pytest.approx(LATE - LONG, abs=10)
        assert effects.get(KEY).state == "unknown"


def test_effect_that_is_not_seen_by_then_is_had_again_and_waited_for_as_long():
    die_in_the_call(ago=LATE + 1)
    fail(OutcomeUnknown("timeout"), find=lambda: None, found_within=LATE)

    with pytest.raises(OutcomeUnknown) as unknown:
        once(must_not_be_called, find=lambda: None, found_within=LATE)
    assert unknown.value.retry_after == pytest.approx(LATE, abs=5)


def test_effect_that_nobody_has_seen_yet_cannot_be_settled_as_not_happened():
    die_in_the_call(ago=LONG + 1)

    with pytest.raises(Pending) as pending:
        effects.settle(KEY)
    assert pending.value.retry_after == pytest.approx(LATE - LONG, abs=10)
    assert effects.settle(KEY, OTHER)


def test_effect_cannot_be_sure_to_be_seen_before_its_call_ends():
    with pytest.raises(ValueError, match="while its call may take effect"):
        once(must_not_be_called, lease=LONG, found_within=LONG - 1)
    assert effects.get(KEY) is None


# ── Decisions and compensation ───────────────────────────────────────────────────────────────


def test_person_decides_that_it_happened():
    fail(OutcomeUnknown("timeout"))

    assert effects.settle(KEY, DEAL, record=remember)
    assert once(must_not_be_called) == Effect(DEAL, "stored")
    assert links.get("deal", "7").remote_id == "70"


def test_person_decides_that_it_did_not_happen():
    fail(OutcomeUnknown("timeout"))
    pass_time("called_until")

    assert effects.settle(KEY)
    assert effects.get(KEY).state == "undone"
    assert once(lambda: OTHER) == Effect(OTHER, "done")


def test_person_cannot_say_that_it_did_not_happen_while_it_still_may():
    fail(OutcomeUnknown("timeout"))

    with pytest.raises(Pending) as pending:
        effects.settle(KEY)
    assert pending.value.retry_after == pytest.approx(LONG, abs=5)


def test_person_cannot_decide_while_a_run_is_at_it():
    crash()

    with pytest.raises(Pending):
        effects.settle(KEY, DEAL)


@pytest.mark.parametrize(
    "prepare",
    [
        pytest.param(lambda: None, id="no such effect"),
        pytest.param(lambda: once(lambda: DEAL), id="done"),
        pytest.param(lambda: fail(InvalidData("no")), id="undone"),
    ],
)
def test_nothing_to_decide_is_said(prepare):
    prepare()
    before = effects.get(KEY)

    assert effects.settle(KEY, OTHER) is False
    assert effects.settle(KEY) is False
    assert effects.get(KEY) == before


def test_undone_effect_happens_anew():
    once(lambda: DEAL)

    assert effects.undo(KEY) is True
    assert effects.undo(KEY) is False
    assert effects.get(KEY).result == DEAL
    assert once(lambda: OTHER) == Effect(OTHER, "done")


def test_undo_belongs_to_the_transaction_that_compensates():
    once(lambda: DEAL)

    def refund():
        with storage_database.transaction() as connection:
            assert effects.undo(KEY, connection=connection)
            raise RuntimeError("the refund failed")

    with pytest.raises(RuntimeError):
        refund()
    assert effects.get(KEY).state == "done"


# ── Finding out, to take it back ─────────────────────────────────────────────────────────────


def find_out(find=must_not_be_called):
    return effects.find_out(KEY, find, owner="amends", lease=LONG)


def test_what_was_never_begun_is_found_to_be_nothing_and_leaves_no_row():
    assert find_out() is None
    assert effects.get(KEY) is None


@pytest.mark.parametrize(
    ("taken_back", "found"), [(False, DEAL), (True, None)], ids=["done", "undone"]
)
def test_what_is_written_down_is_not_looked_for(taken_back, found):
    once(lambda: DEAL)
    if taken_back:
        effects.undo(KEY)

    assert find_out() == found


@pytest.mark.parametrize(
    ("found", "state"), [(DEAL, "done"), (None, "undone")], ids=["found", "not found"]
)
def test_what_is_in_doubt_is_looked_for_and_written_down(found, state):
    crash(ago=LONG)

    assert find_out(lambda: found) == found
    assert effects.get(KEY).state == state
    assert find_out() == found


def test_what_is_under_way_is_waited_for():
    crash(lease=LONG)

    with pytest.raises(Pending) as pending:
        find_out()
    assert pending.value.retry_after == pytest.approx(LONG, abs=5)


def test_what_may_still_happen_is_not_taken_for_nothing():
    crash(lease=LONG)
    pass_time("lease_until")

    with pytest.raises(OutcomeUnknown) as doubt:
        find_out(lambda: None)
    assert doubt.value.retry_after == pytest.approx(LONG, abs=5)
    assert effects.get(KEY).state == "unknown"


def test_what_nobody_can_look_for_stays_in_doubt():
    crash(ago=LONG)

    with pytest.raises(OutcomeUnknown, match="a person's decision"):
        find_out(None)
    assert effects.get(KEY).state == "unknown"


def test_result_that_comes_while_it_is_looked_for_is_what_happened():
    crash(ago=LONG)

    def find():
        pass_time("lease_until")
        assert effects.settle(KEY, OTHER)

    assert find_out(find) == OTHER
    assert effects.get(KEY).result == OTHER


# ── The record ───────────────────────────────────────────────────────────────────────────────


def remember(connection, result):
    links.remember(connection, "deal", "7", result["deal_id"])


def test_record_is_written_with_the_result():
    once(lambda: DEAL, record=remember)

    assert links.get("deal", "7").remote_id == "70"


def test_record_is_written_when_the_effect_is_found():
    fail(OutcomeUnknown("timeout"))
    once(must_not_be_called, find=lambda: DEAL, record=remember)

    assert links.get("deal", "7").remote_id == "70"


def test_failing_record_takes_the_result_back_and_a_later_run_finds_it(caplog):
    def refuses(connection, result):
        remember(connection, result)
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        once(lambda: DEAL, record=refuses)
    assert effects.get(KEY).state == "intended"
    assert links.get("deal", "7") is None
    assert "could not write down the result {'deal_id': '70'}" in caplog.text

    pass_time("lease_until")
    pass_time("called_until")
    assert once(must_not_be_called, find=lambda: DEAL, record=remember) == Effect(DEAL, "found")
    assert links.get("deal", "7").remote_id == "70"


def test_record_is_not_written_again_by_a_later_run():
    once(lambda: DEAL, record=remember)

    assert once(must_not_be_called, record=must_not_be_called) == Effect(DEAL, "stored")


# ── Runs that lose their lease ───────────────────────────────────────────────────────────────


def overtake(later):
    """A call during which its lease passes and *later* happens, before it returns."""

    def do():
        pass_time("lease_until")
        pass_time("called_until")
        later()
        return DEAL

    return do


def test_late_result_is_kept_if_the_later_run_has_none(caplog):
    def later_run_times_out():
        fail(OutcomeUnknown("timeout"), owner="job-2", find=lambda: None)

    effect = once(overtake(later_run_times_out), record=remember)

    assert effect == Effect(DEAL, "done")
    assert (effects.get(KEY).state, effects.get(KEY).result) == ("done", DEAL)
    assert links.get("deal", "7").remote_id == "70"
    assert "run 1 finished after run 2 began" in caplog.text


def test_later_run_that_found_the_same_agrees(caplog):
    def later_run_finds():
        assert once(must_not_be_called, owner="job-2", find=lambda: DEAL).how == "found"

    assert once(overtake(later_run_finds), record=must_not_be_called) == Effect(DEAL, "done")
    assert "twice" not in caplog.text


def test_doubled_effect_is_logged_and_the_first_result_stays(caplog):
    def later_run_calls():
        assert once(lambda: OTHER, owner="job-2", find=lambda: None).how == "done"

    effect = once(overtake(later_run_calls), record=must_not_be_called)

    assert effect == Effect(OTHER, "stored")
    assert effects.get(KEY).result == OTHER
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert errors == [f"{KEY} happened twice: {OTHER} is kept, {DEAL} is not"]


def test_late_result_that_comes_during_the_later_call_wins(caplog):
    first_may_return, first_has_returned = threading.Event(), threading.Event()

    def second_call():
        first_may_return.set()
        assert first_has_returned.wait(10)
        return OTHER

    with ThreadPoolExecutor(1) as threads:

        def later_run_starts():
            later.append(threads.submit(once, second_call, owner="job-2", find=lambda: None))
            assert first_may_return.wait(10)

        later = []
        first = once(overtake(later_run_starts))
        first_has_returned.set()
        second = later[0].result(10)

    assert (first, second) == (Effect(DEAL, "done"), Effect(DEAL, "stored"))
    assert f"{KEY} happened twice: {DEAL} is kept, {OTHER} is not" in caplog.text


def test_late_result_that_comes_during_the_later_look_saves_the_call():
    def look():
        with storage_database.write() as connection:  # what the first run does when it returns
            connection.execute(update(effects_table).values(state="done", result=DEAL))

    crash(ago=LONG + 1)

    assert once(must_not_be_called, owner="job-2", find=look) == Effect(DEAL, "stored")


@pytest.mark.parametrize("error", [OutcomeUnknown("timeout"), InvalidData("no")], ids=repr)
def test_late_failure_says_nothing_about_the_later_run(error):
    def fail_late():
        overtake(lambda: once(lambda: OTHER, owner="job-2", find=lambda: None))()
        raise error

    with pytest.raises(type(error)):
        once(fail_late)
    assert (effects.get(KEY).state, effects.get(KEY).result) == ("done", OTHER)


# ── Races and deaths ─────────────────────────────────────────────────────────────────────────


def race(racers, run):
    """What each of *racers* threads got or was refused with, all let go at once."""
    start = threading.Barrier(racers)

    def one(number):
        start.wait(10)
        try:
            return run(number)
        except JobError as error:
            return error

    with ThreadPoolExecutor(racers) as threads:
        return list(threads.map(one, range(racers)))


def kinds(outcomes):
    return {o.how if isinstance(o, Effect) else type(o).__name__ for o in outcomes}


def test_one_of_many_racers_calls():
    upstream = Upstream(DEAL)
    outcomes = race(16, lambda number: once(upstream.do, owner=f"job-{number}"))

    assert upstream.calls == 1
    assert [o for o in outcomes if isinstance(o, Effect) and o.how == "done"] == [
        Effect(DEAL, "done")
    ]
    assert kinds(outcomes) <= {"done", "stored", "Pending"}


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda: crash(ago=LONG + 1), id="crash"),
        pytest.param(lambda: fail(OutcomeUnknown("timeout")), id="unknown"),
    ],
)
def test_one_of_many_racers_takes_over(leave):
    leave()
    release = threading.Event()
    upstream = Upstream(finds=[lambda: release.wait(10) and DEAL])

    def run(number):
        try:
            return once(upstream.do, owner=f"job-{number}", find=upstream.find)
        finally:
            finished.append(number)
            if len(finished) == 15:  # the others cannot wait for the one that looks
                release.set()

    finished = []
    outcomes = race(16, run)

    assert upstream.looks == 1
    assert sorted(kinds(outcomes)) == ["Pending", "found"]


def test_many_effects_at_once_all_happen():
    def several(number):
        return [
            once(lambda: DEAL, f"deal:{number}:{n}", record=remember_as(f"{number}:{n}"))
            for n in range(4)
        ]

    outcomes = race(64, several)

    assert outcomes == [[Effect(DEAL, "done")] * 4] * 64
    assert links.get("deal", "63:3").remote_id == "70"


def remember_as(local_id):
    return lambda connection, result: links.remember(
        connection, "deal", local_id, result["deal_id"]
    )


def call_and_hang(reached):
    def do():
        reached.set()
        time.sleep(60)
        return DEAL

    once(do, lease=1.0)


def test_killed_worker_s_effect_is_taken_over_when_its_lease_has_passed():
    spawn = multiprocessing.get_context("spawn")
    reached = spawn.Event()
    worker = spawn.Process(target=call_and_hang, args=(reached,), daemon=True)
    worker.start()
    assert reached.wait(30)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)
    upstream = Upstream(finds=[DEAL])
    outcomes = []

    def take_over():
        outcomes.extend(race(1, lambda _: once(upstream.do, owner="job-2", find=upstream.find)))
        return isinstance(outcomes[-1], Effect)

    row = effects.get(KEY)
    assert (row.state, worker.exitcode) == ("intended", -signal.SIGKILL)
    eventually(take_over)
    assert outcomes[-1] == Effect(DEAL, "found")
    assert kinds(outcomes) == {"Pending", "found"}
    assert all(0 <= pending.retry_after <= 1.0 for pending in outcomes[:-1])
    assert effects.get(KEY).updated_at >= row.lease_until


def race_in_process(start, calls, outcomes, key):
    def do():
        calls.put(os.getpid())
        return DEAL

    start.wait(60)
    try:
        outcomes.put(once(do, key).how)
    except Pending:
        outcomes.put("pending")


def test_one_of_many_processes_calls():
    spawn = multiprocessing.get_context("spawn")
    start, calls, outcomes = spawn.Barrier(3), spawn.Queue(), spawn.Queue()
    processes = [
        spawn.Process(target=race_in_process, args=(start, calls, outcomes, KEY), daemon=True)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    got = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(10)

    assert got.count("done") == 1
    assert set(got) <= {"done", "stored", "pending"}
    assert calls.get(timeout=10)
    assert calls.empty()


def work_in_child(outcomes):
    outcomes.put(storage_database.engine().pool.checkedin())
    outcomes.put(once(lambda: DEAL, "deal:8").how)


def test_forked_child_uses_no_connection_of_its_parent():
    once(lambda: DEAL)
    fork = multiprocessing.get_context("fork")
    outcomes = fork.Queue()
    child = fork.Process(target=work_in_child, args=(outcomes,), daemon=True)
    child.start()

    assert outcomes.get(timeout=30) == 0
    assert outcomes.get(timeout=30) == "done"
    child.join(10)
    assert child.exitcode == 0
    assert once(must_not_be_called) == Effect(DEAL, "stored")
    assert effects.get("deal:8").state == "done"


# ── PostgreSQL goes away ─────────────────────────────────────────────────────────────────────


@only_on_postgresql
def test_result_survives_a_restart_of_the_server(postgresql, monkeypatch):
    # A restart takes a second, and on a busy machine longer than we are patient in life.
    monkeypatch.setattr(effects, "_PAUSES", (*effects._PAUSES, *[0.5] * 100))

    def do():
        postgresql.stop("immediate")
        threading.Timer(0.7, postgresql.start).start()
        return DEAL

    assert once(do, record=remember) == Effect(DEAL, "done")
    assert links.get("deal", "7").remote_id == "70"


@only_on_postgresql
def test_connections_that_died_at_rest_cost_no_job_an_attempt(postgresql, monkeypatch):
    monkeypatch.setattr(storage_database, "RESTED", 0.0)
    race(16, lambda number: once(lambda: DEAL, f"deal:{number}"))
    postgresql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shared'"
    )

    outcomes = race(16, lambda number: once(lambda: DEAL, f"deal:{number + 16}"))
    assert outcomes == [Effect(DEAL, "done")] * 16


@only_on_postgresql
def test_refusal_survives_the_loss_of_a_connection(postgresql):
    error = InvalidData("no title")

    def do():
        postgresql.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shared'"
        )
        raise error

    with pytest.raises(InvalidData):
        once(do)
    assert effects.get(KEY).state == "undone"


def test_error_of_the_call_is_not_hidden_by_a_database_in_trouble(caplog):
    def do():
        rename("effects", "elsewhere")
        raise InvalidData("no title")

    with pytest.raises(InvalidData, match="no title"):
        once(do)
    rename("elsewhere", "effects")
    assert "run 1 could not write down how it ended" in caplog.text


# ── Exclusive work ───────────────────────────────────────────────────────────────────────────


def test_work_on_the_same_key_excludes_others_until_it_ends():
    with effects.exclusive("deal:7", owner="job-1", lease=LONG):
        with (
            pytest.raises(Pending) as pending,
            effects.exclusive("deal:7", owner="job-2", lease=LONG),
        ):
            must_not_be_called()
        with effects.exclusive("deal:8", owner="job-2", lease=LONG):
            pass
    with effects.exclusive("deal:7", owner="job-2", lease=LONG):
        pass

    assert pending.value.retry_after == pytest.approx(LONG, abs=5)


def test_all_keys_or_none():
    with effects.exclusive("b", owner="job-1", lease=LONG):
        with pytest.raises(Pending), effects.exclusive("c", "b", "a", owner="job-2", lease=LONG):
            must_not_be_called()
        with effects.exclusive("a", "c", owner="job-3", lease=LONG):
            pass


def test_longest_lease_in_the_way_tells_when_to_come_back():
    with (
        effects.exclusive("a", owner="job-1", lease=LONG),
        effects.exclusive("b", owner="job-2", lease=2 * LONG),
        pytest.raises(Pending) as pending,
        effects.exclusive("a", "b", owner="job-3", lease=LONG),
    ):
        must_not_be_called()

    assert pending.value.retry_after == pytest.approx(2 * LONG, abs=5)


def test_leases_are_given_back_after_a_failure():
    with pytest.raises(RuntimeError), effects.exclusive("a", "b", owner="job-1", lease=LONG):
        raise RuntimeError

    with effects.exclusive("a", "b", owner="job-2", lease=LONG):
        pass


def test_redelivered_job_takes_its_lease_back_and_its_former_self_does_not_end_it():
    with effects.exclusive("a", owner="job-1", lease=LONG):
        again = effects.exclusive("a", owner="job-1", lease=LONG)
        again.__enter__()
    with pytest.raises(Pending), effects.exclusive("a", owner="job-2", lease=LONG):
        must_not_be_called()
    again.__exit__(None, None, None)
    with effects.exclusive("a", owner="job-2", lease=LONG):
        pass


def test_lease_of_a_dead_worker_passes():
    dead = effects.exclusive("a", "b", owner="job-1", lease=SHORT)
    dead.__enter__()
    left = []

    def work():
        try:
            with effects.exclusive("a", "b", owner="job-2", lease=LONG):
                return True
        except Pending as pending:
            left.append(pending.retry_after)
            return False

    assert not work()
    eventually(work)
    assert SHORT >= left[0] >= left[-1] >= 0


def test_only_one_of_many_racers_works():
    inside, most = [], []

    def work(number):
        keys = ["a", "b", "c"] if number % 2 else ["c", "b", "a"]
        with effects.exclusive(*keys, owner=f"job-{number}", lease=LONG):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)
        return Effect({}, "done")

    outcomes = race(16, work)

    assert set(most) == {1}
    assert kinds(outcomes) <= {"done", "Pending"}


def test_lost_release_does_not_fail_the_work(caplog):
    with effects.exclusive("a", owner="job-1", lease=LONG):
        rename("leases", "elsewhere")

    rename("elsewhere", "leases")
    assert "the lease will end" in caplog.text


# ── Transactions ─────────────────────────────────────────────────────────────────────────────


@only_on_sqlite
def test_transaction_inside_a_transaction_fails_instead_of_hanging(monkeypatch):
    monkeypatch.setattr(storage_database, "PATIENCE", 0.1)

    with (
        storage_database.transaction(),
        pytest.raises(Exception, match="no turn at the database"),
        storage_database.transaction(),
    ):
        must_not_be_called()


@only_on_sqlite
@pytest.mark.parametrize("elsewhere", [False, True], ids=["thread", "process"])
def test_result_survives_a_writer_that_is_slower_than_our_patience(
    database, monkeypatch, elsewhere
):
    monkeypatch.setattr(storage_database, "PATIENCE", 0.1)
    with storage_database.read() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 100")
    other = storage_database.build(database, pooled=False)
    writing = threading.Event()

    def write_slowly():
        with other.begin() if elsewhere else storage_database.transaction():
            writing.set()
            time.sleep(0.4)

    def do():
        threads.submit(write_slowly)
        assert writing.wait(10)
        return DEAL

    with ThreadPoolExecutor(1) as threads:
        assert once(do) == Effect(DEAL, "done")


@only_on_sqlite
@pytest.mark.parametrize(
    ("pragma", "value"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10_000)],
)
def test_sqlite_is_set_up_to_forget_no_intent(pragma, value):
    with storage_database.read() as connection:
        assert connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() == value


@only_on_postgresql
def test_no_statement_waits_for_ever():
    with storage_database.read() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "10s"


def test_time_goes_on_inside_a_transaction():
    with storage_database.transaction() as connection:
        first, second = (
            connection.execute(select(storage_database.now().label("now"))).scalar_one()
            for _ in range(2)
        )

    assert first < second


@only_on_sqlite
def test_writer_waits_for_another_process(database):
    other = storage_database.build(database, pooled=False)  # as another process would have
    with ThreadPoolExecutor(1) as threads:
        with other.begin() as connection:
            connection.execute(text("DELETE FROM effects"))
            waiting = threads.submit(once, lambda: DEAL)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
        assert waiting.result(10) == Effect(DEAL, "done")


@only_on_sqlite
def test_other_process_that_never_ends_is_an_error_not_a_hang(database):
    impatient = storage_database.build(database, patience=0.1, pooled=False)
    with (
        storage_database.transaction(),
        pytest.raises(OperationalError, match="locked"),
        impatient.begin(),
    ):
        must_not_be_called()
