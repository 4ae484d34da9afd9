"""The demo's videos: each trouble strikes one order alone, and nobody is short of credits."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from config import messages
from config.policies import TASKS
from sandbox import video_load
from sandbox.bot_chats import read_rules
from sandbox.faults import read_faults
from sandbox.kie_tasks import read_plans
from sandbox.load import waves
from sandbox.video_load import IN_ORDER, ORDERS, OVERTURE, STORIES
from storage.videos import State


def test_what_goes_wrong_is_what_the_simulators_understand():
    plans = read_plans(video_load.plans())
    faults = read_faults([*video_load.kie_faults(), *video_load.telegram_faults()])
    rules = read_rules(video_load.chat_rules())
    told = Counter(thing for order in ORDERS for thing in things(order.story))

    assert (len(plans), len(faults), len(rules)) == (told["plan"], told["fault"], told["rule"])


def things(story: video_load.Story) -> list[str]:
    found = {"plan": story.plan, "fault": story.kie or story.telegram, "rule": story.chat != "ok"}
    return [name for name, there in found.items() if there]


def test_a_trouble_strikes_one_order_alone():
    troubled = [order for order in ORDERS if order.story.name != IN_ORDER]
    chats = Counter(str(order.chat) for order in ORDERS)

    assert {chats[str(order.chat)] for order in troubled} == {1}
    assert not [pair for pair in permutations(chats, 2) if pair[0] in pair[1]]
    assert not [
        pair for pair in permutations(ORDERS, 2) if pair[0].photo in pair[1].body["image_url"]
    ]


def test_everybody_has_credits_enough_but_one():
    spent = Counter()
    for order in ORDERS:
        spent[order.user] += order.cost * max(1, order.story.rounds)
    poor = [user for user, granted in video_load.GRANTS.items() if spent[user] > granted]

    assert poor == [order.user for order in ORDERS if not order.story.rounds]


def test_every_customer_is_spoken_to_in_russian_or_english():
    assert {order.locale for order in ORDERS} == set(messages.LOCALES)


@pytest.mark.parametrize("story", [*OVERTURE, *STORIES], ids=lambda story: story.name)
def test_an_end_is_one_that_there_is(story: video_load.Story):
    assert story.state in {"", *State.__args__}
    assert all(map(messages.has, story.messages))
    assert set(story.dead) <= set(TASKS)


def test_the_load_holds_every_order_as_often_as_it_is_ordered():
    calls = Counter(
        call.body["order_id"] for wave in waves() for call in wave if call.path == "/videos"
    )

    assert calls == {"v0": 1} | {order.key: order.story.ordered for order in ORDERS}


def test_what_is_ordered_twice_is_ordered_twice_at_once():
    twice = [order.key for order in ORDERS if order.story.ordered > 1]
    keys = [[call.body.get("order_id") for call in wave] for wave in waves()]

    assert twice
    assert all(
        any(key == wave[n] == wave[n + 1] for wave in keys for n in range(len(wave) - 1))
        for key in twice
    )
