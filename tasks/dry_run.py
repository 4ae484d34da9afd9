"""What would become of a dead job that was sent again: looked up, nothing touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from classifiers.errors import JobError
from config.services import services
from config.settings import settings
from reliability import gate
from reliability.connection import redis
from reliability.dead_letters import Letter
from reliability.gate import GateState
from reliability.holds import Hold, holds
from storage import effects
from tasks.base import Operation
from tasks.compensation import operation_named

OPEN = "closed"  # a breaker's word for a gate that lets calls through


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a replay would come to. *verdict* is replay or skip, *why* says what there is to know.

    *gate* is the state of the upstream's gate, or `held` where a person holds such jobs; *effect*
    that of what the job does to the outside world, as far as it is written down.
    """

    message_id: str
    task: str
    verdict: str
    why: str
    gate: str = ""
    effect: str = ""


def dry_run(letters: Iterable[Letter]) -> Iterator[Outlook]:
    """Say of each letter what a replay would come to now."""
    prefix = settings().redis_stream_prefix
    doors = {door.service: door for door in gate.states(redis(), services(), prefix=prefix)}
    standing = holds().standing()
    for dead in letters:
        yield _outlook(dead, doors.get(dead.original_queue), standing)


def objection(dead: Letter) -> str:
    """Say why a letter cannot be sent again as it is, empty if it can."""
    body = dead.message_body
    if dead.state != "open":
        return f"it is {dead.state}"
    if dead.raw:
        return "its message could not be read: send the job anew from the application"
    task = operation_named(body.task)
    if task is None:
        return f"no task is called {body.task!r} here"
    if not dead.replayable:
        return "its arguments held a secret, which is not kept: put it back with `dlq edit`"
    try:
        _read(task, dead)
    except JobError as refusal:
        return str(refusal)
    return ""


def amended(dead: Letter, kwargs: Mapping[str, Any]) -> Letter:
    """Return the letter as it would be with other arguments; `objection` says if that is one."""
    return replace(dead, message_body=replace(dead.message_body, kwargs=dict(kwargs)))


def _outlook(dead: Letter, door: GateState | None, standing: Iterable[Hold]) -> Outlook:
    against = objection(dead)
    task = operation_named(dead.message_body.task)
    if against or task is None:
        return Outlook(dead.message_id, dead.message_body.task, "skip", against)
    payload = _read(task, dead)
    state, waits = _at_the_gate(dead, door, payload, standing)
    effect = _effect(task, dead, payload)
    obstacle = type(task).obstacle
    against = obstacle(**payload) if obstacle is not None else ""
    said = against or "; ".join(filter(None, (waits, EFFECTS.get(effect, ""))))
    verdict = "skip" if against else "replay"
    return Outlook(dead.message_id, task.name, verdict, said, state, effect)


EFFECTS = {
    "done": "its effect is there: it is not had again",
    "unknown": "its effect may be there: it is looked for first",
    "intended": "its effect may be there: it is looked for first",
}


def _read(task: Operation, dead: Letter) -> dict[str, Any]:
    body = dead.message_body
    return task.payload.read(body.args, body.kwargs, dead.payload_version)


def _at_the_gate(
    dead: Letter, door: GateState | None, payload: Mapping[str, Any], standing: Iterable[Hold]
) -> tuple[str, str]:
    """Return the state of what the job would come to first, and in words why it would wait."""
    task, queue = dead.message_body.task, dead.original_queue
    for hold in standing:
        if hold.concerns(task, queue) and hold.matches(payload):
            return "held", f"it would wait: {hold.id} holds such jobs"
    if door is None:
        return "", ""
    if door.state == OPEN:
        return door.state, ""
    return door.state, f"it would wait: {shut(door.service, door.state)}"


def shut(service: str, state: str) -> str:
    """Say why no call gets through a gate; that a breaker is open would sound like the opposite."""
    down = state in {"open", "half_open"}
    return f"{service} is unreachable" if down else f"the gate of {service} is {state}"


def _effect(task: Operation, dead: Letter, payload: Mapping[str, Any]) -> str:
    """Return the state of a job's effects: that of the one which is in doubt, if one is."""
    keys = type(task).effect_keys
    rows = map(effects.get, keys(dead.message_id, **payload) if keys is not None else ())
    states = {row.state for row in rows if row is not None}
    return next((at for at in ("unknown", "intended", "undone", "done") if at in states), "")
