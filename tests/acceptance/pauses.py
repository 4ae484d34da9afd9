"""Stops a worker dead at a point of a job's life; loaded into it with `-I tests.acceptance.pauses`.

A job whose order id begins with the name of a point gets there, a file of that name appears in
`$PAUSES`, and nothing of the job happens any more: the test ends the worker. The product knows
nothing of this.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from celery.worker.request import Request

from clients.http import Upstream
from reliability.transport import Channel
from storage import effects

FOLDER = Path(os.environ["PAUSES"])
EVER = threading.Event()


def stop_if(point: str, told: str) -> None:
    if f"{point}-" in told:
        (FOLDER / point).touch()
        EVER.wait()


def before(owner, name, point, tell):
    """Stop at *point* before *name* does its work for a job of that point."""
    original = getattr(owner, name)

    def stopping(*args, **kwargs):
        stop_if(point, tell(*args, **kwargs))
        return original(*args, **kwargs)

    setattr(owner, name, stopping)


def after(owner, name, point, tell):
    """Stop at *point* when *name* has done its work for a job of that point."""
    original = getattr(owner, name)

    def stopping(*args, **kwargs):
        answer = original(*args, **kwargs)
        stop_if(point, tell(*args, **kwargs))
        return answer

    setattr(owner, name, stopping)


# Stored as unacknowledged, not yet a job. Stops the consumer, so it has to be the last.
before(Channel, "_deliver", "taken", lambda channel, visit: repr(visit))
# The row says `intended`; the request has not left.
before(Upstream, "send", "intended", lambda *_, **content: repr(content))
# The row says `done`; there is no result yet.
after(effects, "_finish", "recorded", lambda run, *_: run.key)
# There is a result; the message is not acknowledged.
before(Request, "acknowledge", "finished", lambda request: repr(request.kwargs))
