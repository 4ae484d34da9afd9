"""A dead job comes back to life: the same job, with a fresh budget."""

from __future__ import annotations

import time

from config.settings import settings
from reliability.dead_letters import Letter, dead_letters
from tasks import app
from tasks.compensation import operation_named
from tasks.payloads import HIDDEN

OURS = ("accepted_at",)  # headers that survive; what was spent and waited starts afresh


def send_again(dead: Letter, *, by: str = "") -> bool:
    """Send the job of a letter again, with a fresh budget: first the job, then the mark.

    A crash in between leaves the letter open and the job sent; sending twice is harmless, because
    effects are looked up before they are had. False if the letter cannot be replayed as it is, or
    somebody else has settled it.

    Raises:
        kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
    """
    if not dead.replayable:
        return False
    task = operation_named(dead.message_body.task)
    shown = task.payload.shown(dead.message_body.kwargs) if task else HIDDEN
    headers = {name: value for name, value in dead.headers.items() if name in OURS}
    if settings().keep_results:
        app.backend.forget(dead.message_id)  # whoever asks now waits for the new one
    app.send_task(
        dead.message_body.task,
        args=list(dead.message_body.args),
        kwargs=dict(dead.message_body.kwargs),
        task_id=dead.message_id,
        root_id=dead.metadata.trace_id or None,
        queue=dead.original_queue or None,
        priority=task.priority if task else None,
        argsrepr=HIDDEN,
        kwargsrepr=shown,
        headers={**headers, "replays": dead.replays + 1, "sent_again_at": time.time()},
    )
    return dead_letters().mark_replayed(dead, by=by)
