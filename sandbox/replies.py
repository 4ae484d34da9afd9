"""What comes in at a portal and what goes out: answers, refusals, and the marks of a fault."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandbox.faults import Fault
from sandbox.journal import Entry
from sandbox.refusals import Refusal

_PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1><hr>nginx</body></html>"
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it came in: the path's three parts, its parameters, and whose address."""

    user: str
    code: str
    method: str
    params: Mapping[str, Any]
    client: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out; *drop* says how the connection ends instead, if it does."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: str = ""
    entries: tuple[Entry, ...] = ()


def answered(body: Any, entries: Sequence[Entry], status: int = 200) -> Reply:
    """Return *body* as the portal's JSON."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Reply(status, text.encode(), _JSON, entries=tuple(entries))


def struck(fault: Fault, entries: Sequence[Entry], language: str) -> Reply:
    """Return what the client sees of *fault*, whatever happened before."""
    if fault.code or fault.kind == "error":
        entries[0].error = fault.code
    if fault.kind in ("refuse", "lost_answer", "partial_batch"):
        return Reply(0, drop=fault.drop, entries=tuple(entries))
    if fault.kind == "error" or (fault.kind == "status" and fault.code):
        refusal = refused_by(fault)
        reply = answered(refusal.body(language), entries, refusal.status)
    else:
        status = fault.status or (200 if fault.kind == "non_json" else 500)
        page = fault.description or _PAGE.format(status)
        reply = Reply(status, page.encode(), _HTML, entries=tuple(entries))
    return replace(reply, headers={**reply.headers, **fault.headers})


def strikes_first(fault: Fault) -> bool:
    """Say whether *fault* keeps the call from having any effect."""
    if fault.kind in ("lost_answer", "partial_batch"):
        return False
    return fault.kind == "refuse" or not fault.after


def refused_by(fault: Fault) -> Refusal:
    return Refusal(fault.code, fault.description, fault.status)
