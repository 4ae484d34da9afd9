"""Effects that are open: found without a look at those that are done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

OPEN = sa.text("state IN ('intended', 'unknown')")


def upgrade() -> None:
    op.create_index(
        "ix_effects_open", "effects", ["updated_at"], sqlite_where=OPEN, postgresql_where=OPEN
    )
