"""What is set up wrongly, does not answer or is left behind, and what to do about it.

Nothing is changed, but for a key that says for a minute that Redis could be written, and no
upstream is called: that is for `admin.upstreams`. Where one thing does not answer, what needs it is
skipped, so that one cause is told once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from kombu.exceptions import OperationalError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from admin import view
from admin.readiness import broker_failure, refused_write, stale
from config.settings import settings
from reliability import liveness, quarantine
from reliability.connection import RedisError, redis, redis_bytes
from reliability.dead_letters import Filter, dead_letters
from reliability.parking import parking
from storage import database, upgrade
from tasks import app
from tasks.base import classified

OK, WARNING, PROBLEM, SKIPPED = "ok", "warning", "problem", "skipped"

OLDEST_REDIS = (6, 2)  # LMPOP's forerunners, and what the transport's scripts are tested with
CLOCK_WARNING, CLOCK_PROBLEM = 2.0, 30.0  # s; due times are compared between hosts
ROOM_WARNING, ROOM_PROBLEM = 0.8, 0.95  # share of `maxmemory`: full, Redis refuses every job
# s: below, a host that swaps looks dead; above, a dead worker's jobs are long in coming back.
SHORTEST, LONGEST = 5.0, 900.0
PATIENCE = 1.0  # s for workers and a broker to answer; they do within milliseconds
OVERDUE = 60.0  # s; a worker looks once a second
OLD = 21_600.0  # s that a job may be parked without anybody looking: the alert says the same
MANY = 100  # open letters; the alert says the same
# What Redis says where it takes no writes, and what to do.
REFUSED_WRITES = {
    "maxmemory": "it is full: raise maxmemory; delay() raises meanwhile, and letters are spooled",
    "read only replica": "REDIS_URL has to name the master, or the Sentinels: sentinel://…",
    "NOREPLICAS": "fewer replicas follow it than min-replicas-to-write asks for: start them",
    "MISCONF": "it cannot write its file: look at its disk and its log",
}
ELSEWHERE = "look at its log, and whether our user may write (ACL)"
BY_A_PERSON = frozenset({"Scheduled", "Paused", "CredentialHeld"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found: *state* is ok, warning, problem or skipped; *advice* what to do."""

    name: str
    state: str
    found: str
    advice: str = ""

    def row(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


Check = Callable[[], Iterator[Finding]]


def examine(*more: Check) -> Iterator[Finding]:
    """Yield what each check finds, in the order in which to mend it; then *more*, behind Redis."""
    yield from configuration()
    yield from folders()
    reached = redis_answers()
    yield reached
    written = writes() if reached.state == OK else reached
    if written is not reached:
        yield written
    for look in (persistence, memory, clock):
        yield from asked(look, reached)
    broker = broker_answers() if settings().broker_url != settings().redis_url else written
    if broker is not written:
        yield broker
    yield from the_database()
    yield from asked(consumers, broker)
    for look in (canaries, gates, holds, parked, suspects, letters, spools, *more):
        yield from asked(look, reached)


def asked(look: Check, needed: Finding) -> Iterator[Finding]:
    """Yield what *look* finds; that it is skipped if what it needs does not answer."""
    name = look.__name__
    if needed.state == PROBLEM:
        yield Finding(name, SKIPPED, f"{needed.name} comes first")
        return
    try:
        yield from look()
    except (RedisError, OperationalError, OSError) as error:
        yield Finding(name, PROBLEM, f"could not be looked at: {type(error).__name__}")


# -- what is set


def configuration() -> Iterator[Finding]:
    """Settings that contradict each other, or are missing for what others promise."""
    found = [*_unused(), *_left_alone(), *_timeouts(), *_doors()]
    yield from found or [Finding("configuration", OK, "complete")]


def _unused() -> Iterator[Finding]:
    config = settings()
    named = [url.get_secret_value() for url in (config.redis_url_, config.valkey_url_) if url]
    if named and named[0] != config.redis_url:
        yield Finding(
            "configuration",
            WARNING,
            "REDIS_URL is not used: everything is in the Redis of CELERY_BROKER_URL",
            "leave CELERY_BROKER_URL away; it is for RabbitMQ",
        )


def _left_alone() -> Iterator[Finding]:
    for queue, obstacle in settings().queues.items():
        if obstacle:
            yield Finding(
                "configuration",
                WARNING,
                f"the queue {queue} is left alone here: {obstacle}",
                "set it where jobs of this queue are sent or worked on; else ignore this",
            )


def _timeouts() -> Iterator[Finding]:
    config = settings()
    if not SHORTEST <= config.visibility_timeout <= LONGEST:
        yield Finding(
            "configuration",
            WARNING,
            f"VISIBILITY_TIMEOUT is {config.visibility_timeout:g} s",
            f"between {SHORTEST:g} and {LONGEST:g}: below, a worker that stalls looks dead and its "
            "jobs run twice; above, those of a dead one are long in coming back (usual: 30)",
        )
    if config.retry_time_scale < 1:
        yield Finding(
            "configuration",
            WARNING,
            f"RETRY_TIME_SCALE is {config.retry_time_scale:g}: leases are shorter than slow calls",
            "remove it; it is for tests and drills",
        )


def _doors() -> Iterator[Finding]:
    config = settings()
    for missing, what, advice in (
        (
            config.admin_token is None,
            "ADMIN_TOKEN is not set: API and console stay closed",
            "set it to a long random text (openssl rand -hex 32)",
        ),
        (
            config.bitrix_application_token is None and not config.queues["bitrix"],
            "BITRIX_APPLICATION_TOKEN is not set: the portal's webhooks are refused",
            "copy it from the portal's outbound webhook",
        ),
        (
            config.kie_api_key is not None and not config.public_url,
            "PUBLIC_URL is not set: KIE.AI cannot call back, and is asked far more often",
            "set it to the address that leads to this API from outside",
        ),
        (
            config.telegram_bot_token is not None and config.telegram_webhook_secret is None,
            "TELEGRAM_WEBHOOK_SECRET is not set: buttons below messages do nothing",
            "set it, and give it to setWebhook (docs/videos.md)",
        ),
        (
            config.keep_results is False,
            "KEEP_RESULTS is false: AsyncResult(id).get() has nothing to read",
            "leave it away, unless you compare speeds",
        ),
    ):
        if missing:
            yield Finding("configuration", WARNING, what, advice)


def folders() -> Iterator[Finding]:
    """Whether there is a place on this disk for letters and videos: who needs a folder makes it."""
    config = settings()
    places = [("SPOOL_DIR", config.spool_dir, "a letter that Redis refuses is in the log alone")]
    if config.kie_api_key or config.telegram_bot_token:
        places.append(("MEDIA_DIR", config.media_dir, "no video can be fetched or sent"))
    for setting, place, what in places:
        if _writable(Path(place)):
            yield Finding("folders", OK, f"{setting} can be written")
        else:
            yield Finding(
                "folders",
                PROBLEM,
                f"{setting} ({place}) cannot be written: {what}",
                f"make it a folder of the user that workers run as, or mend {setting}; each host "
                "has its own, so look on that of the workers, too",
            )


def _writable(folder: Path) -> bool:
    """Whether we may write there; of a folder that is yet to be made, where it would be."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


# -- Redis


def redis_answers() -> Finding:
    """Whether Redis answers and is not too old."""
    try:
        server = _server()
    except RedisError as error:
        return Finding(
            "redis",
            PROBLEM,
            f"does not answer: {type(error).__name__}",
            "start it, or mend REDIS_URL (host, port, password, TLS); nothing is lost meanwhile",
        )
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return Finding("redis", PROBLEM, f"is version {version}", "take 6.2 or newer, or Valkey")
    return Finding("redis", OK, f"answers, version {version}")


def writes() -> Finding:
    """Whether Redis takes writes: one that is full, or a replica, answers all the same."""
    refusal = refused_write()
    if refusal is None:
        return Finding("writes", OK, "are taken")
    said = str(refusal)
    advice = next((advice for words, advice in REFUSED_WRITES.items() if words in said), ELSEWHERE)
    return Finding("writes", PROBLEM, f"Redis refuses them: {said}", advice)


def _server() -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", redis().info())


def persistence() -> Iterator[Finding]:
    """Whether jobs outlive a restart of Redis."""
    server = _server()
    if server.get("aof_enabled") and server.get("aof_last_write_status") == "ok":
        yield Finding("persistence", OK, "append-only file")
        return
    if server.get("aof_enabled"):
        yield Finding(
            "persistence",
            PROBLEM,
            "Redis cannot write its append-only file",
            "look at its log and its disk; what comes in now is lost with its memory",
        )
        return
    yield Finding(
        "persistence",
        PROBLEM,
        "no append-only file: a crash of Redis loses jobs that were accepted",
        "redis-cli CONFIG SET appendonly yes, and the same in redis.conf",
    )


def memory() -> Iterator[Finding]:
    """Whether Redis would throw jobs away, or has no room for more."""
    server = _server()
    policy, most = str(server.get("maxmemory_policy", "")), int(server.get("maxmemory", 0))
    if policy != "noeviction":
        yield Finding(
            "memory",
            PROBLEM if most else WARNING,
            f"maxmemory-policy is {policy}: when it is full, Redis drops jobs without a word",
            "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
        )
    share = int(server.get("used_memory", 0)) / most if most else 0.0
    if share > ROOM_WARNING:
        yield Finding(
            "memory",
            PROBLEM if share > ROOM_PROBLEM else WARNING,
            f"{share:.0%} of maxmemory are used",
            "raise maxmemory: full, it refuses jobs. `dlq groups`, `parked ls` tell what is in it",
        )
    if policy == "noeviction" and share <= ROOM_WARNING:
        yield Finding(
            "memory", OK, "refuses rather than evicts" + (f", {share:.0%}" if most else "")
        )


def clock() -> Iterator[Finding]:
    """Whether this host and Redis agree on the time."""
    seconds, microseconds = redis().time()
    off = abs(time.time() - (seconds + microseconds / 1e6))
    if off <= CLOCK_WARNING:
        yield Finding("clock", OK, "agrees with that of Redis")
        return
    yield Finding(
        "clock",
        PROBLEM if off > CLOCK_PROBLEM else WARNING,
        f"is {off:.0f} s off that of Redis: what is due comes too early or too late",
        "run an NTP client on both hosts",
    )


def broker_answers() -> Finding:
    """Whether a broker of its own answers."""
    if error := broker_failure(PATIENCE):
        return Finding(
            "broker",
            PROBLEM,
            f"cannot be used: {type(error).__name__}",
            "start it, or mend CELERY_BROKER_URL (host, port, user, password, virtual host)",
        )
    return Finding("broker", OK, "answers")


# -- the database


def the_database() -> Iterator[Finding]:
    """Whether the database answers, and has the schema of this release."""
    try:
        with database.read() as connection:
            connection.execute(text("SELECT 1"))
            present, newest = upgrade.revisions(connection)
    except SQLAlchemyError as error:
        yield Finding(
            "database",
            PROBLEM,
            f"cannot be used: {type(classified(error)).__name__}",
            "start it, or mend DATABASE_URL (host, database, password; may we write there?)",
        )
        return
    if present == newest:
        yield Finding("database", OK, f"answers, schema {present}")
    elif present in upgrade.known():
        yield Finding(
            "database",
            PROBLEM,
            f"has the schema of an older release ({present}, not {newest})"
            if present
            else "has no tables yet",
            "celery -A tasks db upgrade; a worker does it at its start",
        )
    else:
        yield Finding(
            "database",
            WARNING,
            f"the schema ({present}) is newer than this release",
            "bring this host up to date; releases only add to the schema, so nothing is broken",
        )


# -- who works


def consumers() -> Iterator[Finding]:
    """Which queues somebody serves."""
    answers = app.control.inspect(timeout=PATIENCE).active_queues() or {}
    serving: dict[str, set[str]] = {}
    for worker, queues in answers.items():
        for queue in queues:
            serving.setdefault(queue["name"], set()).add(worker)
    for queue, obstacle in settings().queues.items():
        if workers := serving.get(queue):
            yield Finding("consumers", OK, f"{queue}: {', '.join(sorted(workers))}")
        elif not obstacle:
            yield Finding(
                "consumers",
                PROBLEM,
                f"no worker serves the queue {queue}",
                f"celery -A tasks worker -Q {queue} (without -Q: all); its jobs wait meanwhile",
            )


def canaries() -> Iterator[Finding]:
    """Whether jobs are really taken: a worker that hangs answers a ping all the same."""
    served = [queue for queue, obstacle in settings().queues.items() if not obstacle]
    ages = liveness.canary_ages(*served)
    if all(age is None for age in ages.values()):
        yield Finding(
            "canaries",
            WARNING,
            "there never was any",
            "celery -A tasks beat; without it nothing is trimmed, and refunds may be late",
        )
        return
    if all(map(stale, ages.values())):
        youngest = min(age for age in ages.values() if age is not None)
        yield Finding(
            "canaries",
            PROBLEM,
            f"the last one was taken {youngest:.0f} s ago",
            "does beat run? does any worker? celery -A tasks beat",
        )
        return
    for queue, age in ages.items():
        if stale(age):
            since = "ever" if age is None else f"for {age:.0f} s"
            yield Finding(
                "canaries",
                PROBLEM,
                f"nobody has taken a job from the queue {queue} {since}",
                "its worker is down, stuck or busy: celery -A tasks inspect active; restart it",
            )
        else:
            yield Finding("canaries", OK, f"{queue}: {age:.0f} s ago")


# -- what waits


def gates() -> Iterator[Finding]:
    """Which upstreams calls are kept away from."""
    closed = [gate for gate in view.gates() if gate["state"] != "closed"]
    if not closed:
        yield Finding("gates", OK, "all of them let calls through")
    for gate in closed:
        name = gate["service"]
        yield Finding(
            "gates",
            WARNING,
            # Of all but a held one, the note says the state, too: "paused by anna since 12:00: …".
            f"{name} is {'held: ' if gate['state'] == 'held' else ''}{gate['note']}",
            {
                "paused": f"when it is over: celery -A tasks gate resume {name}",
                "held": "set another credential, or top the account up; it opens by itself",
            }.get(gate["state"], "it opens by itself when the upstream answers"),
        )


def holds() -> Iterator[Finding]:
    """What a person holds back."""
    standing = view.holds()
    if not standing:
        yield Finding("holds", OK, "none")
    for hold in standing:
        yield Finding(
            "holds",
            WARNING,
            f"hold {hold['id']} by {hold['by']} keeps {hold['jobs']} jobs back: {hold['note']}",
            f"when it is over: celery -A tasks hold lift {hold['id']}",
        )


def parked() -> Iterator[Finding]:
    """Whether what is parked comes back in time."""
    overdue, now = parking().overdue(), time.time()
    if overdue > OVERDUE:
        yield Finding(
            "parked",
            PROBLEM,
            f"jobs have been due for {overdue:.0f} s, and nobody moves them",
            "start a worker, of whatever queue",
        )
    old = [
        kind
        for kind in parking().kinds()
        if kind.reason not in BY_A_PERSON and now - (kind.oldest or math.inf) > OLD
    ]
    for kind in old:
        yield Finding(
            "parked",
            WARNING,
            f"a job of {kind.service or 'ours'} has waited for hours: {kind.reason}",
            "celery -A tasks parked ls, then release or cancel it",
        )
    if overdue <= OVERDUE and not old:
        yield Finding("parked", OK, f"{parking().count()} jobs wait for their time")


def suspects() -> Iterator[Finding]:
    """Which jobs two workers have died with."""
    prefix = settings().redis_stream_prefix
    counts = quarantine.counts(redis_bytes(), settings().queues, prefix=prefix)
    for queue, count in counts.items():
        if count:
            yield Finding(
                "suspects",
                WARNING,
                f"{count} jobs of {queue} may have killed two workers each",
                "they run alone now; the third death is a dead letter. Why did the workers die?",
            )
    if not any(counts.values()):
        yield Finding("suspects", OK, "none")


def letters() -> Iterator[Finding]:
    """What has died, and who has not had their money back."""
    count, owed = dead_letters().count(Filter(state="open")), dead_letters().owed_count()
    state = WARNING if count > MANY or owed else OK
    found = f"{count} open" + (f", {owed} not made good yet" if owed else "")
    yield Finding("letters", state, found, "celery -A tasks dlq groups" if count else "")


def spools() -> Iterator[Finding]:
    """What lies on the disks of hosts, because Redis would not have it."""
    host, own = liveness.own_spool()
    known = {**liveness.spools(), **({host: own} if any(own) else {})}
    for name, backlog in sorted(known.items()):
        if backlog.waiting:
            yield Finding(
                "spools",
                WARNING,
                f"{backlog.waiting} dead letters wait on the disk of {name}",
                "a worker on that host brings them in; do not delete its SPOOL_DIR",
            )
        if backlog.torn:
            yield Finding(
                "spools",
                PROBLEM,
                f"{backlog.torn} dead letters on the disk of {name} cannot be read",
                "repair a copy of dead-letters.corrupt in its SPOOL_DIR by hand, then: celery -A "
                "tasks dlq import COPY, and delete dead-letters.corrupt",
            )
    if not known:
        yield Finding("spools", OK, "empty")
