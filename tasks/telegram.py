"""What users of the bot read: each message is a job of its own, sent at most once."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import StringConstraints

from clients.telegram import Button, Sent, telegram
from config import messages, services
from config.settings import settings
from storage import chats, effects, videos
from tasks import operation
from tasks.base import job
from tasks.payloads import Id

Outcome = dict[str, Any]

Locale = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]+)*$")]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,50}$")]
Facts = dict[str, str]

STILL_WORKING = "still_working"
AGAIN, SEND = "again", "send"  # what a button asks for
BUTTONS: Mapping[str, tuple[str, str]] = {  # message → label, what it asks for
    "photo_unreachable": ("button_try_again", AGAIN),
    "generation_overloaded": ("button_try_again", AGAIN),
    "system_error": ("button_try_again", AGAIN),
    "delivery_failed": ("button_try_again", AGAIN),
    "delivery_unknown": ("button_send_again", SEND),
}  # no button where the same photo would fail again


def receipt(sent: Sent) -> Outcome:
    """Return what is kept of a message."""
    return {"message_id": sent.message_id, "file_id": sent.file_id}


def inform(
    chat_id: str,
    locale: str,
    message: str,
    *,
    key: str,
    mark: str = "",
    cost: Decimal | None = None,
    available: Decimal | None = None,
) -> None:
    """Send a message as a job of its own; *key* and message name it, so that it is sent once.

    *mark* says which round of which video it is about: `videos.Video.mark`.
    """
    facts = {
        "credits": amount(cost),
        "needed": amount(cost),
        "available": amount(available),
        "support": settings().support_contact,
    }
    notify.apply_async(
        kwargs={
            "chat_id": chat_id,
            "locale": locale,
            "message": message,
            "mark": mark,
            "facts": facts,
        },
        task_id=f"{key}-{message}",
    )


def amount(credits: Decimal | None) -> str:
    """Return an amount as people write it: 1, 2.50."""
    if credits is None:
        return ""
    return f"{credits:.0f}" if credits == credits.to_integral_value() else f"{credits:.2f}"


def adopt_new_chat(existing_id: str, chat_id: str, **payload: Any) -> Outcome:
    """Go on in the chat that this one has become."""
    chats.moved(chats.now(chat_id), existing_id)
    result: Outcome = notify.body(chat_id=chat_id, **payload)
    return result


@operation(name="telegram.notify", adopt=adopt_new_chat)
def notify(
    chat_id: Id,
    locale: Locale,
    message: Code,
    mark: str = "",
    facts: Facts = {},  # noqa: B006 - pydantic copies it
) -> Outcome:
    """Send one message to a user, at most once."""
    if message == STILL_WORKING and not is_under_way(mark):
        return {"outcome": "superseded"}
    text = messages.text(message, locale, **facts)
    chat, buttons = chats.now(chat_id), buttons_of(message, mark, locale)
    sent = effects.once(
        f"telegram.message:{job().id}",
        lambda: receipt(telegram().send_message(chat, text, buttons)),
        owner=job().id,
        lease=services.scaled(services.telegram(settings()).lease),
    )
    return {"outcome": "sent", "message_id": sent.result["message_id"]}


def is_under_way(mark: str) -> bool:
    """Whether the round that a message is about has not ended yet."""
    video = videos.by_token(mark.partition(":")[0])
    return video is not None and video.mark == mark and video.state in {"paid", "ready", "sending"}


def buttons_of(message: str, mark: str, locale: str) -> list[Button]:
    """Return what can be pressed under a message."""
    if message not in BUTTONS or not mark:
        return []
    label, wanted = BUTTONS[message]
    return [Button(messages.text(label, locale), f"{wanted}:{mark}")]
