"""Videos, their generations, and chats that have moved."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "videos",
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("chat_id", sa.Text(), nullable=False),
        sa.Column("image_url", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("locale", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("replays", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Text()),
        sa.Column("result_url", sa.Text()),
        sa.Column("sender", sa.Text()),
        sa.Column("doubts", sa.JSON(), nullable=False),
        sa.Column("replayed", sa.JSON(), nullable=False),
        sa.Column("message_id", sa.Text()),
        sa.Column("file_id", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.Column("begun_at", Moment, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.CheckConstraint(
            "state IN ('paid', 'ready', 'sending', 'sent', 'unconfirmed', 'refunded')",
            name=op.f("ck_videos_state"),
        ),
        sa.PrimaryKeyConstraint("order_id", name=op.f("pk_videos")),
        sa.UniqueConstraint("token", name=op.f("uq_videos_token")),
    )
    op.create_index(op.f("ix_videos_user_id"), "videos", ["user_id"])
    op.create_index(op.f("ix_videos_state"), "videos", ["state"])
    op.create_table(
        "generations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("order_id", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text()),
        sa.Column("asked_at", Moment),
        sa.Column("failure", sa.Text()),
        sa.Column("refused_for", sa.Text()),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_generations")),
        sa.UniqueConstraint(
            "order_id", "round", "number", name=op.f("uq_generations_order_id_round_number")
        ),
    )
    op.create_table(
        "moved_chats",
        sa.Column("chat_id", sa.Text(), nullable=False),
        sa.Column("moved_to", sa.Text(), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("chat_id", name=op.f("pk_moved_chats")),
    )
