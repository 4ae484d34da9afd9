"""Anything as JSON, and without the secrets in it."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import lru_cache
from math import isfinite
from typing import Any
from urllib.parse import quote, quote_plus

from config.settings import settings

HIDDEN = "•••"
SHORTEST_PART = 4  # a shorter secret is hidden where it is the whole value, not inside of words
DEEPEST = 100  # levels; what is nested deeper is kept as text


class Redaction:
    """Hides *secrets* from what is written; names of ours, the *spared*, are none of theirs."""

    def __init__(self, secrets: Collection[str], spared: Collection[str] = ()) -> None:
        spelled = {spelling for secret in secrets if secret for spelling in spellings(secret)}
        self._secrets = sorted(spelled, key=len, reverse=True)
        self._spared = spared

    def of(self, value: Any, depth: int = 0) -> Any:
        """Return *value* as JSON knows it, whatever it was, without secrets."""
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float) and isfinite(value):
            return value
        if depth <= DEEPEST and isinstance(value := unfolded(value), dict | list):
            if isinstance(value, list):
                return [self.of(item, depth + 1) for item in value]
            return {self._name(key): self.of(value[key], depth + 1) for key in value}
        return self._text(value if isinstance(value, str) else as_json(value))

    def concerns(self, text: str) -> bool:
        """Whether `of` could change *text*: a quick look, for what mostly holds no secret."""
        return not text.isascii() or any(secret in text for secret in self._secrets)

    def of_base64(self, raw: str) -> str:
        """Return bytes without secrets; both are base64."""
        content = b64decode(raw)
        for secret in self._secrets:
            if len(secret) >= SHORTEST_PART:
                content = content.replace(secret.encode(), HIDDEN.encode())
        return b64encode(content).decode()

    def _name(self, name: str) -> str:
        """A secret may be as short as `code`."""
        return name if name in self._spared else self._text(name)

    def _text(self, text: str) -> str:
        text = storable(text)
        if text in self._secrets:
            return HIDDEN
        for secret in self._secrets:
            if len(secret) >= SHORTEST_PART:
                text = text.replace(secret, HIDDEN)
        return text


def storable(text: str) -> str:
    """Return *text* as UTF-8 can tell it: half a surrogate pair, legal in JSON, becomes words."""
    return text.encode("utf-8", "backslashreplace").decode()


def spellings(secret: str) -> set[str]:
    """Return a secret as it is, and as it looks inside of a repr, of JSON and of an address."""
    in_json = (json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    in_an_address = (quote(secret, safe=""), quote(secret), quote_plus(secret))
    return {secret, repr(secret)[1:-1], *in_json, *in_an_address}


@lru_cache(maxsize=1)
def redaction() -> Redaction:
    """Return what hides every secret of this process's settings."""
    return Redaction(settings().secrets)


def unfolded(value: Any) -> Any:
    """Return *value* as JSON knows it, one level deep."""
    if is_dataclass(value):
        return {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def as_json(value: Any) -> str:
    """Return one line of JSON; a value that JSON does not know becomes its repr."""
    try:
        return json.dumps(value, ensure_ascii=False, default=unfolded)
    except RecursionError:
        return "(nested too deeply to be kept)"
