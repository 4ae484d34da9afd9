"""What becomes of a picture at the simulated KIE.AI: a task's states, and plans for some."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, TypeAdapter

from sandbox.faults import Charge

# UPSTREAMS 2.1: a task waits, then it queues, then it is generated. How long each takes is not
# documented; state → the share of the whole time at which it begins.
_STATES = (("generating", 0.15), ("queuing", 0.05), ("waiting", 0.0))
_WITH_PROGRESS = "sora"  # UPSTREAMS 2.1: only these models say how far they are


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one task. It is used *times* times (without a probability: once).

    about          a part of the prompt, of the picture's address, or of callBackUrl
    fail_code      the task fails with this code and `fail_message`; either makes it fail
    duration       seconds it takes, instead of a random time
    state          what recordInfo says instead of waiting, queuing and generating
    file           what the result is: a video; half a video; a video whose connection ends
                   halfway; a page; a video above 50 MB; nothing
    expired        the result's address has expired when it is first told
    fresh_link     whether download-url gives a new address
    callback       how often, when, and with what signature callBackUrl is called
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    about: str = ""
    times: int | None = None
    probability: float | None = None
    fail_code: str = ""
    fail_message: str = ""
    duration: float | None = None
    state: str = ""
    file: Literal["ok", "truncated", "cut", "html", "huge", "empty"] = "ok"
    expired: bool = False
    fresh_link: bool = True
    callback: Literal["none", "once", "twice", "late", "wrong_signature"] = "once"

    @property
    def fails(self) -> bool:
        """Whether the task ends in `fail`."""
        return bool(self.fail_code or self.fail_message)


AS_USUAL = Plan()
_PLANS = TypeAdapter(list[Plan])


def read_plans(data: Any) -> list[Plan]:
    """Check plans that came as JSON; raise pydantic's ValidationError on a misspelt one."""
    return _PLANS.validate_python(data)


class Plans:
    """The plans that are laid, in order; the first that fits a new task wins."""

    def __init__(self, seed: int = 0) -> None:
        self.used: Counter[str] = Counter()
        self._random = Random(seed)
        self._laid: list[tuple[Plan, Charge]] = []

    def lay(self, plans: Sequence[Plan]) -> None:
        """Add *plans* behind those that are there."""
        self._laid += [(plan, Charge(plan.times, plan.probability)) for plan in plans]

    def drop(self) -> None:
        """Forget them all."""
        self._laid.clear()

    def choose(self, *texts: str) -> Plan:
        """Return the plan for a task that *texts* are known of."""
        for number, (plan, charge) in enumerate(self._laid):
            if any(plan.about in text for text in texts) and charge.fires(self._random):
                self.used[plan.about] += 1
                if charge.spent:
                    del self._laid[number]
                return plan
        return AS_USUAL


@dataclass(slots=True)
class Task:
    """One generation; *created* and *due* are seconds of the upstream's own clock.

    *order* is the last part of the callback's path, where a caller puts its own id; *home* is where
    its result is; *callbacks* are the statuses that were answered to them.
    """

    id: str
    model: str
    param: str
    prompt: str
    image: str
    callback_url: str
    home: str
    plan: Plan
    cost: float
    created: float
    due: float
    looks: int = 0
    downloads: int = 0
    callbacks: list[int] = field(default_factory=list)
    order: str = field(init=False)

    def __post_init__(self) -> None:
        self.order = last_part(self.callback_url)

    def state(self, now: float) -> str:
        """Return where it is at *now*."""
        if now >= self.due:
            return "fail" if self.plan.fails else "success"
        return self.plan.state or next(
            state for state, begin in _STATES if self._share(now) >= begin
        )

    def record(self, now: float, result: str) -> dict[str, Any]:
        """Return the `data` of recordInfo and of a callback; *result* is the video's address."""
        over, failed = now >= self.due, self.plan.fails
        found: dict[str, Any] = {
            "taskId": self.id,
            "model": self.model,
            "state": self.state(now),
            "param": self.param,
            "resultJson": json.dumps({"resultUrls": [result]}) if over and not failed else None,
            "failCode": (self.plan.fail_code or "500") if over and failed else None,
            "failMsg": self.plan.fail_message if over and failed else None,
            "costTime": _milliseconds(self.due - self.created) if over else None,
            "completeTime": _milliseconds(self.due) if over else None,
            "createTime": _milliseconds(self.created),
            "updateTime": _milliseconds(self.due if over else now),
            "creditsConsumed": self.cost,
        }
        if self.model.startswith(_WITH_PROGRESS):
            found["progress"] = int(100 * self._share(now))
        return found

    def sight(self, now: float) -> dict[str, Any]:
        """Return what the control API tells of it."""
        return {
            "task_id": self.id,
            "order": self.order,
            "callback_url": self.callback_url,
            "model": self.model,
            "prompt": self.prompt,
            "image": self.image,
            "state": self.state(now),
            "cost": self.cost,
            "created": self.created,
            "due": self.due,
            "looks": self.looks,
            "downloads": self.downloads,
            "callbacks": self.callbacks,
        }

    def _share(self, now: float) -> float:
        whole = self.due - self.created
        return min(1.0, max(0.0, (now - self.created) / whole)) if whole > 0 else 1.0


def last_part(url: str) -> str:
    """Return the last part of the path of *url*."""
    return urlsplit(url).path.rstrip("/").rpartition("/")[2]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
