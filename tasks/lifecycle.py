"""What a worker makes sure of before its first job, and gives back after its last."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, NoReturn

from celery import signals
from sqlalchemy.exc import SQLAlchemyError

from classifiers.database import classify
from clients.process import close_all
from config.settings import settings
from storage.database import engine
from storage.upgrade import obstacles, sentence

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for a database that starts together with us
PAUSE = 2.0


@signals.celeryd_init.connect
def choose_queues(instance: Any = None, options: Any = None, **_: Any) -> None:
    """Leave alone the queues whose jobs would only fail here; they wait in Redis meanwhile.

    A queue that was asked for with `-Q` and is unknown, or cannot be served, ends the worker, with
    the reason.
    """
    obstacles = {queue: why for queue, why in settings().queues.items() if why}
    asked_for = options.get("queues") or ()
    if isinstance(asked_for, str):
        asked_for = [name.strip() for name in asked_for.split(",")]
    for queue in set(asked_for) - set(settings().queues):
        _refuse(f"there is no queue {queue}; there are: {', '.join(settings().queues)}")
    for queue in set(asked_for) & set(obstacles):
        _refuse(f"the queue {queue} cannot be served: {obstacles[queue]}")
    if asked_for:
        return
    if set(settings().queues) - set(obstacles) <= {"upkeep"}:  # no upstream is set up at all
        reasons = "; ".join(f"{queue}: {why}" for queue, why in obstacles.items())
        _refuse(f"there is no queue to serve ({reasons})")
    for queue, why in obstacles.items():
        print(f"perennial: the queue {queue} is left alone: {why}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
    instance.app.amqp.queues.deselect(list(obstacles))


@signals.worker_init.connect
def upgrade_schema(**_: Any) -> None:
    """Bring the database up to date; wait a little for one that is still starting."""
    deadline = time.monotonic() + PATIENCE
    a_server = not settings().database_url.startswith("sqlite")
    for error in obstacles():  # raised from here, Celery would swallow them, and the jobs would die
        passes = isinstance(error, SQLAlchemyError)
        if not passes:
            logger.error("the schema could not be brought up to date", exc_info=error)
        if not (passes and a_server) or time.monotonic() > deadline:
            _refuse(sentence(error))
        logger.warning("waiting for the database: %s", classify(error))
        time.sleep(PAUSE)


@signals.worker_shutdown.connect
@signals.worker_process_shutdown.connect
def close_connections(**_: Any) -> None:
    """Close what was opened to upstreams and to the database; no job runs any more."""
    close_all()
    engine().dispose()


def _refuse(why: str) -> NoReturn:
    print(f"perennial: {why}", file=sys.stderr)  # noqa: T201 - one sentence, not a log record
    raise SystemExit(2)
