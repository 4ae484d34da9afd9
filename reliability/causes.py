"""What a death has in common with others: its cause, and what a person has said about that."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Self

VERSION = re.compile(r"v?\d+(\.\d+)*([-+].*)?")  # as the script compares them, by their numbers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person has said about a cause.

    *state* is `ignored` (its deaths are discarded with the *note*, unless *until* has passed) or
    `fixed` (in *version*). A death in that version or a later one makes it a *regression*: the
    verdict holds no more, and is kept to be shown.
    """

    state: str
    by: str
    note: str
    at: datetime
    until: datetime | None = None
    version: str = ""
    regression: bool = False

    def holds(self, now: datetime) -> bool:
        """Whether it has not expired."""
        return self.until is None or now < self.until

    def to_json(self) -> str:
        """Return it as the script reads it: flat, its times in unix seconds or empty."""
        return json.dumps(asdict(self) | {"at": _seconds(self.at), "until": _seconds(self.until)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` or the script wrote."""
        facts = json.loads(text)
        return cls(**facts | {name: moment(facts[name]) for name in ("at", "until")})


def fingerprint(task: str, service: str, error_type: str, code: str, message: str) -> str:
    """Return a short name of the cause: the same for two deaths that differ in ids and numbers."""
    cause = _nameless(code) if " " in code else code.upper()  # a code may be a whole sentence
    facts = "\n".join((task, service, error_type, cause, _nameless(message)))
    return sha256(facts.encode("utf-8", "backslashreplace")).hexdigest()[:12]


# What varies between two messages of one cause, and what stands for it. The order counts.
VARIABLE = (
    (re.compile(r"\w+://[^\s\"'<>]+"), "<url>"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), "<email>"),
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|«[^»]*»|“[^”]*”|`[^`]*`"), "<text>"),
    (re.compile(r"(?=[\w-]*\d)(?=[\w-]*[^\W\d])[\w-]{6,}"), "<id>"),
    (re.compile(r"\d+([.,:]\d+)*"), "<n>"),
    (re.compile(r"\s+"), " "),
)


def _nameless(message: str) -> str:
    for pattern, placeholder in VARIABLE:
        message = pattern.sub(placeholder, message)
    return message.strip().lower()[:300]  # beyond that it is an upstream's page, not a message


def _seconds(at: datetime | None) -> str:
    return "" if at is None else f"{at.timestamp():.6f}"


def moment(text: str) -> datetime | None:
    """Read unix seconds, as the script writes them; empty is None."""
    return datetime.fromtimestamp(float(text), UTC) if text else None
