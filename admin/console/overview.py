"""The first page: what is wrong, since when, and what to do about it; below, how work flows."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any

from celery.states import READY_STATES
from fastapi import Query, Request
from starlette.responses import Response

from admin import view
from admin.console.findings import Facts, findings
from admin.console.render import page
from admin.console.session import pages
from admin.console.words import STATES
from admin.readiness import stale
from config.settings import settings
from reliability import liveness, quarantine, queues
from reliability.connection import redis, redis_bytes
from reliability.counters import sums
from reliability.dead_letters import dead_letters
from reliability.holds import holds
from reliability.parking import parking
from reliability.replays import replays
from storage import archive, bookmarks, credits, videos
from tasks import app
from tasks.measures import DEAD

router = pages()

TOP = 5  # causes that the first page shows
CAUSES = 100  # causes that it looks at
RECURRING = {"upkeep.canary"}  # the more of it the better, and nobody waits for it


@router.get("/")
def overview(request: Request) -> Response:
    """Show what is wrong, and how everything is."""
    facts = gathered()
    return page(
        request,
        "overview.html",
        place="/",
        findings=findings(facts, time.time()),
        facts=facts,
        flows=flows(),
        kinds=[kind for kind in parking().kinds() if kind.count],
        groups=sorted(facts.groups, key=lambda group: group["last_seen"], reverse=True)[:TOP],
        looked_at=datetime.now(UTC),
    )


def gathered() -> Facts:
    """Look at everything that the first page speaks of, each at a flat cost."""
    store, prefix = dead_letters(), settings().redis_stream_prefix
    suspects = quarantine.counts(redis_bytes(), settings().queues, prefix=prefix)
    return Facts(
        gates=view.gates(),
        queues=_queues(),
        groups=[view.group_row(group) for group in store.groups(limit=CAUSES)],
        dead=store.count(),
        parked=parking().count(),
        overdue=parking().overdue(),
        holds=[view.hold_row(hold) for hold in holds().each()],
        runs=[view.run_row(run) for run in replays().each()],
        owed=len(store.owed()),
        suspects=sum(suspects.values()),
        spools={host: each.waiting + each.torn for host, each in liveness.spools().items()},
        workers=liveness.workers_seen(),
    )


def _queues() -> list[dict[str, Any]]:
    """Return each queue: how long it is, when a worker last came to it, why it is left alone."""
    known = settings().queues
    lengths, ages = queues.lengths(*known), liveness.canary_ages(*known)
    return [
        {
            "queue": name,
            "waiting": lengths[name],
            "age": ages[name],
            "late": stale(ages[name]) and not obstacle,
            "obstacle": obstacle,
        }
        for name, obstacle in known.items()
    ]


def flows() -> list[dict[str, Any]]:
    """Return what has become of the jobs of each operation, as all workers have counted it."""
    counted = sums(redis(), prefix=settings().redis_stream_prefix)
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    for (task, outcome), count in counted.get("jobs_total", {}).items():
        ended[task]["dead" if outcome == DEAD else "well"] += count
    for (task, _), count in counted.get("job_retries_total", {}).items():
        ended[task]["retries"] += count
    open_letters = dead_letters().open_by_task()
    return [
        {"task": task, "open": open_letters.get(task, 0)}
        | {name: counts[name] for name in ("well", "dead", "retries")}
        for task, counts in sorted(ended.items())
        if task not in RECURRING
    ]


# -- one field for everything that has a name


@router.get("/find")
def find(request: Request, q: Annotated[str, Query()] = "") -> Response:
    """Say what an id stands for: a job, an order, a user, a crawl."""
    name = q.strip()
    return page(request, "find.html", q=name, found=_found(name) if name else [])


def _found(name: str) -> list[dict[str, str]]:
    """Look for a name wherever it could stand; each look is one read by key."""
    looks = (_letter, _parked, _video, _crawl, _credits, _crawls)
    found = list(filter(None, (look(name) for look in looks)))
    return found or list(filter(None, [_ended(name)]))


def _letter(name: str) -> dict[str, str] | None:
    if (letter := dead_letters().get(name)) is not None:
        told = f"{letter.message_body.task}, {letter.error_type}, {letter.state}"
        return _place("dead-letters/", "Dead letter", told)
    if (kept := archive.get(name)) is not None:
        told = f"{kept.task}, {kept.error_type}"
        return _place("dead-letters/", "Dead letter in the archive", told)
    return None


def _parked(name: str) -> dict[str, str] | None:
    job = parking().get(name)
    return _place("parked/", "Parked job", f"{job.task}, {job.reason}") if job else None


def _video(name: str) -> dict[str, str] | None:
    video = videos.get(name)
    if video is None:
        return None
    return _place("videos/", "Video of this order", STATES[video.state][0])


def _crawl(name: str) -> dict[str, str] | None:
    crawl = bookmarks.get(name)
    if crawl is None:
        return None
    return _place("crawls/", "Crawl", f"of user {crawl.user_id}, {STATES[crawl.state][0]}")


def _credits(name: str) -> dict[str, str] | None:
    entries = credits.history(name, 1)
    if not entries:
        return None
    return _place("credits?user=", "Credits of this user", f"{entries[0].balance_after} left")


def _crawls(name: str) -> dict[str, str] | None:
    crawled = bookmarks.sessions(name, 1)
    told = crawled and f"the last one {STATES[crawled[0].state][0]}"
    return _place("crawls?user=", "Crawls of this user", told) if told else None


def _ended(name: str) -> dict[str, str] | None:
    state = app.AsyncResult(name).state if settings().keep_results else ""
    return _place("", "Job", f"it has ended: {state.lower()}") if state in READY_STATES else None


def _place(path: str, what: str, text: str) -> dict[str, str]:
    return {"path": path, "what": what, "text": text}
