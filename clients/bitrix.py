"""How we call a Bitrix24 portal: a handful of operations, up to 50 of them in one request.

Shapes and limits: UPSTREAMS 1.1 and 1.2.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from classifiers import bitrix as classifier
from classifiers.errors import (
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
)
from clients.coalescing import Coalescer, Waiter
from clients.http import Answer, Upstream
from clients.process import PerProcess
from config import services
from config.settings import settings
from reliability.connection import redis
from reliability.gate import Gate, Permit

PAGE = 50  # UPSTREAMS 1.1: a list answers 50 rows, and a batch takes 50 commands
REFERENCE = re.compile(r"\$(result|total|next|time|error)", re.IGNORECASE)
BULKY = 20_000  # bytes of a command: fifty of them are the megabyte that proxies let through
MARKS = {"ORIGINATOR_ID", "ORIGIN_ID"}
FINDS = 25  # origins per list call: half a page, so that a stray double cannot push one off it
OPERATING_PAUSE = 60.0  # one of the ten one-minute buckets of the operating limit has to pass
OPERATING_WINDOW = 3600.0  # s; those ten buckets and a clock that differs: later is no such time
METHOD_LIMIT = "OPERATION_TIME_LIMIT"  # UPSTREAMS 1.2: only that method is blocked
METHOD_CODES = frozenset({METHOD_LIMIT, "ERROR_METHOD_NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Call:
    """One REST call. *safe*: repeating it cannot double an effect."""

    method: str
    params: Mapping[str, Any]
    safe: bool

    def as_command(self) -> str:
        """Return the call as one command of a batch."""
        return f"{self.method}?{_query(self.params)}"

    @property
    def must_go_alone(self) -> bool:
        """Whether a batch would carry it badly, or suffer from it.

        It would read some of its text, a customer's included, as something else; and a proxy that
        refuses one bulky command would refuse the others with it.

        UPSTREAMS 1.1: the portal replaces `$result[key][field]` in every command of a batch. And
        PHP's notation cannot express a bracket inside a name.
        """
        bulky = len(self.as_command()) > BULKY
        return (
            bulky
            or _has_brackets(self.params)
            or any(
                REFERENCE.search(name) or REFERENCE.search(value)
                for name, value in _pairs(self.params)
            )
        )


@dataclass(frozen=True, slots=True)
class Find:
    """Which row of *entity* carries this origin? Many of these become one list call."""

    entity: str
    origin_id: str

    safe = True

    @property
    def must_go_alone(self) -> bool:
        """As with a `Call`; a find gone wrong says "not found", and a second row is made."""
        return REFERENCE.search(self.origin_id) is not None


class Portal:
    """One portal. *originator* marks our rows there; *scale* multiplies the pauses of our own."""

    def __init__(self, upstream: Upstream, originator: str, *, scale: float = 1.0) -> None:
        self.upstream = upstream
        self.originator = originator
        self.operating_pause = OPERATING_PAUSE * scale
        self._blocked_until: dict[str, float] = {}  # method → unix time
        self._resets_at: dict[str, float] = {}  # method → operating_reset_at of its last answer
        self._coalescer: Coalescer[Call | Find] = Coalescer(
            upstream.permit,
            self._send,
            upstream.gate.behind,
            name=upstream.service.name,
            size=upstream.service.ops_per_permit,
            in_flight=upstream.service.in_flight,
            patience=upstream.service.patience,
            alone=lambda call: call.must_go_alone,
        )

    # -- operations

    def add(
        self, entity: str, origin_id: str, fields: Mapping[str, Any], *, for_update: bool = False
    ) -> str:
        """Create a row of *entity* (`deal`, `contact`) for our *origin_id*; return its id.

        Raises:
            NotFound: a row that ours refers to is gone. *for_update*, where a NotFound would mean
                that our own row is, it is an InvalidData.
        """
        marks = {"ORIGINATOR_ID": self.originator, "ORIGIN_ID": origin_id}
        method = f"crm.{entity}.add"
        try:
            found = self._call(method, {"fields": {**fields, **marks}}, safe=False)
        except NotFound as error:
            if not for_update:
                raise
            raise _dangling(error) from error
        if isinstance(found, bool) or not isinstance(found, int | str) or not str(found).strip("0"):
            raise OutcomeUnknown("the answer names no id", service="bitrix", operation=method)
        return str(found)

    def update(self, entity: str, row_id: str, fields: Mapping[str, Any]) -> None:
        """Write fixed values into a row; its marks stay as they are.

        Raises:
            NotFound: if the row is gone.
            InvalidData: also where a row that it refers to is gone.
        """
        own = {name: value for name, value in fields.items() if name not in MARKS}
        try:
            self._call(f"crm.{entity}.update", {"id": row_id, "fields": own}, safe=True)
        except NotFound as error:
            self.get(entity, row_id)  # raises NotFound itself if it is this row that is gone
            raise _dangling(error) from error

    def get(self, entity: str, row_id: str) -> dict[str, Any]:
        """Return a row; every scalar is a string. Raises NotFound if it is gone."""
        row: dict[str, Any] = self._call(f"crm.{entity}.get", {"id": row_id}, safe=True)
        return row

    def find(self, entity: str, origin_id: str) -> str | None:
        """Return the id of the oldest row that carries our origin, or None."""
        self._refuse_blocked(f"crm.{entity}.list")
        found: str | None = self._coalescer.call(Find(entity, origin_id))
        return found

    def contacts_with(self, kind: str, value: str) -> list[str]:
        """Return the ids of contacts that have this `EMAIL` or `PHONE`, oldest first."""
        params = {"type": kind, "values": [value], "entity_type": "CONTACT"}
        found = self._call("crm.duplicate.findbycomm", params, safe=True)
        # UPSTREAMS 1.1: an empty map comes as [].
        ids = _listed(found.get("CONTACT", [])) if isinstance(found, Mapping) else []
        return sorted((str(row_id) for row_id in ids or []), key=int)

    def rights(self, *, within: float) -> list[str]:
        """Return the rights that our webhook was given (`crm`), for a person: see `Upstream.call`.

        Not by way of the batches, which are jobs' own.
        """
        answer = self.upstream.call("POST", "scope", safe=True, within=within, json={})
        return [str(right) for right in _listed(answer.json()["result"]) or []]

    # -- one request

    def _call(self, method: str, params: Mapping[str, Any], *, safe: bool) -> Any:
        self._refuse_blocked(method)
        call = Call(method, params, safe)
        call.as_command()  # what cannot be written fails here, in its own job, not in a batch
        return self._coalescer.call(call)

    def _refuse_blocked(self, method: str) -> None:
        wait = self._blocked_until.get(method, 0.0) - time.time()
        if wait > 0:
            raise RateLimited(
                "this method has used up its operating time",
                service="bitrix",
                operation=method,
                code=METHOD_LIMIT,
                retry_after=wait,
            )

    def _send(self, permit: Permit, waiters: Sequence[Waiter[Call | Find]]) -> None:
        commands = list(_commands(waiters, self.originator))
        if len(commands) == 1:
            self._send_one(permit, commands[0])
        else:
            self._send_batch(permit, commands)

    def _send_one(self, permit: Permit, command: Command) -> None:
        call, waiting = command.call, len(command.waiters)
        answer = self.upstream.send(permit, "POST", call.method, json=call.params, waiting=waiting)
        if not self._failed(answer, [command]):
            body = _json(answer)
            self._note_operating(call.method, body.get("time"))
            command.settle(body["result"])

    def _send_batch(self, permit: Permit, commands: Sequence[Command]) -> None:
        cmd = {f"c{n}": command.call.as_command() for n, command in enumerate(commands)}
        waiting = sum(len(command.waiters) for command in commands)
        body = {"halt": 0, "cmd": cmd}
        answer = self.upstream.send(permit, "POST", "batch", json=body, waiting=waiting)
        if self._failed(answer, commands):
            return
        result = _mapping(_json(answer)["result"])
        parts = {
            part: _mapping(result.get(part)) for part in ("result", "result_error", "result_time")
        }
        for name, command in zip(cmd, commands, strict=True):
            self._note_operating(command.call.method, parts["result_time"].get(name))
            self._settle(command, name, parts)

    def _settle(self, command: Command, name: str, parts: Mapping[str, Mapping[str, Any]]) -> None:
        call = command.call
        if name in parts["result_error"]:
            refusal = parts["result_error"][name]
            if not isinstance(refusal, Mapping):
                refusal = {"error": str(refusal)}
            command.fail(self._refused(call, refusal))
        elif name in parts["result"]:
            command.settle(parts["result"][name])
        else:  # the portal stopped on the way and does not say where
            kind = ServiceUnavailable if call.safe else OutcomeUnknown
            text = "the batch answer does not mention this command"
            command.fail(kind(text, service="bitrix", operation=call.method))

    def _refused(self, call: Call, refusal: Mapping[str, Any]) -> JobError:
        error = classifier.classify_error(
            refusal.get("error", ""),
            str(refusal.get("error_description") or ""),
            safe=call.safe,
            operation=call.method,
        )
        self.upstream.close_gate(error)
        return self._with_reset(error, call.method)

    def _failed(self, answer: Answer, commands: Sequence[Command]) -> bool:
        """Settle every command of a request that failed as a whole."""
        if answer.error(True) is None:
            return False
        for command in commands:
            error = answer.error(command.call.safe)
            if error is not None:  # whether it failed does not depend on safety; what it means does
                command.fail(self._with_reset(error, command.call.method))
        return True

    def _with_reset(self, error: JobError, method: str) -> JobError:
        """Add the time the portal does not say: when the method's operating time comes back."""
        if error.code.upper() == METHOD_LIMIT:
            now, until = time.time(), self._resets_at.get(method, 0.0)
            if not now < until <= now + OPERATING_WINDOW:
                until = now + self.operating_pause
            self._blocked_until[method] = until
            error.retry_after = until - now
        return error

    def _note_operating(self, method: str, spent: Any) -> None:
        # UPSTREAMS 1.2: the error itself has no timings, so the last good answer's are kept.
        reset_at = _mapping(spent).get("operating_reset_at")
        if isinstance(reset_at, int | float):
            self._resets_at[method] = reset_at

    def close(self) -> None:
        """Let the connections go."""
        self.upstream.close()


@dataclass(frozen=True, slots=True)
class Command:
    """One call on the wire, and the waiters that want its answer."""

    call: Call
    waiters: Sequence[Waiter[Call | Find]]

    def settle(self, result: Any) -> None:
        """Give every waiter its part of the answer."""
        for waiter in self.waiters:
            try:
                own = _found(result, waiter.call) if isinstance(waiter.call, Find) else result
            except JobError as error:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(own)

    def fail(self, error: JobError) -> None:
        """Give every waiter its own copy of the error."""
        for waiter in self.waiters:
            waiter.future.set_exception(copy.copy(error))


def _commands(waiters: Sequence[Waiter[Call | Find]], originator: str) -> Iterator[Command]:
    """Yield the calls as they are, and all finds of one entity as one list call."""
    finds: dict[str, list[Waiter[Call | Find]]] = {}
    for waiter in waiters:
        if isinstance(waiter.call, Find):
            finds.setdefault(waiter.call.entity, []).append(waiter)
        else:
            yield Command(waiter.call, [waiter])
    for entity, wanted in finds.items():
        for start in range(0, len(wanted), FINDS):
            some = wanted[start : start + FINDS]
            yield Command(_find_call(entity, originator, some), some)


def _find_call(entity: str, originator: str, finds: Sequence[Waiter[Any]]) -> Call:
    origins = sorted({waiter.call.origin_id for waiter in finds})
    params = {
        "select": ["ID", "ORIGIN_ID"],
        "filter": {"=ORIGINATOR_ID": originator, "@ORIGIN_ID": origins},
        "order": {"ID": "ASC"},
        "start": -1,  # no count: faster for the portal, and we do not need it
    }
    return Call(f"crm.{entity}.list", params, safe=True)


def _dangling(error: NotFound) -> InvalidData:
    return InvalidData(
        f"a row that this one refers to is gone ({error.detail})",
        service=error.service,
        operation=error.operation,
        code=error.code,
    )


def _found(rows: Any, find: Find) -> str | None:
    """Pick the oldest row of *find*'s origin.

    Raises:
        InternalError: if the answer is no list of rows; or the page is full and the origin is not
            on it: it may be on the next one, and "not found" would create a second row.
    """
    listed = _listed(rows)
    if listed is None or not all(isinstance(row, Mapping) and row.get("ID") for row in listed):
        raise _unclear(find, "the answer is no list of rows")
    for row in listed:
        if str(row.get("ORIGIN_ID")) == find.origin_id:
            return str(row["ID"])
    if len(listed) >= PAGE:
        raise _unclear(find, "more rows share these origins than fit a page")
    return None


def _unclear(find: Find, why: str) -> InternalError:
    return InternalError(why, service="bitrix", operation=f"crm.{find.entity}.list")


def _listed(value: Any) -> list[Any] | None:
    """Return what PHP means as a list, which it writes as a map where a number is left out."""
    if isinstance(value, Mapping) and all(str(key).isdecimal() for key in value):
        return list(value.values())
    return value if isinstance(value, list) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a map. UPSTREAMS 1.1: an empty one comes as []."""
    return value if isinstance(value, Mapping) else {}


def _json(answer: Answer) -> dict[str, Any]:
    assert answer.response is not None  # noqa: S101 - only a response can be a success
    body: dict[str, Any] = answer.response.json()
    return body


def _query(params: Mapping[str, Any]) -> str:
    """Write nested parameters in PHP's brackets, as a batch command wants them."""
    return urlencode(list(_pairs(params)))


def _pairs(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        if not value:
            yield name, ""
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in inside:
            yield from _pairs(inner, f"{name}[{key}]" if name else str(key))
    elif isinstance(value, bool):
        yield name, "1" if value else "0"
    else:
        yield name, "" if value is None else str(value)


def _has_brackets(value: Any) -> bool:
    """Whether the name of some value, however deep, has a bracket in it."""
    if isinstance(value, Mapping):
        return any("[" in str(key) or "]" in str(key) for key in value) or any(
            map(_has_brackets, value.values())
        )
    return isinstance(value, list | tuple) and any(map(_has_brackets, value))


@PerProcess
def portal() -> Portal:
    """Return the portal of this process, as the settings describe it.

    Raises:
        NotConfigured: if BITRIX_WEBHOOK_URL is not set.
    """
    config = settings()
    if config.bitrix_webhook_url is None:
        raise NotConfigured("BITRIX_WEBHOOK_URL is not set", service="bitrix")
    url = config.bitrix_webhook_url.get_secret_value()
    service, scale = services.bitrix(config), config.retry_time_scale
    upstream = Upstream(
        service,
        Gate(redis(), service, prefix=config.redis_stream_prefix, scale=scale),
        classifier.classify,
        base_url=url,
        credential=url,
        method_codes=METHOD_CODES,
    )
    return Portal(upstream, config.bitrix_originator_id, scale=scale)
