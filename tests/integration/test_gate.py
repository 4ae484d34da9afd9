"""The gate on a real Redis: what one worker does, the others obey."""

from __future__ import annotations

import dataclasses
import heapq
import math
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from classifiers.errors import (
    BillingExhausted,
    CircuitOpen,
    CredentialHeld,
    InternalError,
    Paused,
    RateLimited,
)
from config.services import Service
from reliability.gate import Gate, Permit, key_of, states, usable_burst

BITRIX = Service(
    name="bitrix",
    rate=2.0,
    burst=50,
    max_wait=5.0,
    connect_timeout=5.0,
    read_timeout=65.0,
    ops_per_permit=50,
)
SLOW = dataclasses.replace(BITRIX, name="slow", burst=4, ops_per_permit=1)
BOT = dataclasses.replace(BITRIX, name="bot", rate=28.0, burst=1, max_wait=2.0, ops_per_permit=1)
PACE = 1.05
TIMES = {
    "empty_at",
    "tail",
    "tail_again",
    "tail_unpaid",
    "unpaid_until",
    "free_at",
    "blocked",
    "broken_since",
    "open_until",
    "probe_until",
    "paused_since",
}


def let_pass(client, service, seconds):
    """Move every time the gate has stored *seconds* into the past, as if they had gone by."""
    for key in client.keys(f"{key_of(service)}*"):
        moved = {
            name: f"{float(value) - seconds:.6f}"
            for name, value in client.hgetall(key).items()
            if name in TIMES or name.startswith("blocked:")
        }
        if moved:
            client.hset(key, mapping=moved)
        if client.pttl(key) >= 0:
            client.pexpire(key, client.pttl(key) - int(seconds * 1000))


def refusal(gate, kind, **asked):
    with pytest.raises(kind) as caught:
        gate.admit(**asked)
    return caught.value


def break_open(gate):
    permit = gate.admit()
    return [gate.report_failure(permit) for _ in range(gate.service.failure_threshold)]


def calls_of_scripts(client):
    return client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


class LeakyBucket:
    """The upstream's side: a counter that leaks, and refuses a call that would overfill it."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.level, self.at = rate, burst, 0.0, 0.0

    def refuses(self, at):
        self.level = max(0.0, self.level - (at - self.at) * self.rate)
        self.at = at
        if self.level + 1 > self.burst:
            return True
        self.level += 1
        return False


# Budget


@pytest.mark.parametrize(
    ("rate", "burst", "usable"),
    [(2, 50, 48), (5, 250, 245), (0.2, 10, 9), (2, 2, 1), (30, 30, 1), (1, 1, 1)],
    ids=["bitrix", "enterprise", "slow", "small", "no room", "one"],
)
def test_a_second_of_delay_variance_stays_unused(rate, burst, usable):
    service = dataclasses.replace(BITRIX, rate=rate, burst=burst)

    assert usable_burst(service) == usable


def test_permits_come_at_once_then_at_the_rate_then_not_at_all(redis_client):
    gate = Gate(redis_client, SLOW)

    waits = [gate.admit().wait for _ in range(12)]

    assert waits[:2] == [0, 0]
    assert waits[2:] == [pytest.approx(0.5 * n, abs=0.2) for n in range(1, 11)]
    assert refusal(gate, RateLimited).retry_after == pytest.approx(3.25, abs=0.5)  # and jitter


def test_an_idle_bucket_fills_up_again_but_never_beyond_its_burst(redis_client):
    gate = Gate(redis_client, SLOW)
    for _ in range(12):
        gate.admit()

    let_pass(redis_client, SLOW, 3600)

    assert [gate.admit().wait for _ in range(3)] == [0, 0, pytest.approx(0.5, abs=0.2)]


def test_racing_workers_never_overfill_the_upstream_nor_leave_it_idle(redis_server):
    """Arrivals are delayed by up to 0.9 s, each on its own: the bucket must bear the bunching."""
    rate, burst, seconds = 100.0, 120, 1.5
    service = dataclasses.replace(SLOW, name="race", rate=rate, burst=burst, max_wait=0.2)
    arrivals, lock, start = [], threading.Lock(), time.monotonic()

    def work(seed):
        chance = random.Random(seed)
        with redis_server.client() as client:
            gate = Gate(client, service)
            while time.monotonic() < start + seconds:
                try:
                    wait = gate.admit().wait
                except RateLimited as error:
                    time.sleep(min(error.retry_after, 0.05))
                    continue
                time.sleep(wait)
                with lock:
                    arrivals.append(time.monotonic() + chance.uniform(0, 0.9))

    with redis_server.client() as client:
        client.delete(key_of(service))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    bucket = LeakyBucket(rate, burst)
    refused = sum(bucket.refuses(at) for at in sorted(arrivals))

    assert refused == 0
    assert len(arrivals) >= 0.8 * (rate * seconds + usable_burst(service))


# The line of the refused


def test_refused_jobs_get_ordered_and_spaced_times(redis_client):
    gate = Gate(redis_client, SLOW)
    break_open(gate)

    began = time.monotonic()
    back = [time.monotonic() - began + refusal(gate, CircuitOpen).retry_after for _ in range(2000)]

    gaps = [later - sooner for sooner, later in pairwise(back)]
    assert back[0] >= SLOW.reset_timeout - 0.1
    assert min(gaps) > -0.05  # only the time that this loop itself takes blurs the order
    assert back[-1] == pytest.approx(SLOW.reset_timeout + 2000 * gate.spacing, rel=0.01)


def test_one_refusal_serves_all_waiting_jobs_of_a_caller(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)

    first = refusal(gate, CircuitOpen, waiting=120)
    last = gate.behind(first, 119)
    following = refusal(gate, CircuitOpen)

    assert gate.spacing == pytest.approx(0.01)
    assert last.retry_after == pytest.approx(first.retry_after + 1.19)
    assert last is not first
    assert type(last) is CircuitOpen
    assert (last.service, last.detail) == (first.service, first.detail)
    assert last.retry_after < following.retry_after + 0.05 < last.retry_after + 0.1


def test_who_asks_at_an_interval_stands_in_a_line_that_is_longer(redis_client):
    gate = Gate(redis_client, SLOW)
    break_open(gate)
    refusal(gate, CircuitOpen, waiting=1000)
    end = SLOW.reset_timeout + 1000 * gate.spacing

    places = [gate.queue_up(20.0) for _ in range(30)]
    refused = refusal(gate, CircuitOpen).retry_after

    assert places == [pytest.approx(end + n * gate.spacing, abs=1) for n in range(30)]
    assert refused == pytest.approx(end + 30 * gate.spacing, abs=1)
    assert gate.queue_up(600.0) == 600.0


def test_who_yields_leaves_permits_for_those_who_have_news(redis_client):
    gate = Gate(redis_client, SLOW)
    yielding = 0
    while True:
        try:
            gate.admit(yields=True)
        except RateLimited:
            break
        yielding += 1
    others = [gate.admit().wait for _ in range(int(SLOW.rate * SLOW.max_wait / 2))]

    assert yielding >= 1
    assert len(others) >= 1
    assert max(others) <= SLOW.max_wait
    assert refusal(gate, RateLimited)


def test_who_asks_at_an_interval_makes_no_line(redis_client):
    gate = Gate(redis_client, SLOW)

    assert [gate.queue_up(20.0) for _ in range(3)] == [20.0] * 3
    assert redis_client.hget(key_of(SLOW), "tail") is None


def test_the_line_starts_a_second_lap_instead_of_an_absurd_wait(redis_client):
    gate = Gate(redis_client, SLOW)
    break_open(gate)

    waits = [refusal(gate, CircuitOpen, waiting=2000).retry_after for _ in range(12)]

    assert max(waits) < SLOW.reset_timeout + 3600 + 1
    assert [round(wait, -3) for wait in waits[:6]] == [0, 1000, 2000, 3000, 0, 1000]


def test_who_is_refused_during_a_probe_comes_back_soon_and_not_behind_the_line(redis_client):
    gate = Gate(redis_client, SLOW)
    break_open(gate)
    refusal(gate, CircuitOpen, waiting=1000)
    let_pass(redis_client, SLOW, SLOW.reset_timeout)
    gate.admit()

    back = [refusal(gate, CircuitOpen).retry_after for _ in range(10)]

    assert 1 <= back[0] <= 1 + gate.spacing
    assert back[9] - back[0] == pytest.approx(9 * gate.spacing, abs=gate.spacing)


def use_up(gate: Gate) -> None:
    """Spend more than 50 s bring: no machine stalls for as long."""
    for _ in range(100):
        gate.admit()


def test_a_person_who_opens_the_gate_forgets_the_line(redis_client):
    gate = Gate(redis_client, SLOW)
    gate.pause("anna")
    refusal(gate, Paused, waiting=1000)

    gate.resume()
    with pytest.raises(RateLimited) as caught:
        use_up(gate)

    assert caught.value.retry_after < SLOW.max_wait


@pytest.mark.parametrize("outage", [True, False], ids=["after an outage", "arriving at once"])
def test_a_drain_neither_stampedes_nor_leaves_the_budget_idle(redis_client, outage):
    """2,000 jobs at 2/s whose calls last a second; the refused come back up to a second late.

    The sixteen minutes are not waited for: the gate's times move into the past instead.
    """
    service = dataclasses.replace(BITRIX, name="drain", ops_per_permit=1)
    gate, chance, jobs, skipped = Gate(redis_client, service), random.Random(7), 2000, 0.0
    events, arrivals, order, asked = [(0.0, job, None) for job in range(jobs)], [], [], 0
    if outage:
        break_open(gate)
    start = time.monotonic()
    while events:
        due, job, permit = heapq.heappop(events)
        now = time.monotonic() - start + skipped
        if due > now:
            let_pass(redis_client, service, due - now)
            skipped += due - now
        now = max(now, due)
        if permit is not None:
            gate.report_success(permit)
            continue
        asked += 1
        try:
            permit = gate.admit()
        except (CircuitOpen, RateLimited) as error:
            heapq.heappush(events, (now + error.retry_after + chance.random(), job, None))
        else:
            order.append(job)
            arrivals.append(now + permit.wait)
            heapq.heappush(events, (now + permit.wait + 1, job, permit))

    bucket = LeakyBucket(service.rate, service.burst)
    arrivals.sort()
    assert not any(bucket.refuses(at) for at in arrivals)
    assert jobs >= 0.95 * service.rate * (arrivals[-1] - arrivals[0])
    assert asked < 3 * jobs
    assert sum(abs(place - job) for place, job in enumerate(order)) / jobs < 20


# The breaker


def test_failures_in_a_row_open_the_breaker_for_every_worker(redis_server, redis_client):
    with redis_server.client() as other:
        ours, theirs = Gate(redis_client, BITRIX), Gate(other, BITRIX)

        opened = break_open(ours)
        error = refusal(theirs, CircuitOpen)

    assert opened == [False, False, True]
    assert error.service == "bitrix"
    assert error.retry_after == pytest.approx(30, abs=0.5)
    assert error.detail.startswith("unreachable since ")


def test_a_success_in_between_starts_the_count_anew(redis_client):
    gate = Gate(redis_client, BITRIX)
    for _ in range(2):
        gate.report_failure(gate.admit())

    gate.report_success(gate.admit())

    assert [gate.report_failure(gate.admit()) for _ in range(3)] == [False, False, True]


def test_one_probe_at_a_time_and_two_successes_close_it(redis_server, redis_client):
    with redis_server.client() as other:
        ours, theirs = Gate(redis_client, BITRIX), Gate(other, BITRIX)
        break_open(ours)
        let_pass(redis_client, BITRIX, 30)

        first = ours.admit()
        in_flight = refusal(theirs, CircuitOpen)
        ours.report_success(first)
        second = theirs.admit()
        half_way = refusal(ours, CircuitOpen)
        theirs.report_success(second)
        after = [ours.admit(), theirs.admit()]

    assert first.probe
    assert second.probe > first.probe
    assert in_flight.retry_after == pytest.approx(1, abs=0.2)
    assert "trying it now" in half_way.detail
    assert all(permit.clean and not permit.probe for permit in after)


def test_a_failed_probe_opens_it_again_and_forgets_the_success_before(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    let_pass(redis_client, BITRIX, 30)
    gate.report_success(gate.admit())

    gate.report_failure(gate.admit())
    again = refusal(gate, CircuitOpen)
    let_pass(redis_client, BITRIX, 30)
    gate.report_success(gate.admit())

    assert again.retry_after == pytest.approx(30, abs=0.5)
    assert gate.state().state == "half_open"


def test_calls_from_before_the_break_decide_nothing(redis_client):
    gate = Gate(redis_client, BITRIX)
    before = gate.admit()
    break_open(gate)
    let_pass(redis_client, BITRIX, 30)
    probe = gate.admit()

    gate.report_failure(before)
    gate.report_success(dataclasses.replace(before, clean=False))

    assert "trying it now" in refusal(gate, CircuitOpen).detail
    gate.report_success(probe)
    assert gate.admit().probe


def test_a_killed_prober_does_not_wedge_the_gate(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    let_pass(redis_client, BITRIX, 30)
    lost = gate.admit()

    let_pass(redis_client, BITRIX, BITRIX.lease - 1)
    refusal(gate, CircuitOpen)
    let_pass(redis_client, BITRIX, 1)
    second = gate.admit()
    gate.report_failure(lost)  # the one given up for lost speaks after all

    assert second.probe == lost.probe + 1
    gate.report_success(second)
    assert gate.admit().probe


def test_a_success_that_is_no_news_costs_no_round_trip(redis_client):
    gate = Gate(redis_client, BITRIX)
    gate.admit()
    before = calls_of_scripts(redis_client)

    gate.report_success(gate.admit())
    gate.report_success(gate.admit())

    assert calls_of_scripts(redis_client) - before == 2


# What the upstream asks for


def test_a_rate_limit_empties_our_bucket_and_never_trips_the_breaker(redis_client):
    gate = Gate(redis_client, BITRIX)

    permits = [gate.admit() for _ in range(5)]

    back = [gate.report_limited(permit) for permit in permits]

    assert gate.admit().wait == pytest.approx(0.5, abs=0.2)
    assert gate.admit().wait == pytest.approx(1.0, abs=0.2)
    assert gate.state().state == "closed"
    assert back[0] == pytest.approx(0.5, abs=0.2)


def test_the_time_that_the_upstream_gave_is_kept_by_all(redis_server, redis_client):
    gate = Gate(redis_client, BITRIX, scale=0.01)

    gate.report_limited(gate.admit(), 90)
    with redis_server.client() as other:
        error = refusal(Gate(other, BITRIX), RateLimited)
    let_pass(redis_client, BITRIX, 90)

    assert error.retry_after == pytest.approx(90, abs=2)
    assert gate.admit().wait == pytest.approx(0.5, abs=0.2)


def test_a_shorter_time_does_not_shorten_a_longer_one(redis_client):
    gate = Gate(redis_client, BITRIX)
    permit = gate.admit()

    gate.report_limited(permit, 90)
    gate.report_limited(permit, 5)

    assert gate.state().retry_at.timestamp() == pytest.approx(time.time() + 90, abs=2)


@pytest.mark.parametrize(
    ("asked", "longest"),
    [(1e12, 86_400 + 1), (math.nan, 1), (-5, 1), (math.inf, 1)],
    ids=["ages", "not a number", "the past", "for ever"],
)
def test_an_absurd_time_is_not_believed(redis_client, asked, longest):
    gate = Gate(redis_client, BITRIX)

    assert 0 < gate.report_limited(gate.admit(), asked) <= longest


def test_a_rate_limited_probe_has_found_the_upstream_alive(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    let_pass(redis_client, BITRIX, 30)

    for _ in range(2):
        gate.report_limited(gate.admit())

    assert gate.state().state == "closed"


def test_the_rate_limit_of_one_subject_stops_nobody_else(redis_client):
    gate = Gate(redis_client, BITRIX)

    back = gate.report_limited(gate.admit(subject="17"), 900)
    error = refusal(gate, RateLimited, subject="17")
    unhindered = [gate.admit(subject="18").wait, gate.admit().wait]
    let_pass(redis_client, BITRIX, 900)

    assert back == pytest.approx(900, abs=1)
    assert back < error.retry_after < 901
    assert unhindered == [0, 0]
    assert gate.admit(subject="17")
    assert not [name for name in redis_client.hkeys(key_of(BITRIX)) if "17" in name]


def test_an_unpaid_upstream_is_tried_once_a_minute_and_all_jobs_wait_for_money(redis_client):
    gate = Gate(redis_client, SLOW)

    back = gate.report_unpaid(gate.admit(), "402: top up", waiting=3)
    errors = [refusal(gate, BillingExhausted) for _ in range(3)]
    told = gate.state()
    let_pass(redis_client, SLOW, 60)

    assert back == pytest.approx(60, abs=1)
    assert [error.retry_after for error in errors] == [
        pytest.approx(60 + place * gate.spacing, abs=1) for place in (3, 4, 5)
    ]
    assert "402: top up" in errors[0].detail
    assert (told.state, told.retry_at is not None) == ("held", True)
    assert "402: top up" in told.note
    assert gate.admit()
    assert gate.state().state == "closed"


def test_nobody_is_sent_further_than_two_minutes_for_want_of_money(redis_client):
    """The policy gives such a job half an hour in all: a place at a long line's end is no wait."""
    gate = Gate(redis_client, SLOW)
    gate.report_unpaid(gate.admit())

    waits = [refusal(gate, BillingExhausted, waiting=50).retry_after for _ in range(20)]

    assert max(waits) < 121


def test_an_unpaid_probe_has_found_the_upstream_alive(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    let_pass(redis_client, BITRIX, 30)

    for _ in range(2):
        gate.report_unpaid(gate.admit())
        redis_client.hdel(key_of(BITRIX), "unpaid_until")

    assert gate.state().state == "closed"


# The pace of a subject


def test_one_chat_is_called_at_its_pace_and_others_meanwhile(redis_client):
    gate = Gate(redis_client, BOT)

    one = [gate.admit(subject="1", pace=1.8).wait for _ in range(2)]
    two = [gate.admit(subject="2", pace=1.8).wait for _ in range(2)]

    assert one == [0, pytest.approx(1.8, abs=0.6)]
    assert two == [pytest.approx(2 / BOT.rate, abs=0.6), pytest.approx(1.8, abs=0.6)]


def test_the_later_of_budget_and_pace_counts_and_the_pace_is_kept_from_then(redis_client):
    gate = Gate(redis_client, dataclasses.replace(BOT, rate=1.0))

    waits = [gate.admit().wait, gate.admit(subject="1", pace=1.5).wait]
    let_pass(redis_client, BOT, 1)
    waits.append(gate.admit(subject="1", pace=1.5).wait)

    assert waits == [pytest.approx(wait, abs=0.4) for wait in (0, 1, 1.5)]


def test_what_a_chat_is_refused_costs_the_others_no_budget(redis_client):
    gate = Gate(redis_client, SLOW)
    gate.admit(subject="1", pace=30.0)

    for _ in range(20):
        refusal(gate, RateLimited, subject="1", pace=30.0)

    assert gate.admit(subject="2", pace=30.0).wait == 0


def test_a_refusal_by_the_budget_costs_the_chat_no_pace(redis_client):
    gate = Gate(redis_client, SLOW)
    for _ in range(12):
        gate.admit()

    refusal(gate, RateLimited, subject="1", pace=PACE)
    let_pass(redis_client, SLOW, 3600)

    assert gate.admit(subject="1", pace=PACE).wait == 0


def test_refused_jobs_of_a_chat_stand_in_a_line_of_their_own(redis_client):
    gate = Gate(redis_client, BOT)
    gate.admit(subject="1", pace=9.0)

    errors = [refusal(gate, RateLimited, subject="1", pace=9.0) for _ in range(50)]

    assert "due at" in errors[0].detail
    assert [error.retry_after for error in errors] == [
        pytest.approx(9 - BOT.max_wait / 2 + place * 9, abs=0.9) for place in range(50)
    ]
    assert redis_client.hget(key_of(BOT), "tail") is None


@pytest.mark.parametrize("pace", [PACE, 3.15], ids=["a person", "a group"])
def test_a_burst_for_one_chat_goes_out_at_its_pace_with_hardly_a_second_refusal(redis_client, pace):
    """Sixty jobs for one chat at once; the refused come back up to a second late."""
    gate, chance, jobs, skipped = Gate(redis_client, BOT), random.Random(7), 60, 0.0
    events, sent, asked = [(0.0, job) for job in range(jobs)], [], 0
    start = time.monotonic()
    while events:
        due, job = heapq.heappop(events)
        now = time.monotonic() - start + skipped
        if due > now:
            let_pass(redis_client, BOT, due - now)
            skipped += due - now
        now = max(now, due)
        asked += 1
        try:
            sent.append(now + gate.admit(subject="1", pace=pace).wait)
        except RateLimited as error:
            heapq.heappush(events, (now + error.retry_after + chance.random(), job))

    assert min(later - sooner for sooner, later in pairwise(sent)) > 0.8 * pace
    assert sent[-1] < 1.1 * pace * jobs
    assert asked < 2.5 * jobs


def test_a_million_chats_cost_nothing_a_few_seconds_later(redis_client):
    gate = Gate(redis_client, dataclasses.replace(BOT, rate=1e6))
    for chat in range(100):
        gate.admit(subject=str(chat), pace=9.0)
    gate.report_limited(gate.admit(subject="100", pace=9.0), 40.0)
    lives = {key: redis_client.pttl(key) for key in redis_client.keys(f"{key_of(BOT)}:*")}
    fields = redis_client.hkeys(key_of(BOT))

    assert len(lives) == 101
    assert all(0 < life <= 50_000 for life in lives.values())
    assert sorted(lives.values())[-2] <= 9_500
    assert fields == ["empty_at"]


def test_a_limited_chat_waits_alone_and_its_jobs_come_back_one_by_one(redis_client):
    gate = Gate(redis_client, BOT)

    back = [gate.report_limited(gate.admit(subject="1", pace=PACE), 40.0)]
    back += [refusal(gate, RateLimited, subject="1", pace=PACE).retry_after for _ in range(3)]
    other = gate.admit(subject="2", pace=PACE)

    assert back == [pytest.approx(40 + place * PACE, abs=0.5) for place in range(4)]
    assert other.wait < 1
    assert redis_client.hkeys(key_of(BOT)) == ["empty_at"]


def test_a_limited_chat_without_a_time_keeps_its_pace(redis_client):
    gate = Gate(redis_client, BOT)

    assert gate.report_limited(gate.admit(subject="1", pace=9.0)) == pytest.approx(9, abs=0.9)


@pytest.mark.parametrize("asked", [None, float("nan"), float("inf")], ids=["none", "nan", "inf"])
def test_a_limit_without_a_time_lasts_as_long_as_the_service_says(redis_client, asked):
    service = dataclasses.replace(BOT, pause=900.0)
    gate = Gate(redis_client, service, scale=0.1)

    back = gate.report_limited(gate.admit(subject="1"), asked)
    again = refusal(gate, RateLimited, subject="1")

    assert [back, again.retry_after] == [pytest.approx(90, abs=1)] * 2
    assert gate.admit(subject="2")


def test_a_time_of_the_upstream_is_neither_replaced_nor_scaled(redis_client):
    gate = Gate(redis_client, dataclasses.replace(BOT, pause=900.0), scale=0.1)

    gate.report_limited(gate.admit(subject="1"), 40.0)
    gate.report_limited(gate.admit(subject="2"), 0.0)

    assert refusal(gate, RateLimited, subject="1").retry_after == pytest.approx(40, abs=1)
    assert gate.admit(subject="2")


def test_a_whole_service_that_is_limited_without_a_time_pauses(redis_client):
    gate = Gate(redis_client, dataclasses.replace(BOT, pause=900.0))

    gate.report_limited(gate.admit())

    assert refusal(gate, RateLimited).retry_after == pytest.approx(900, abs=1)
    assert refusal(gate, RateLimited, subject="1").retry_after == pytest.approx(900, abs=1)


def test_a_limit_that_nobody_waits_for_takes_no_place_in_the_line(redis_client):
    slow = dataclasses.replace(BOT, rate=0.5)
    gate = Gate(redis_client, slow)

    gate.report_limited(Permit(wait=0, subject="1"), 400.0, waiting=0)
    first = refusal(gate, RateLimited, subject="1").retry_after

    assert 400 - 1 < first < 400 + gate.spacing


def test_what_closes_the_service_closes_it_for_every_chat(redis_client):
    gate = Gate(redis_client, BOT)
    asked = {"subject": "1", "pace": PACE}

    gate.hold_credential("token", "401")
    held = refusal(gate, CredentialHeld, credential="token", **asked)
    changed = gate.admit(credential="another", **asked)
    gate.report_limited(gate.admit(), 90)
    limited = refusal(gate, RateLimited, **asked)
    gate.pause("anna")

    assert held.retry_after == pytest.approx(60, abs=1)
    assert changed.wait == 0
    assert gate.state().state == "paused"
    assert limited.retry_after == pytest.approx(90, abs=1)
    assert refusal(gate, Paused, **asked)


def test_only_a_subject_has_a_pace(redis_client):
    with pytest.raises(ValueError, match="a pace is that of a subject"):
        Gate(redis_client, BOT).admit(pace=PACE)


# What a person does


def test_a_pause_says_who_why_and_since_when(redis_server, redis_client):
    with redis_server.client() as other:
        newly = Gate(other, BITRIX).pause("anna", "portal maintenance")
    gate = Gate(redis_client, BITRIX)

    error = refusal(gate, Paused)

    assert newly
    assert not gate.pause("upstream", "OVERLOAD_LIMIT")
    assert error.detail.startswith("paused by anna since ")
    assert error.detail.endswith(": portal maintenance")
    assert error.retry_after == pytest.approx(60, abs=1)
    assert "by upstream" in refusal(gate, Paused).detail
    assert gate.resume()
    assert not gate.resume()
    assert gate.admit()


def test_a_reset_closes_the_breaker_and_lifts_holds_but_not_a_pause(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    gate.report_limited(Permit(wait=0), 900)
    gate.hold_credential("old")
    gate.hold_credential("old", subject="17")
    gate.report_limited(Permit(wait=0, subject="17"), 900)
    gate.report_unpaid(Permit(wait=0))
    gate.pause("anna")
    other = Gate(redis_client, dataclasses.replace(BITRIX, name="bitrix-other"))
    other.report_limited(Permit(wait=0, subject="17"), 900)

    gate.reset()

    assert gate.state().state == "paused"
    gate.resume()
    assert gate.admit(credential="old").clean
    assert gate.admit(credential="old", subject="17")
    assert refusal(other, RateLimited, subject="17")


def test_a_held_credential_waits_for_another_one(redis_client):
    gate = Gate(redis_client, BITRIX)

    newly = gate.hold_credential("old secret", "the portal answered 401")
    again = gate.hold_credential("old secret", "the portal answered 401")
    error = refusal(gate, CredentialHeld, credential="old secret", waiting=500)
    held = gate.state()
    changed = gate.admit(credential="new secret")

    assert (newly, again) == (True, False)
    assert "the portal answered 401" in error.detail
    assert "secret" not in str(redis_client.hgetall(key_of(BITRIX)))
    assert (held.state, held.note) == ("held", "the portal answered 401")
    assert changed.wait == 0
    assert gate.state().state == "closed"
    assert redis_client.hget(key_of(BITRIX), "tail") is None


def test_the_credential_of_one_subject_is_held_for_itself(redis_client):
    gate = Gate(redis_client, BITRIX)
    gate.hold_credential("a", subject="17")

    gate.admit(credential="b", subject="18")

    assert refusal(gate, CredentialHeld, credential="a", subject="17").retry_after > 0
    assert gate.state().note == "1 credentials held"
    assert gate.admit(credential="a2", subject="17")


def test_no_credential_cannot_be_held(redis_client):
    with pytest.raises(ValueError, match="empty credential"):
        Gate(redis_client, BITRIX).hold_credential("")


def test_a_refusal_asks_in_order_of_what_takes_longest_to_lift(redis_client):
    gate = Gate(redis_client, BITRIX)
    break_open(gate)
    gate.report_limited(Permit(wait=0), 90)
    gate.pause("anna")
    gate.hold_credential("key")

    seen = [refusal(gate, CredentialHeld, credential="key")]
    seen.append(refusal(gate, Paused, credential="new key"))
    gate.resume()
    seen.append(refusal(gate, RateLimited))
    let_pass(redis_client, BITRIX, 90 - BITRIX.reset_timeout)
    redis_client.hdel(key_of(BITRIX), "blocked:")
    redis_client.hset(key_of(BITRIX), "open_until", time.time() + 9)
    seen.append(refusal(gate, CircuitOpen))

    assert [type(error).__name__ for error in seen] == [
        "CredentialHeld",
        "Paused",
        "RateLimited",
        "CircuitOpen",
    ]
    assert all(error.service == "bitrix" for error in seen)


# States


def test_states_tell_what_a_person_needs(redis_client):
    services = [dataclasses.replace(SLOW, name=name) for name in ("a", "b", "c", "d", "e")]
    gates = [Gate(redis_client, service, prefix="t:") for service in services]
    gates[1].admit()
    gates[2].pause("anna", "maintenance")
    break_open(gates[3])
    break_open(gates[4])
    let_pass_key = key_of(services[4], "t:")
    redis_client.hset(let_pass_key, "open_until", time.time() - 1)

    found = {state.service: state for state in states(redis_client, services, prefix="t:")}

    assert [found[name].state for name in "abcde"] == [
        "closed",
        "closed",
        "paused",
        "open",
        "half_open",
    ]
    assert [found[name].budget_remaining for name in "ab"] == [2, 1]
    assert found["a"].retry_at is None
    assert found["c"].since is not None
    assert found["d"].retry_at.timestamp() == pytest.approx(time.time() + 30, abs=2)
    assert all(key.startswith("t:perennial:gate:") for key in redis_client.keys("*"))


def test_a_spent_budget_says_when_the_next_permit_is_due(redis_client):
    gate = Gate(redis_client, SLOW)
    for _ in range(4):
        gate.admit()

    state = gate.state()

    assert (state.state, state.budget_remaining) == ("closed", 0)
    assert state.retry_at.timestamp() == pytest.approx(time.time() + 1.5, abs=1)


def test_the_scale_shortens_our_waits_and_leaves_the_budget_alone(redis_client):
    gate = Gate(redis_client, SLOW, scale=0.1)
    gate.pause("anna")
    paused = refusal(gate, Paused).retry_after
    gate.resume()
    waits = [gate.admit().wait for _ in range(3)]
    break_open(gate)

    assert paused == pytest.approx(6, abs=1)
    assert waits[2] == pytest.approx(0.5, abs=0.2)
    assert refusal(gate, CircuitOpen).retry_after == pytest.approx(3, abs=1)


# Redis itself


def test_flushed_scripts_are_loaded_again(redis_client):
    gate = Gate(redis_client, BITRIX)
    gate.admit()

    redis_client.script_flush()

    assert gate.admit()


def test_a_clock_that_was_set_back_does_not_close_the_gate_for_an_hour(redis_client):
    gate = Gate(redis_client, SLOW)
    for _ in range(10):
        gate.admit()

    let_pass(redis_client, SLOW, -3600)
    after = gate.admit()
    paced = [gate.admit(subject="1", pace=PACE).wait]
    let_pass(redis_client, SLOW, -3600)
    paced.append(gate.admit(subject="1", pace=PACE).wait)
    break_open(gate)
    let_pass(redis_client, SLOW, -3600)

    assert after.wait <= 0.5
    assert max(paced) <= 2
    assert gate.admit().probe


def test_without_redis_nothing_is_admitted_and_no_report_fails(own_redis):
    gate = Gate(own_redis.client(), BITRIX)
    permit = gate.admit()
    own_redis.stop()

    error = refusal(gate, InternalError)

    assert error.service == "bitrix"
    assert gate.report_failure(permit) is False
    assert gate.report_limited(permit, 7) == 7
    assert gate.report_limited(permit) == 0.5
    paused = Gate(own_redis.client(), dataclasses.replace(BITRIX, pause=900.0), scale=0.1)
    assert paused.report_limited(permit) == 90
    assert gate.report_unpaid(permit) is None
    assert gate.queue_up(20.0) == 20.0


def test_a_refusal_survives_pickling(redis_client):
    gate = Gate(redis_client, BITRIX)
    gate.pause("anna", "note")

    error = gate.behind(refusal(gate, Paused), 3)

    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
