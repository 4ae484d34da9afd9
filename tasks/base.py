"""Failure → decision → act: the base of every task, and the only `try` in `tasks/`."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any, ClassVar

from billiard import current_process
from celery import Task, current_task
from celery.exceptions import Ignore, Reject, TaskPredicate
from celery.worker import state
from kombu.exceptions import OperationalError

from classifiers import foreign
from classifiers.errors import (
    Duplicate,
    InternalError,
    JobError,
    Pending,
    Permanent,
    Unclassified,
    UserError,
)
from config.history import History
from config.policies import (
    TASKS,
    WAITS,
    Action,
    Decision,
    Defaults,
    Notify,
    Policy,
    decide,
    final,
    is_late,
    retried,
    row_for,
)
from config.settings import settings
from reliability.connection import RedisError
from reliability.dead_letters import dead_letters, replays_of
from reliability.holds import Hold, standing_holds
from reliability.redaction import redaction
from reliability.replays import note_success
from tasks import measures, traces
from tasks.payloads import FIRST, VERSION, Payload, Upcaster, version_of
from tasks.reports import REPORTED, report_wait

logger = logging.getLogger(__name__)

END_OF_TIME = 253_402_300_800.0  # the year 10000, which datetime does not know
MAIN = "MainProcess"  # billiard's name for who is no child
REFUSED_PAUSE = 5.0  # seconds
ENDS = frozenset({Action.SKIP, Action.ADOPT})
COMES_BACK = {Action.RETRY, Action.PARK, Action.RECONCILE, Action.ABORT, Action.SHUTDOWN}
PROGRESS = "PROGRESS"  # Celery's customary name of a state for jobs that tell how far they are


class Operation(Task):
    """A task that checks its payload, and asks the policy table what a failure means.

    *adopt* is called with (existing_id, **payload) when the table says ADOPT. *compensation* names
    the task that makes good what a job has begun and could not finish; `amends` are its arguments.
    *ask_for_patience* is called with the payload, once, when it takes long. One that *yields* comes
    back from a mere `Pending` behind all others of its queue, unless it is woken.
    *effect_keys* is called with (job id, **payload) and names the rows of `storage.effects` that
    tell what the job has done; *obstacle* with the payload, and says why a replay would come to
    nothing, empty if it would not. One that is *recurring* is no loss when it comes too late: the
    next one does the same. Whoever changes the shape of the payload raises its *version*,
    and gives an upcaster for the one before.
    """

    abstract = True
    Request = "tasks.events:Request"
    run: Callable[..., Any]  # the body, set by `operation`
    typing = False  # `payload` checks more, and says it in words
    autoretry_for = retried()
    dont_autoretry_for = final()
    retry_kwargs: ClassVar = {"throw": False}  # Celery copies each frame that a thrown one passes
    max_retries = None  # only the policy table counts
    adopt: Callable[..., Mapping[str, Any]] | None = None
    compensation: str = ""
    ask_for_patience: Callable[..., None] | None = None
    effect_keys: Callable[..., Iterable[str]] | None = None
    obstacle: Callable[..., str] | None = None
    recurring: bool = False
    version: int = FIRST
    upcasters: ClassVar[Mapping[int, Upcaster]] = {}
    holds: Callable[[], Sequence[Hold]] = staticmethod(standing_holds)
    yields = False

    def __init__(self) -> None:
        self.payload = Payload(self.name, self.run, self.version, self.upcasters)
        self.body = self.run
        self._refuse_contradictions()
        self.run = self._governed(self.run)  # below Celery's autoretry, which wraps it later

    def _refuse_contradictions(self) -> None:
        rows = TASKS.get(self.name, {}).values()
        if any(row.action is Action.ADOPT for row in rows) and self.adopt is None:
            raise TypeError(
                f"{self.name} has a policy row that says ADOPT but no adopt= function: "
                "what exists already would be lost silently"
            )

    # -- the caller's side

    def apply_async(self, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        """Check the payload in the caller, then send it.

        Raises:
            InvalidData, MissingFields: if the payload cannot be used; nothing was sent.
            kombu.exceptions.OperationalError: if the broker cannot be reached; nothing was sent.
        """
        headers = dict(options.pop("headers", None) or {})
        if "history" not in headers:  # a retry is sent as it came, whatever it holds
            args, kwargs = (), self.payload.write(args or (), kwargs or {})
            headers[VERSION] = self.payload.version
            if trace_id := traces.hand_on(headers):
                options.setdefault("root_id", trace_id)
        headers.setdefault("accepted_at", time.time())
        shown = {"argsrepr": "()", "kwargsrepr": self.payload.shown(kwargs or {})}
        return super().apply_async(args, kwargs, *rest, headers=headers, **{**options, **shown})

    # -- the worker's side

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        """Count it; tell the letter and the ramped replay of a job that was sent again."""
        if self._is_message():
            measures.succeeded(self.name, retval)
        note_success(self.request.headers or {}, task_id)

    def _governed(self, body: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            read = partial(self.payload.read, args, kwargs, self._version())
            begun = time.monotonic()
            try:
                return self._attempt(lambda: body(**self._let_through(read)), read)
            finally:
                if self._is_message():
                    measures.ran(self.name, time.monotonic() - begun)

        return run

    def _is_message(self) -> bool:
        """Whether this run has come from a broker; a plain call is as new as this release."""
        request = self.request
        return not (request.called_directly or request.is_eager)

    def _version(self) -> Any:
        return version_of(self.request.headers) if self._is_message() else None

    def _let_through(self, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the payload, unless a person holds jobs like this one.

        Whoever holds a whole task does so because something is wrong with it: that comes before
        its payload is looked at.

        Raises:
            Paused: it is held.
            Ignore: it is a dead letter already.
        """
        if self._has_died():
            logger.info("%s[%s] has died already; it comes back by a replay", *self._who())
            raise Ignore
        # A plain call is not held: there is no message that could be parked.
        standing = type(self).holds() if self._is_message() else ()
        if not standing:
            return read()
        queue = (self.request.delivery_info or {}).get("routing_key") or ""
        concerned = [hold for hold in standing if hold.concerns(self.name, queue)]
        self._refuse(hold for hold in concerned if not hold.where)
        payload = read()
        self._refuse(hold for hold in concerned if hold.matches(payload))
        return payload

    def _has_died(self) -> bool:
        """Whether a worker has given up this very run, and was killed before it could say so.

        What it had begun is being made good by now, so that it must not be done after all.
        """
        request = self.request
        if not (self._is_message() and (request.delivery_info or {}).get("redelivered")):
            return False
        dead, headers = dead_letters().get(request.id), request.headers or {}
        if dead is None or dead.run < replays_of(headers):
            return False
        accepted = accepted_at(headers)  # by that it is known whether it was sent anew
        return accepted is not None and accepted == accepted_at(dead.headers)

    def _refuse(self, holds: Iterable[Hold]) -> None:
        for hold in holds:
            raise hold.refusal(time.time(), defaults().time_scale)

    def _attempt(
        self,
        body: Callable[[], Any],
        read: Callable[[], dict[str, Any]],
        ends: frozenset[Action] = ENDS,
    ) -> Any:
        """Run *body*; a failure that the table lets end well here (one of *ends*) does so."""
        try:
            return in_our_words(body)
        except TaskPredicate:  # Retry, Ignore, Reject to be tried again: Celery's own words
            raise
        except Exception as failure:
            error = classified(failure)
            if self._is_message():
                measures.failed(error)
            policy = row_for(type(error), self.name)[1]
            if policy.action is Action.SKIP and Action.SKIP in ends:
                told = "%s[%s] %s: %s", *self._who(), policy.outcome, error
                logger.log(policy.level, *told, extra=_facts(error))
                ended = partial(self._ended, error, policy)
                return self._attempt(lambda: ended(read()), read, frozenset())
            # Once: what exists may be said to exist elsewhere, and that again here.
            may_adopt = policy.action is Action.ADOPT and Action.ADOPT in ends
            if may_adopt and isinstance(error, Duplicate):
                adopted = partial(self._adopted, error)
                return self._attempt(lambda: adopted(read()), read, ends - {Action.ADOPT})
            if error is failure:
                raise
            raise error from failure

    def _ended(self, error: JobError, policy: Policy, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of a job that ends here; what it had begun is made good at once."""
        outcome: dict[str, Any] = {"outcome": policy.outcome, **self.payload.ids(payload)}
        if not self.compensation:
            return outcome
        reason = error.reason if isinstance(error, UserError) else ""
        amends = self.amends(type(error), job(), self.payload.write((), payload), reason)
        outcome |= self.app.tasks[self.compensation].body(**amends)
        return outcome

    def amends(
        self, kind: type[JobError], of: Job, payload: Mapping[str, Any], reason: str = ""
    ) -> dict[str, Any]:
        """Return what the compensation has to know of a job that was ended by a failure."""
        policy = row_for(kind, self.name)[1]
        return {
            "task": self.name,
            "payload": dict(payload),
            "job_id": of.id,
            "replays": of.replays,
            "error_type": kind.__name__,
            "category": kind.category,
            "reason": reason,
            "refund": policy.refund,
            "tell": policy.notify is not Notify.NEVER,
        }

    def _adopted(self, error: Duplicate, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        adopt = type(self).adopt  # by the class: it is a function, not a method
        assert adopt is not None  # noqa: S101 - `_refuse_contradictions` saw to it
        return adopt(error.existing_id, **payload)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        **options: Any,
    ) -> Any:
        """Decide what *exc* means for this job, and do it: the one choke point of every retry."""
        if not isinstance(exc, JobError):
            return self._again(args, kwargs, exc=exc, throw=throw, **options)
        history = History.from_headers(self.request.headers)
        if getattr(self.request, "progressed", False):
            history = history.rested()
        decision = decide(exc, history, self.name, defaults())
        self._tell(exc, decision, history)
        if decision.action not in COMES_BACK:
            raise exc
        if self._is_message():
            measures.comes_back(self.name, exc, decision.action)
        if decision.action is Action.SHUTDOWN:
            stop_this_worker(exc)
        now, said = time.time(), redaction().of(str(exc))
        history = history.after(
            exc,
            action=decision.action,
            delay=decision.delay,
            spends=decision.spends,
            waits=decision.action in WAITS,
            at=now,
            said=said,
        )
        parking = {
            "reason": type(exc).__name__,
            "service": exc.service,
            "code": exc.code,
            "detail": said[:200],
            "at": round(now, 3),
            "seconds": round(decision.delay, 3),
            "yields": self.yields and isinstance(exc, Pending),
        }
        headers = {**(self.request.headers or {}), **history.to_headers(), "parking": parking}
        if self._is_late(decision.policy, history.attempts, headers):
            headers["asked_for_patience"] = self._asked()
        return self._again(
            args, kwargs, exc=exc, throw=throw, countdown=decision.delay, headers=headers
        )

    def _is_late(self, policy: Policy, failures: int, headers: Mapping[str, Any]) -> bool:
        if self.ask_for_patience is None or headers.get("asked_for_patience"):
            return False
        begun = began_at(headers)
        waited = 0.0 if begun is None else (datetime.now(UTC) - begun).total_seconds()
        return is_late(policy, failures, waited, defaults())

    def _asked(self) -> bool:
        """Ask the user for patience; what keeps us from it is tried again at the next retry."""
        ask = type(self).ask_for_patience
        assert ask is not None  # noqa: S101 - `_is_late` has looked
        try:
            args, kwargs = self.request.args or (), self.request.kwargs or {}
            ask(**self.payload.read(args, kwargs, self._version()))
        except Exception as failure:  # noqa: BLE001 - no reason for the job itself to end
            error = classified(failure)
            logger.warning("%s[%s] could not ask for patience: %s", *self._who(), error)
            return False
        return True

    def _again(self, *args: Any, **options: Any) -> Any:
        try:
            return super().retry(*args, **options)
        except Reject as unsent:
            # The message could not be published. Celery would end the job here; unacknowledged,
            # it comes back by itself once the broker is there again. One that is there and refuses
            # would give it back at once, over and over.
            time.sleep(REFUSED_PAUSE)
            raise Reject(unsent.reason, requeue=True) from unsent
        finally:
            # celery 5.7.0 leaves this on the shared task, where it would cap every later retry.
            self.__dict__.pop("override_max_retries", None)

    def _tell(self, error: JobError, decision: Decision, history: History) -> None:
        logger.log(
            decision.policy.level,
            "%s[%s] %s after %d attempts, %s: %s",
            *self._who(),
            decision.action,
            history.attempts + 1,
            f"back in {decision.delay:.1f} s" if decision.action in COMES_BACK else "final",
            f"{type(error).__name__}: {error}",
            extra=_facts(error),
        )
        if decision.policy.alert:
            private = self.request.args, self.payload.private(self.request.kwargs or {})
            report_wait(error, decision, traces.job_at(self), private)

    def _who(self) -> tuple[str, str]:
        return self.name, self.request.id or "direct"


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait that is over: why (an error's class), since when (unix), and how long it was to be."""

    reason: str
    at: float
    seconds: float

    @property
    def id(self) -> str:
        """What tells it from other waits, also where its job comes twice."""
        return f"{self.reason} {self.at}"

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any]) -> Wait | None:
        """Read what `retry()` has written; None for a job that has not waited."""
        match headers.get("parking"):
            case {"reason": str(reason), "at": int() | float() as at, "seconds": seconds}:
                waited = float(seconds) if isinstance(seconds, int | float) else 0.0
                return cls(reason, at, waited)
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Job:
    """A job; *replays* counts how often a person has sent it again.

    *accepted_at* is when `delay()` took it, if it says so; *asked_at* the same, or when a person
    has sent it again; *wait* what it comes back from.
    """

    id: str
    accepted_at: datetime | None = None
    replays: int = 0
    asked_at: datetime | None = None
    wait: Wait | None = None

    @property
    def woken(self) -> bool:
        """Whether it comes back before its time, because there is news."""
        return self.wait is not None and time.time() < self.wait.at + self.wait.seconds

    @property
    def age(self) -> float:
        """Seconds since it was accepted; endless if nobody knows."""
        if self.accepted_at is None:
            return math.inf
        return max(0.0, (datetime.now(UTC) - self.accepted_at).total_seconds())


def job() -> Job:
    """Return the job that this thread runs."""
    request = current_task.request if current_task else None
    if request is None or request.id is None:
        return Job(id=f"direct-{threading.get_ident()}")
    headers = request.headers or {}
    return Job(
        request.id,
        accepted_at(headers),
        replays_of(headers),
        began_at(headers),
        Wait.from_headers(headers),
    )


def progress(**counts: Any) -> None:
    """Tell how far this job is: in its result, and to Flower. Attempts are counted afresh then."""
    task = current_task
    if not task or task.request.id is None:  # a proxy, of nothing at all outside of tasks
        return
    task.request.progressed = True
    if settings().keep_results:
        task.update_state(state=PROGRESS, meta=counts)
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    try:
        task.send_event("task-progress", result=shown)  # Flower has a field of that name
    except OperationalError as unsent:
        logger.debug("%s: nobody was told how far it is: %s", task.request.id, unsent)


def stopping() -> bool:
    """Whether this worker has been asked to end. Of a prefork child's worker it cannot know."""
    return state.should_stop is not None or state.should_terminate is not None


def accepted_at(headers: Mapping[str, Any]) -> datetime | None:
    """Return when `delay()` took the job; None if the message does not say so in earnest."""
    return _moment(headers.get("accepted_at"))


def began_at(headers: Mapping[str, Any]) -> datetime | None:
    """Return when a job's user began to wait for it: for a replay, that was then."""
    return _moment(headers.get("sent_again_at")) or accepted_at(headers)


def _moment(seconds: Any) -> datetime | None:
    if not isinstance(seconds, int | float) or not 0 < seconds < END_OF_TIME:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def classified(failure: Exception) -> JobError:
    """Turn any exception into a fact; foreign ones cross into our hierarchy here and only here."""
    if isinstance(failure, JobError):
        return failure
    if isinstance(failure, RedisError):
        return InternalError(f"Redis: {type(failure).__name__}", code=type(failure).__name__)
    return foreign.classify(failure)


def in_our_words(body: Callable[[], Any]) -> Any:
    """Run *body*; what Celery would leave without a full story, or without an end, is a failure."""
    try:
        return body()
    except Reject as refusal:
        if refusal.requeue:
            raise
        # Celery tells of it only where nothing is known any more of the job but its name.
        raise Permanent(f"it rejected itself: {refusal.reason}", code="rejected") from refusal
    except SystemExit as end:
        if in_child():  # so ends a child, also one that a person has told to
            raise
        # In a thread, Celery would neither end the job nor fail it, as long as the worker runs.
        said = f"something in it called sys.exit({end.code!r})"
        raise Unclassified(said, code="SystemExit") from end


def _facts(error: JobError) -> dict[str, Any]:
    """What a line about a failure says of it; whether Sentry hears is decided by its action."""
    return {"error_type": type(error).__name__, **REPORTED}


def defaults() -> Defaults:
    """Return what the environment decides about retries."""
    config = settings()
    return Defaults(config.max_retries, config.initial_backoff, config.retry_time_scale)


def stop_this_worker(reason: JobError) -> None:
    """Ask the worker that runs this job for a warm shutdown; its supervisor starts a new one."""
    logger.critical("this worker stops: %s", reason, extra=_facts(reason))
    os.kill(os.getppid() if in_child() else os.getpid(), signal.SIGTERM)


def in_child() -> bool:
    """Whether this process is a child of a worker (prefork), which runs one job at a time."""
    return bool(current_process().name != MAIN)
