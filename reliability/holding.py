"""What a process holds of the broker's messages, owes it in acknowledgements, and vouches for."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from kombu.transport import redis as stock
from kombu.transport import virtual
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

logger = logging.getLogger(__name__)

BEATS_PER_TIMEOUT = 5
ACK_WITHIN = 1.0  # seconds an acknowledgement waits for a visit to ride on


class Message(virtual.Message):
    """A message whose undecodable body is an error to report, not an exception that stops us."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception:  # noqa: BLE001  # base64, or an encoding nobody has heard of
            super().__init__({**payload, "body": ""}, channel=channel, **kwargs)
            self.body = payload["body"]
            self.errors.append(sys.exc_info())


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one process owes to one broker, whichever of its channels speaks to it next."""

    acks: deque[str] = field(default_factory=deque)
    #: Messages of lost channels, for as long as somebody in this process still works on them.
    adopted: WeakValueDictionary[str, Message] = field(default_factory=WeakValueDictionary)

    def going_on(self) -> list[Message]:
        """Return what is still worked on; a job that has ended may be in memory for a while."""
        if not self.adopted:  # as always but after a lost connection; this is asked all the time
            return []
        return [message for message in self.adopted.values() if not message.acknowledged]


@dataclass(slots=True)
class Patience:
    """How a busy worker makes room for a suspect: it takes nothing for *seconds*.

    If it is still not alone then, something hangs here, so it works on for as long before it tries
    again.
    """

    seconds: float
    _since: float | None = None

    def note(self, *, waits: bool) -> None:
        """Note whether a suspect waits for a worker."""
        if not waits:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()

    @property
    def lasts(self) -> bool:
        if self._since is None:
            return True
        return (time.monotonic() - self._since) % (2 * self.seconds) < self.seconds


class QoS(stock.QoS):
    """Unacknowledged messages: stored by the take script, acknowledged in company."""

    def append(self, message: Any, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)  # the script has stored it already

    def can_consume(self) -> bool:
        # What an answer under way brings is ours already, whatever became of the prefetch limit.
        if self.channel.answer_is_due:
            return True
        return not self.channel.runs_a_suspect and bool(super().can_consume())

    def ack(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        self.channel.acknowledge(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            self.ack(delivery_tag)
            return
        virtual.QoS.ack(self, delivery_tag)  # first: what we fail to return must not be vouched for
        self.channel.give_back(delivery_tag, leftmost=True)

    def held(self) -> list[str]:
        """Return the delivery tags that this channel still works on, oldest first."""
        return [tag for tag in list(self._delivered) if tag not in self._dirty]

    def holds(self, tag: str) -> bool:
        return tag in self._delivered and tag not in self._dirty

    @property
    def holds_anything(self) -> bool:
        return len(self._delivered) > len(self._dirty)

    def drop(self, tag: str) -> None:
        self._delivered.pop(tag, None)

    def forget(self) -> dict[str, Any]:
        """Return what is held, and hold it no more."""
        held = {tag: self._delivered[tag] for tag in self.held()}
        self._delivered.clear()
        return held

    def restore_unacked(self, client: Any = None) -> None:
        for tag in reversed(self.forget()):
            self.channel.give_back(tag)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the keeper does."""


class Keeper(threading.Thread):
    """Vouches for what a channel holds while its consumer is busy, stuck in a job, or leaving."""

    def __init__(self, channel: Any) -> None:
        super().__init__(name="broker-keeper", daemon=True)
        self._channel = channel
        self._left = threading.Event()

    def leave(self) -> None:
        self._left.set()

    def run(self) -> None:
        channel, due, pause = self._channel, 0.0, 0.0
        period = channel.visibility_timeout / BEATS_PER_TIMEOUT
        while not self._left.wait(pause):
            pause = min(ACK_WITHIN, period)
            try:
                channel.flush_acks()
                if time.monotonic() >= due:
                    due = time.monotonic() + period
                    channel.beat(period)
            except (RedisError, OSError) as error:  # the consumer meets it too, and reconnects
                logger.debug("no beat this time: %r", error)
            except Exception:
                logger.exception("no beat this time")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a refusal (read-only replica, failing disk) into an error Celery reconnects after."""
    try:
        yield
    except NoScriptError:
        raise
    except ResponseError as refusal:
        raise RedisConnectionError(f"the broker refuses: {refusal}") from refusal
