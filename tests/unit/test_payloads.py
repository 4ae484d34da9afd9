"""What our tasks take and refuse, and how it goes on the wire."""

from __future__ import annotations

import ast
import json
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from classifiers.errors import InvalidData, MissingFields, kinds
from config.settings import settings
from tasks import app, bitrix, telegram, video
from tasks.base import Job
from tasks.payloads import Fields, Id, Money, Payload, Timestamp

TASKS = {
    "create_deal": {"order_id": "7", "title": "Sofa"},
    "update_deal": {"order_id": "7", "fields": {}},
    "create_contact": {"user_id": "7", "name": "Ann"},
    "update_contact": {"user_id": "7", "fields": {}},
    "handle_webhook": {"event": "ONCRMDEALUPDATE", "entity_id": "7", "ts": 1700000000},
    "generate": {
        "order_id": "7",
        "user_id": "8",
        "chat_id": "9",
        "image_url": "https://shop.example.com/sofa.jpg",
        "prompt": "The sofa turns",
    },
    "send": {"order_id": "7"},
    "handle_press": {"callback_id": "1", "data": "again:x", "chat_id": "9", "message_id": "2"},
    "handle_callback": {"generation": "c0ffee"},
    "notify": {"chat_id": "9", "locale": "ru", "message": "system_error"},
}
SECRET = "hunter2"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", autouse=True)
def _configured():
    """Celery reads its configuration as soon as a task is looked at; none of it matters here."""
    if app.configured:
        yield
        return
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REDIS_URL", "redis://nowhere.invalid:1/0")
        settings.cache_clear()
        for name in TASKS:
            assert payload(name).task
        yield
    settings.cache_clear()
    sys.modules.pop("celeryconfig", None)
    app._conf, app.configured = None, False


def payload(task: str) -> Payload:
    place = next(module for module in (bitrix, telegram, video) if hasattr(module, task))
    return getattr(place, task).payload


def wire_name(task: str) -> str:
    return payload(task).task


def write(task: str, **arguments):
    return payload(task).write((), {**TASKS[task], **arguments})


def read(task: str, **arguments):
    return payload(task).read((), {**TASKS[task], **arguments})


def refused(task: str, **arguments) -> str:
    with pytest.raises(InvalidData) as caught:
        write(task, **arguments)
    return str(caught.value)


every_task = pytest.mark.parametrize("task", TASKS)
ids = pytest.mark.parametrize(
    ("task", "name"),
    [
        ("create_deal", "order_id"),
        ("create_deal", "contact_user_id"),
        ("update_deal", "order_id"),
        ("create_contact", "user_id"),
        ("update_contact", "user_id"),
        ("handle_webhook", "entity_id"),
        ("generate", "order_id"),
        ("generate", "user_id"),
        ("generate", "chat_id"),
        ("send", "order_id"),
        ("handle_press", "chat_id"),
        ("notify", "chat_id"),
    ],
)
amounts_of = pytest.mark.parametrize(
    ("task", "name"), [("create_deal", "amount"), ("generate", "cost")]
)
with_fields = pytest.mark.parametrize(
    "task", ["create_deal", "update_deal", "create_contact", "update_contact"]
)


# -- the contract, argument by argument


@ids
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (7, "7"),
        ("7", "7"),
        ("007", "007"),
        (-7, "-7"),
        (2**70, str(2**70)),
        ("order №7 / a", "order №7 / a"),
        ("x" * 190, "x" * 190),
    ],
)
def test_an_id_is_kept_as_text(task, name, value, kept):
    assert write(task, **{name: value})[name] == kept
    assert read(task, **{name: value})[name] == kept


@ids
@pytest.mark.parametrize(
    "value",
    [True, False, 7.0, "", " ", " 7", "7 ", "a\nb", "a\0b", "x" * 191, b"7", [7], {}, "\ud800"],
    ids=repr,
)
def test_what_is_no_id_is_refused(task, name, value):
    assert refused(task, **{name: value}).startswith(f"{wire_name(task)}: {name}: ")


@amounts_of
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("1499.90", "1499.90"),
        ("1499.9", "1499.9"),
        (1499, "1499"),
        (1499.9, "1499.9"),
        (0, "0"),
        ("0.00", "0.00"),
        ("-0", "0"),
        (-0.0, "0.0"),
        (0.1 + 0.2, "0.3"),
        (3 * 19.99, "59.97"),
        ("1e3", "1000"),
        (Decimal("12.50"), "12.50"),
    ],
    ids=repr,
)
def test_an_amount_is_kept_as_a_decimal(task, name, value, kept):
    assert write(task, **{name: value})[name] == kept
    assert read(task, **{name: value})[name] == Decimal(kept)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (99999999999999.98, "99999999999999.98"),
        ("9999999999999999.99", "9999999999999999.99"),
    ],
)
def test_a_deal_may_be_worth_more_than_a_float_can_say(value, kept):
    assert write("create_deal", amount=value)["amount"] == kept


def test_a_deal_may_have_no_amount_and_a_video_costs_something():
    assert write("create_deal", amount=None)["amount"] is None
    assert read("create_deal", amount=None)["amount"] is None
    assert refused("generate", cost=None).startswith("video.generate: cost: ")


def test_an_amount_is_spelt_out_whoever_has_sent_it():
    assert str(read("create_deal", amount="1E+3")["amount"]) == "1000"


@amounts_of
@pytest.mark.parametrize(
    "value",
    [
        *(True, NAN, INF, -INF, "NaN", "Infinity", -1, "-0.01", "12.345", 12.345, 0.001),
        *("", "a lot", "1,5", "99999999999999999", 1e22, [], {}, b"5"),
    ],
    ids=repr,
)
def test_what_is_no_amount_is_refused(task, name, value):
    assert refused(task, **{name: value}).startswith(f"{wire_name(task)}: {name}: ")


@with_fields
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("2026-01-31T12:00:00+03:00", "2026-01-31T09:00:00+00:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00.123456-0200", "2026-01-31T14:00:00.123456+00:00"),
        (
            datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=3))),
            "2026-01-31T09:00:00+00:00",
        ),
        (None, None),
    ],
    ids=str,
)
def test_a_time_is_kept_in_utc(task, value, kept):
    assert write(task, updated_at=value)["updated_at"] == kept


def test_the_body_gets_a_time_that_knows_its_zone():
    moment = read("update_deal", updated_at="2026-01-31T12:00:00+03:00")["updated_at"]

    assert moment == datetime(2026, 1, 31, 9, tzinfo=UTC)


@with_fields
@pytest.mark.parametrize(
    "value",
    [
        *("2026-01-31T12:00:00", "2026-01-31", "31.01.2026", "now", "", "1700000000"),
        *(1700000000, 1.5, True, "0001-01-01T00:00:00+03:00", "9999-12-31T23:00:00-03:00"),
        datetime(2026, 1, 31),  # noqa: DTZ001  # a naive one is what is to be refused
    ],
    ids=str,
)
def test_a_time_without_an_offset_is_refused(task, value):
    assert refused(task, updated_at=value).startswith(f"bitrix.{task}: updated_at: ")


@with_fields
def test_fields_may_be_whatever_json_can_say(task):
    fields = {"UF_A": "Ä&=😀", "UF_B": [1, 2.5, None, True], "UF_C": {"x": {"y": []}}}

    assert write(task, fields=fields)["fields"] == fields
    assert read(task, fields=fields)["fields"] == fields


@with_fields
@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "TITLE",
        {1: "a"},
        {"": "a"},
        {"a": NAN},
        {"a": [{"b": INF}]},
        {"a": "\ud800"},
        {"a": ["b\udfff"]},
        {"a": Decimal(1)},
        {"a": {2: 3}},
        {"a": (1, 2)},
        {"a": b"b"},
        {f"UF_{n}": 1 for n in range(501)},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_json_cannot_say_is_refused(task, fields):
    assert refused(task, fields=fields).startswith(f"bitrix.{task}: fields")


def test_fields_nested_without_end_are_refused_in_a_few_words():
    nest: list = []
    for _ in range(400):
        nest = [nest]

    assert len(refused("update_deal", fields={"a": nest})) < 300


@pytest.mark.parametrize(
    ("task", "name", "good", "bad"),
    [
        ("create_deal", "title", ["Sofa", " Sofa ", "x" * 255], ["", " ", "x" * 256, 7, None]),
        ("create_deal", "currency", ["RUB", "EUR"], ["rub", "RU", "", None, 643]),
        ("create_contact", "name", ["Ann"], ["", " ", None, 7]),
        ("create_contact", "email", ["ann@example.org", None], ["ann", "a b@c", "a@b@c", ""]),
        ("create_contact", "phone", ["+7 (495) 123-45-67", "84951234567", None], ["none", "1"]),
        ("handle_webhook", "event", ["ONCRMDEALADD", "oncrmcontactdelete"], ["ONLEADADD", "", 7]),
        ("handle_webhook", "ts", [0, "1700000000"], [-1, "now", None, 1.5]),
        (
            "generate",
            "image_url",
            ["https://h/a.jpg", "http://127.0.0.1:8/a?b=1&c=%20", "https://хост/фото.jpg"],
            [
                *("", "h/a.jpg", "ftp://h/a.jpg", "file:///etc/passwd", "javascript:alert(1)"),
                *("https://", "https:///a.jpg", "https://h/a b.jpg", "https://h/\n", None, 7),
                "https://h/" + "a" * 2000,
            ],
        ),
        ("generate", "prompt", ["A sofa", "Диван", "x" * 10_000], ["", " ", "x" * 10_001, None]),
        ("generate", "locale", ["ru", "en-GB", "pt_BR", "zh-Hans-CN"], ["", "r", "ru RU", None]),
        ("notify", "message", ["system_error"], ["", "System error", "a" * 51, None]),
        ("handle_press", "data", ["again:x", "", "?"], ["x" * 65, None, 7]),
    ],
)
def test_texts_are_checked_too(task, name, good, bad):
    for value in good:
        assert name in write(task, **{name: value})
    for value in bad:
        assert refused(task, **{name: value}).startswith(f"{wire_name(task)}: {name}: ")


@pytest.mark.parametrize(
    ("task", "name", "value", "kept"),
    [
        ("create_deal", "title", "  Sofa ", "Sofa"),
        ("create_contact", "email", " ann@example.org ", "ann@example.org"),
        ("handle_webhook", "event", "oncrmdealupdate", "ONCRMDEALUPDATE"),
        ("generate", "prompt", " The sofa\nturns ", "The sofa\nturns"),
    ],
)
def test_texts_are_tidied(task, name, value, kept):
    assert write(task, **{name: value})[name] == kept


@pytest.mark.parametrize(
    ("task", "name"), [("create_deal", "title"), ("create_contact", "name"), ("generate", "prompt")]
)
def test_a_text_that_cannot_be_written_is_refused(task, name):
    assert refused(task, **{name: "So\ud83dfa"}).startswith(f"{wire_name(task)}: {name}: ")


# -- all arguments together


@pytest.mark.parametrize(
    ("task", "written"),
    [
        (
            "create_deal",
            {
                "order_id": "7",
                "title": "Sofa",
                "amount": None,
                "currency": "RUB",
                "contact_user_id": None,
                "fields": {},
                "updated_at": None,
            },
        ),
        ("update_deal", {"order_id": "7", "fields": {}, "updated_at": None}),
        (
            "create_contact",
            {
                "user_id": "7",
                "name": "Ann",
                "email": None,
                "phone": None,
                "fields": {},
                "updated_at": None,
            },
        ),
        ("update_contact", {"user_id": "7", "fields": {}, "updated_at": None}),
        ("handle_webhook", {"event": "ONCRMDEALUPDATE", "entity_id": "7", "ts": 1700000000}),
        ("generate", {**TASKS["generate"], "cost": "1", "locale": "ru"}),
        ("send", {"order_id": "7"}),
        ("handle_press", TASKS["handle_press"]),
        ("handle_callback", {"generation": "c0ffee", "task_id": None}),
        ("notify", {**TASKS["notify"], "mark": "", "facts": {}}),
    ],
)
def test_the_least_a_task_takes_and_what_it_makes_of_it(task, written):
    assert write(task) == written


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task, least in TASKS.items() for name in least]
)
def test_a_required_argument_that_is_missing_is_named(task, name):
    least = {key: value for key, value in TASKS[task].items() if key != name}

    with pytest.raises(MissingFields) as caught:
        payload(task).write((), least)

    assert str(caught.value) == f"{wire_name(task)}: {name}: is missing"


def test_missing_and_wrong_together_are_wrong():
    with pytest.raises(InvalidData) as caught:
        payload("create_deal").write((), {"order_id": True})

    assert type(caught.value) is InvalidData
    assert "order_id: " in str(caught.value)
    assert "title: is missing" in str(caught.value)


@every_task
@pytest.mark.parametrize("args", [(), "positional"])
def test_an_argument_nobody_knows_is_refused_by_its_name(task, args):
    least = TASKS[task]
    given_args, given_kwargs = (tuple(least.values()), {}) if args else ((), least)

    with pytest.raises(InvalidData) as caught:
        payload(task).write(given_args, {**given_kwargs, "colour": SECRET})

    assert "colour" in str(caught.value)
    assert task in str(caught.value)
    assert SECRET not in str(caught.value)


@every_task
def test_positional_arguments_work(task):
    values = tuple(TASKS[task].values())

    assert payload(task).write(values, {}) == write(task)
    assert payload(task).read(values, {}) == read(task)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("7", "Sofa"), {"title": "Sofa"}), (tuple("12345678"), {})],
    ids=["twice", "too many"],
)
def test_positional_arguments_that_do_not_fit_are_refused(args, kwargs):
    with pytest.raises(InvalidData, match=r"^bitrix\.create_deal: "):
        payload("create_deal").write(args, kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"order_id": f"{SECRET} "},
        {"amount": SECRET},
        {"updated_at": SECRET},
        {"currency": SECRET},
        {"fields": SECRET},
        {"fields": {"UF": [SECRET, NAN]}},
        {"title": SECRET * 100},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_a_refusal_never_repeats_a_value(arguments):
    with pytest.raises(InvalidData) as caught:
        write("create_deal", **arguments)

    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_refusal_of_many_values_stays_short():
    told = refused("update_deal", fields={f"UF_{n}": NAN for n in range(400)})

    assert told.endswith("and 395 more")
    assert len(told) < 1000


@pytest.mark.parametrize("task", ["generate", "send"])
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_a_compensation_takes_what_it_is_told_of_any_end(task, kind):
    operation = getattr(video, task)
    amends = operation.amends(kind, Job("j1", replays=2), write(task), "photo_too_dark")
    told = video.make_good.payload.read((), loads(dumps(amends)))

    assert told == amends
    assert told["payload"] == write(task)


def test_every_body_gets_fields_of_its_own():
    first, second = read("create_deal")["fields"], read("create_deal")["fields"]
    first["TITLE"] = "changed"

    assert second == {}


@pytest.mark.parametrize(
    ("task", "shown"),
    [
        (
            "create_deal",
            {"order_id": "7", "contact_user_id": "8", "updated_at": "2026-01-31T09:00:00+00:00"},
        ),
        ("create_contact", {"user_id": "7", "updated_at": None}),
        ("handle_webhook", {"entity_id": "7"}),
        ("generate", {"order_id": "7", "user_id": "8", "chat_id": "9"}),
        ("notify", {"chat_id": "9"}),
    ],
)
def test_a_monitor_sees_ids_and_times_and_no_persons_words(task, shown):
    more = {"contact_user_id": 8, "updated_at": "2026-01-31T12:00:00+03:00", "amount": "99.90"}
    written = write(task, **(more if task == "create_deal" else {}))
    seen = ast.literal_eval(payload(task).shown(written))

    assert set(seen) == set(written)
    assert {name: value for name, value in seen.items() if value != "•••"} == shown


# -- on the wire

jsons = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aÄ😀 &=[]\"'\\", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
amounts = (
    st.none()
    | st.integers(0, 10**15)
    | st.decimals(0, 10**13, places=2)
    | st.integers(0, 10**12).map(lambda cents: cents / 100)
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.none() | st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=zones)  # noqa: DTZ001


@given(
    st.integers() | st.text("aÄ7-", min_size=1, max_size=20),
    amounts,
    moments,
    st.dictionaries(st.sampled_from(["TITLE", "UF_1", "ЦВЕТ"]), jsons),
)
def test_what_is_written_is_json_and_reads_back_the_same(order_id, amount, updated_at, fields):
    def body(order_id: Id, amount: Money | None, updated_at: Timestamp | None, fields: Fields):
        """Stand for any task."""

    arguments = {
        "order_id": order_id,
        "amount": amount,
        "updated_at": updated_at,
        "fields": fields,
    }
    task = Payload("shop.anything", body)

    written = task.write((), arguments)

    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert loads(dumps(written)) == written
    assert task.read((), loads(dumps(written))) == task.read((), arguments)
    assert task.write((), written) == written
    assert amount is None or Decimal(written["amount"]) == Decimal(str(amount))
