"""The gate of one upstream: who may call it, when, and who comes back later.

Budget, breaker, operator's pause and held credentials are one hash in Redis and one script, so
that all workers of all machines decide as one, by Redis's clock. The budget is a leaky bucket with
reservation: a permit that is due within `max_wait` is given out now, together with the seconds to
sleep. Whoever is refused is told when to come back: refused jobs stand in one line, paced to the
budget, so that an opening gate meets neither a stampede nor an empty road. What is known of one
subject of many, of a chat, say, is a key of its own that ends by itself.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from classifiers.errors import (
    BillingExhausted,
    CircuitOpen,
    CredentialHeld,
    InternalError,
    JobError,
    Paused,
    RateLimited,
)
from config.services import Service
from reliability.keys import OURS
from reliability.scripts import script

log = logging.getLogger(__name__)

E = TypeVar("E", bound=JobError)

# The upstream's bucket counts a call when it arrives, and calls that are a second slower than
# their successors arrive bunched: as many permits as leak in that second stay unused.
DELAY_VARIANCE = 1.0
RECHECK = 60.0  # nobody knows when a person acts: a minute is soon enough to notice it
PROBE_RECHECK = 1.0  # a probe is usually answered within a second
LONGEST_BLOCK = 86_400.0  # an upstream that asks for more than a day is a matter for a person
LONGEST_LINE = 3_600.0  # beyond an hour the line starts a second lap; see `Gate`
SCANNED = 1_000  # keys that Redis looks at in one go when a person has a gate reset


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave for one call, *wait* seconds from now; to be handed back with the report.

    *probe* is the number of the trial call of a half-open breaker, 0 for any other call; *clean*
    says that a success is no news, so that reporting it costs no round trip. *subject* and *pace*
    are those it was asked for.
    """

    wait: float
    probe: int = 0
    clean: bool = True
    subject: str = ""
    pace: float = 0.0


@dataclass(frozen=True, slots=True)
class GateState:
    """What the console shows of one gate. *state*: closed, half_open, open, paused or held.

    *retry_at* is when a call may succeed again, None for now and for "when a person has acted".
    """

    service: str
    state: str
    budget_remaining: int
    retry_at: datetime | None = None
    note: str = ""
    since: datetime | None = None


class Gate:
    """The gate of *service*. *scale* multiplies the waits that are ours, never the budget.

    A *subject* is one of many that share a service; a rate limit stops it alone. Either it has a
    credential of its own (a user of X), whose hold stops it alone, too; or it is called with the
    service's credential at a *pace* of its own (a chat): so many seconds from call to call. The
    empty subject is the service as a whole.

    The line of refused jobs is kept as one moment, its tail. A person who opens the gate, and a
    changed credential, forget it; a breaker that closes does not, because the jobs in the line are
    still to come. It never reaches further than an hour past the opening: jobs beyond that come
    back between the others, still spaced. A subject that is stopped alone has such a line of its
    own, spaced by its pace.
    """

    def __init__(
        self, client: Redis, service: Service, *, prefix: str = "", scale: float = 1.0
    ) -> None:
        self.service = service
        self._client = client
        self._prefix = prefix
        self._key = key_of(service, prefix)
        self._pause = service.pause * scale
        self._run = client.register_script(script("gate"))
        self._limits = json.dumps(
            {
                "rate": service.rate,
                "burst": usable_burst(service),
                "max_wait": service.max_wait,
                "spacing": self.spacing,
                "failure_threshold": service.failure_threshold,
                "success_threshold": service.success_threshold,
                "reset_timeout": service.reset_timeout * scale,
                "recheck": RECHECK * scale,
                "probe_recheck": PROBE_RECHECK * scale,
                "lease": service.lease,
                "longest_block": LONGEST_BLOCK,
                "longest_line": LONGEST_LINE,
            }
        )

    @property
    def spacing(self) -> float:
        """Seconds between two jobs that come back: the budget, counted in operations."""
        return 1.0 / (self.service.rate * self.service.ops_per_permit)

    def admit(
        self,
        *,
        waiting: int = 1,
        credential: str = "",
        subject: str = "",
        pace: float = 0.0,
        yields: bool = False,
    ) -> Permit:
        """Reserve the next permit, or refuse all *waiting* jobs at once.

        The permit is due when the budget allows it, and *pace* seconds after the one before it for
        this subject. One that *yields* leaves room for those that do not: where the budget is
        short, they get theirs first. A refusal's `retry_after` is for the first of the jobs,
        `behind` makes it for the others. It is jittered already, by less than one place in the
        line.

        Raises:
            CredentialHeld, Paused, BillingExhausted, RateLimited, CircuitOpen: it is closed; asked
                in this order.
            InternalError: Redis did not answer.
        """
        if pace and not subject:
            raise ValueError("a pace is that of a subject; a whole service has its rate")
        facts = (digest(credential), int(yields))
        reply = self._ask("admit", *facts, subject=subject, pace=pace, waiting=waiting)
        if reply[0] != "admitted":
            raise self._refusal(reply)
        return Permit(float(reply[1]), int(reply[2]), bool(reply[3]), subject, pace)

    def queue_up(self, after: float) -> float:
        """Return when to come for a permit that is needed in *after* seconds, or as soon as may be.

        Where others stand in line for longer than that, the place behind them: thousands who ask
        at an interval would come to be refused first, and each such visit is a run of a job.
        """
        try:
            return float(self._ask("queue_up", after))
        except InternalError:  # who comes too early is refused, and stands in line then
            return after

    def behind(self, refusal: E, place: int) -> E:
        """Return *refusal* for the job that stands *place* places behind the first one."""
        own = copy.copy(refusal)
        own.retry_after = (refusal.retry_after or 0.0) + place * self.spacing
        return own

    def report_success(self, permit: Permit) -> None:
        """The upstream answered, if only to say no: it is alive."""
        if not permit.clean:
            self._report("success", permit)

    def report_failure(self, permit: Permit) -> bool:
        """The upstream was unreachable or answered 5xx. True if this opened the breaker."""
        return self._report("failure", permit)[0] == "opened"

    def report_limited(
        self, permit: Permit, retry_after: float | None = None, *, waiting: int = 1
    ) -> float:
        """The upstream counts more calls than we did: believe it, without tripping the breaker.

        The time it gave, or the service's `pause` if it gave none, stops the permit's subject
        alone, if it has one. Returns the seconds after which the first of the *waiting* refused
        jobs should come back.
        """
        if retry_after is None or not math.isfinite(retry_after):
            retry_after = self._pause
        seconds = self._report("limited", permit, retry_after, waiting=waiting)[1]
        return float(seconds) or retry_after or 1.0 / self.service.rate

    def report_unpaid(self, permit: Permit, note: str = "", *, waiting: int = 1) -> float | None:
        """The upstream wants money first: refuse every call for a minute, then try again.

        The refusals are BillingExhausted like the answer: however few of the jobs get to ask the
        upstream itself, all of them wait for money, and none for longer than that may last. Returns
        the seconds after which the first of the *waiting* jobs should come back, if known.
        """
        seconds = self._report("unpaid", permit, note, waiting=waiting)[1]
        log.warning("[GATE] %s wants money: %s", self.service.name, note)
        return float(seconds) or None

    def pause(self, by: str, note: str = "") -> bool:
        """Refuse every call until `resume`. False if it was paused already; the new note counts."""
        newly = bool(self._ask("pause", by, note))
        log.warning("[GATE] %s paused by %s: %s", self.service.name, by, note)
        return newly

    def resume(self) -> bool:
        """Lift the pause. False if there was none."""
        lifted = bool(self._ask("resume"))
        log.warning("[GATE] %s resumed", self.service.name)
        return lifted

    def hold_credential(self, credential: str, note: str = "", *, subject: str = "") -> bool:
        """Refuse the calls with *credential* until another one comes; only its digest is kept.

        False if it was held already.
        """
        if not credential:
            raise ValueError("an empty credential cannot be held: no other would differ from it")
        newly = bool(self._ask("hold", digest(credential), note, subject=subject))
        if newly:
            log.warning("[GATE] %s holds a credential: %s", self.service.name, note)
        return newly

    def reset(self) -> None:
        """Close the breaker and forget holds, debts, rate limits and the line; a pause stays."""
        self._ask("reset")
        for key in self._client.scan_iter(match=f"{_literally(self._key)}:*", count=SCANNED):
            self._client.unlink(key)
        log.warning("[GATE] %s reset", self.service.name)

    def state(self) -> GateState:
        """Look at the gate without touching it."""
        return states(self._client, [self.service], prefix=self._prefix)[0]

    def _ask(
        self,
        action: str,
        *facts: str | float,
        subject: str = "",
        pace: float = 0.0,
        waiting: int = 1,
    ) -> Any:
        # Redis gives every run of a script the same random numbers: the jitter is brought along.
        jitter = random.random()  # noqa: S311  spreads returns, guards nothing
        keys = [self._key, f"{self._key}:{subject}"] if subject else [self._key]
        arguments = [action, self._limits, subject, pace, waiting, jitter, *facts]
        try:
            return self._run(keys=keys, args=arguments)
        except RedisError as error:
            raise InternalError(
                f"the gate cannot be asked, Redis says: {error}", service=self.service.name
            ) from error

    def _report(
        self, action: str, permit: Permit, *facts: str | float, waiting: int = 1
    ) -> tuple[str, str]:
        """Return what became of the breaker, and the seconds to come back in, if any."""
        ask = partial(self._ask, subject=permit.subject, pace=permit.pace, waiting=waiting)
        try:
            breaker, seconds = ask(action, permit.probe, *facts)
        except InternalError as error:
            # The call has been made: its own outcome matters more than what the gate learns of it.
            log.warning("[GATE] %s: a %s was not counted: %s", self.service.name, action, error)
            return "", "0"
        if breaker:
            level = logging.INFO if breaker == "closed" else logging.WARNING
            log.log(level, "[GATE] %s: the breaker %s", self.service.name, breaker)
        return breaker, seconds

    def _refusal(self, reply: list[Any]) -> JobError:
        word, seconds, facts = reply[0], float(reply[1]), reply[2:]
        kind, sentence = REFUSALS[word]
        return kind(sentence(*facts), service=self.service.name, retry_after=seconds)


def states(client: Redis, services: Iterable[Service], *, prefix: str = "") -> list[GateState]:
    """Look at many gates in one round trip."""
    services = list(services)
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    for service in services:
        pipeline.hgetall(key_of(service, prefix))
    (seconds, microseconds), *gates = pipeline.execute()
    now = seconds + microseconds / 1_000_000
    return [_state(service, gate, now) for service, gate in zip(services, gates, strict=True)]


def key_of(service: Service, prefix: str = "") -> str:
    """Return the key of the gate's hash."""
    return f"{prefix}{OURS}gate:{service.name}"


def usable_burst(service: Service) -> int:
    """Return the permits that may be given out at once: at least one, see `DELAY_VARIANCE`."""
    return max(1, service.burst - max(1, math.ceil(service.rate * DELAY_VARIANCE)))


def digest(credential: str) -> str:
    """Return what we keep of a credential, empty for none."""
    return sha256(credential.encode()).hexdigest() if credential else ""


def _state(service: Service, gate: Mapping[str, str], now: float) -> GateState:
    state, note, since, retry_at = _closure(gate, now)
    spent = (float(gate.get("empty_at", 0)) - now) * service.rate
    remaining = usable_burst(service) - max(0.0, spent)
    if retry_at is None and state == "closed" and remaining < 1:
        retry_at = now + (1 - remaining) / service.rate
    return GateState(
        service=service.name,
        state=state,
        budget_remaining=max(0, math.floor(remaining)),
        retry_at=_moment(retry_at),
        note=note,
        since=_moment(since),
    )


def _closure(gate: Mapping[str, str], now: float) -> tuple[str, str, float | None, float | None]:
    """Return state, note, since and retry_at; what a person has to lift comes first."""
    if held := gate.get("held:"):
        _, since, note = held.split(" ", 2)
        return "held", note, float(since), None
    if paused := gate.get("paused_since"):
        return (
            "paused",
            _paused(paused, gate["paused_by"], gate["paused_note"]),
            float(paused),
            None,
        )
    if (unpaid := float(gate.get("unpaid_until", 0))) > now:
        return "held", _unpaid(gate["unpaid_note"]), None, unpaid
    blocked = float(gate.get("blocked:", 0))
    if broken := gate.get("broken_since"):
        retry_at = max(blocked, float(gate["open_until"]))
        state = "open" if float(gate["open_until"]) > now else "half_open"
        return state, _open(broken), float(broken), retry_at if retry_at > now else None
    if blocked > now:
        return "closed", _blocked(blocked), None, blocked
    held_subjects = sum(1 for name in gate if name.startswith("held:"))
    return "closed", f"{held_subjects} credentials held" if held_subjects else "", None, None


def _held(held: str) -> str:
    _, since, note = held.split(" ", 2)
    why = f" ({note})" if note else ""
    return f"its credential is held since {_clock(since)}{why}, until another one is set"


def _paused(since: str, by: str, note: str) -> str:
    return f"paused by {by} since {_clock(since)}" + (f": {note}" if note else "")


def _unpaid(note: str) -> str:
    return f"it wants money first: {note}"


def _blocked(until: str | float) -> str:
    return f"its rate limit is reached until {_clock(until, '%H:%M:%S')}"


def _open(since: str, until: str | None = None) -> str:
    return f"unreachable since {_clock(since)}" + (
        f", tried again at {_clock(until, '%H:%M:%S')}" if until else ""
    )


def _probing(since: str) -> str:
    return f"unreachable since {_clock(since)}, one call is trying it now"


def _spent(wait: str) -> str:
    return f"its budget is spent for the next {float(wait):.1f} s"


def _paced(due: str) -> str:
    return f"the next call for this subject is due at {_clock(due, '%H:%M:%S')}"


def _literally(text: str) -> str:
    """Return a pattern of SCAN that matches *text* alone."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", text)


def _clock(at: str | float, form: str = "%H:%M") -> str:
    moment = datetime.fromtimestamp(float(at), UTC)
    day = "" if moment.date() == datetime.now(UTC).date() else "%d %b "
    return moment.strftime(f"{day}{form} UTC")


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


# The script's word for a refusal → what it is, and the sentence made of the facts beside it.
REFUSALS: dict[str, tuple[type[JobError], Callable[..., str]]] = {
    "held": (CredentialHeld, _held),
    "paused": (Paused, _paused),
    "unpaid": (BillingExhausted, _unpaid),
    "blocked": (RateLimited, _blocked),
    "open": (CircuitOpen, _open),
    "probing": (CircuitOpen, _probing),
    "paced": (RateLimited, _paced),
    "spent": (RateLimited, _spent),
}
