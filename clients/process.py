"""What a process has one of: built when it is first asked for, and built anew in a forked child."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

logger = logging.getLogger(__name__)

T = TypeVar("T")


@runtime_checkable
class Closable(Protocol):
    """What holds connections, and can let them go."""

    def close(self) -> None: ...


class PerProcess(Generic[T]):
    """A function that builds something, called once in a process; later calls get the same one.

    A worker's threads start at once, and two clients would share neither a batch nor a bulkhead. A
    forked child has neither its parent's threads nor a right to its sockets.
    """

    def __init__(self, build: Callable[[], T]) -> None:
        update_wrapper(self, build, updated=())  # a class would bring its own methods
        self.name = build.__name__
        self._build = build
        self._building = threading.Lock()
        self._built: list[T] = []  # at most one
        _all.append(self)
        os.register_at_fork(
            before=self._building.acquire,
            after_in_parent=self._building.release,
            after_in_child=self._after_fork,
        )

    def __call__(self) -> T:
        with self._building:
            if not self._built:
                self._built.append(self._build())
            return self._built[0]

    def forget(self) -> None:
        """Have the next call build one anew, for other settings."""
        self._built.clear()

    def close(self) -> None:
        """Close what was built, if it can be closed. A later call builds one anew."""
        with self._building:
            built, self._built = self._built, []
        for one in built:
            if isinstance(one, Closable):
                one.close()

    def _after_fork(self) -> None:
        self.forget()
        self._building.release()


_all: list[PerProcess[Any]] = []


def close_all() -> None:
    """Close all that this process has built, for when it ends and nobody calls any more."""
    for each in _all:
        try:
            each.close()
        except Exception:
            # The others hold connections, too.
            logger.exception("the %s of this process could not be closed", each.name)
