"""How we reach Redis: one client per process, for everything of ours but the queues."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from redis.sentinel import Sentinel

from config.settings import settings

__all__ = ["RedisError", "connect", "memory", "redis", "redis_bytes"]

# A dead server is noticed in seconds; none of our scripts runs for more than milliseconds.
TIMEOUTS = {"socket_connect_timeout": 5.0, "socket_timeout": 10.0, "health_check_interval": 25}


@lru_cache(maxsize=1)
def redis() -> Redis:
    """The client of this process, with text answers."""
    config = settings()
    return connect(config.redis_url, config.redis_sentinel_master, config.valkey_max_connections)


@lru_cache(maxsize=1)
def redis_bytes() -> Redis:
    """The client of this process for what need not be text."""
    config = settings()
    return connect(config.redis_url, config.redis_sentinel_master, text=False)


def memory() -> tuple[int | None, int | None]:
    """Return the bytes that Redis uses and may use: without `maxmemory`, those of its host.

    None for what it does not tell: a managed one may refuse, or leave things out.
    """
    try:
        told: Mapping[str, Any] = redis().info("memory")
    except ResponseError:
        told = {}
    used, limit = told.get("used_memory"), told.get("maxmemory")
    if limit == 0:
        limit = told.get("total_system_memory")
    return _size(used), _size(limit)


def _size(told: object) -> int | None:
    return told if isinstance(told, int) and told else None


def connect(
    url: str, master: str = "mymaster", max_connections: int = 200, *, text: bool = True
) -> Redis:
    """Return a client for a `redis://`, `rediss://`, `unix://` or `sentinel://` URL."""
    if not url.startswith("sentinel://"):
        return Redis.from_url(
            url, decode_responses=text, max_connections=max_connections, **TIMEOUTS
        )
    nodes = [urlsplit(node) for node in url.split(";")]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it so
        [(node.hostname, node.port or 26379) for node in nodes],
        sentinel_kwargs={"socket_connect_timeout": 2.0, "socket_timeout": 2.0},
    )
    client: Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        master,
        db=int(nodes[-1].path.strip("/") or 0),
        password=next((node.password for node in nodes if node.password), None),
        decode_responses=text,
        **TIMEOUTS,
    )
    return client
