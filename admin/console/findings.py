"""What is wrong: judged from what was looked at, with a sentence, a time, and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

OVERDUE = 60.0  # s; any worker moves what is due about once a second
FRESH = 3600.0  # s; a death of the last hour may be one of many to come
TOLD = 5  # causes; whoever reads ten reads none
MANY = 100  # open dead letters; as the alert has it
RECENT = 86_400.0  # s; a replay that stopped before was seen by somebody else


@dataclass(frozen=True, slots=True)
class Facts:
    """What the first page has looked at, as the read model has it.

    *overdue* is for how long the next parked job has been due, in seconds; *owed* counts
    compensations that are late, up to a hundred; *spools* letters on the disk of each host.
    """

    gates: list[dict[str, Any]] = field(default_factory=list)
    queues: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    dead: int = 0
    parked: int = 0
    overdue: float = 0.0
    holds: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    owed: int = 0
    suspects: int = 0
    spools: dict[str, int] = field(default_factory=dict)
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. *tone* is bad or warn, *since* unix seconds if that is known.

    *todo* is the next step, *path* the page on which to take it.
    """

    tone: str
    what: str
    since: float | None
    todo: str
    path: str = ""
    link: str = ""


def findings(facts: Facts, now: float) -> list[Finding]:
    """Return what is wrong, the worst first."""
    found = [
        *_unserved(facts, now),
        *_stuck(facts, now),
        *_closed(facts),
        *_dying(facts, now),
        *_owed(facts),
        *_spooled(facts),
        *_suspected(facts),
        *_stopped(facts, now),
        *_held(facts),
    ]
    return sorted(found, key=lambda finding: finding.tone != "bad")


def _unserved(facts: Facts, now: float) -> Iterator[Finding]:
    expected = [row for row in facts.queues if not row["obstacle"]]
    silent = [row for row in expected if row["late"]]
    since = {row["queue"]: None if row["age"] is None else now - row["age"] for row in silent}
    if silent and len(silent) == len(expected):
        known = [at for at in since.values() if at is not None]
        yield Finding(
            "bad",
            "Nobody takes jobs from any queue.",
            max(known, default=None),
            "Either beat is down, which sends the canaries, or all workers are. Look at their "
            "processes and logs, then `celery -A tasks doctor`. Jobs wait; none is lost.",
        )
        return
    for row in silent:
        yield Finding(
            "bad",
            f"Nobody takes jobs from the queue {row['queue']}; {row['waiting']} wait.",
            since[row["queue"]],
            f"Start a worker for it (`celery -A tasks worker -Q {row['queue']}`), or look why "
            "the one that is there takes none.",
        )


def _stuck(facts: Facts, now: float) -> Iterator[Finding]:
    if facts.overdue > OVERDUE:
        yield Finding(
            "bad",
            f"Parked jobs do not come back: the next of {facts.parked} is overdue.",
            now - facts.overdue,
            "Every running worker moves them, so none is running. Start one.",
            "/parked",
            "See what waits",
        )


def _closed(facts: Facts) -> Iterator[Finding]:
    for gate in facts.gates:
        name, note = gate["service"], gate["note"]
        since = _seconds(gate["since"])
        if gate["state"] in {"open", "half_open"}:
            todo = "It is tried again by itself, and its jobs wait. See the upstream's own status."
            yield Finding("warn", f"{name}: {note}", since, todo, "/gates", "Gates")
        elif gate["state"] == "held":
            todo = "Set another credential and restart the workers, or pay; then it goes on."
            yield Finding("bad", f"{name}: {note}", since, todo, "/gates", "Gates")
        elif gate["state"] == "paused":
            todo = "Its jobs are parked. Resume it when the reason is gone."
            yield Finding("warn", f"{name}: {note}", since, todo, "/gates", "Resume it")


def _dying(facts: Facts, now: float) -> Iterator[Finding]:
    found = list(_causes(facts, now))
    yield from found[:TOLD]
    if len(found) > TOLD:
        what = f"{len(found) - TOLD} more causes have killed jobs within the last hour."
        todo = "So many at once have one reason: an upstream, the database, or a release."
        yield Finding("warn", what, None, todo, "/groups", "See them all")


def _causes(facts: Facts, now: float) -> Iterator[Finding]:
    for group in facts.groups:
        verdict = group["verdict"] or {}
        last = _seconds(group["last_seen"]) or 0.0
        path = f"/groups/{group['fingerprint']}"
        if verdict.get("regression"):
            what = f"{group['task']}: dies again of what was fixed in {verdict['version']}."
            yield Finding("bad", what, last, group["explanation"], path, "See the cause")
        elif now - last < FRESH:
            jobs = "job" if group["count"] == 1 else "jobs"
            yield Finding(
                "bad" if group["count"] >= MANY else "warn",
                f"{group['task']}: {group['count']} {jobs} died of {group['error_type']}.",
                _seconds(group["first_seen"]),
                group["explanation"],
                path,
                "See the cause",
            )


def _owed(facts: Facts) -> Iterator[Finding]:
    if facts.owed:
        yield Finding(
            "bad",
            f"{facts.owed} dead jobs have not been made good: something is owed to users.",
            None,
            "Beat has that sent once a minute. If this stays, look whether beat runs.",
            "/dead-letters",
            "See the letters",
        )


def _spooled(facts: Facts) -> Iterator[Finding]:
    for host, count in facts.spools.items():
        yield Finding(
            "bad",
            f"{count} dead letters lie on the disk of {host}: Redis would not take them.",
            None,
            "A worker on that host writes them within seconds once Redis takes writes again. Keep "
            "that disk.",
        )


def _suspected(facts: Facts) -> Iterator[Finding]:
    if facts.suspects:
        yield Finding(
            "warn",
            f"{facts.suspects} jobs are suspected of killing their workers.",
            None,
            "They are run alone, one after the other. Look why workers died: memory, a crash?",
            "/parked",
            "See them",
        )


def _stopped(facts: Facts, now: float) -> Iterator[Finding]:
    for run in facts.runs:
        over = _seconds(run["over_at"])
        if run["state"] == "stopped" and over is not None and now - over < RECENT:
            yield Finding(
                "warn",
                f"The replay {run['id']} has stopped by itself: {run['why']}.",
                over,
                "The cause is not mended yet. Look at what died, mend it, then let it go on.",
                f"/replays/{run['id']}",
                "See the replay",
            )


def _held(facts: Facts) -> Iterator[Finding]:
    for hold in facts.holds:
        about = hold["task"] or " ".join(f"{k}={v}" for k, v in hold["where"].items())
        yield Finding(
            "warn",
            f"{hold['by']} holds back jobs of {about}: {hold['note']}",
            _seconds(hold["at"]),
            "Such jobs are parked. Lift the hold when the reason is gone.",
            "/holds",
            "Lift it",
        )


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None
