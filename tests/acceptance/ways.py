"""An application whose jobs end in every way there is, until its next release has mended them.

Run with `-A tests.acceptance.ways`; `RELEASE` says which release it is. A job that ends well writes
a line into the file of its id in `$ENDS`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from signal import SIGKILL

from celery.exceptions import Reject

from classifiers.errors import NetworkError, Permanent
from config.settings import settings
from tasks import app, operation
from tasks.base import job
from tasks.payloads import Id

__all__ = ["app"]

ENDS = Path(os.environ["ENDS"])
MENDED = settings().release == "2.0"
LONG = 60.0  # seconds; whatever is to end such a job does so sooner


class Odd(Permanent):
    """A failure that no pickle can carry from a child to its worker."""

    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


def raises(error):
    raise error


def meanwhile():
    """Be at work while the test does something; return whether that was so before."""
    begun, go = ENDS / f"{job().id}.begun", ENDS / f"{job().id}.go"
    if begun.exists():
        return True
    begun.touch()
    while not go.exists():
        time.sleep(0.02)
    return False


def done():
    with (ENDS / job().id).open("a") as file:
        file.write("done\n")


WAYS = {
    "error": lambda: raises(ValueError("it went wrong")),
    "memory": lambda: raises(MemoryError()),
    "unserialisable": object,
    "unpicklable": lambda: raises(Odd()),
    "reject": lambda: raises(Reject("not for me", requeue=False)),
    "exit": lambda: sys.exit("no more"),
    "endless": lambda: time.sleep(LONG),
    "vanish": lambda: os._exit(7),
    "killed": lambda: os.kill(os.getpid(), SIGKILL),
    "fails later": lambda: (meanwhile(), raises(Permanent("it went wrong meanwhile"))),
    "retries later": lambda: done() if meanwhile() else raises(NetworkError("not yet")),
}


@operation(name="ways.end")
def end(way: Id) -> dict:
    """End in this way."""
    return done() if MENDED else WAYS[way]()


if MENDED:

    @operation(name="ways.born")
    def born(way: Id) -> dict:
        """Be a task that the release before does not have."""
        return done()
