"""Who is suspected of killing workers: jobs that were there each time, and how they are cleared.

Nobody can tell which of a dead worker's jobs has killed it. Each has then one death more, counted
in the message itself, so that the count ends with it. After two deaths a job is a suspect: it waits
in the quarantine of its queue and is run by a worker that holds nothing else, one suspect at a
time. The innocent ones finish. One that dies again has done it: it is a poison pill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from kombu.message import Message
from kombu.transport.virtual.base import Base64
from kombu.utils.json import loads
from redis import Redis

from reliability import corrupt, keys

SUSPECT_AFTER = 2  # deaths: one may be anybody's, a power cut or a deployment
POISON_AFTER = 3  # deaths, the last of them alone
DEATHS = "deaths"  # among the properties, which are the delivery's: a retry starts without any
LISTED = 1000  # suspects shown of a queue; each is run alone, so that more are a long story anyway
UNACKED = "unacked"  # kombu's own name for what workers hold


@dataclass(frozen=True, slots=True)
class Suspect:
    """One job under suspicion. *deaths* counts the workers that died with it.

    *running* is whether it is being run alone; on RabbitMQ that is not known.
    """

    message_id: str
    task: str
    queue: str
    deaths: int
    running: bool | None = False
    headers: Mapping[str, Any] = field(default_factory=dict, compare=False)
    args: Any = field(default=(), compare=False)
    kwargs: Any = field(default_factory=dict, compare=False)


def deaths(properties: Mapping[str, Any]) -> int:
    """Return how many workers have died while they held the message with these *properties*."""
    count = properties.get(DEATHS, 0)
    return count if isinstance(count, int) else 0


def suspected(properties: Mapping[str, Any]) -> bool:
    """Return whether the message with these *properties* has to be run alone."""
    return deaths(properties) >= SUSPECT_AFTER


def count_death(properties: dict[str, Any]) -> bool:
    """Note that one more worker died with a message; return whether that is a poison pill."""
    count = properties[DEATHS] = deaths(properties) + 1
    return count >= POISON_AFTER


def suspects(client: Redis, queues: Iterable[str], *, prefix: str = "") -> Iterator[Suspect]:
    """Yield the suspects of *queues*: the one that is being run, then those that wait.

    *client* answers in bytes.
    """
    tag = cast("bytes | None", client.get(f"{prefix}{keys.SUSPECT}"))
    held = cast("bytes | None", client.hget(f"{prefix}{UNACKED}", tag)) if tag else None
    if held:
        message, _, queue = loads(held)
        yield _suspect(message, queue, running=True)
    for queue in queues:
        place = f"{prefix}{keys.quarantine(queue)}"
        for raw in reversed(cast("list[bytes]", client.lrange(place, -LISTED, -1))):
            yield _suspect(loads(raw), queue)
        noted = cast("list[bytes]", client.hvals(f"{prefix}{keys.SUSPECTS}{queue}"))
        for raw in noted[:LISTED]:
            yield _suspect(loads(raw), queue, running=None)


def counts(client: Redis, queues: Iterable[str], *, prefix: str = "") -> dict[str, int]:
    """Count the suspects of each of *queues*, the one that is being run included.

    *client* answers in bytes.
    """
    names = list(queues)
    with client.pipeline(transaction=False) as look:
        for queue in names:
            look.llen(f"{prefix}{keys.quarantine(queue)}")
            look.hlen(f"{prefix}{keys.SUSPECTS}{queue}")
        lengths = cast("Iterator[int]", iter(look.execute()))
        found = {queue: next(lengths) + next(lengths) for queue in names}
    for suspect in suspects(client, (), prefix=prefix):
        found[suspect.queue] = found.get(suspect.queue, 0) + 1
    return found


def drain(client: Redis, bury: Callable[[str, bytes], object], *, prefix: str = "") -> int:
    """Give (queue, message) of each poison pill to *bury*, and forget it after.

    As `corrupt.drain`: burying twice must do no harm.
    """
    return corrupt.drain(client, bury, place=keys.POISONED, prefix=prefix)


def opened(raw: bytes) -> tuple[Message, int]:
    """Return what *bury* of `drain` was given, as a message with its true body, and its deaths."""
    envelope = loads(raw)
    properties, body = envelope["properties"], envelope["body"]
    if properties.get("body_encoding") == "base64":
        body = Base64().decode(body)
    message = Message(
        body,
        delivery_tag=properties["delivery_tag"],
        content_type=envelope.get("content-type"),
        content_encoding=envelope.get("content-encoding"),
        delivery_info=properties["delivery_info"],
        properties=properties,
        headers=envelope["headers"],
        postencode="utf-8",
    )
    return message, deaths(properties)


def _suspect(message: Mapping[str, Any], queue: str, *, running: bool | None = False) -> Suspect:
    headers, properties = message["headers"], message["properties"]
    job = str(headers.get("id") or properties["delivery_tag"])
    args, kwargs = _call_in(message)
    task = str(headers.get("task") or "")
    return Suspect(job, task, queue, deaths(properties), running, headers, args, kwargs)


def _call_in(message: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return (args, kwargs) of a message; what cannot be read is shown as it is."""
    body = message["body"]
    try:
        encoded = message["properties"].get("body_encoding") == "base64"
        args, kwargs, _ = loads(Base64().decode(body) if encoded else body)
    except (ValueError, TypeError):
        return [body], {}
    return args, kwargs
