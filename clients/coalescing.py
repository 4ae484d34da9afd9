"""Many calls, one request: the threads of a process hand their calls to one flusher."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, Generic, TypeVar

from opentelemetry.context import Context, get_current

from classifiers.errors import BillingExhausted, InternalError, JobError, RateLimited, Waiting
from clients.spans import on_behalf_of
from reliability.gate import Permit

logger = logging.getLogger(__name__)

LINGER = 0.25  # seconds a lone call waits while another request is under way: half a permit at 2/s

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Waiter(Generic[C]):
    """One call, the future that its thread waits on, and the trace that it is part of."""

    call: C
    future: Future[Any] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=get_current)


class Coalescer(Generic[C]):
    """Collects calls and sends up to *size* of them per permit.

    With nothing under way a call goes out alone at once. While a request is under way, or a
    permit has yet to come due, more calls gather, so at full load every permit is filled.
    *permit* asks the gate on behalf of n waiting calls; *send* makes one request and settles the
    future of each call; *behind* makes a refusal fit for the n-th in the line; *alone* tells the
    calls that must not share a request. A call that has not been sent after *patience* seconds is
    turned away. One process has one flusher for an upstream, called *name*; it starts with the
    first call.
    """

    def __init__(
        self,
        permit: Callable[[int], Permit],
        send: Callable[[Permit, Sequence[Waiter[C]]], None],
        behind: Callable[[JobError, int], JobError],
        *,
        name: str,
        size: int,
        in_flight: int,
        patience: float,
        alone: Callable[[C], bool] = lambda _: False,
    ) -> None:
        self._permit = permit
        self._send = send
        self._behind = behind
        self._name = name
        self._size = size
        self._in_flight = in_flight
        self._patience = patience
        self._alone = alone
        self._queue: deque[Waiter[C]] = deque()
        self._under_way = 0
        self._changed = threading.Condition()
        self._senders = ThreadPoolExecutor(in_flight, thread_name_prefix=f"{name}-sender")
        self._flusher: threading.Thread | None = None

    def call(self, call: C) -> Any:
        """Return the result of *call*, or raise its own error.

        Raises:
            Waiting: it was not sent; *retry_after* says when to come back.
        """
        waiter = Waiter(call)
        with self._changed:
            if self._flusher is None:
                self._flusher = threading.Thread(
                    target=self._flush_forever, name=f"{self._name}-flusher", daemon=True
                )
                self._flusher.start()
            self._queue.append(waiter)
            self._changed.notify_all()
        return waiter.future.result()

    def _flush_forever(self) -> None:
        while True:
            waiting = self._wait_for_work()
            try:
                self._flush(waiting)
            except Exception as failure:  # noqa: BLE001 - Redis is away: each job decides for itself
                self._fail(self._take(len(self._queue)), failure)

    def _wait_for_work(self) -> int:
        """Return how many calls wait, once it is time to ask for a permit."""
        while True:
            with self._changed:
                if self._is_time():
                    return len(self._queue)
                self._changed.wait(LINGER if self._queue else None)
            self._refuse(self._overdue())

    def _is_time(self) -> bool:
        if not self._queue or self._under_way >= self._in_flight:
            return False
        lone = self._under_way == 0
        full = len(self._queue) >= self._size
        return lone or full or time.monotonic() - self._queue[0].since >= LINGER

    def _flush(self, waiting: int) -> None:
        try:
            permit = self._permit(waiting)
        except (Waiting, BillingExhausted) as closed:
            self._turn_away(self._take(len(self._queue)), closed)
            return
        time.sleep(permit.wait)  # the gate has reserved that moment for us
        self._refuse(self._overdue())
        self._dispatch(permit, self._take(self._fitting()))

    def _take(self, at_most: int) -> list[Waiter[C]]:
        with self._changed:
            return [self._queue.popleft() for _ in range(min(at_most, len(self._queue)))]

    def _fitting(self) -> int:
        """Return how many calls at the head of the queue fit into one request."""
        with self._changed:
            head = list(islice(self._queue, self._size))
        if head and self._alone(head[0].call):
            return 1
        return sum(1 for _ in takewhile(lambda waiter: not self._alone(waiter.call), head))

    def _overdue(self) -> list[Waiter[C]]:
        """Take those who have waited too long: a later call would outlive their jobs' leases."""
        oldest = time.monotonic() - self._patience
        with self._changed:
            return self._take(sum(1 for waiter in self._queue if waiter.since < oldest))

    def _dispatch(self, permit: Permit, waiters: Sequence[Waiter[C]]) -> None:
        if not waiters:
            return
        with self._changed:
            self._under_way += 1
        try:
            self._senders.submit(self._send_and_settle, permit, waiters)
        except RuntimeError:  # the interpreter is on its way out and starts nothing more
            self._come_back()
            self._fail(waiters, InternalError("this process is ending", service=self._name))

    def _send_and_settle(self, permit: Permit, waiters: Sequence[Waiter[C]]) -> None:
        try:
            with on_behalf_of([waiter.context for waiter in waiters]):
                self._send(permit, waiters)
            # Not a JobError: those promise to know whether the call took effect.
            self._fail(waiters, RuntimeError("nobody has settled this call"))
        except Exception as failure:  # noqa: BLE001 - a bug of ours must not leave threads hanging
            self._fail(waiters, failure)
        finally:
            self._come_back()

    def _come_back(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _refuse(self, waiters: Sequence[Waiter[C]]) -> None:
        crowded = RateLimited(
            f"{self._in_flight} requests are under way, and no place in another came free",
            service=self._name,
            retry_after=self._patience,
        )
        self._turn_away(waiters, crowded)

    def _turn_away(self, waiters: Sequence[Waiter[C]], closed: JobError) -> None:
        """Send everybody away with a time to come back, one behind the other."""
        for place, waiter in enumerate(waiters):
            waiter.future.set_exception(self._behind(closed, place))

    def _fail(self, waiters: Sequence[Waiter[C]], failure: Exception) -> None:
        """Give the failure to all who have no answer yet, each an exception of its own."""
        left = [waiter for waiter in waiters if not waiter.future.done()]
        if left:
            logger.error("no answer for %d calls: %s", len(left), type(failure).__name__)
        for waiter in left:
            waiter.future.set_exception(own_copy(failure))


def own_copy(failure: Exception) -> Exception:
    """Return the failure for one thread: a shared one would collect the tracebacks of all."""
    try:
        own = copy.copy(failure)
    except Exception:  # noqa: BLE001 - some classes cannot be built from their own arguments
        own = RuntimeError(type(failure).__name__)
    own.__cause__ = failure
    return own
