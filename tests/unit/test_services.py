"""How often KIE is asked about a video, and how our waits are scaled."""

from __future__ import annotations

import pytest

from config import services
from config.settings import settings


@pytest.fixture
def scale(monkeypatch):
    def choose(value: str) -> None:
        monkeypatch.setenv("RETRY_TIME_SCALE", value)
        settings.cache_clear()

    yield choose
    monkeypatch.undo()
    settings.cache_clear()


@pytest.mark.parametrize(
    ("age", "pause"),
    [(0, 2.5), (29.9, 2.5), (30, 7.5), (119.9, 7.5), (120, 20), (899, 20), (1e6, 20)],
)
def test_kie_is_asked_more_and_more_seldom(age, pause):
    assert services.poll_pause(age, called_back=False) == pause


@pytest.mark.parametrize(("age", "pause"), [(0, 240), (240, 240), (300, 300), (480, 480)])
def test_kie_is_hardly_asked_where_it_calls_back(age, pause):
    assert services.poll_pause(age, called_back=True) == pause


def test_a_lost_callback_is_made_up_for_while_the_video_may_still_be_made():
    assert services.poll_pause(0, called_back=True) < services.GENERATION_DEADLINE / 2


@pytest.mark.parametrize(("value", "seconds"), [("1", 90), ("0.01", 0.9), ("10", 900)])
def test_a_wait_of_ours_is_scaled(scale, value, seconds):
    scale(value)

    assert services.scaled(90) == pytest.approx(seconds)
