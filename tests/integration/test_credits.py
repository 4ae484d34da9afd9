"""Credits: granted, charged and given back exactly once, whoever races, dies or comes again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import count

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from admin import cli
from classifiers.errors import InvalidData, JobError, UserError
from storage import credits
from storage import database as storage_database
from storage.models import credit_balances, credit_transfers

pytestmark = pytest.mark.usefixtures("database")

USER, OTHER = "7", "8"
CHARGE = "video:1:charge"
NOTHING = Decimal("0.00")


def charge(amount=1, user_id=USER, key=CHARGE, reason="a video"):
    with storage_database.transaction() as connection:
        return credits.charge(connection, user_id, amount, key=key, reason=reason)


def refund(of=CHARGE, key=None, reason="no video"):
    key = key or f"{of}:refund"
    with storage_database.transaction() as connection:
        return credits.refund(connection, of=of, key=key, reason=reason)


def moved(user_id=USER):
    """Kinds and amounts of a user's transfers, oldest first."""
    return [(entry.kind, str(entry.amount)) for entry in reversed(credits.history(user_id))]


def transfers():
    with storage_database.read() as connection:
        return connection.execute(select(func.count()).select_from(credit_transfers)).scalar_one()


def assert_balanced(users=(USER,)):
    """The ledger adds up, in all and for each of *users*."""
    sums = credits.totals()
    assert sums["granted"] == sums["charged"] - sums["refunded"] + sums["balances"]
    for user_id in users:
        entries = credits.history(user_id, limit=None)
        assert sum(entry.amount for entry in entries) == credits.balance(user_id)


# ── Grants ───────────────────────────────────────────────────────────────────────────────────


def test_user_we_never_heard_of_has_nothing():
    assert str(credits.balance("nobody")) == "0.00"
    assert credits.history("nobody") == []


def test_grants_without_a_key_add_up():
    assert credits.grant(USER, 10, "welcome") == Decimal(10)
    assert str(credits.grant(USER, "0.5", "a gift")) == "10.50"
    assert credits.balance(USER) == Decimal("10.50")
    assert credits.balance(OTHER) == NOTHING


def test_grant_with_a_key_has_one_effect_and_tells_the_balance_of_now():
    credits.grant(USER, 10, "payment 5", key="payment:5")
    charge(4)

    assert credits.grant(USER, "10.00", "payment 5", key="payment:5") == Decimal(6)
    assert moved() == [("grant", "10.00"), ("charge", "-4.00")]


@pytest.mark.parametrize(
    ("user_id", "amount", "key"),
    [
        pytest.param(USER, 11, "payment:5", id="another amount"),
        pytest.param(OTHER, 10, "payment:5", id="another user"),
        pytest.param(USER, 10, CHARGE, id="of a charge"),
    ],
)
def test_grant_with_the_key_of_another_transfer_is_refused(user_id, amount, key):
    credits.grant(USER, 10, "payment 5", key="payment:5")
    charge(10)

    with pytest.raises(InvalidData, match="another transfer"):
        credits.grant(user_id, amount, "payment 5", key=key)
    assert (credits.balance(USER), credits.balance(OTHER)) == (NOTHING, NOTHING)


def test_number_and_text_of_an_id_are_one_user():
    credits.grant(7, 10, "welcome")

    assert credits.balance("7") == Decimal(10)


@pytest.mark.parametrize("user_id", [True, None, "", 7.0, b"7"], ids=repr)
def test_what_is_no_id_is_refused(user_id):
    with pytest.raises(InvalidData, match="id of a user"):
        credits.grant(user_id, 10, "welcome")
    assert transfers() == 0


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (10, "10.00"),
        (0, "0.00"),
        ("0.01", "0.01"),
        ("1e2", "100.00"),
        ("1.500", "1.50"),
        (0.1, "0.10"),
        (Decimal("19.99"), "19.99"),
        (1_000_000_000, "1000000000.00"),
        ("999999999.99", "999999999.99"),
    ],
    ids=repr,
)
def test_amount_is_kept_exactly(amount, expected):
    assert str(credits.grant(USER, amount, "welcome")) == expected
    assert str(credits.balance(USER)) == expected


@pytest.mark.parametrize(
    "amount",
    [
        -1,
        "-0",
        "0.001",
        0.1 + 0.2,
        1e-7,
        float("nan"),
        Decimal("sNaN"),
        float("inf"),
        1_000_000_000.01,
        pytest.param(10**5000, id="5000 digits"),
        "1" * 5000,
        "ten",
        "",
        True,
        None,
        b"1",
    ],
    ids=lambda amount: repr(amount)[:20],
)
def test_what_is_no_amount_is_refused(amount):
    with pytest.raises(InvalidData, match="at most two places"):
        credits.grant(USER, amount, "welcome")
    with pytest.raises(InvalidData, match="at most two places"):
        charge(amount)
    assert transfers() == 0


def test_tenths_add_up_to_exactly_one():
    for _ in range(10):
        credits.grant(USER, 0.1, "a tenth")

    assert charge(1)
    assert credits.balance(USER) == NOTHING


# ── Charges ──────────────────────────────────────────────────────────────────────────────────


def test_charge_happens_once_per_key():
    credits.grant(USER, 10, "welcome")

    assert charge(4) is True
    assert charge(4) is False
    assert credits.balance(USER) == Decimal(6)


@pytest.mark.parametrize("price", [5, 100], ids=["affordable", "unaffordable"])
def test_price_that_changed_after_the_charge_changes_nothing(price):
    credits.grant(USER, 10, "welcome")
    charge(4)

    assert charge(price) is False
    assert credits.balance(USER) == Decimal(6)


def test_charge_that_took_the_last_credits_is_not_refused_when_it_comes_again():
    credits.grant(USER, 10, "welcome")
    charge(10)

    assert charge(10) is False


@pytest.mark.parametrize("key", [CHARGE, "payment:5"], ids=["charge", "grant"])
def test_charge_with_the_key_of_another_transfer_is_refused(key):
    credits.grant(OTHER, 10, "payment 5", key="payment:5")
    credits.grant(USER, 10, "welcome")
    charge(4, OTHER)

    with pytest.raises(InvalidData, match="another transfer"):
        charge(4, USER, key)
    assert credits.balance(USER) == Decimal(10)


@pytest.mark.parametrize("granted", [None, 0, "3.99"], ids=["unknown", "nothing", "too little"])
def test_user_who_has_too_little_is_told_what_is_missing(granted):
    if granted is not None:
        credits.grant(USER, granted, "welcome")
    with pytest.raises(UserError) as error:
        charge(4)

    available = credits.exact(granted or 0)
    assert (error.value.reason, error.value.service) == ("insufficient_credits", "credits")
    assert error.value.detail == f"4.00 credits are needed, {available} are available"
    assert credits.balance(USER) == available


def test_refused_charge_leaves_nothing_even_if_the_caller_goes_on():
    credits.grant(USER, 3, "welcome")
    with storage_database.transaction() as connection:
        with pytest.raises(UserError):
            credits.charge(connection, USER, 4, key=CHARGE, reason="a video")
        assert credits.charge(connection, USER, 3, key="cheaper", reason="a video")

    assert moved() == [("grant", "3.00"), ("charge", "-3.00")]
    assert_balanced()


def test_charge_of_nothing_is_booked_like_any_other():
    assert charge(0) is True
    assert charge(0) is False
    assert refund() == NOTHING
    assert refund() is None
    assert moved() == [("charge", "0.00"), ("refund", "0.00")]


def test_charge_is_taken_back_with_the_transaction_it_is_part_of():
    credits.grant(USER, 10, "welcome")

    def fails_after():
        with storage_database.transaction() as connection:
            assert credits.charge(connection, USER, 4, key=CHARGE, reason="a video")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        fails_after()
    assert moved() == [("grant", "10.00")]
    assert credits.balance(USER) == Decimal(10)
    assert charge(4) is True


def test_connection_without_a_transaction_is_refused():
    credits.grant(USER, 10, "welcome")
    with (
        storage_database.read() as connection,
        pytest.raises(ValueError, match="in a transaction"),
    ):
        credits.charge(connection, USER, 4, key=CHARGE, reason="a video")
    assert credits.balance(USER) == Decimal(10)


# ── Refunds ──────────────────────────────────────────────────────────────────────────────────


def test_refund_gives_back_what_was_charged_once():
    credits.grant(USER, 10, "welcome")
    charge("4.50")

    assert str(refund()) == "4.50"
    assert refund() is None
    assert refund(key="another key") is None
    assert credits.balance(USER) == Decimal(10)


@pytest.mark.parametrize(
    "of",
    ["never charged", "payment:5", f"{CHARGE}:refund"],
    ids=["no transfer", "a grant", "a refund"],
)
def test_only_a_charge_is_refunded(of):
    credits.grant(USER, 10, "payment 5", key="payment:5")
    charge(4)
    refund()

    assert refund(of) is None
    assert credits.balance(USER) == Decimal(10)


def test_charge_that_was_refused_is_not_refunded():
    with pytest.raises(UserError):
        charge(4)

    assert refund() is None
    assert credits.balance(USER) == NOTHING


def test_refund_with_the_key_of_another_transfer_is_refused():
    credits.grant(USER, 10, "payment 5", key="payment:5")
    charge(4)

    with pytest.raises(InvalidData, match="another transfer"):
        refund(key="payment:5")
    assert credits.balance(USER) == Decimal(6)
    assert refund() == Decimal(4)


def test_refunded_charge_is_not_charged_again_under_its_key():
    credits.grant(USER, 10, "welcome")
    charge(4)
    refund()

    assert charge(4) is False
    assert credits.balance(USER) == Decimal(10)


def test_next_round_is_charged_and_refunded_anew():
    credits.grant(USER, 4, "welcome")
    charge(4)
    refund()

    assert charge(4, key="video:1:2:charge") is True
    assert refund(of="video:1:2:charge") == Decimal(4)
    assert credits.balance(USER) == Decimal(4)


def test_refund_is_taken_back_with_the_transaction_it_is_part_of():
    credits.grant(USER, 10, "welcome")
    charge(4)

    def fails_after():
        with storage_database.transaction() as connection:
            assert credits.refund(connection, of=CHARGE, key="r", reason="no video")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        fails_after()
    assert credits.balance(USER) == Decimal(6)
    assert refund() == Decimal(4)


# ── History and totals ───────────────────────────────────────────────────────────────────────


def test_history_tells_the_user_s_transfers_newest_first():
    credits.grant(USER, 10, "welcome", key="payment:5")
    credits.grant(OTHER, 99, "not theirs")
    charge("2.50")
    refund(reason="no video: too dark")

    newest, middle, oldest = credits.history(USER)
    told = [(e.kind, str(e.amount), str(e.balance_after)) for e in (newest, middle, oldest)]
    assert told == [
        ("refund", "2.50", "10.00"),
        ("charge", "-2.50", "7.50"),
        ("grant", "10.00", "10.00"),
    ]
    assert (newest.reason, newest.key) == ("no video: too dark", f"{CHARGE}:refund")
    assert (oldest.reason, oldest.key) == ("welcome", "payment:5")
    assert oldest.at < middle.at < newest.at
    assert newest.at.utcoffset().total_seconds() == 0


@pytest.mark.parametrize("limit", [1, 4, 7, None])
def test_history_is_as_long_as_asked_for(limit):
    credits.grant(USER, 1, "0")
    for number in range(1, 4):
        charge(1, key=f"c{number}", reason=f"{2 * number - 1}")
        refund(f"c{number}", reason=f"{2 * number}")

    reasons = [entry.reason for entry in credits.history(USER, limit=limit)]
    assert reasons == ["6", "5", "4", "3", "2", "1", "0"][:limit]


def test_totals_of_an_empty_ledger_are_nothing():
    assert credits.totals() == dict.fromkeys(
        ["granted", "charged", "refunded", "balances"], NOTHING
    )


def test_totals_are_of_all_users():
    credits.grant(USER, 10, "welcome")
    credits.grant(OTHER, "0.25", "welcome")
    charge(4)
    charge("0.20", OTHER, "other")
    refund()

    assert {name: str(amount) for name, amount in credits.totals().items()} == {
        "granted": "10.25",
        "charged": "4.20",
        "refunded": "4.00",
        "balances": "10.05",
    }
    assert_balanced()


def test_totals_exceed_what_a_float_can_hold():
    for number in range(10):
        credits.grant(number, "999999999.99", "much")
    credits.grant(USER, "0.01", "a little")

    assert str(credits.totals()["granted"]) == "9999999999.91"


# ── What the tables refuse, whatever the code does ───────────────────────────────────────────


def write(**columns):
    """Write a transfer of the user behind the back of the code."""
    row = {"key": "k", "refunds": None, "reason": "", "at": storage_database.now()}
    amounts = {"amount": Decimal(4), "balance_after": NOTHING}
    with storage_database.write() as connection:
        connection.execute(insert(credit_transfers).values(row | amounts | columns))


REFUND = {"debit": "spent", "credit": f"user:{USER}", "refunds": CHARGE}


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"debit": "issued", "credit": f"user:{USER}"}, id="grant"),
        pytest.param({"debit": f"user:{USER}", "credit": "spent"}, id="charge"),
        pytest.param(REFUND, id="refund"),
    ],
)
def test_tables_take_a_sound_transfer(columns):
    credits.grant(USER, 4, "welcome")
    charge(4)
    write(**columns)

    assert transfers() == 3


@pytest.mark.parametrize(
    "columns",
    [
        pytest.param(
            {"key": CHARGE, "debit": "issued", "credit": f"user:{USER}"}, id="key used twice"
        ),
        pytest.param(
            {"amount": Decimal(-4), "debit": "issued", "credit": f"user:{USER}"}, id="negative"
        ),
        pytest.param({"debit": "issued", "credit": "spent"}, id="without a user"),
        pytest.param({"debit": f"user:{USER}", "credit": f"user:{OTHER}"}, id="between users"),
        pytest.param({"debit": f"user:{USER}", "credit": "issued"}, id="grant taken back"),
        pytest.param(REFUND | {"refunds": None}, id="refund of nothing"),
        pytest.param(REFUND | {"refunds": "never charged"}, id="refund of an unknown charge"),
        pytest.param(REFUND | {"refunds": "payment:5"}, id="refund of a grant"),
        pytest.param(REFUND | {"amount": Decimal("4.01")}, id="refund of more"),
        pytest.param(REFUND | {"credit": f"user:{OTHER}"}, id="refund to another"),
        pytest.param(REFUND | {"refunds": "refunded"}, id="second refund"),
    ],
)
def test_tables_refuse_an_unsound_transfer(columns):
    credits.grant(USER, 8, "welcome", key="payment:5")
    charge(4)
    charge(4, key="refunded")
    refund("refunded")

    with pytest.raises(IntegrityError):
        write(**columns)
    assert transfers() == 4


def test_tables_refuse_a_balance_below_nothing():
    credits.grant(USER, 4, "welcome")

    with pytest.raises(IntegrityError), storage_database.write() as connection:
        connection.execute(update(credit_balances).values(balance=Decimal("-0.01")))
    assert credits.balance(USER) == Decimal(4)


def test_tables_refuse_a_third_place():
    with pytest.raises(Exception, match="more than two places"):
        write(debit="issued", credit=f"user:{USER}", amount=Decimal("0.001"))


# ── Races ────────────────────────────────────────────────────────────────────────────────────


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


def test_of_fifty_charges_as_many_succeed_as_the_balance_pays_for():
    credits.grant(USER, 10, "welcome")
    outcomes = race(50, lambda number: charge(1, key=f"c{number}"))

    refused = [o for o in outcomes if isinstance(o, UserError)]
    assert (outcomes.count(True), len(refused)) == (10, 40)
    assert credits.balance(USER) == NOTHING
    assert [e.balance_after for e in credits.history(USER)] == [*range(10), 10]
    assert_balanced()


def test_one_of_many_racers_charges():
    credits.grant(USER, 10, "welcome")
    outcomes = race(16, lambda _: charge(10))

    assert sorted(outcomes) == [False] * 15 + [True]
    assert credits.balance(USER) == NOTHING


def test_one_of_many_racers_refunds():
    credits.grant(USER, 10, "welcome")
    charge(10)
    outcomes = race(16, lambda number: refund(key=f"r{number}"))

    assert sorted(outcomes, key=str) == [Decimal(10)] + [None] * 15
    assert credits.balance(USER) == Decimal(10)


def test_one_of_many_racers_grants():
    outcomes = race(16, lambda _: credits.grant(USER, 10, "payment 5", key="payment:5"))

    assert outcomes == [Decimal(10)] * 16
    assert moved() == [("grant", "10.00")]


def test_one_of_many_users_gets_what_a_key_stands_for():
    outcomes = race(16, lambda number: credits.grant(number, 10, "payment 5", key="payment:5"))

    assert sum(isinstance(o, InvalidData) for o in outcomes) == 15
    assert credits.totals()["balances"] == Decimal(10)
    assert_balanced()


def test_first_grants_of_a_user_that_come_at_once_are_all_counted():
    race(16, lambda _: credits.grant(USER, 1, "welcome"))

    assert credits.balance(USER) == Decimal(16)


def test_everything_at_once_neither_waits_for_ever_nor_loses_a_transfer():
    users = 3

    def video(number):
        """A round as workers run it: twice charged, given back by two at once."""
        user_id = number % users
        granted = credits.grant(user_id, 5, "payment", key=f"payment:{number}")
        charged = [charge(3, user_id, f"c{number}") for _ in range(2)]
        given_back = [refund(f"c{number}"), refund(f"c{number - 1}"), refund(f"c{number + 1}")]
        return granted is not None and charged == [True, False], given_back

    outcomes = race(24, video)

    assert [fine for fine, _ in outcomes] == [True] * 24
    assert sum(len(given) - given.count(None) for _, given in outcomes) == 24
    assert [credits.balance(user_id) for user_id in range(users)] == [Decimal(40)] * users
    assert credits.totals()["refunded"] == Decimal(72)
    assert_balanced(range(users))


# ── Any sequence ─────────────────────────────────────────────────────────────────────────────


class Plain:
    """The same ledger, as plainly as it can be told."""

    def __init__(self):
        self.has, self.done = defaultdict(Decimal), {}  # by user; by key, who and how much

    def grant(self, user, amount, key):
        if key not in self.done:
            self._book(key, user, amount, amount)
        return self.has[user] if self.done[key] == (user, amount) else "refused"

    def charge(self, user, amount, key):
        if key in self.done:
            return "done before" if self.done[key][0] == user else "refused"
        if self.has[user] < amount:
            return "too little"
        self._book(key, user, amount, -amount)
        return "done"

    def refund(self, _user, _amount, key):
        charged = self.done.get(key.replace("refund", "charge"))
        if charged is None or key in self.done:
            return "nothing"
        user, amount = charged
        self._book(key, user, amount, amount)
        return amount

    def _book(self, key, user, amount, change):
        self.done[key] = (user, amount)
        self.has[user] += change


class Real:
    def grant(self, user, amount, key):
        return credits.grant(user, amount, "a grant", key=key)

    def charge(self, user, amount, key):
        return "done" if charge(amount, user, key) else "done before"

    def refund(self, _user, _amount, key):
        amount = refund(key.replace("refund", "charge"), key)
        return "nothing" if amount is None else amount


def told(run, *step):
    try:
        return run(*step)
    except InvalidData:
        return "refused"
    except UserError:
        return "too little"


STEPS = st.tuples(
    st.sampled_from(["grant", "grant", "charge", "charge", "refund"]),
    st.sampled_from("ab"),  # users
    st.integers(0, 300).map(lambda hundredths: Decimal(hundredths).scaleb(-2)),
    st.integers(0, 2),  # keys
)
_runs = count()


@example_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(STEPS, min_size=4, max_size=12))
def test_ledger_agrees_with_the_plainest_one_after_any_sequence(steps):
    plain, real, run = Plain(), Real(), next(_runs)
    for kind, name, amount, number in steps:
        step = (f"{name}{run}", amount, f"{kind}:{run}:{number}")
        assert told(getattr(real, kind), *step) == getattr(plain, kind)(*step)

    assert {user: credits.balance(user) for user in plain.has} == plain.has
    assert_balanced(plain.has)


# ── Processes ────────────────────────────────────────────────────────────────────────────────


def charge_in_process(start, outcomes, number):
    start.wait(60)
    for turn in range(8):
        try:
            outcomes.put(charge(1, key=f"c{number}:{turn}"))
        except UserError:
            outcomes.put("refused")


def test_processes_together_charge_no_more_than_there_is():
    credits.grant(USER, 10, "welcome")
    spawn = multiprocessing.get_context("spawn")
    start, outcomes = spawn.Barrier(3), spawn.Queue()
    processes = [
        spawn.Process(target=charge_in_process, args=(start, outcomes, number), daemon=True)
        for number in range(3)
    ]
    for process in processes:
        process.start()
    got = [outcomes.get(timeout=60) for _ in range(24)]
    for process in processes:
        process.join(10)

    assert (got.count(True), got.count("refused")) == (10, 14)
    assert credits.balance(USER) == NOTHING
    assert_balanced()


def charge_and_hang(reached):
    with storage_database.transaction() as connection:
        credits.refund(connection, of=CHARGE, key="r", reason="no video")
        credits.charge(connection, USER, 2, key="next", reason="a video")
        reached.set()
        time.sleep(60)


def test_killed_worker_leaves_nothing_and_holds_nobody_up():
    credits.grant(USER, 10, "welcome")
    charge(4)
    spawn = multiprocessing.get_context("spawn")
    reached = spawn.Event()
    worker = spawn.Process(target=charge_and_hang, args=(reached,), daemon=True)
    worker.start()
    assert reached.wait(30)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(10)

    assert charge(2, key="next") is True
    assert refund() == Decimal(4)
    assert moved() == [
        ("grant", "10.00"),
        ("charge", "-4.00"),
        ("charge", "-2.00"),
        ("refund", "4.00"),
    ]
    assert_balanced()


# ── By hand ──────────────────────────────────────────────────────────────────────────────────


def by_hand(*arguments):
    return CliRunner().invoke(cli.credits, arguments)


def test_person_grants_and_looks():
    granted = by_hand("grant", USER, "12.5", "--reason", "sorry")
    shown = by_hand("show", USER)

    assert (granted.exit_code, granted.output) == (0, "user 7 has 12.50 credits\n")
    assert shown.exit_code == 0
    assert "user 7 has 12.50 credits" in shown.output
    assert "sorry" in shown.output


def test_person_who_grants_twice_with_one_key_grants_once():
    arguments = ("grant", USER, "5", "--reason", "payment 5", "--key", "payment:5")

    assert by_hand(*arguments).output == by_hand(*arguments).output == "user 7 has 5.00 credits\n"
    assert moved() == [("grant", "5.00")]


def test_json_of_a_user_has_exact_amounts():
    credits.grant(USER, 10, "welcome", key="payment:5")
    charge("0.10")

    shown = json.loads(by_hand("show", USER, "--json", "--limit", "1").stdout)
    assert (shown["user_id"], shown["balance"]) == (USER, "9.90")
    assert [{**entry, "at": "…"} for entry in shown["history"]] == [
        {
            "at": "…",
            "kind": "charge",
            "amount": "-0.10",
            "balance_after": "9.90",
            "reason": "a video",
            "key": CHARGE,
        }
    ]


def test_json_without_a_limit_tells_everything():
    for _ in range(101):
        credits.grant(USER, 1, "one")

    assert len(json.loads(by_hand("show", USER, "--json").stdout)["history"]) == 101
    assert by_hand("show", USER).output.count("grant:") == 100


def test_user_without_transfers_is_shown_as_such():
    assert by_hand("show", USER).output == "user 7 has 0.00 credits\nno transfers\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["grant", USER, "ten", "--reason", "r"], 2, "at most two places"),
        (["grant", USER, "0.001", "--reason", "r"], 2, "at most two places"),
        (["grant", USER, "5"], 2, "--reason"),
        (["grant", "", "5", "--reason", "r"], 2, "a user has an id"),
        (["show"], 2, "USER"),
        (["show", USER, "--limit", "0"], 2, "--limit"),
        (["grant", USER, "6", "--reason", "r", "--key", "payment:5"], 1, "another transfer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_and_refusals_have_their_exit_codes(arguments, code, words):
    credits.grant(USER, 5, "payment 5", key="payment:5")
    said = by_hand(*arguments)

    assert said.exit_code == code
    assert words in said.output
    assert credits.balance(USER) == Decimal(5)


def test_database_without_tables_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.db'}")
    storage_database.settings.cache_clear()
    before = by_hand("show", USER)
    CliRunner().invoke(cli.db, ["upgrade"])
    after = by_hand("show", USER)

    assert before.exit_code == 1
    assert "run celery -A tasks db upgrade" in before.output
    assert after.exit_code == 0
