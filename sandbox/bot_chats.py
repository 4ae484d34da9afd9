"""The chats of a bot: who can be reached, how fast, and what has been sent to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass as checked

from sandbox.bot_drafts import Draft
from sandbox.bot_refusals import BotRefusal, too_many_requests
from sandbox.bot_videos import Video

State = Literal[
    "ok",
    "blocked",
    "deactivated",
    "not_found",
    "not_started",
    "kicked",
    "not_a_member",
    "group_deleted",
    "is_a_bot",
    "no_rights",
    "no_write_access",
    "migrated",
]
# s: a clock of a billion seconds is exact to 0.2 µs, and in a steady pace its roundings add up.
_INSTANT = 1e-3


@checked(frozen=True, slots=True)
class ChatRule:
    """How a chat behaves from now on: *state* is a row of `bot_refusals.ROWS`, or `ok`.

    *migrate_to* is the id of the supergroup that a `migrated` group has become.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    chat_id: int
    state: State
    migrate_to: int | None = None

    @model_validator(mode="after")
    def _knows_where_to(self) -> ChatRule:
        if (self.state == "migrated") != (self.migrate_to is not None):
            raise ValueError("migrate_to belongs to state migrated")
        return self


_RULES = TypeAdapter(list[ChatRule])


def read_rules(data: Any) -> list[ChatRule]:
    """Check rules that came as JSON; raise pydantic's ValidationError on a misspelt one."""
    return _RULES.validate_python(data)


class Pace:
    """*burst* messages at once, then *rate* a second, for each key apart; rate 0 is no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._slack = (burst - 1) * self._interval
        self._due: dict[int, float] = {}

    def wait(self, key: int, now: float) -> float:
        """Return the seconds until the next message of *key* may go."""
        wait = self._due.get(key, 0.0) - self._slack - now
        return wait if wait > _INSTANT else 0.0

    def take(self, key: int, now: float) -> None:
        """Count a message that goes."""
        if self._interval:
            self._due[key] = max(self._due.get(key, 0.0), now) + self._interval


@dataclass(slots=True)
class Message:
    """One message as the chat has it; *text* is the caption if there is a *video*."""

    message_id: int
    at: float
    draft: Draft
    video: Video | None
    deleted: bool = False

    @property
    def kind(self) -> str:
        """Return `text`, `video`, or `document` for a video that is no MP4."""
        if self.video is None:
            return "text"
        return "video" if self.video.content.mp4 else "document"

    @property
    def source(self) -> str:
        """Return where the video came from: `file_id`, `url`, `upload`, or nothing."""
        return self.draft.video.kind if self.draft.video else ""

    def shown(self, bot: Mapping[str, Any]) -> dict[str, Any]:
        """Return it as the Bot API's Message, from the user *bot*."""
        draft = self.draft
        found: dict[str, Any] = {
            "message_id": self.message_id,
            "from": bot,
            "chat": _chat(draft.chat_id),
            "date": int(self.at),
        }
        if self.video is None:
            found["text"] = draft.text
        else:
            found[self.kind] = self.video.shown()
            found |= {"caption": draft.text} if draft.text else {}
        if draft.rows:
            found["reply_markup"] = {"inline_keyboard": draft.rows}
        return found

    def listed(self) -> dict[str, Any]:
        """Return it as the control API lists it: flat, with what a test compares."""
        video, source = self.video, self.draft.video
        return {
            "message_id": self.message_id,
            "chat_id": self.draft.chat_id,
            "at": self.at,
            "kind": self.kind,
            "text": self.draft.text,
            "buttons": [list(row) for row in self.draft.rows],
            "source": self.source,
            "url": source.reference if source and source.kind == "url" else "",
            "file_id": video.file_id if video else "",
            "content": video.content.digest if video else "",
            "size": video.content.size if video else 0,
            "deleted": self.deleted,
        }


def _chat(chat_id: int) -> dict[str, Any]:
    if chat_id > 0:
        return {"id": chat_id, "first_name": "Sandbox", "type": "private"}
    kind = "supergroup" if str(chat_id).startswith("-100") else "group"
    return {"id": chat_id, "title": "Sandbox", "type": kind}


class Chats:
    """All chats; a chat nobody has made a rule for can be reached.

    *rate* and *chat_rate* are messages a second, to all and to one chat, *group_rate* a minute.
    """

    def __init__(
        self,
        *,
        rate: float,
        burst: float,
        chat_rate: float,
        chat_burst: float,
        group_rate: float,
    ) -> None:
        self.sent = 0
        self.limit_answers: Counter[str] = Counter(all=0, chat=0, group=0)
        self.limited: Counter[int] = Counter()
        self._all = Pace(rate, burst)
        self._each = Pace(chat_rate, chat_burst)
        self._group = Pace(group_rate / 60, group_rate)
        self._rules: dict[int, ChatRule] = {}
        self._messages: dict[int, dict[int, Message]] = {}

    def obey(self, rules: Iterable[ChatRule]) -> None:
        """Take new rules on; a later one for the same chat replaces an earlier one."""
        self._rules.update((rule.chat_id, rule) for rule in rules)

    def pace(self, chat_id: int, now: float) -> None:
        """Count one message on its way; raise the 429 that the first limit over it gives."""
        limits = [("chat", self._each, chat_id), ("all", self._all, 0)]
        if chat_id < 0:
            limits.append(("group", self._group, chat_id))
        name, wait = max(
            ((name, pace.wait(key, now)) for name, pace, key in limits), key=lambda found: found[1]
        )
        if wait:
            self.limit_answers[name] += 1
            self.limited[chat_id] += 1
            raise too_many_requests(wait)
        for _, pace, key in limits:
            pace.take(key, now)

    def post(self, draft: Draft, video: Video | None, at: float) -> Message:
        """Deliver a message, or raise what the chat's rule says."""
        rule = self._rules.get(draft.chat_id)
        if rule is not None and rule.state != "ok":
            moved = {} if rule.migrate_to is None else {"migrate_to_chat_id": rule.migrate_to}
            raise BotRefusal(rule.state, parameters=moved)
        self.sent += 1
        message = Message(self.sent, at, draft, video)
        self._messages.setdefault(draft.chat_id, {})[message.message_id] = message
        return message

    def find(self, chat_id: int, message_id: int) -> Message | None:
        return self._messages.get(chat_id, {}).get(message_id)

    def messages(self, chat_id: int | None = None) -> Iterator[Message]:
        """Yield the messages of one chat, or of all of them, in the order of each chat."""
        chats = self._messages.values() if chat_id is None else [self._messages.get(chat_id, {})]
        for chat in chats:
            yield from chat.values()

    def counts(self) -> dict[str, dict[str, int]]:
        """Return per chat how many messages of each kind it has, and how many were put off."""
        found = {
            str(chat_id): dict(Counter(message.kind for message in messages.values()))
            for chat_id, messages in self._messages.items()
        }
        for chat_id, times in self.limited.items():
            found.setdefault(str(chat_id), {})["limit_answers"] = times
        return found

    def duplicates(self) -> dict[str, list[list[Any]]]:
        """Return [chat, what, times] of all that a chat got twice: a file, a caption, a text.

        What was deleted at once counts too: whoever sent it again did not know.
        """
        seen: dict[str, Counter[tuple[int, str]]] = {
            name: Counter() for name in ("videos", "captions", "texts")
        }
        for message in self.messages():
            chat_id, text = message.draft.chat_id, message.draft.text
            if message.video is None:
                seen["texts"][chat_id, text] += 1
                continue
            seen["videos"][chat_id, message.video.content.digest] += 1
            if text:
                seen["captions"][chat_id, text] += 1
        return {
            name: [[*key, times] for key, times in found.items() if times > 1]
            for name, found in seen.items()
        }
