"""What a call of the Bot API asks for, read from its parameters and checked as the server does."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandbox.bot_refusals import BotRefusal
from sandbox.bot_videos import Content, Source

TEXT_LIMIT = 4096  # characters, UPSTREAMS 3.1
CAPTION_LIMIT = 1024  # characters, UPSTREAMS 3.1
DATA_LIMIT = 64  # bytes of callback_data, UPSTREAMS 3.1
_CHAT_ID = re.compile(r"-?[1-9]\d*")
_BUTTON_URL = re.compile(r"(https?|tg)://\S+")

Button = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BotCall:
    """One request: every parameter is a string, as the server reads them.

    *params* is None if the body was not the JSON object that it said it was; *files* are the
    parts of a multipart body that have a file name.
    """

    token: str
    method: str
    params: Mapping[str, str] | None = field(default_factory=dict)
    files: Mapping[str, Content] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """Return a parameter, empty if it is not there."""
        return (self.params or {}).get(name, "")


@dataclass(frozen=True, slots=True)
class Draft:
    """A message before it is sent; *text* is the caption if there is a *video*."""

    chat_id: int
    text: str
    rows: tuple[tuple[Button, ...], ...] = ()
    video: Source | None = None


def read_message(call: BotCall) -> Draft:
    """Read a sendMessage."""
    chat_id, text = _chat_id(call), call.get("text")
    if not text.strip():
        raise BotRefusal("text_empty")
    if len(text) > TEXT_LIMIT:
        raise BotRefusal("text_too_long")
    return Draft(chat_id, text, _rows(call.get("reply_markup")))


def read_video(call: BotCall, upload_limit: int) -> Draft:
    """Read a sendVideo; an upload may have *upload_limit* bytes."""
    if sum(file.size for file in call.files.values()) > upload_limit:
        raise BotRefusal("too_large")  # what stands before the server looks at the size alone
    chat_id, caption = _chat_id(call), call.get("caption")
    source = _source(call)
    if len(caption) > CAPTION_LIMIT:
        raise BotRefusal("caption_too_long")
    return Draft(chat_id, caption, _rows(call.get("reply_markup")), source)


def _chat_id(call: BotCall) -> int:
    told = call.get("chat_id")
    if not told:
        raise BotRefusal("chat_id_empty")
    if not _CHAT_ID.fullmatch(told):
        raise BotRefusal("not_found")
    return int(told)


def _source(call: BotCall) -> Source:
    told = call.get("video")
    shape = {
        name: int(call.get(name))
        for name in ("duration", "width", "height")
        if call.get(name).isdecimal()
    }
    if told and not told.startswith("attach://"):
        link = re.match(r"https?://", told, re.IGNORECASE)
        return Source("url" if link else "file_id", told, shape=shape)
    file = call.files.get(told.removeprefix("attach://") or "video")
    if file is None:
        raise BotRefusal("no_video")
    if not file.size:
        raise BotRefusal("file_empty")
    return Source("upload", "", file, shape)


def _rows(markup: str) -> tuple[tuple[Button, ...], ...]:
    """Read an inline keyboard; any other kind of markup is let through and forgotten."""
    if not markup:
        return ()
    try:
        found = json.loads(markup)
    except ValueError:
        raise BotRefusal("bad_markup") from None
    if not isinstance(found, dict):
        raise BotRefusal("markup_not_object")
    rows = found.get("inline_keyboard", [])
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise BotRefusal("bad_markup")
    return tuple(tuple(_button(button) for button in row) for row in rows)


def _button(button: Any) -> Button:
    if not isinstance(button, dict) or not isinstance(button.get("text"), str):
        raise BotRefusal("bad_button")
    if url := button.get("url"):
        if not _BUTTON_URL.fullmatch(str(url)):
            raise BotRefusal("button_url_invalid")
        return {"text": button["text"], "url": str(url)}
    data = button.get("callback_data")
    if not data:
        raise BotRefusal("text_button" if data is None else "button_data_invalid")
    if len(str(data).encode()) > DATA_LIMIT:
        raise BotRefusal("button_data_invalid")
    return {"text": button["text"], "callback_data": str(data)}
