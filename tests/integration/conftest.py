"""The servers that integration tests run against."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.databases import (  # noqa: F401  # fixtures, found by their names
    database,
    empty_database,
    postgresql,
)
