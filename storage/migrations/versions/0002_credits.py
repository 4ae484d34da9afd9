"""Credits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

Moment = sa.DateTime(timezone=True)
Money = sa.BigInteger  # hundredths
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "credit_balances",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("balance", Money(), nullable=False),
        sa.CheckConstraint("balance >= 0", name=op.f("ck_credit_balances_balance")),
        sa.PrimaryKeyConstraint("account", name=op.f("pk_credit_balances")),
    )
    op.create_table(
        "credit_transfers",
        sa.Column("id", Number, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("debit", sa.Text(), nullable=False),
        sa.Column("credit", sa.Text(), nullable=False),
        sa.Column("amount", Money(), nullable=False),
        sa.Column("balance_after", Money(), nullable=False),
        sa.Column("refunds", sa.Text()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", Moment, nullable=False),
        sa.CheckConstraint("amount >= 0", name=op.f("ck_credit_transfers_amount")),
        sa.CheckConstraint(
            "(debit = 'issued' AND substr(credit, 1, 5) = 'user:' AND refunds IS NULL)"
            " OR (substr(debit, 1, 5) = 'user:' AND credit = 'spent' AND refunds IS NULL)"
            " OR (debit = 'spent' AND substr(credit, 1, 5) = 'user:' AND refunds IS NOT NULL)",
            name=op.f("ck_credit_transfers_kind"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_transfers")),
        sa.UniqueConstraint("key", name=op.f("uq_credit_transfers_key")),
        sa.UniqueConstraint("refunds", name=op.f("uq_credit_transfers_refunds")),
        sa.UniqueConstraint("key", "debit", "amount", name=op.f("uq_credit_transfers_charge")),
        sa.ForeignKeyConstraint(
            ["refunds", "credit", "amount"],
            ["credit_transfers.key", "credit_transfers.debit", "credit_transfers.amount"],
            name=op.f("fk_credit_transfers_refunds"),
        ),
    )
    op.create_index("ix_credit_transfers_debit", "credit_transfers", ["debit", "id"])
    op.create_index("ix_credit_transfers_credit", "credit_transfers", ["credit", "id"])
