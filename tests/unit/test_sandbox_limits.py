"""The limits of the upstreams, as arithmetic on a clock that is passed in."""

from __future__ import annotations

from sandbox.limits import LeakyBucket, OperatingTime, SlidingWindow


def test_the_burst_is_let_through_and_the_next_request_is_not() -> None:
    bucket = LeakyBucket(rate=2, burst=50)

    assert [bucket.take(now=0.0) for _ in range(51)] == [True] * 50 + [False]


def test_refused_requests_do_not_raise_the_counter() -> None:
    bucket = LeakyBucket(rate=2, burst=50)
    for _ in range(80):
        bucket.take(now=0.0)

    assert (bucket.level, bucket.highest) == (50, 50)


def test_the_bucket_leaks_at_the_documented_rate() -> None:
    bucket = LeakyBucket(rate=2, burst=50)
    for _ in range(50):
        bucket.take(now=0.0)

    assert [bucket.take(now=1.0) for _ in range(3)] == [True, True, False]


def test_a_pace_at_the_rate_is_never_refused() -> None:
    bucket = LeakyBucket(rate=2, burst=50)

    assert all(bucket.take(now=n / 2) for n in range(1000))


def test_a_clock_that_steps_back_neither_leaks_nor_fills() -> None:
    bucket = LeakyBucket(rate=2, burst=2)
    bucket.take(now=100.0)
    bucket.take(now=10.0)

    assert not bucket.take(now=10.0)


def test_the_documented_example_of_operating_time() -> None:
    """UPSTREAMS 1.2: 25 calls of 20 s reach 500 s; the next is blocked until a bucket leaves."""
    operating = OperatingTime(limit=480)
    allowed = []
    for call in range(26):
        now = call * 20.0
        allowed.append(operating.allows("crm.deal.add", now))
        if allowed[-1]:
            operating.spend("crm.deal.add", 20, now)

    assert allowed == [True] * 25 + [False]
    assert not operating.allows("crm.deal.add", 599.0)
    assert operating.allows("crm.deal.add", 600.0)


def test_a_bucket_leaves_ten_minutes_after_its_first_call() -> None:
    operating = OperatingTime(limit=480)
    operating.spend("crm.deal.add", 100, 20.5)
    operating.spend("crm.deal.add", 100, 59.0)

    assert operating.spend("crm.deal.add", 5, 70.0) == (205, 620)
    assert operating.spend("crm.deal.add", 5, 620.0) == (10, 670)


def test_only_the_method_over_its_limit_is_blocked() -> None:
    operating = OperatingTime(limit=10)
    operating.spend("crm.deal.add", 11, 0.0)

    assert not operating.allows("crm.deal.add", 1.0)
    assert operating.allows("crm.deal.get", 1.0)


def test_a_limit_of_zero_is_none() -> None:
    operating = OperatingTime(limit=0)
    operating.spend("crm.deal.add", 10_000, 0.0)

    assert operating.allows("crm.deal.add", 1.0)


def test_a_window_lets_as_many_in_as_have_left_it() -> None:
    window = SlidingWindow(limit=2, seconds=10)

    taken = [window.take(now) for now in (0.0, 4.0, 5.0, 9.9, 10.0, 10.1, 14.0)]
    assert taken == [True, True, False, False, True, False, True]
    assert window.highest == 2


def test_a_window_without_a_limit_lets_everything_in() -> None:
    window = SlidingWindow(limit=0, seconds=10)

    assert all(window.take(0.0) for _ in range(100))
