"""What buttons and repeated looks put into the queues: once, however often they come."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from classifiers.errors import Cancelled
from config.settings import settings
from reliability import connection
from reliability.dead_letters import dead_letters
from storage import credits, videos
from storage.upgrade import upgrade
from storage.videos import Order, Video
from tasks.base import Job
from tasks.telegram import AGAIN, SEND
from tasks.video import ask_for_patience, generate, hand_over, make_good, pressed

ORDER = Order("7", "u", "9", "https://shop.example/sofa.jpg", "it turns", Decimal(1), "en")


@pytest.fixture(autouse=True)
def broker(redis_server, redis_client, monkeypatch, tmp_path):
    """Empty queues and an empty database; the user has three credits."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'videos.db'}")
    forget()
    upgrade()
    credits.grant("u", 3, "to begin with")
    yield redis_client
    monkeypatch.undo()
    forget()


def forget() -> None:
    for known in (settings, connection.redis, connection.redis_bytes, dead_letters):
        known.cache_clear()


def refunded(job: str = "first") -> Video:
    videos.begin(ORDER, job, 0)
    return give_up(job)


def give_up(job: str) -> Video:
    ending = videos.give_up_making("7", job, 0, "ServiceUnavailable")
    assert ending.by_this_job
    return ending.video


def press(wanted: str, mark: str) -> str:
    """What somebody reads who presses a button of that *mark* below message 5."""
    return pressed(videos.get("7"), wanted, mark, "5")[0]


def sent(broker, queue: str) -> list[str]:
    """The ids of the jobs in a queue, in the order in which they were sent."""
    return [json.loads(item)["headers"]["id"] for item in reversed(broker.lrange(queue, 0, -1))]


def test_two_taps_on_try_again_are_one_round_and_one_charge():
    mark = refunded().mark
    said = [press(AGAIN, mark), press(AGAIN, mark)]

    assert said == ["press_started", "press_started"]
    assert (videos.get("7").round, credits.balance("u")) == (2, Decimal(2))


def test_a_tap_that_is_heard_again_after_the_next_refund_charges_nothing():
    mark = refunded().mark
    press(AGAIN, mark)
    give_up(videos.get("7").job)
    said = press(AGAIN, mark)

    assert said == "press_refused"
    assert (videos.get("7").round, credits.balance("u")) == (2, Decimal(3))


def test_all_taps_on_try_again_send_one_job(broker):
    mark = refunded().mark
    press(AGAIN, mark)
    press(AGAIN, mark)

    assert set(sent(broker, "kie")) == {f"again-{mark}"}


def test_whoever_cannot_pay_is_told_so_and_nothing_begins(broker):
    mark = refunded().mark
    videos.begin(Order("8", *list(vars_of(ORDER))[1:]), "other", 0)
    for order in ("9", "10"):
        videos.begin(Order(order, *list(vars_of(ORDER))[1:]), "other", 0)

    assert press(AGAIN, mark) == "insufficient_credits"
    assert videos.get("7").state == "refunded"
    assert sent(broker, "kie") == []


def vars_of(order: Order) -> tuple[object, ...]:
    return tuple(getattr(order, name) for name in order.__slots__)


def unconfirmed() -> Video:
    video = videos.ready(videos.begin(ORDER, "first", 0), "generation", "https://kie.example/v.mp4")
    videos.claim("7", video.delivery)
    ending = videos.give_up_sending("7", video.delivery, "OutcomeUnknown", refund=False)
    return ending.video


def test_two_taps_on_send_again_are_one_job(broker):
    mark = unconfirmed().mark
    said = [press(SEND, mark), press(SEND, mark)]

    assert said == ["press_sending", "press_sending"]
    assert len(set(sent(broker, "telegram"))) == 1


@pytest.mark.parametrize("arrived", [True, False])
def test_what_a_person_has_settled_is_not_sent_again(broker, arrived):
    mark = unconfirmed().mark
    videos.settle("7", arrived=arrived, by="anna")

    assert press(SEND, mark) == ("press_done" if arrived else "press_refused")
    assert sent(broker, "telegram") == []
    assert credits.balance("u") == (2 if arrived else 3)


def test_a_button_of_a_former_round_asks_for_nothing(broker):
    mark = refunded().mark
    press(AGAIN, mark)
    broker.delete("kie")
    give_up(videos.get("7").job)

    assert press(SEND, mark) == "press_refused"
    assert sent(broker, "kie") == sent(broker, "telegram") == []


def test_patience_is_asked_for_until_the_video_is_made(broker):
    video = videos.begin(ORDER, "first", 0)
    ask_for_patience("7")
    asked = sent(broker, "telegram")
    videos.ready(video, "generation", "https://kie.example/v.mp4")
    ask_for_patience("7")

    assert asked == [f"{video.charge}-still_working"]
    assert sent(broker, "telegram") == asked


def test_a_made_video_is_handed_over_once_however_often_it_is_looked_at(broker):
    video = videos.ready(videos.begin(ORDER, "first", 0), "generation", "https://kie.example/v.mp4")
    for _ in range(3):
        hand_over(videos.get("7"))

    assert sent(broker, "telegram") == [video.delivery]


def test_a_made_video_goes_its_way_though_the_job_that_had_it_made_is_taken_out(broker):
    video = videos.ready(videos.begin(ORDER, "first", 0), "generation", "https://kie.example/v.mp4")
    make_good.body(**generate.amends(Cancelled, Job("first"), {"order_id": "7"}))

    assert sent(broker, "telegram") == [video.delivery]
    assert videos.get("7").state == "ready"
