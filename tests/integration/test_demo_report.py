"""The demo's verdict: nothing to say of an end that is right, one sentence for whatever is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from config import messages
from config.settings import settings
from reliability.dead_letters import Body, Letter, Metadata
from sandbox import mp4, report, video_report
from sandbox.bot_videos import Measure
from sandbox.load import REFUSED, UPDATE_DEAL
from sandbox.report import Report
from sandbox.video_load import GRANTS, IN_ORDER, ORDERS, VideoOrder
from sandbox.video_report import DOUBT, KILLED, NOBODYS, PATIENCE, Sight, compare
from storage import credits, database, videos
from storage.videos import Order
from tasks.telegram import amount

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

PLAIN = next(order for order in ORDERS if order.story.name == IN_ORDER)
REFUNDED = next(order for order in ORDERS if order.story.messages == ("photo_too_dark",))
SHORT, LONG = 50.0, 100_000.0  # s


@pytest.fixture
def ended(database: str) -> None:
    """Every order has come to the end that its story wants."""
    for user, granted in GRANTS.items():
        credits.grant(user, granted, "to begin with")
    for order in ORDERS:
        for number in range(order.story.rounds):
            video = begun(order, number)
            if order.story.paid and number == order.story.rounds - 1:
                delivered(video, confirmed=order.story.state == "sent")
            else:
                videos.give_up_making(order.key, video.job, 0, "why")


def begun(order: VideoOrder, number: int) -> videos.Video:
    if number:
        return videos.again(order.key, f"again-{order.key}-{number}", after=number)
    asked = {**order.body, "chat_id": str(order.chat), "user_id": str(order.user)}
    return videos.begin(Order(**{**asked, "cost": order.cost}), f"job-{order.key}", 0)


def delivered(video: videos.Video, *, confirmed: bool) -> None:
    ready = videos.ready(video, videos.generation(video, "model").id, "https://kie.example/1.mp4")
    videos.claim(ready.order_id, ready.delivery)
    if confirmed:
        with database.transaction() as connection:
            videos.sent(connection, ready.order_id, "1", "file")
    else:
        videos.give_up_sending(ready.order_id, ready.delivery, "lost", refund=False)


def sight() -> Sight:
    """What the simulators have seen where all has ended well."""
    texts: dict[int, Counter[str]] = {}
    for order in ORDERS:
        texts.setdefault(order.place, Counter()).update(order.story.messages)
    return Sight(
        kie={"creates_by_callback": {"g1": 1}, "limit_answers": {}},
        telegram={"limit_answers": 0},
        tasks=Counter({order.key: order.story.tasks for order in ORDERS}),
        videos=Counter({order.key: order.story.videos for order in ORDERS}),
        messages=texts,
    )


def letter(task: str, error: str = "no", **kwargs: Any) -> Letter:
    body = Body(task, kwargs=kwargs)
    return Letter(f"{task}-1", "q", "E", error, body, Metadata(datetime.now(UTC)))


def test_an_end_that_is_right_leaves_nothing_to_say(ended: None):
    assert compare(sight(), [], SHORT) == []


def wrong(**changes: Any) -> Sight:
    return replace(sight(), **changes)


def more(counts: str, key: str, by: int = 1) -> Sight:
    seen = sight()
    getattr(seen, counts)[key] += by
    return seen


def told(order: VideoOrder, code: str, by: int = 1) -> Sight:
    seen = sight()
    seen.messages[order.place][code] += by
    return seen


@pytest.mark.parametrize(
    ("seen", "finding"),
    [
        pytest.param(more("videos", PLAIN.key), "videos 2, not 1", id="two-videos"),
        pytest.param(more("videos", PLAIN.key, -1), "videos 0, not 1", id="no-video"),
        pytest.param(more("videos", REFUNDED.key), "videos 1, not 0", id="a-free-video"),
        pytest.param(more("videos", NOBODYS), "0 tasks and 1 videos are nobody's", id="foreign"),
        pytest.param(more("tasks", PLAIN.key), "tasks at KIE 2, not 1", id="made-twice"),
        pytest.param(told(PLAIN, "system_error"), "has got system_error", id="a-message-too-many"),
        pytest.param(told(PLAIN, PATIENCE), "has got still_working", id="patience-too-early"),
        pytest.param(
            told(REFUNDED, REFUNDED.story.messages[0], -1),
            f"has not got {REFUNDED.story.messages[0]}",
            id="a-message-too-few",
        ),
        pytest.param(
            wrong(kie={"creates_by_callback": {"g1": 2}, "limit_answers": {}}),
            "KIE was asked 2 times for the one generation g1",
            id="one-callback-address-twice",
        ),
        pytest.param(
            wrong(kie={"creates_by_callback": {}, "limit_answers": {"createTask": 3}}),
            "KIE's limit of createTask was broken 3 times",
            id="kie-limit",
        ),
        pytest.param(
            wrong(telegram={"limit_answers": 1}),
            "Telegram's limits were broken 1 times",
            id="telegram-limit",
        ),
    ],
)
def test_what_the_upstreams_tell_otherwise_is_found(ended: None, seen: Sight, finding: str):
    (found,) = compare(seen, [], SHORT)

    assert finding in found


def test_credits_that_came_from_nowhere_are_found(ended: None):
    credits.grant(PLAIN.user, 1, "one more")
    findings = compare(sight(), [], SHORT)

    assert any(f"user {PLAIN.user} has" in found for found in findings)
    assert any("credits were granted, not" in found for found in findings)


def test_a_video_that_was_paid_back_is_found(ended: None):
    with database.transaction() as connection:
        credits.refund(connection, of=f"video:{PLAIN.key}:1", key="gift", reason="a gift")
    findings = compare(sight(), [], SHORT)

    assert any(f"user {PLAIN.user} has" in found for found in findings)


def test_an_order_that_was_never_begun_is_found(database: str):
    findings = compare(sight(), [], SHORT)

    assert f"video {PLAIN.key} ({IN_ORDER}): its state , not sent" in findings


def test_who_waits_long_may_be_asked_for_patience_once(ended: None):
    assert compare(told(PLAIN, PATIENCE), [], LONG) == []


@pytest.mark.parametrize("arrived", [1, 2])
def test_what_was_on_its_way_when_the_worker_died_may_arrive_twice(ended: None, arrived: int):
    seen = told(PLAIN, DOUBT)
    seen.videos[PLAIN.key] = arrived

    assert compare(seen, [letter("video.send", KILLED, order_id=PLAIN.key)], SHORT) == []


def test_a_message_that_was_on_its_way_when_the_worker_died_may_be_lost(ended: None):
    (code,) = REFUNDED.story.messages
    dying = letter("telegram.notify", KILLED, chat_id=str(REFUNDED.chat), message=code)

    assert compare(told(REFUNDED, code, -1), [dying], SHORT) == []


# -- whose a message is


def listed(order: VideoOrder, *, task: str = "", code: str = "") -> dict[str, Any]:
    """A message as the simulator lists it: the video of a task, or a text."""
    measure = Measure()
    measure.add(mp4.video(task))
    facts = {"credits": amount(order.cost), "support": settings().support_contact}
    return {
        "chat_id": order.place,
        "content": measure.content().digest if task else "",
        "text": messages.text(code, order.locale, **facts) if code else "",
    }


def test_videos_and_messages_are_known_by_what_is_in_them(database: str):
    answers = {
        "/_sandbox/tasks": [{"task_id": "t1", "image": PLAIN.body["image_url"]}],
        "/_sandbox/messages": [
            listed(PLAIN, task="t1"),
            listed(PLAIN, task="t2"),
            listed(REFUNDED, code=REFUNDED.story.messages[0]),
            {"chat_id": PLAIN.place, "content": "", "text": "Hello!"},
        ],
        "/_sandbox/summary": {"requests": 1},
    }
    handler = httpx.MockTransport(lambda asked: httpx.Response(200, json=answers[asked.url.path]))
    with httpx.Client(base_url="http://sandbox", transport=handler) as both:
        seen = Sight.now(both, both)

    assert seen.tasks == {PLAIN.key: 1}
    assert seen.videos == {PLAIN.key: 1, NOBODYS: 1}
    assert seen.messages == {
        REFUNDED.place: {REFUNDED.story.messages[0]: 1},
        PLAIN.place: {"'Hello!'": 1},
    }


# -- dead letters


def a_report(letters: list[Letter], **states: str) -> Report:
    return Report(dict.fromkeys(states, "t"), states, {}, 0, 0, 0, letters)


def right_letters() -> list[Letter]:
    pairs = [(UPDATE_DEAL, str(REFUSED)), *sorted(video_report.expected_dead())]
    return [letter(task, order_id=order) for task, order in pairs]


@pytest.mark.parametrize(
    "too_many",
    [
        [],
        [letter("video.send", KILLED, order_id=PLAIN.key)],
        [replace(letter("x"), state="discarded")],
    ],
    ids=["expected", "killed", "settled"],
)
def test_dead_letters_that_were_to_be_expected_are_no_finding(
    database: str, too_many: list[Letter]
):
    assert list(report._letters_differ(a_report([*right_letters(), *too_many]))) == []


@pytest.mark.parametrize(
    ("letters", "finding"),
    [
        pytest.param(
            right_letters()[1:], f"{UPDATE_DEAL} of order {REFUSED} is no dead letter", id="missing"
        ),
        pytest.param(
            [*right_letters(), letter("video.send", order_id="v0")], "died: no", id="another"
        ),
        pytest.param([*right_letters(), right_letters()[0]], "died: no", id="twice"),
    ],
)
def test_dead_letters_that_are_missing_or_too_many_are_found(
    database: str, letters: list[Letter], finding: str
):
    (found,) = report._letters_differ(a_report(letters))

    assert finding in found


def test_a_job_that_failed_without_a_letter_is_found(database: str):
    (found,) = report._letters_differ(a_report(right_letters(), lost="FAILURE"))

    assert found == "lost failed, but is no dead letter"
