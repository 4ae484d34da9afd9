"""The append-only record of everything that really happened at a simulated upstream."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO


@dataclass(slots=True)
class Entry:
    """One call as the upstream saw it.

    *at* is the upstream's own clock; *key* names the command inside a batch; *about* holds the
    ids the call was about; *effect* is empty when nothing changed. *status* stays 0 and *answered*
    false until the client has got its answer, for ever if it never does.
    """

    n: int
    at: float
    request: int
    method: str
    inside_batch: bool = False
    key: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    effect: str = ""
    error: str | None = None
    answered: bool = False
    status: int = 0


class Journal:
    """All entries in memory, the settled ones also as JSON lines in *path*."""

    def __init__(self, path: Path | None = None) -> None:
        self.entries: list[Entry] = []
        self.by_method: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO | None = None

    def record(
        self,
        *,
        at: float,
        request: int,
        method: str,
        key: str | None = None,
        about: Mapping[str, str] | None = None,
        digest: str = "",
    ) -> Entry:
        """Open the entry of one call; *key* is given only for a command inside a batch."""
        entry = Entry(
            n=len(self.entries) + 1,
            at=at,
            request=request,
            method=method,
            inside_batch=key is not None,
            key=key or "",
            about=about or {},
            digest=digest,
        )
        self.entries.append(entry)
        self.by_method[method] += 1
        return entry

    def settle(self, entries: Sequence[Entry], *, status: int, answered: bool) -> None:
        """Close the entries of one request: what went out, and whether it reached the client."""
        self.by_status[str(status) if status else "no answer"] += 1
        for entry in entries:
            entry.status = status
            entry.answered = answered
        self._write([asdict(entry) for entry in entries])

    def since(self, after: int) -> list[dict[str, Any]]:
        """Return the entries whose *n* is greater than *after*."""
        return [asdict(entry) for entry in self.entries[max(after, 0) :]]

    def clear(self, at: float) -> None:
        """Forget everything in memory; the file keeps its lines and gets a mark."""
        self.entries.clear()
        self.by_method.clear()
        self.by_status.clear()
        self._write([{"reset": at}])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        for line in lines:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


def digest(params: Mapping[str, Any]) -> str:
    """Return a short print of the parameters: equal calls have equal ones."""
    text = json.dumps(params, sort_keys=True, default=str)
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()
