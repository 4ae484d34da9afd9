"""Batch requests: the commands, and the earlier results they refer to (UPSTREAMS 1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.crm_methods import argument
from sandbox.phpforms import parse

LENGTH = 50
# PHP takes any `$result…` up to the next blank, in any value and whatever its case.
_REFERENCE = re.compile(r"\$(result|next|total|time|error)(\S*)", re.IGNORECASE)
_KEYS = re.compile(r"\[([^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a batch; one *beyond* the fiftieth is refused."""

    key: str
    method: str
    params: Mapping[str, Any]
    beyond: bool = False


def commands(params: Mapping[str, Any]) -> list[Command]:
    """Read `cmd`, a map or a list of `method?query` strings."""
    given = argument(params, "cmd", {})
    if isinstance(given, list):
        given = dict(enumerate(given))
    found: list[Command] = []
    for index, (key, text) in enumerate(given.items() if isinstance(given, Mapping) else ()):
        # Like PHP's parse_url: what follows an unescaped `#` is lost.
        method, _, query = str(text).partition("#")[0].partition("?")
        found.append(Command(str(key), method.strip("/ ").lower(), parse(query), index >= LENGTH))
    return found


def resolved(value: Any, found: Mapping[str, Any]) -> Any:
    """Put earlier results in place of `$result[key][field]`."""
    if isinstance(value, Mapping):
        return {key: resolved(child, found) for key, child in value.items()}
    if isinstance(value, list):
        return [resolved(child, found) for child in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    for match in _REFERENCE.finditer(value):
        keys = _KEYS.findall(match.group(2))
        if not keys:
            continue
        target = _followed(found[match.group(1).lower()], keys)
        if match.group() == value:
            return target
        value = value.replace(match.group(), _printed(target))
    return value


def _followed(target: Any, keys: list[str]) -> Any:
    """Walk down as far as the path leads; PHP stops at the first key that is missing."""
    for key in keys:
        if isinstance(target, list):
            inner = target[int(key)] if key.isdecimal() and int(key) < len(target) else None
        else:
            inner = target.get(key) if isinstance(target, Mapping) else None
        if inner is None:
            break
        target = inner
    return target


def _printed(value: Any) -> str:
    return "Array" if isinstance(value, Mapping | list) else str(value)


def halts(params: Mapping[str, Any]) -> bool:
    """Say whether the first error ends the batch; PHP takes any text but `0` for true."""
    return argument(params, "halt", 0) not in (0, "0", "", False)
