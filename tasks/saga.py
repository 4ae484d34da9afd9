"""Several steps that are had together, or taken back in reverse order.

    TRIP = Saga(
        "trip",
        Step("reserve", do=reserve, undo=release, find=reservation, lease=lease),
        Step("pay", do=pay, undo=refund, find=payment, find_undo=refunded, lease=lease),
        Step("ship", do=ship, undo=call_back, find=parcel, lease=lease),
    )

    @operation(name="trip.book", compensation="trip.make_good")
    def book(order_id: Id, amount: Money) -> Outcome:
        had = TRIP.run(order_id, {"amount": amount})
        return {"outcome": "booked", "parcel": had["ship"]["id"]}

    @operation(name="trip.make_good")
    def make_good(task, payload, job_id, replays, …, refund, tell) -> Outcome:
        if refund:  # else it may have happened: a person finds out, and replays the job
            TRIP.undo(payload["order_id"], of=Job(job_id, replays=replays))
        dead_letters().compensate(job_id, "done", of=replays)
        …

Each step is an effect, and so is each undo: whatever dies in between, each is had at most once.

Of two steps the later one rests on the earlier one, so nothing is taken back while it is not known
whether something later has happened, or is still there: a parcel may be on its way that nobody has
paid for any more. What is later than the doubt has been taken back by then, which harms nobody:
nothing rests on it. The doubt ends by `find`, or by a person (`effects.settle`); then the undo goes
on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeAlias

from sqlalchemy import Connection

from config import services
from storage import effects, sagas
from storage.effects import Result
from tasks.base import Job, job

Payload: TypeAlias = Mapping[str, Any]
Results: TypeAlias = Mapping[str, Result]  # by the names of their steps


@dataclass(frozen=True, slots=True)
class Step:
    """One effect of a saga, and how it is taken back; without *undo*, nothing has to be.

    *do* is called with (key, payload, results of the steps before), *find* with (key); *undo* and
    *find_undo* with (key of the undo, result of the step). All return what `effects.once` asks for;
    what the undo has to know of the step is in its result. A key is of one round of one saga, and
    of no other: it is what to give an upstream as idempotency key, and to find there.
    *lease* tells within how many seconds each call takes effect or never will.
    """

    name: str
    _: KW_ONLY
    do: Callable[[str, Payload, Results], Result]
    undo: Callable[[str, Result], Result] | None = None
    find: Callable[[str], Result | None] | None = None
    find_undo: Callable[[str, Result], Result | None] | None = None
    lease: Callable[[], float]


class Saga:
    """Steps in the order in which they are had; *name* and theirs are words of effect keys."""

    def __init__(self, name: str, *steps: Step) -> None:
        names = [step.name for step in steps]
        if len(set(names)) < len(names):
            raise ValueError(f"{name}: two steps of one name would be one effect")
        for word in (name, *names):
            if not re.fullmatch("[a-z_]+", word):
                raise ValueError(f"{word!r} is no name of a saga or step: one could mean another")
        self.name = name
        self.steps = steps

    def run(self, key: str, payload: Payload) -> dict[str, Result]:
        """Have all steps that are not had yet; return the results of all, by their names.

        A redelivered job goes on where it was, and a replay, too; if it was undone since, the
        replay begins anew.

        Raises:
            Pending: it is being undone, or another run is at one of the steps.
            Cancelled: it was undone, and this run with it.
            OutcomeUnknown: a step may have happened, as `effects.once` says.
            Exception: whatever a step raises. Nothing is undone by that.
        """
        saga = sagas.begin(self._row(key), job().id, job().replays)
        had: dict[str, Result] = {}
        for step in self.steps:
            had[step.name] = self._had(step, saga, payload, had)
        if saga.state == "going":
            sagas.finish(saga, job().id, job().replays)
        return had

    def undo(self, key: str, *, of: Job | None = None) -> bool:
        """Take back what was had, the last step first; run again, it goes on where it was.

        With *of*, only if that job answers for it: the one that ran it last or, of a saga that is
        done, has finished it. False if it does not, or nothing is left to be undone.

        Raises:
            Pending: a run is still at one of the steps.
            OutcomeUnknown: a step, or its undo, may have happened; nothing before it is undone.
            Exception: whatever an undo raises; nothing before it is undone.
        """
        saga = sagas.give_up(self._row(key), (of.id, of.replays) if of is not None else None)
        if saga is None:
            return False
        for step in reversed(self.steps):
            self._take_back(step, saga)
        sagas.undone(saga)
        return True

    def keys(self, key: str) -> list[str]:
        """Return the keys of its effects in this round, as `Operation.effect_keys` wants them."""
        saga = sagas.get(self._row(key))
        return [] if saga is None else [_effect(step.name, saga) for step in self.steps]

    def _row(self, key: str) -> str:
        return f"{self.name}:{key}"

    def _had(self, step: Step, saga: sagas.Saga, payload: Payload, had: Results) -> Result:
        effect = _effect(step.name, saga)

        def do() -> Result:
            sagas.insist_on_going(saga)  # once more, now that the intent is written down
            return step.do(effect, payload, dict(had))

        find = partial(step.find, effect) if step.find else None
        lease = services.scaled(step.lease())
        return effects.once(effect, do, find=find, owner=job().id, lease=lease).result

    def _take_back(self, step: Step, saga: sagas.Saga) -> None:
        if step.undo is None:
            return
        effect, undoing = _effect(step.name, saga), _effect(f"{step.name}.undo", saga)
        lease = services.scaled(step.lease())
        find = partial(step.find, effect) if step.find else None
        had = effects.find_out(effect, find, owner=job().id, lease=lease)
        if had is None:
            return

        def record(connection: Connection, _: Result) -> None:
            effects.undo(effect, connection=connection)

        effects.once(
            undoing,
            partial(step.undo, undoing, had),
            find=partial(step.find_undo, undoing, had) if step.find_undo else None,
            owner=job().id,
            lease=lease,
            record=record,
        )


def _effect(step: str, saga: sagas.Saga) -> str:
    """Return the key of an effect, such as `trip.pay:42:1`."""
    name, _, key = saga.key.partition(":")
    return f"{name}.{step}:{key}:{saga.round}"
