"""The demo's videos: who orders which, what goes wrong with it, and what must come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import count, islice
from random import Random
from typing import Any

from sandbox.bot_chats import ChatRule, State
from sandbox.faults import Fault
from sandbox.kie_tasks import Plan

Json = Mapping[str, Any]

SEED = 20261123
GRANT = Decimal(6)  # credits of a customer: enough for three videos of the dearest kind
COSTS = ("1", "1.50", "2")  # credits
FEW = Decimal("0.50")  # credits of the one who has too few
REGULARS = 20  # customers who order the videos with which nothing goes wrong
OTHERS = 30  # from this customer on everybody orders one, so that a chat can stand for its order
CHAT = 5_000_000  # a private chat's id is its user's; this makes them all equally long
PROMPTS = {"ru": "Покажи товар со всех сторон", "en": "Show the product from all sides"}
AWAY = 8.0  # seconds in which an answer is on its way; it takes less to kill a worker
IN_ORDER = "in order"


@dataclass(frozen=True, slots=True)
class Story:
    """What goes wrong with an order, and what must come of it all the same.

    *plan*, *kie*, *telegram* and the state of the *chat* are for this order alone. It must lead to
    *tasks* at KIE, and in the chat to *videos* and *messages*; *dead* names the tasks of jobs that
    must be dead in the end. A button in a message is tapped twice, unless the user *leaves_it*;
    *rounds* are charges, *state* is empty where none was.
    """

    name: str
    orders: int = 1
    plan: Plan | None = None
    kie: Fault | None = None
    telegram: Fault | None = None
    chat: State = "ok"
    credits: Decimal = GRANT
    ordered: int = 1
    leaves_it: bool = False
    state: str = "sent"
    tasks: int = 1
    videos: int = 1
    messages: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    rounds: int = 1

    @property
    def paid(self) -> bool:
        """Whether the credits stay with us."""
        return self.state in {"sent", "unconfirmed"}


def _refused(why: str, message: str, orders: int = 1) -> Story:
    """KIE refuses the photo: the credits go back, with the advice that helps."""
    plan = Plan(fail_code="422", fail_message=why)
    return Story(why, orders, plan, state="refunded", videos=0, messages=(message,))


SLOW_SEND = Fault("slow", "sendVideo", seconds=AWAY, after=True)
SLOW_CREATE = Fault("slow", "createTask", seconds=AWAY, after=True)
LOST_SEND = Fault("lost_answer", "sendVideo")
LOST_CREATE = Fault("lost_answer", "createTask")
PAUSE = Fault("error", "sendVideo", code="too_many_requests", seconds=2.0)
TOO_BIG = Fault("error", "sendVideo", code="file_too_big")

# Ordered before the worker is killed, and all at KIE by then: a create that has not reached it is
# in doubt for as long as its callback may take, and nobody wants to watch that.
OVERTURE = (
    Story("the worker dies while Telegram answers", 1, Plan(duration=1.0), telegram=SLOW_SEND),
    Story("the worker dies while KIE answers", kie=SLOW_CREATE),
    Story("the answer to createTask is lost", kie=LOST_CREATE),
    Story(IN_ORDER, 3),
)
STORIES = (
    Story(
        "KIE is overloaded, until the user tries again",
        plan=Plan(fail_code="500", fail_message="Service Unavailable", times=6, duration=0.5),
        tasks=7,
        messages=("still_working", "generation_overloaded"),
        dead=("video.generate",),
        rounds=2,
    ),
    Story(
        "the file is damaged however often it is fetched",
        plan=Plan(file="truncated"),
        leaves_it=True,
        state="refunded",
        videos=0,
        messages=("still_working", "system_error"),
        dead=("video.generate",),
    ),
    Story(
        "it fails once",
        3,
        Plan(fail_code="500", fail_message="Internal Error, Please try again later.", duration=0.5),
        tasks=2,
    ),
    Story("its link has expired for good", 1, Plan(expired=True, fresh_link=False), tasks=2),
    Story("its link has expired", 1, Plan(expired=True)),
    Story("the callback never comes", 2, Plan(callback="none")),
    Story("the callback comes late", 2, Plan(callback="late")),
    Story("the callback comes twice", 3, Plan(callback="twice")),
    Story("the callback is forged", 1, Plan(callback="wrong_signature")),
    Story(
        "the answer to sendVideo is lost, and the user wants it again",
        telegram=LOST_SEND,
        videos=2,
        messages=("delivery_unknown",),
    ),
    Story(
        "the answer to sendVideo is lost, and the user has it",
        telegram=LOST_SEND,
        leaves_it=True,
        state="unconfirmed",
        messages=("delivery_unknown",),
        dead=("video.send",),
    ),
    Story("Telegram wants a pause", 2, telegram=PAUSE),
    Story("too big for Telegram", telegram=TOO_BIG, videos=0, messages=("video_link",)),
    Story("the user has blocked the bot", chat="blocked", state="refunded", videos=0),
    Story("the group has become a supergroup", chat="migrated"),
    Story(
        "too few credits",
        credits=FEW,
        state="",
        tasks=0,
        videos=0,
        messages=("insufficient_credits",),
        rounds=0,
    ),
    Story("ordered twice", 3, ordered=2),
    _refused("The image is too dark", "photo_too_dark", 2),
    _refused(
        "We currently do not support uploads of images containing photorealistic people.",
        "photo_has_people",
        2,
    ),
    _refused("This content may violate our content policies.", "content_not_allowed", 2),
    _refused("No product found in the image", "photo_no_product"),
    _refused("Image resolution is too low", "photo_too_small"),
    Story(IN_ORDER, 26),
)


@dataclass(frozen=True, slots=True)
class VideoOrder:
    """One order of the demo."""

    number: int
    user: int
    locale: str
    cost: Decimal
    story: Story

    @property
    def key(self) -> str:
        return f"v{self.number}"

    @property
    def photo(self) -> str:
        """The last part of the photo's address; no order's is a part of another one's."""
        return f"/{self.key}.jpg"

    @property
    def at_home(self) -> bool:
        """Whether everything arrives in the chat that the shop knows."""
        return self.story.chat != "migrated"

    @property
    def chat(self) -> int:
        """The chat that the shop knows: the user's own, or a group."""
        return CHAT + self.user if self.at_home else -CHAT - self.user

    @property
    def place(self) -> int:
        """The chat in which everything arrives."""
        return self.chat if self.at_home else -1_000_000_000_000 - self.user

    @property
    def body(self) -> dict[str, Any]:
        """What the customer sends to the shop."""
        return {
            "order_id": self.key,
            "user_id": self.user,
            "chat_id": self.chat,
            "image_url": f"https://photos.example{self.photo}",
            "prompt": PROMPTS[self.locale],
            "cost": str(self.cost),
            "locale": self.locale,
        }


def _told(rng: Random, numbers: Iterator[int], stories: Sequence[Story]) -> Iterator[VideoOrder]:
    for story in stories:
        for number in islice(numbers, story.orders):
            regular = story.name == IN_ORDER
            user = number % REGULARS if regular else OTHERS + number
            cost = Decimal(rng.choice(COSTS))
            yield VideoOrder(number, user, ("ru", "en")[user % 2], cost, story)


_random, _numbers = Random(SEED), count(1)
BEFORE, AFTER = (tuple(_told(_random, _numbers, stories)) for stories in (OVERTURE, STORIES))
ORDERS = (*BEFORE, *AFTER)
GRANTS = {order.user: order.story.credits for order in ORDERS}
LEFT_ALONE = {order.place for order in ORDERS if order.story.leaves_it}  # chats without taps


def plans() -> list[Json]:
    """Return what KIE is to make of which photo."""
    found = ((order.photo, order.story.plan) for order in ORDERS)
    return [asdict(replace(plan, about=photo)) for photo, plan in found if plan]


def kie_faults() -> list[Json]:
    """Return what is to go wrong between KIE and us."""
    found = ((order.photo, order.story.kie) for order in ORDERS)
    return [asdict(replace(fault, about=photo)) for photo, fault in found if fault]


def telegram_faults() -> list[Json]:
    """Return what is to go wrong between Telegram and us."""
    found = ((str(order.chat), order.story.telegram) for order in ORDERS)
    return [asdict(replace(fault, about=chat)) for chat, fault in found if fault]


def chat_rules() -> list[Json]:
    """Return which chats are not as they should be."""
    return [
        asdict(ChatRule(order.chat, order.story.chat, None if order.at_home else order.place))
        for order in ORDERS
        if order.story.chat != "ok"
    ]
