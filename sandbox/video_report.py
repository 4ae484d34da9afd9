"""What came of the demo's videos: the journals of KIE and Telegram against orders and ledger."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from config import messages
from config.policies import LATE_AFTER
from config.services import scaled
from config.settings import settings
from reliability.dead_letters import Letter
from sandbox import mp4
from sandbox.bot_videos import Measure
from sandbox.kie_tasks import last_part
from sandbox.video_load import GRANTS, IN_ORDER, ORDERS, VideoOrder
from storage import credits, videos
from tasks.telegram import amount

Json = Mapping[str, Any]

SEND = "video.send"
PATIENCE, DOUBT = "still_working", "delivery_unknown"
CODES = {PATIENCE, DOUBT, *(code for order in ORDERS for code in order.story.messages)}
KILLED = "its worker died"  # how an effect says that nobody lived to see its end
NOBODYS = ""  # whose a video is that KIE has not made for any order


@dataclass(frozen=True, slots=True)
class Sight:
    """What KIE and Telegram have seen: both in sum, tasks and videos by order, messages by chat."""

    kie: Json
    telegram: Json
    tasks: Counter[str]
    videos: Counter[str]
    messages: Mapping[int, Counter[str]]

    @classmethod
    def now(cls, kie: httpx.Client, telegram: httpx.Client) -> Self:
        """Ask both for everything, and find out whose it is."""
        tasks, sent = _read(kie, "tasks"), _read(telegram, "messages")
        keys = {last_part(order.photo): order.key for order in ORDERS}
        owners = {task["task_id"]: keys.get(last_part(task["image"]), NOBODYS) for task in tasks}
        contents = {_print_of(task): owner for task, owner in owners.items()}
        texts: dict[int, Counter[str]] = defaultdict(Counter)
        for message in sent:
            if not message["content"]:
                texts[message["chat_id"]][_code_of(message)] += 1
        return cls(
            kie=_read(kie, "summary"),
            telegram=_read(telegram, "summary"),
            tasks=Counter(owners.values()),
            videos=Counter(contents.get(m["content"], NOBODYS) for m in sent if m["content"]),
            messages=texts,
        )


def _read(client: httpx.Client, what: str) -> Any:
    return client.get(f"/_sandbox/{what}").raise_for_status().json()


def _print_of(task_id: str) -> str:
    """Return what Telegram knows the video of a task by."""
    measure = Measure()
    measure.add(mp4.video(task_id))
    return measure.content().digest


def _code_of(message: Json) -> str:
    """Return which message of ours it is, with the facts of an order of its chat."""
    text, link = message["text"], re.search(r"https?://\S+", message["text"])
    for order in _at(message["chat_id"]):
        facts = {
            "credits": amount(order.cost),
            "needed": amount(order.cost),
            "available": amount(order.story.credits),
            "support": settings().support_contact,
            "link": link[0] if link else "none",
        }
        for code in CODES:
            if text == messages.text(code, order.locale, **facts):
                return code
    return f"{text[:40]!r}"


def _at(place: int) -> list[VideoOrder]:
    return [order for order in ORDERS if order.place == place]


def expected_dead() -> set[tuple[str, str]]:
    """Return the task and the order of each job that must be dead in the end."""
    return {(task, order.key) for order in ORDERS for task in order.story.dead}


def killed(letter: Letter) -> bool:
    """Whether the worker was killed while it had an effect that nobody can be asked of."""
    return KILLED in letter.error_message


def compare(sight: Sight, letters: Collection[Letter], seconds: float) -> list[str]:
    """Return what is wrong: money, videos or messages that are too many, too few, or not ours.

    *letters* are all, also settled ones; *seconds* is how long the load has taken.
    """
    dying = [letter for letter in letters if killed(letter)]
    return [
        *_upstreams_complain(sight),
        *(finding for order in ORDERS for finding in _order_differs(order, sight, dying)),
        *_messages_differ(sight, dying, late=seconds > scaled(LATE_AFTER)),
        *_ledger_differs(),
    ]


def _upstreams_complain(sight: Sight) -> Iterator[str]:
    for callback, creates in sight.kie["creates_by_callback"].items():
        if creates > 1:
            yield f"KIE was asked {creates} times for the one generation {callback}"
    for limit, answers in sight.kie["limit_answers"].items():
        yield f"KIE's limit of {limit} was broken {answers} times"
    if sight.telegram["limit_answers"]:
        yield f"Telegram's limits were broken {sight.telegram['limit_answers']} times"
    if sight.tasks[NOBODYS] or sight.videos[NOBODYS]:
        yield f"{sight.tasks[NOBODYS]} tasks and {sight.videos[NOBODYS]} videos are nobody's"


def _order_differs(order: VideoOrder, sight: Sight, dying: Sequence[Letter]) -> Iterator[str]:
    story, video = order.story, videos.get(order.key)
    transfers = [
        entry for entry in credits.history(order.user, None) if f":{order.key}:" in entry.key
    ]
    charges = sum(entry.kind == "charge" for entry in transfers)
    # What was on its way when the worker died may have arrived, and its user taps in any case.
    doubtful = any(_order_of(letter) == order.key for letter in dying)
    kept = -sum(entry.amount for entry in transfers)
    seen: dict[str, tuple[object, set[Any]]] = {
        "its state": (video.state if video else "", {story.state}),
        "tasks at KIE": (sight.tasks[order.key], {story.tasks}),
        "videos": (sight.videos[order.key], {story.videos, story.videos + doubtful}),
        "charges": (charges, {story.rounds}),
        "credits kept": (kept, {order.cost if story.paid else 0}),
    }
    for what, (found, wanted) in seen.items():
        if found not in wanted:
            right = " or ".join(map(str, sorted(wanted)))
            yield f"video {order.key} ({story.name}): {what} {found}, not {right}"


def _order_of(letter: Letter) -> str:
    return str(letter.message_body.kwargs.get("order_id", ""))


def _messages_differ(sight: Sight, dying: Sequence[Letter], *, late: bool) -> Iterator[str]:
    doubts = {_order_of(letter) for letter in dying if letter.message_body.task == SEND}
    unsaid = {_message_of(letter) for letter in dying}
    for place in {order.place for order in ORDERS} | sight.messages.keys():
        orders, found = _at(place), sight.messages.get(place, Counter[str]())
        wanted = Counter(code for order in orders for code in order.story.messages)
        wanted[DOUBT] += sum(order.key in doubts for order in orders)
        missing, surplus = wanted - found, found - wanted
        if late:  # then whoever waits may be asked for patience, once in a round
            surplus[PATIENCE] -= sum(order.story.rounds for order in orders)
        yield from (f"chat {place} has not got {x}" for x in missing if (place, x) not in unsaid)
        yield from (f"chat {place} has got {x}" for x in +surplus)


def _message_of(letter: Letter) -> tuple[int, str]:
    """Return the chat and the code of the message that a job was to send, if it was."""
    call = letter.message_body.kwargs
    return int(call.get("chat_id", 0)), str(call.get("message", ""))


def _ledger_differs() -> Iterator[str]:
    for user, granted in GRANTS.items():
        paid = sum(order.cost for order in ORDERS if order.user == user and order.story.paid)
        left = credits.balance(user)
        if left != granted - paid:
            yield f"user {user} has {left} credits, not {granted - paid}"
    sums = credits.totals()
    if sums["granted"] != sum(GRANTS.values()):
        yield f"{sums['granted']} credits were granted, not {sum(GRANTS.values())}"
    if sums["granted"] != sums["charged"] - sums["refunded"] + sums["balances"]:
        yield f"the ledger does not add up: {sums}"


# -- to be read by people


def lines(sight: Sight) -> dict[str, str]:
    """Return what is told of the videos, by title."""
    kie, telegram, sums = sight.kie, sight.telegram, credits.totals()
    calls, callbacks, taps = kie["by_method"], kie["callbacks"], telegram["presses"]
    texts = sum(sight.messages.values(), Counter[str]())
    troubled = sum(order.story.name != IN_ORDER for order in ORDERS)
    return {
        "KIE": f"{kie['creates']} creates, {calls['recordInfo']} looks, "
        f"{kie['downloads']} downloads, {callbacks['sent']} callbacks "
        f"({callbacks['failed']} turned away), {sum(kie['limit_answers'].values())} limit answers"
        f"\ngenerations: {listed(kie['states'])}",
        "Telegram": f"{telegram['videos']} videos, {texts.total()} messages, "
        f"{taps['made']} taps on buttons ({taps['answered']} answered), "
        f"{telegram['limit_answers']} limit answers\nmessages: {listed(texts)}",
        "videos": f"{len(ORDERS)} ordered, {troubled} of them with a trouble of their own: "
        f"{listed(videos.counts())}",
        "credits": f"granted {sums['granted']} = charged {sums['charged']} "
        f"− refunded {sums['refunded']} + balance {sums['balances']}",
    }


def planned() -> Counter[str]:
    """Return what KIE makes of photos that is not in order, and how often."""
    plans = [order.story.plan for order in ORDERS if order.story.plan]
    found = Counter(f"callback {plan.callback}" for plan in plans if plan.callback != "once")
    found.update(f"file {plan.file}" for plan in plans if plan.file != "ok")
    found["link expired"] += sum(plan.expired for plan in plans)
    return found


def listed(counts: Mapping[str, int]) -> str:
    """Return counts as people read them."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
