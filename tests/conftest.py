"""The servers that tests run against: fixtures, found by their names."""

from __future__ import annotations

pytest_plugins = ["fixtures.databases", "fixtures.redis_servers"]
