"""A payload changes its shape from release to release; messages of every older one still run."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery._state import _task_stack
from celery.exceptions import Retry

from classifiers.errors import InvalidData, MissingFields, Pending
from tasks.base import Operation
from tasks.payloads import FIRST, Fields, Id, Payload, version_of

# The worked example. Version 1 had one name. Version 2 split it. Version 3 renamed the user.
V1 = {"user": 7, "name": "Ann van Dyk"}
V2 = {"user": 7, "first_name": "Ann", "last_name": "van Dyk"}
V3 = {"user_id": 7, "first_name": "Ann", "last_name": "van Dyk"}
READ = {"user_id": "7", "first_name": "Ann", "last_name": "van Dyk"}


def greet(user_id: Id, first_name: str, last_name: str = "") -> None:
    """The body, as it is today."""


def split_name(older: dict[str, Any]) -> dict[str, Any]:
    first, _, last = older.pop("name").partition(" ")
    return {**older, "first_name": first, "last_name": last}


def rename_user(older: dict[str, Any]) -> dict[str, Any]:
    return {"user_id": older.pop("user"), **older}


UPCASTERS = {1: split_name, 2: rename_user}
GREET = Payload("crm.greet", greet, 3, UPCASTERS)


def upcast_by(function: Any) -> Payload:
    return Payload("crm.greet", greet, 2, {1: function})


# -- reading


@pytest.mark.parametrize(
    ("version", "kwargs"),
    [(1, V1), (2, V2), (3, V3), (None, V3)],
    ids=["split and renamed", "renamed", "today's", "no message"],
)
def test_every_version_is_read_as_todays(version, kwargs):
    assert GREET.read((), kwargs, version) == READ


@pytest.mark.parametrize(
    ("headers", "version"),
    [(None, FIRST), ({}, FIRST), ({"payload_version": 2}, 2)],
    ids=["no headers", "none said", "said"],
)
def test_a_message_that_names_no_version_is_of_the_first(headers, version):
    assert version_of(headers) == version


def test_a_payload_of_a_newer_release_is_refused_as_such():
    with pytest.raises(
        InvalidData, match=r"newer release, as version 4 .* reads up to 3"
    ) as caught:
        GREET.read((), V3, 4)

    assert caught.value.code == "newer_payload"


@pytest.mark.parametrize("version", [0, -1, "2", 2.0, True, [], "hunter2"], ids=repr)
def test_what_is_no_version_is_refused_without_repeating_it(version):
    with pytest.raises(InvalidData, match="is no version") as caught:
        GREET.read((), V3, version)

    assert "hunter2" not in str(caught.value)


def test_what_has_no_names_can_only_be_of_today():
    assert GREET.read((7, "Ann", "van Dyk"), {}, 3) == READ
    with pytest.raises(InvalidData, match="has to come by name"):
        GREET.read((7, "Ann van Dyk"), {}, 1)


@pytest.mark.parametrize(
    "kwargs", [{"user": 7}, {"user": 7, "name": None}], ids=["missing", "of another kind"]
)
def test_an_older_payload_that_lacks_what_its_upcaster_needs_is_invalid(kwargs):
    with pytest.raises(InvalidData, match="version 1 of its payload cannot be brought up to 2"):
        GREET.read((), kwargs, 1)


def test_a_failing_upcaster_does_not_repeat_a_value():
    def fail(older: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("hunter2")

    with pytest.raises(InvalidData) as caught:
        upcast_by(fail).read((), V1, 1)

    assert "hunter2" not in str(caught.value)
    assert "ValueError" in str(caught.value)


def test_what_an_upcaster_returns_is_checked_like_any_payload():
    with pytest.raises(MissingFields, match="user_id"):
        upcast_by(split_name).read((), {"name": "Ann"}, 1)


def test_the_message_itself_stays_as_it_came():
    """A job that comes back is sent with its own arguments and its own version."""

    def change(fields: Fields) -> None:
        """The body."""

    def rename(older: dict[str, Any]) -> dict[str, Any]:
        older["fields"]["UF_NEW"] = older["fields"].pop("UF_OLD")
        return older

    message = {"fields": {"UF_OLD": 1}}
    read = Payload("crm.change", change, 2, {1: rename}).read((), message, 1)

    assert read == {"fields": {"UF_NEW": 1}}
    assert message == {"fields": {"UF_OLD": 1}}


@pytest.mark.parametrize(
    ("version", "upcasters"),
    [
        (0, {}),
        (2, {}),
        (3, {1: split_name}),
        (3, {2: rename_user}),
        (1, {1: split_name}),
        (2, {1: split_name, 2: rename_user}),
    ],
    ids=["no version", "none", "a step short", "a gap", "too many", "one for today's"],
)
def test_a_task_without_a_way_from_each_older_version_is_not_declared(version, upcasters):
    with pytest.raises(TypeError, match="needs an upcaster for each"):
        Payload("crm.greet", greet, version, upcasters)


# -- jobs


@pytest.fixture
def greeted() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def task(greeted) -> Operation:
    """The task of the example, in an application of its own with its broker in memory."""
    app = Celery("crm", broker="memory://", set_as_current=False)
    app.finalized = True
    app.conf.task_default_queue = "payload-versions"

    def body(user_id: Id, first_name: str, last_name: str = "") -> None:
        greeted.append((user_id, first_name, last_name))
        if first_name == "late":
            raise Pending

    options = {"version": 3, "upcasters": UPCASTERS, "holds": tuple}
    return app.task(body, base=Operation, name="crm.greet", shared=False, **options)


def run(task: Operation, kwargs: dict[str, Any], headers: dict[str, Any], **facts: Any) -> None:
    request = {"id": "j1", "headers": headers, "kwargs": kwargs, "called_directly": False}
    task.push_request(**request | facts)
    _task_stack.push(task)
    try:
        task.run(**kwargs)
    finally:
        _task_stack.pop()
        task.pop_request()


def sent(task: Operation) -> tuple[dict[str, Any], Any]:
    """Headers and arguments by name of the message that was sent last."""
    with task.app.connection() as connection:
        queue = connection.SimpleQueue(task.app.conf.task_default_queue)
        message = queue.get(block=False)
        message.ack()
        queue.close()
    return message.headers, message.decode()[1]


def test_a_job_says_in_which_version_it_was_sent(task):
    task.delay(**V3)
    headers, kwargs = sent(task)

    assert (headers["payload_version"], kwargs) == (3, {**V3, "user_id": "7"})


def test_who_calls_may_not_claim_another_version(task):
    """What is sent was checked against today's, whatever headers somebody has copied."""
    task.apply_async(kwargs=V3, headers={"payload_version": 1})

    assert sent(task)[0]["payload_version"] == 3


@pytest.mark.parametrize(
    ("kwargs", "headers"),
    [(V1, {}), (V1, {"payload_version": 1}), (V2, {"payload_version": 2})],
    ids=["before there were versions", "first", "second"],
)
def test_a_job_of_an_older_release_runs(task, greeted, kwargs, headers):
    run(task, kwargs, headers)

    assert greeted == [("7", "Ann", "van Dyk")]


@pytest.mark.parametrize(
    "facts", [{"called_directly": True}, {"is_eager": True}], ids=["directly", "eagerly"]
)
def test_a_plain_call_is_of_today(task, greeted, facts):
    run(task, V3, {}, **facts)

    assert greeted == [("7", "Ann", "van Dyk")]


@pytest.mark.parametrize("headers", [{}, {"payload_version": 1}], ids=["unsaid", "said"])
def test_a_job_that_comes_back_does_so_in_the_version_it_came_in(task, greeted, headers):
    older = {"user": 7, "name": "late Ann"}
    with pytest.raises(Retry):
        run(task, older, headers, args=())
    back, kwargs = sent(task)

    assert kwargs == older
    assert version_of(back) == 1
    with pytest.raises(Retry):
        run(task, kwargs, back, args=())
    assert greeted == [("7", "late", "Ann")] * 2


def test_a_user_of_an_older_job_is_asked_for_patience(greeted):
    told: list[dict[str, Any]] = []
    app = Celery("crm", broker="memory://", set_as_current=False)
    app.finalized = True

    def body(user_id: Id) -> None:
        raise Pending

    options = {"version": 2, "upcasters": {1: rename_user}, "holds": tuple}
    options["ask_for_patience"] = lambda **payload: told.append(payload)
    generate = app.task(body, base=Operation, name="video.generate", shared=False, **options)
    with pytest.raises(Retry):
        run(generate, {"user": 7}, {"accepted_at": 5.0}, args=())

    assert told == [{"user_id": "7"}]
