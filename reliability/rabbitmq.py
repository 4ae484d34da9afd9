"""Celery's broker on RabbitMQ: kombu's AMQP transport with what the promises need.

- Queues that last are quorum queues; each consumer has a prefetch limit of its own.
- A job is sent when RabbitMQ has confirmed that it is in a queue; else it is an error.
- A message with a future `eta` is parked in our Redis, and a `Courier` of a worker brings it back:
  `parked`, holds, gates and wake-ups are the same on both brokers.
- Any thread may acknowledge. What is given back is sent as a copy, so that only what was with a
  worker that has gone is delivered a second time.
- A job that was with two workers that died (`reliability.deaths`) is a suspect. It is set aside in
  a queue of its own, and run by a worker that holds nothing else; if that dies, too, it is a poison
  pill.
- A job that runs on while its connection is lost is not run a second time in the same process.

Selected by `broker_transport` in `celeryconfig`, for `amqp://` and `amqps://`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from amqp.basic_message import Message
from amqp.exceptions import RecoverableChannelError, RecoverableConnectionError
from kombu.connection import resolve_aliases
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import pyamqp as stock

from reliability.connection import RedisError
from reliability.courier import Courier
from reliability.deaths import Run, deaths
from reliability.departures import departures
from reliability.envelopes import (
    came_before,
    copy_of,
    deaths_of,
    due_at,
    headers_of,
    plain_headers,
    run_of,
    sealed,
)
from reliability.quarantine import SUSPECT_AFTER
from reliability.solitude import Solitude

logger = logging.getLogger(__name__)

CONFIRM_WITHIN = 10.0  # s: a leader election of a quorum queue takes about five


@dataclass(slots=True)
class Confirms:
    """What a channel has sent and RabbitMQ has not answered for yet."""

    sent: int = 0
    open: set[int] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    def note(self) -> int:
        self.sent += 1
        self.open.add(self.sent)
        return self.sent

    def answered(self, tag: int, multiple: bool) -> None:
        if multiple:
            self.open = {number for number in self.open if number > tag}
        else:
            self.open.discard(tag)


@dataclass(slots=True)
class Held:
    """A delivery that has not been answered. *at_work*: Celery has it, and is not done with it."""

    run: Run
    queue: str
    message: Message
    at_work: bool = False


class Channel(stock.Channel):
    """A channel that confirms, parks, and knows what it holds."""

    #: Jobs of lost connections that this process still works on → their new delivery, if one came.
    orphans: ClassVar[dict[Run, tuple[Channel, int] | None]] = {}
    #: One ends in a thread of its own, perhaps at the moment in which its new delivery comes.
    orphans_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._confirms: Confirms | None = None
        self._consumed: dict[str, dict[str, Any]] = {}  # consumer tag → how it was asked for
        self._held: dict[int, Held] = {}  # by delivery tag
        self._answers: deque[Callable[[], Any]] = deque()
        self._late: Callable[[], Any] | None = None
        self._courier: Courier | None = None
        self.solitude = Solitude(self)
        super().__init__(*args, **kwargs)
        self.events["basic_ack"].add(self._confirmed)
        self.events["basic_nack"].add(self._nacked)
        self.events["basic_return"].add(self._returned)

    @property
    def loop(self) -> Any:
        """The event loop that reads for us, or None for a plain kombu consumer."""
        return getattr(self.connection, "loop", None)

    def _do_revive(self) -> None:
        self._confirms = None
        super()._do_revive()

    # -- queues

    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = True,
        nowait: bool = False,
        arguments: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Declare a queue; one that lasts is a quorum queue, unless it says otherwise.

        Not in `task_queues`, where Celery would find it: then a wait would go to a queue per bit of
        its length, out of sight.
        """
        if durable and not (passive or exclusive or auto_delete):
            arguments = {"x-queue-type": "quorum", **(arguments or {})}
        return super().queue_declare(
            queue, passive, durable, exclusive, auto_delete, nowait, arguments, **kwargs
        )

    # -- publishing

    def basic_publish(
        self, msg: Message, exchange: str = "", routing_key: str = "", **options: Any
    ) -> Any:
        """Send *msg*; a job is parked, or confirmed to be in a queue.

        What is no job (remote control, events) may find nobody who listens.

        Raises:
            RecoverableChannelError: it is in no queue, or could not be parked.
            RecoverableConnectionError: RabbitMQ has not confirmed it in time; it may have it.
        """
        headers = plain_headers(msg)
        if not (headers.get("task") and headers.get("id")):
            if self._confirms is not None:
                self._confirms.note()
            return super().basic_publish(msg, exchange, routing_key, **options)
        due = due_at(headers)
        if due is not None:  # no worker is to wait for it: the due time lives in Redis
            headers["eta"] = None
        copy = copy_of(msg, headers)
        if due is not None and due > time.time():
            self._park(copy, routing_key, due)
        else:
            self.send_all([(copy, exchange, routing_key)])
        return None

    def send_all(self, messages: Iterable[tuple[Message, str, str]]) -> None:
        """Send (message, exchange, routing key) and wait until all are in a queue. Raises as above.

        For threads that have the connection to themselves.
        """
        if self._confirms is None:
            self._confirms = Confirms()
            self.confirm_select()
        confirms = self._confirms
        confirms.refused.clear()
        wanted = set()
        for message, exchange, routing_key in messages:
            wanted.add(confirms.note())
            super().basic_publish(message, exchange, routing_key, mandatory=True)
        deadline = time.monotonic() + CONFIRM_WITHIN
        while wanted & confirms.open:
            self._read_on(deadline)
        if confirms.refused:
            self._forget_declared()
            raise RecoverableChannelError(f"RabbitMQ took no message: {confirms.refused[0]}")

    def _read_on(self, deadline: float) -> None:
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("the connection to RabbitMQ was lost")
        try:
            connection.drain_events(timeout=max(0.01, deadline - time.monotonic()))
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise RecoverableConnectionError("RabbitMQ has not confirmed in time") from None

    def _forget_declared(self) -> None:
        """Have queues declared again before the next try: somebody may have deleted one."""
        client = getattr(self.connection, "client", None)
        if client is not None:
            client.declared_entities.clear()

    def _confirmed(self, tag: int, multiple: bool) -> None:
        if self._confirms is not None:
            self._confirms.answered(tag, multiple)

    def _nacked(self, tag: int, multiple: bool) -> None:
        if self._confirms is not None:
            self._confirms.answered(tag, multiple)
            self._confirms.refused.append("it refuses")

    def _returned(self, error: Exception, exchange: str, routing_key: str, _: Message) -> None:
        if self._confirms is not None:
            self._confirms.refused.append(f"no queue for {exchange!r}, {routing_key!r}: {error}")

    def _park(self, message: Message, queue: str, due: float) -> None:
        job = str(headers_of(message)["id"])
        try:
            departures().park(job, queue, sealed(message, queue), due)
        except RedisError as error:
            raise RecoverableChannelError(f"a job could not be parked: {error}") from error

    # -- consuming

    def basic_consume(
        self, queue: str = "", consumer_tag: str = "", no_ack: bool = False, **options: Any
    ) -> Any:
        consumed = {"queue": queue, "consumer_tag": consumer_tag, "no_ack": no_ack, **options}
        if not no_ack and consumer_tag:
            self._consumed[consumer_tag] = consumed
            self._keep()
        return super().basic_consume(**consumed)

    def basic_cancel(self, consumer_tag: str, *args: Any, **kwargs: Any) -> Any:
        known = self._consumed.pop(consumer_tag, None)
        if known and not self._consumed:  # we are leaving: what comes back of ours is no death
            self._spare_what_is_held()
        if known and self.solitude.sought:  # RabbitMQ has been told already
            return None
        return super().basic_cancel(consumer_tag, *args, **kwargs)

    def _keep(self) -> Courier:
        if self._courier is None:
            self._courier = Courier(self)
            self._courier.start()
        return self._courier

    @property
    def consumed(self) -> list[str]:
        """The queues whose messages we acknowledge."""
        return [consumed["queue"] for consumed in self._consumed.values()]

    @property
    def idle(self) -> bool:
        """Whether nothing is at work in this process."""
        return not (self._held or self.orphans)

    def pause(self) -> None:
        """Have nothing more delivered."""
        for tag in self._consumed:
            super().basic_cancel(tag)

    def resume(self) -> None:
        """Have everything delivered again."""
        for consumed in list(self._consumed.values()):
            super().basic_consume(**consumed)

    def hand_out(self, queue: str, message: Message) -> None:
        """Give our consumer of *queue* a message that was not delivered but asked for."""
        tag = message.delivery_info["delivery_tag"]
        message.delivery_info["routing_key"] = queue
        consumed = next(c for c in self._consumed.values() if c["queue"] == queue)
        self._take(queue, tag, message, partial(consumed["callback"], message), alone=True)

    def _on_basic_deliver(
        self,
        consumer_tag: str,
        delivery_tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        msg: Message,
    ) -> None:
        deliver = partial(
            super()._on_basic_deliver,
            *(consumer_tag, delivery_tag, redelivered, exchange, routing_key, msg),
        )
        consumed = self._consumed.get(consumer_tag)
        if consumed is None:
            deliver()
        else:
            self._take(consumed["queue"], delivery_tag, msg, deliver)

    def _take(
        self,
        queue: str,
        tag: int,
        message: Message,
        deliver: Callable[[], Any],
        *,
        alone: bool = False,
    ) -> None:
        """Hold a delivery, and have it run at once, or see what else is to become of it."""
        held = self._held[tag] = Held(run_of(message), queue, message)
        run = partial(self._run, held, deliver)
        due, died = due_at(headers_of(message)), deaths_of(message)
        errands = self._keep()
        if self._is_still_at_work(held.run, tag):
            return
        if died >= SUSPECT_AFTER and not alone:
            errands.set_aside(queue, message, tag, died)
        elif due is not None and due > time.time():  # from a publisher without our transport
            errands.park(queue, message, tag, due)
        elif came_before(message) and self.loop is not None:
            errands.judge(queue, message, tag, run)
        else:
            run()

    def _is_still_at_work(self, run: Run, tag: int) -> bool:
        """Whether this process still works on *run*; its end answers for this delivery, too."""
        with self.orphans_lock:
            known = run in self.orphans
            if known:
                self.orphans[run] = (self, tag)
        return known

    def _run(self, held: Held, deliver: Callable[[], Any]) -> None:
        if self.connection is not None:  # else RabbitMQ delivers it anew
            held.at_work = True
            deliver()

    # -- answering

    def basic_ack(self, delivery_tag: int, multiple: bool = False, **kwargs: Any) -> None:
        """Acknowledge a delivery. Any thread may call this."""
        acknowledge = partial(super().basic_ack, delivery_tag, multiple, **kwargs)
        self._answer(partial(self._let_go, delivery_tag, acknowledge, _acknowledge))

    def basic_reject(self, delivery_tag: int, requeue: bool, **kwargs: Any) -> None:
        """Refuse a delivery, or give it back: as a copy. Any thread may call this."""
        held = self._held.get(delivery_tag)
        if requeue and held is not None and self.connection is not None:
            held.at_work = False
            known = deaths_of(held.message)
            self._keep().copy(held.queue, held.message, delivery_tag, known)
            return
        refuse = partial(super().basic_reject, delivery_tag, requeue, **kwargs)
        instead = partial(_reject, requeue=requeue)
        self._answer(partial(self._let_go, delivery_tag, refuse, instead))

    def _let_go(
        self, tag: int, answer: Callable[[], Any], instead: Callable[[Channel, int], None]
    ) -> None:
        """Answer a delivery; of a lost connection, *instead* the one that came in its place."""
        held = self._held.get(tag)
        if held is not None:
            if held.at_work and deaths_of(held.message) >= SUSPECT_AFTER:
                self._keep().dismiss(held.run, held.queue)
            held.at_work = False  # whatever becomes of the answer, the job is done here
        if self.connection is not None:
            answer()
            self._held.pop(tag, None)
            self.solitude.look()
        elif held is not None and (successor := self._successor(held.run)):
            instead(*successor)

    def _successor(self, run: Run) -> tuple[Channel, int] | None:
        """End what was at work when its connection was lost; return its new delivery, if any."""
        with self.orphans_lock:
            return self.orphans.pop(run, None)

    def _answer(self, send: Callable[[], Any]) -> None:
        """Have *send* called by the thread that reads: a socket is no place for two."""
        loop = self.loop
        if loop is None or threading.get_ident() == loop._loop_thread:
            send()
        else:
            self._answers.append(send)
            loop.call_soon(self.answer)

    def answer(self) -> None:
        """Send the answers of other threads; the courier does when the event loop has ended."""
        while self._answers:
            with suppress(IndexError):  # another thread has taken the last one
                self._answers.popleft()()

    def answer_late(self) -> None:
        """Send what has waited since the last call; its event loop has ended, or is very busy."""
        oldest = self._answers[0] if self._answers else None
        if oldest is not None and oldest is self._late:
            self.answer()
        self._late = oldest

    def soon(self, do: Callable[[], Any]) -> None:
        """Have the thread that reads *do* something."""
        loop = self.loop
        if loop is not None:
            loop.call_soon(do)

    # -- leaving

    def close(self, *args: Any, **kwargs: Any) -> Any:
        if self._courier is not None:
            self._courier.leave()
        with suppress(*stock.Transport.connection_errors):
            self.answer()
        self._spare_what_is_held()
        return super().close(*args, **kwargs)

    def collect(self) -> None:
        """Tear down. What was held when the connection was lost is worked on all the same."""
        if self._courier is not None:
            self._courier.leave()
        if self.connection is not None and not self.is_closing:
            with self.orphans_lock:  # a job that ends meanwhile looks for itself there after this
                at_work = [held for held in list(self._held.values()) if held.at_work]
                self.orphans.update({held.run: None for held in at_work})
            self._spare_what_is_held()
        super().collect()
        self.answer()  # to whatever comes in place of what was lost

    def keep_alive(self) -> None:
        """Send the heartbeat of a worker that waits for its last jobs: nobody turns its loop."""
        if self._held and not self._consumed and self.connection is not None:
            self.connection.send_heartbeat()

    def _spare_what_is_held(self) -> None:
        """Say that we live, so that what comes back of ours is no sign of a death."""
        if self._held:
            with suppress(RedisError):  # it is one sign of three, then
                deaths().spare(held.run for held in list(self._held.values()))


class Connection(stock.Connection):
    """A connection that knows the event loop that reads from it."""

    Channel = Channel
    loop: Any = None


class Transport(stock.Transport):
    """kombu's AMQP transport with our channel."""

    Connection = Connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        connection.loop = loop
        super().register_with_event_loop(connection, loop)

    def qos_semantics_matches_spec(self, connection: Any) -> bool:
        """Say that a prefetch limit is a consumer's own: quorum queues know no other."""
        return True


def _acknowledge(channel: Channel, tag: int) -> None:
    channel.basic_ack(tag)


def _reject(channel: Channel, tag: int, *, requeue: bool) -> None:
    channel.basic_reject(tag, requeue)


class SecureTransport(Transport, stock.SSLTransport):
    """The same over TLS, for `amqps://` URLs."""


# With several URLs kombu goes on to the next one, and takes the transport from its scheme.
TRANSPORT_ALIASES |= {
    "amqp": f"{__name__}:Transport",
    "pyamqp": f"{__name__}:Transport",
    "amqps": f"{__name__}:SecureTransport",
}
# What monitors are told.
resolve_aliases[f"{__name__}:Transport"] = "amqp"
resolve_aliases[f"{__name__}:SecureTransport"] = "amqp"
