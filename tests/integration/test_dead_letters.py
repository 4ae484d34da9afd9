"""Dead letters on a real Redis: each death once, never lost, found by time and cause."""

from __future__ import annotations

import base64
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from urllib.parse import quote, quote_plus

import pytest
from redis.exceptions import RedisError

from classifiers.errors import Fatal
from reliability.causes import Verdict, fingerprint
from reliability.dead_letters import (
    CHUNK,
    Body,
    Compensation,
    DeadLetters,
    Edit,
    Filter,
    Letter,
    Metadata,
)
from reliability.spool import Spool

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def letter(message_id="job-1", *, minute=0.0, task="bitrix.create_deal", **facts):
    facts = {
        "original_queue": "bitrix",
        "error_type": "InvalidData",
        "error_message": "the field 'UF_CRM_1' is unknown",
        "message_body": Body(task, (), {"order_id": "17"}),
        "metadata": Metadata(
            failed_at=NOON + timedelta(minutes=minute),
            received_at=NOON,
            retry_count=2,
            trace_id="t-1",
        ),
        "category": "validation",
        "service": "bitrix",
        "code": "ERROR_CORE",
    } | facts
    return Letter(message_id=message_id, **facts)


def ids(page):
    return [found.message_id for found in page.letters]


@pytest.fixture
def dead(redis_client):
    return DeadLetters(redis_client, prefix="t:")


# Once, and whole


def test_a_letter_comes_back_as_it_was_written(dead):
    written = letter(
        traceback="Traceback …",
        history=({"error": "ServiceUnavailable", "at": "2026-11-22T11:59:00+00:00"},),
        headers={"spent": {"Retryable": 2}, "пусто": []},
        payload_version=3,
        raw=base64.b64encode(b"\xff\x00").decode(),
        release="1.4.2",
        compensation=Compensation("needed", {"order_id": "17"}),
        edits=(Edit(NOON, "anna", {"order_id": "16"}, {"order_id": "17"}, 3),),
    )

    dead.bury(written)
    found = dead.get("job-1")

    assert dataclasses.replace(found, fingerprint="") == written
    assert len(found.fingerprint) == 12
    assert Letter.from_json(found.to_json()) == found
    assert next(iter(json.loads(found.to_json()))) == "message_id"
    assert json.loads(found.to_json())["compensation"] == {
        "state": "needed",
        "about": {"order_id": "17"},
    }


def test_an_unknown_letter_is_none(dead):
    assert dead.get("nobody") is None
    assert not dead.discard("nobody")
    assert not dead.compensate("nobody", "done")


def test_a_death_told_twice_is_written_once(dead):
    written = [
        dead.bury(letter(error_message="first")),
        dead.bury(letter(error_message="second", minute=0.001)),
    ]

    assert written == [True, False]
    assert dead.get("job-1").error_message == "first"
    assert dead.totals() == {("bitrix.create_deal", "InvalidData"): 1}


def test_many_letters_written_at_once_are_each_written_once(dead):
    several = [letter(f"job-{n}") for n in range(CHUNK + 5)]
    dead.bury(several[0])

    assert dead.bury_all(several) == CHUNK + 4
    assert dead.bury_all(several) == 0
    assert dead.count() == CHUNK + 5
    assert dead.get("job-7") == dataclasses.replace(
        several[7], fingerprint=dead.get("job-0").fingerprint
    )


def test_many_workers_telling_one_death_write_it_once(redis_server, redis_client):
    def tell(n):
        with redis_server.client() as client:
            return DeadLetters(client).bury(letter(minute=n / 1000))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(tell, range(16)))

    assert sum(written) == 1
    assert DeadLetters(redis_client).count() == 1


@pytest.mark.parametrize("value", [{1, 2}, NOON, float("nan"), b"\xff", object, "\ud800", {5: 6}])
def test_a_value_that_json_does_not_know_does_not_lose_the_letter(dead, value):
    dead.bury(letter(headers={"odd": value}))

    assert dead.get("job-1").headers["odd"]


@pytest.mark.parametrize("name", ["message_id", "original_queue", "error_type", "task"])
def test_a_name_that_no_text_can_hold_does_not_lose_the_letter(dead, name):
    """Half a surrogate pair is legal in the JSON of a foreign message."""
    dead.bury(letter(**{name: "half \ud800"}))

    (found,) = dead.each()
    assert r"half \ud800" in {getattr(found, name, ""), found.message_body.task}


def test_a_payload_nested_without_end_does_not_lose_the_letter(dead):
    deep: list = []
    for _ in range(5000):
        deep = [deep]

    dead.bury(letter(message_body=Body("bitrix.create_deal", (deep,))))

    assert dead.get("job-1").message_body.task == "bitrix.create_deal"


def test_an_endless_text_keeps_its_two_ends(dead):
    dead.bury(letter(traceback="begin" + "x" * 1_000_000 + "end", error_message="m" * 10_000))

    found = dead.get("job-1")
    assert len(found.traceback) < 20_100
    assert found.traceback.startswith("begin")
    assert found.traceback.endswith("end")
    assert "characters left out" in found.traceback
    assert len(found.error_message) < 4_100


def test_a_letter_of_another_version_is_read(dead):
    facts = json.loads(letter().to_json())

    read = Letter.from_json(json.dumps(facts | {"invented_later": 1}))

    assert read == letter()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"message_id": "x"}', letter().to_json()[:-20], "null", "7"],
    ids=["empty", "list", "nothing", "half", "torn", "null", "number"],
)
def test_what_is_no_letter_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  json has its own messages
        Letter.from_json(text)


# Secrets


def test_what_a_compensation_is_about_is_found_again_though_it_looks_like_a_secret(redis_client):
    dead = DeadLetters(redis_client, secrets=("test",))
    dead.bury(letter("job-1", compensation=Compensation("needed", {"order_id": "test-17"})))

    assert dead.get("job-1").compensation.about == {"order_id": "test-17"}


def test_secrets_are_hidden_wherever_they_stand(redis_client):
    token = "s3cret-token"
    dead = DeadLetters(redis_client, secrets=("", token, "s3cret-token-longer", "abc"))

    dead.bury(
        letter(
            error_message=f"GET https://x/rest/1/{token}/ failed",
            traceback=f"url='{token}-longer'",
            message_body=Body("t", (f"a{token}b", "abc", "abcd"), {token: [{"deep": token}]}),
            headers={"authorization": f"Bearer {token}"},
            history=({"detail": token},),
            raw=base64.b64encode(b"\xff" + token.encode()).decode(),
        )
    )
    stored = redis_client.hget("perennial:dead:letters", "job-1")
    found = dead.get("job-1")

    assert token not in stored
    assert token.encode() not in base64.b64decode(found.raw)
    assert found.traceback == "url='•••'"
    assert found.message_body.args == ("a•••b", "•••", "abcd")
    assert found.message_body.kwargs == {"•••": [{"deep": "•••"}]}


# Settled, and open again


def test_a_settled_letter_stays_and_says_who_and_why(dead):
    dead.bury(letter())

    settled = dead.discard("job-1", by="anna", note="ordered by mistake")
    found = dead.get("job-1")

    assert settled
    assert not dead.discard("job-1")
    assert (found.state, found.settled_by, found.note) == (
        "discarded",
        "anna",
        "ordered by mistake",
    )
    assert abs(found.settled_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert [dead.count(Filter(state)) for state in ("open", "discarded", "all")] == [0, 1, 1]
    assert dead.groups() == []


def test_a_job_that_dies_again_opens_its_letter_again(dead):
    dead.bury(letter())
    first = dead.get("job-1")
    dead.mark_replayed(first, by="anna")

    again = dead.bury(letter(minute=5, error_type="NotFound", task="renamed.task", replays=1))
    found = dead.get("job-1")

    assert again
    assert (found.state, found.replays, found.error_type) == ("open", 1, "NotFound")
    assert found.settled_by == ""
    assert dead.count(Filter(task="bitrix.create_deal")) == 0
    assert dead.count(Filter("replayed")) == 0
    assert [(group.error_type, group.count) for group in dead.groups()] == [("NotFound", 1)]


def test_a_death_without_replay_count_opens_a_settled_letter_all_the_same(dead):
    """To open a letter twice is a nuisance, to miss a death is a loss."""
    dead.bury(letter())
    dead.mark_replayed(dead.get("job-1"))

    again = dead.bury(letter(minute=5))

    assert again
    assert (dead.get("job-1").state, dead.get("job-1").replays) == ("open", 1)


def test_the_very_same_death_does_not_open_a_settled_letter(dead):
    """A spool that is drained twice tells old deaths again."""
    dead.bury(letter())
    dead.discard("job-1")

    assert not dead.bury(letter())
    assert dead.get("job-1").state == "discarded"


def test_a_death_before_the_replay_was_noted_is_not_lost(dead):
    """Replay sends first and notes after: the job may be dead again in between."""
    dead.bury(letter())
    read = dead.get("job-1")

    died_again = dead.bury(letter(minute=1, replays=1, error_message="again"))
    noted = dead.mark_replayed(read)

    assert (died_again, noted) == (True, False)
    assert dead.get("job-1").state == "open"
    assert dead.get("job-1").error_message == "again"


def test_two_people_replaying_one_letter_note_it_once(dead):
    dead.bury(letter())
    read = dead.get("job-1")

    noted = [dead.mark_replayed(read, by="anna"), dead.mark_replayed(read, by="boris")]

    assert noted == [True, False]
    assert dead.get("job-1").settled_by == "anna"


def test_a_discarded_letter_can_still_be_replayed(dead):
    dead.bury(letter())
    dead.discard("job-1")

    assert dead.mark_replayed(dead.get("job-1"))
    assert dead.get("job-1").state == "replayed"


def test_compensation_is_owed_until_it_is_sent_and_again_if_nobody_confirms_it(dead, redis_client):
    for name in ("first", "second", "third"):
        dead.bury(letter(name, compensation=Compensation("needed")))
    dead.bury(letter("none"))

    owed = dead.owed()
    dead.compensate("first", "done")
    too_late = dead.compensate("first", "sent")
    dead.compensate("second", "sent")
    after_sending = dead.owed()
    redis_client.zincrby("t:perennial:dead:owed", -3700, "second")  # an hour passes

    assert sorted(owed) == ["first", "second", "third"]
    assert not too_late
    assert after_sending == ["third"]
    assert sorted(dead.owed()) == ["second", "third"]
    assert dead.get("first").compensation.state == "done"


def test_what_comes_late_for_an_earlier_death_does_not_settle_a_later_one(dead):
    dead.bury(letter("twice", minute=1, compensation=Compensation("needed")))
    dead.mark_replayed(dead.get("twice"))
    again = {"replays": 1, "headers": {"replays": 1}}
    dead.bury(letter("twice", minute=2, compensation=Compensation("needed"), **again))

    late = dead.compensate("twice", "done", of=0)
    in_time = dead.compensate("twice", "done", of=1)

    assert (late, in_time) == (False, True)


def test_what_the_application_sends_anew_under_the_old_id_is_made_good_by_its_own_count(dead):
    """A delivery keeps its id: replayed by a person once, it may be sent by the application again."""
    dead.bury(letter(minute=1, compensation=Compensation("done")))
    dead.mark_replayed(dead.get("job-1"))
    dead.bury(letter(minute=2, compensation=Compensation("needed")))

    assert dead.get("job-1").replays == 1
    assert dead.compensate("job-1", "done", of=0)
    assert dead.owed() == []


def test_a_compensation_that_has_failed_is_not_taken_for_sent_any_more(dead):
    dead.bury(letter(compensation=Compensation("needed")))
    dead.compensate("job-1", "failed")

    assert not dead.compensate("job-1", "sent")
    assert dead.get("job-1").compensation.state == "failed"


def test_what_is_put_off_is_owed_again_in_an_hour(dead, redis_client):
    for name in ("first", "second"):
        dead.bury(letter(name, compensation=Compensation("needed")))
    dead.bury(letter("none"))
    put_off = dead.put_off("first"), dead.put_off("none"), dead.put_off("nobody")
    now = dead.owed()
    redis_client.zincrby("t:perennial:dead:owed", -3700, "first")

    assert put_off == (True, False, False)
    assert now == ["second"]
    assert sorted(dead.owed()) == ["first", "second"]
    assert dead.get("first").compensation.state == "needed"


# Edits


WORDS = {"list": [], "object": {}, "big": 12345678901234567890, "text": 'ü/"', "half": 0.1}


def test_an_edited_call_is_what_is_replayed_and_what_it_was_stays_to_be_read(dead):
    dead.bury(letter(message_body=Body("t", ("first",), {"order_id": "17"})))

    amended = [dead.amend("job-1", WORDS, "anna"), dead.amend("job-1", {"order_id": "18"}, "boris")]
    found = dead.get("job-1")

    assert amended == [True, True]
    assert found.message_body == Body("t", ("first",), {"order_id": "18"})
    assert [(e.by, e.before, e.after) for e in found.edits] == [
        ("anna", {"order_id": "17"}, WORDS),
        ("boris", WORDS, {"order_id": "18"}),
    ]
    assert abs(found.edits[0].at - datetime.now(UTC)) < timedelta(minutes=1)
    assert Letter.from_json(found.to_json()) == found


def test_an_edit_may_bring_the_payload_to_another_version(dead):
    dead.bury(letter(payload_version=1))

    dead.amend("job-1", {"order_id": "18"}, "anna")
    same = dead.get("job-1").payload_version
    dead.amend("job-1", {"order": {"id": "18"}}, "anna", payload_version=2)

    assert (same, dead.get("job-1").payload_version) == (1, 2)


@pytest.mark.parametrize(
    "spell",
    [str, repr, json.dumps, partial(json.dumps, ensure_ascii=False), quote, quote_plus],
    ids=["as it is", "repr", "JSON", "JSON in UTF-8", "in a path", "in a form"],
)
def test_a_secret_is_hidden_however_it_is_spelt(redis_client, spell):
    secret = 's3cret "é" of/the shop'
    dead = DeadLetters(redis_client, secrets=(secret,))
    dead.bury(letter(error_message=f"it was {spell(secret)}, they say"))

    assert "shop" not in dead.get("job-1").error_message


def test_secrets_are_hidden_in_an_edit(redis_client):
    dead = DeadLetters(redis_client, secrets=("s3cret-token",))
    dead.bury(letter())

    dead.amend("job-1", {"url": "https://x/s3cret-token/"}, "anna")

    assert "s3cret-token" not in redis_client.hget("perennial:dead:marks", "job-1")
    assert dead.get("job-1").message_body.kwargs == {"url": "https://x/•••/"}


@pytest.mark.parametrize(
    "make",
    [
        lambda dead: None,
        lambda dead: dead.bury(letter()) and dead.discard("job-1"),
        lambda dead: dead.bury(letter(raw=base64.b64encode(b"\xff").decode())),
    ],
    ids=["unknown", "settled", "undecodable"],
)
def test_only_an_open_letter_that_can_be_sent_is_edited(dead, make):
    make(dead)

    assert not dead.amend("job-1", {"order_id": "18"}, "anna")


def test_of_two_edits_at_once_none_is_lost_unseen(redis_server, dead):
    """Each is told whether its edit was made, and stands on what it has read."""
    dead.bury(letter())

    def edit(n):
        with redis_server.client() as client:
            return DeadLetters(client, prefix="t:").amend("job-1", {"n": n}, str(n))

    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(edit, range(32)))
    edits = dead.get("job-1").edits

    assert len(edits) == made
    assert all(one.after == next_one.before for one, next_one in pairwise(edits))


def test_a_job_that_dies_in_its_edited_form_keeps_the_account_of_the_edit(dead):
    dead.bury(letter())
    dead.amend("job-1", {"order_id": "18"}, "anna")
    sent = dead.get("job-1")
    dead.mark_replayed(sent)
    after_the_replay = dead.get("job-1").message_body.kwargs

    dead.bury(letter(minute=5, replays=1, message_body=Body("t", (), {"order_id": "19"})))
    found = dead.get("job-1")

    assert after_the_replay == {"order_id": "18"}
    assert found.message_body.kwargs == {"order_id": "19"}
    assert found.edits == sent.edits


# Verdicts


def cause_of(dead, message_id):
    return dead.get(message_id).fingerprint


def test_an_ignored_cause_is_discarded_and_counted_and_never_open(dead):
    for n in range(CHUNK + 10):
        dead.bury(letter(f"job-{n}"))
    dead.bury(letter("other", error_type="NotFound"))
    name = cause_of(dead, "job-0")

    discarded = dead.ignore(name, by="anna", note="known, harmless")
    written = dead.bury(letter("later", minute=9))
    found = dead.get("later")

    assert (discarded, written) == (CHUNK + 10, True)
    assert ids(dead.page()) == ["other"]
    assert (found.state, found.settled_by, found.note) == ("discarded", "anna", "known, harmless")
    assert abs(found.settled_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert dead.totals()["bitrix.create_deal", "InvalidData"] == CHUNK + 11
    assert [(g.count, g.verdict.state) for g in dead.groups(state="discarded")] == [
        (CHUNK + 11, "ignored")
    ]


def test_a_replayed_job_that_dies_of_an_ignored_cause_is_not_open(dead):
    dead.bury(letter())
    dead.mark_replayed(dead.get("job-1"))
    dead.ignore(cause_of(dead, "job-1"), by="anna")

    dead.bury(letter(minute=5, replays=1))

    assert (dead.get("job-1").state, dead.get("job-1").replays) == ("discarded", 1)
    assert [dead.count(Filter(state)) for state in ("open", "replayed", "discarded")] == [0, 0, 1]


def test_what_an_ignored_job_had_begun_is_made_good_all_the_same(dead):
    dead.bury(letter())
    dead.ignore(cause_of(dead, "job-1"), by="anna")

    dead.bury(letter("later", compensation=Compensation("needed", {"order_id": "17"})))

    assert dead.owed() == ["later"]


def test_a_verdict_ends_at_its_time(dead):
    dead.bury(letter())
    name = cause_of(dead, "job-1")

    dead.ignore(name, by="anna", until=datetime.now(UTC) - timedelta(seconds=2))
    dead.bury(letter("later"))

    assert ids(dead.page()) == ["later"]
    assert dead.verdict(name) is None
    assert dead.verdicts() == {}
    assert dead.groups()[0].verdict is None


def test_a_verdict_is_told_as_it_was_given_until_it_is_lifted(dead):
    dead.bury(letter())
    name, until = cause_of(dead, "job-1"), NOON + timedelta(days=36500)
    dead.ignore(name, by="anna", note="known", until=until)

    given = dead.verdict(name)
    lifted = [dead.lift(name), dead.lift(name)]
    dead.bury(letter("later"))

    assert dataclasses.replace(given, at=NOON) == Verdict("ignored", "anna", "known", NOON, until)
    assert lifted == [True, False]
    assert dead.verdict(name) is None
    assert ids(dead.page()) == ["later"]
    assert dead.get("job-1").state == "discarded"


AFTER_ALL = 60 * 24 * 365 * 100  # minutes: later than any word that a test gives
RELEASES = {
    "older": ("1.4.1", False),
    "older by number, not by letter": ("1.3.12", False),
    "shorter": ("1.4", False),
    "the same": ("1.4.2", True),
    "with a v": ("v1.4.2", True),
    "longer": ("1.4.2.1", True),
    "newer": ("1.10", True),
    "older with a suffix": ("1.4.1-rc1+5", False),
    "unknown": ("", True),
    "not to be compared": ("0c4f1e7", True),
}


@pytest.mark.parametrize(("release", "regression"), RELEASES.values(), ids=RELEASES)
def test_a_death_in_the_release_of_the_fix_or_later_is_a_regression(dead, release, regression):
    dead.bury(letter())
    name = cause_of(dead, "job-1")
    dead.fixed(name, by="anna", version="1.4.2", note="field added")
    stays = dead.get("job-1").state
    before = dead.groups()[0].verdict

    dead.bury(letter("later", release=release, minute=AFTER_ALL))
    after = dead.groups()[0].verdict

    assert (stays, dead.get("later").state) == ("open", "open")
    assert (before.state, before.version, before.regression) == ("fixed", "1.4.2", False)
    assert after == dataclasses.replace(before, regression=regression)
    assert dead.verdicts() == {name: after}


def test_a_regression_is_no_verdict_any_more_until_a_new_one_is_given(dead):
    dead.bury(letter())
    name = cause_of(dead, "job-1")
    dead.fixed(name, by="anna", version="1.4.2")
    dead.bury(letter("later", minute=AFTER_ALL))
    before = dead.verdict(name).regression

    dead.fixed(name, by="anna", version="1.5")

    assert before
    assert not dead.verdict(name).regression


def test_a_death_that_is_told_late_is_no_regression(dead):
    """From a spool or a file: it was known to whoever has called its cause fixed."""
    dead.bury(letter())
    name = cause_of(dead, "job-1")
    dead.fixed(name, by="anna", version="1.4.2")
    dead.bury(letter("told late", minute=-AFTER_ALL / 100))

    assert not dead.verdict(name).regression


@pytest.mark.parametrize("version", ["", "soon", "0c4f1e7", "1.x"])
def test_a_version_that_cannot_be_compared_is_refused(dead, version):
    with pytest.raises(ValueError, match="cannot be compared"):
        dead.fixed("f", by="anna", version=version)


# Finding


@pytest.fixture
def cemetery(dead):
    """Forty letters, one a minute: two tasks, two errors, and every fifth discarded."""
    for n in range(40):
        dead.bury(
            letter(
                f"job-{n:02}",
                minute=n,
                task="bitrix.create_deal" if n % 2 else "bitrix.update_deal",
                error_type="InvalidData" if n % 4 else "NotFound",
            )
        )
        if n % 5 == 0:
            dead.discard(f"job-{n:02}")
    return dead


def is_open(n):
    return n % 5 != 0


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Filter(), is_open),
        (Filter("discarded"), lambda n: not is_open(n)),
        (Filter("all"), lambda _: True),
        (Filter("replayed"), lambda _: False),
        (Filter(task="bitrix.create_deal"), lambda n: is_open(n) and n % 2),
        (Filter("all", error_type="NotFound"), lambda n: n % 4 == 0),
        (
            Filter(task="bitrix.update_deal", error_type="InvalidData"),
            lambda n: is_open(n) and n % 4 == 2,
        ),
        (Filter(since=NOON + timedelta(minutes=30)), lambda n: is_open(n) and n >= 30),
        (Filter("all", until=NOON + timedelta(minutes=30)), lambda n: n < 30),
    ],
    ids=["open", "discarded", "all", "none", "task", "error", "both", "since", "until"],
)
def test_filters_find_the_newest_first(cemetery, which, expected):
    wanted = [f"job-{n:02}" for n in reversed(range(40)) if expected(n)]

    assert ids(cemetery.page(which)) == wanted
    assert cemetery.count(which) == len(wanted)
    assert [found.message_id for found in cemetery.each(which)] == wanted


@pytest.mark.parametrize("state", ["open", "all"])
def test_pages_join_without_gap_or_overlap(cemetery, state):
    seen, cursor = [], ""
    while True:
        page = cemetery.page(Filter(state), limit=7, cursor=cursor)
        seen += ids(page)
        if not (cursor := page.cursor):
            break

    assert seen == ids(cemetery.page(Filter(state)))


def test_pages_hold_while_letters_come_and_go(cemetery):
    first = cemetery.page(limit=5)
    cemetery.bury(letter("newer", minute=99))
    for found in first.letters:
        cemetery.discard(found.message_id)

    second = cemetery.page(limit=5, cursor=first.cursor)

    assert ids(second) == ["job-33", "job-32", "job-31", "job-29", "job-28"]


def test_letters_of_one_moment_are_all_found(dead):
    """More than two reads' worth with the same time, as a spool may bring them."""
    for n in range(2 * CHUNK + 50):
        dead.bury(letter(f"job-{n:04}"))

    first = dead.page(limit=CHUNK + 10)
    second = dead.page(limit=CHUNK + 40, cursor=first.cursor)

    assert len({*ids(first), *ids(second)}) == 2 * CHUNK + 50
    assert second.cursor == ""


def test_groups_count_the_open_letters_of_each_cause(cemetery):
    groups = cemetery.groups()

    newest = groups[0]
    assert [group.count for group in groups] == [16, 8, 8]
    assert (newest.task, newest.error_type) == ("bitrix.create_deal", "InvalidData")
    assert newest.example_id == "job-39"
    assert newest.first_seen == NOON + timedelta(minutes=1)
    assert newest.last_seen == NOON + timedelta(minutes=39)
    assert ids(cemetery.page(Filter(fingerprint=newest.fingerprint), limit=1)) == ["job-39"]
    assert len(cemetery.groups(limit=2)) == 2


def test_groups_can_be_had_of_any_state(cemetery):
    everything = cemetery.groups(state="all")

    assert [group.count for group in cemetery.groups(state="discarded")] == [4, 2, 2]
    assert cemetery.groups(state="replayed") == []
    assert [group.count for group in everything] == [20, 10, 10]
    assert everything[0].last_seen == NOON + timedelta(minutes=39)
    assert {group.first_seen for group in everything} == {
        NOON + timedelta(minutes=n) for n in (0, 1, 2)
    }
    assert len(cemetery.groups(state="all", limit=1)) == 1


def test_a_group_shows_an_example(dead):
    dead.bury(letter("older", error_message="Deal 1 is not found"))
    dead.bury(letter("newer", minute=1, error_message="Deal 2 is not found"))

    assert [(g.example_id, g.example) for g in dead.groups()] == [("newer", "Deal 2 is not found")]


MENTIONED = {
    "message": "FIELD 'uf_CRM_1'",
    "job id": "job-1",
    "trace id": "t-1",
    "argument": "order_id=17",
    "positional": "Ünter",
    "nested": "deep",
    "number": "42.5",
}


@pytest.mark.parametrize("text", MENTIONED.values(), ids=MENTIONED)
def test_a_text_finds_the_letters_that_mention_it(dead, text):
    call = Body("t", ("über", "ünter", 42.5), {"order_id": "17", "more": [{"deep": None}]})
    dead.bury(letter(message_body=call, error_message="Field 'UF_CRM_1' is unknown"))
    dead.bury(
        letter("other", error_message="-", metadata=Metadata(NOON), message_body=Body("t", ("o",)))
    )

    assert ids(dead.page(Filter(grep=text))) == ["job-1"]
    assert [found.message_id for found in dead.each(Filter(grep=text))] == ["job-1"]
    assert dead.count(Filter(grep=text)) == 1
    assert dead.count(Filter("all", error_type="NotFound", grep=text)) == 0


def test_a_search_ends_its_page_in_time_and_goes_on_from_there(dead, monkeypatch):
    monkeypatch.setattr("reliability.dead_letters.MOST_SEARCHED", 10)
    for n in range(35):
        dead.bury(letter(f"job-{n:02}", minute=n, error_message="rare" if n in {3, 4, 34} else "-"))

    pages, cursor = [], ""
    while not pages or cursor:
        page = dead.page(Filter(grep="rare"), limit=2, cursor=cursor)
        pages.append(ids(page))
        cursor = page.cursor

    assert pages == [["job-34"], [], [], ["job-04", "job-03"], []]


def test_letters_that_are_settled_on_the_way_hide_none(dead):
    """All of one moment, which is where a walk by rank would slip."""
    for n in range(3 * CHUNK):
        dead.bury(letter(f"job-{n:04}"))

    seen = [dead.discard(found.message_id) for found in dead.each()]

    assert len(seen) == 3 * CHUNK


def test_counts_follow_every_change(cemetery):
    cemetery.discard("job-01")

    assert cemetery.open_by_task() == {"bitrix.create_deal": 15, "bitrix.update_deal": 16}
    assert sum(cemetery.totals().values()) == 40


def test_every_key_has_the_prefix(cemetery, redis_client):
    assert all(key.startswith("t:perennial:dead:") for key in redis_client.keys("*"))


# The cause


SAME_CAUSE = {
    "ids": ("Deal 394 is not found", "Deal 17 is not found"),
    "quoted": ("Field 'UF_CRM_1' is unknown", 'Field "TITLE" is unknown'),
    "uuid": (
        "job 7f0c2f9e-8d43-4c35-9f2e-2b1f6a0c9d11 lost",
        "job 00000000-8d43-4c35-9f2e-2b1f6a0c9d12 lost",
    ),
    "task id": ("task_sora-2-video_1765184045509 failed", "task_kling_17651840 failed"),
    "url": ("GET https://a.example/1?x=2 failed", "GET http://b.example/ failed"),
    "email": ("anna@example.org bounced", "b.c+d@sub.example.com bounced"),
    "space and case": ("Not  found\n", "not found"),
}
OTHER_CAUSE = {
    "words": ("Deal is not found", "Contact is not found"),
    "apostrophes": ("can't parse entities", "don't parse titles"),
}


def cause(message, code="X"):
    return fingerprint("t", "s", "E", code, message)


@pytest.mark.parametrize(("one", "other"), SAME_CAUSE.values(), ids=SAME_CAUSE)
def test_numbers_and_names_do_not_make_another_cause(one, other):
    assert cause(one) == cause(other)


@pytest.mark.parametrize(("one", "other"), OTHER_CAUSE.values(), ids=OTHER_CAUSE)
def test_other_words_are_another_cause(one, other):
    assert cause(one) != cause(other)


def test_a_code_is_a_name_even_as_a_number():
    assert cause("failed", "422") != cause("failed", "500")
    assert cause("failed", "error_core") == cause("failed", "ERROR_CORE")
    assert cause("", "Type 7 is not defined") == cause("", "Type 8 is not defined")


@pytest.mark.parametrize("field", ["task", "service", "error_type"])
def test_task_service_and_class_are_part_of_the_cause(field):
    facts = {"task": "t", "service": "s", "error_type": "E", "code": "", "message": ""}

    assert fingerprint(**facts) != fingerprint(**facts | {field: "other"})


# When Redis refuses


def fill(server):
    client = server.client()
    client.set("ballast", b"x" * 2_000_000)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1mb")


def make_read_only(server):
    server.client().config_set("min-replicas-to-write", 1)


def make_replica(server):
    server.client().replicaof("127.0.0.1", 1)


def break_saving(server):
    """A snapshot that cannot be written: Redis then refuses writes (MISCONF)."""
    client = server.client()
    client.config_set("save", "3600 1")
    client.set("x", 1)
    (server.folder / "dump.rdb").mkdir()
    client.bgsave()
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        pass


def heal(server):
    client = server.client()
    client.config_set("maxmemory", 0)
    client.config_set("min-replicas-to-write", 0)
    client.config_set("save", "")
    client.replicaof("NO", "ONE")


REFUSALS = {
    "full": fill,
    "too few replicas": make_read_only,
    "a replica": make_replica,
    "cannot save": break_saving,
    "down": lambda server: server.stop(),
}


@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=REFUSALS)
def test_what_redis_refuses_is_spooled_and_drained_later(own_redis, tmp_path, refuse):
    dead = DeadLetters(own_redis.client(), spool=Spool(tmp_path / "spool"), secrets=("hunter22",))
    dead.bury(letter("before"))
    refuse(own_redis)

    with pytest.raises(RedisError):
        dead.bury(letter("refused"))
    written = [dead.bury_or_spool(letter(f"job-{n}", code="hunter22")) for n in range(3)]
    meanwhile = dead.drain_spool()
    if own_redis.process is None:
        own_redis.start()
    heal(own_redis)
    drained = dead.drain_spool()

    assert written == [True] * 3
    assert (meanwhile, drained, dead.drain_spool()) == (0, 3, 0)
    assert {"job-0", "job-1", "job-2"} <= set(ids(dead.page()))
    assert dead.get("job-0").code == "•••"


def test_a_letter_that_nobody_takes_is_logged_whole_and_fatal(own_redis, tmp_path, caplog):
    (tmp_path / "file").touch()
    dead = DeadLetters(own_redis.client(), spool=Spool(tmp_path / "file" / "spool"))
    own_redis.stop()

    with pytest.raises(Fatal):
        dead.bury_or_spool(letter("job-9"))

    (said,) = (record.getMessage() for record in caplog.records)
    assert letter("job-9").error_message in said
    assert '"order_id": "17"' in said


def test_without_a_spool_the_refusal_is_raised(own_redis):
    dead = DeadLetters(own_redis.client())
    own_redis.stop()

    assert dead.drain_spool() == 0
    with pytest.raises(RedisError):
        dead.bury_or_spool(letter())
