"""How we call a Telegram bot: send a text, send a video, answer a press. Shapes: UPSTREAMS 3.1."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import httpx

from classifiers import telegram as classifier
from classifiers.errors import InvalidData, NotConfigured, NotFound, OutcomeUnknown
from clients.http import Content, Upstream
from clients.process import PerProcess
from config import services
from config.services import GROUP_PACE, PRIVATE_PACE
from config.settings import settings
from reliability.connection import redis
from reliability.gate import Gate

CALLBACK_DATA = range(1, 65)  # bytes; UPSTREAMS 3.1
OFFICIAL = "https://api.telegram.org"
# UPSTREAMS 3.1. What is larger would be sent in vain: the connection is cut while we send, and
# that would leave us in doubt.
UPLOAD, LOCAL_UPLOAD = 50_000_000, 2_000_000_000  # bytes
UNUSABLE = frozenset({classifier.SOURCE_REFUSED, classifier.TOO_BIG})


@dataclass(frozen=True, slots=True)
class FileId:
    """A file that Telegram has already, by its own name for it."""

    id: str


@dataclass(frozen=True, slots=True)
class Link:
    """A file that Telegram is to fetch by itself, up to 20 MB."""

    url: str


Source: TypeAlias = FileId | Link | Path


@dataclass(frozen=True, slots=True)
class Button:
    """A button below a message; *data* comes back when it is pressed, at most 64 bytes."""

    label: str
    data: str

    def __post_init__(self) -> None:
        if len(self.data.encode()) not in CALLBACK_DATA:
            raise ValueError(f"the data of a button must have 1 to 64 bytes: {self.data!r}")


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that has arrived, and Telegram's name for the file in it, if any."""

    message_id: str
    file_id: str = ""


class Telegram:
    """One bot. *largest* is the size in bytes of the largest file that its server takes from us."""

    def __init__(self, upstream: Upstream, *, largest: int = UPLOAD) -> None:
        self.upstream = upstream
        self.largest = largest

    def send_message(self, chat_id: str, text: str, buttons: Sequence[Button] = ()) -> Sent:
        """Send a text. Raises OutcomeUnknown if it may have been sent."""
        body = {"chat_id": chat_id, "text": text, **_keyboard(buttons)}
        return self._send("sendMessage", chat_id, json=body)

    def send_video(
        self, chat_id: str, source: Source, caption: str = "", buttons: Sequence[Button] = ()
    ) -> Sent | None:
        """Send a video; None if this source does not do, and nothing was sent.

        It does not if Telegram refuses it or its size, or if the file is not there.

        Raises:
            OutcomeUnknown: it may have been sent.
            Duplicate: `migrated`; the chat has a new id, and nothing was sent.
        """
        fields = {"chat_id": chat_id, "supports_streaming": True, **_keyboard(buttons)}
        if caption:
            fields["caption"] = caption
        try:
            match source:
                case FileId(video) | Link(video):
                    return self._send("sendVideo", chat_id, json={**fields, "video": video})
                case file if file.exists():
                    return self._upload(chat_id, file, fields)
                case _:
                    return None
        except InvalidData as refusal:
            if refusal.code in UNUSABLE:
                return None
            raise

    def _upload(self, chat_id: str, path: Path, fields: Mapping[str, Any]) -> Sent | None:
        """Send a file from the disk, piece by piece."""
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > self.largest:
                return None
            form = {name: _as_form(value) for name, value in fields.items()}
            video = (path.name, file, "video/mp4")
            return self._send("sendVideo", chat_id, data=form, files={"video": video})

    def answer_press(self, callback_id: str, text: str) -> None:
        """Tell whoever has pressed a button, in 200 characters at most; too late is no harm."""
        body = {"callback_query_id": callback_id, "text": text}
        try:
            self.upstream.call("POST", "answerCallbackQuery", safe=True, json=body)
        except NotFound as refusal:
            if refusal.code != classifier.TOO_LATE:
                raise

    def name(self, *, within: float) -> str:
        """Return the name of the bot whose token we have, for a person: see `Upstream.call`."""
        bot = self.upstream.call("GET", "getMe", safe=True, within=within).json()["result"]
        return str(bot.get("username") or "") if isinstance(bot, dict) else ""

    def close(self) -> None:
        """Let the connections go."""
        self.upstream.close()

    def _send(self, method: str, chat_id: str, **content: Unpack[Content]) -> Sent:
        pace = _pace(chat_id)
        answer = self.upstream.call(
            "POST", method, safe=False, subject=chat_id, pace=pace, **content
        )
        return _sent(answer, method)


def _pace(chat_id: str) -> float:
    """UPSTREAMS 3.2; groups have negative ids, channels may have a name instead."""
    return GROUP_PACE if chat_id.startswith(("-", "@")) else PRIVATE_PACE


def _keyboard(buttons: Sequence[Button]) -> dict[str, Any]:
    """Return the field for *buttons*, one a row: labels are whole words."""
    rows = [[{"text": button.label, "callback_data": button.data}] for button in buttons]
    return {"reply_markup": {"inline_keyboard": rows}} if rows else {}


def _as_form(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sent(answer: httpx.Response, method: str) -> Sent:
    message = answer.json()["result"]
    message_id = message.get("message_id") if isinstance(message, dict) else None
    if not isinstance(message_id, int) or isinstance(message_id, bool):
        raise OutcomeUnknown(
            "the answer names no message", service=classifier.SERVICE, operation=method
        )
    return Sent(str(message_id), _file_id(message))


def _file_id(message: Mapping[str, Any]) -> str:
    """Telegram decides what a video is: without sound it comes back as an animation."""
    kinds = (message.get(kind) for kind in ("video", "animation", "document"))
    found = (file.get("file_id") for file in kinds if isinstance(file, dict))
    return next((file_id for file_id in found if isinstance(file_id, str)), "")


@PerProcess
def telegram() -> Telegram:
    """Return the bot of this process, as the settings describe it.

    Raises:
        NotConfigured: if TELEGRAM_BOT_TOKEN is not set.
    """
    config = settings()
    if config.telegram_bot_token is None:
        raise NotConfigured("TELEGRAM_BOT_TOKEN is not set", service=classifier.SERVICE)
    token = config.telegram_bot_token.get_secret_value()
    service = services.telegram(config)
    upstream = Upstream(
        service,
        Gate(redis(), service, prefix=config.redis_stream_prefix, scale=config.retry_time_scale),
        classifier.classify,
        base_url=f"{config.telegram_base_url}/bot{token}/",
        credential=token,
    )
    official = config.telegram_base_url == OFFICIAL
    return Telegram(upstream, largest=UPLOAD if official else LOCAL_UPLOAD)
