"""A sample application: an online shop that tells Bitrix24 of its orders, and sells videos of them.

It also reads what its customers have bookmarked at X.

SHOP_DATABASE=var/shop.db uvicorn --factory sandbox.shop:create_app
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

from fastapi import Body, FastAPI, HTTPException
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from sqlalchemy import JSON, Engine, create_engine, delete, event, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from classifiers.errors import InvalidData

Fields = Annotated[dict[str, Any], Body()]
_TICK = timedelta(microseconds=1)


class Base(DeclarativeBase):
    """Rows with a text key, and `updated_at` as ISO 8601 in UTC with microseconds."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {dict[str, Any]: JSON}
    # The shop's own names and Bitrix24's for the same thing; other names pass on as they are.
    names: ClassVar[Mapping[str, str]] = {}

    key: Mapped[str] = mapped_column(primary_key=True, sort_order=-1)
    extra: Mapped[dict[str, Any]] = mapped_column(default=dict)
    updated_at: Mapped[str]

    def values(self) -> dict[str, Any]:
        return {column.key: getattr(self, column.key) for column in self.__table__.columns}


class Order(Base):
    """What a customer bought; the key is the order id."""

    __tablename__ = "orders"
    names = {  # noqa: RUF012 - declared by Base
        "title": "TITLE",
        "amount": "OPPORTUNITY",
        "currency": "CURRENCY_ID",
        "stage": "STAGE_ID",
    }
    title: Mapped[str | None]
    amount: Mapped[str | None]
    currency: Mapped[str | None]
    stage: Mapped[str | None]
    user_id: Mapped[str | None]


class Profile(Base):
    """Who a customer is; the key is the user id."""

    __tablename__ = "profiles"
    names = {"name": "NAME", "email": "EMAIL", "phone": "PHONE"}  # noqa: RUF012 - as above
    name: Mapped[str | None]
    email: Mapped[str | None]
    phone: Mapped[str | None]


class VideoOrder(Base):
    """A video that a customer has ordered in the shop's bot; the key is the order id."""

    __tablename__ = "videos"
    user_id: Mapped[str | None]
    chat_id: Mapped[str | None]
    image_url: Mapped[str | None]
    prompt: Mapped[str | None]
    cost: Mapped[str | None]
    locale: Mapped[str | None]


class NewOrder(BaseModel):
    order_id: str | int
    title: str
    amount: str | int | float | None = None
    currency: str = "RUB"
    user_id: str | int | None = None


class NewProfile(BaseModel):
    user_id: str | int
    name: str
    email: str | None = None
    phone: str | None = None


class NewVideo(BaseModel):
    order_id: str | int
    user_id: str | int
    chat_id: str | int
    image_url: str
    prompt: str
    cost: str | int | float = 1
    locale: str = "ru"


class NewCrawl(BaseModel):
    user_id: str | int


@dataclass(frozen=True, slots=True)
class Change:
    """What one request committed: the row as it was (None when there was none), and as it is."""

    model: type[Base]
    key: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]

    @property
    def updated_at(self) -> str:
        """When it was committed."""
        moment: str = self.after["updated_at"]
        return moment

    @property
    def snapshot(self) -> dict[str, Any]:
        """The whole row by Bitrix24's names, as an update sends it.

        Of two updates the newer one counts, whole: one that sent only what has changed would lose
        the other's changes when it overtakes it.
        """
        names = self.model.names
        known = {names[name]: self.after[name] for name in names if self.after[name] is not None}
        return {**known, **self.after["extra"]}


class Store:
    """The shop's database: every write commits before anybody hears of it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = _open(path)
        Base.metadata.create_all(self._engine)

    def create(self, model: type[Base], key: str, values: Mapping[str, Any]) -> Change:
        """Insert a row; the same request again is fine, another row under its key is not (409)."""
        with Session(self._engine) as session, session.begin():
            row = session.get(model, key)
            if row is None:
                row = model(key=key, updated_at=_stamp(None), extra={}, **_texts(values))
                session.add(row)
                return Change(model, key, None, row.values())
            before = row.values()
            if any(before[name] != value for name, value in _texts(values).items()):
                raise HTTPException(409, f"{key} exists already and is different")
            return Change(model, key, before, before)

    def change(self, model: type[Base], key: str, values: Mapping[str, Any]) -> Change:
        """Update a row; what the shop has no column for goes to `extra`."""
        own = {name: value for name, value in values.items() if name in model.names}
        with Session(self._engine) as session, session.begin():
            row = session.get(model, key)
            if row is None:
                raise HTTPException(404, f"{key} is not known")
            before = row.values()
            for name, value in _texts(own).items():
                setattr(row, name, value)
            row.extra = row.extra | {name: values[name] for name in values.keys() - own.keys()}
            row.updated_at = _stamp(row.updated_at)
            return Change(model, key, before, row.values())

    def undo(self, change: Change) -> None:
        """Take a change back, unless somebody has changed the row since."""
        model = change.model
        ours = (model.key == change.key, model.updated_at == change.updated_at)
        with Session(self._engine) as session, session.begin():
            if change.before is None:
                session.execute(delete(model).where(*ours))
            else:
                session.execute(update(model).where(*ours).values(**change.before))

    def read(self, model: type[Base], key: str) -> dict[str, Any] | None:
        with Session(self._engine) as session:
            row = session.get(model, key)
            return row.values() if row is not None else None


def create_app(database: Path | None = None, jobs: Any = None) -> FastAPI:
    """Return the shop; *jobs* stands in for our tasks where no broker is at hand."""
    if jobs is None:
        # Only here: importing the tasks wants a broker's address.
        from tasks import bitrix, bookmarks, video  # noqa: PLC0415
    else:
        bitrix = bookmarks = video = jobs
    store = Store(database or Path(os.environ.get("SHOP_DATABASE", "var/shop.db")))
    app = FastAPI(title="Shop")

    # Plain functions, not coroutines: the database and `delay()` block, and threads may wait.
    @app.post("/orders", status_code=202)
    def add_order(order: NewOrder) -> dict[str, str]:
        key = str(order.order_id)
        change = store.create(Order, key, order.model_dump(exclude={"order_id"}))
        return _announce(
            store,
            change,
            lambda: bitrix.create_deal.delay(
                order_id=key,
                title=order.title,
                amount=order.amount,
                currency=order.currency,
                contact_user_id=order.user_id,
                updated_at=change.updated_at,
            ),
        )

    @app.patch("/orders/{order_id}", status_code=202)
    def change_order(order_id: str, fields: Fields) -> dict[str, str]:
        change = store.change(Order, order_id, fields)
        return _announce(
            store,
            change,
            lambda: bitrix.update_deal.delay(
                order_id=order_id,
                fields=change.snapshot,
                updated_at=change.updated_at,
            ),
        )

    @app.post("/profiles", status_code=202)
    def add_profile(profile: NewProfile) -> dict[str, str]:
        key = str(profile.user_id)
        change = store.create(Profile, key, profile.model_dump(exclude={"user_id"}))
        return _announce(
            store,
            change,
            lambda: bitrix.create_contact.delay(
                user_id=key,
                name=profile.name,
                email=profile.email,
                phone=profile.phone,
                updated_at=change.updated_at,
            ),
        )

    @app.post("/videos", status_code=202)
    def add_video(order: NewVideo) -> dict[str, str]:
        key = str(order.order_id)
        wanted = order.model_dump(exclude={"order_id"})
        change = store.create(VideoOrder, key, wanted)
        return _announce(store, change, lambda: video.generate.delay(order_id=key, **wanted))

    @app.post("/crawls", status_code=202)
    def add_crawl(wanted: NewCrawl) -> dict[str, str]:
        return _sent(lambda: bookmarks.crawl.delay(user_id=str(wanted.user_id)))

    @app.patch("/profiles/{user_id}", status_code=202)
    def change_profile(user_id: str, fields: Fields) -> dict[str, str]:
        change = store.change(Profile, user_id, fields)
        return _announce(
            store,
            change,
            lambda: bitrix.update_contact.delay(
                user_id=user_id,
                fields=change.snapshot,
                updated_at=change.updated_at,
            ),
        )

    return app


def _announce(store: Store, change: Change, send: Callable[[], Any]) -> dict[str, str]:
    """Send the job, or take the row back.

    The job is sent after the commit, or a quick worker would look for a row that is not there; so
    a refusal always comes too late to roll back, and a second transaction undoes the first.
    """
    try:
        return _sent(send)
    except HTTPException:
        # The broker may be away: an order Bitrix24 never hears of is worse than one to send again.
        store.undo(change)
        raise


def _sent(send: Callable[[], Any]) -> dict[str, str]:
    """Send the job; answer with its id, or with why it was not accepted."""
    try:
        return {"job": str(send().id)}
    except InvalidData as refusal:
        raise HTTPException(422, str(refusal)) from refusal
    except OperationalError as failure:
        raise HTTPException(503, "not accepted, please send it again") from failure


def _open(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 15})

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        # Writers take turns from the start, so that `updated_at` rises in the order of commits.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _stamp(previous: str | None) -> str:
    now = datetime.now(UTC)
    if previous is not None:
        now = max(now, datetime.fromisoformat(previous) + _TICK)
    return now.isoformat(timespec="microseconds")


def _texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: None if value is None else str(value) for name, value in values.items()}
