"""Celery's broker on Redis, without its losses: kombu's Redis transport with five differences.

- A message goes from its queue to the unacknowledged store inside one script. Stock kombu pops it
  first and stores it in a second round trip; a worker that dies in between loses it.
- A message with a future `eta` is parked in Redis, not in the memory of a worker.
- Acknowledgements ride on the next visit instead of making one of their own.
- A process vouches for what it holds, from a thread of its own, across reconnects and until the
  last job of a shutdown has ended. What nobody vouches for goes back to its queue, so a dead
  worker's jobs return within `visibility_timeout`, however long a job may run.
- A job that was with two workers that died is a suspect, and run alone (`reliability.quarantine`).

Lists, priorities, the unacknowledged hash and its index keep kombu's layout, so everything that
reads queue lengths still works, and a stock publisher is understood. Between visits a worker
sleeps on one *bell* a queue (a list of at most one element): a publisher rings it, and a ring that
is lost costs at most `bell_timeout`. Selected by `broker_transport` in `celeryconfig`.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar

from kombu.connection import resolve_aliases
from kombu.transport import redis as stock
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from reliability import keys, parking
from reliability.envelopes import due_at
from reliability.holding import Keeper, Ledger, Message, Patience, QoS, refusals
from reliability.quarantine import count_death, suspected
from reliability.scripts import script

logger = logging.getLogger(__name__)

MOVE_AT_MOST = 200  # parked jobs per visit: keeps one script under a few milliseconds
TAKE_AT_MOST = 128  # messages per visit, likewise
RESTORE_AT_MOST = 500  # abandoned messages per beat, likewise
ACKS_AT_MOST = 1000  # Lua's unpack() refuses some 8,000
REPLICA_WITHIN = 1000  # ms; a replica that keeps up has a job within one or two
ALONE_FOR = 5.0  # s until a master without replicas is asked again whether it has some
BEATS_MISSED = 4  # then a message counts as abandoned; the fifth beat finds it within the timeout


class Channel(stock.Channel):
    """A channel that takes, parks and acknowledges by script."""

    QoS = QoS
    Message = Message

    #: Longest sleep on the bells, in seconds: what a lost ring or a stock publisher costs at most.
    bell_timeout = 1.0
    from_transport_options = (
        *stock.Channel.from_transport_options,
        "bell_timeout",
        "waits_for_replica",
    )

    #: Longest time a worker lets its jobs end to be alone with a suspect, in seconds: more than
    #: nearly every job takes; one that hangs must not close its worker.
    patience = 60.0

    #: Whether a job counts as accepted only when a replica has it, too.
    waits_for_replica = False

    #: Set when the connection broke: our jobs go on, so they are not given back.
    lost = False

    _alone_until = 0.0
    _asleep = False
    _acks_sent: Sequence[str] = ()
    _next_due = -1.0
    _loaded = False
    _suspect = ""  # the delivery tag of the last one that came

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self._hot = True
        self._no_ack_queues: set[str] = set()
        self._scripts: dict[str, Script] = {}
        self._plain: Redis | None = None
        self._keeper: Keeper | None = None
        self._room_for_suspects = Patience(self.patience)
        super().__init__(connection, **kwargs)
        self.brpop_timeout = self.bell_timeout  # kombu's watch over half-open connections reads it
        self.ledger = Transport.ledger_of(self)

    # -- connection

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Refuse politely once the transport is closed.

        kombu 5.7 stumbles over a closed transport (`AttributeError … 'hostname'`), and that ends
        the worker when Redis goes away while a message is unacknowledged; a connection error
        makes Celery reconnect (CELERY.md, finding A).
        """
        if getattr(self.connection, "client", None) is None:
            raise RedisConnectionError("the connection to the broker is closed")
        params: dict[str, Any] = super()._connparams(asynchronous)
        return params

    def key(self, name: str) -> str:
        """Return *name* with the key prefix; our scripts bypass kombu's own prefixing."""
        return f"{self.global_keyprefix}{name}"

    @property
    def plain(self) -> Redis:
        """A pooled client that prefixes nothing."""
        if self._plain is None or self._plain.connection_pool is not self.pool:
            self._plain = Redis(connection_pool=self.pool)
        return self._plain

    def run(self, name: str, names: Sequence[str], args: Sequence[Any]) -> Any:
        """Run one of our scripts on a pooled connection; *names* are keys without the prefix."""
        if name not in self._scripts:
            self._scripts[name] = Script(self.plain, script(name))
        return self._scripts[name](keys=[self.key(n) for n in names], args=args, client=self.plain)

    @property
    def loop(self) -> Any:
        """The event loop that calls us, or None for a plain kombu consumer."""
        return getattr(self.connection, "loop", None)

    # -- publishing

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        batch = kwargs.pop("_publish_batch", None)
        due = due_at(message.get("headers"))
        if due is not None:
            # No worker is to wait for an `eta`: the due time lives in the sorted set.
            message = {**message, "headers": {**message["headers"], "eta": None}}
        if due is not None and due > time.time():
            name, names, args = self._parked(queue, message, due)
        else:
            name, names, args = self._queued(queue, message)
        if batch is None:
            (self._run_replicated if self._wants_replica() else self.run)(name, names, args)
        else:
            batch.add("eval", script(name), len(names), *(self.key(n) for n in names), *args)

    def _wants_replica(self) -> bool:
        return self.waits_for_replica and time.monotonic() >= self._alone_until

    def _run_replicated(self, name: str, names: Sequence[str], args: Sequence[Any]) -> None:
        """Run a script that takes a job in, and wait until a replica has it, if there is any.

        Replication is later than the answer: a master that dies in between would take the job with
        it. One that is cut off from its replicas must not promise anything.
        """
        with refusals(), self.plain.pipeline(transaction=False) as pipe:
            pipe.eval(script(name), len(names), *(self.key(n) for n in names), *args)
            pipe.execute_command("WAIT", 1, REPLICA_WITHIN)  # type: ignore[no-untyped-call]
            copies = pipe.execute()[-1]
        if copies:
            return
        replication: Any = self.plain.info("replication")
        if replication["connected_slaves"]:
            raise RedisConnectionError("no replica has confirmed the job in time")
        self._alone_until = time.monotonic() + ALONE_FOR

    def _queued(self, queue: str, message: dict[str, Any]) -> tuple[str, list[str], list[Any]]:
        target = self._list_of(queue, message)
        lifetime = self._expires.get(queue, 0)
        others = [n for n in self._lists(queue) if n != target] if lifetime else []
        return "put", [target, keys.bell(queue), *others], [dumps(message), lifetime]

    def _parked(
        self, queue: str, message: dict[str, Any], due: float
    ) -> tuple[str, list[str], list[Any]]:
        headers = message["headers"]
        job = headers.get("id") or message["properties"]["delivery_tag"]
        yields = isinstance(headers.get("parking"), dict) and headers["parking"].get("yields")
        back = self._lists(queue)[-1] if yields else self._list_of(queue, message)
        where = [self.key(back), self.key(keys.bell(queue))]
        kind = [parking.kind_of(headers), parking.under_way_since(headers, time.time())]
        return "park", [keys.PARKED, keys.PARKED_DUE], [job, due, *where, dumps(message), *kind]

    def _list_of(self, queue: str, message: dict[str, Any]) -> str:
        if suspected(message["properties"]):  # whichever way it comes: it is to be run alone
            return keys.quarantine(queue)
        name: str = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        return name

    def _lists(self, queue: str) -> list[str]:
        return [self._q_for_pri(queue, priority) for priority in self.priority_steps]

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        # kombu forgets the prefix here
        return bool(self.plain.exists(*map(self.key, self._lists(queue))))

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        super()._delete(queue, *args, **kwargs)
        self.plain.delete(self.key(keys.bell(queue)), self.key(keys.quarantine(queue)))

    def _queue_bind(self, *args: Any, **kwargs: Any) -> None:
        with refusals():  # a worker that connects to a full server, or to a replica, waits for it
            super()._queue_bind(*args, **kwargs)

    def _size(self, queue: str) -> int:
        with refusals():
            waiting: int = super()._size(queue)
            return waiting + self.plain.llen(self.key(keys.quarantine(queue)))

    def _purge(self, queue: str) -> int:
        purged: int = super()._purge(queue)
        suspects = self.key(keys.quarantine(queue))
        with self.plain.pipeline() as pipe:
            pipe.llen(suspects)
            pipe.delete(suspects)
            waiting, _ = pipe.execute()
        return purged + int(waiting)

    # -- consuming

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        (self._no_ack_queues.add if no_ack else self._no_ack_queues.discard)(queue)
        if not no_ack:
            self._keep()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        cancelled = super()._basic_cancel(consumer_tag)
        if not self._active_queues:
            self._return_answer()
        return cancelled

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        if self.runs_a_suspect:
            return None
        no_acks = {queue} if no_ack else set()
        names, args = self._visit([queue], room=1, acks=(), no_acks=no_acks)
        reply = self.run("take", names, args)
        for _, _, payload in self._readable(reply, no_acks):
            message = self.Message(payload, channel=self)
            if not no_ack:
                self._keep()
                self.qos.append(message, message.delivery_tag)
            return message
        return self.basic_get(queue, no_ack) if reply[2:] else None  # that one was unreadable

    def _visit(
        self, queues: Sequence[str], *, room: int, acks: Sequence[str], no_acks: set[str]
    ) -> tuple[list[str], list[Any]]:
        names = [self.unacked_key, self.unacked_index_key]
        names += [keys.PARKED, keys.PARKED_DUE, keys.CORRUPT, keys.SUSPECT]
        names += [keys.quarantine(queue) for queue in queues]
        args: list[Any] = [room, MOVE_AT_MOST, len(queues), self._readiness(), len(acks), *acks]
        # Priorities count within a queue: what is urgent in one must not starve the others.
        for queue in queues:
            for priority in self.priority_steps:
                names.append(self._q_for_pri(queue, priority))
                args += [queue, self.key(keys.bell(queue)), "1" if queue in no_acks else "0"]
        return names, args

    def _readiness(self) -> str:
        """Say what this worker can do for a suspect, in the words of the script."""
        if not self.qos.holds_anything and not self.ledger.going_on():
            return "alone"
        return "makes room" if self._room_for_suspects.lasts else "busy"

    @property
    def runs_a_suspect(self) -> bool:
        """Whether a suspect is at work here, which is to be alone until it has ended."""
        return self.qos.holds(self._suspect) or any(
            suspected(message.properties) for message in self.ledger.going_on()
        )

    @property
    def answer_is_due(self) -> bool:
        """Whether a visit is under way that may bring messages."""
        return bool(self._in_poll) and not self._asleep

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for the next messages: visit the broker while there is work, else sleep on bells."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        self._asleep = not self._hot and not self.ledger.acks
        if self._asleep:
            bells = [self.key(keys.bell(queue)) for queue in queues]
            command = ["BRPOP", *bells, self._nap()]
        else:
            command = self._take_command(queues)
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self._in_poll.send_command(*command)

    def _nap(self) -> float:
        """Sleep until the next parked job is due, but no longer than `bell_timeout`."""
        nap = self.bell_timeout if self._next_due < 0 else min(self.bell_timeout, self._next_due)
        return max(0.01, nap)  # 0 would be for ever

    def _take_command(self, queues: Sequence[str]) -> list[Any]:
        self._say_again()
        self._acks_sent = list(_drain(self.ledger.acks, ACKS_AT_MOST))
        names, args = self._visit(
            queues, room=self._room(), acks=self._acks_sent, no_acks=self._no_ack_queues
        )
        how = ["EVALSHA", _sha("take")] if self._loaded else ["EVAL", script("take")]
        return [*how, len(names), *(self.key(n) for n in names), *args]

    def _room(self) -> int:
        free: int | None = self.qos.can_consume_max_estimate()
        if free is None:  # no prefetch limit; without a loop, kombu promises one message an event
            return TAKE_AT_MOST if self.loop else 1
        return min(TAKE_AT_MOST, free)

    def _brpop_read(self, **_: Any) -> bool:
        """Read the answer to `_brpop_start` and deliver what came."""
        slept, self._asleep = self._asleep, False
        reply = self._reply()
        if slept:
            self._hot = True
            raise stock.Empty
        self._acks_sent = ()
        self._next_due = reply[0] / 1000
        self._room_for_suspects.note(waits=bool(reply[1]))
        self._hot = bool(reply[2:])
        if not self._hot:
            raise stock.Empty
        self._deliver(list(self._readable(reply, self._no_ack_queues)))
        return True

    def _reply(self) -> Any:
        connection = self.client.connection
        try:
            with refusals():
                reply = connection.read_response()
        except NoScriptError:  # Redis was restarted, or its scripts were flushed: send the source
            self._loaded = False
            self._say_again()
            raise stock.Empty from None
        except self.connection_errors:
            connection.disconnect()
            self._say_again()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()
        self._loaded = True
        return reply

    def _say_again(self) -> None:
        """Put back the acknowledgements that went out with a visit that came to nothing."""
        self.ledger.acks.extendleft(self._acks_sent)
        self._acks_sent = ()

    def _readable(
        self, reply: Sequence[Any], no_acks: set[str]
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (queue, tag, payload) of what a visit brought; set aside what cannot be read."""
        for name, tag, raw in zip(reply[2::3], reply[3::3], reply[4::3], strict=True):
            queue = name.decode()
            payload = _payload(raw)
            if payload is None:
                self._set_aside(queue, tag, raw, stored=queue not in no_acks)
                continue
            payload["properties"]["delivery_tag"] = tag.decode()
            if suspected(payload["properties"]):
                self._suspect = tag.decode()
            yield queue, tag.decode(), payload

    def _set_aside(self, queue: str, tag: str | bytes, raw: bytes, *, stored: bool) -> None:
        item = queue.encode() + b"\n" + raw
        if stored:
            names = [self.unacked_key, self.unacked_index_key, keys.CORRUPT]
            self.run("restore", names, [tag, item, "LPUSH", 0])
        else:
            self.plain.lpush(self.key(keys.CORRUPT), item)

    def _deliver(self, visit: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Hand out what a visit brought; what an exception leaves over goes back at once."""
        waiting = deque(visit)
        for queue, tag, _ in visit:
            if queue not in self._no_ack_queues:
                self.qos.append(None, tag)  # ours from now on: a callback may take its time
        try:
            while waiting:
                self._hand_out(*waiting.popleft())
        finally:
            for queue, tag, payload in reversed(waiting):
                with suppress(RedisError, OSError):
                    self._return(queue, tag, payload)

    def _hand_out(self, queue: str, tag: str, payload: dict[str, Any]) -> None:
        self._queue_cycle.rotate(queue)
        due = due_at(payload.get("headers"))
        if queue not in self.connection._callbacks:  # cancelled while the answer was under way
            self._return(queue, tag, payload)
        elif due is not None and due > time.time() and queue not in self._no_ack_queues:
            self._put(queue, payload)  # from a publisher without our transport
            self.qos.ack(tag)
        else:
            self.connection._deliver(payload, queue)

    def _return(self, queue: str, tag: str, payload: dict[str, Any]) -> None:
        if queue in self._no_ack_queues:
            self._put(queue, payload)
        else:
            self.qos.drop(tag)
            self.give_back(tag)

    def _return_answer(self) -> None:
        """Wait for the answer to a visit under way, and give back what it brings."""
        if self.answer_is_due:
            with suppress(stock.Empty):
                reply = self._reply()
                self._acks_sent = ()
                for found in reversed(list(self._readable(reply, self._no_ack_queues))):
                    self._return(*found)

    # -- acknowledging

    def acknowledge(self, tag: str) -> None:
        """Note that *tag* is done: the next visit carries the word. Any thread may call this."""
        self.ledger.acks.append(tag)
        if self.closed:  # the connection was lost: whichever channel visits next
            return
        if self.loop is None:
            self.flush_acks()
        elif threading.get_ident() != self.loop._loop_thread:
            self.loop.call_soon(_nothing)  # wakes it; the tick itself does the work

    def settle(self) -> None:
        """Acknowledge now what no visit is going to carry: without room, there is none."""
        if self.ledger.acks and self._keeper and not self.answer_is_due:
            self.flush_acks()

    def flush_acks(self) -> None:
        """Acknowledge at once what is noted so far; keep it noted if Redis does not hear us."""
        tags = list(_drain(self.ledger.acks, ACKS_AT_MOST))
        if not tags:
            return
        try:
            # No MULTI: at its memory limit Redis refuses to queue anything, removals too.
            with refusals(), self.plain.pipeline(transaction=False) as pipe:
                pipe.hdel(self.key(self.unacked_key), *tags)
                pipe.zrem(self.key(self.unacked_index_key), *tags)
                pipe.execute()
        except BaseException:
            self.ledger.acks.extendleft(tags)
            raise

    # -- vouching, and giving back

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = Keeper(self)
            self._keeper.start()

    def beat(self, period: float) -> None:
        """Vouch for what this process holds; give back what nobody has vouched for."""
        if self.ledger.adopted:
            gc.collect()  # what a reconnect dropped is held by reference cycles alone
        held = {*self.qos.held(), *self.ledger.adopted}
        names = [self.unacked_index_key, keys.BEAT]
        abandoned = self.run("beat", names, [period, BEATS_MISSED, RESTORE_AT_MOST, *held])
        for tag in reversed(abandoned):
            logger.info("giving %r back to its queue: its worker is gone", tag)
            self.give_back(tag, silence=period * BEATS_MISSED)

    def give_back(self, tag: str | bytes, *, leftmost: bool = False, silence: float = 0.0) -> None:
        """Return one unacknowledged message to its queue; ring, so that somebody hears of it.

        With *silence* its worker has died, *silence* seconds ago or before, and it may be why.
        """
        with refusals():
            stored: Any = self.plain.hget(self.key(self.unacked_key), tag)
            if stored is None:
                self.plain.zrem(self.key(self.unacked_index_key), tag)
                return
            try:
                payload, exchange, routing_key = loads(stored)
                payload["headers"]["redelivered"] = True
                payload["properties"]["delivery_info"]["redelivered"] = True
                # A stock worker stores the exchange; no binding left is not to mean no message left
                queues = sorted(self._lookup(exchange, routing_key)) or [routing_key]
                if silence and count_death(payload["properties"]):
                    logger.error("%r has taken its worker with it once too often", tag)
                    names, queue = [keys.POISONED], queues[0].encode()
                    given = queue + b"\n" + dumps(payload).encode()
                else:
                    names = [n for q in queues for n in (self._list_of(q, payload), keys.bell(q))]
                    given = dumps(payload).encode()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                self._set_aside("unacked", tag, stored, stored=True)
                return
            how = "LPUSH" if leftmost else "RPUSH"
            names = [self.unacked_key, self.unacked_index_key, *names]
            self.run("restore", names, [tag, given, how, silence])

    # -- leaving

    def close(self) -> None:
        if not self.closed:
            if self._keeper is not None:
                self._keeper.leave()
            if self.lost:
                self._hand_over()
            else:
                with suppress(*self.connection_errors):
                    self._return_answer()
                self._say_again()
                with suppress(*self.connection_errors):
                    self.flush_acks()
                with suppress(*self.connection_errors):
                    self._restore_unacked()
            self._in_poll = None  # kombu would deliver what it brings
        super().close()

    def _restore_unacked(self) -> None:
        if self._qos is not None:
            self._qos.restore_unacked_once()

    def _hand_over(self) -> None:
        """Leave what is held, and what is done, to the next channel of this process."""
        self._say_again()
        self.do_restore = False
        self.auto_delete_queues.clear()  # the same queues are declared again in a moment
        if self._qos is not None:
            held = self._qos.forget()
            self.ledger.adopted.update({tag: m for tag, m in held.items() if m is not None})


class Poller(stock.MultiChannelPoller):
    """kombu's poller, which looks after acknowledgements that no visit will carry."""

    def on_poll_start(self) -> None:
        super().on_poll_start()
        for channel in self._channels:
            channel.settle()


class Transport(stock.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel

    _ledgers: ClassVar[dict[tuple[Any, ...], Ledger]] = {}
    loop: Any = None

    @classmethod
    def ledger_of(cls, channel: Any) -> Ledger:
        """Return what this process owes to the broker that *channel* speaks to."""
        place = channel.connection.client
        broker = (place.hostname, place.port, place.virtual_host, channel.key(channel.unacked_key))
        return Transport._ledgers.setdefault((os.getpid(), *broker), Ledger())

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.cycle = Poller()
        # On failure kombu would switch to the next URL and, with it, to its own class of transport.
        client.cycle = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.loop = loop
        super().register_with_event_loop(connection, loop)

    def _collect(self, connection: Any) -> None:
        """Let go of a broken connection, without a word to the broker (kombu's hook for that)."""
        for channel in [*self._avail_channels, *self.channels]:
            channel.lost = True
            with suppress(*self.connection_errors):
                channel.close()
        self.close_connection(connection)


class SentinelChannel(Channel, stock.SentinelChannel):
    """Our channel, on the master that the Sentinels name."""

    from_transport_options = (
        *stock.SentinelChannel.from_transport_options,
        "bell_timeout",
        "waits_for_replica",
    )
    waits_for_replica = True


class SentinelTransport(Transport):
    """Our transport for `sentinel://` URLs."""

    default_port = stock.SentinelTransport.default_port
    Channel = SentinelChannel


# What monitors are told: Flower picks its way to the queue lengths by the scheme of the broker.
resolve_aliases[f"{__name__}:Transport"] = "redis"
resolve_aliases[f"{__name__}:SentinelTransport"] = "sentinel"


def _payload(raw: bytes) -> dict[str, Any] | None:
    """Return the message in *raw*, or None if kombu could not work with it."""
    try:
        payload = loads(raw)
        parts = [payload, payload["headers"], payload["properties"]]
        parts.append(payload["properties"]["delivery_info"])
    except Exception:  # noqa: BLE001  # kombu's own types decode with errors of every kind
        return None
    return payload if all(isinstance(part, dict) for part in parts) else None


@cache
def _sha(name: str) -> str:
    return hashlib.sha1(script(name).encode(), usedforsecurity=False).hexdigest()


def _drain(items: deque[str], at_most: int) -> Iterator[str]:
    for _ in range(at_most):
        try:
            yield items.popleft()
        except IndexError:
            return


def _nothing() -> None:
    """Wake the event loop."""
