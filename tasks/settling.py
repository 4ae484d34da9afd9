"""A person's word on an effect in doubt, and what else is written down with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from classifiers.errors import InvalidData
from storage import effects, links, videos
from storage.links import Entity


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of effects whose keys begin alike: what their result is called by itself.

    *record* is called with (connection, rest of the key, that), where it means more to us.
    """

    named: str
    record: Callable[[Connection, str, str], None] | None = None


def _tie(entity: Entity) -> Callable[[Connection, str, str], None]:
    def record(connection: Connection, local_id: str, remote_id: str) -> None:
        links.remember(connection, entity, local_id, remote_id)

    return record


KINDS = {
    "bitrix.deal": Kind("id", _tie("deal")),
    "bitrix.contact": Kind("id", _tie("contact")),
    "kie.create": Kind("task_id", videos.asked),
    "telegram.message": Kind("message_id"),
}
ELSEWHERE = {"telegram.video": "it is about money: settle it with `videos settle ORDER`"}


def settle(key: str, outcome: str | Mapping[str, Any] | None, *, by: str, note: str) -> bool:
    """Write down that an effect happened, with *outcome*, or (None) that it did not.

    *outcome* is the id that the upstream has given, or an object: what the call returns. False if
    nothing is in doubt.

    Raises:
        InvalidData: it is settled elsewhere, or *outcome* is no result of it.
        Pending: a run is at it; or, for a "did not", the last call may still take effect.
    """
    prefix, _, rest = key.partition(":")
    if prefix in ELSEWHERE:
        raise InvalidData(ELSEWHERE[prefix])
    said = f"settled by {by}: {note}"
    if outcome is None:
        return effects.settle(key, said=said)
    kind = KINDS.get(prefix)
    result = _result(outcome, kind)
    if kind is None or kind.record is None:
        return effects.settle(key, result, said=said)
    record = partial(_record, kind.record, rest, result[kind.named])
    return effects.settle(key, result, record=record, said=said)


def _record(
    write: Callable[[Connection, str, str], None],
    rest: str,
    name: str,
    connection: Connection,
    _: Mapping[str, Any],
) -> None:
    write(connection, rest, name)


def _result(outcome: str | Mapping[str, Any], kind: Kind | None) -> dict[str, Any]:
    if kind is not None and isinstance(outcome, str):
        outcome = {kind.named: outcome}
    if not isinstance(outcome, Mapping):
        raise InvalidData("the result of such an effect is a JSON object")
    if kind is not None and not isinstance(outcome.get(kind.named), str):
        raise InvalidData(
            f"the result of such an effect is its id, or an object with a text as {kind.named}"
        )
    return dict(outcome)
