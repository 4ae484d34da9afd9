"""The tables, as one piece of metadata; statements are written where they belong."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import JSON, CheckConstraint, DateTime, Index, MetaData, Table, Text
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
        str: Text(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
    }


class EffectRow(Base):
    """One effect on the outside world. What the columns promise is told in `storage.effects`."""

    __tablename__ = "effects"
    __table_args__ = (
        CheckConstraint("state IN ('intended', 'done', 'unknown', 'undone')", name="state"),
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


effects = cast("Table", EffectRow.__table__)
leases = cast("Table", LeaseRow.__table__)
links = cast("Table", LinkRow.__table__)
