"""The demo's load: what the shop's customers do, the same on every run."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sandbox import crawl_load, video_load

SEED = 20261122
PROFILES, ORDERS, CHANGES = 100, 250, 200
STAGES = ("NEW", "EXECUTING", "FINAL_INVOICE", "WON")
REFUSED = ORDERS + 1  # an order whose amount the portal will not take
SHARING = 10  # every tenth customer uses the e-mail address of another one
KILLED_AT, OUTAGE_AT = 2, 4  # before these waves the worker is killed, and the portal breaks down


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the shop, and the task it leads to."""

    method: str
    path: str
    body: dict[str, Any]
    task: str


def waves() -> list[list[Call]]:
    """Return the load in waves; the calls of one wave go out together."""
    rng = random.Random(SEED)
    orders = [_order(rng, n) for n in range(ORDERS)]
    half = ORDERS // 2
    videos, readers = video_load.AFTER, crawl_load.AFTER
    return [
        [
            *_crawls(crawl_load.BEFORE),
            *_videos(video_load.BEFORE),
            *(_profile(n) for n in range(PROFILES)),
        ],
        orders[:half] + orders[:20],  # impatient customers press the button twice
        [
            *_crawls(readers[0::2]),
            *_videos(videos[0::4]),
            *(_change(rng, rng.randrange(half)) for _ in range(CHANGES // 2)),
        ],
        # The portal will refuse what becomes of the last one, after its job was accepted.
        [
            *_crawls(readers[1::2]),
            *_videos(videos[1::4]),
            *orders[half:],
            Call("POST", "/orders", {"order_id": REFUSED, "title": "A refused one"}, CREATE_DEAL),
        ],
        [
            *_videos(videos[2::4]),
            *(_change(rng, rng.randrange(ORDERS)) for _ in range(CHANGES // 2)),
        ],
        [
            *_videos(videos[3::4]),
            *(_rename(rng, n) for n in range(0, PROFILES, 4)),
            Call("PATCH", f"/orders/{REFUSED}", {"amount": "a lot"}, UPDATE_DEAL),
            # These two `delay()` refuses in the shop.
            Call("POST", "/orders", {"order_id": "", "title": ""}, CREATE_DEAL),
            Call("POST", "/videos", {**videos[0].body, "order_id": "v0", "cost": "free"}, VIDEO),
        ],
    ]


CREATE_DEAL, UPDATE_DEAL = "bitrix.create_deal", "bitrix.update_deal"
CREATE_CONTACT, UPDATE_CONTACT = "bitrix.create_contact", "bitrix.update_contact"
VIDEO, CRAWL = "video.generate", "bookmarks.crawl"


def _videos(orders: Iterable[video_load.VideoOrder]) -> list[Call]:
    """Return the calls; what is ordered twice is ordered twice at once."""
    return [
        Call("POST", "/videos", order.body, VIDEO)
        for order in orders
        for _ in range(order.story.ordered)
    ]


def _crawls(readers: Iterable[crawl_load.Reader]) -> list[Call]:
    return [
        Call("POST", "/crawls", {"user_id": reader.id}, CRAWL)
        for reader in readers
        for _ in range(reader.story.asked)
    ]


def _profile(n: int) -> Call:
    mailbox = n - 1 if n % SHARING == SHARING - 1 else n
    body: dict[str, Any] = {
        "user_id": n,
        "name": f"Customer {n}",
        "email": f"customer{mailbox}@example.com",
    }
    if n % 2:
        body["phone"] = f"+7 900 {n:03d} 00 {n % 100:02d}"
    return Call("POST", "/profiles", body, CREATE_CONTACT)


def _order(rng: random.Random, n: int) -> Call:
    body = {
        "order_id": n,
        "title": f"Order {n}",
        "amount": rng.randrange(100, 90_000),
        "user_id": rng.randrange(PROFILES),
    }
    return Call("POST", "/orders", body, CREATE_DEAL)


def _change(rng: random.Random, n: int) -> Call:
    body: dict[str, Any] = {"stage": rng.choice(STAGES)}
    if rng.random() < 0.4:
        body = {"amount": rng.randrange(100, 90_000)}
    return Call("PATCH", f"/orders/{n}", body, UPDATE_DEAL)


def _rename(rng: random.Random, n: int) -> Call:
    body = {"name": f"Customer {n} {rng.choice(('Ivanov', 'Petrova', 'Smith'))}"}
    return Call("PATCH", f"/profiles/{n}", body, UPDATE_CONTACT)
