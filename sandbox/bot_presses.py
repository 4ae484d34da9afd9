"""Users who press a bot's buttons: updates to its webhook, and the answers that came in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from sandbox.bot_chats import Message
from sandbox.bot_refusals import BotRefusal

ANSWER_LIMIT = 200  # characters of answerCallbackQuery's text
# Callback ids are 64-bit numbers, written as strings.
_FIRST_ID = 4_000_000_000_000_000_000
_FIRST_UPDATE = 100_000_000
_SOMEBODY = 777_000_001  # who presses in a group


@dataclass(slots=True)
class Press:
    """One press; *status* is the webhook's, None for no answer, *answers* the texts shown."""

    update_id: int
    callback_id: str
    at: float
    chat_id: int
    message_id: int
    data: str
    status: int | None = None
    answers: list[str] = field(default_factory=list)


class Presses:
    """Sends each press once, to *target*; the counts are for the summary.

    An answer that comes later than *patience* seconds after the press is refused.
    """

    def __init__(
        self,
        http: Callable[[], httpx.AsyncClient],
        clock: Callable[[], float],
        target: str,
        secret: str,
        patience: float,
    ) -> None:
        self.target = target
        self.secret = secret
        self.counts: Counter[str] = Counter(sent=0, failed=0)
        self._http = http
        self._clock = clock
        self._patience = patience
        self._made: dict[str, Press] = {}

    async def make(
        self, message: Message, data: str, bot: Mapping[str, Any], times: int = 1
    ) -> list[dict[str, Any]]:
        """Press a button of *message* *times* times at once; return what became of each."""
        presses = [self._press(message, data) for _ in range(times)]
        shown = message.shown(bot)
        await asyncio.gather(*(self._send(press, shown) for press in presses))
        return [asdict(press) for press in presses]

    def answer(self, callback_id: str, text: str) -> None:
        """Take an answerCallbackQuery."""
        press = self._made.get(callback_id)
        if press is None or self._clock() - press.at > self._patience:
            raise BotRefusal("query_too_old")
        if len(text) > ANSWER_LIMIT:
            raise BotRefusal("answer_too_long")
        press.answers.append(text)

    def listed(self) -> list[dict[str, Any]]:
        """Return all presses, in their order."""
        return [asdict(press) for press in self._made.values()]

    def summary(self) -> dict[str, int]:
        """Return how many there were, and how many of them got an answer in time."""
        presses = self._made.values()
        return {"made": len(presses), "answered": sum(bool(press.answers) for press in presses)}

    def _press(self, message: Message, data: str) -> Press:
        number = len(self._made) + 1
        press = Press(
            update_id=_FIRST_UPDATE + number,
            callback_id=str(_FIRST_ID + number),
            at=self._clock(),
            chat_id=message.draft.chat_id,
            message_id=message.message_id,
            data=data,
        )
        self._made[press.callback_id] = press
        return press

    async def _send(self, press: Press, message: Mapping[str, Any]) -> None:
        headers = {"X-Telegram-Bot-Api-Secret-Token": self.secret} if self.secret else {}
        try:
            response = await self._http().post(
                self.target, json=_update(press, message), headers=headers
            )
        except httpx.HTTPError:
            self.counts["failed"] += 1
            return
        press.status = response.status_code
        self.counts["sent" if response.is_success else "failed"] += 1


def _update(press: Press, message: Mapping[str, Any]) -> dict[str, Any]:
    user = press.chat_id if press.chat_id > 0 else _SOMEBODY
    return {
        "update_id": press.update_id,
        "callback_query": {
            "id": press.callback_id,
            "from": {"id": user, "is_bot": False, "first_name": "Sandbox", "language_code": "ru"},
            "message": message,
            "chat_instance": str(abs(press.chat_id) << 20),
            "data": press.data,
        },
    }


def data_of(message: Message, data: str = "", label: str = "") -> str | None:
    """Return the data of the message's button with this *data* or *label*, None if none has it."""
    for row in message.draft.rows:
        for button in row:
            found = button.get("callback_data")
            if found and (found == data or (label and button["text"] == label)):
                return found
    return None
