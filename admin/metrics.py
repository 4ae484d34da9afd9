"""What Prometheus is told: the sums of all processes, and how things are at this moment.

docs/metrics.md says what each of them means. Nothing here goes through jobs or letters: it reads
counts that are kept, in some twenty round trips whatever their number.
"""

from __future__ import annotations

import bisect
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from admin.readiness import broker_failure
from config.services import services
from config.settings import settings
from reliability import connection, gate, liveness, quarantine, queues
from reliability.connection import RedisError, redis, redis_bytes
from reliability.counters import NONE, Key, label, sums
from reliability.dead_letters import dead_letters
from reliability.parking import parking
from reliability.spool import Backlog
from tasks import app
from tasks.base import Operation
from tasks.measures import BOUNDS, BUCKETS, DEAD, MICROSECOND, UNKNOWN

log = logging.getLogger(__name__)

Counts = Mapping[Key, int]

GATES = {"closed": 0, "half_open": 1, "open": 2, "paused": 3, "held": 3}

# Name without its ending → what it counts, and its labels.
COUNTERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "jobs": ("Jobs that have ended, by how", ("task", "outcome")),
    "job_errors": ("Failures of runs, waits left out", ("service", "error_type", "category")),
    "job_retries": ("Retries that were spent", ("task", "error_type")),
    "job_waits": ("Waits that were begun, which spend no retry", ("task", "error_type")),
    "dead_letters": ("Deaths of jobs there ever were", ("task", "error_type")),
    "unclassified_errors": ("Failures that no rule has a name for", ("service",)),
    "refunds": ("Charges that were given back to users", ()),
    "checkpoints": ("Checkpoints that crawls have written", ()),
}


def exposition() -> bytes:
    """Return all of it in the text format of Prometheus.

    Where Redis does not answer, it says that, and what it knows without.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Everything())
    return generate_latest(registry)


class Everything(Collector):
    """Looks at Redis once per scrape."""

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, or those that need no Redis where there is none."""
        try:
            counted = sums(redis(), prefix=settings().redis_stream_prefix)
            found = [*counters(counted), *durations(counted), *gauges()]
        except RedisError:
            return [up(0), spool_letters({})]
        return [*found, up(1)]


# -- counters


def counters(counted: Mapping[str, Counts]) -> Iterator[Metric]:
    """Yield what was counted; what is to be noticed at its first time is there before, with 0."""
    deaths = {"dead_letters_total": known_tasks_only(dead_letters().totals())}
    for name, (meaning, labels) in COUNTERS.items():
        family = CounterMetricFamily(name, meaning, labels=labels)
        counts = {**at_rest(name), **{**counted, **deaths}.get(f"{name}_total", {})}
        for values, count in sorted(counts.items()):
            family.add_metric(values, count)
        yield family


def at_rest(name: str) -> Counts:
    """Return the counts there are before anything has happened."""
    match name:
        case "jobs":
            return {(task, DEAD): 0 for task in sorted(operations())}
        case "unclassified_errors":
            return {(service,): 0 for service in (NONE, *(each.name for each in services()))}
        case "refunds" | "checkpoints":
            return {(): 0}
        case _:
            return {}


def known_tasks_only(counts: Mapping[Any, int]) -> Counts:
    """Return counts whose first label is a task, with all tasks that are none of ours as one."""
    known: Counter[Key] = Counter()
    for (task, *rest), count in counts.items():
        known[(task if task in operations() else UNKNOWN, *map(label, rest))] += count
    return known


@cache
def operations() -> frozenset[str]:
    """Return the names of our tasks."""
    app.loader.import_default_modules()
    return frozenset(name for name, task in app.tasks.items() if isinstance(task, Operation))


def durations(counted: Mapping[str, Counts]) -> Iterator[Metric]:
    """Yield the histogram of runs, from the number of those in each bucket."""
    runs: dict[str, list[int]] = {}
    for (task, bound), count in counted.get("job_duration_seconds", {}).items():
        # A bound of another release counts where it fits.
        runs.setdefault(task, [0] * len(BUCKETS))[bisect.bisect_left(BOUNDS, float(bound))] += count
    family = HistogramMetricFamily(
        "job_duration_seconds", "How long a run of a job took in a worker", labels=("task",)
    )
    for task, counts in sorted(runs.items()):
        buckets = list(zip(BUCKETS, map(float, accumulate(counts)), strict=True))
        total = counted.get("job_duration_microseconds", {}).get((task,), 0) * MICROSECOND
        family.add_metric((task,), buckets, sum_value=total)
    yield family


# -- gauges


def gauges() -> Iterator[Metric]:
    """Yield how things are. What cannot be looked at is left out, and does not hide the rest."""
    for look in (memory, waiting, parked, letters, gates, canaries, suspects, hosts):
        try:
            yield from look()
        except RedisError:
            raise
        except Exception:
            log.exception("the metrics of `%s` are left out", look.__name__)


def gauge(
    name: str,
    meaning: str,
    labels: Sequence[str] = (),
    found: Mapping[Key, float] | None = None,
) -> GaugeMetricFamily:
    """Return a gauge with what was *found*, by the values of its labels."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for values, number in (found or {}).items():
        family.add_metric(values, number)
    return family


def memory() -> Iterator[Metric]:
    """Yield how full Redis is, as far as it tells."""
    used, limit = connection.memory()
    yield gauge("redis_memory_used_bytes", "Memory that Redis uses", found=known(used))
    yield gauge("redis_memory_limit_bytes", "Memory that Redis may use", found=known(limit))


def known(size: int | None) -> Mapping[Key, float]:
    """Return a size as what was found, nothing if it is not known."""
    return {} if size is None else {(): size}


def waiting() -> Iterator[Metric]:
    """Yield what is queued, and what workers hold."""
    if not broker_answers():
        yield broker_up(0)
        return
    lengths = queues.lengths(*settings().queues)
    found: Mapping[Key, float] = {(queue,): length for queue, length in lengths.items()}
    yield gauge("job_queue_length", "Jobs that wait to be taken", ("queue",), found)
    if not settings().broker_url.startswith("amqp"):  # RabbitMQ does not tell
        held = queues.in_hand()
        yield gauge("jobs_unacknowledged", "Jobs that workers hold", found={(): held})
    yield broker_up(1)


def broker_answers() -> bool:
    """Whether the broker can be reached; where it is our Redis, that has just answered."""
    return settings().broker_url == settings().redis_url or broker_failure() is None


def broker_up(answers: int) -> Metric:
    """Return whether the broker answers."""
    return gauge("broker_up", "Whether the broker answers", found={(): answers})


def parked() -> Iterator[Metric]:
    """Yield what waits for its time."""
    kinds, now, by = parking().kinds(), time.time(), ("service", "reason")
    yield gauge(
        "jobs_parked",
        "Jobs that wait for their time",
        by,
        {(kind.service, kind.reason): kind.count for kind in kinds},
    )
    yield gauge(
        "jobs_parked_oldest_age_seconds",
        "Age of the oldest job that waits",
        by,
        {
            (kind.service, kind.reason): max(0.0, now - kind.oldest)
            for kind in kinds
            if kind.oldest is not None
        },
    )
    overdue = parking().overdue()
    yield gauge(
        "jobs_parked_overdue_seconds", "How long the next parked job is due", found={(): overdue}
    )


def letters() -> Iterator[Metric]:
    """Yield what is dead and not settled."""
    open_letters = {(task,): count for task, count in dead_letters().open_by_task().items()}
    found = known_tasks_only(open_letters)
    yield gauge("dead_letters_open", "Dead letters that nobody has settled", ("task",), found)
    owed = dead_letters().owed_count()
    yield gauge("compensations_owed", "Dead jobs that are not made good yet", found={(): owed})


def gates() -> Iterator[Metric]:
    """Yield how open the gates are."""
    states = gate.states(redis(), services(), prefix=settings().redis_stream_prefix)
    yield gauge(
        "gate_state",
        "0 closed (well), 1 half open, 2 open, 3 paused or held",
        ("service",),
        {(each.service,): GATES[each.state] for each in states},
    )
    yield gauge(
        "gate_budget_remaining",
        "Permits that could be given out at once",
        ("service",),
        {(each.service,): each.budget_remaining for each in states},
    )


def canaries() -> Iterator[Metric]:
    """Yield since when nobody has been heard of, for the queues that somebody should serve."""
    served = [queue for queue, obstacle in settings().queues.items() if not obstacle]
    ages = liveness.canary_ages(*served)
    yield gauge(
        "canary_age_seconds",
        "Since when no worker has come to a canary of the queue",
        ("queue",),
        {(queue,): math.inf if age is None else age for queue, age in ages.items()},
    )


def suspects() -> Iterator[Metric]:
    """Yield what may have killed workers."""
    prefix = settings().redis_stream_prefix
    counts = quarantine.counts(redis_bytes(), settings().queues, prefix=prefix)
    yield gauge(
        "quarantine_suspects",
        "Jobs that two workers have died with",
        ("queue",),
        {(queue,): count for queue, count in counts.items()},
    )


def hosts() -> Iterator[Metric]:
    """Yield who works, and what lies on their disks."""
    yield gauge(
        "workers_seen", "Workers that have reported of late", found={(): liveness.workers_seen()}
    )
    yield spool_letters(liveness.spools())


def spool_letters(spools: Mapping[str, Backlog]) -> Metric:
    """Return what the spools hold; that of this host as it is now, it may have no worker."""
    host, backlog = liveness.own_spool()
    known = {**spools, host: backlog} if any(backlog) else spools
    return gauge(
        "spool_letters",
        "Dead letters on the disk of a host",
        ("host", "state"),
        {
            (name, state): count
            for name, each in sorted(known.items())
            for state, count in each._asdict().items()
        },
    )


def up(answers: int) -> Metric:
    """Return whether Redis answers."""
    return gauge("redis_up", "Whether Redis answers", found={(): answers})
