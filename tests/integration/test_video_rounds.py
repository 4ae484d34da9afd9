"""Videos: charged once a round, and sent or refunded, whoever races, dies or comes late."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from classifiers.errors import InvalidData, JobError, OutcomeUnknown, Pending, UserError
from config.settings import settings
from storage import credits, effects, media, videos
from storage import database as storage_database
from storage.models import effects as effects_table
from storage.models import generations as generations_table
from storage.models import videos as videos_table
from storage.videos import Order

only_on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

USER = "7"
COST = Decimal("4.00")
ORDER = Order("1", USER, "70", "https://shop.example/cat.jpg", "it dances", COST, "ru")
URL = "https://kie.example/1.mp4"
MAKER, OTHER = "job-1", "job-2"
STATES = ("paid", "ready", "sending", "sent", "unconfirmed", "refunded")
PAID_FOR = STATES[:-1]
LONG = 60.0  # s; a lease that no test outlives


@pytest.fixture(autouse=True)
def _wallet(database):
    credits.grant(USER, 25 * COST, "welcome")


def video():
    return videos.get(ORDER.order_id)


def begin(job=MAKER, replays=0, order=ORDER):
    return videos.begin(order, job, replays)


def again(number):
    """Tap the button under the message about the round before *number*."""
    return videos.again(ORDER.order_id, f"again-{number}", after=number - 1)


def moved(user_id=USER):
    """Kinds of the transfers of a user since the first grant, oldest first."""
    return [entry.kind for entry in reversed(credits.history(user_id))][1:]


def give_up_making(job=MAKER, replays=0, reason="system_error"):
    return videos.give_up_making(ORDER.order_id, job, replays, reason)


def give_up_sending(job, reason="delivery_failed", *, refund=True):
    return videos.give_up_sending(ORDER.order_id, job, reason, refund=refund)


def send(job, do, order_id=ORDER.order_id):
    """Run the effect by which *job* sends, as its task does."""

    def record(connection, result):
        videos.sent(connection, order_id, result["message_id"], result["file_id"])

    key = videos.sending_key(job)
    return effects.once(key, do, owner=job, lease=LONG, record=record).result


def deliver(job, message_id="500", file_id="file-1"):
    return send(job, lambda: {"message_id": message_id, "file_id": file_id})


def leave_effect(job, state):
    """Leave the effect by which *job* sends in *state*; None for one that never began."""
    if state is not None:
        effects.once(videos.sending_key(job), dict, owner=job, lease=LONG)
        with storage_database.write() as connection:
            of_job = effects_table.c.key == videos.sending_key(job)
            connection.execute(update(effects_table).where(of_job).values(state=state))


def job_of(name, of):
    """The id of a job by its part: the delivery of a video, or of the round before; or any job."""
    former = f"send-{of.token}-{of.round - 1}"
    return {"delivery": of.delivery, "former": former}.get(name, name)


def reach(state, by="delivery"):
    """Bring the order, in the round it is in, to *state*; *by* is the job that sends."""
    made = video() or begin()
    job = job_of(by, made)
    if state == "refunded":
        give_up_making(made.job, made.replays)
    if state in {"paid", "refunded"}:
        return video()
    videos.ready(made, "g1", URL)
    if state != "ready":
        videos.claim(ORDER.order_id, job)
    if state == "sent":
        deliver(job)
    if state == "unconfirmed":
        leave_effect(job, "unknown")
        give_up_sending(job)
    if state == "undelivered":  # refunded, too
        leave_effect(job, "undone")
        give_up_sending(job)
    return video()


def race(racers, run):
    """What each of *racers* threads got or was refused with, all let go at once."""
    start = threading.Barrier(racers)

    def one(number):
        start.wait(10)
        try:
            return run(number)
        except JobError as error:
            return error

    with ThreadPoolExecutor(racers) as threads:
        return list(threads.map(one, range(racers)))


# ── Beginning ────────────────────────────────────────────────────────────────────────────────


def test_new_order_is_charged_and_written_down():
    begun = begin()

    assert begun == video()
    assert (begun.state, begun.round, begun.job, begun.replays) == ("paid", 1, MAKER, 0)
    assert Order(**begun.order) == ORDER
    assert (begun.generation, begun.sender, begun.doubts, begun.reason) == (None, None, (), None)
    assert [(entry.key, entry.amount) for entry in credits.history(USER, limit=1)] == [
        (begun.charge, -COST)
    ]


@pytest.mark.parametrize("jobs", [1, 16], ids=["one redelivered job", "as many jobs"])
def test_one_of_many_concurrent_callers_charges(jobs):
    begun = race(16, lambda number: begin(f"job-{number % jobs}"))

    assert {(v.token, v.state, v.round) for v in begun} == {(video().token, "paid", 1)}
    assert moved() == ["charge"]


def test_user_with_too_few_credits_leaves_no_row():
    poor = replace(ORDER, user_id="8")
    outcomes = race(8, lambda number: begin(f"job-{number}", order=poor))

    assert {outcome.reason for outcome in outcomes} == {"insufficient_credits"}
    assert (video(), moved("8")) == (None, [])
    credits.grant("8", COST, "payment")
    assert begin(order=poor).state == "paid"


def test_of_many_orders_as_many_begin_as_the_balance_pays_for():
    credits.grant("8", 5 * COST, "welcome")
    orders = [replace(ORDER, user_id="8", order_id=f"o{number}") for number in range(12)]
    race(12, lambda number: begin(order=orders[number]))

    assert videos.counts() == {"paid": 5}
    assert credits.balance("8") == 0


def test_cost_that_the_ledger_refuses_leaves_no_row():
    with pytest.raises(InvalidData):
        begin(order=replace(ORDER, cost=credits.MOST + 1))
    assert (video(), moved()) == (None, [])


@pytest.mark.parametrize("state", PAID_FOR)
def test_second_job_goes_on_with_the_round_without_a_charge(state):
    before = reach(state)
    after = begin(OTHER, order=replace(ORDER, prompt="it sings", cost=Decimal(1)))

    assert after == replace(before, job=OTHER, updated_at=after.updated_at) == video()
    assert moved() == ["charge"]


@pytest.mark.parametrize("replays", [0, 1], ids=["first", "old copy"])
def test_message_that_comes_again_changes_nothing(replays):
    begin()
    before = begin(MAKER, 1)

    assert begin(MAKER, replays) == before == video()


@pytest.mark.parametrize("state", ["refunded", "undelivered"])
@pytest.mark.parametrize("job", [MAKER, OTHER])
def test_refunded_order_is_not_begun_anew_by_a_plain_call(state, job):
    before = reach(state)

    assert begin(job) == before == video()
    assert moved() == ["charge", "refund"]


# ── Another round ────────────────────────────────────────────────────────────────────────────

# What begins the round *number*: a person who sends the dead job again, or the user who taps.
WAYS = pytest.mark.parametrize(
    "begin_anew",
    [
        pytest.param(lambda number: begin(MAKER, number - 1), id="replay"),
        pytest.param(lambda number: begin(OTHER, number - 1), id="replay of another job"),
        pytest.param(again, id="button"),
    ],
)


@WAYS
@pytest.mark.parametrize("state", ["refunded", "undelivered"])
def test_refunded_video_is_begun_anew_and_charged_anew(begin_anew, state):
    before = reach(state)
    after = begin_anew(2)

    assert (after.state, after.round, after.token) == ("paid", 2, before.token)
    assert after.begun_at > before.begun_at
    assert after.created_at == before.created_at
    left = (after.generation, after.result_url, after.sender, after.message_id, after.reason)
    assert left == (None,) * 5
    assert moved() == ["charge", "refund", "charge"]
    assert len({entry.key for entry in credits.history(USER)}) == 4


@WAYS
def test_one_of_many_copies_begins_anew(begin_anew):
    reach("refunded")
    begun = race(16, lambda _: begin_anew(2))

    assert {(v.state, v.round) for v in begun} == {("paid", 2)}
    assert moved() == ["charge", "refund", "charge"]


@WAYS
def test_each_begins_one_round_however_often_it_comes(begin_anew):
    reach("refunded")
    begun = begin_anew(2)
    give_up_making(begun.job, begun.replays)
    late = begin_anew(2)
    following = begin_anew(3)

    assert (late.state, late.round) == ("refunded", 2)
    assert (following.state, following.round) == ("paid", 3)
    assert moved() == ["charge", "refund"] * 2 + ["charge"]


@pytest.mark.parametrize(
    "follows",
    [
        pytest.param(lambda: begin(MAKER, 2), id="another replay"),
        pytest.param(lambda: begin(OTHER, 1), id="replay of another job"),
        pytest.param(lambda: again(3), id="button"),
    ],
)
def test_late_copy_of_a_replay_begins_nothing(follows):
    reach("refunded")
    begin(MAKER, 1)
    give_up_making(MAKER, 1)
    before = follows()
    give_up_making(before.job, before.replays)

    assert begin(MAKER, 1) == video()
    assert (video().state, video().round) == ("refunded", 3)
    assert moved() == ["charge", "refund"] * 3


def test_replay_that_went_on_with_a_round_begins_no_other():
    begin()
    begin(OTHER, 1)
    begin(MAKER)
    give_up_making(MAKER)

    assert begin(OTHER, 1) == video()
    assert moved() == ["charge", "refund"]
    assert begin(OTHER, 2).round == 2


@WAYS
@pytest.mark.parametrize("state", ["paid", "sending", "unconfirmed"])
def test_what_is_paid_for_is_not_charged_anew(begin_anew, state):
    before = reach(state)
    after = begin_anew(2)

    assert (after.state, after.round, after.sender) == (state, 1, before.sender)
    assert moved() == ["charge"]


@WAYS
def test_too_little_balance_leaves_a_video_refunded(begin_anew):
    before = reach("refunded")
    begin(order=replace(ORDER, order_id="dear", cost=credits.balance(USER)))
    with pytest.raises(UserError):
        begin_anew(2)

    assert video() == before
    assert moved() == ["charge", "refund", "charge"]
    credits.grant(USER, COST, "payment")
    assert begin_anew(2).round == 2


# ── Giving up the making ─────────────────────────────────────────────────────────────────────


def test_video_that_is_not_made_is_refunded():
    begin()
    ending = give_up_making(reason="photo_too_dark")

    assert (ending.video, ending.by_this_job) == (video(), True)
    assert (video().state, video().reason, video().sender) == ("refunded", "photo_too_dark", None)
    assert moved() == ["charge", "refund"]
    assert credits.history(USER, limit=1)[0].reason == "video 1: photo_too_dark"


@pytest.mark.parametrize(
    ("job", "replays", "ours"),
    [(OTHER, 1, True), (OTHER, 0, False), (OTHER, 2, False), (MAKER, 0, False), (MAKER, 1, False)],
)
def test_only_the_job_that_worked_last_ends_the_round_and_hears_it_again(job, replays, ours):
    begin(MAKER)
    begin(OTHER)
    begin(OTHER, 1)
    endings = [give_up_making(job, replays) for _ in range(2)]

    assert [ending.by_this_job for ending in endings] == [ours] * 2
    assert endings[-1].video == video()
    assert moved() == (["charge", "refund"] if ours else ["charge"])


def test_one_of_many_ends_of_a_job_refunds_and_all_hear_of_it():
    begin()
    endings = race(16, lambda _: give_up_making())

    assert {(e.video.state, e.by_this_job) for e in endings} == {("refunded", True)}
    assert moved() == ["charge", "refund"]


@pytest.mark.parametrize("state", ["ready", "sending", "sent", "unconfirmed", "undelivered"])
def test_what_is_made_ends_with_its_delivery(state):
    before = reach(state)
    ending = give_up_making(MAKER)

    assert (ending.video, ending.by_this_job) == (before, False)
    assert video() == before


@pytest.mark.parametrize("state", ["paid", "ready", "refunded"])
def test_late_end_of_a_former_round_is_no_end_of_this_one(state):
    reach("refunded")
    again(2)
    before = reach(state)
    ending = give_up_making(MAKER)

    assert (ending.video, ending.by_this_job) == (before, False)
    assert video() == before


def test_making_and_giving_up_at_once_agree():
    orders = [replace(ORDER, order_id=str(number)) for number in range(8)]
    begun = [begin(order=order) for order in orders]

    def end(number):
        if number % 2:
            return videos.ready(begun[number // 2], "g1", URL)
        return videos.give_up_making(str(number // 2), MAKER, 0, "cancelled")

    race(16, end)
    charged = credits.totals()["charged"] - credits.totals()["refunded"]
    assert videos.counts().keys() <= {"ready", "refunded"}
    assert charged == videos.counts().get("ready", 0) * COST


def test_end_of_what_never_began_ends_nothing():
    assert give_up_making() is None
    assert give_up_sending("send-1") is None
    assert videos.claim("1", "send-1") is None


# ── Making ───────────────────────────────────────────────────────────────────────────────────


def note_asked(generation_id, task_id="task-1"):
    with storage_database.transaction() as connection:
        videos.asked(connection, generation_id, task_id)


def pass_time(generation_id, seconds):
    """Let it be *seconds* since KIE took a generation."""
    with storage_database.write() as connection:
        connection.execute(
            update(generations_table)
            .where(generations_table.c.id == generation_id)
            .values(asked_at=storage_database.now(plus=-seconds))
        )


def test_generation_is_one_until_it_fails():
    paid = begin()
    first = videos.generation(paid, "sora")
    same = videos.generation(paid, "veo")
    videos.failed(first.id, "KIE: 500")
    second = videos.generation(paid, "veo")

    assert same == first
    assert [(g.number, g.model, g.round, g.failure) for g in (first, second)] == [
        (1, "sora", 1, None),
        (2, "veo", 1, None),
    ]
    assert first.id != second.id
    assert videos.generation(paid, "sora") == second


def test_generation_that_was_refused_for_the_users_sake_is_the_last_of_its_round():
    paid = begin()
    first = videos.generation(paid, "sora")
    videos.failed(first.id, "too dark", refused_for="photo_too_dark")
    last = videos.generation(paid, "sora")

    assert last == replace(first, failure="too dark", refused_for="photo_too_dark")
    give_up_making()
    assert videos.generation(again(2), "sora").failure is None


def test_round_has_generations_of_its_own():
    first = videos.generation(begin(), "sora")
    give_up_making()
    second = videos.generation(again(2), "sora")

    assert (second.round, second.number, second.failure) == (2, 1, None)
    assert second.id != first.id


@pytest.mark.parametrize("failed", [0, 2])
def test_callers_at_once_get_the_same_generation(failed):
    paid = begin()
    for _ in range(failed):
        videos.failed(videos.generation(paid, "sora").id, "no")
    got = race(16, lambda _: videos.generation(paid, "sora"))

    assert len({g.id for g in got}) == 1
    assert got[0].number == failed + 1


def test_generations_that_fail_at_once_are_followed_by_one_another():
    paid = begin()

    def try_and_fail(_):
        for _ in range(4):
            videos.failed(videos.generation(paid, "sora").id, "no")

    race(8, try_and_fail)
    with storage_database.read() as connection:
        numbers = connection.execute(select(generations_table.c.number)).scalars().all()
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_generation_has_an_age_from_when_kie_took_it():
    begun = videos.generation(begin(), "sora")
    note_asked(begun.id)
    asked = videos.generation(video(), "sora")
    pass_time(begun.id, 90)

    assert (begun.age, begun.task_id) == (0.0, None)
    assert (asked.task_id, videos.task_of(begun.id)) == ("task-1", "task-1")
    assert videos.generation(video(), "sora").age == pytest.approx(90, abs=10)


def test_generation_that_is_noted_again_keeps_its_age():
    begun = videos.generation(begin(), "sora")
    note_asked(begun.id)
    pass_time(begun.id, 90)
    note_asked(begun.id)

    assert videos.generation(video(), "sora").age == pytest.approx(90, abs=10)


def test_generation_is_noted_with_the_effect_or_not_at_all():
    begun = videos.generation(begin(), "sora")

    def record(connection, result):
        videos.asked(connection, begun.id, "task-1")
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError):
        effects.once("kie.create:1", dict, owner=MAKER, lease=LONG, record=record)
    assert videos.generation(video(), "sora") == begun


@pytest.mark.parametrize(
    ("known", "told", "expected"),
    [
        pytest.param(None, "task-2", "task-2", id="unknown"),
        pytest.param(None, None, None, id="callback without an id"),
        pytest.param("task-1", "task-2", "task-1", id="known"),
        pytest.param("task-1", None, "task-1", id="known, without an id"),
    ],
)
def test_callback_names_only_a_generation_that_has_no_name(known, told, expected):
    begun = videos.generation(begin(), "sora")
    if known:
        note_asked(begun.id, known)
    before = videos.generation(video(), "sora")

    assert videos.called_back(begun.id, told) == video()
    assert videos.generation(video(), "sora") == replace(before, task_id=expected)


def test_callback_of_an_unknown_generation_is_of_no_video():
    known = videos.generation(begin(), "sora")

    assert [videos.asked_for(name) for name in (known.id, "nobody")] == [True, False]
    assert videos.called_back("nobody", "task-1") is None
    assert videos.task_of("nobody") is None


def test_made_video_is_ready():
    paid = begin()
    made = videos.ready(paid, "g1", URL)

    assert made == video()
    assert (made.state, made.generation, made.result_url) == ("ready", "g1", URL)


@pytest.mark.parametrize("state", [*STATES[1:], "undelivered"])
def test_video_that_is_made_twice_stays_as_it_is(state):
    before = reach(state)

    assert videos.ready(before, "g2", f"{URL}?2") == before == video()


def test_video_that_is_made_for_a_round_that_is_over_is_not_of_the_next():
    former = begin()
    give_up_making()
    paid = again(2)

    assert videos.ready(former, "g1", URL) == paid == video()


# ── Delivering ───────────────────────────────────────────────────────────────────────────────

ANYBODY = ("delivery", "former", "resend-1", "resend-2")


@pytest.mark.parametrize("state", [*STATES, "undelivered"])
def test_video_knows_who_was_sent_to_deliver_it_and_when(state):
    before = reach(state, "resend-1")
    videos.handed_over(before, "send-1")

    noted = {"ready": "send-1", "sending": "resend-1"}.get(state)
    if noted is None:
        assert video() == before
    else:
        assert video().updated_at > before.updated_at
        assert video() == replace(before, sender=noted, updated_at=video().updated_at)


def test_job_that_was_sent_to_deliver_a_former_round_is_not_noted_in_the_next():
    former = reach("undelivered")
    again(2)
    before = reach("ready")
    videos.handed_over(former, former.delivery)

    assert video() == before


@pytest.mark.parametrize("handed_over", [True, False])
def test_first_to_come_delivers_what_is_ready(handed_over):
    made = reach("ready")
    if handed_over:
        videos.handed_over(made, made.delivery)
    claims = race(16, lambda number: videos.claim("1", f"job-{number % 8}"))
    senders = {claimed.sender for claimed, _ in claims}

    assert senders == {video().sender}
    assert [may_send for _, may_send in claims].count(True) == 2  # that job, and its copy
    assert video().state == "sending"


def test_delivery_of_a_former_round_does_not_come_first():
    reach("undelivered")
    again(2)
    before = reach("ready")

    assert videos.claim("1", job_of("former", before)) == (before, False)
    assert video() == before


@pytest.mark.parametrize(
    ("state", "by", "allowed"),
    [
        ("paid", "", set()),
        ("sending", "delivery", {"delivery"}),
        ("sending", "resend-1", {"resend-1"}),
        ("sent", "delivery", {"resend-1", "resend-2"}),
        ("sent", "resend-1", {"resend-1", "resend-2"}),
        ("unconfirmed", "delivery", {"delivery", "resend-1", "resend-2"}),
        ("unconfirmed", "resend-1", {"resend-1", "resend-2"}),
        ("refunded", "", set()),
        ("undelivered", "delivery", set()),
        ("undelivered", "resend-1", set()),
    ],
)
def test_who_may_send(state, by, allowed):
    before = reach(state, by)
    claims = {name: videos.claim("1", job_of(name, before)) for name in ANYBODY}
    doubts = claims["resend-2"][0].doubts

    assert {name for name, (_, may_send) in claims.items() if may_send} == allowed
    assert replace(before, doubts=doubts, updated_at=video().updated_at) == video()


def test_resend_is_a_doubt_before_its_call():
    before = reach("unconfirmed")
    claims = [videos.claim("1", job)[0].doubts for job in ("resend-1", "resend-2", "resend-1")]

    assert claims[0] == (before.delivery, "resend-1")
    assert claims[1] == claims[2] == (before.delivery, "resend-1", "resend-2") == video().doubts


def test_arrived_video_is_noted_with_the_effect():
    before = reach("unconfirmed")
    deliver("resend-1")

    assert video() == replace(
        before,
        state="sent",
        message_id="500",
        file_id="file-1",
        reason=None,
        updated_at=video().updated_at,
    )
    assert video().doubts == (before.delivery,)
    assert effects.get(videos.sending_key("resend-1")).state == "done"


@pytest.mark.parametrize(("told", "kept"), [("", "file-1"), ("file-2", "file-2")])
def test_message_of_a_resend_is_the_newest_and_a_link_has_no_file(told, kept):
    reach("sent")
    deliver("resend-1", "501", told)

    assert (video().message_id, video().file_id) == ("501", kept)


def test_video_is_not_sent_before_its_effect_is_written_down():
    before = reach("sending")

    def record(connection, result):
        videos.sent(connection, "1", "500", "file-1")
        raise RuntimeError("no room")

    key = videos.sending_key(before.sender)
    with pytest.raises(RuntimeError):
        effects.once(key, dict, owner=before.sender, lease=LONG, record=record)
    assert video() == before


@pytest.mark.parametrize("state", ["refunded", "undelivered"])
def test_refunded_video_that_came_all_the_same_stays_refunded_and_is_logged(state, caplog):
    before = reach(state)
    deliver("late")

    assert video() == before
    assert "order 1: message 500 has brought a refunded video" in caplog.text


def test_video_is_found_by_what_a_button_holds():
    begin()
    begin(order=replace(ORDER, order_id="2"))

    assert videos.by_token(video().token) == video()
    assert videos.by_token("nobody's") is None
    assert videos.counts() == {"paid": 2}


# ── Giving up the sending ────────────────────────────────────────────────────────────────────


def ended(state, *doubts, ours=True):
    return state, ours, doubts


@pytest.mark.parametrize("asked_to_refund", [True, False], ids=["refund", "keep"])
@pytest.mark.parametrize(
    ("state", "by", "effect", "refundable"),
    [
        pytest.param("ready", "delivery", None, True, id="before it came to it"),
        pytest.param("sending", "delivery", None, True, id="before the call"),
        pytest.param("sending", "delivery", "undone", True, id="refused"),
        pytest.param("sending", "delivery", "intended", False, id="in the call"),
        pytest.param("sending", "delivery", "unknown", False, id="no answer"),
        pytest.param("sending", "delivery", "done", False, id="a person says it came"),
        pytest.param("sending", "resend-1", "undone", True, id="refused to another"),
        pytest.param("sending", "resend-1", "unknown", False, id="no answer to another"),
    ],
)
def test_undelivered_video_is_refunded_unless_it_may_have_arrived(
    state, by, effect, refundable, asked_to_refund
):
    before = reach(state, by)
    job = job_of(by, before)
    leave_effect(job, effect)
    endings = [give_up_sending(job, "why", refund=asked_to_refund) for _ in range(2)]

    refunded = refundable and asked_to_refund
    assert [ending.by_this_job for ending in endings] == [True, True]
    assert endings[-1].video == video()
    assert (video().state, video().reason) == ("refunded" if refunded else "unconfirmed", "why")
    assert video().doubts == (() if refunded else (job,))
    assert moved() == (["charge", "refund"] if refunded else ["charge"])


@pytest.mark.parametrize(
    ("state", "by", "job"),
    [
        ("paid", "", "delivery"),
        ("ready", "", "resend-1"),
        ("ready", "", "former"),
        ("sending", "resend-1", "delivery"),
        ("sending", "delivery", "resend-1"),
        ("sending", "delivery", "former"),
        ("sent", "delivery", "delivery"),
        ("sent", "delivery", "resend-1"),
        ("sent", "resend-1", "resend-1"),
        ("unconfirmed", "delivery", "former"),
        ("unconfirmed", "resend-1", "delivery"),
        ("refunded", "", "delivery"),
        ("undelivered", "delivery", "resend-1"),
        ("undelivered", "delivery", "former"),
    ],
)
def test_job_that_does_not_deliver_the_round_changes_nothing(state, by, job):
    reach("undelivered")
    again(2)
    before = reach(state, by)
    ending = give_up_sending(job_of(job, before))

    assert (ending.video, ending.by_this_job) == (before, False)
    assert video() == before


def test_doubt_that_was_another_run_of_one_job_ends_when_that_run_is_refused_too():
    job = reach("sending").sender
    leave_effect(job, "intended")  # by the second run, which is calling while the first gives up
    first = give_up_sending(job)
    assert first.video.state == "unconfirmed"

    leave_effect(job, "undone")
    endings = [give_up_sending(job) for _ in range(2)]

    assert [ending.by_this_job for ending in endings] == [True, True]
    assert (video().state, moved()) == ("refunded", ["charge", "refund"])


@pytest.mark.parametrize(
    ("of_delivery", "of_resend", "last", "refund", "expected"),
    [
        ("unknown", None, "resend-1", True, "unconfirmed"),
        ("unknown", "undone", "resend-1", True, "unconfirmed"),
        ("undone", "intended", "delivery", True, "unconfirmed"),
        ("undone", "unknown", "delivery", True, "unconfirmed"),
        ("undone", "unknown", "resend-1", True, "unconfirmed"),
        ("undone", "done", "delivery", True, "unconfirmed"),
        ("undone", "undone", "resend-1", False, "unconfirmed"),
        ("undone", "undone", "resend-1", True, "refunded"),
        ("undone", None, "delivery", True, "refunded"),
    ],
)
def test_doubtful_video_is_refunded_only_where_every_job_was_refused(
    of_delivery, of_resend, last, refund, expected
):
    before = reach("unconfirmed")
    videos.claim("1", "resend-1")
    with storage_database.write() as connection:
        connection.execute(update(effects_table).values(state=of_delivery))
    leave_effect("resend-1", of_resend)
    endings = [give_up_sending(job_of(last, before), "why", refund=refund) for _ in range(2)]

    assert [ending.by_this_job for ending in endings] == [True, True]
    assert endings[-1].video == video()
    assert (video().state, video().reason) == (expected, "why")
    assert video().doubts == (before.delivery, "resend-1")
    assert moved() == ["charge", "refund"][: 1 + (expected == "refunded")]


def test_resend_that_never_came_to_its_call_is_a_doubt_too():
    before = reach("unconfirmed")
    ending = give_up_sending("resend-1")

    assert (ending.video, ending.by_this_job) == (video(), True)
    assert (video().state, video().doubts) == ("unconfirmed", (before.delivery, "resend-1"))


def test_resends_that_fail_at_once_are_all_remembered():
    before = reach("unconfirmed")
    race(8, lambda number: give_up_sending(f"resend-{number}"))

    assert set(video().doubts) == {before.delivery, *(f"resend-{n}" for n in range(8))}


def test_one_of_many_ends_of_a_delivery_refunds_and_all_hear_of_it():
    job = reach("sending").sender
    endings = race(16, lambda _: give_up_sending(job))

    assert {(e.video.state, e.by_this_job) for e in endings} == {("refunded", True)}
    assert moved() == ["charge", "refund"]


# ── By hand ──────────────────────────────────────────────────────────────────────────────────


def test_person_who_knows_that_it_has_arrived_leaves_it_paid_for():
    before = reach("unconfirmed")
    settled = videos.settle("1", arrived=True, by="ann")

    assert settled == video()
    assert settled == replace(before, state="sent", reason=None, updated_at=settled.updated_at)
    assert moved() == ["charge"]


def test_person_who_knows_that_it_has_not_arrived_pays_it_back_once():
    reach("unconfirmed")
    settled = [videos.settle("1", arrived=False, by="ann") for _ in range(2)]

    assert settled == [video(), None]
    assert (video().state, video().reason) == ("refunded", "settled by ann")
    assert moved() == ["charge", "refund"]
    assert videos.claim("1", "resend-1")[1] is False
    assert begin(MAKER, 1).doubts == ()


@pytest.mark.parametrize("state", [*STATES[:4], "refunded", "undelivered"])
def test_person_has_nothing_to_say_where_there_is_no_doubt(state):
    before = reach(state)

    assert [videos.settle("1", arrived=word, by="ann") for word in (True, False)] == [None, None]
    assert video() == before


@pytest.mark.parametrize("effect", ["intended", "unknown"])
def test_person_cannot_pay_back_what_may_arrive_in_a_moment(effect):
    reach("unconfirmed")
    videos.claim("1", "resend-1")
    leave_effect("resend-1", effect)
    with storage_database.write() as connection:
        soon = storage_database.now(plus=LONG)
        of_resend = effects_table.c.key == videos.sending_key("resend-1")
        connection.execute(update(effects_table).where(of_resend).values(called_until=soon))

    with pytest.raises(Pending):
        videos.settle("1", arrived=False, by="ann")
    assert (video().state, moved()) == ("unconfirmed", ["charge"])
    assert videos.settle("1", arrived=True, by="ann").state == "sent"


def test_video_of_nobody_cannot_be_settled():
    assert videos.settle("1", arrived=True, by="ann") is None


# ── What the tables refuse ───────────────────────────────────────────────────────────────────


def test_state_is_one_of_six():
    begin()

    with pytest.raises(IntegrityError, match="ck_videos_state"), storage_database.write() as lent:
        lent.execute(update(videos_table).values(state="lost"))


def test_button_speaks_of_one_video():
    begin()
    begin(order=replace(ORDER, order_id="2"))

    with pytest.raises(IntegrityError), storage_database.write() as connection:
        connection.execute(update(videos_table).values(token="same"))


def test_try_has_one_number():
    first = videos.generation(begin(), "sora")
    now = storage_database.now()
    row = {"order_id": "1", "round": 1, "number": 1, "created_at": now, "updated_at": now}
    second = insert(generations_table).values(id=f"{first.id}2", model="sora", **row)

    with pytest.raises(IntegrityError), storage_database.write() as connection:
        connection.execute(second)


# ── Any order of events ──────────────────────────────────────────────────────────────────────


class World:
    """Some orders of one user, what may happen to them, and what the user has received.

    Its steps may come in any order, as jobs are redelivered, overtaken and replayed.
    """

    numbers = count()

    def __init__(self, rounds):
        number = next(self.numbers)
        self.user, self.granted = f"user-{number}", rounds * COST
        self.ids = [f"{number}-{letter}" for letter in "ab"]
        self.arrived = []  # order, round, whether it came without being asked for
        self.story = []  # told where it ends badly
        credits.grant(self.user, self.granted, "welcome")

    def begin(self, order_id, job, replays):
        videos.begin(replace(ORDER, order_id=order_id, user_id=self.user), job, replays)

    def again(self, order_id, job, late):
        if known := videos.get(order_id):
            videos.again(order_id, job, after=known.round - late)

    def make(self, order_id):
        if known := videos.get(order_id):
            videos.ready(known, "g1", URL)

    def give_up_making(self, order_id, job, replays):
        videos.give_up_making(order_id, job, replays, "why")

    def give_up_sending(self, order_id, name, refund):
        if known := videos.get(order_id):
            videos.give_up_sending(order_id, job_of(name, known), "why", refund=refund)

    def send(self, order_id, name, answer, before=(), during=()):
        """Send as the task does; *before* and *during* the call, other jobs do their steps."""
        known = videos.get(order_id)
        if known is None or not videos.claim(order_id, job := job_of(name, known))[1]:
            return
        self.run(order_id, before)

        def call():
            claimed, may_send = videos.claim(order_id, job)
            if not may_send:
                raise Pending("it is over")
            self.run(order_id, during)
            if answer == "refused":
                raise UserError("blocked", reason="recipient_unreachable")
            self.arrived.append((order_id, claimed.round, claimed.is_delivery(job)))
            if answer == "lost":
                raise OutcomeUnknown("no answer")
            return {"message_id": "500", "file_id": "file-1"}

        send(job, call, order_id)

    def run(self, order_id, steps):
        for kind, *how in steps:
            self.story.append((order_id, kind, *how))
            with suppress(JobError):  # what a job makes of it is another step
                getattr(self, kind)(order_id, *how)
            self.check_arrivals()

    def check_arrivals(self):
        """Whatever has arrived is paid for, and came once without being asked for."""
        for order_id, number, _ in self.arrived:
            known = videos.get(order_id)
            assert (known.round, known.state == "refunded") == (number, False), self.story
        unasked = Counter(order_id for order_id, _, by_itself in self.arrived if by_itself)
        assert max(unasked.values(), default=0) <= 1, self.story

    def check_ledger(self):
        """Every order costs its price or nothing, and the ledger adds up."""
        paid = {order_id: Decimal(0) for order_id in self.ids}
        for entry in credits.history(self.user, limit=None):
            if entry.kind != "grant":
                paid[entry.key.split(":")[1]] -= entry.amount
        known = {order_id: videos.get(order_id) for order_id in self.ids}
        owed = {o: COST if v and v.state != "refunded" else Decimal(0) for o, v in known.items()}
        sums = credits.totals()

        assert paid == owed, self.story
        assert credits.balance(self.user) == self.granted - sum(paid.values())
        assert sums["granted"] == sums["charged"] - sums["refunded"] + sums["balances"]


def a_step(chance, *, alone=False):
    """Any step of a `World`; unless *alone*, others happen before and during a call."""
    maker = chance.choice([MAKER, OTHER, "again-2"]), chance.randrange(3)
    sender = chance.choice(["delivery", "delivery", "former", "resend-1"])
    answer = chance.choice(["arrives", "lost", "refused", "refused"])
    meanwhile = []
    if not alone:
        meanwhile = [[a_step(chance, alone=True)] * chance.randrange(2) for _ in range(2)]
    sending, giving_up = ("send", sender, answer, *meanwhile), ("give_up_sending", sender)
    return chance.choice(
        [
            ("begin", *maker),
            ("again", maker[0], chance.random() < 0.2),
            ("give_up_making", *maker),
            *[("make",)] * 2,
            *[sending] * 3,
            *[(*giving_up, True)] * 3,
            (*giving_up, False),
        ]
    )


MADE = [("begin", MAKER, 0), ("make",)]
REFUSED = [*MADE, ("send", "delivery", "refused"), ("give_up_sending", "delivery", True)]
ANEW = [*REFUSED, ("again", "again-2", False), ("make",)]
DOUBTED = [*MADE, ("send", "delivery", "refused", [], [("give_up_sending", "delivery", True)])]


@pytest.mark.parametrize(
    ("steps", "state", "arrivals"),
    [
        pytest.param([*REFUSED, ("send", "delivery", "arrives")], "refunded", 0, id="replayed"),
        pytest.param(
            [*MADE, ("send", "delivery", "arrives", [("give_up_sending", "delivery", True)])],
            "refunded",
            0,
            id="refunded just before the call",
        ),
        pytest.param(
            [*MADE, ("send", "delivery", "arrives", [], [("give_up_sending", "delivery", True)])],
            "sent",
            1,
            id="given up in the call",
        ),
        pytest.param(
            [*MADE, ("send", "delivery", "lost"), ("give_up_sending", "delivery", True)],
            "unconfirmed",
            1,
            id="answer lost",
        ),
        pytest.param(
            [
                *MADE,
                ("send", "resend-1", "lost"),
                ("give_up_sending", "resend-1", True),
                ("send", "delivery", "arrives"),
            ],
            "unconfirmed",
            1,
            id="delivery after an unasked doubt",
        ),
        pytest.param(DOUBTED, "unconfirmed", 0, id="given up in a call that is refused"),
        pytest.param(
            [*DOUBTED, ("give_up_sending", "delivery", True)], "refunded", 0, id="refused after all"
        ),
        pytest.param(
            [*DOUBTED, ("send", "resend-1", "arrives", [("give_up_sending", "delivery", True)])],
            "refunded",
            0,
            id="refused after all, before a resend",
        ),
        pytest.param(
            [
                *DOUBTED,
                ("send", "resend-1", "arrives", [], [("give_up_sending", "delivery", True)]),
            ],
            "sent",
            1,
            id="refused after all, in the call of a resend",
        ),
        pytest.param(
            [*ANEW, ("send", "delivery", "arrives"), ("send", "former", "arrives")],
            "sent",
            1,
            id="former delivery after the new one",
        ),
        pytest.param(
            [*ANEW, ("send", "former", "arrives"), ("send", "delivery", "arrives")],
            "sent",
            1,
            id="former delivery before the new one",
        ),
    ],
)
def test_video_is_never_both_sent_and_refunded_nor_sent_twice_unasked(steps, state, arrivals):
    world = World(rounds=2)
    world.run(world.ids[0], steps)

    assert videos.get(world.ids[0]).state == state
    assert len(world.arrived) == arrivals
    world.check_ledger()


@only_on_sqlite  # one step after the other; what the databases make of races is seen below
def test_video_is_never_both_sent_and_refunded_whatever_comes_in_which_order():
    for seed in range(120):
        world, chance = World(rounds=1 + seed % 4), Random(seed)
        for order_id in world.ids:
            world.run(order_id, [*MADE, *(a_step(chance) for _ in range(6))])
        world.check_ledger()


def test_video_is_never_both_sent_and_refunded_whatever_comes_at_once():
    world = World(rounds=3)

    def live(number):
        chance = Random(number)
        for _ in range(40):
            world.run(chance.choice(world.ids), [a_step(chance)])

    race(6, live)
    world.check_arrivals()
    world.check_ledger()


# ── The files ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDIA_DIR", str(tmp_path / "new" / "media"))
    settings.cache_clear()
    return tmp_path / "new" / "media"


def test_file_of_a_generation_has_a_place_in_a_folder_that_exists(folder):
    assert media.path("g1") == folder / "g1.mp4" == media.path("g1")
    assert media.path("g2") != media.path("g1")
    assert list(folder.iterdir()) == []


def test_forgotten_file_is_gone_and_may_be_forgotten_again(folder):
    for name in ("g1", "g2"):
        media.path(name).write_bytes(b"mp4")
    for name in ("g1", "g1", None):
        media.forget(name)

    assert list(folder.iterdir()) == [Path(folder / "g2.mp4")]
