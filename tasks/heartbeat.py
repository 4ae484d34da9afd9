"""A file that is touched as long as a worker's loop, or beat's, turns: for whoever supervises it.

A worker that is asked by a ping has to be asked by a second Python, with Celery and all of us in
it: a second of a core and 100 MB for each look at each process. The age of a file costs nothing. It
means the same: a worker touches it as often as it tells its events, which it does while its loop
turns and Redis is there.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import signals

from config.settings import settings


@signals.heartbeat_sent.connect
def beat(**_: Any) -> None:
    """Touch `HEARTBEAT_FILE`, if there is to be one; a worker comes here every two seconds."""
    if file := settings().heartbeat_file:
        with suppress(OSError):  # it grows old then, and its reader says so
            Path(file).touch()
