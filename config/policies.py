"""What we do about each failure: one table, nearest ancestor wins, and one pure function.

To change a retry count, change a row of `POLICIES`; to change it for one task, a row of `TASKS`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from classifiers import errors, foreign
from classifiers.errors import JobError, kinds
from config.history import History


class Action(StrEnum):
    """What can follow a failure."""

    RETRY = "retry"  # again after a back-off; spends an attempt
    PARK = "park"  # again when the time has come; spends no attempt
    RECONCILE = "reconcile"  # ask the upstream what happened, then go on; spends an attempt
    SKIP = "skip"  # done: there is nothing left to do
    ADOPT = "adopt"  # it exists already: take it over and update it
    DEAD_LETTER = "dead_letter"  # give up; a person decides
    ABORT = "abort"  # stop at once and keep nothing of this run; held until a person has acted
    SHUTDOWN = "shutdown"  # this worker stops; the job goes on elsewhere


class Notify(StrEnum):
    """When the end user hears of it, where a job has one: retries as such are silent."""

    NEVER = "never"
    LATE = "late"  # once when it takes long, and when it ends for good
    END = "end"  # when it ends for good


LATE_ATTEMPTS = 5  # failures after which a user is asked for patience, or
LATE_AFTER = 600.0  # s, whichever comes first


@dataclass(frozen=True, slots=True)
class Backoff:
    """base · factorⁿ seconds, at most *cap*, plus up to *jitter* of it. Jitter only adds."""

    base: float
    factor: float = 2.0
    cap: float = 300.0  # five minutes: long enough for a restart, short enough for an operator
    jitter: float = 0.25

    def delay(self, attempt: int, chance: float) -> float:
        """Return the seconds before retry number *attempt* (0 is the first); chance is 0…1."""
        wait = min(self.cap, self.base * self.factor ** min(attempt, 32))
        return wait * (1 + self.jitter * chance)


DAY = 86_400.0  # a job may wait this long in all before a person should look at it
MONTH = 30 * DAY  # what a person has closed, a person opens: as long as a dead letter is kept
USUAL = Backoff(base=1.0)  # INITIAL_BACKOFF replaces the base


@dataclass(frozen=True, slots=True)
class Policy:
    """One row: the action, how often, how long, and who is told.

    *attempts* counts retries; None means MAX_RETRIES, or for a wait that only *budget* (seconds of
    waiting for this row; a DAY for all rows together) ends it. *then* is what follows when they
    are spent.
    """

    action: Action
    attempts: int | None = None
    backoff: Backoff = USUAL
    budget: float = DAY
    then: Action = Action.DEAD_LETTER
    at_latest: bool = False  # `retry_after` says when it will be over: look sooner, too
    outcome: str = ""  # SKIP: the word in the task's result
    notify: Notify = Notify.END
    refund: bool = True  # what was paid for, when it ends for good
    level: int = logging.WARNING
    alert: bool = False


RETRY, PARK, DEAD = Action.RETRY, Action.PARK, Action.DEAD_LETTER
WAITS = frozenset({Action.PARK, Action.ABORT})  # they spend no attempt
# What ends a run of a longer job when the time has come to write down how far it is.
SAVES = frozenset({Action.PARK, Action.DEAD_LETTER, Action.SHUTDOWN})
INFO, WARNING, ERROR, CRITICAL = logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL

POLICIES: Mapping[type[BaseException], Policy] = {
    JobError: Policy(DEAD, level=ERROR),
    errors.Retryable: Policy(RETRY, notify=Notify.LATE),
    errors.InternalError: Policy(RETRY, notify=Notify.LATE, level=ERROR),
    errors.Unclassified: Policy(RETRY, notify=Notify.LATE, level=ERROR, alert=True),
    errors.Waiting: Policy(PARK, backoff=Backoff(5.0, cap=60.0), notify=Notify.LATE, level=INFO),
    errors.RateLimited: Policy(
        PARK, backoff=Backoff(2.0, cap=60.0), notify=Notify.LATE, level=WARNING
    ),
    # A credential is changed, and a pause lifted, by a person: looking each minute is enough.
    errors.Paused: Policy(PARK, backoff=Backoff(60.0, factor=1.0), budget=MONTH, level=INFO),
    errors.CredentialHeld: Policy(
        PARK, backoff=Backoff(60.0, factor=1.0), budget=MONTH, level=INFO
    ),
    errors.Pending: Policy(
        PARK,
        backoff=Backoff(1.0, cap=30.0),
        at_latest=True,
        notify=Notify.LATE,
        level=logging.DEBUG,
    ),
    # UPSTREAMS 1.4: allow a few seconds before asking what became of a write.
    errors.OutcomeUnknown: Policy(Action.RECONCILE, backoff=Backoff(5.0), refund=False),
    errors.InvalidData: Policy(RETRY, attempts=1, backoff=Backoff(2.0), level=ERROR),
    errors.Unauthorized: Policy(
        PARK, backoff=Backoff(60.0, factor=1.0), budget=MONTH, level=ERROR, alert=True
    ),
    errors.Forbidden: Policy(DEAD, level=ERROR, alert=True),
    errors.Blocked: Policy(
        PARK,
        backoff=Backoff(60.0, factor=1.0),
        budget=MONTH,
        level=CRITICAL,
        alert=True,
    ),
    # The gate is paused with it: a portal that has moved must not empty the queue into the morgue.
    errors.NotConfigured: Policy(
        PARK, backoff=Backoff(60.0, factor=1.0), budget=MONTH, level=ERROR, alert=True
    ),
    errors.BillingExhausted: Policy(
        PARK, backoff=Backoff(60.0, factor=1.0), budget=1800.0, level=ERROR, alert=True
    ),
    errors.UserError: Policy(DEAD, level=INFO),
    errors.PoisonPill: Policy(DEAD, level=CRITICAL, alert=True),
    errors.Fatal: Policy(
        Action.SHUTDOWN, attempts=3, backoff=Backoff(5.0), level=CRITICAL, alert=True
    ),
}

GONE = Policy(Action.SKIP, outcome="target_gone", level=WARNING)
ADOPTED = Policy(Action.ADOPT, level=INFO)
REFUNDED = Policy(Action.SKIP, outcome="refunded", level=INFO)
# Whom it has reached cannot be asked: a person decides (UPSTREAMS 3.4).
FLAGGED = Policy(DEAD, refund=False, level=WARNING)

# Who has paid waits for a day at most, whoever has to open what is closed.
PAID: Mapping[type[BaseException], Policy] = {
    kind: replace(row, budget=DAY, notify=Notify.LATE)
    for kind, row in POLICIES.items()
    if row.budget == MONTH
}

# A crawl loses nothing by an interruption: it goes on from where it was.
INTERRUPTED = Policy(
    RETRY, attempts=5, backoff=Backoff(1.0, cap=16.0), notify=Notify.NEVER, level=logging.DEBUG
)
# Who waits for another crawl of the same user looks often enough to meet the end of its turn.
TURNS = replace(POLICIES[errors.Pending], backoff=Backoff(1.0, factor=1.0))

TASKS: Mapping[str, Mapping[type[BaseException], Policy]] = {
    "video.generate": {
        **PAID,
        errors.UserError: REFUNDED,
        errors.BillingExhausted: replace(POLICIES[errors.BillingExhausted], notify=Notify.LATE),
        errors.Pending: Policy(
            PARK, backoff=Backoff(5.0, cap=60.0), notify=Notify.LATE, level=logging.DEBUG
        ),
        # The first look may come late: one answer alone ends nothing that is paid for.
        errors.NotFound: Policy(RETRY, attempts=1, backoff=Backoff(30.0), level=ERROR),
        # What is made after a refund goes nowhere, so a generation in doubt may be paid back.
        errors.OutcomeUnknown: Policy(
            Action.RECONCILE, backoff=Backoff(5.0), notify=Notify.LATE, level=WARNING
        ),
    },
    "video.send": {
        **PAID,
        errors.UserError: REFUNDED,
        errors.Duplicate: ADOPTED,
        errors.Retryable: Policy(RETRY, attempts=3),
        errors.InternalError: Policy(RETRY, attempts=3, level=ERROR),
        errors.Unclassified: Policy(RETRY, attempts=3, level=ERROR, alert=True),
        errors.OutcomeUnknown: FLAGGED,
    },
    # A debt is paid, however long our database is away: 300 times five minutes are a day.
    "video.make_good": dict.fromkeys(
        (errors.Retryable, errors.InternalError, errors.Unclassified),
        Policy(RETRY, attempts=300, level=ERROR, alert=True),
    ),
    "telegram.notify": {
        errors.UserError: Policy(Action.SKIP, outcome="undeliverable", level=INFO),
        errors.Duplicate: ADOPTED,
        errors.OutcomeUnknown: FLAGGED,
    },
    "video.handle_press": {
        errors.UserError: Policy(Action.SKIP, outcome="declined", level=INFO),
    },
    # It waits only for the moment between a look at KIE and the parking of the job that looked.
    "video.handle_callback": {
        errors.Pending: Policy(PARK, backoff=Backoff(0.2, cap=5.0), level=logging.DEBUG)
    },
    "bookmarks.crawl": {
        errors.Pending: TURNS,
        errors.NetworkError: INTERRUPTED,
        errors.ServiceUnavailable: INTERRUPTED,
        errors.Unauthorized: replace(POLICIES[errors.Unauthorized], action=Action.ABORT),
        # Bought by a person, like a credential: a spent month must not empty the queue.
        errors.BillingExhausted: replace(POLICIES[errors.BillingExhausted], budget=MONTH),
    },
    "bookmarks.cancel": {errors.Pending: TURNS},
    # It looks each second while its jobs are under way, and these may be parked for a month.
    "replay.ramp": {
        errors.Pending: Policy(
            PARK, backoff=Backoff(1.0, factor=1.0), budget=MONTH, level=logging.DEBUG
        )
    },
    # The next one is on its way, and what is not heard of tells that Redis is away.
    "upkeep.canary": {
        errors.InternalError: Policy(
            Action.SKIP, outcome="unheard", notify=Notify.NEVER, level=INFO
        )
    },
    "bitrix.update_deal": {errors.NotFound: GONE},
    "bitrix.attach_contact": {errors.NotFound: GONE},
    "bitrix.create_contact": {errors.Duplicate: ADOPTED},
    "bitrix.update_contact": {errors.NotFound: GONE, errors.Duplicate: ADOPTED},
    "bitrix.handle_webhook": {errors.NotFound: GONE},
}

# Parts of a job that may fail without it; what is no fault of theirs is up to the job as a whole.
PARTS: Mapping[str, Mapping[type[BaseException], Policy]] = {
    "bookmarks.bookmark": {
        errors.InvalidData: Policy(Action.SKIP, outcome="skipped", level=WARNING)
    },
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. *delay* in seconds; *spends* names the budget that this uses up."""

    action: Action
    policy: Policy
    delay: float = 0.0
    spends: str = ""

    @property
    def saves(self) -> bool:
        """Whether a job that goes step by step should write down how far it is, before it ends."""
        return self.action in SAVES


@dataclass(frozen=True, slots=True)
class ErrorContext:
    """A failure and its circumstances, for those who ask outside a task: a script, a notebook.

    *task* picks the table's rows (`bookmarks.crawl`, `bookmarks.bookmark`), *attempt* counts the
    retries before.
    """

    error: Exception
    task: str = ""
    attempt: int = 0


def row_for(error: type[BaseException], task: str = "") -> tuple[type[BaseException], Policy]:
    """Return the nearest ancestor of *error* that has a row, and the row; the task's own first.

    *task* may also name a part of one.
    """
    own = TASKS.get(task) or PARTS.get(task, {})
    for kind in error.__mro__:
        if kind in own:
            return kind, own[kind]
        if kind in POLICIES:
            return kind, POLICIES[kind]
    raise LookupError(f"{error.__name__} is no JobError")


def patient(task: str = "") -> frozenset[str]:
    """Return the rows whose waits a person ends: these count for themselves, not against the day.

    No row of a job that is paid for is one of them.
    """
    rows = {**POLICIES, **TASKS.get(task, {})}
    return frozenset(kind.__name__ for kind, row in rows.items() if row.budget > DAY)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the environment decides: MAX_RETRIES, INITIAL_BACKOFF, RETRY_TIME_SCALE."""

    max_retries: int = 5
    initial_backoff: float = 1.0
    time_scale: float = 1.0


def decide(
    error: JobError,
    history: History,
    task: str = "",
    defaults: Defaults = Defaults(),
    chance: Callable[[], float] = random.random,
) -> Decision:
    """Turn a fact, what went before and the table into what to do now.

    Pure but for *chance*, the source of jitter (0…1). The upstream's `retry_after` is a floor that
    is never scaled; our own curve is added jitter, and only ever later than asked. A wait that the
    budget does not hold any more is not begun: a person should hear of it now.
    """
    kind, policy = row_for(type(error), task)
    budget = kind.__name__
    match policy.action:
        case Action.RETRY | Action.RECONCILE | Action.SHUTDOWN:
            turn = history.spent.get(budget, 0)
            allowed = defaults.max_retries if policy.attempts is None else policy.attempts
            if turn >= allowed:
                return Decision(policy.then, policy)
            left = policy.budget
        case Action.PARK | Action.ABORT:
            turn = history.times(type(error).__name__)
            left = _scaled(policy.budget, defaults) - history.waited.get(budget, 0.0)
            if budget not in patient(task):
                left = min(left, DAY - history.waited_in_all(but=patient(task)))
        case _:
            return Decision(policy.action, policy)
    delay = _delay(error, policy, turn, defaults, chance())
    if delay > left:
        return Decision(policy.then, policy)
    return Decision(policy.action, policy, delay=delay, spends=budget)


def advise(context: ErrorContext, defaults: Defaults = Defaults()) -> Decision:
    """Say what our tasks would do about any exception: ours, httpx's or the database's.

    A broken call is taken for one that is safe to repeat, as every question to an upstream is.
    """
    error = foreign.classify(context.error)
    row = row_for(type(error), context.task)[0].__name__
    return decide(error, History(spent={row: context.attempt}), context.task, defaults)


def _scaled(budget: float, defaults: Defaults) -> float:
    """A short budget shrinks with the waits it bounds; a day also holds what upstreams ask for."""
    return budget * defaults.time_scale if budget < DAY else budget


def _delay(error: JobError, policy: Policy, turn: int, defaults: Defaults, chance: float) -> float:
    backoff = policy.backoff
    if backoff is USUAL:
        backoff = replace(USUAL, base=defaults.initial_backoff)
    ours = backoff.delay(turn, chance) * defaults.time_scale
    asked = error.retry_after
    # "At once" is no time either: a job that came back at once could do so for ever.
    if asked is None or not asked > 0:
        return ours
    if policy.at_latest:
        return min(asked, ours)
    if policy.action in WAITS:
        return asked  # a place in the gate's line: jitter of ours would destroy the order
    return max(asked, ours)


def is_late(policy: Policy, failures: int, waited: float, defaults: Defaults) -> bool:
    """Whether a user should be asked for patience now: *failures* so far, *waited* in seconds."""
    if policy.notify is not Notify.LATE:
        return False
    return failures >= LATE_ATTEMPTS or waited >= LATE_AFTER * defaults.time_scale


def retried() -> tuple[type[JobError], ...]:
    """Return the classes that Celery's autoretry hands to our `retry()`: `autoretry_for`."""
    return (JobError,)


def final() -> tuple[type[JobError], ...]:
    """Return the classes that no task ever retries: `dont_autoretry_for`.

    A class counts only if every known subclass agrees, since Celery tests by ancestry.
    """
    return tuple(kind for kind in kinds(JobError) if all(_is_final(sub) for sub in kinds(kind)))


def _is_final(kind: type[JobError]) -> bool:
    rows = [row_for(kind)[1], *(row_for(kind, task)[1] for task in TASKS)]
    return all(row.action is Action.DEAD_LETTER for row in rows)
