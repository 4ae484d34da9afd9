"""The demo's crawls: each trouble strikes one user alone, where a page of theirs begins."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from config.services import PAGE
from sandbox import crawl_load
from sandbox.crawl_load import AFTER, BEFORE, LIMIT, OVERTURE, READERS, STORIES, Story
from sandbox.crawl_report import REASONS
from sandbox.faults import read_faults
from sandbox.load import KILLED_AT, waves
from sandbox.x_platform import Platform
from sandbox.x_posts import Invalid
from sandbox.x_users import ARRIVALS

ALL = pytest.mark.parametrize("story", [*OVERTURE, *STORIES], ids=lambda story: story.name)


def test_what_goes_wrong_is_what_the_simulator_understands():
    platform = Platform()
    for arrival in ARRIVALS.validate_python([reader.arrival for reader in READERS]):
        platform.welcome(arrival)

    assert len(platform.users) == len(READERS)
    assert len(read_faults(crawl_load.faults())) == sum(len(r.story.faults) for r in READERS)


@ALL
def test_a_fault_strikes_where_a_page_begins_that_is_not_the_last_of_a_window(story: Story):
    begin = {str(page * PAGE) for page in range(min(story.pages, LIMIT - 1))}

    assert {fault.about for fault in story.faults if fault.method == "bookmarks"} <= begin


def test_a_fault_strikes_one_user_alone():
    told = [fault["about"] for fault in crawl_load.faults()]

    assert len(set(told)) == len(told)


def test_a_user_has_the_bookmarks_that_x_shows():
    platform = Platform()
    reader = next(reader for reader in READERS if len(reader.story.flaws) > len(get_args(Invalid)))
    (arrival,) = ARRIVALS.validate_python([reader.arrival])
    items = platform.welcome(arrival).shelf.items

    assert reader.items == items[::-1]
    assert {item.kind for item in reader.items} == {None, *get_args(Invalid)}


@pytest.mark.parametrize(
    ("story", "pages", "in_vain"),
    [
        pytest.param(Story("", bookmarks=0), 1, 0, id="none"),
        pytest.param(Story("", bookmarks=PAGE), 1, 0, id="one-page"),
        pytest.param(Story("", bookmarks=PAGE + 1), 2, 0, id="one-more"),
        pytest.param(Story("", access="ending"), 3, 0, id="renewed-in-time"),
        pytest.param(Story("", access="ended"), 3, 1, id="renewed-after-a-401"),
        pytest.param(Story("", access="gone"), 3, 1, id="authorised-after-a-401"),
        pytest.param(
            Story("", faults=crawl_load._on_page(0, "status", status=502)), 3, 1, id="a-fault"
        ),
        pytest.param(
            Story("", faults=crawl_load._on_page(0, "slow", seconds=1)), 3, 0, id="slow-is-no-fault"
        ),
    ],
)
def test_the_least_number_of_requests(story: Story, pages: int, in_vain: int):
    assert (story.pages, story.in_vain) == (pages, in_vain)


@ALL
def test_access_that_is_lost_is_given_again(story: Story):
    answer_lost = any(fault.method == "token" for fault in story.faults)

    assert story.given_again == (story.access == "gone" or answer_lost)


@pytest.mark.parametrize("story", OVERTURE, ids=lambda story: story.name)
def test_no_token_is_renewed_that_could_be_lost_with_the_worker(story: Story):
    assert story.access == "good"


def test_a_cancelled_crawl_takes_longer_than_one_window():
    assert all(reader.story.pages > LIMIT for reader in READERS if reader.story.cancelled)


def test_the_load_holds_every_crawl_as_often_as_it_is_asked_for():
    asked = [[c.body["user_id"] for c in wave if c.path == "/crawls"] for wave in waves()]
    before = {user for wave in asked[:KILLED_AT] for user in wave}
    all_of_them = Counter(user for wave in asked for user in wave)

    assert all_of_them == {reader.id: reader.story.asked for reader in READERS}
    assert before == {reader.id for reader in BEFORE}
    assert before.isdisjoint(reader.id for reader in AFTER)


def test_every_kind_of_invalid_bookmark_is_met_and_has_a_reason():
    met = {flaw.kind for story in STORIES for flaw in story.flaws}

    assert set(REASONS) == set(get_args(Invalid)) <= met
