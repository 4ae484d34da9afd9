"""Effects, leases and links."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "effects",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("doubt", sa.Boolean(), nullable=False),
        sa.Column("lease_until", Moment),
        sa.Column("called_until", Moment),
        sa.Column("result", sa.JSON()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.CheckConstraint(
            "state IN ('intended', 'done', 'unknown', 'undone')", name=op.f("ck_effects_state")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_effects")),
    )
    op.create_table(
        "leases",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("until", Moment, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_leases")),
    )
    op.create_table(
        "links",
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("local_id", sa.Text(), nullable=False),
        sa.Column("remote_id", sa.Text(), nullable=False),
        sa.Column("version", Moment),
        sa.Column("accepted", Moment),
        sa.Column("digest", sa.Text()),
        sa.Column("given", sa.JSON()),
        sa.Column("awaiting", sa.Text()),
        sa.Column("gone", sa.Boolean(), nullable=False),
        sa.Column("remote", sa.JSON()),
        sa.Column("seen_at", Moment),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("entity", "local_id", name=op.f("pk_links")),
    )
    op.create_index("ix_links_remote", "links", ["entity", "remote_id"])
    op.create_index(op.f("ix_links_awaiting"), "links", ["awaiting"])
