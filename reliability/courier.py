"""What a worker on RabbitMQ sees to beside its deliveries, from a thread of its own.

It brings parked jobs that are due to their queues, and sends on what must not be run as it came:
a copy is in a queue, or in Redis, before the delivery it stands for is acknowledged.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from amqp.basic_message import Message

from config.settings import settings
from reliability import keys
from reliability.connection import RedisError, redis_bytes
from reliability.deaths import Run, deaths
from reliability.departures import Departure, departures
from reliability.envelopes import (
    DIED,
    copy_of,
    deaths_of,
    headers_of,
    opened,
    plain_headers,
    run_of,
    sealed,
)
from reliability.quarantine import POISON_AFTER, SUSPECT_AFTER
from reliability.rabbitmq_queues import SUSPECTS_OF

logger = logging.getLogger(__name__)

LONGEST_NAP = 1.0  # s that a job may be late, as on Redis
TURN = 10.0  # s after which a dead worker's turn at the suspects ends; renewed each nap
ANOTHER_TRY = 1.0  # s

Errand: TypeAlias = Callable[[Any], None]


class Courier(threading.Thread):
    """Carries what the consuming *channel* must not wait for, on a connection of its own."""

    def __init__(self, channel: Any) -> None:
        super().__init__(name="courier", daemon=True)
        self._channel = channel
        self._client = channel.connection.client.clone(heartbeat=0)
        self._errands: SimpleQueue[Errand] = SimpleQueue()
        self._left = threading.Event()
        self._nap = min(LONGEST_NAP, settings().retry_time_scale)
        self._declared: set[str] = set()
        self._turn = settings().redis_stream_prefix + keys.TURN
        self._name = f"{socket.gethostname()} {os.getpid()} {id(self):x}"

    def leave(self) -> None:
        """End soon; what was not carried yet comes back with the end of the connection."""
        self._left.set()
        self._errands.put(lambda _: None)  # wakes it

    # -- errands; any thread may ask for one

    def copy(self, queue: str, message: Message, tag: int, died: int) -> None:
        """Have a copy of a delivery put into *queue*, which says how many have *died* with it."""
        self._errands.put(partial(self._copy, queue, message, tag, died))

    def set_aside(self, queue: str, message: Message, tag: int, died: int) -> None:
        """Have a suspect of *queue* wait to be run alone, and noted for who looks."""
        self._errands.put(partial(self._set_aside, queue, message, tag, died))

    def dismiss(self, run: Run, queue: str) -> None:
        """Have noted that a suspect of *queue* has ended."""
        self._errands.put(lambda _: deaths().dismiss([run], queue))

    def park(self, queue: str, message: Message, tag: int, due: float) -> None:
        """Have a delivery parked until *due*."""
        copy = copy_of(message, {**plain_headers(message), "eta": None})
        self._errands.put(partial(self._park, queue, copy, tag, due))

    def judge(self, queue: str, message: Message, tag: int, deliver: Callable[[], object]) -> None:
        """Have found out whether a delivery that comes again is a suspect, or a poison pill.

        If it is neither, *deliver* is called, by the thread that reads.
        """
        self._errands.put(partial(self._judge, queue, message, tag, deliver))

    def _copy(self, queue: str, message: Message, tag: int, died: int, channel: Any) -> None:
        self._send_copy(queue, message, died, channel)
        self._channel.basic_ack(tag)

    def _set_aside(self, queue: str, message: Message, tag: int, died: int, channel: Any) -> None:
        self._send_copy(SUSPECTS_OF + queue, message, died, channel)
        with suppress(RedisError):  # it would be sent twice, for a look's sake
            deaths().accuse(run_of(message), queue, sealed(message, queue, deaths=died))
        self._channel.basic_ack(tag)

    def _send_copy(self, queue: str, message: Message, died: int, channel: Any) -> None:
        self._declare(channel, queue)
        headers = {**plain_headers(message), DIED: died}
        channel.send_all([(copy_of(message, headers), "", queue)])

    def _park(self, queue: str, message: Message, tag: int, due: float, _: Any) -> None:
        job = str(headers_of(message).get("id") or tag)
        departures().park(job, queue, sealed(message, queue), due)
        self._channel.basic_ack(tag)

    def _judge(
        self, queue: str, message: Message, tag: int, deliver: Callable[[], object], _: Any
    ) -> None:
        known = deaths_of(message)
        died = max(known, deaths().after_another(run_of(message)))
        if died >= POISON_AFTER:
            logger.error("%s has taken its worker with it once too often", run_of(message)[0])
            self._errands.put(partial(self._bury, queue, message, tag, died))
        elif died >= SUSPECT_AFTER and not known:
            self.set_aside(queue, message, tag, died)
        else:
            self._channel.soon(deliver)

    def _bury(self, queue: str, message: Message, tag: int, died: int, _: Any) -> None:
        item = f"{queue}\n{sealed(message, queue, deaths=died)}"
        redis_bytes().lpush(settings().redis_stream_prefix + keys.POISONED, item)
        self.dismiss(run_of(message), queue)
        self._channel.basic_ack(tag)

    # -- the thread

    def run(self) -> None:
        """Carry on until we are to leave; a broker that is away is no news here."""
        while not self._left.is_set():
            try:
                with self._client:
                    self._declared.clear()
                    self._carry(self._client.channel())
            except (RedisError, OSError, *self._client.connection_errors) as error:
                logger.debug("the courier waits: %r", error)
            except Exception:
                logger.exception("the courier failed; it goes on")
            self._left.wait(ANOTHER_TRY)

    def _carry(self, channel: Any) -> None:
        while not self._left.is_set():
            more = self._send_what_is_due(channel)
            self._run_errands(channel, wait=0.0 if more else self._nap)
            self._channel.answer_late()
            self._channel.keep_alive()
            self._see_to_suspects(channel)

    def _run_errands(self, channel: Any, wait: float) -> None:
        with suppress(Empty):
            errand = self._errands.get(timeout=wait) if wait else self._errands.get_nowait()
            while True:
                try:
                    errand(channel)
                except BaseException:
                    self._errands.put(errand)
                    raise
                errand = self._errands.get_nowait()

    # -- parked jobs

    def _send_what_is_due(self, channel: Any) -> bool:
        """Bring what is due to its queues; return whether there may be more."""
        _, due = departures().take()
        try:
            readable = [(one, message) for one in due if (message := self._message(one))]
            for queue in {one.queue for one in due}:
                self._declare(channel, queue)
            channel.send_all((message, "", one.queue) for one, message in readable)
        except BaseException:
            with suppress(RedisError):  # else they are taken again in a while
                departures().put_back(due)
            raise
        departures().sent(one for one, _ in readable)
        return bool(due)

    def _message(self, departure: Departure) -> Message | None:
        try:
            message = opened(departure.message)
            message._serialize_properties()  # noqa: SLF001 - what AMQP cannot carry stops all others
        except Exception:  # kombu's types decode, and AMQP's encode, with errors of every kind
            logger.exception("[QUEUE] a parked message cannot be sent; it becomes a dead letter")
            departures().set_aside(departure)
            return None
        return message

    def _declare(self, channel: Any, queue: str) -> None:
        if queue not in self._declared:
            channel.queue_declare(queue, durable=True, auto_delete=False)
            self._declared.add(queue)

    # -- suspects

    def _see_to_suspects(self, channel: Any) -> None:
        """Have this worker make room for suspects when it is its turn."""
        solitude, consuming = self._channel.solitude, self._channel
        if solitude.sought:
            self._has_the_turn()
            consuming.soon(solitude.look)
        elif solitude.worth_a_try:
            accused = deaths().accused(consuming.consumed)
            waiting = [queue for queue in accused if self._suspects(channel, queue)]
            if not waiting:
                self._dismiss_gone(accused)
            elif self._has_the_turn():
                consuming.soon(partial(solitude.seek, waiting))

    def _dismiss_gone(self, accused: Mapping[str, Iterable[Run]]) -> None:
        """Forget those who were *accused* before their queues were found empty.

        If nobody runs them, they have ended in a worker that could not say so.
        """
        if any(accused.values()) and not redis_bytes().exists(self._turn):
            for queue, runs in accused.items():
                deaths().dismiss(runs, queue)

    def _suspects(self, channel: Any, queue: str) -> int:
        self._declare(channel, SUSPECTS_OF + queue)
        declared = channel.queue_declare(SUSPECTS_OF + queue, passive=True)
        return int(declared.message_count)

    def _has_the_turn(self) -> bool:
        """Take or keep the turn: one suspect at a time costs one worker at most."""
        client, key = redis_bytes(), self._turn
        mine = self._name.encode()
        if client.set(key, mine, nx=True, px=int(TURN * 1000)):
            return True
        if client.get(key) != mine:
            return False
        client.pexpire(key, int(TURN * 1000))
        return True
