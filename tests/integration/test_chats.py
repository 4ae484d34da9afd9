"""Chats that move: what is asked by any former id is answered with the newest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import chats

pytestmark = pytest.mark.usefixtures("database")

EVERY = ("-1", "-100", "-200")


def ids_now():
    return [chats.now(chat_id) for chat_id in EVERY]


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        pytest.param([], ["-1", "-100", "-200"], id="none"),
        pytest.param([("-1", "-100")], ["-100", "-100", "-200"], id="one"),
        pytest.param([("-1", "-100")] * 2, ["-100", "-100", "-200"], id="the same twice"),
        pytest.param([("-1", "-100"), ("-1", "-200")], ["-200", "-100", "-200"], id="corrected"),
        pytest.param([("-1", "-100"), ("-100", "-200")], ["-200"] * 3, id="chain"),
        pytest.param([("-1", "-200"), ("-100", "-200")], ["-200"] * 3, id="two become one"),
        pytest.param([("-1", "-100"), ("-100", "-100")], ["-100", "-100", "-200"], id="to itself"),
        pytest.param([("-1", "-100"), ("-100", "-1")], ["-1", "-1", "-200"], id="there and back"),
    ],
)
def test_chat_is_where_it_has_moved_last(moves, expected):
    for chat_id, moved_to in moves:
        chats.moved(chat_id, moved_to)

    assert ids_now() == expected


def test_news_that_come_in_the_wrong_order_lead_on_by_the_next_refusal():
    chats.moved("-100", "-200")
    chats.moved("-1", "-100")
    chats.moved(chats.now("-1"), "-200")  # Telegram refuses the id that we believe in

    assert ids_now() == ["-200"] * 3


def test_jobs_that_learn_of_one_move_at_once_agree():
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: chats.moved("-1", "-100"), range(16)))

    assert ids_now() == ["-100", "-100", "-200"]
