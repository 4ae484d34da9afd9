"""What a job has been through: the part of its message headers that decisions are made from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, TypeGuard

from classifiers.errors import JobError

REMEMBERED = 50  # entries kept; beyond that the oldest but the first go, so a message stays small
LONGEST_CODE = 100  # characters; an upstream's code is a word
LONGEST_DETAIL = 200  # characters; the dead letter holds the last one whole
LARGEST = 1e12  # times or seconds; beyond that is what no job has been through


@dataclass(frozen=True, slots=True)
class History:
    """The attempts of one job so far.

    *spent* counts retries by policy row, *waited* sums by policy row the seconds parked without
    spending one, *entries* lists what happened, oldest first: `{error, code, service, detail, at,
    delay, action}`. A wait that repeats itself is one entry, with its number of `times`, `since`
    when, and the sum of its delays: a video that is asked for forty times has no long story.
    """

    spent: Mapping[str, int] = field(default_factory=dict)
    waited: Mapping[str, float] = field(default_factory=dict)
    entries: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any] | None) -> History:
        """Read the headers `spent`, `waited` and `history` of a message.

        What is absent or makes no sense counts as none: the last stop of a job reads them too,
        whoever has sent it, and must not fail.
        """
        headers = headers or {}
        entries = headers.get("history")
        return cls(
            spent={row: int(count) for row, count in _numbers(headers.get("spent"))},
            waited=dict(_numbers(headers.get("waited"))),
            entries=tuple(
                entry
                for entry in (entries if isinstance(entries, list | tuple) else ())
                if isinstance(entry, Mapping)
            ),
        )

    def to_headers(self) -> dict[str, Any]:
        """Return the headers that `from_headers` reads."""
        return {
            "spent": dict(self.spent),
            "waited": dict(self.waited),
            "history": list(self.entries),
        }

    def after(
        self,
        error: JobError,
        *,
        action: str,
        delay: float,
        spends: str,
        waits: bool,
        at: float,
        said: str = "",
    ) -> History:
        """Return the history with one more failure, at unix time *at*.

        *said* are its words without secrets: once they are cut, half of one would be known by none.
        """
        entry = {
            "error": type(error).__name__,
            "code": error.code[:LONGEST_CODE],
            "service": error.service,
            "detail": (said or str(error))[:LONGEST_DETAIL],
            "at": round(at, 3),
            "delay": round(delay, 3),
            "action": action,
        }
        entries = (*self.entries, entry)
        if waits and self.entries and _repeats(self.entries[-1], entry):
            entries = (*self.entries[:-1], _together(self.entries[-1], entry))
        if len(entries) > REMEMBERED:
            entries = (entries[0], *entries[-REMEMBERED + 1 :])
        if waits:
            waited = {**self.waited, spends: self.waited.get(spends, 0.0) + delay}
            return replace(self, waited=waited, entries=entries)
        spent = {**self.spent, spends: self.spent.get(spends, 0) + 1}
        return replace(self, spent=spent, entries=entries)

    def rested(self) -> History:
        """Return the history with all attempts given back: the job has got on since."""
        return replace(self, spent={})

    def times(self, error: str) -> int:
        """How often in a row, up to now, it was this *error*."""
        last = takewhile(lambda entry: entry.get("error") == error, reversed(self.entries))
        return sum(_times(entry) for entry in last)

    @property
    def attempts(self) -> int:
        """How many retries were spent, whatever for."""
        return sum(self.spent.values())

    def waited_in_all(self, *, but: Collection[str] = ()) -> float:
        """Return the seconds parked in all, without those of the rows in *but*."""
        return sum(seconds for row, seconds in self.waited.items() if row not in but)


def _repeats(last: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    same = ("error", "code", "service", "action")
    return all(last.get(name) == entry[name] for name in same)


def _together(last: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the newer entry, which stands for both."""
    delay = last.get("delay")
    before = delay if _counts(delay) else 0.0
    return {
        **entry,
        "since": last.get("since", last.get("at")),
        "times": _times(last) + 1,
        "delay": round(before + entry["delay"], 3),
    }


def _times(entry: Mapping[str, Any]) -> int:
    times = entry.get("times")
    return int(times) if _counts(times) and times >= 1 else 1


def _numbers(counts: Any) -> Iterator[tuple[str, float]]:
    for name, count in counts.items() if isinstance(counts, Mapping) else ():
        if _counts(count):
            yield str(name), count


def _counts(value: Any) -> TypeGuard[float]:
    """Whether it counts something; a NaN or a negative number would make a job immortal."""
    return isinstance(value, int | float) and 0 <= value <= LARGEST
