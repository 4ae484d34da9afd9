"""Tokens of users: readable to nobody who reads the database, and each refresh token spent once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import stat
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select, text, update

from classifiers.errors import (
    BillingExhausted,
    Fatal,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    OutcomeUnknown,
    Pending,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
)
from config.settings import settings
from storage import credentials
from storage import database as storage_database
from storage.credentials import Tokens
from storage.models import credentials as table

only_on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
only_on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)

USER = "7"
ACCESS, REFRESH = "access-1", "refresh-1"
NEXT = Tokens("access-2", "refresh-2", datetime(2026, 11, 22, 12, tzinfo=UTC))
LONG = 60.0  # s; a lease that no test outlives
KEYS = [Fernet.generate_key().decode() for _ in range(2)]


def set_key(monkeypatch, value):
    monkeypatch.setenv("CREDENTIALS_KEY", value)
    settings.cache_clear()


@pytest.fixture(autouse=True)
def _key(database, monkeypatch):
    set_key(monkeypatch, KEYS[0])


def save(subject=USER, access_token=ACCESS, refresh_token=REFRESH, **options):
    credentials.save(
        "x", subject, access_token=access_token, refresh_token=refresh_token, **options
    )
    return credential(subject)


def credential(subject=USER):
    return credentials.get("x", subject)


def pair(of):
    return of.access_token, of.refresh_token


class Upstream:
    """Takes refresh tokens and gives *answers*: tokens, or errors that it raises."""

    def __init__(self, *answers):
        self.answers, self.given = list(answers), []

    def renew(self, refresh_token):
        self.given.append(refresh_token)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer


def renewed(of, *answers, owner="job-1"):
    return credentials.renewed(of, Upstream(*answers).renew, owner=owner, lease=LONG)


def fail(of, error):
    """Renew in vain; what is raised."""
    with pytest.raises(type(error)) as caught:
        renewed(of, error)
    return caught.value


def column(name, subject=USER):
    with storage_database.read() as connection:
        return connection.execute(
            select(table.c[name]).where(table.c.subject == subject)
        ).scalar_one()


# ── What is stored ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("refresh_token", "expires_at"),
    [
        pytest.param(REFRESH, None, id="nobody knows until when"),
        pytest.param(None, datetime(2026, 11, 22, 10, tzinfo=UTC), id="not to be renewed"),
        pytest.param(
            REFRESH,
            datetime(2026, 11, 22, 13, tzinfo=timezone(timedelta(hours=3))),
            id="another time zone",
        ),
    ],
)
def test_what_is_saved_is_had_again(refresh_token, expires_at):
    saved = save(refresh_token=refresh_token, expires_at=expires_at)

    assert (saved.service, saved.subject, *pair(saved)) == ("x", USER, ACCESS, refresh_token)
    assert (saved.expires_at, saved.version, saved.lost) == (expires_at, 1, None)
    assert saved.renewing_since is None


def test_subject_that_is_a_number_is_kept_as_text():
    save(subject=7)

    assert credential(7) == credential("7")
    assert credential(7).subject == "7"


def test_nothing_is_had_of_a_subject_or_service_that_is_unknown():
    save()

    assert credential("8") is None
    assert credentials.get("y", USER) is None


def test_saved_pair_replaces_all_that_was_known():
    fail(save(expires_at=datetime(2026, 11, 22, tzinfo=UTC)), OutcomeUnknown("no answer"))
    credentials.lose(credential(), "revoked")
    saved = save(access_token="other", refresh_token=None)

    assert (*pair(saved), saved.version) == ("other", None, 2)
    assert (saved.expires_at, saved.lost, saved.renewing_since) == (None, None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"access_token": ""}, id="empty"),
        pytest.param({"access_token": "a b"}, id="with a space"),
        pytest.param({"access_token": "secret\n"}, id="with its line's end"),
        pytest.param({"access_token": "sécret"}, id="not ASCII"),
        pytest.param({"refresh_token": "secret\r\nX: y"}, id="refresh token of two lines"),
        pytest.param({"expires_at": datetime(2026, 11, 22)}, id="naive time"),  # noqa: DTZ001
    ],
)
def test_what_is_no_token_is_refused_without_being_quoted(wrong):
    with pytest.raises(InvalidData) as refusal:
        save(**wrong)

    assert credential() is None
    assert "cret" not in str(refusal.value)


def test_tokens_are_told_by_no_repr_and_no_column():
    save()
    shown = repr((credential(), Tokens(ACCESS, REFRESH)))
    with storage_database.read() as connection:
        row = str(connection.execute(select(table)).one())

    assert "'7'" in shown
    assert not [word for word in (ACCESS, REFRESH) if word in shown + row]


# ── Keys ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b64encode(b"\xfb\xff" * 16).decode(), id="standard base64"),
        pytest.param("-_-_" * 10 + "-_8=", id="url-safe base64"),
        pytest.param(f" {KEYS[1]} , {KEYS[0]} ", id="two with spaces"),
    ],
)
def test_key_is_taken_in_either_alphabet(monkeypatch, value):
    set_key(monkeypatch, value)

    assert pair(save()) == (ACCESS, REFRESH)


def test_former_key_goes_on_reading_while_the_first_writes(monkeypatch):
    save()
    set_key(monkeypatch, f"{KEYS[1]},{KEYS[0]}")
    assert pair(credential()) == (ACCESS, REFRESH)
    save("8")
    set_key(monkeypatch, KEYS[1])

    assert pair(credential("8")) == (ACCESS, REFRESH)
    with pytest.raises(NotConfigured, match="no key of ours reads the tokens of x user 7"):
        credential()


def test_unreadable_tokens_are_replaced_by_authorising_again(monkeypatch):
    save()
    set_key(monkeypatch, KEYS[1])

    assert pair(save(access_token="other")) == ("other", REFRESH)


def test_tokens_in_another_ones_row_are_refused():
    save()
    save("8", "access-8", "refresh-8")
    with storage_database.write() as connection:
        connection.execute(update(table).values(tokens=column("tokens", "8")))

    assert pair(credential("8")) == ("access-8", "refresh-8")
    with pytest.raises(NotConfigured, match="row of x user 7 are the tokens of x user 8"):
        credential()


@only_on_postgresql
def test_postgresql_needs_a_key_and_says_how_to_make_one(monkeypatch):
    set_key(monkeypatch, "")

    with pytest.raises(NotConfigured, match=r"set CREDENTIALS_KEY.*openssl rand -base64 32"):
        save()


@pytest.fixture
def key_file(database, monkeypatch):
    set_key(monkeypatch, "")
    return Path(database.removeprefix("sqlite:///") + ".key")


@only_on_sqlite
def test_sqlite_has_a_key_beside_it_for_our_eyes_only(key_file):
    save()
    made = key_file.read_text()
    save("8")

    assert pair(credential()) == pair(credential("8")) == (ACCESS, REFRESH)
    assert key_file.read_text() == made
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert not list(key_file.parent.glob(f"{key_file.name}?*"))


@only_on_sqlite
def test_key_file_goes_on_in_the_setting(key_file, monkeypatch):
    save()
    set_key(monkeypatch, key_file.read_text())

    assert pair(credential()) == (ACCESS, REFRESH)


@only_on_sqlite
def test_lost_key_file_is_told_and_not_made_anew_by_looking(key_file):
    save()
    key_file.unlink()

    with pytest.raises(NotConfigured, match="is gone"):
        credential()
    assert not key_file.exists()


@only_on_sqlite
@pytest.mark.parametrize("content", [b"", b"no key", b"\xff\xfe"])
def test_key_file_without_a_key_is_told_and_left_alone(key_file, content):
    key_file.write_bytes(content)

    with pytest.raises(NotConfigured, match="holds no key"):
        save()
    assert key_file.read_bytes() == content


def save_at_once(start, url, subject):
    os.environ["DATABASE_URL"] = url
    os.environ.pop("CREDENTIALS_KEY", None)
    settings.cache_clear()
    start.wait(60)
    save(subject)


@only_on_sqlite
def test_processes_that_start_at_once_make_one_key(database, key_file):
    spawn = multiprocessing.get_context("spawn")
    start, subjects = spawn.Barrier(4), [str(number) for number in range(4)]
    processes = [
        spawn.Process(target=save_at_once, args=(start, database, each), daemon=True)
        for each in subjects
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0] * 4
    assert {pair(credential(each)) for each in subjects} == {(ACCESS, REFRESH)}


# ── Losing ───────────────────────────────────────────────────────────────────────────────────


def test_lost_pair_says_why():
    credentials.lose(save(), "revoked by its user")

    assert credential().lost == "revoked by its user"
    assert credential().version == 1


def test_late_loss_of_a_former_pair_leaves_the_newer_one_good():
    former = save()
    newer = save(access_token="other")
    credentials.lose(former, "revoked")

    assert credential() == newer


# ── Renewing ─────────────────────────────────────────────────────────────────────────────────


def test_renewed_pair_is_returned_and_stored():
    upstream = Upstream(NEXT)
    newer = credentials.renewed(save(), upstream.renew, owner="job-1", lease=LONG)

    assert newer == credential()
    assert (*pair(newer), newer.expires_at) == ("access-2", "refresh-2", NEXT.expires_at)
    assert (newer.version, newer.renewing_since) == (2, None)
    assert upstream.given == [REFRESH]


def test_refresh_token_stays_where_no_new_one_came():
    assert pair(renewed(save(), Tokens("access-2"))) == ("access-2", REFRESH)


def test_time_to_live_of_a_former_pair_is_not_that_of_the_next():
    saved = save(expires_at=datetime(2026, 11, 22, tzinfo=UTC))

    assert renewed(saved, Tokens("access-2")).expires_at is None


def test_pair_that_another_has_stored_meanwhile_is_taken_without_a_call():
    former = save()
    newer = renewed(former, NEXT)

    assert renewed(former) == newer


def test_one_of_many_at_once_spends_the_refresh_token():
    of, upstream, start = save(), Upstream(NEXT), threading.Barrier(8)

    def work(number):
        start.wait(10)
        try:
            return credentials.renewed(of, upstream.renew, owner=f"job-{number}", lease=LONG)
        except Pending as pending:
            return pending

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(work, range(8)))

    assert upstream.given == [REFRESH]
    assert {pair(each) for each in outcomes if not isinstance(each, Pending)} == {pair(NEXT)}


@pytest.mark.parametrize("owner", ["job-1", "job-2"], ids=["the same job again", "another job"])
def test_whoever_comes_during_a_renewal_waits(owner):
    of = save()

    def answer():
        with pytest.raises(Pending) as pending:
            renewed(of, owner=owner)
        assert pending.value.retry_after == pytest.approx(LONG, abs=5)
        return NEXT

    assert pair(renewed(of, answer, owner="job-1")) == pair(NEXT)


def test_spending_is_written_down_before():
    of = save()

    def answer():
        assert credential().renewing_since is not None
        return NEXT

    renewed(of, answer)


def test_other_users_renew_meanwhile():
    of, other = save(), save("8")

    def answer():
        assert pair(renewed(other, NEXT)) == pair(NEXT)
        return NEXT

    renewed(of, answer)


@pytest.mark.parametrize(
    ("refresh_token", "why"),
    [
        pytest.param(REFRESH, "revoked by its user", id="lost"),
        pytest.param(None, "came without a refresh token", id="without a refresh token"),
    ],
)
def test_what_cannot_be_renewed_names_the_way_out_without_a_call(refresh_token, why):
    of = save(refresh_token=refresh_token)
    if refresh_token:
        credentials.lose(of, why)
    with pytest.raises(Unauthorized) as refusal:
        renewed(of)

    assert why in str(refusal.value)
    assert "celery -A tasks bookmarks authorize 7" in str(refusal.value)


def test_pair_that_was_lost_after_it_was_renewed_is_not_handed_out():
    former = save()
    credentials.lose(renewed(former, NEXT), "revoked")

    with pytest.raises(Unauthorized, match="revoked"):
        renewed(former)


def test_refused_refresh_token_is_lost():
    refusal = fail(save(), Unauthorized("no", operation="token", code="invalid_grant"))

    assert (refusal.operation, refusal.code) == ("token", "invalid_grant")
    assert credential().lost == "the refresh token of x user 7 is good no more (invalid_grant)"
    assert credential().lost in refusal.detail
    assert "authorize 7" in refusal.detail
    assert credential().renewing_since is None


NOT_SPENT = [
    NetworkError("no route"),
    ServiceUnavailable("503"),
    RateLimited("429", retry_after=9.0),
    BillingExhausted("402"),
    Fatal("out of memory"),
]
PERHAPS_SPENT = [
    OutcomeUnknown("no answer"),
    Unclassified("418"),
    RuntimeError("a bug"),
    KeyboardInterrupt(),
]


def kind(error):
    return type(error).__name__


@pytest.mark.parametrize("error", NOT_SPENT, ids=kind)
def test_refresh_token_that_was_not_spent_is_given_again_without_a_doubt(error):
    of = save()
    assert fail(of, error) is error
    assert credential() == of
    fail(of, Unauthorized("no", code="invalid_request"))

    assert "never arrived" not in credential().lost


@pytest.mark.parametrize("error", PERHAPS_SPENT, ids=kind)
def test_renewal_without_an_answer_is_remembered_and_explains_the_loss(error):
    of = save()
    assert fail(of, error) is error
    since = credential().renewing_since
    refusal = fail(of, Unauthorized("no", code="invalid_request"))

    assert f"given at {since:%Y-%m-%d %H:%M:%S} UTC" in credential().lost
    assert "never arrived" in refusal.detail


@pytest.mark.parametrize("error", [*NOT_SPENT, *PERHAPS_SPENT], ids=kind)
def test_doubt_stays_until_a_pair_comes(error):
    of = save()
    fail(of, OutcomeUnknown("no answer"))
    since = credential().renewing_since
    fail(of, error)
    assert credential().renewing_since == since
    newer = renewed(of, NEXT)

    assert (pair(newer), newer.renewing_since) == (pair(NEXT), None)


def test_pair_that_a_person_brings_during_a_renewal_stays(caplog):
    def answer():
        save(access_token="by-hand", refresh_token="by-hand-too")
        return NEXT

    assert pair(renewed(save(), answer)) == pair(credential()) == ("by-hand", "by-hand-too")
    assert "a newer pair was stored" in caplog.text


def test_refusal_of_a_pair_that_a_person_has_replaced_loses_nothing():
    def answer():
        save(access_token="by-hand")
        raise Unauthorized("no", code="invalid_request")

    with pytest.raises(Unauthorized):
        renewed(save(), answer)
    assert (credential().access_token, credential().lost) == ("by-hand", None)


@only_on_postgresql
def test_renewed_pair_survives_a_restart_of_the_server(postgresql):
    def answer():
        postgresql.stop("immediate")
        threading.Timer(0.7, postgresql.start).start()
        return NEXT

    assert pair(renewed(save(), answer)) == pair(credential()) == pair(NEXT)


def test_error_of_the_call_is_not_hidden_by_a_database_in_trouble(caplog):
    def rename(name, to):
        with storage_database.write() as connection:
            connection.execute(text(f"ALTER TABLE {name} RENAME TO {to}"))

    def answer():
        rename("credentials", "elsewhere")
        raise ServiceUnavailable("503")

    with pytest.raises(ServiceUnavailable):
        renewed(save(), answer)
    rename("elsewhere", "credentials")
    assert "could not note that the refresh token was not spent" in caplog.text


def test_no_token_is_logged_or_raised(caplog):
    caplog.set_level(logging.DEBUG)
    of = save()
    errors = [fail(of, error) for error in (OutcomeUnknown("x"), Unauthorized("no", code="no"))]
    with pytest.raises(JobError) as refusal:
        renewed(of)
    told = caplog.text + "".join(str(error) for error in [*errors, refusal.value])

    assert not [word for word in (ACCESS, REFRESH) if word in told]
