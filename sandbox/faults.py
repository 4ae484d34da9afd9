"""What goes wrong at a simulated upstream: scripted faults, and random ones from a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

Kind = Literal["status", "error", "refuse", "lost_answer", "slow", "non_json", "partial_batch"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule. It fires *times* times (without a probability: once), then it is spent.

    kind           status         an answer with `status`: HTML, or JSON when `code` is given
                   error          the upstream's own error, with `code` and `description`; for a
                                  command of a batch, in `result_error`
                   refuse         the connection ends before anything happens
                   lost_answer    everything happens, then the connection ends without an answer
                   slow           `seconds` pass, then all goes on as usual
                   non_json       200 with a page instead of JSON
                   partial_batch  `commands` commands happen, then the answer is lost
    method         a shell pattern; matches the request, or a command of a batch
    where          `alone` looks at requests only, `batch` at commands of batches only
    about          a part of an id that the call is about, or of what else it is known by
    after          strike after the effect, for the kinds where both orders make sense
    drop           how a connection ends: closed, reset, or held open until the client gives up
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind
    method: str = "*"
    where: Literal["any", "alone", "batch"] = "any"
    about: str = ""
    times: int | None = None
    probability: float | None = None
    status: int | None = None
    code: str = ""
    description: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    after: bool = False
    commands: int = 0
    drop: Literal["close", "reset", "hang"] = "close"


_FAULTS = TypeAdapter(list[Fault])


def read_faults(data: Any) -> list[Fault]:
    """Check faults that came as JSON; raise pydantic's ValidationError on a misspelt one."""
    return _FAULTS.validate_python(data)


@dataclass(frozen=True, slots=True)
class Call:
    """What a fault can look at: one request, or one command of a batch."""

    method: str
    ids: tuple[str, ...] = ()
    command: bool = False


@dataclass(slots=True)
class Strike:
    """What hits one request: pauses, one fault of the whole request, errors of its commands."""

    before: float = 0.0
    after: float = 0.0
    request: Fault | None = None
    commands: dict[int, Fault] = field(default_factory=dict)


class Charge:
    """How often a rule may still fire: *times* times, each time with *probability*.

    With neither it fires once, with a probability alone for ever.
    """

    def __init__(self, times: int | None, probability: float | None) -> None:
        once = 1 if probability is None else None
        self._left = once if times is None else times
        self._probability = probability

    @property
    def spent(self) -> bool:
        """Whether it will not fire any more."""
        return self._left == 0

    def fires(self, random: Random) -> bool:
        """Decide whether it fires now, and count it."""
        if self.spent:
            return False
        if self._probability is not None and random.random() >= self._probability:
            return False
        if self._left is not None:
            self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class _Armed:
    fault: Fault
    charge: Charge


class FaultPlan:
    """The faults that are armed, in order; the first that fits a request wins."""

    def __init__(self, seed: int = 0) -> None:
        self.fired: Counter[str] = Counter()
        self._random = Random(seed)
        self._armed: list[_Armed] = []

    def arm(self, faults: Sequence[Fault]) -> None:
        for fault in faults:
            self._armed.append(_Armed(fault, Charge(fault.times, fault.probability)))

    def disarm(self) -> None:
        self._armed.clear()

    def strike(self, request: Call, commands: Sequence[Call] = ()) -> Strike:
        """Decide what hits *request* and, if it is a batch, its *commands*."""
        strike = Strike()
        for armed in self._armed:
            if not armed.charge.spent:
                self._apply(armed, strike, request, commands)
        return strike

    def _apply(
        self, armed: _Armed, strike: Strike, request: Call, commands: Sequence[Call]
    ) -> None:
        fault = armed.fault
        if fault.kind == "partial_batch" and not commands:
            return
        hit = [index for index, call in enumerate(commands) if _fits(fault, call)]
        if fault.kind == "error" and hit and not _fits(fault, request):
            for index in hit:
                if index not in strike.commands and self._fires(armed):
                    strike.commands[index] = fault
        elif not hit and not _fits(fault, request):
            return
        elif fault.kind == "slow":
            self._delay(armed, strike)
        elif strike.request is None and self._fires(armed):
            strike.request = fault

    def _delay(self, armed: _Armed, strike: Strike) -> None:
        if not self._fires(armed):
            return
        if armed.fault.after:
            strike.after += armed.fault.seconds
        else:
            strike.before += armed.fault.seconds

    def _fires(self, armed: _Armed) -> bool:
        if not armed.charge.fires(self._random):
            return False
        self.fired[armed.fault.kind] += 1
        return True


def _fits(fault: Fault, call: Call) -> bool:
    if fault.where != "any" and call.command != (fault.where == "batch"):
        return False
    if not fnmatchcase(call.method, fault.method.lower()):
        return False
    return not fault.about or any(fault.about in found for found in call.ids)
