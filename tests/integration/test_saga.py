"""Sagas: reserve, pay, ship; and back in reverse order, whatever dies or stays silent between."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery._state import _task_stack
from sqlalchemy import update

from classifiers.errors import (
    Cancelled,
    InvalidData,
    JobError,
    OutcomeUnknown,
    Pending,
    ServiceUnavailable,
    UserError,
)
from storage import database as storage_database
from storage import effects, sagas
from storage.models import effects as effects_table
from tasks.base import Job, Operation, job
from tasks.payloads import Fields, Id, Money
from tasks.saga import Saga, Step

pytestmark = pytest.mark.usefixtures("database")

LONG = 60.0  # a lease that no test outlives
DEAD = 17  # the exit code of a worker that has died as it should
PAYLOAD = {"amount": "9.90"}
ALL = ["reserve", "pay", "ship"]
BACK = ["unship", "unpay", "unreserve"]
SILENCE = OutcomeUnknown("no answer")
REFUSAL = InvalidData("no such street")
J1, J2 = Job("j1"), Job("j2")


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with a call: it is *heard* or not, then fails with *error*, or all ends."""

    error: JobError | None = None
    heard: bool = False


@dataclass
class World:
    """The three upstreams; what they have heard is in a file, which a worker's death leaves be."""

    journal: Path
    troubles: dict[str, list[Trouble]] = field(default_factory=dict)
    before: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def trouble(self, verb: str, error: JobError | None = None, *, heard: bool = False) -> None:
        self.troubles.setdefault(verb, []).append(Trouble(error, heard))

    def call(self, verb: str, key: str) -> dict[str, Any]:
        trouble = next(iter(self.troubles.get(verb, [])), None)
        if trouble is None or trouble.heard:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(f"{verb} {key}\n")
        if trouble is not None:
            self.troubles[verb].remove(trouble)
            if trouble.error is None:
                os._exit(DEAD)
            raise trouble.error
        return {"id": key}

    def find(self, verb: str, key: str) -> dict[str, Any] | None:
        return {"id": key} if f"{verb} {key}" in self._lines() else None

    def lease(self, step: str) -> float:
        """Asked before anything is written down about a step, or about its undo."""
        self.before.pop(step, lambda: None)()
        return LONG

    @property
    def heard(self) -> list[str]:
        """What was called, in order."""
        return [line.partition(" ")[0] for line in self._lines()]

    def _lines(self) -> list[str]:
        return self.journal.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def world(tmp_path) -> World:
    journal = tmp_path / "journal"
    journal.touch()
    return World(journal)


def step(world: World, name: str, *, finds: bool = True, undone: bool = True) -> Step:
    """A step whose result tells what it knew."""
    back = f"un{name}"

    def do(key, payload, had):
        return {**world.call(name, key), "amount": payload["amount"], "after": list(had)}

    return Step(
        name,
        do=do,
        undo=(lambda key, _: world.call(back, key)) if undone else None,
        find=(lambda key: world.find(name, key)) if finds else None,
        find_undo=(lambda key, _: world.find(back, key)) if finds else None,
        lease=lambda: world.lease(name),
    )


def trip(world: World, *, unasked: str = "", unpaid_back: str = "") -> Saga:
    """The saga; *unasked* names a step that cannot be looked for, *unpaid_back* one without undo."""
    steps = (step(world, n, finds=n != unasked, undone=n != unpaid_back) for n in ALL)
    return Saga("trip", *steps)


@pytest.fixture
def saga(world) -> Saga:
    return trip(world)


def application() -> Celery:
    """An application of its own; left to Celery, it would take in the tasks of every other one."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.finalized = True
    return app


@contextmanager
def at_work(of: Job) -> Iterator[None]:
    """Be a worker that runs this job."""
    task = application().task(job, name="shop.work", shared=False)
    task.push_request(id=of.id, headers={"replays": of.replays}, called_directly=False)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def run(saga: Saga, of: Job = J1) -> dict[str, Any]:
    with at_work(of):
        return saga.run("42", PAYLOAD)


def undo(saga: Saga, of: Job | None = J1) -> bool:
    with at_work(Job("amends")):
        return saga.undo("42", of=of)


def fails(call: Callable[..., Any], saga: Saga, kind: type[JobError], *of: Job) -> JobError:
    with pytest.raises(kind) as caught:
        call(saga, *of)
    return caught.value


def dies(call: Callable[..., Any], saga: Saga) -> None:
    """Do it in a worker that ends in the middle of it."""
    worker = multiprocessing.get_context("fork").Process(target=call, args=(saga,))
    worker.start()
    worker.join(30)

    assert worker.exitcode == DEAD


def pass_time() -> None:
    """Let all leases end, and calls that may still take effect have taken it."""
    with storage_database.write() as connection:
        past = storage_database.now(plus=-0.001)
        connection.execute(update(effects_table).values(lease_until=past, called_until=past))


def state() -> str:
    known = sagas.get("trip:42")
    return known.state if known else ""


def states() -> dict[str, str]:
    """What is written down about the steps, and about their undos."""
    keys = [*ALL, *(f"{name}.undo" for name in ALL)]
    rows = {name: effects.get(f"trip.{name}:42:1") for name in keys}
    return {name: row.state for name, row in rows.items() if row is not None}


# -- there


def test_steps_are_had_in_order_and_know_of_those_before(saga, world):
    had = run(saga)

    assert world.heard == ALL
    assert had["ship"] == {"id": "trip.ship:42:1", "amount": "9.90", "after": ["reserve", "pay"]}
    assert list(had) == ALL
    assert state() == "done"


def test_a_saga_that_is_done_is_not_had_again(saga, world):
    first = run(saga)

    assert run(saga) == first
    assert run(saga, J2) == first
    assert world.heard == ALL


def test_a_job_that_comes_again_goes_on_where_it_was(saga, world):
    world.trouble("ship", ServiceUnavailable("503"))
    fails(run, saga, ServiceUnavailable)
    before = world.heard

    run(saga)
    assert (before, world.heard) == (ALL[:2], ALL)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not heard"])
def test_a_crash_in_a_step_is_looked_into_and_gone_on_from(saga, world, heard):
    world.trouble("pay", heard=heard)
    dies(run, saga)
    fails(run, saga, Pending)  # the dead worker's lease
    world.troubles.clear()
    pass_time()

    run(saga)
    assert world.heard == ALL


def test_two_sagas_do_not_share_steps(saga, world):
    run(saga)
    with at_work(J2):
        saga.run("43", PAYLOAD)

    assert world.heard == ALL * 2


def test_keys_tell_a_replay_where_to_look(saga):
    unknown = saga.keys("42")
    run(saga)

    assert unknown == []
    assert [effects.get(key).state for key in saga.keys("42")] == ["done"] * 3


# -- and back


def test_what_was_had_is_taken_back_in_reverse_order(saga, world):
    world.trouble("ship", REFUSAL)
    fails(run, saga, InvalidData)
    before = world.heard

    assert before == ["reserve", "pay"]  # a failure alone undoes nothing
    assert undo(saga)
    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]
    assert state() == "undone"
    assert states() == {
        "reserve": "undone",
        "pay": "undone",
        "ship": "undone",
        "pay.undo": "done",
        "reserve.undo": "done",
    }


def test_an_undo_is_told_what_its_step_has_led_to(world):
    told = []
    pay = Step(
        "pay",
        do=lambda key, *_: {"payment": key},
        undo=lambda key, result: told.append((key, result)) or {},
        lease=lambda: LONG,
    )
    saga = Saga("trip", pay)
    run(saga)
    undo(saga)

    assert told == [("trip.pay.undo:42:1", {"payment": "trip.pay:42:1"})]


def test_what_was_never_begun_leaves_nothing_to_undo(saga, world):
    assert not undo(saga)
    assert world.heard == []


def test_an_undo_that_comes_twice_undoes_once(saga, world):
    run(saga)

    assert (undo(saga), undo(saga)) == (True, False)
    assert world.heard == ALL + BACK


def die_in_between() -> None:
    os._exit(DEAD)


@pytest.mark.parametrize("where", ["between", "before it was heard", "after it was heard"])
def test_a_crash_among_the_undos_takes_nothing_back_twice_and_leaves_nothing(saga, world, where):
    run(saga)
    if where == "between":
        world.before["reserve"] = die_in_between
    else:
        world.trouble("unreserve", heard=where == "after it was heard")
    dies(undo, saga)
    crashed = state(), states()["pay.undo"]
    world.troubles.clear()
    world.before.clear()
    pass_time()

    assert crashed == ("undoing", "done")
    assert undo(saga)
    assert world.heard == ALL + BACK
    assert state() == "undone"


def test_an_undo_that_is_refused_keeps_what_is_before_it_until_it_is_taken(saga, world):
    run(saga)
    world.trouble("unpay", ServiceUnavailable("503"))
    fails(undo, saga, ServiceUnavailable)
    before = world.heard

    assert before == [*ALL, "unship"]
    assert undo(saga)
    assert world.heard == ALL + BACK


def test_a_step_without_an_undo_is_passed_over_even_in_doubt(world):
    saga = trip(world, unasked="ship", unpaid_back="ship")
    world.trouble("ship", SILENCE)
    fails(run, saga, OutcomeUnknown)

    assert undo(saga)
    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]


# -- in doubt


@pytest.mark.parametrize(
    ("heard", "then"),
    [
        pytest.param(True, ["reserve", "pay", "unpay", "unreserve"], id="it was paid"),
        pytest.param(False, ["reserve", "unreserve"], id="it was not"),
    ],
)
def test_a_lost_answer_is_looked_for_before_anything_is_taken_back(saga, world, heard, then):
    world.trouble("pay", SILENCE, heard=heard)
    fails(run, saga, OutcomeUnknown)
    pass_time()

    assert undo(saga)
    assert world.heard == then


def test_nothing_is_taken_back_while_a_lost_call_may_still_take_effect(saga, world):
    world.trouble("pay", SILENCE)
    fails(run, saga, OutcomeUnknown)
    doubt = fails(undo, saga, OutcomeUnknown)

    assert doubt.retry_after == pytest.approx(LONG, abs=5)
    assert world.heard == ["reserve"]
    assert state() == "undoing"


@pytest.mark.parametrize(
    ("decision", "then"),
    [
        pytest.param({"id": "p"}, ["reserve", "unpay", "unreserve"], id="it was paid"),
        pytest.param(None, ["reserve", "unreserve"], id="it was not"),
    ],
)
def test_a_doubt_that_cannot_be_looked_into_waits_for_a_person(world, decision, then):
    saga = trip(world, unasked="pay")
    world.trouble("pay", SILENCE)
    fails(run, saga, OutcomeUnknown)
    pass_time()
    fails(undo, saga, OutcomeUnknown)
    before = world.heard
    effects.settle("trip.pay:42:1", decision)

    assert before == ["reserve"]
    assert undo(saga)
    assert world.heard == then


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not heard"])
def test_an_undo_in_doubt_is_looked_for_before_the_one_before_it(saga, world, heard):
    run(saga)
    world.trouble("unpay", SILENCE, heard=heard)
    fails(undo, saga, OutcomeUnknown)
    before = world.heard
    pass_time()

    assert "unreserve" not in before
    assert undo(saga)
    assert world.heard == ALL + BACK


def test_an_undo_that_cannot_be_looked_for_waits_for_a_person(world):
    saga = trip(world, unasked="pay")
    run(saga)
    world.trouble("unpay", SILENCE, heard=True)
    for _ in range(2):
        fails(undo, saga, OutcomeUnknown)
        pass_time()
    before = world.heard
    effects.settle("trip.pay.undo:42:1", {})

    assert before == [*ALL, "unship", "unpay"]
    assert undo(saga)
    assert world.heard == ALL + BACK


# -- both at once


def test_an_undo_waits_for_a_step_that_is_under_way(saga, world):
    seen = []
    world.troubles["pay"] = Watched(lambda: seen.append(fails(undo, saga, Pending)))
    fails(run, saga, Pending)  # it may end its step, and begins no other

    assert seen[0].retry_after == pytest.approx(LONG, abs=5)
    assert world.heard == ["reserve", "pay"]
    assert undo(saga)
    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]


class Watched(list):
    """No trouble, but something happens while the call is under way."""

    def __init__(self, watch: Callable[[], Any]) -> None:
        super().__init__()
        self.watch = watch

    def __iter__(self) -> Iterator[Trouble]:
        self.watch()
        return iter(())


def test_a_run_that_comes_to_a_step_after_the_undo_calls_nothing(saga, world):
    world.before["ship"] = lambda: undo(saga)
    fails(run, saga, Pending)

    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]
    assert fails(run, saga, Cancelled)
    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]


def test_a_run_that_was_given_up_after_its_last_step_is_not_done(saga, world):
    world.troubles["ship"] = Watched(lambda: sagas.give_up("trip:42"))
    fails(run, saga, Pending)

    assert state() == "undoing"


def test_a_run_that_meets_an_undo_under_way_waits(saga, world):
    run(saga)
    world.trouble("unpay", ServiceUnavailable("503"))
    fails(undo, saga, ServiceUnavailable)

    for of in (J1, Job("j1", replays=1), J2):
        fails(run, saga, Pending, of)
    assert world.heard == [*ALL, "unship"]


# -- who answers for it


def test_a_replay_goes_on_with_what_nobody_has_undone_and_then_answers_for_it(saga, world):
    world.trouble("ship", REFUSAL)
    world.trouble("ship", REFUSAL)
    replay = Job("j1", replays=1)
    fails(run, saga, InvalidData)
    fails(run, saga, InvalidData, replay)
    late = undo(saga, J1)

    assert not late
    assert world.heard == ["reserve", "pay"]
    assert undo(saga, replay)
    assert world.heard == ["reserve", "pay", "unpay", "unreserve"]


def test_a_replay_after_the_undo_has_everything_anew(saga, world):
    run(saga)
    undo(saga)
    had = run(saga, Job("j1", replays=1))

    assert world.heard == ALL + BACK + ALL
    assert had["pay"]["id"] == "trip.pay:42:2"  # an upstream would know the first one
    assert not undo(saga, J1)
    assert undo(saga, Job("j1", replays=1))
    assert world.heard == (ALL + BACK) * 2


def test_a_replay_that_finds_everything_done_keeps_a_late_undo_from_it(saga, world):
    replay = Job("j1", replays=1)
    run(saga)
    run(saga, replay)

    assert not undo(saga, J1)
    assert world.heard == ALL
    assert undo(saga, replay)


def test_the_end_of_another_job_does_not_undo_what_one_has_finished(saga, world):
    world.before["ship"] = lambda: sagas.begin("trip:42", "j2", 0)  # and waits, parked
    run(saga)

    assert not undo(saga, J2)
    assert world.heard == ALL


def test_a_person_may_undo_what_any_job_has_done(saga, world):
    run(saga)

    assert undo(saga, None)
    assert world.heard == ALL + BACK


# -- as the compensation of an operation


@pytest.fixture
def book(saga) -> Operation:
    app = application()

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
        if refund:
            saga.undo(payload["order_id"], of=Job(job_id, replays=replays))
        return {"outcome": "refunded"}

    def body(order_id: Id, amount: Money) -> dict[str, Any]:
        had = saga.run(order_id, {"amount": str(amount)})
        return {"outcome": "booked", "parcel": had["ship"]["id"]}

    app.task(make_good, base=Operation, name="trip.make_good", shared=False)
    named = {"name": "trip.book", "compensation": "trip.make_good", "shared": False}
    return app.task(body, base=Operation, **named)


def booked(book: Operation) -> dict[str, Any]:
    with at_work(J1):
        return book.run(order_id="42", amount="9.90")


def amend(book: Operation, kind: type[JobError], of: Job) -> None:
    """Run the compensation of a job that has died of *kind*."""
    with at_work(Job("amends")):
        book.app.tasks[book.compensation].run(**book.amends(kind, of, {"order_id": "42"}))


def test_an_operation_returns_what_its_last_step_has_led_to(book):
    assert booked(book) == {"outcome": "booked", "parcel": "trip.ship:42:1"}


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        pytest.param(InvalidData, ["unpay", "unreserve"], id="it failed"),
        pytest.param(UserError, ["unpay", "unreserve"], id="its user can mend it"),
        pytest.param(Cancelled, ["unpay", "unreserve"], id="it was taken out"),
        pytest.param(OutcomeUnknown, [], id="it may have happened"),
    ],
)
def test_what_a_dead_job_has_begun_is_taken_back_if_it_is_known(book, world, kind, then):
    world.trouble("ship", REFUSAL)
    with pytest.raises(InvalidData):
        booked(book)
    amend(book, kind, J1)
    amend(book, kind, J1)  # it may run twice

    assert world.heard == ["reserve", "pay", *then]


# -- contradictions


@pytest.mark.parametrize(
    ("name", "steps", "complaint"),
    [
        pytest.param("trip", ["pay", "pay"], "would be one effect", id="twins"),
        pytest.param("trip", ["pay.undo"], "is no name", id="a step like another's undo"),
        pytest.param("trip:42", ["pay"], "is no name", id="a name that holds a key"),
        pytest.param("", ["pay"], "is no name", id="no name"),
    ],
)
def test_a_saga_whose_effects_could_be_mistaken_is_refused(world, name, steps, complaint):
    with pytest.raises(ValueError, match=complaint):
        Saga(name, *(step(world, each) for each in steps))


def test_outside_of_a_job_a_saga_runs_as_well(saga, world):
    saga.run("42", PAYLOAD)

    assert sagas.get("trip:42").job == job().id
    assert saga.undo("42", of=job())
    assert world.heard == ALL + BACK
