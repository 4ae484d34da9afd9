"""The simulated KIE.AI without HTTP: an account's credits and limits, its tasks, their files."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import httpx
from pydantic import ConfigDict, TypeAdapter

from sandbox.faults import Call, FaultPlan
from sandbox.journal import Entry, Journal, digest
from sandbox.kie_answers import (
    ENDED,
    PAUSED,
    UNKNOWN_FILE,
    UNKNOWN_MODEL,
    WORDS,
    Refused,
    refused,
    said,
    worded,
)
from sandbox.kie_callbacks import Callbacks, Ring
from sandbox.kie_files import Files, address, content, name, page
from sandbox.kie_models import MODELS, complaint, image_of
from sandbox.kie_tasks import Plans, Task, last_part
from sandbox.limits import SlidingWindow
from sandbox.replies import Reply, endured

CREATE_WINDOW = 10.0  # s, UPSTREAMS 2.1: 20 creates per account
QUERY_WINDOW = 1.0  # s, UPSTREAMS 2.1: 10 questions per key
_PROMPT_SHOWN = 200  # characters of a prompt in the journal


@dataclass(frozen=True, slots=True)
class StudioSettings:
    """How one account behaves; all times are seconds.

    A generation takes *duration* to *duration* + *spread*; recordInfo knows it *visible_after* its
    creation. A limit of 0 is none. *credits* is the balance, of which a generation takes *cost*
    when it is created; *short_as* is the code that too few are told with, 402 or 500. *paused* are
    models. Results expire after *result_life*, the links of download-url after *link_life*; both
    answer *expired_status* then. *late* is what a late callback is late.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    key: str = "sandbox"
    hmac_key: str = ""
    duration: float = 3.0
    spread: float = 3.0
    visible_after: float = 0.0
    create_limit: int = 20
    query_limit: int = 10
    credits: float = 1_000_000.0
    cost: float = 30.0
    short_as: int = 402
    paused: tuple[str, ...] = ()
    result_life: float = 86_400.0
    link_life: float = 1_200.0
    expired_status: int = 403
    late: float = 15.0
    latency: float = 0.0
    seed: int = 0
    journal: Path | None = None


SETTINGS = TypeAdapter(StudioSettings)


@dataclass(frozen=True, slots=True)
class Request:
    """One call: the last part of its path (`download` for a file), what came with it, the key.

    *base* is the address at which we are asked, and where the results of a new task will be.
    """

    method: str
    params: Mapping[str, Any]
    key: str = ""
    base: str = "http://kie"


class Studio:
    """The whole state; everything happens on one event loop, without threads."""

    def __init__(
        self,
        settings: StudioSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = self._at_first = settings or StudioSettings()
        self.clock = clock
        self.journal = Journal(self.settings.journal)
        self.callbacks = Callbacks(clock, lambda: self.settings.hmac_key, transport)
        self._sleep = sleep
        self._acts = {
            "createTask": self._create,
            "recordInfo": self._look,
            "credit": self._balance,
            "download-url": self._link,
            "download": self._download,
        }
        self._begin()

    def _begin(self) -> None:
        self.settings = self._at_first
        self.faults = FaultPlan(self.settings.seed)
        self.plans = Plans(self.settings.seed)
        self.tasks: dict[str, Task] = {}
        self.credits = self.settings.credits
        self.spent = 0.0
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.limit_answers: Counter[str] = Counter()
        self.files = Files()
        self._random = Random(self.settings.seed)
        self._set_limits()

    def _set_limits(self) -> None:
        self._windows = {
            "createTask": SlidingWindow(self.settings.create_limit, CREATE_WINDOW),
            "recordInfo": SlidingWindow(self.settings.query_limit, QUERY_WINDOW),
        }

    def reset(self) -> None:
        """Forget tasks, plans, faults, counters and journal; be as at the start."""
        self._begin()
        self.callbacks.clear()
        self.journal.clear(self.clock())

    def change(self, asked: Mapping[str, Any]) -> None:
        """Take over some settings; raise pydantic's ValidationError on a misspelt one."""
        self.settings = SETTINGS.validate_python({**asdict(self.settings), **asked})
        if "credits" in asked:
            self.credits = self.settings.credits
        if {"create_limit", "query_limit"} & set(asked):
            self._set_limits()

    async def answer(self, request: Request) -> Reply:
        """Take one request to its reply; the caller settles the reply's entries."""
        self.counts["requests"] += 1
        about = self._about(request)
        entry = self.journal.record(
            at=self.clock(),
            request=self.counts["requests"],
            method=request.method,
            about=about,
            digest=digest(request.params),
        )
        try:
            self._admit(request, entry.at)
        except Refused as refusal:
            return self._refuse(refusal, entry)
        return await endured(
            self.faults.strike(Call(request.method.lower(), self._sights(about))),
            lambda: self._act(request, entry),
            entry=entry,
            wording=worded,
            pause=self._pause,
        )

    def _about(self, request: Request) -> dict[str, str]:
        """Return what the journal and the faults can know a call by."""
        params = request.params
        if request.method == "createTask":
            given = _inputs(params)
            return {
                "order": last_part(_text(params, "callBackUrl")),
                "prompt": _text(given, "prompt")[:_PROMPT_SHOWN],
                "image": image_of(given),
            }
        file = self.files.find(_text(params, "url"))
        task = file.task if file else self.tasks.get(_text(params, "taskId"))
        return {"task": task.id, "order": task.order} if task else {}

    def _sights(self, about: Mapping[str, str]) -> tuple[str, ...]:
        """Return what a fault's `about` is looked for in: later calls know the prompt, too."""
        task = self.tasks.get(about.get("task", ""))
        return (*about.values(), task.prompt if task else "")

    def _admit(self, request: Request, now: float) -> None:
        if request.method != "download" and request.key != self.settings.key:
            raise Refused(401)
        window = self._windows.get(request.method)
        if window is not None and not window.take(now):
            self.limit_answers[request.method] += 1
            raise Refused(429)

    def _act(self, request: Request, entry: Entry) -> Reply:
        try:
            return self._acts[request.method](request, entry)
        except Refused as refusal:
            return self._refuse(refusal, entry)

    def _refuse(self, refusal: Refused, entry: Entry) -> Reply:
        self.errors[str(refusal.code)] += 1
        return refused(refusal, entry)

    def _create(self, request: Request, entry: Entry) -> Reply:
        settings, params = self.settings, request.params
        model, given = _text(params, "model"), _inputs(params)
        if model not in MODELS:
            raise Refused(500, UNKNOWN_MODEL)
        if model in settings.paused:
            raise Refused(500, PAUSED)
        if wrong := complaint(model, given):
            raise Refused(500, wrong)
        if self.credits < settings.cost:
            raise Refused(settings.short_as, WORDS[402])
        self.credits -= settings.cost
        self.spent += settings.cost
        task = self._begin_task(request)
        entry.effect = f"task {task.id} created"
        entry.about = {**entry.about, "task": task.id}
        return said({"taskId": task.id}, entry)

    def _begin_task(self, request: Request) -> Task:
        settings, now, params = self.settings, self.clock(), request.params
        given = _inputs(params)
        prompt, image = _text(given, "prompt"), image_of(given)
        url = _text(params, "callBackUrl")
        plan = self.plans.choose(prompt, image, url)
        # Drawn in any case, so that one task's plan does not change how long the next one takes.
        usual = settings.duration + self._random.uniform(0, settings.spread)
        task = Task(
            # With the time in it, so that no id comes back after a restart.
            id=name(settings.seed, now, len(self.tasks)),
            model=_text(params, "model"),
            param=json.dumps(params, ensure_ascii=False),
            prompt=prompt,
            image=image,
            callback_url=url,
            home=request.base,
            plan=plan,
            cost=settings.cost,
            created=now,
            due=now + (usual if plan.duration is None else plan.duration),
        )
        self.tasks[task.id] = task
        life = 0.0 if plan.expired else settings.result_life
        self.files.publish(task, task.due + life)
        if url and plan.callback != "none":
            late = settings.late if plan.callback == "late" else 0.0
            self.callbacks.schedule(task.due + late, self._ring(task))
        return task

    def _ring(self, task: Task) -> Ring:
        def body() -> Mapping[str, Any]:
            code, message = ENDED["fail" if task.plan.fails else "success"]
            record = task.record(self.clock(), address(task))
            return {"code": code, "msg": message, "data": record}

        return Ring(
            task.id,
            task.callback_url,
            body,
            times=2 if task.plan.callback == "twice" else 1,
            forged=task.plan.callback == "wrong_signature",
            heard=task.callbacks,
        )

    def _look(self, request: Request, entry: Entry) -> Reply:
        if not (task_id := _text(request.params, "taskId")):
            raise Refused(400)
        now, task = self.clock(), self.tasks.get(task_id)
        if task is None or now < task.created + self.settings.visible_after:
            raise Refused(422)
        task.looks += 1
        return said(task.record(now, address(task)), entry)

    def _balance(self, _request: Request, entry: Entry) -> Reply:
        return said(self.credits, entry)

    def _link(self, request: Request, entry: Entry) -> Reply:
        """Give a new address, whether or not the old one has expired."""
        now, file = self.clock(), self.files.find(_text(request.params, "url"))
        if file is None or not file.made(now) or not file.task.plan.fresh_link:
            raise Refused(422, UNKNOWN_FILE)
        self.counts["links"] += 1
        life = self.settings.link_life
        url = self.files.publish(file.task, now + life, number=self.counts["links"])
        entry.effect = "link made"
        return said(url, entry)

    def _download(self, request: Request, entry: Entry) -> Reply:
        now, file = self.clock(), self.files.find(_text(request.params, "url"))
        if file is None or not file.made(now):
            return page(404, entry)
        if now >= file.expires:
            self.counts["expired"] += 1
            return page(self.settings.expired_status, entry)
        file.task.downloads += 1
        self.counts["downloads"] += 1
        entry.effect = "file sent"
        return content(file.task, entry)

    async def _pause(self, seconds: float) -> None:
        seconds += self.settings.latency / 2
        if seconds > 0:
            await self._sleep(seconds)

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything that happened since the last reset."""
        now = self.clock()
        tasks = self.tasks.values()
        states = Counter(task.state(now) for task in tasks)
        creates = Counter(task.order for task in tasks)
        # A second task after one that failed is another attempt; beside one that did not, a double.
        kept = Counter(task.order for task in tasks if not (now >= task.due and task.plan.fails))
        return {
            "requests": self.counts["requests"],
            "creates": len(self.tasks),
            "states": dict(states),
            "queries": self.journal.by_method["recordInfo"],
            "downloads": self.counts["downloads"],
            "expired": self.counts["expired"],
            "links": self.counts["links"],
            "credits": self.credits,
            "spent": self.spent,
            "errors": dict(self.errors),
            "limit_answers": dict(self.limit_answers),
            "max_creates": self._windows["createTask"].highest,
            "max_queries": self._windows["recordInfo"].highest,
            "callbacks": self.callbacks.summary(),
            "creates_by_callback": dict(creates),
            "duplicates": [[order, n] for order, n in kept.items() if order and n > 1],
            "plans_used": dict(self.plans.used),
            "by_method": dict(self.journal.by_method),
            "by_status": dict(self.journal.by_status),
            "faults_fired": dict(self.faults.fired),
        }

    def sights(self, about: str = "") -> list[dict[str, Any]]:
        """Return what the control API tells of tasks; *about* is a part of order or prompt."""
        now = self.clock()
        return [
            task.sight(now)
            for task in self.tasks.values()
            if about in task.order or about in task.prompt
        ]

    async def close(self) -> None:
        await self.callbacks.close()
        self.journal.close()


def _inputs(params: Mapping[str, Any]) -> Mapping[str, Any]:
    given = params.get("input")
    return given if isinstance(given, dict) else {}


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    return value if isinstance(value, str) else ""
