"""What goes out of a simulated upstream: its answers, and the marks of a fault."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.faults import Fault, Strike
from sandbox.journal import Entry

_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1><hr>nginx</body></html>"
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_HTML = {"Content-Type": "text/html; charset=utf-8"}

# How an upstream says the error that a fault has named: the body and the HTTP status.
Wording = Callable[[Fault], tuple[Any, int]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out: *body*, or the chunks of *stream*.

    *drop* says how the connection ends: with a status after the stream, without one instead of an
    answer.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: str = ""
    entries: tuple[Entry, ...] = ()
    stream: Iterable[bytes] | None = None


def answered(body: Any, entries: Sequence[Entry], status: int = 200) -> Reply:
    """Return *body* as JSON."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Reply(status, text.encode(), _JSON, entries=tuple(entries))


async def endured(
    strike: Strike,
    act: Callable[[], Reply],
    *,
    entry: Entry,
    wording: Wording,
    pause: Callable[[float], Awaitable[object]],
) -> Reply:
    """Return what the client sees of *act*, which may not happen at all, under *strike*."""
    fault = strike.request
    await pause(strike.before)
    if fault is not None and _strikes_first(fault):
        return _struck(fault, [entry], wording)
    reply = act()
    await pause(strike.after)
    return reply if fault is None else _struck(fault, reply.entries, wording)


def _struck(fault: Fault, entries: Sequence[Entry], wording: Wording) -> Reply:
    """Return what the client sees of *fault*, whatever happened before."""
    if fault.code or fault.kind == "error":
        entries[0].error = fault.code
    if fault.kind in ("refuse", "lost_answer", "partial_batch"):
        return Reply(0, drop=fault.drop, entries=tuple(entries))
    if fault.kind == "error" or (fault.kind == "status" and fault.code):
        body, status = wording(fault)
        reply = answered(body, entries, status)
    else:
        status = fault.status or (200 if fault.kind == "non_json" else 500)
        page = fault.description or _PAGE.format(status)
        reply = Reply(status, page.encode(), _HTML, entries=tuple(entries))
    return replace(reply, headers={**reply.headers, **fault.headers})


def _strikes_first(fault: Fault) -> bool:
    if fault.kind in ("lost_answer", "partial_batch"):
        return False
    return fault.kind == "refuse" or not fault.after
