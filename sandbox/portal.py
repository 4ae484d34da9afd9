"""One simulated portal: limits, faults, single calls and batches, and the record of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sandbox import batch
from sandbox.crm import portal_time
from sandbox.crm_methods import Crm, Outcome
from sandbox.faults import Call, Fault, FaultPlan, Strike
from sandbox.journal import Entry, Journal, digest
from sandbox.limits import LeakyBucket, OperatingTime
from sandbox.outbound import Outbound
from sandbox.phpforms import as_php_array
from sandbox.refusals import Refusal
from sandbox.replies import Reply, answered, endured


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it came in: the path's three parts, its parameters, and whose address."""

    user: str
    code: str
    method: str
    params: Mapping[str, Any]
    client: str = ""


@dataclass(frozen=True, slots=True)
class PortalSettings:
    """How one portal behaves.

    *rate* and *burst* are the leaky bucket's, a second and in requests; *operating_limit* is in
    seconds per ten minutes and method, 0 for none; *operating_cost* is what a call is said to
    take: at 5 ms even 100 commands a second, all the rate limit lets through in batches, stay
    below 480 s. *latency* is the round trip of a request in seconds. *rights* are what `scope` says
    that the webhook may do; nothing is refused for want of one.
    """

    user: str = "1"
    code: str = "sandbox"
    rights: tuple[str, ...] = ("crm",)
    rate: float = 2.0
    burst: float = 50.0
    seed: int = 0
    latency: float = 0.0
    operating_limit: float = 480.0
    operating_cost: float = 0.005
    operating_costs: Mapping[str, float] = field(default_factory=dict)
    language: str = "en"
    domain: str = "sandbox.bitrix24.ru"
    webhook_target: str = ""
    application_token: str = "sandbox-application"  # noqa: S105 - nothing here is secret
    journal: Path | None = None


class Portal:
    """The portal's whole state; everything happens on one event loop, without threads."""

    def __init__(
        self,
        settings: PortalSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = settings or PortalSettings()
        self.clock = clock
        self.journal = Journal(self.settings.journal)
        self.outbound = Outbound(
            self.settings.webhook_target,
            self.settings.application_token,
            self.settings.domain,
            clock,
            transport,
        )
        self._sleep = sleep
        self._begin()

    def _begin(self) -> None:
        self.crm = Crm(self.settings.language, self.settings.rights)
        self.faults = FaultPlan(self.settings.seed)
        self.operating = OperatingTime(self.settings.operating_limit)
        self.requests = 0
        self.operations = 0
        self.limit_answers = 0
        self.operating_answers = 0
        # The counter is per portal and per address of the caller (UPSTREAMS 1.2).
        self._buckets: dict[str, LeakyBucket] = {}

    def reset(self) -> None:
        """Forget records, faults, counters and journal; the seeded chances start anew."""
        self._begin()
        self.outbound.counts.update({key: -n for key, n in self.outbound.counts.items()})
        self.journal.clear(self.clock())

    async def answer(self, request: Request) -> Reply:
        """Take one request to its reply; the caller settles the reply's entries."""
        self.requests += 1
        number, began = self.requests, self.clock()
        method = request.method.lower()
        ids = self.crm.essentials(method, request.params)
        entry = self.journal.record(
            at=began, request=number, method=method, about=ids, digest=digest(request.params)
        )
        try:
            self._admit(request, began)
        except Refusal as refusal:
            return self._refused(entry, refusal)
        commands = batch.commands(request.params) if method == "batch" else []
        strike = self.faults.strike(
            Call(method, _ids(ids)), [self._sight(command) for command in commands]
        )
        return await endured(
            strike,
            lambda: self._answer(request.params, entry, commands, strike),
            entry=entry,
            wording=self._worded,
            pause=lambda seconds: self._wait(self.settings.latency / 2 + seconds),
        )

    def _answer(
        self,
        params: Mapping[str, Any],
        entry: Entry,
        commands: list[batch.Command],
        strike: Strike,
    ) -> Reply:
        entries, fault = [entry], strike.request
        try:
            if entry.method == "batch":
                until = fault.commands if fault and fault.kind == "partial_batch" else None
                body = self._batch(params, commands[:until], strike.commands, entries)
            else:
                body = self._single(entry, params)
        except Refusal as refusal:
            entry.error = refusal.code
            return answered(refusal.body(self.settings.language), entries, refusal.status)
        return answered(body, entries)

    def _admit(self, request: Request, now: float) -> None:
        if not request.user or not request.code:
            raise Refusal("NO_AUTH_FOUND")
        if (request.user, request.code) != (self.settings.user, self.settings.code):
            raise Refusal("INVALID_CREDENTIALS")
        bucket = self._buckets.get(request.client)
        if bucket is None:
            bucket = LeakyBucket(self.settings.rate, self.settings.burst)
            self._buckets[request.client] = bucket
        if not bucket.take(now):
            self.limit_answers += 1
            raise Refusal("QUERY_LIMIT_EXCEEDED")

    def _single(self, entry: Entry, params: Mapping[str, Any]) -> dict[str, Any]:
        outcome, operating = self._run(entry, params)
        body: dict[str, Any] = {"result": outcome.result}
        if outcome.next is not None:
            body["next"] = outcome.next
        if outcome.total is not None:
            body["total"] = outcome.total
        return body | {"time": self._time(entry.at, operating)}

    def _batch(
        self,
        params: Mapping[str, Any],
        commands: list[batch.Command],
        errors: Mapping[int, Fault],
        entries: list[Entry],
    ) -> dict[str, Any]:
        """Run the commands in order; their errors stand inside an answer that is a success."""
        began = self.clock()
        found: dict[str, dict[str, Any]] = {
            name: {} for name in ("result", "error", "total", "next", "time")
        }
        for index, command in enumerate(commands):
            entry = self.journal.record(
                at=self.clock(),
                request=entries[0].request,
                method=command.method,
                key=command.key,
                digest=digest(command.params),
            )
            entries.append(entry)
            try:
                self._command(command, errors.get(index), found, entry)
            except Refusal as refusal:
                entry.error = refusal.code
                found["error"][command.key] = refusal.body(self.settings.language)
                if batch.halts(params):
                    break
        shown = {name: as_php_array(answers) for name, answers in found.items()}
        result = {"result": shown["result"]} | {
            f"result_{name}": shown[name] for name in ("error", "total", "next", "time")
        }
        return {"result": result, "time": self._time(began)}

    def _command(
        self,
        command: batch.Command,
        fault: Fault | None,
        found: dict[str, dict[str, Any]],
        entry: Entry,
    ) -> None:
        if command.beyond:
            raise Refusal("ERROR_BATCH_LENGTH_EXCEEDED")
        if command.method == "batch":
            raise Refusal("ERROR_BATCH_METHOD_NOT_ALLOWED")
        began = self.clock()
        params = batch.resolved(command.params, found)
        entry.about = self.crm.essentials(command.method, params)
        if fault is not None and not fault.after:
            raise _refusal(fault)
        outcome, operating = self._run(entry, params)
        if fault is not None:
            raise _refusal(fault)
        found["result"][command.key] = outcome.result
        found["time"][command.key] = self._time(began, operating)
        if outcome.total is not None:
            found["total"][command.key] = outcome.total
        if outcome.next is not None:
            found["next"][command.key] = outcome.next

    def _run(
        self, entry: Entry, params: Mapping[str, Any]
    ) -> tuple[Outcome, tuple[float, float, int]]:
        """Carry out one method, inside a batch or alone, within its operating time."""
        now = self.clock()
        if not self.operating.allows(entry.method, now):
            self.operating_answers += 1
            raise Refusal("OPERATION_TIME_LIMIT")
        self.operations += 1
        outcome = self.crm.call(entry.method, params, now)
        cost = self.settings.operating_costs.get(entry.method, self.settings.operating_cost)
        total, reset_at = self.operating.spend(entry.method, cost, now)
        if outcome.effect:
            entry.effect = outcome.effect
            entry.about = {**entry.about, "ID": str(outcome.record)}
            self.outbound.fire(outcome.event, outcome.record)
        return outcome, (cost, total, reset_at)

    def _time(
        self, began: float, operating: tuple[float, float, int] | None = None
    ) -> dict[str, Any]:
        """Return the `time` object; a batch as a whole has no operating time of its own."""
        now = self.clock()
        found: dict[str, Any] = {
            "start": began,
            "finish": now,
            "duration": now - began,
            "processing": operating[0] if operating else now - began,
            "date_start": portal_time(began),
            "date_finish": portal_time(now),
        }
        if operating:
            found["operating_reset_at"] = operating[2]
            found["operating"] = operating[1]
        return found

    def _sight(self, command: batch.Command) -> Call:
        ids = self.crm.essentials(command.method, command.params)
        return Call(command.method, _ids(ids), command=True)

    def _worded(self, fault: Fault) -> tuple[Any, int]:
        refusal = _refusal(fault)
        return refusal.body(self.settings.language), refusal.status

    def _refused(self, entry: Entry, refusal: Refusal) -> Reply:
        entry.error = refusal.code
        return answered(refusal.body(self.settings.language), [entry], refusal.status)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything that happened since the last reset."""
        crm = self.crm
        return {
            "requests": self.requests,
            "operations": self.operations,
            "limit_answers": self.limit_answers,
            "operating_answers": self.operating_answers,
            "deals": len(crm.deals),
            "contacts": len(crm.contacts),
            "duplicates": {
                "deals": crm.deals.doubled_origins(),
                "contacts": crm.contacts.doubled_origins(),
                "lines": crm.contacts.doubled_lines(),
            },
            "max_bucket": max((bucket.highest for bucket in self._buckets.values()), default=0.0),
            "by_method": dict(self.journal.by_method),
            "by_status": dict(self.journal.by_status),
            "faults_fired": dict(self.faults.fired),
            "webhooks": dict(self.outbound.counts),
        }

    async def close(self) -> None:
        await self.outbound.close()
        self.journal.close()


def _ids(about: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(about[name] for name in ("ORIGIN_ID", "ID") if name in about)


def _refusal(fault: Fault) -> Refusal:
    return Refusal(fault.code, fault.description, fault.status)
