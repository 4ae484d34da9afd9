"""PHP's bracket notation for nested values, both ways: `a[b][]=1` and `{"a": {"b": ["1"]}}`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

_NAME = re.compile(r"([^\[]+)((?:\[[^\]]*\])*)")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_BLANKS = " \t\n\r\v\f"


def parse(text: str) -> dict[str, Any]:
    """Read a query string or form body as PHP's `parse_str` does; every leaf is a string."""
    return nest(parse_qsl(text, keep_blank_values=True, errors="replace"))


def nest(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fold bracketed names into nested values; a later name overwrites an earlier one."""
    root: dict[str, Any] = {}
    for name, value in pairs:
        path = _path(name)
        if path:
            _put(root, path, value)
    return {key: _settled(value) for key, value in root.items()}


def build(data: Mapping[str, Any]) -> str:
    """Write nested values as PHP's `http_build_query` does: null is left out, true is `1`."""
    return urlencode(list(_flat(data, "")))


def as_php_array(entries: Mapping[str, Any]) -> Any:
    """Return what PHP prints as JSON for *entries*.

    An array whose keys are 0, 1, 2 … in this order is a list, and so is an empty one; any other
    is an object (UPSTREAMS 1.1: empty maps come as `[]`).
    """
    if all(key == str(index) for index, key in enumerate(entries)):
        return list(entries.values())
    return dict(entries)


def _path(name: str) -> list[str]:
    """Split `a[b][]` into its keys; the empty key means "append"."""
    name = name.lstrip(" ")
    match = _NAME.match(name)
    if match is None:
        return []
    base, brackets = match.groups()
    if not brackets and len(base) < len(name):
        # PHP turns an opening bracket that is never closed into an underscore.
        return [re.sub(r"[ .]", "_", base) + "_" + name[len(base) + 1 :]]
    # PHP once made variables of the names, and a variable has neither dot nor space.
    keys = (key if key.strip(_BLANKS) else "" for key in _BRACKETS.findall(brackets))
    return [re.sub(r"[ .]", "_", base), *keys]


def _put(root: dict[str, Any], path: list[str], value: Any) -> None:
    node = root
    for key in path[:-1]:
        place = key or _next_index(node)
        child = node.get(place)
        if not isinstance(child, dict):
            child = node[place] = {}
        node = child
    node[path[-1] or _next_index(node)] = value


def _next_index(node: Mapping[str, Any]) -> str:
    taken = [int(key) for key in node if key.isdecimal()]
    return str(max(taken) + 1 if taken else 0)


def _settled(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return as_php_array({key: _settled(child) for key, child in value.items()})


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(child, f"{name}[{key}]" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _flat(child, f"{name}[{index}]")
    elif value is not None:
        yield name, str(int(value)) if isinstance(value, bool) else str(value)
