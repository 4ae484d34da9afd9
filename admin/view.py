"""The read model: what every door shows, as plain JSON-able values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from config.history import History
from config.services import Service, services
from config.settings import settings
from reliability import gate, quarantine
from reliability.causes import Verdict
from reliability.connection import redis, redis_bytes
from reliability.dead_letters import Group, Letter
from reliability.gate import Gate, GateState
from reliability.holds import Hold
from reliability.holds import holds as held_back
from reliability.parking import Parked, parking
from reliability.quarantine import Suspect
from reliability.replays import Run
from storage import effects

# What usually helps, by the kind of failure; the group's page says it in the operator's words.
EXPLANATIONS = {
    "InvalidData": "The upstream rejected a value. Correct it in the application, then send again.",
    "MissingFields": "A required value is missing. Add it in the application, then send again.",
    "NotFound": "The target is not there. If it was deleted on purpose, discard the letter.",
    "Forbidden": "The credential lacks a right. Grant it in the portal, then replay.",
    "Unauthorized": "The credential is refused. Set a new one, then replay.",
    "NotConfigured": "A setting, method or plan is missing. Set it up, then replay.",
    "Blocked": "The upstream has shut us out. Settle it with them, then replay.",
    "BillingExhausted": "Our account is empty. Top it up, then replay.",
    "BusinessRule": "The upstream's own rules forbid it. Look at the message.",
    "OutcomeUnknown": "It may have happened. Look in the upstream before you replay; a message or "
    "video of Telegram's is not sent by that, see docs/videos.md.",
    "ServiceUnavailable": "The upstream was down for too long. Replay when it is up.",
    "NetworkError": "The upstream could not be reached. Check the network, then replay.",
    "DatabaseError": "Our database failed. Replay when it is well.",
    "InternalError": "Our own side failed. The traceback tells where.",
    "RateLimited": "The budget was used up for too long. Raise it or send less, then replay.",
    "CircuitOpen": "The upstream was down for too long. Replay when it is up.",
    "Paused": "A person held it back for too long. Resume the gate or lift the hold, then replay.",
    "CredentialHeld": "The credential was refused for too long. Set a new one, then replay.",
    "Pending": "What it waited for did not come. Look at its last wait, then replay.",
    "Cancelled": "Somebody has revoked it; what it had begun is made good. Replay it if it is to "
    "be done after all, else discard it.",
    "PoisonPill": "The job ends its worker, even alone. Learn how from that worker's log (memory? "
    "a crash in a library?), mend it, then replay.",
    "Fatal": "Memory or disk ran out on every worker that tried. Give them more, then replay.",
    "Unclassified": "Nobody has met this failure before. Read the traceback, write a rule for it.",
}
OTHERWISE = "Read the message and the traceback."
# What becomes of a suspect, by whether it is running; RabbitMQ does not tell.
ALONE = {
    True: "it is being run alone",
    False: "it waits to be run alone",
    None: "it waits to be run alone, or is",
}


def gate_of(service: Service) -> Gate:
    """Return the gate of one upstream."""
    config = settings()
    return Gate(redis(), service, prefix=config.redis_stream_prefix, scale=config.retry_time_scale)


def gates() -> list[dict[str, Any]]:
    """Return every gate: service, state, budget_remaining, retry_at, note, since."""
    prefix = settings().redis_stream_prefix
    return [gate_row(state) for state in gate.states(redis(), services(), prefix=prefix)]


def gate_row(state: GateState) -> dict[str, Any]:
    """Return one gate with its times as ISO 8601."""
    return asdict(state) | {"retry_at": _iso(state.retry_at), "since": _iso(state.since)}


def suspects() -> Iterator[dict[str, Any]]:
    """Return the jobs that wait to be run alone, and the one that is, like parked ones.

    Nobody knows when they come: one after the other.
    """
    prefix, queues = settings().redis_stream_prefix, settings().queues
    return map(suspect_row, quarantine.suspects(redis_bytes(), queues, prefix=prefix))


def suspect_row(job: Suspect) -> dict[str, Any]:
    """Return one job under suspicion as a parked one is told of; its *state* is `suspect`."""
    history = History.from_headers(job.headers)
    return {
        "message_id": job.message_id,
        "task": job.task,
        "state": "suspect",
        "args": job.args,
        "kwargs": job.kwargs,
        "reason": "Suspect",
        "service": "",
        "detail": f"{job.deaths} workers have died with it; {ALONE[job.running]}",
        "queue": job.queue,
        "since": None,
        "due": None,
        "attempts": history.attempts,
        "history": list(history.entries),
    }


def parked_row(job: Parked) -> dict[str, Any]:
    """Return one parked job with its times as ISO 8601; its *state* is `parked`."""
    row = asdict(job) | {"state": "parked"}
    for name in ("accepted_at", "since", "due"):
        row[name] = _iso(_utc(row[name]))
    return row


def effect_row(row: effects.Row) -> dict[str, Any]:
    """Return one effect as it is written down, with its times as ISO 8601."""
    return {
        name: value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for name, value in asdict(row).items()
    }


def holds() -> list[dict[str, Any]]:
    """Return every hold, oldest first, with the number of *jobs* that are parked for it."""
    known = held_back().each()
    waiting = parking().held(*(hold.id for hold in known))
    return [hold_row(hold) | {"jobs": waiting[hold.id]} for hold in known]


def hold_row(hold: Hold) -> dict[str, Any]:
    """Return one hold with its times as ISO 8601; *until* is None until somebody lifts it."""
    until = None if hold.until is None else _utc(hold.until)
    return asdict(hold) | {"at": _iso(_utc(hold.at)), "until": _iso(until)}


def letter_row(letter: Letter) -> dict[str, Any]:
    """Return one dead letter: the record of DESIGN 7, `message_id` first."""
    row: dict[str, Any] = asdict(letter)
    row["metadata"] |= {
        "received_at": _iso(letter.metadata.received_at),
        "failed_at": _iso(letter.metadata.failed_at),
    }
    row["settled_at"] = _iso(letter.settled_at)
    row["edits"] = [edit | {"at": _iso(edit["at"])} for edit in row["edits"]]
    row["explanation"] = explain(letter.error_type)
    return row


def group_row(group: Group) -> dict[str, Any]:
    """Return one group of letters with its explanation."""
    row = asdict(group)
    row["first_seen"], row["last_seen"] = _iso(group.first_seen), _iso(group.last_seen)
    row["verdict"] = None if group.verdict is None else verdict_row(group.verdict)
    return row | {"explanation": explain(group.error_type)}


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """Return what was said about a cause, with its times as ISO 8601."""
    return asdict(verdict) | {"at": _iso(verdict.at), "until": _iso(verdict.until)}


def run_row(run: Run) -> dict[str, Any]:
    """Return one ramped replay with its times as ISO 8601, and what it was to send."""
    row = asdict(run)
    row["begun_at"], row["over_at"] = _iso(run.begun_at), _iso(run.over_at)
    row["which"] |= {"since": _iso(run.which.since), "until": _iso(run.which.until)}
    inside = ("cursor", "exhausted", "paced_until", "revision", "step", "step_sent")
    return {name: value for name, value in row.items() if name not in inside}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what an edit changes, line by line, as - and +."""
    lines = (_lines(before), _lines(after))
    told = list(difflib.unified_diff(*lines, lineterm="", n=1))
    return "\n".join(line for line in told[2:] if not line.startswith("@@"))


def _lines(arguments: Mapping[str, Any]) -> list[str]:
    return json.dumps(arguments, ensure_ascii=False, indent=2, sort_keys=True).splitlines()


def explain(error_type: str) -> str:
    """Say in plain words what a class of failure means and what usually helps."""
    return EXPLANATIONS.get(error_type, OTHERWISE)


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
