"""What a person does to jobs, letters and gates, whichever door they come through."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from admin import view
from config.services import Service
from reliability.dead_letters import Letter, dead_letters
from reliability.parking import Parked, parking
from tasks import app
from tasks.compensation import cancel
from tasks.dry_run import amended, objection
from tasks.replay import send_again


class Refused(Exception):  # noqa: N818  the word is already a failure
    """It cannot be done as things are; its text says why, in a sentence."""


def resume(service: Service) -> int:
    """Open a gate; return how many jobs come back, in order, paced to the budget."""
    door = view.gate_of(service)
    door.resume()
    return parking().release_service(service.name, start=time.time(), spacing=door.spacing)


def cancel_parked(job: Parked, by: str) -> bool:
    """Take a job out for good: what was paid for it goes back, its result says revoked.

    False if it does not wait any more.
    """
    if not cancel(job):
        return False
    app.backend.mark_as_revoked(job.message_id, f"cancelled by {by}")
    return True


def edit(dead: Letter, kwargs: Mapping[str, Any], by: str) -> Letter:
    """Change the arguments of a dead job, and return its letter as it is then.

    Raises:
        Refused: the task could not work with them, or somebody else was faster.
    """
    if against := objection(amended(dead, kwargs)):
        raise Refused(against)
    if not dead_letters().amend(dead.message_id, kwargs, by):
        raise Refused("somebody else has changed or settled it in this moment")
    changed = dead_letters().get(dead.message_id)
    if changed is None:
        raise Refused("it was moved to the archive in this moment")
    if against := objection(changed):  # what is a secret of ours was not written down
        raise Refused(f"it is changed, but cannot be sent: {against}")
    return changed


def replay(dead: Letter, by: str) -> None:
    """Send the job of a letter again, with a fresh budget.

    Raises:
        Refused: it cannot be sent as it is, or somebody else has settled it.
    """
    against = objection(dead)
    if against or not send_again(dead, by=by):
        raise Refused(against or "somebody else has settled it in this moment")
