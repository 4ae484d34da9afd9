"""What has happened, counted: each process adds up in memory, and tells Redis once a second.

A count costs a job a fraction of a microsecond and no round trip. The sums are one hash in Redis,
so that they are those of all processes of all hosts, and outlive each of them. A process that is
killed takes at most its last second with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from config.settings import ConfigurationError, settings
from reliability.connection import redis
from reliability.keys import COUNTS
from reliability.scripts import script

log = logging.getLogger(__name__)

Key = tuple[str, ...]  # the name of what is counted, then the values of its labels

INTERVAL = 1.0  # s; what a process that is killed takes with it at most
REMEMBERED = 3600  # s in which a batch may come again, because its answer was lost
NONE, OTHER = "none", "other"
WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # a label's value; anything else could be anything


@lru_cache(maxsize=4096)
def label(value: str) -> str:
    """Return *value* as the value of a label: `none` for nothing, `other` for what is no word."""
    if not value:
        return NONE
    return value if WORD.fullmatch(value) else OTHER


class Tally:
    """The counts of one process on their way to Redis.

    *client* is asked for when something is to be told: counting alone needs no Redis. What was
    counted meanwhile is told in batches with a number of their own. One that may have arrived is
    sent again as it was, under the same number, which counts once: no count is lost with an answer,
    and none is doubled.
    """

    def __init__(self, client: Callable[[], Redis], *, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._begin()

    def _begin(self) -> None:
        self._counts: Counter[Key] = Counter()
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # one batch at a time
        self._batch: Mapping[Key, int] = {}
        self._number = 0
        self._process = uuid.uuid4().hex
        self._teller: threading.Thread | None = None

    def forget(self) -> None:
        """Begin anew, as the child of a process that tells its counts itself."""
        self._begin()

    def count(self, *key: str, by: int = 1) -> None:
        """Add to what *key* has come to. Raises nothing, and waits for nobody."""
        with self._lock:
            self._counts[key] += by
        if self._teller is None:
            self._start()

    def tell(self) -> None:
        """Bring everything to Redis.

        Raises:
            RedisError: Redis does not answer, or takes nothing; the next call tells it, too.
        """
        with self._telling:
            while self._batch or self._next_batch():
                self._add(self._batch)
                self._batch = {}

    def _next_batch(self) -> bool:
        with self._lock:
            self._batch, self._counts = self._counts, Counter()
        self._number += 1
        return bool(self._batch)

    def _add(self, batch: Mapping[Key, int]) -> None:
        facts = [fact for key, count in batch.items() for fact in ("\n".join(key), count)]
        counts = f"{self._prefix}{COUNTS}"
        add = self._client().register_script(script("count"))
        keys = [counts, f"{counts}:{self._process}"]
        add(keys=keys, args=[self._number, REMEMBERED, *facts])

    def _start(self) -> None:
        with self._lock:
            if self._teller is not None:
                return
            teller = threading.Thread(target=self._tell_on, name="counts", daemon=True)
            try:
                teller.start()
            except RuntimeError:  # no thread to be had: the next count tries again
                return
            self._teller = teller

    def _tell_on(self) -> None:
        pause = threading.Event()
        while not pause.wait(INTERVAL):
            tell_quietly(self)


def tell_quietly(tally: Tally) -> None:
    """Bring everything to Redis, or leave it for the next time."""
    try:
        tally.tell()
    except (RedisError, ConfigurationError) as error:  # without one no worker or API would be up
        log.debug("the counts wait for Redis: %r", error)
    except Exception:
        log.exception("the counts could not be told; they are kept")


@lru_cache(maxsize=1)
def tally() -> Tally:
    """Return the counts of this process, which tells them by itself until it has ended."""
    counts = Tally(redis, prefix=settings().redis_stream_prefix)
    atexit.register(tell_quietly, counts)
    os.register_at_fork(after_in_child=counts.forget)  # the parent's own are told by the parent
    return counts


def sums(client: Redis, *, prefix: str = "") -> dict[str, dict[Key, int]]:
    """Return what all processes have counted, by name and by the values of the labels."""
    found: dict[str, dict[Key, int]] = defaultdict(dict)
    stored = cast("Mapping[str, str]", client.hgetall(f"{prefix}{COUNTS}"))
    for field, count in stored.items():
        name, *labels = field.split("\n")
        found[name][tuple(labels)] = int(count)
    return found
