"""Twenty users' bookmarks while X fails and workers are killed with -9: what is lost, what it cost.

Each user has so few requests in a window that every crawl is parked several times.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from rich.console import Console

from bench.tools import stack, table, wait
from bench.videos import Killer
from config.services import PAGE

USERS, BOOKMARKS = 20, 800
QUICK_USERS, QUICK_BOOKMARKS = 5, 300
SEED = 20261122
PATIENCE = 600.0  # seconds until all crawls have ended; the machine may be busy
DRILL = {"RETRY_TIME_SCALE": "0.05", "VISIBILITY_TIMEOUT": "3", "WORKER_THREADS": "16"}
WINDOW = 8.0  # seconds
X = ("--limit", "4", "--window", f"{WINDOW:g}", "--latency", "0.1")
INVALID = ("no_id", "no_id", "no_text", "not_an_object", "non_digit_id")
REFUSED = (123, 124, 250)  # our database takes none that is the 123rd of its user, counted upwards
# Of all requests for a page; a rate limit that is told beforehand never comes to an answer.
FAULTS = (
    {"kind": "error", "code": "too_many_requests", "seconds": 2, "probability": 0.02},
    {"kind": "error", "code": "unavailable", "probability": 0.01},
    {"kind": "refuse", "drop": "reset", "probability": 0.01},
    {"kind": "lost_answer", "probability": 0.01},
)


def run(console: Console, *, quick: bool = False) -> None:
    users, each = (QUICK_USERS, QUICK_BOOKMARKS) if quick else (USERS, BOOKMARKS)
    shown = table(
        f"{users} users × {each} bookmarks, two workers, one killed with -9 every few seconds",
        *("valid", "stored once", "missing", "counted twice", "invalid", "reported once"),
        *("kills", "faults", "429s", "requests: mean", "worst", "seconds"),
    )
    command = [sys.executable, "-m", "bench.crawls", str(users), str(each)]
    shown.add_row(*json.loads(subprocess.check_output(command)))
    console.print(shown)
    console.print(f"requests of a user against the least: one for each {PAGE} bookmarks\n")


def measure(users: int, each: int) -> list[str]:
    """Crawl the bookmarks of *users* with so many each; return the cells of the row."""
    with stack(**DRILL) as made, httpx.Client(base_url=made.url("x"), trust_env=False) as x:
        made.start_x(*X)
        from storage import credentials  # reads the environment when imported
        from tasks.bookmarks import crawl

        killer = Killer(made)
        for worker in killer.workers:
            killer.employ(worker)
        people = [person(number, each) for number in range(users)]
        x.post("/_sandbox/users", json=people).raise_for_status()
        for one in people:
            tokens = {name: one[name] for name in ("access_token", "refresh_token")}
            credentials.save("x", one["id"], **tokens)
        armed = [{**fault, "method": "bookmarks"} for fault in FAULTS]
        x.post("/_sandbox/faults", json=armed).raise_for_status()
        refuse_some()
        begun = time.monotonic()
        killer.start()
        jobs = []
        for one in people:  # users do not all begin at the same moment
            jobs.append(crawl.delay(user_id=one["id"]))
            time.sleep(WINDOW / users)
        wait(lambda: all(job.ready() for job in jobs), PATIENCE)
        seconds = time.monotonic() - begun
        killer.stopped.set()
        killer.join()
        faults = sum(x.get("/_sandbox/faults").json()["fired"].values())
        judged = [judge(user) for user in x.get("/_sandbox/users").json()]
    sums = {name: sum(user[name] for user in judged) for name in judged[0]}
    cost = [user["requests"] / math.ceil(each / PAGE) for user in judged]
    cells = [sums["valid"], sums["stored"], sums["missing"], sums["twice"]]
    cells += [sums["invalid"], sums["reported"], killer.kills, faults, sums["limited"]]
    return [
        *map(str, cells),
        f"×{sum(cost) / len(cost):.2f}",
        f"×{max(cost):.2f}",
        f"{seconds:.0f}",
    ]


def person(number: int, bookmarks: int) -> dict[str, Any]:
    """Somebody with invalid bookmarks here and there."""
    drawn = random.Random(SEED + number)
    # Numbers count from the oldest, positions from the newest.
    sound = [at for at in range(bookmarks) if bookmarks - at not in REFUSED]
    invalid = zip(drawn.sample(sound, len(INVALID)), INVALID, strict=True)
    return {
        "id": str(1000 + number),
        "access_token": f"access-{number}",
        "refresh_token": f"refresh-{number}",
        "bookmarks": bookmarks,
        "invalid": [{"position": position, "kind": kind} for position, kind in invalid],
    }


def refuse_some() -> None:
    """Have our database refuse a few bookmarks of each user."""
    from storage import database

    those = " OR ".join(f"NEW.tweet_id LIKE '%{number:07d}'" for number in REFUSED)
    with database.transaction() as connection:
        connection.exec_driver_sql(
            f"CREATE TRIGGER refuse BEFORE INSERT ON bookmarks WHEN {those} "
            "BEGIN SELECT RAISE(ABORT, 'refused by the drill'); END"
        )


def judge(user: Mapping[str, Any]) -> dict[str, int]:
    """Compare what X has of a user with what we have; what is wrong is told on standard error."""
    from storage import bookmarks

    refused = [tweet for tweet in user["valid"] if int(tweet[-7:]) in REFUSED]
    due = set(user["valid"]) - set(refused)
    sessions = bookmarks.sessions(user["id"])
    stored = stored_of(user["id"])
    skipped = bookmarks.skipped(user_id=user["id"])
    counted = sum(session.stored + session.known for session in sessions)
    reported = sum(sum(session.skipped.values()) for session in sessions)
    found = {
        "valid": len(due),
        "stored": len(due & set(stored)),
        "missing": len(due - set(stored)),
        "twice": max(counted, len(stored)) - len(set(stored)),
        "invalid": len(user["invalid"]) + len(refused),
        "reported": min(len(skipped), reported),
        "limited": user["limit_answers"],
        "requests": user["requests"],
    }
    wrong = found["missing"] or found["twice"] or not found["invalid"] == len(skipped) == reported
    if wrong or [session.state for session in sessions] != ["completed"]:
        print(f"{user['id']}: {found}, {sessions}", file=sys.stderr)
    return found


def stored_of(user_id: str) -> Sequence[str]:
    """The bookmarks of a user that we have."""
    from sqlalchemy import select

    from storage import database
    from storage.models import bookmarks

    with database.read() as connection:
        ours = select(bookmarks.c.tweet_id).where(bookmarks.c.user_id == user_id)
        return connection.execute(ours).scalars().all()


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
