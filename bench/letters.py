"""What a store of dead letters costs, and how that grows with the letters in it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from rich.console import Console

from bench.tools import stack, table
from classifiers.errors import kinds
from reliability.dead_letters import Body, DeadLetters, Filter, Letter, Metadata

SIZES, QUICK = (10_000, 1_000_000), (10_000, 50_000)
SEED = 20261122
AGE = timedelta(days=30)  # what the letters are spread over
CAUSES = 200  # of a bad month: a cause is a task, a class of error and what it said
TASKS = ("bitrix.create_deal", "bitrix.update_deal", "bitrix.create_contact", "video.generate")
PAGE = 100
INSERTS, READS, TRIMMED = 500, 25, 1_000


def run(console: Console, *, quick: bool = False) -> None:
    shown = table(
        f"Dead letters in Redis: medians in ms, a page has {PAGE} letters, {CAUSES} causes",
        *("letters", "insert", "first page", "last page", "task + error", "rare pair", "text"),
        *("groups", "count", "trim, each", "bytes each", "filled, each"),
    )
    for size in QUICK if quick else SIZES:
        shown.add_row(f"{size:,}", *(f"{value:,.2f}" for value in measure(size)))
    console.print(shown)
    console.print(
        "A rare pair is a task and an error of many letters each that have few together; a text is "
        "one that no letter has: its page ends after 2,000 letters, its search goes on there.\n"
    )


def measure(size: int) -> Iterator[float]:
    """Fill a Redis of its own with *size* letters; yield the cells of the row."""
    with stack() as made, made.redis.client() as client:
        store, letters = DeadLetters(client), deaths(size)
        empty = client.info("memory")["used_memory"]
        filled = seconds(lambda: store.bury_all(islice(letters, size)))
        each = (client.info("memory")["used_memory"] - empty) / size
        task, frequent, rare = TASKS[0], "Frequent", "Rare"
        oldest = datetime.now(UTC) - AGE * (1 - PAGE / size)
        yield median(lambda: store.bury(next(letters)), INSERTS)
        yield median(lambda: store.page(limit=PAGE))
        yield median(lambda: store.page(Filter(until=oldest), limit=PAGE))
        yield median(lambda: store.page(Filter(task=task, error_type=frequent), limit=PAGE))
        yield median(lambda: store.page(Filter(task=task, error_type=rare), limit=PAGE))
        yield median(lambda: store.page(Filter(grep="not to be found"), limit=PAGE))
        yield median(store.groups)
        yield median(lambda: store.count(Filter(task=task, error_type=frequent)))
        bounds = {"days": 365, "kept": size + INSERTS - TRIMMED, "at_most": TRIMMED}
        yield seconds(lambda: store.trim(lambda _: None, **bounds)) * 1e3 / TRIMMED
        yield each
        yield filled * 1e3 / size


def deaths(size: int) -> Iterator[Letter]:
    """Yield letters as a month brings them, *size* until now, and then one after the other."""
    drawn, now = random.Random(SEED), datetime.now(UTC)
    names = [kind.__name__ for kind in kinds()]
    causes = [(drawn.choice(TASKS[1:]), drawn.choice(names), word(drawn)) for _ in range(CAUSES)]
    # Many letters of the first task, many of the rare error, few of both.
    causes += [(TASKS[0], "Frequent", "the portal is away")] * (CAUSES // 4)
    causes += [(TASKS[1], "Rare", "the field is unknown")] * (CAUSES // 4)
    number = 0
    while True:
        task, error_type, said = drawn.choice(causes)
        if number and number % 2_000 == 0:
            task, error_type = TASKS[0], "Rare"
        at = now - AGE * (1 - number / size)
        yield death(f"{drawn.getrandbits(128):032x}", task, error_type, said, at)
        number += 1


def death(message_id: str, task: str, error_type: str, said: str, at: datetime) -> Letter:
    """A letter of the usual size: three attempts, and a traceback of twelve frames."""
    frame = '  File "/srv/perennial/tasks/bitrix.py", line 118, in create_deal\n    order.put(x)\n'
    tried = {"error": error_type, "code": "X", "service": "bitrix", "detail": said, "delay": 2.5}
    return Letter(
        message_id=message_id,
        original_queue="bitrix",
        error_type=error_type,
        error_message=f"{said} ({message_id[:6]})",
        message_body=Body(task, (), {"order_id": message_id[:8], "title": "Ten chairs, blue"}),
        metadata=Metadata(at, at - timedelta(minutes=5), 3, message_id),
        category="system",
        service="bitrix",
        traceback="Traceback (most recent call last):\n" + frame * 12,
        history=tuple(tried | {"at": at.timestamp(), "action": "retry"} for _ in range(3)),
        headers={"accepted_at": at.timestamp(), "spent": {"Retryable": 3}},
    )


def word(drawn: random.Random) -> str:
    return "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=12))


def median(work: Callable[[], object], times: int = READS) -> float:
    """Milliseconds that *work* takes."""
    return statistics.median(seconds(work) for _ in range(times)) * 1e3


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
