"""The policy table, as arithmetic: a fact, what went before, and what follows."""

from __future__ import annotations

import logging
import math

import httpx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from classifiers import errors
from classifiers.errors import JobError, kinds
from config.history import History
from config.policies import (
    DAY,
    LATE_AFTER,
    LATE_ATTEMPTS,
    MONTH,
    PAID,
    POLICIES,
    TASKS,
    WAITS,
    Action,
    Backoff,
    Defaults,
    ErrorContext,
    Notify,
    Policy,
    advise,
    decide,
    final,
    is_late,
    patient,
    retried,
    row_for,
)

OWN_FACTS = {errors.Duplicate: {"existing_id": "42"}, errors.UserError: {"reason": "bad_photo"}}
COMES_BACK = {Action.RETRY, Action.PARK, Action.RECONCILE, Action.ABORT, Action.SHUTDOWN}
SPENDS = COMES_BACK - WAITS
FRESH = History()
USUAL = Defaults()


def tree() -> list[type[JobError]]:
    """Every class of classifiers/errors.py; a test that makes up one of its own adds none."""
    return [kind for kind in kinds() if kind.__module__ == JobError.__module__]


def build(kind: type[JobError], **facts) -> JobError:
    return kind("it went wrong", **OWN_FACTS.get(kind, {}), **facts)


def run(error, times, task="", defaults=USUAL, history=FRESH, chance=0.0):
    """Let the same error happen again and again; return the decisions, and the history."""
    decisions = []
    for _ in range(times):
        decision = decide(error, history, task, defaults, lambda: chance)
        decisions.append(decision)
        history = history.after(
            error,
            action=decision.action,
            delay=decision.delay,
            spends=decision.spends,
            waits=decision.action in WAITS,
            at=0.0,
        )
    return decisions, history


def delays(error, times, **options):
    return [decision.delay for decision in run(error, times, **options)[0]]


def actions(error, times, **options):
    return [decision.action for decision in run(error, times, **options)[0]]


every_class = pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
task_names = ["", *TASKS]
# Those that somebody has paid for.
every_video = pytest.mark.parametrize("task", ["video.generate", "video.send"])


# -- DESIGN 4, row by row


def test_an_update_whose_target_is_gone_is_done():
    decision = decide(errors.NotFound(), FRESH, "bitrix.update_deal")

    assert decision.action is Action.SKIP
    assert decision.policy.outcome == "target_gone"
    assert decision.policy.level == logging.WARNING
    assert not decision.policy.alert


@pytest.mark.parametrize("task", ["bitrix.update_contact", "bitrix.handle_webhook"])
def test_what_else_looks_at_a_gone_target_is_done(task):
    decision = decide(errors.NotFound(), FRESH, task)

    assert (decision.action, decision.policy.outcome) == (Action.SKIP, "target_gone")


@pytest.mark.parametrize("task", ["bitrix.create_deal", "bitrix.create_contact"])
def test_not_found_on_a_create_is_a_dead_letter_at_once(task):
    decision = decide(errors.NotFound(), FRESH, task)

    assert decision.action is Action.DEAD_LETTER
    assert decision.policy.level == logging.ERROR


@pytest.mark.parametrize("task", task_names)
@pytest.mark.parametrize("kind", [errors.InvalidData, errors.MissingFields])
def test_bad_data_is_tried_once_more(kind, task):
    decisions, _ = run(kind(), 2, task=task)

    assert [decision.action for decision in decisions] == [Action.RETRY, Action.DEAD_LETTER]
    assert decisions[0].delay > 0
    assert decisions[1].policy.level == logging.ERROR


def test_bad_data_is_tried_once_more_whatever_max_retries_says():
    assert actions(errors.InvalidData(), 2, defaults=Defaults(max_retries=9))[1] == "dead_letter"


@pytest.mark.parametrize("task", ["bitrix.create_contact", "bitrix.update_contact"])
def test_a_contact_that_exists_is_adopted(task):
    decision = decide(errors.Duplicate(existing_id="7"), FRESH, task)

    assert decision.action is Action.ADOPT
    assert decision.delay == 0


def test_a_deal_has_no_duplicates_to_adopt():
    assert actions(errors.Duplicate(existing_id="7"), 1, task="bitrix.create_deal") == [
        "dead_letter"
    ]


@pytest.mark.parametrize(
    "task", [task for task in task_names if task not in {"video.send", "video.make_good"}]
)
@pytest.mark.parametrize("kind", [errors.NetworkError, errors.ServiceUnavailable])
def test_an_upstream_that_is_down_is_asked_again_five_times(kind, task):
    decisions, _ = run(kind(), 6, task=task)

    assert [d.action for d in decisions] == [Action.RETRY] * 5 + [Action.DEAD_LETTER]
    assert [d.delay for d in decisions[:5]] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("kind", [errors.NetworkError, errors.DatabaseError, errors.Unclassified])
def test_credits_are_given_back_even_if_our_database_is_away_for_most_of_a_day(kind):
    decisions, _ = run(kind(), 280, task="video.make_good")

    assert {d.action for d in decisions} == {Action.RETRY}
    assert sum(d.delay for d in decisions) > 22 * 3600


@pytest.mark.parametrize(
    "kind", [errors.NetworkError, errors.ServiceUnavailable, errors.InternalError]
)
def test_a_video_is_sent_again_three_times(kind):
    decided = actions(kind(), 4, task="video.send")

    assert decided == [Action.RETRY] * 3 + [Action.DEAD_LETTER]


def test_the_jitter_of_a_back_off_only_adds():
    assert delays(errors.NetworkError(), 5, chance=1.0) == [1.25, 2.5, 5, 10, 20]


@pytest.mark.parametrize("count", [0, 1, 12])
def test_max_retries_says_how_often(count):
    decided = actions(errors.ServiceUnavailable(), count + 1, defaults=Defaults(max_retries=count))

    assert decided == [Action.RETRY] * count + [Action.DEAD_LETTER]


def test_initial_backoff_is_the_first_wait():
    assert delays(errors.NetworkError(), 3, defaults=Defaults(initial_backoff=3)) == [3, 6, 12]


def test_a_back_off_ends_growing_at_five_minutes():
    long = delays(errors.NetworkError(), 40, defaults=Defaults(max_retries=40), chance=1.0)

    assert max(long) == long[-1] == 375


def test_an_unavailable_upstream_that_names_a_time_is_believed():
    decision = decide(errors.ServiceUnavailable(retry_after=90), FRESH)

    assert (decision.action, decision.delay) == (Action.RETRY, 90)


def test_a_rate_limit_waits_as_long_as_it_says():
    error = errors.RateLimited(retry_after=900)

    assert decide(error, FRESH, chance=lambda: 1.0).delay == 900


def test_a_rate_limit_is_never_scaled():
    error = errors.RateLimited(retry_after=900)

    assert decide(error, FRESH, "", Defaults(time_scale=0.01)).delay >= 900


def test_a_rate_limit_without_a_time_backs_off_up_to_a_minute():
    assert delays(errors.RateLimited(), 8) == [2, 4, 8, 16, 32, 60, 60, 60]


def test_a_rate_limit_spends_no_attempt():
    _, history = run(errors.RateLimited(retry_after=60), 30)

    assert history.attempts == 0
    assert actions(errors.NetworkError(), 6, history=history) == ["retry"] * 5 + ["dead_letter"]


def test_rate_limits_of_a_day_in_all_are_enough():
    decided = actions(errors.RateLimited(retry_after=900), 97)

    assert decided == [Action.PARK] * 96 + [Action.DEAD_LETTER]


def test_a_wait_that_the_rest_of_the_day_does_not_hold_is_not_begun():
    history = History(waited={"RateLimited": DAY - 600})

    assert actions(errors.RateLimited(retry_after=900), 1, history=history) == ["dead_letter"]
    assert actions(errors.RateLimited(retry_after=500), 1, history=history) == ["park"]


@pytest.mark.parametrize("asked", [DAY + 1, 1e12, math.inf])
@pytest.mark.parametrize("kind", [errors.RateLimited, errors.ServiceUnavailable, errors.Fatal])
def test_an_upstream_that_asks_for_more_than_a_day_is_for_a_person(kind, asked):
    assert decide(kind(retry_after=asked), FRESH).action is Action.DEAD_LETTER


def test_waits_of_different_kinds_share_the_day():
    history = History(waited={"RateLimited": DAY / 2, "Waiting": DAY / 2})

    assert actions(errors.CircuitOpen(), 1, history=history) == ["dead_letter"]


@pytest.mark.parametrize(
    "kind", [errors.Paused, errors.CredentialHeld, errors.Unauthorized, errors.Blocked]
)
def test_what_a_person_has_closed_may_stay_closed_over_a_weekend(kind):
    weekend = History(waited={kind.__name__: 3 * DAY})

    assert actions(kind(), 1, history=weekend) == ["park"]
    assert actions(errors.RateLimited(), 1, history=weekend) == ["park"]
    assert actions(kind(), 1, history=History(waited={kind.__name__: MONTH})) == ["dead_letter"]


@every_video
@pytest.mark.parametrize("kind", PAID, ids=lambda kind: kind.__name__)
def test_who_has_paid_waits_a_day_in_all_whoever_has_closed_the_gate(kind, task):
    half = History(waited={kind.__name__: DAY / 2})
    day = History(waited={kind.__name__: DAY / 2, "RateLimited": DAY / 2})

    assert actions(kind(), 1, task=task, history=half) == ["park"]
    assert actions(kind(), 1, task=task, history=day) == ["dead_letter"]
    assert actions(errors.RateLimited(), 1, task=task, history=day) == ["dead_letter"]


@pytest.mark.parametrize("kind", PAID, ids=lambda kind: kind.__name__)
def test_a_row_for_who_has_paid_differs_in_its_patience_alone(kind):
    usual, paid = POLICIES[kind], PAID[kind]

    assert (usual.budget, paid.budget, paid.notify) == (MONTH, DAY, Notify.LATE)
    assert (paid.action, paid.backoff) == (usual.action, usual.backoff)
    assert (paid.level, paid.alert) == (usual.level, usual.alert)


@every_class
@every_video
def test_nobody_who_has_paid_waits_for_a_month(kind, task):
    assert row_for(kind, task)[1].budget <= DAY
    assert not patient(task)


def test_an_unknown_outcome_is_reconciled_before_anything_else():
    decisions, _ = run(errors.OutcomeUnknown(), 6)

    assert [d.action for d in decisions] == [Action.RECONCILE] * 5 + [Action.DEAD_LETTER]
    assert decisions[0].delay >= 5
    assert not decisions[0].policy.refund


def test_a_generation_in_doubt_is_looked_for_and_paid_back_in_the_end():
    decisions, _ = run(errors.OutcomeUnknown(), 6, task="video.generate")

    assert [d.action for d in decisions] == [Action.RECONCILE] * 5 + [Action.DEAD_LETTER]
    assert decisions[5].policy.refund


@pytest.mark.parametrize("task", ["video.send", "telegram.notify"])
def test_what_may_have_reached_a_user_is_left_to_a_person_at_once(task):
    decision = decide(errors.OutcomeUnknown(), FRESH, task)

    assert decision.action is Action.DEAD_LETTER
    assert not decision.policy.refund


def test_an_unknown_outcome_waits_until_looking_will_tell():
    assert decide(errors.OutcomeUnknown(retry_after=70), FRESH).delay >= 70


@pytest.mark.parametrize("kind", [errors.InternalError, errors.DatabaseError, errors.Unclassified])
def test_a_failure_of_our_own_is_retried_and_logged_for_the_operator(kind):
    decisions, _ = run(kind(), 6)

    assert [d.action for d in decisions] == [Action.RETRY] * 5 + [Action.DEAD_LETTER]
    assert decisions[0].policy.level == logging.ERROR


def test_what_nobody_has_classified_raises_an_alert():
    assert decide(errors.Unclassified(), FRESH).policy.alert
    assert not decide(errors.InternalError(), FRESH).policy.alert


def test_a_fatal_failure_stops_the_worker_and_the_job_goes_on():
    decisions, _ = run(errors.Fatal(), 4)

    assert [d.action for d in decisions] == [Action.SHUTDOWN] * 3 + [Action.DEAD_LETTER]
    assert decisions[0].delay > 0
    assert decisions[0].policy.alert


@pytest.mark.parametrize("kind", [errors.Blocked, errors.Unauthorized, errors.NotConfigured])
def test_an_upstream_that_shuts_us_out_parks_the_job_and_raises_an_alert(kind):
    decision = decide(kind(), FRESH)

    assert decision.action is Action.PARK
    assert decision.policy.alert


def test_a_missing_right_is_a_dead_letter_with_an_alert():
    decision = decide(errors.Forbidden(), FRESH)

    assert decision.action is Action.DEAD_LETTER
    assert decision.policy.alert


def test_an_empty_account_is_waited_for_half_an_hour():
    decided = actions(errors.BillingExhausted(), 31)

    assert decided == [Action.PARK] * 30 + [Action.DEAD_LETTER]


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_a_bound_of_less_than_a_day_is_scaled_with_the_waits_in_it(scale):
    decided = actions(errors.BillingExhausted(), 31, defaults=Defaults(time_scale=scale))

    assert decided == [Action.PARK] * 30 + [Action.DEAD_LETTER]


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_a_day_is_a_day_at_any_scale(scale):
    decided = actions(errors.RateLimited(retry_after=900), 97, defaults=Defaults(time_scale=scale))

    assert decided == [Action.PARK] * 96 + [Action.DEAD_LETTER]


def test_an_empty_account_has_its_half_hour_whatever_was_waited_for_before():
    history = History(waited={"RateLimited": 7200.0})

    assert actions(errors.BillingExhausted(), 1, history=history) == ["park"]


@every_video
def test_the_end_user_hears_of_their_own_mistake_and_gets_the_credits_back(task):
    decision = decide(errors.UserError(reason="bad_photo"), FRESH, task)

    assert (decision.action, decision.policy.outcome) == (Action.SKIP, "refunded")
    assert (decision.policy.notify, decision.policy.refund) == (Notify.END, True)
    assert decision.policy.level < logging.WARNING


@pytest.mark.parametrize(
    ("task", "outcome"),
    [("telegram.notify", "undeliverable"), ("video.handle_press", "declined")],
)
def test_a_user_who_cannot_be_reached_is_no_dead_letter(task, outcome):
    decision = decide(errors.UserError(reason="recipient_unreachable"), FRESH, task)

    assert (decision.action, decision.policy.outcome) == (Action.SKIP, outcome)


def test_a_users_mistake_where_no_user_is_expected_is_a_dead_letter():
    assert actions(errors.UserError(reason="bad_photo"), 1, task="bitrix.create_deal") == [
        "dead_letter"
    ]


@pytest.mark.parametrize("task", ["video.send", "telegram.notify"])
def test_a_chat_that_has_a_new_id_is_followed(task):
    assert actions(errors.Duplicate(existing_id="-100"), 1, task=task) == ["adopt"]


@every_class
def test_credits_go_back_unless_it_may_have_arrived(kind):
    kept = {task for task in task_names if not row_for(kind, task)[1].refund}

    assert kept == ({*task_names} - {"video.generate"} if kind is errors.OutcomeUnknown else set())


@every_class
@every_video
def test_who_has_paid_hears_of_every_end(kind, task):
    assert row_for(kind, task)[1].notify is not Notify.NEVER


# What takes time and passes by itself, or when a person opens what is closed.
LATE = {
    *kinds(errors.Retryable),
    *kinds(errors.Waiting),
    *(errors.OutcomeUnknown, errors.Unauthorized, errors.Blocked, errors.NotConfigured),
    errors.BillingExhausted,
}


@every_class
def test_who_waits_for_a_video_is_asked_for_patience_while_it_may_still_come(kind):
    asked = row_for(kind, "video.generate")[1].notify is Notify.LATE

    assert asked == (kind in LATE)


@pytest.mark.parametrize(
    ("failures", "waited", "late"),
    [
        (0, 0.0, False),
        (LATE_ATTEMPTS - 1, LATE_AFTER - 1, False),
        (LATE_ATTEMPTS, 0.0, True),
        (0, LATE_AFTER, True),
        (LATE_ATTEMPTS + 1, LATE_AFTER + 1, True),
    ],
    ids=["at once", "just before", "after failures", "after time", "after both"],
)
def test_a_user_is_asked_for_patience_when_it_is_late(failures, waited, late):
    policy = Policy(Action.PARK, notify=Notify.LATE)

    assert is_late(policy, failures, waited, USUAL) == late


@pytest.mark.parametrize("notify", [Notify.NEVER, Notify.END])
def test_not_everything_that_is_late_is_told(notify):
    assert not is_late(Policy(Action.RETRY, notify=notify), LATE_ATTEMPTS, LATE_AFTER, USUAL)


def test_what_is_late_is_scaled_like_the_waits():
    policy, quick = Policy(Action.RETRY, notify=Notify.LATE), Defaults(time_scale=0.01)

    assert is_late(policy, 0, LATE_AFTER * 0.01, quick)
    assert not is_late(policy, 0, LATE_AFTER * 0.01 - 0.1, quick)


def test_late_is_five_failures_or_ten_minutes():
    assert (LATE_ATTEMPTS, LATE_AFTER) == (5, 600)


@pytest.mark.parametrize("kind", [errors.CircuitOpen, errors.Paused, errors.CredentialHeld])
def test_a_closed_gate_parks_the_job(kind):
    decision = decide(kind(retry_after=17), FRESH)

    assert decision.action is Action.PARK
    assert decision.delay == 17  # a place in the gate's line: jitter would destroy the order
    assert decision.policy.level <= logging.INFO


def test_a_pending_result_is_looked_for_more_and_more_seldom():
    assert delays(errors.Pending(), 7) == [1, 2, 4, 8, 16, 30, 30]


def test_a_pending_result_is_looked_for_no_later_than_it_will_be_there():
    assert delays(errors.Pending(retry_after=5), 5) == [1, 2, 4, 5, 5]


def test_a_video_is_looked_for_when_it_is_time_to():
    assert delays(errors.Pending(retry_after=120), 3, task="video.generate") == [120] * 3
    assert delays(errors.Pending(), 6, task="video.generate") == [5, 10, 20, 40, 60, 60]


def test_a_callback_waits_but_for_a_moment():
    first, *_, last = delays(errors.Pending(), 20, task="video.handle_callback")

    assert (first, last) == (0.2, 5)


def test_something_else_in_between_starts_the_curve_of_a_wait_anew():
    _, history = run(errors.Pending(), 4)
    _, history = run(errors.NetworkError(), 1, history=history)

    assert delays(errors.Pending(), 2, history=history) == [1, 2]


# -- the table itself


@every_class
def test_every_class_has_a_row(kind):
    owner, policy = row_for(kind)

    assert issubclass(kind, owner)
    assert policy is POLICIES[owner]


def test_only_the_root_leaves_its_row_to_classes_that_fail_for_good():
    followers = {kind for kind in tree() if row_for(kind)[0] is JobError}

    assert followers == {
        JobError,
        errors.Permanent,
        errors.NotFound,
        errors.BusinessRule,
        errors.Duplicate,
        errors.Cancelled,
    }


@every_class
@pytest.mark.parametrize("task", task_names)
def test_the_nearest_ancestor_wins(kind, task):
    class MadeUp(kind):
        pass

    class Deeper(MadeUp):
        pass

    assert row_for(Deeper, task) == row_for(MadeUp, task) == row_for(kind, task)


def test_a_tasks_own_row_wins_over_the_table():
    assert row_for(errors.NotFound, "bitrix.update_deal")[1].action is Action.SKIP
    assert row_for(errors.NotFound)[1].action is Action.DEAD_LETTER


def test_a_nearer_row_of_the_table_wins_over_a_tasks_row_for_an_ancestor():
    class Odd(errors.NotFound, errors.RateLimited):
        pass

    assert row_for(Odd, "bitrix.update_deal")[0] is errors.NotFound
    assert row_for(errors.RateLimited, "bitrix.update_deal")[0] is errors.RateLimited


@pytest.mark.parametrize("foreign", [ValueError, Exception])
def test_what_is_no_job_error_has_no_row(foreign):
    with pytest.raises(LookupError):
        row_for(foreign)


def test_every_skip_names_the_outcome():
    rows = [*POLICIES.values(), *(row for task in TASKS.values() for row in task.values())]

    assert all(bool(row.outcome) == (row.action is Action.SKIP) for row in rows)


@every_class
def test_what_is_final_is_a_dead_letter_in_every_task(kind):
    if issubclass(kind, final()):
        decided = {decide(build(kind), FRESH, task).action for task in task_names}

        assert decided == {Action.DEAD_LETTER}


@every_class
@pytest.mark.parametrize("task", task_names)
def test_what_comes_back_skips_or_adopts_in_some_task_is_not_final(kind, task):
    if row_for(kind, task)[1].action is not Action.DEAD_LETTER:
        assert not issubclass(kind, final())
    assert issubclass(kind, retried())


def test_only_what_was_ended_from_outside_is_final_everywhere():
    assert set(final()) & set(tree()) == {errors.Cancelled, errors.PoisonPill}


# -- whatever happens

any_kind = st.sampled_from(tree())
returning = st.sampled_from([kind for kind in tree() if row_for(kind)[1].action in COMES_BACK])
timed_waits = st.sampled_from(
    [
        kind
        for kind in tree()
        if row_for(kind)[1].action is Action.PARK and not row_for(kind)[1].at_latest
    ]
)
seconds = st.none() | st.floats(allow_nan=True, allow_infinity=True)
scales = st.floats(1e-3, 10)
rows_seen = st.sampled_from(sorted({row_for(kind)[0].__name__ for kind in tree()}))
histories = st.builds(
    History,
    spent=st.dictionaries(rows_seen, st.integers(0, 12)),
    waited=st.dictionaries(rows_seen, st.floats(0, 2 * DAY)),
    entries=st.lists(
        st.sampled_from(tree()).map(lambda kind: {"error": kind.__name__}), max_size=50
    ).map(tuple),
)
# Those that have something left, so that nearly everything comes back.
young = st.builds(
    History,
    spent=st.dictionaries(rows_seen, st.just(0)),
    waited=st.dictionaries(rows_seen, st.floats(0, 60)),
    entries=st.lists(
        st.sampled_from(tree()).map(lambda kind: {"error": kind.__name__}), max_size=50
    ).map(tuple),
)
defaults = st.builds(
    Defaults,
    max_retries=st.integers(0, 20),
    initial_backoff=st.floats(0.01, 100),
    time_scale=scales,
)
chances = st.floats(0, 1)
tasks = st.sampled_from(task_names)


@given(any_kind, seconds, histories, tasks, defaults, chances)
@example(errors.RateLimited, 0.0, FRESH, "", Defaults(), 0.0)
@example(errors.Pending, 0.0, FRESH, "", Defaults(), 0.0)
@example(errors.RateLimited, -5.0, FRESH, "", Defaults(), 0.0)
@example(errors.RateLimited, math.nan, FRESH, "", Defaults(), 0.0)
@example(errors.Pending, math.inf, FRESH, "", Defaults(), 0.0)
def test_every_failure_gets_a_decision_that_can_be_carried_out(
    kind, asked, history, task, chosen, chance
):
    decision = decide(build(kind, retry_after=asked), history, task, chosen, lambda: chance)

    if decision.action in COMES_BACK:
        assert 0 < decision.delay <= max(DAY, 300 * 1.25 * chosen.time_scale)
        assert decision.spends == row_for(kind, task)[0].__name__
    else:
        assert decision.delay == 0


@given(returning, st.floats(0.001, DAY / 2), young, tasks, defaults, chances)
def test_nobody_comes_back_before_the_time_an_upstream_gave(
    kind, asked, history, task, chosen, chance
):
    decision = decide(build(kind, retry_after=asked), history, task, chosen, lambda: chance)
    assume(decision.action in COMES_BACK)

    if issubclass(kind, errors.Pending):
        assert decision.delay <= asked
    else:
        assert decision.delay >= asked


@given(returning, st.none() | st.floats(0.001, 600), young, tasks, chances)
def test_jitter_only_adds(kind, asked, history, task, chance):
    error = build(kind, retry_after=asked)
    least = decide(error, history, task, Defaults(), lambda: 0.0)
    decision = decide(error, history, task, Defaults(), lambda: chance)
    assume(decision.action in COMES_BACK)

    assert least.delay <= decision.delay <= least.delay * 1.25


@given(returning, young, tasks, scales, chances)
def test_the_time_scale_multiplies_what_is_ours(kind, history, task, scale, chance):
    ours = decide(build(kind), history, task, Defaults(), lambda: chance)
    scaled = decide(build(kind), history, task, Defaults(time_scale=scale), lambda: chance)
    assume(ours.action in COMES_BACK and scaled.action in COMES_BACK)

    assert scaled.delay == pytest.approx(ours.delay * scale)


@given(timed_waits, st.floats(1, 600), young, tasks, scales)
def test_the_time_scale_leaves_alone_what_an_upstream_asked(kind, asked, history, task, scale):
    error = build(kind, retry_after=asked)
    decision = decide(error, history, task, Defaults(time_scale=scale))
    assume(decision.action in COMES_BACK)

    assert decision.delay == asked


@given(returning, seconds, young, tasks)
def test_a_wait_spends_no_attempt_and_a_retry_spends_one(kind, asked, history, task):
    error = build(kind, retry_after=asked)
    decision = decide(error, history, task)
    after = history.after(
        error,
        action=decision.action,
        delay=decision.delay,
        spends=decision.spends,
        waits=decision.action in WAITS,
        at=0.0,
    )
    assume(decision.action in COMES_BACK)

    assert after.attempts == history.attempts + (decision.action in SPENDS)
    assert (after.waited_in_all() > history.waited_in_all()) == (decision.action in WAITS) or (
        decision.delay < 1e-6
    )


@given(st.lists(st.tuples(any_kind, st.none() | st.floats(0, DAY)), max_size=30), tasks)
def test_no_job_waits_longer_than_a_day_in_all_unless_a_person_closed_the_gate(failures, task):
    history = FRESH
    for kind, asked in failures:
        decision = decide(build(kind, retry_after=asked), history, task)
        if decision.action not in COMES_BACK:
            break
        history = history.after(
            build(kind),
            action=decision.action,
            delay=decision.delay,
            spends=decision.spends,
            waits=decision.action in WAITS,
            at=0.0,
        )

    assert history.waited_in_all(but=patient(task)) <= DAY + 1e-6


@given(
    st.builds(
        Backoff,
        base=st.floats(0.01, 100),
        factor=st.floats(1, 10),
        cap=st.floats(100, 1000),
        jitter=st.floats(0, 1),
    ),
    st.integers(0, 1000),
)
def test_a_curve_never_falls_and_never_passes_its_cap(backoff, attempt):
    now, later = backoff.delay(attempt, 0.0), backoff.delay(attempt + 1, 0.0)

    assert 0 < now <= later <= backoff.cap
    assert backoff.delay(attempt, 1.0) == pytest.approx(now * (1 + backoff.jitter))


def test_a_decision_needs_no_luck_to_be_tested_but_has_some():
    drawn = {decide(errors.NetworkError(), FRESH).delay for _ in range(20)}

    assert len(drawn) > 1
    assert all(1 <= delay <= 1.25 for delay in drawn)


# -- crawls


@pytest.mark.parametrize("kind", [errors.NetworkError, errors.ServiceUnavailable])
def test_a_crawl_that_was_cut_off_comes_back_after_1_2_4_8_and_16_seconds(kind):
    decisions, _ = run(kind(), 6, task="bookmarks.crawl")

    assert [d.delay for d in decisions[:5]] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert {d.policy.level for d in decisions[:5]} == {logging.DEBUG}
    assert decisions[5].action is Action.DEAD_LETTER


def test_a_crawl_whose_access_is_refused_is_held_for_a_month_and_spends_no_attempt():
    decisions, history = run(errors.Unauthorized(), 50, task="bookmarks.crawl")

    assert {d.action for d in decisions} == {Action.ABORT}
    assert history.spent == {}
    assert decisions[0].policy.budget == MONTH
    assert decisions[0].policy.level == logging.ERROR


def test_a_crawl_that_x_wants_money_for_waits_for_whoever_pays():
    decisions, _ = run(errors.BillingExhausted(), 60, task="bookmarks.crawl")

    assert {d.action for d in decisions} == {Action.PARK}


def test_one_bookmark_that_is_at_fault_is_skipped_with_a_warning():
    decision = decide(errors.InvalidData(service="x"), FRESH, "bookmarks.bookmark")

    assert decision.action is Action.SKIP
    assert decision.policy.level == logging.WARNING


@pytest.mark.parametrize("kind", [errors.DatabaseError, errors.InternalError, errors.Fatal])
def test_what_is_not_a_bookmarks_own_fault_does_not_skip_it(kind):
    assert decide(kind(), FRESH, "bookmarks.bookmark").action is not Action.SKIP


@pytest.mark.parametrize(
    ("error", "saves"),
    [
        (errors.RateLimited(retry_after=900.0), True),
        (errors.Fatal(), True),
        (errors.NotFound(), True),
        (errors.Unauthorized(), False),
        (errors.NetworkError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_decision_says_whether_to_write_down_how_far_one_is(error, saves):
    assert decide(error, FRESH, "bookmarks.crawl").saves is saves


@pytest.mark.parametrize(
    ("error", "task", "action"),
    [
        (httpx.ConnectError("no route"), "bookmarks.crawl", Action.RETRY),
        (httpx.ReadTimeout("late"), "bookmarks.crawl", Action.RETRY),
        (MemoryError(), "bookmarks.crawl", Action.SHUTDOWN),
        (OverflowError(), "bookmarks.bookmark", Action.SKIP),
        (errors.RateLimited(retry_after=60.0), "bookmarks.crawl", Action.PARK),
        (ValueError("a bug"), "bookmarks.crawl", Action.RETRY),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_script_without_celery_may_ask_what_a_failure_means(error, task, action):
    assert advise(ErrorContext(error, task)).action is action


def test_a_script_tells_how_often_it_has_tried():
    advice = [advise(ErrorContext(httpx.ConnectError(""), "bookmarks.crawl", n)) for n in range(6)]

    assert [a.action for a in advice] == [Action.RETRY] * 5 + [Action.DEAD_LETTER]
    assert [int(a.delay) for a in advice[:3]] == [1, 2, 4]
