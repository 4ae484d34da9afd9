"""The archive of dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "archived_letters",
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("failed_at", Moment, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("letter", sa.Text(), nullable=False),
        sa.Column("archived_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("message_id", "failed_at", name=op.f("pk_archived_letters")),
    )
    op.create_index(
        "ix_archived_letters_failed_at", "archived_letters", ["failed_at", "message_id"]
    )
    op.create_index("ix_archived_letters_task", "archived_letters", ["task", "failed_at"])
    op.create_index(
        "ix_archived_letters_fingerprint", "archived_letters", ["fingerprint", "failed_at"]
    )
