"""The tables, as one piece of metadata; statements are written where they belong."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class Moment(TypeDecorator[datetime]):
    """An aware datetime; refuses a naive one. SQLite has no zones, so it stores UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a datetime without a time zone: {value!r}")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """An exact amount with two places, stored as hundredths; refuses a third place.

    SQLite has no decimals: its NUMERIC is a float.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        if value is None:
            return None
        hundredths = int(value.scaleb(2))
        if hundredths != value.scaleb(2):
            raise ValueError(f"an amount with more than two places: {value}")
        return hundredths

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002
        return None if value is None else Decimal(value).scaleb(-2)  # a sum comes as a Decimal


class Base(DeclarativeBase):
    # Constraints need names of ours: Alembic cannot change a nameless one on SQLite.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # Plain JSON, not JSONB: nothing is looked up inside, and JSONB refuses a \u0000 in a text.
    type_annotation_map = {  # noqa: RUF012  # SQLAlchemy's own signature
        datetime: Moment(),
        Decimal: Money(),
        str: Text(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


# In so many words, also in a query: a database uses such an index only where it reads the same.
EFFECT_OPEN = text("state IN ('intended', 'unknown')")


class EffectRow(Base):
    """One effect on the outside world. What the columns promise is told in `storage.effects`."""

    __tablename__ = "effects"
    __table_args__ = (
        CheckConstraint("state IN ('intended', 'done', 'unknown', 'undone')", name="state"),
        Index(  # those that a person may have to settle: few of millions
            "ix_effects_open",
            "updated_at",
            sqlite_where=EFFECT_OPEN,
            postgresql_where=EFFECT_OPEN,
        ),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    owner: Mapped[str]
    runs: Mapped[int]
    doubt: Mapped[bool]
    lease_until: Mapped[datetime | None]
    called_until: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class LeaseRow(Base):
    """Who may work on something alone, and until when."""

    __tablename__ = "leases"

    key: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    token: Mapped[str]
    until: Mapped[datetime]


class SagaRow(Base):
    """Several effects that belong together. What the columns promise is told in `storage.sagas`."""

    __tablename__ = "sagas"
    __table_args__ = (
        CheckConstraint("state IN ('going', 'done', 'undoing', 'undone')", name="state"),
    )

    key: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    round: Mapped[int]
    job: Mapped[str]
    replays: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class LinkRow(Base):
    """One thing of ours and its twin in the portal."""

    __tablename__ = "links"
    # Not unique: two of our users with one e-mail address share a contact.
    __table_args__ = (Index("ix_links_remote", "entity", "remote_id"),)

    entity: Mapped[str] = mapped_column(primary_key=True)
    local_id: Mapped[str] = mapped_column(primary_key=True)
    remote_id: Mapped[str]
    version: Mapped[datetime | None]
    accepted: Mapped[datetime | None]
    digest: Mapped[str | None]
    given: Mapped[list[str] | None]
    awaiting: Mapped[str | None] = mapped_column(index=True)
    gone: Mapped[bool]
    remote: Mapped[dict[str, Any] | None]
    seen_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class BalanceRow(Base):
    """What an account of a user holds; moves with every transfer, in its transaction."""

    __tablename__ = "credit_balances"
    __table_args__ = (CheckConstraint("balance >= 0", name="balance"),)

    account: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[Decimal]


class TransferRow(Base):
    """One movement of credits, with both its entries. The rules are told in `storage.credits`."""

    __tablename__ = "credit_transfers"
    __table_args__ = (
        CheckConstraint("amount >= 0", name="amount"),
        CheckConstraint(
            "(debit = 'issued' AND substr(credit, 1, 5) = 'user:' AND refunds IS NULL)"
            " OR (substr(debit, 1, 5) = 'user:' AND credit = 'spent' AND refunds IS NULL)"
            " OR (debit = 'spent' AND substr(credit, 1, 5) = 'user:' AND refunds IS NOT NULL)",
            name="kind",
        ),
        UniqueConstraint("key"),
        UniqueConstraint("refunds"),
        # A refund gives back what its charge has taken, to the account it was taken from.
        UniqueConstraint("key", "debit", "amount", name="uq_credit_transfers_charge"),
        ForeignKeyConstraint(
            ["refunds", "credit", "amount"],
            ["credit_transfers.key", "credit_transfers.debit", "credit_transfers.amount"],
        ),
        Index("ix_credit_transfers_debit", "debit", "id"),
        Index("ix_credit_transfers_credit", "credit", "id"),
    )

    # SQLite counts up only what it calls INTEGER, which has 64 bits there.
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True
    )
    key: Mapped[str]
    debit: Mapped[str]
    credit: Mapped[str]
    amount: Mapped[Decimal]
    balance_after: Mapped[Decimal]
    refunds: Mapped[str | None]
    reason: Mapped[str]
    at: Mapped[datetime]


class VideoRow(Base):
    """One video that somebody pays for. What the columns promise is told in `storage.videos`."""

    __tablename__ = "videos"
    __table_args__ = (
        CheckConstraint(
            "state IN ('paid', 'ready', 'sending', 'sent', 'unconfirmed', 'refunded')",
            name="state",
        ),
    )

    order_id: Mapped[str] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str] = mapped_column(index=True)
    chat_id: Mapped[str]
    image_url: Mapped[str]
    prompt: Mapped[str]
    cost: Mapped[Decimal]
    locale: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    round: Mapped[int]
    job: Mapped[str]
    replays: Mapped[int]
    generation: Mapped[str | None]
    result_url: Mapped[str | None]
    sender: Mapped[str | None]
    doubts: Mapped[list[str]]
    replayed: Mapped[list[str]]
    message_id: Mapped[str | None]
    file_id: Mapped[str | None]
    reason: Mapped[str | None]
    begun_at: Mapped[datetime]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class GenerationRow(Base):
    """One try to have a video made; its id is in the address that KIE calls back."""

    __tablename__ = "generations"
    __table_args__ = (UniqueConstraint("order_id", "round", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    round: Mapped[int]
    number: Mapped[int]
    model: Mapped[str]
    task_id: Mapped[str | None]
    asked_at: Mapped[datetime | None]
    failure: Mapped[str | None]
    refused_for: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ChatRow(Base):
    """A chat that has moved to another id (UPSTREAMS 3.3: a group became a supergroup)."""

    __tablename__ = "moved_chats"

    chat_id: Mapped[str] = mapped_column(primary_key=True)
    moved_to: Mapped[str]
    at: Mapped[datetime]


class CredentialRow(Base):
    """What a user of an upstream has given us, sealed. Told in `storage.credentials`."""

    __tablename__ = "credentials"

    service: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[str]
    expires_at: Mapped[datetime | None]
    version: Mapped[int]
    lost: Mapped[str | None]
    renewing_since: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class BookmarkRow(Base):
    """A post that a user has bookmarked; which crawl found it first, and which saw it last."""

    __tablename__ = "bookmarks"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    tweet_id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    author_id: Mapped[str | None]
    posted_at: Mapped[datetime | None]
    raw: Mapped[dict[str, Any]]
    session: Mapped[str]
    seen_in: Mapped[str]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


_OPEN = text("state IN ('running', 'cancelling')")


class CrawlRow(Base):
    """One crawl and how far it has come. Told in `storage.bookmarks`."""

    __tablename__ = "crawl_sessions"
    __table_args__ = (
        CheckConstraint(
            "state IN ('running', 'cancelling', 'cancelled', 'completed')", name="state"
        ),
        Index("ix_crawl_sessions_user_id", "user_id", "begun_at"),
        Index(  # one of a user at a time
            "uq_crawl_sessions_open",
            "user_id",
            unique=True,
            sqlite_where=_OPEN,
            postgresql_where=_OPEN,
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    state: Mapped[str]
    job: Mapped[str]
    page_token: Mapped[str | None]
    page: Mapped[int]
    in_page: Mapped[int]
    stored: Mapped[int]
    known: Mapped[int]
    skipped: Mapped[dict[str, Any]]
    pages: Mapped[int]
    waits: Mapped[int]
    waited: Mapped[float]
    last_wait: Mapped[str | None]
    landmark: Mapped[str | None]
    asked_at: Mapped[datetime | None]
    begun_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class SkippedRow(Base):
    """An item of a crawl that could not be stored, with all that there was of it."""

    __tablename__ = "skipped_bookmarks"

    session_id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(index=True)
    tweet_id: Mapped[str | None]
    reason: Mapped[str]
    detail: Mapped[str]
    raw: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    page: Mapped[int]
    created_at: Mapped[datetime]


class ArchiveRow(Base):
    """A dead letter that has left Redis. What the columns promise is told in `storage.archive`."""

    __tablename__ = "archived_letters"
    __table_args__ = (
        Index("ix_archived_letters_failed_at", "failed_at", "message_id"),
        Index("ix_archived_letters_task", "task", "failed_at"),
        Index("ix_archived_letters_fingerprint", "fingerprint", "failed_at"),
    )

    message_id: Mapped[str] = mapped_column(primary_key=True)
    failed_at: Mapped[datetime] = mapped_column(primary_key=True)
    state: Mapped[str]
    task: Mapped[str]
    error_type: Mapped[str]
    fingerprint: Mapped[str]
    letter: Mapped[str]
    archived_at: Mapped[datetime]


effects = cast("Table", EffectRow.__table__)
leases = cast("Table", LeaseRow.__table__)
sagas = cast("Table", SagaRow.__table__)
links = cast("Table", LinkRow.__table__)
credit_balances = cast("Table", BalanceRow.__table__)
credit_transfers = cast("Table", TransferRow.__table__)
videos = cast("Table", VideoRow.__table__)
generations = cast("Table", GenerationRow.__table__)
moved_chats = cast("Table", ChatRow.__table__)
credentials = cast("Table", CredentialRow.__table__)
bookmarks = cast("Table", BookmarkRow.__table__)
crawl_sessions = cast("Table", CrawlRow.__table__)
skipped_bookmarks = cast("Table", SkippedRow.__table__)
archived_letters = cast("Table", ArchiveRow.__table__)
