"""The entry "Dead letters" inside a real Flower."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from acceptance.system import System

from reliability.dead_letters import Body, Letter, Metadata
from sandbox.stack import Stack

MARKUP = "<script>alert(1)</script>"


def dead(number: int, message: str) -> Letter:
    return Letter(
        message_id=f"job-{number}",
        original_queue="bitrix",
        error_type="InvalidData",
        error_message=message,
        message_body=Body("bitrix.create_deal", (), {"order_id": str(number)}),
        metadata=Metadata(failed_at=datetime.now(UTC), trace_id=f"job-{number}"),
        service="bitrix",
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    """Flower, beside a Redis with two letters of one cause; the console is elsewhere."""
    stack = Stack(tmp_path_factory.mktemp("flower"), env={"PUBLIC_URL": "https://jobs.example.com"})
    system = System(stack)
    for number in (1, 2):
        system.letters.bury(dead(number, f"TITLE is {MARKUP}"))
    stack.start_flower()
    yield stack
    system.end()
    stack.stop(signal.SIGKILL, keep_files=True)


@pytest.fixture
def visitor(stack) -> Iterator[httpx.Client]:
    """Somebody who has not logged in."""
    with httpx.Client(base_url=stack.url("flower"), trust_env=False, timeout=30) as visitor:
        yield visitor


@pytest.fixture
def operator(visitor, stack) -> httpx.Client:
    visitor.auth = tuple(stack.flower_login.split(":"))
    return visitor


def fingerprint(stack: Stack) -> str:
    (group,) = System.look(SystemOf(stack), "dlq", "groups")
    return group["fingerprint"]


class SystemOf:
    """What `System.look` needs of a system, without starting another Redis."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    operate = System.operate


@pytest.mark.parametrize("page", ["/dead-letters", "/dead-letters/00ff"])
@pytest.mark.parametrize("login", [None, ("flower", "wrong"), ("", "")])
def test_nobody_sees_dead_letters_without_the_login(visitor, page, login):
    assert visitor.get(page, auth=login).status_code == 401


def test_the_causes_are_listed_and_explained(operator):
    page = operator.get("/dead-letters")

    assert page.status_code == 200
    assert "2 open." in page.text
    assert "bitrix.create_deal" in page.text
    assert "The upstream rejected a value." in page.text


def test_a_cause_leads_to_its_letters_and_these_to_the_console(operator, stack):
    page = operator.get(f"/dead-letters/{fingerprint(stack)}")

    assert page.status_code == 200
    assert 'href="https://jobs.example.com/console/dead-letters/job-2"' in page.text
    assert f'href="https://jobs.example.com/console/groups/{fingerprint(stack)}"' in page.text


def test_what_a_letter_says_is_text_and_no_markup(operator, stack):
    page = operator.get(f"/dead-letters/{fingerprint(stack)}")

    assert MARKUP not in page.text
    assert "&lt;script&gt;" in page.text


@pytest.mark.parametrize("page", ["/workers", "/tasks", "/broker", "/dead-letters"])
def test_every_page_of_flower_leads_to_the_dead_letters(operator, page):
    answer = operator.get(page)

    assert answer.status_code == 200
    assert 'href="/dead-letters"' in answer.text


def test_the_entry_is_marked_on_its_own_page_alone(operator):
    mark = 'href="/dead-letters"\naria-current="page"'

    assert mark in operator.get("/dead-letters").text
    assert mark not in operator.get("/broker").text


@pytest.mark.parametrize("page", ["/metrics", "/healthcheck"])
def test_what_flower_leaves_open_stays_open(visitor, page):
    assert visitor.get(page).status_code == 200


def test_nothing_can_be_changed_there(operator):
    assert operator.post("/dead-letters").status_code in {403, 405}


def test_an_address_that_is_none_is_flowers_own_error(operator):
    assert operator.get("/dead-letters/NOT-ONE").status_code == 404
