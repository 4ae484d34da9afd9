"""The table of scenarios is one that can be played, and its texts are told apart."""

from __future__ import annotations

import pytest

from config import messages
from sandbox.rehearsal import code_of, parts
from sandbox.scenarios import SCENARIOS, SYSTEM_WIDE, Press

EVERY = (*SCENARIOS, *SYSTEM_WIDE)


def test_scenarios_have_names_of_their_own():
    assert len({scenario.name for scenario in EVERY}) == len(EVERY)


def test_what_strikes_everybody_is_kept_apart():
    assert not any(scenario.trouble for scenario in SCENARIOS)
    assert all(scenario.trouble for scenario in SYSTEM_WIDE)


@pytest.mark.parametrize("scenario", EVERY, ids=lambda scenario: scenario.name)
def test_an_end_names_texts_that_there_are_and_explains_its_balance(scenario):
    end = scenario.end
    others = [(other.state, other.charged, other.refunded) for other in scenario.otherwise]
    pressed = [step.label for step in scenario.then if isinstance(step, Press)]

    assert all(messages.has(code) for code in (*end.messages, *end.answers, *pressed))
    assert list(end.messages) == sorted(end.messages)
    for state, charged, refunded in [(end.state, end.charged, end.refunded), *others]:
        assert charged - refunded == (0 if state in {"", "refunded"} else 1)


@pytest.mark.parametrize("locale", messages.LOCALES)
@pytest.mark.parametrize("code", sorted({code for s in EVERY for code in s.end.messages}))
def test_a_text_is_known_by_its_code_whatever_it_tells(code, locale):
    facts = dict.fromkeys(("credits", "needed", "available", "link"), "2.50")

    assert code_of(messages.text(code, locale, support="@help", **facts)) == code
    assert code_of(messages.text(code, locale, support="", **facts)) == code


def test_no_order_is_a_part_of_another_one():
    cast = parts(SCENARIOS)
    orders, chats = [part.order for part in cast], [str(abs(part.chat)) for part in cast]

    for names in (orders, chats):
        assert len({len(name) for name in names}) == 1
        assert len(set(names)) == len(names)
