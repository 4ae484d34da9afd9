"""Slots: what any number of processes would do, and only one of them does, once in a while."""

from __future__ import annotations

from config.settings import settings
from reliability.connection import redis
from reliability.keys import SLOT


def claim(what: str, slot: int, seconds: float) -> bool:
    """Whether slot number *slot* of *what*, which takes *seconds*, is ours and nobody else's.

    Slots are numbered by the clocks of those who claim them: a claim stands for two of them, so
    that a clock may be wrong by one.

    Raises:
        RedisError: Redis does not answer, or takes no writes. Nobody may have it then.
    """
    key = f"{settings().redis_stream_prefix}{SLOT}{what}:{slot}"
    return bool(redis().set(key, "1", nx=True, px=max(1, round(2_000 * seconds))))
