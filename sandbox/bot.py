"""One simulated bot behind the Bot API: its calls, limits, faults, and the record of them."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from sandbox.bot_chats import Chats, Message
from sandbox.bot_drafts import BotCall, Draft, read_message, read_video
from sandbox.bot_presses import Presses, data_of
from sandbox.bot_refusals import BotRefusal, too_many_requests
from sandbox.bot_videos import Videos
from sandbox.faults import Call, Fault, FaultPlan
from sandbox.journal import Entry, Journal, digest
from sandbox.replies import Reply, answered, endured

_METHODS = {
    name.lower(): name  # the server does not mind capitals
    for name in ("sendMessage", "sendVideo", "answerCallbackQuery", "setWebhook", "getMe")
}
_TOKEN = re.compile(r"\d+:[\w-]+", re.ASCII)
_SECRET = re.compile(r"[\w-]{0,256}", re.ASCII)
# How long the bot waits for others: for a file behind a link, and for its webhook.
PATIENCE = 30.0
_DELETED = "immediately_deleted"  # the row of an error after which the message was there
_SHOWN = 80  # characters of a text in the journal
MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class BotSettings:
    """How one bot's server behaves (UPSTREAMS 3.1 and 3.2).

    *rate* and *burst* are messages a second and at once, to all chats; *chat_rate* and
    *chat_burst* to one chat, *group_rate* a minute to one group; a rate of 0 is no limit.
    *upload_limit* and *url_limit* are in bytes. *press_patience* is how many seconds a press may
    wait for its answer: the server's own figure is not documented. *latency* is the round trip of
    a call in seconds.
    """

    token: str = "100200300:sandbox"  # noqa: S105 - nothing here is secret
    rate: float = 30.0
    burst: float = 30.0
    chat_rate: float = 1.0
    chat_burst: float = 2.0  # "short bursts are tolerated"
    group_rate: float = 20.0
    upload_limit: int = 50 * MEGABYTE
    url_limit: int = 20 * MEGABYTE
    press_patience: float = 15.0
    seed: int = 0
    latency: float = 0.0
    webhook_target: str = ""
    secret: str = ""
    journal: Path | None = None


# The effect of a call that was let through: what it returns is the result, or a message to show.
Act = Callable[[], Any]


class Bot:
    """The bot's whole state; everything happens on one event loop, without threads."""

    def __init__(
        self,
        settings: BotSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.settings = settings or BotSettings()
        self.clock = clock
        self.journal = Journal(self.settings.journal)
        self._sleep = sleep
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._begin()

    def _begin(self) -> None:
        settings = self.settings
        self.faults = FaultPlan(settings.seed)
        self.requests = 0
        self.refusals: Counter[str] = Counter()
        self.chats = Chats(
            rate=settings.rate,
            burst=settings.burst,
            chat_rate=settings.chat_rate,
            chat_burst=settings.chat_burst,
            group_rate=settings.group_rate,
        )
        self.videos = Videos(self._http, settings.url_limit)
        self.presses = Presses(
            self._http,
            self.clock,
            settings.webhook_target,
            settings.secret,
            settings.press_patience,
        )

    def reset(self) -> None:
        """Forget chats, messages, files, faults and journal; the webhook is the settings' again."""
        self._begin()
        self.journal.clear(self.clock())

    async def answer(self, call: BotCall) -> Reply:
        """Take one call to its reply; the caller settles the reply's entries."""
        self.requests += 1
        entry = self.journal.record(
            at=self.clock(),
            request=self.requests,
            method=_METHODS.get(call.method.lower(), call.method),
            about=_about(call),
            digest=digest({"params": call.params, "files": call.files}),
        )
        try:
            act = await self._prepared(call, entry)
        except BotRefusal as refusal:
            return self._refused(refusal, entry)
        strike = self.faults.strike(Call(entry.method.lower(), _sights(call)))
        if strike.request is not None:
            strike.request = _completed(strike.request)
        return await endured(
            strike,
            lambda: self._acted(act, entry, strike.request),
            entry=entry,
            wording=_worded,
            pause=lambda seconds: self._wait(self.settings.latency / 2 + seconds),
        )

    async def _prepared(self, call: BotCall, entry: Entry) -> Act:
        """Check a call, and return what is left to do.

        A link is followed here, before any fault can strike: nobody's chat has changed yet.
        """
        if not _TOKEN.fullmatch(call.token):
            raise BotRefusal("malformed_token")
        if call.token != self.settings.token:
            raise BotRefusal("unauthorized")
        if call.params is None:
            raise BotRefusal("bad_json")
        match entry.method:
            case "sendMessage":
                return await self._sending(read_message(call))
            case "sendVideo":
                return await self._sending(read_video(call, self.settings.upload_limit))
            case "answerCallbackQuery":
                return lambda: self._answer_press(call)
            case "setWebhook":
                return lambda: self._set_webhook(call)
            case "getMe":
                return self.me
        raise BotRefusal("unknown_method")

    async def _sending(self, draft: Draft) -> Act:
        self.chats.pace(draft.chat_id, self.clock())
        video = await self.videos.take(draft.video) if draft.video else None
        return lambda: self.chats.post(draft, video, self.clock())

    def _acted(self, act: Act, entry: Entry, fault: Fault | None) -> Reply:
        try:
            done = act()
        except BotRefusal as refusal:
            return self._refused(refusal, entry)
        if isinstance(done, Message):
            done.deleted = fault is not None and fault.code == _DELETED
            entry.effect = f"{done.kind} {done.message_id} sent" + " and deleted" * done.deleted
            entry.about = {**entry.about, "message_id": str(done.message_id)}
            done = done.shown(self.me())
        return answered({"ok": True, "result": done}, [entry])

    def _answer_press(self, call: BotCall) -> bool:
        self.presses.answer(call.get("callback_query_id"), call.get("text"))
        return True

    def _set_webhook(self, call: BotCall) -> bool:
        secret = call.get("secret_token")
        if not _SECRET.fullmatch(secret):
            raise BotRefusal("bad_secret")
        self.presses.target, self.presses.secret = call.get("url"), secret
        return True

    def me(self) -> dict[str, Any]:
        """Return the bot as a User."""
        number = int(self.settings.token.partition(":")[0])
        return {
            "id": number,
            "is_bot": True,
            "first_name": "Sandbox",
            "username": "sandbox_bot",
        }

    def button(
        self, chat_id: int, message_id: int | None = None, data: str = "", label: str = ""
    ) -> tuple[Message, str] | None:
        """Find the newest button with this *data* or *label*; return its message and its data."""
        for message in reversed(list(self.chats.messages(chat_id))):
            if message.deleted or message_id not in (None, message.message_id):
                continue
            if found := data_of(message, data, label):
                return message, found
        return None

    def _refused(self, refusal: BotRefusal, entry: Entry) -> Reply:
        self.refusals[refusal.row] += 1
        entry.error = refusal.row
        reply = answered(refusal.body(), [entry], refusal.status)
        return replace(reply, headers={**reply.headers, **refusal.headers})

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(transport=self._transport, timeout=PATIENCE)
        return self._client

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything that happened since the last reset."""
        messages = list(self.chats.messages())
        kinds = Counter(message.kind for message in messages)
        return {
            "requests": self.requests,
            "videos": kinds["video"],
            "messages": {"text": 0, "video": 0, "document": 0, **kinds},
            "sources": dict(Counter(message.source for message in messages if message.source)),
            "deleted": sum(message.deleted for message in messages),
            "chats": len({message.draft.chat_id for message in messages}),
            "duplicates": self.chats.duplicates(),
            "limit_answers": sum(self.chats.limit_answers.values()),
            "limit_answers_by_limit": dict(self.chats.limit_answers),
            "limit_answers_by_chat": {str(key): n for key, n in self.chats.limited.items()},
            "refusals": dict(self.refusals),
            "by_method": dict(self.journal.by_method),
            "by_status": dict(self.journal.by_status),
            "faults_fired": dict(self.faults.fired),
            "presses": self.presses.summary(),
            "webhooks": dict(self.presses.counts),
        }

    async def close(self) -> None:
        """Give up what is still on its way."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self.journal.close()


def _about(call: BotCall) -> dict[str, str]:
    """Return what the journal says of a call; never the token, which is not in the parameters."""
    names = ("chat_id", "text", "caption", "callback_query_id")
    return {name: call.get(name)[:_SHOWN] for name in names if call.get(name)}


def _sights(call: BotCall) -> tuple[str, ...]:
    """Return what a fault's `about` is looked for in."""
    names = ("chat_id", "text", "caption", "callback_query_id")
    return tuple(call.get(name) for name in names)


def _completed(fault: Fault) -> Fault:
    """Return *fault* with what its row stands for: a message that was sent, a header."""
    if fault.kind not in ("error", "status") or not (fault.code or fault.description):
        return fault
    return replace(
        fault,
        after=fault.after or fault.code == _DELETED,
        headers={**_refusal(fault).headers, **fault.headers},
    )


def _worded(fault: Fault) -> tuple[dict[str, object], int]:
    refusal = _refusal(fault)
    return refusal.body(), refusal.status


def _refusal(fault: Fault) -> BotRefusal:
    if fault.code == "too_many_requests" and not fault.description:
        return too_many_requests(fault.seconds)
    return BotRefusal(fault.code, status=fault.status, description=fault.description)
