"""Loaded into a worker by a measurement: counts its round trips to the database."""

import itertools
import os
from pathlib import Path

from celery import signals
from sqlalchemy import Engine, event

_trips = itertools.count()


@event.listens_for(Engine, "before_cursor_execute")
def _statement(*_):
    next(_trips)


@event.listens_for(Engine, "commit")
def _commit(*_):
    next(_trips)


@signals.worker_shutdown.connect
def _tell(**_):
    Path(os.environ["BENCH_SQL"]).write_text(str(next(_trips)))
