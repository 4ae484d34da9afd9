"""Whether work can be done: what is asked, and what is said of it to whoever asks.

The sentences name no host, and quote no driver: anybody may read them. The log has the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from config.services import scaled
from config.settings import settings
from reliability.connection import RedisError, redis
from reliability.keys import OURS
from reliability.liveness import canary_ages
from storage import database, upgrade
from tasks import app
from tasks.base import classified

log = logging.getLogger(__name__)

# s without a canary: four were missed. A drill that makes them come sooner is no reason to hurry.
STALE = 120.0
# A Redis that is full, a replica, or cannot write its file answers a ping all the same.
WRITTEN = OURS + "ready"  # string: that it could be written
KEPT = 60  # s
PATIENCE = 5.0  # s for a broker of its own to answer: Prometheus gives a scrape ten


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be well."""

    name: str
    ok: bool
    detail: str

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def checks(*, canaries: bool = True, database: bool = True) -> Iterator[Check]:
    """Look at everything that work needs."""
    redis_answers = _redis()
    yield redis_answers
    if database:
        yield _database()
    if settings().broker_url != settings().redis_url:
        yield _broker()
    if canaries and redis_answers.ok:
        yield from _queues()


def broker_failure(patience: float = PATIENCE) -> Exception | None:
    """Return why the broker cannot be used; None if it can be.

    RabbitMQ's word that it does not know us is no `OperationalError`: kombu leaves it as it is.
    """
    with app.connection_for_write(connect_timeout=patience) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=patience)
        except (
            OperationalError,
            *connection.connection_errors,
            *connection.channel_errors,
        ) as error:
            failure: Exception = error
            return failure
    return None


def refused_write() -> RedisError | None:
    """Return why Redis takes no writes; None if it does. It leaves a key for a minute."""
    try:
        redis().set(settings().redis_stream_prefix + WRITTEN, "", ex=KEPT)
    except RedisError as error:
        failure: RedisError = error
        return failure
    return None


def stale(age: float | None) -> bool:
    """Whether a canary of that age, in s, or None, says that nobody serves its queue."""
    return age is None or age > max(STALE, scaled(STALE))


def _redis() -> Check:
    try:
        redis().ping()
    except RedisError as error:
        log.warning("[API] not ready: Redis does not answer: %s", error)
        return Check("redis", ok=False, detail="does not answer (REDIS_URL)")
    if refusal := refused_write():
        log.warning("[API] not ready: Redis takes no writes: %s", refusal)
        return Check("redis", ok=False, detail="takes no writes (is it full? a replica?)")
    return Check("redis", ok=True, detail="answers")


def _database() -> Check:
    try:
        with database.read() as connection:
            behind = upgrade.behind(connection)
    except SQLAlchemyError as error:
        log.warning("[API] not ready: the database does not answer: %s", classified(error))
        return Check("database", ok=False, detail="does not answer (DATABASE_URL)")
    if behind:
        log.warning("[API] not ready: the database has not the schema of this release")
        said = "has not the schema of this release yet (celery -A tasks db upgrade)"
        return Check("database", ok=False, detail=said)
    return Check("database", ok=True, detail="answers")


def _broker() -> Check:
    if error := broker_failure():
        log.warning("[API] not ready: the broker cannot be used: %s", error)
        return Check("broker", ok=False, detail="cannot be used (CELERY_BROKER_URL)")
    return Check("broker", ok=True, detail="answers")


def _queues() -> Iterator[Check]:
    served = [queue for queue, obstacle in settings().queues.items() if not obstacle]
    try:
        ages = canary_ages(*served)
    except RedisError as error:
        log.warning("[API] not ready: Redis does not answer: %s", error)
        yield Check("queues", ok=False, detail="cannot be told, Redis does not answer")
        return
    yield from (Check(f"queue {queue}", not stale(age), _said(age)) for queue, age in ages.items())


def _said(age: float | None) -> str:
    if age is None:
        return "no worker has taken a canary from it yet"
    if stale(age):
        return f"no worker has taken a canary from it for {age:.0f} s"
    return f"served {age:.0f} s ago"
