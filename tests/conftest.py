"""The servers that tests run against: fixtures, found by their names."""

from __future__ import annotations

import hypothesis
import pytest

# A busy machine is no failure: no test asserts on time.
hypothesis.settings.register_profile("perennial", deadline=None)
hypothesis.settings.load_profile("perennial")

pytest_plugins = [
    "fixtures.api",
    "fixtures.application",
    "fixtures.brokers",
    "fixtures.databases",
    "fixtures.ingest",
    "fixtures.redis_servers",
]

# They hold assertions that should say as much as those of a test.
pytest.register_assert_rewrite("acceptance", "fixtures")
