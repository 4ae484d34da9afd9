"""What can go wrong, as facts. What we do about it is decided in `config.policies`.

JobError
  Retryable                the same call may succeed later
    NetworkError           the request never reached the upstream
    ServiceUnavailable     the upstream is down, or timed out on a call that is safe to repeat
    InternalError          our own side failed
      DatabaseError        our database refused or was unreachable
      Unclassified         nothing matched
  Waiting                  not a failure; spends no attempt
    RateLimited            the upstream asked us to slow down
    CircuitOpen            our breaker for this upstream is open
    Paused                 a person paused this upstream
    CredentialHeld         this credential was refused; waiting for a new one
    Pending                the result is not ready, or a predecessor is not finished
  OutcomeUnknown           the request left us and no answer came
  Permanent                the same call will never succeed
    NotFound               the target does not exist
    InvalidData            a value is malformed or was rejected
      MissingFields        a required value is missing
    Unauthorized           the credential is bad or expired
    Forbidden              the credential is good, the right is missing
      Blocked              the upstream has shut us out by hand
    NotConfigured          a setting, method or plan is missing
    BillingExhausted       our account has no money left
    BusinessRule           the upstream's rules forbid it
      Duplicate            it exists already
    UserError              the end user can fix it
    Cancelled              a person has taken the job out
    PoisonPill             it has ended every worker that ran it
  Fatal                    this worker must stop
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


class JobError(Exception):
    """A failure we understand.

    *detail* is one sentence for people and never holds a secret; *service* names the upstream
    (`bitrix`), *operation* the call (`crm.deal.add`), *code* the upstream's own word for it;
    *retry_after* is the time in seconds that the upstream, or our gate, asked us to wait.
    """

    category: ClassVar[str] = "permanent"

    def __init__(
        self,
        detail: str = "",
        *,
        service: str = "",
        operation: str = "",
        code: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.service = service
        self.operation = operation
        self.code = code
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = " ".join(part for part in (self.service, self.operation) if part)
        what = ": ".join(part for part in (where, self.code) if part)
        return " – ".join(part for part in (what, self.detail) if part) or type(self).__name__

    def __reduce__(self) -> tuple[Callable[..., JobError], tuple[type[JobError], dict[str, Any]]]:
        """Keep every fact through pickling, whatever a subclass's own signature is."""
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(kind: type[JobError], facts: dict[str, Any]) -> JobError:
    error = kind.__new__(kind)
    Exception.__init__(error, facts.get("detail", ""))
    error.__dict__.update(facts)
    return error


class Retryable(JobError):
    """The same call may succeed later."""

    category = "transient"


class NetworkError(Retryable):
    """The request never reached the upstream: name look-up, connect, or reset before sending."""

    category = "network"


class ServiceUnavailable(Retryable):
    """The upstream is down or in maintenance, or timed out on a call that is safe to repeat."""


class InternalError(Retryable):
    """Our own side failed: database, Redis, disk, or an answer that makes no sense."""

    category = "system"


class DatabaseError(InternalError):
    """Our database refused the statement or could not be reached."""

    category = "database"


class Unclassified(InternalError):
    """Nothing matched. Counted and alerted, so that a rule gets written for it."""


class Waiting(JobError):
    """Not a failure: the time has not come yet. Spends no attempt."""

    category = "transient"


class RateLimited(Waiting):
    """The upstream asked us to slow down, and refused before it did anything."""

    category = "rate_limit"


class CircuitOpen(Waiting):
    """Our own breaker keeps calls away from an upstream that is down."""


class Paused(Waiting):
    """A person has paused this upstream or operation."""


class CredentialHeld(Waiting):
    """The upstream refused this credential; its jobs wait until it changes."""

    category = "auth"


class Pending(Waiting):
    """The result is not ready yet, or a predecessor has not finished."""


class OutcomeUnknown(JobError):
    """The request left us and no answer came: it may have taken effect."""

    category = "transient"


class Permanent(JobError):
    """The same call will never succeed."""


class NotFound(Permanent):
    """The target does not exist."""


class InvalidData(Permanent):
    """A value is malformed, or the upstream rejected it."""

    category = "validation"


class MissingFields(InvalidData):
    """A required value is missing."""


class Unauthorized(Permanent):
    """The credential is bad or has expired."""

    category = "auth"


class Forbidden(Permanent):
    """The credential is good, but the right to do this is missing."""

    category = "auth"


class Blocked(Forbidden):
    """The upstream has shut us out by hand; only a person can talk it round."""


class NotConfigured(Permanent):
    """A setting, a method, a model or a plan is missing; somebody has to set it up."""


class BillingExhausted(Permanent):
    """Our account at the upstream has no money left."""


class BusinessRule(Permanent):
    """The upstream's own rules forbid it."""

    category = "business"


class Duplicate(BusinessRule):
    """It exists already, under *existing_id*."""

    def __init__(self, detail: str = "", *, existing_id: str, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.existing_id = existing_id


class UserError(Permanent):
    """The end user can fix it; *reason* is the code that picks the message to them."""

    category = "user"

    def __init__(self, detail: str = "", *, reason: str, **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.reason = reason


class Cancelled(Permanent):
    """A person has taken the job out before it was done."""


class PoisonPill(Permanent):
    """It has ended the workers that ran it, at last one that ran nothing else."""

    category = "system"


class Fatal(JobError):
    """Out of memory, disk full: the worker must stop. The job goes on elsewhere."""

    category = "fatal"


def kinds(of: type[JobError] = JobError) -> list[type[JobError]]:
    """Return *of* and every class below it."""
    return [of, *(deeper for kind in of.__subclasses__() for deeper in kinds(kind))]
