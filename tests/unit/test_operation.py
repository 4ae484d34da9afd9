"""The base of every task: what becomes of a failure, run by run; the broker is in memory."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery._state import _task_stack
from celery.exceptions import Retry
from kombu.exceptions import OperationalError
from sqlalchemy.exc import OperationalError as DatabaseAway

from classifiers.errors import (
    BillingExhausted,
    Cancelled,
    Duplicate,
    InvalidData,
    JobError,
    OutcomeUnknown,
    Paused,
    Pending,
    RateLimited,
    ServiceUnavailable,
    UserError,
    kinds,
)
from config.policies import LATE_AFTER, LATE_ATTEMPTS
from reliability.dead_letters import replays_of
from reliability.holds import Hold
from tasks.base import END_OF_TIME, Job, Operation, accepted_at, began_at, job, progress
from tasks.payloads import Fields, Id

TOO_DARK = UserError("too dark", reason="photo_too_dark")
DONE = {"outcome": "done"}
LONG_AGO = LATE_AFTER + 60  # s; a slow machine must not make it late


def application() -> Celery:
    """An application of its own; left to Celery, it would take in the tasks of every other one."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.finalized = True
    return app


@dataclass
class Shop:
    """An application whose tasks do what a test wants; what it hears is kept."""

    app: Celery = field(default_factory=application)
    told: list[Any] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)

    def task(self, name: str, *failures: Exception, **options: Any) -> Operation:
        """A task that fails in each of these ways, one a run, and then is done."""
        left = list(failures)

        def body(order_id: Id) -> dict[str, Any]:
            if left:
                raise left.pop(0)
            return DONE

        return self.operation(body, name, **{"adopt": self.adoption(), **options})

    def operation(self, body: Any, name: str, **options: Any) -> Operation:
        options["holds"] = lambda: self.holds
        return self.app.task(body, base=Operation, name=name, shared=False, **options)

    def compensation(self, *failures: Exception) -> str:
        """A task that makes good, after these failures."""
        left = list(failures)

        def make_good(
            task: str,
            payload: Fields,
            job_id: Id,
            replays: int,
            error_type: str,
            category: str,
            reason: str,
            refund: bool,
            tell: bool,
        ) -> dict[str, Any]:
            amends = (task, payload, job_id, replays, error_type, category, reason, refund, tell)
            self.told.append(amends)
            if left:
                raise left.pop(0)
            return {"outcome": "made good", "reason": reason}

        return self.operation(make_good, "shop.make_good").name

    def tell(self, *failures: Exception) -> Any:
        """A function that tells the user, after these failures."""
        left = list(failures)

        def tell(**payload: Any) -> None:
            if left:
                raise left.pop(0)
            self.told.append(payload)

        return tell

    def adoption(self, *failures: Exception) -> Any:
        left = list(failures)

        def adopt(existing_id: str, **payload: Any) -> dict[str, Any]:
            self.told.append((existing_id, payload))
            if left:
                raise left.pop(0)
            return {"outcome": "adopted"}

        return adopt


@pytest.fixture
def shop() -> Shop:
    return Shop()


def run(
    task: Operation, headers: dict[str, Any] | None = None, args: tuple = (), **facts: Any
) -> Any:
    """Run a job once, as a worker does; return its result, or the headers it comes back with."""
    kwargs = {} if args else {"order_id": "7"}
    request = {"id": "j1", "args": args, "kwargs": kwargs, "retries": 0, "called_directly": False}
    task.push_request(headers=headers, **request | facts)
    _task_stack.push(task)  # what makes it the current task
    try:
        return task.run(*args, **kwargs)
    except Retry as again:
        return json.loads(json.dumps(again.sig.options["headers"]))
    finally:
        _task_stack.pop()
        task.pop_request()


def ago(seconds: float) -> dict[str, float]:
    """The headers of a job that was accepted so many seconds ago."""
    return {"accepted_at": time.time() - seconds}


# -- what comes back


def test_a_job_comes_back_with_what_it_has_been_through(shop):
    task = shop.task("shop.sell", ServiceUnavailable("502", service="kie"), Pending(service="kie"))
    first = run(task, ago(0) | {"replays": 1})
    second = run(task, first)

    assert [first["spent"], first["waited"]] == [{"Retryable": 1}, {}]
    assert [second["spent"], [*second["waited"]]] == [{"Retryable": 1}, ["Pending"]]
    assert [entry["error"] for entry in second["history"]] == ["ServiceUnavailable", "Pending"]
    assert first["parking"] == {
        "reason": "ServiceUnavailable",
        "service": "kie",
        "code": "",
        "detail": "kie – 502",
        "at": first["history"][0]["at"],
        "seconds": first["history"][0]["delay"],
        "yields": False,
    }
    assert second["accepted_at"] == first["accepted_at"]
    assert second["replays"] == 1
    assert run(task, second) == DONE


def test_a_job_knows_the_wait_that_it_comes_back_from(shop):
    waits = []

    def look(order_id: Id) -> None:
        waits.append(job().wait)

    task = shop.operation(look, "shop.look")
    limited = shop.task("shop.sell", RateLimited(service="x", retry_after=9.0))
    headers = run(limited)
    run(task, headers)
    run(task, headers)
    run(task, {})

    assert waits[0] == waits[1]
    assert (waits[0].reason, waits[0].seconds) == ("RateLimited", 9.0)
    assert waits[2] is None


@pytest.mark.parametrize(("since", "woken"), [(0.0, True), (10.0, False)])
def test_a_job_that_comes_back_before_its_time_was_woken(shop, since, woken):
    told = []

    def look(order_id: Id) -> None:
        told.append(job().woken)

    parked = {"reason": "Pending", "at": time.time() - since, "seconds": 9.0}
    run(shop.operation(look, "shop.look"), {"parking": parked})

    assert told == [woken]


def test_a_job_that_has_got_on_has_all_its_attempts_again(shop):
    left = [True, False]

    def crawl(order_id: Id) -> None:
        if left.pop(0):
            progress(pages=1)
        raise ServiceUnavailable("502", service="x")

    task = shop.operation(crawl, "shop.crawl")
    again = run(task, {"spent": {"Retryable": 4}})
    once_more = run(task, again)

    assert again["spent"] == {"Retryable": 1}
    assert once_more["spent"] == {"Retryable": 2}


@pytest.mark.parametrize(
    ("yields", "failure", "behind"),
    [(True, Pending(), True), (True, RateLimited(), False), (False, Pending(), False)],
)
def test_who_yields_comes_back_behind_the_others_unless_it_is_urgent(shop, yields, failure, behind):
    headers = run(shop.task("shop.sell", failure, yields=yields))

    assert headers["parking"]["yields"] is behind


def test_a_failure_that_nothing_comes_of_is_raised_as_it_is(shop):
    failure = JobError("no")

    with pytest.raises(JobError) as caught:
        run(shop.task("shop.sell", failure))

    assert caught.value is failure


# -- what ends well


def test_a_job_that_ends_well_says_how(shop):
    assert run(shop.task("video.send", TOO_DARK)) == {"outcome": "refunded", "order_id": "7"}
    assert shop.told == []


def test_what_a_job_has_begun_is_made_good_in_the_run_that_ends_it(shop):
    task = shop.task("video.send", TOO_DARK, compensation=shop.compensation())
    outcome = run(task, {"replays": 2})

    assert outcome == {"outcome": "made good", "order_id": "7", "reason": "photo_too_dark"}
    job = ("video.send", {"order_id": "7"}, "j1", 2)
    assert shop.told == [(*job, "UserError", "user", "photo_too_dark", True, True)]


def test_what_could_not_be_made_good_is_tried_again(shop):
    compensation = shop.compensation(ServiceUnavailable("the database restarts"))
    task = shop.task("video.send", TOO_DARK, TOO_DARK, compensation=compensation)
    back = run(task)
    outcome = run(task, back)

    assert back["spent"] == {"Retryable": 1}
    assert outcome["outcome"] == "made good"
    assert len(shop.told) == 2


def test_a_failure_to_make_good_is_never_taken_for_a_good_end(shop):
    compensation = shop.compensation(UserError(reason="recipient_unreachable"))

    with pytest.raises(UserError) as caught:
        run(shop.task("video.send", TOO_DARK, compensation=compensation))

    assert caught.value.reason == "recipient_unreachable"
    assert len(shop.told) == 1


def test_a_job_that_is_done_has_nothing_to_be_made_good(shop):
    assert run(shop.task("video.send", compensation=shop.compensation())) == DONE
    assert shop.told == []


@pytest.mark.parametrize(
    ("name", "kind", "refund", "tell"),
    [
        ("video.send", UserError, True, True),
        ("video.send", Cancelled, True, True),
        ("video.send", OutcomeUnknown, False, True),
        ("video.generate", OutcomeUnknown, True, True),
        ("video.generate", BillingExhausted, True, True),
    ],
)
def test_the_table_says_whether_credits_go_back(shop, name, kind, refund, tell):
    amends = shop.task(name).amends(kind, Job("j1"), {})

    assert (amends["refund"], amends["tell"]) == (refund, tell)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_what_a_compensation_is_told_fits_into_a_message(shop, kind):
    compensation = shop.app.tasks[shop.compensation()]
    amends = shop.task("shop.sell").amends(kind, Job("j1", replays=1), {"order_id": "7"})

    assert compensation.payload.write((), amends) == json.loads(json.dumps(amends))
    assert (amends["error_type"], amends["category"]) == (kind.__name__, kind.category)


# -- what exists already


def test_what_exists_is_gone_on_with(shop):
    task = shop.task("video.send", Duplicate(existing_id="-100"), adopt=shop.adoption())

    assert run(task) == {"outcome": "adopted"}
    assert shop.told == [("-100", {"order_id": "7"})]


def test_what_is_said_to_exist_again_and_again_is_gone_on_with_once_a_run(shop):
    adopt = shop.adoption(Duplicate(existing_id="-200"), Duplicate(existing_id="-300"))

    with pytest.raises(Duplicate) as caught:
        run(shop.task("video.send", Duplicate(existing_id="-100"), adopt=adopt))

    assert caught.value.existing_id == "-200"
    assert [existing for existing, _ in shop.told] == ["-100"]


def test_what_is_gone_on_with_may_still_end_well(shop):
    adopt = shop.adoption(UserError(reason="recipient_unreachable"))
    task = shop.task(
        "video.send", Duplicate(existing_id="-100"), adopt=adopt, compensation=shop.compensation()
    )

    assert run(task)["reason"] == "recipient_unreachable"


def test_what_is_gone_on_with_may_be_tried_again(shop):
    adopt = shop.adoption(ServiceUnavailable())
    task = shop.task("video.send", *[Duplicate(existing_id="-100")] * 2, adopt=adopt)

    assert run(task, run(task)) == {"outcome": "adopted"}


def test_a_task_that_may_adopt_has_to_know_how(shop):
    with pytest.raises(TypeError, match="no adopt= function"):
        shop.task("video.send", adopt=None)


def test_the_body_alone_takes_a_failure_for_what_it_is(shop):
    task = shop.task("video.send", TOO_DARK)

    with pytest.raises(UserError):
        task.body("7")
    assert task.body("7") == DONE


# -- patience


def late(shop: Shop, *failures: Exception, told_after: tuple[Exception, ...] = ()) -> Operation:
    return shop.task("video.generate", *failures, ask_for_patience=shop.tell(*told_after))


def test_a_user_is_asked_for_patience_once_when_it_takes_long(shop):
    task = late(shop, *[Pending()] * 3)
    in_time = run(task, ago(LATE_AFTER / 2))
    overdue = run(task, in_time | ago(LONG_AGO))
    again = run(task, overdue)

    assert ["asked_for_patience" in headers for headers in (in_time, overdue)] == [False, True]
    assert again["asked_for_patience"] is True
    assert shop.told == [{"order_id": "7"}]
    assert run(task, again) == DONE


def test_a_user_is_asked_for_patience_after_some_failures(shop):
    task, headers = late(shop, *[ServiceUnavailable()] * LATE_ATTEMPTS), ago(0)
    told = []
    for _ in range(LATE_ATTEMPTS):
        headers = run(task, headers)
        told.append(len(shop.told))

    assert told == [0] * (LATE_ATTEMPTS - 1) + [1]


@pytest.mark.parametrize(
    "obstacle",
    [OperationalError("no broker"), DatabaseAway("SELECT 1", {}, Exception("gone")), KeyError("x")],
    ids=["broker", "database", "bug"],
)
def test_a_user_who_could_not_be_asked_is_asked_at_the_next_retry(shop, obstacle):
    task = late(shop, *[Pending()] * 2, told_after=(obstacle,))
    unasked = run(task, ago(LONG_AGO))
    asked = run(task, unasked)

    assert [unasked["asked_for_patience"], asked["asked_for_patience"]] == [False, True]
    assert len(shop.told) == 1
    assert run(task, asked) == DONE


def test_a_replay_has_not_taken_long_yet(shop):
    run(late(shop, Pending()), ago(LONG_AGO) | {"sent_again_at": time.time()})

    assert shop.told == []


@pytest.mark.parametrize("headers", [{}, {"accepted_at": "long ago"}])
def test_who_does_not_say_since_when_is_not_late(shop, headers):
    run(late(shop, Pending()), headers)

    assert shop.told == []


def test_nobody_is_asked_for_patience_where_it_soon_ends(shop):
    run(late(shop, InvalidData()), ago(LONG_AGO))

    assert shop.told == []


def test_a_job_whose_arguments_have_no_names_is_told_of_like_any_other(shop):
    run(late(shop, Pending()), ago(LONG_AGO), args=("7",))

    assert shop.told == [{"order_id": "7"}]


# -- what a person holds back


@pytest.mark.parametrize(
    "hold",
    [
        Hold("h1", task="shop.sell"),
        Hold("h1", where={"order_id": "7"}),
        Hold("h1", task="shop.sell", where={"order_id": "7"}, service="kie"),
    ],
    ids=["task", "argument", "task, argument and queue"],
)
def test_a_held_job_waits_without_having_begun_and_spends_nothing(shop, hold):
    task = shop.task("shop.sell", ServiceUnavailable("it has run"))
    shop.holds.append(replace(hold, by="ann", note="wrong prices"))
    held = run(task, {"spent": {"Retryable": 2}}, delivery_info={"routing_key": "kie"})

    assert (held["parking"]["reason"], held["parking"]["code"]) == ("Paused", "h1")
    assert "held by ann" in held["parking"]["detail"]
    assert "wrong prices" in held["parking"]["detail"]
    assert held["spent"] == {"Retryable": 2}


@pytest.mark.parametrize(
    "hold",
    [
        Hold("h1", task="shop.buy"),
        Hold("h1", where={"order_id": "70"}),
        Hold("h1", task="shop.sell", where={"order_id": "7", "user_id": "8"}),
        Hold("h1", task="shop.sell", where={"order_id": "7"}, service="telegram"),
    ],
    ids=["other task", "other order", "one argument of two", "other queue"],
)
def test_a_job_that_nobody_holds_runs(shop, hold):
    shop.holds.append(hold)

    assert run(shop.task("shop.sell"), {}, delivery_info={"routing_key": "kie"}) == DONE


def test_a_held_job_runs_once_it_is_let_go(shop):
    shop.holds.append(Hold("h1", task="shop.sell"))
    task = shop.task("shop.sell")
    held = run(task)
    again = run(task, held)
    shop.holds.clear()

    assert again["history"][-1]["times"] == 2
    assert run(task, again) == DONE


def test_a_task_is_held_whatever_its_jobs_carry(shop):
    shop.holds.append(Hold("h1", task="shop.sell"))

    assert run(shop.task("shop.sell"), args=("",))["parking"]["code"] == "h1"


def test_the_first_of_two_holds_tells_why(shop):
    shop.holds += [Hold("h1", task="shop.sell"), Hold("h2", task="shop.sell")]

    assert run(shop.task("shop.sell"))["parking"]["code"] == "h1"


@pytest.mark.parametrize(
    "facts", [{"called_directly": True}, {"is_eager": True}], ids=["directly", "eagerly"]
)
def test_what_is_no_message_cannot_be_held(shop, facts):
    shop.holds.append(Hold("h1", task="shop.sell"))

    assert run(shop.task("shop.sell"), **facts) == DONE


def test_a_held_video_is_paid_back_when_it_has_waited_for_a_day(shop):
    shop.holds.append(Hold("h1", task="video.generate"))

    with pytest.raises(Paused):
        run(shop.task("video.generate"), {"waited": {"Paused": 86_400 - 60}})


# -- what a job knows of itself


def test_a_job_knows_how_often_it_was_sent_again(shop):
    known = []

    def body(order_id: Id) -> None:
        known.append(job())

    task = shop.operation(body, "shop.look")
    run(task, {"replays": 3, "accepted_at": 5.0})
    run(task)

    begun = datetime.fromtimestamp(5, UTC)

    assert known == [Job("j1", begun, replays=3, asked_at=begun), Job("j1")]


@pytest.mark.parametrize(
    ("headers", "count"),
    [
        ({}, 0),
        ({"replays": 2}, 2),
        ({"replays": "2"}, 0),
        ({"replays": None}, 0),
        ({"replays": -1}, 0),
    ],
    ids=["none", "two", "words", "nothing", "less"],
)
def test_replays_are_read_from_a_message(headers, count):
    assert replays_of(headers) == count


@pytest.mark.parametrize(
    ("headers", "begun"),
    [
        ({"accepted_at": 5}, 5),
        ({"accepted_at": 5, "sent_again_at": 9.5}, 9.5),
        ({"accepted_at": 5, "sent_again_at": "now"}, 5),
        ({"sent_again_at": 9.5}, 9.5),
        ({"accepted_at": math.nan}, None),
        ({"accepted_at": END_OF_TIME}, None),
        ({}, None),
    ],
    ids=["accepted", "replayed", "in words", "accepted nowhere", "nan", "too late", "never"],
)
def test_a_users_wait_begins_with_the_job_or_its_replay(headers, begun):
    assert began_at(headers) == (begun and datetime.fromtimestamp(begun, UTC))


def test_a_replay_keeps_when_the_job_was_accepted():
    assert accepted_at({"accepted_at": 5, "sent_again_at": 9}) == datetime.fromtimestamp(5, UTC)
