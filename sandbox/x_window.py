"""The rate limit of one user at the simulated X API, and the headers that tell of it."""

from __future__ import annotations

import math


class Window:
    """At most *limit* requests within *seconds* of the first one, 0 for no limit.

    Unlike a sliding window it gives everything back at once, at the second that `reset` names.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._taken = 0
        self._reset = 0

    def take(self, now: float) -> bool:
        """Count one request, or refuse it; what is refused does not count."""
        if not self._limit:
            return True
        if now >= self._reset:
            self._taken = 0
            # In whole seconds, upwards: a caller who waits until then is let in.
            self._reset = math.ceil(now + self._seconds)
        if self._taken >= self._limit:
            return False
        self._taken += 1
        return True

    def headers(self) -> dict[str, str]:
        """Return the headers of an answer (UPSTREAMS 4); none without a limit."""
        if not self._limit:
            return {}
        return limit_headers(self._limit, self._limit - self._taken, self._reset)


def limit_headers(limit: int, remaining: int, reset: int) -> dict[str, str]:
    """Return the three headers; *reset* is in unix seconds."""
    return {
        "x-rate-limit-limit": str(limit),
        "x-rate-limit-remaining": str(remaining),
        "x-rate-limit-reset": str(reset),
    }
