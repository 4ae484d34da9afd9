"""The second door: `celery -A tasks dlq|parked|gate|hold|effects|…`.

Exit codes: 0 done, 1 found problems (an unknown id, nothing to do it to), 2 wrong use.
"""

from __future__ import annotations

from admin.cli.bookmarks import bookmarks
from admin.cli.credits import credits
from admin.cli.database import db
from admin.cli.dead_letters import dlq
from admin.cli.doctor import doctor
from admin.cli.effects import effects
from admin.cli.gates import gate
from admin.cli.holds import hold
from admin.cli.parked import parked
from admin.cli.videos import videos

__all__ = [
    "bookmarks",
    "credits",
    "db",
    "dlq",
    "doctor",
    "effects",
    "gate",
    "hold",
    "parked",
    "videos",
]
