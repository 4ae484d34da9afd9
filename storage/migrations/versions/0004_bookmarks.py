"""Credentials of users, bookmarks and crawls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "credentials",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("tokens", sa.Text(), nullable=False),
        sa.Column("expires_at", Moment),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("lost", sa.Text()),
        sa.Column("renewing_since", Moment),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("service", "subject", name=op.f("pk_credentials")),
    )
    op.create_table(
        "bookmarks",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("tweet_id", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("author_id", sa.Text()),
        sa.Column("posted_at", Moment),
        sa.Column("raw", sa.JSON(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("seen_in", sa.Text(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "tweet_id", name=op.f("pk_bookmarks")),
    )
    op.create_table(
        "crawl_sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job", sa.Text(), nullable=False),
        sa.Column("page_token", sa.Text()),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("in_page", sa.Integer(), nullable=False),
        sa.Column("stored", sa.Integer(), nullable=False),
        sa.Column("known", sa.Integer(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("pages", sa.Integer(), nullable=False),
        sa.Column("waits", sa.Integer(), nullable=False),
        sa.Column("waited", sa.Double(), nullable=False),
        sa.Column("last_wait", sa.Text()),
        sa.Column("landmark", sa.Text()),
        sa.Column("asked_at", Moment),
        sa.Column("begun_at", Moment, nullable=False),
        sa.Column("updated_at", Moment, nullable=False),
        sa.Column("ended_at", Moment),
        sa.CheckConstraint(
            "state IN ('running', 'cancelling', 'cancelled', 'completed')",
            name=op.f("ck_crawl_sessions_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_crawl_sessions")),
    )
    op.create_index("ix_crawl_sessions_user_id", "crawl_sessions", ["user_id", "begun_at"])
    open_ones = sa.text("state IN ('running', 'cancelling')")
    op.create_index(
        "uq_crawl_sessions_open",
        "crawl_sessions",
        ["user_id"],
        unique=True,
        sqlite_where=open_ones,
        postgresql_where=open_ones,
    )
    op.create_table(
        "skipped_bookmarks",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("tweet_id", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("raw", sa.JSON()),
        sa.Column("page", sa.Integer(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("session_id", "key", name=op.f("pk_skipped_bookmarks")),
    )
    op.create_index(op.f("ix_skipped_bookmarks_user_id"), "skipped_bookmarks", ["user_id"])
