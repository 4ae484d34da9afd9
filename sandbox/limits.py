"""How upstreams limit their callers: leaky buckets, sliding windows, and operating time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# UPSTREAMS 1.2: ten one-minute buckets; each leaves the sum ten minutes after its first call.
MINUTE = 60.0
WINDOW = 600.0


class LeakyBucket:
    """A counter that leaks *rate* a second; what would lift it above *burst* is refused."""

    def __init__(self, rate: float, burst: float) -> None:
        self.level = 0.0
        self.highest = 0.0
        self._rate = rate
        self._burst = burst
        self._leaked_at: float | None = None

    def take(self, now: float) -> bool:
        """Count one request; a refused one does not raise the counter."""
        passed = 0.0 if self._leaked_at is None else max(0.0, now - self._leaked_at)
        self._leaked_at = now
        self.level = max(0.0, self.level - passed * self._rate)
        if self.level + 1 > self._burst:
            return False
        self.level += 1
        self.highest = max(self.highest, self.level)
        return True


@dataclass(slots=True)
class _Minute:
    number: int
    first_call: float
    seconds: float


class OperatingTime:
    """Seconds of work per method; *limit* 0 switches the check off, as on-premise portals do."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._minutes: dict[str, deque[_Minute]] = {}

    def allows(self, method: str, now: float) -> bool:
        """Say whether a call may start: the one that crosses the limit still finishes."""
        minutes = self._current(method, now)
        return self._limit <= 0 or sum(minute.seconds for minute in minutes) <= self._limit

    def spend(self, method: str, seconds: float, now: float) -> tuple[float, int]:
        """Add one call's time; return `time.operating` and `time.operating_reset_at` (unix)."""
        minutes = self._current(method, now)
        number = int(now // MINUTE)
        if not minutes or minutes[-1].number != number:
            minutes.append(_Minute(number, now, 0.0))
        minutes[-1].seconds += seconds
        return sum(minute.seconds for minute in minutes), int(minutes[0].first_call + WINDOW)

    def _current(self, method: str, now: float) -> deque[_Minute]:
        minutes = self._minutes.setdefault(method, deque())
        # In whole seconds, so that a caller who waits until `operating_reset_at` is let in.
        while minutes and int(minutes[0].first_call + WINDOW) <= now:
            minutes.popleft()
        return minutes


class SlidingWindow:
    """At most *limit* in any *seconds*, 0 for no limit; what is refused does not count."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.highest = 0
        self._limit = limit
        self._seconds = seconds
        self._taken: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Count one request, or refuse it."""
        while self._taken and self._taken[0] <= now - self._seconds:
            self._taken.popleft()
        if self._limit and len(self._taken) >= self._limit:
            return False
        self._taken.append(now)
        self.highest = max(self.highest, len(self._taken))
        return True
