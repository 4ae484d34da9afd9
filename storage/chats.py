"""Which id a chat has now (UPSTREAMS 3.3: a group that becomes a supergroup gets another one)."""

from __future__ import annotations

from sqlalchemy import select, update

from storage import database
from storage.models import moved_chats


def now(chat_id: str) -> str:
    """Return the id that a chat has now."""
    with database.read() as connection:
        statement = select(moved_chats.c.moved_to).where(moved_chats.c.chat_id == chat_id)
        return connection.execute(statement).scalar_one_or_none() or chat_id


def moved(chat_id: str, moved_to: str) -> None:
    """Note that a chat has another id now; so have those that had become this one."""
    with database.transaction() as connection:
        at = database.now()
        connection.execute(
            update(moved_chats)
            .where(moved_chats.c.moved_to == chat_id)
            .values(moved_to=moved_to, at=at)
        )
        fresh = database.insert(moved_chats, connection.dialect.name).values(
            chat_id=chat_id, moved_to=moved_to, at=at
        )
        connection.execute(
            fresh.on_conflict_do_update(
                index_elements=[moved_chats.c.chat_id], set_={"moved_to": moved_to, "at": at}
            )
        )
