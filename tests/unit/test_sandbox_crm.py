"""The portal's methods over HTTP, against the facts of UPSTREAMS section 1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sandbox.bitrix import create_app
from sandbox.portal import Portal, PortalSettings

NOW = 1725020945.5  # 2024-08-30T15:29:05+03:00
BASE = "/rest/1/sandbox/"
Call = Callable[..., httpx.Response]


class Http:
    """A portal in this process; every request runs to its end before the next."""

    def __init__(self, **settings: Any) -> None:
        self.portal = Portal(PortalSettings(**settings), clock=lambda: NOW)
        transport = httpx.ASGITransport(create_app(self.portal))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://portal")
        self.runner = asyncio.Runner()

    def send(self, verb: str, path: str, **how: Any) -> httpx.Response:
        return self.runner.run(self.client.request(verb, path, **how))

    def call(self, method: str, params: Any = None) -> httpx.Response:
        return self.send("POST", BASE + method, json=params or {})


@pytest.fixture
def http() -> Iterator[Http]:
    http = Http(burst=1e6)
    with http.runner:
        yield http


@pytest.fixture
def call(http: Http) -> Call:
    return http.call


def add(call: Call, kind: str = "deal", **fields: Any) -> int:
    return call(f"crm.{kind}.add", {"fields": fields}).json()["result"]


def get(call: Call, record: int, kind: str = "deal") -> dict[str, Any]:
    return call(f"crm.{kind}.get", {"id": record}).json()["result"]


def ids(call: Call, kind: str = "deal", **params: Any) -> list[str]:
    found = call(f"crm.{kind}.list", {"select": ["ID"], **params}).json()["result"]
    return [row["ID"] for row in found]


# -- the way in


def test_add_answers_the_id_and_the_time(call: Call) -> None:
    response = call("crm.deal.add", {"fields": {"TITLE": "One"}})

    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json() == {
        "result": 1,
        "time": {
            "start": NOW,
            "finish": NOW,
            "duration": 0.0,
            "processing": 0.005,
            "date_start": "2024-08-30T15:29:05+03:00",
            "date_finish": "2024-08-30T15:29:05+03:00",
            "operating_reset_at": 1725021545,
            "operating": 0.005,
        },
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/rest/1/wrong/crm.deal.list", (401, "INVALID_CREDENTIALS"), id="code"),
        pytest.param("/rest/7/sandbox/crm.deal.list", (401, "INVALID_CREDENTIALS"), id="user"),
        pytest.param("/rest/crm.deal.list", (401, "NO_AUTH_FOUND"), id="none"),
        pytest.param(BASE + "crm.deal.lst", (404, "ERROR_METHOD_NOT_FOUND"), id="method"),
    ],
)
def test_a_call_that_cannot_be_made(http: Http, path: str, expected: object) -> None:
    response = http.send("POST", path, json={})

    assert (response.status_code, response.json()["error"]) == expected


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(
            lambda http: http.send("GET", BASE + "crm.deal.add.json?fields[TITLE]=A%26B"), id="get"
        ),
        pytest.param(
            lambda http: http.send("POST", BASE + "crm.deal.add", data={"fields[TITLE]": "A&B"}),
            id="form",
        ),
        pytest.param(
            lambda http: http.send(
                "POST", BASE + "crm.deal.add", data={"fields[TITLE]": "A&B"}, files={"x": b""}
            ),
            id="multipart",
        ),
        pytest.param(
            lambda http: http.send(
                "POST", BASE + "CRM.Deal.Add/", json={"FIELDS": {"TITLE": "A&B"}}
            ),
            id="spelling",
        ),
    ],
)
def test_parameters_come_in_every_form_php_reads(
    http: Http, call: Call, send: Callable[[Http], httpx.Response]
) -> None:
    assert send(http).json()["result"] == 1
    assert get(call, 1)["TITLE"] == "A&B"


def test_a_body_that_is_not_json_has_no_parameters(http: Http) -> None:
    response = http.send(
        "POST", BASE + "crm.deal.add", content=b"{", headers={"content-type": "application/json"}
    )

    assert response.json()["error_description"] == "Parameter 'fields' must be array."


# -- records


def test_all_scalars_are_strings_or_null(call: Call) -> None:
    add(call, TITLE="One", OPPORTUNITY=1000000, PROBABILITY=99, OPENED=True, UF_CRM_1=[1, 2.5])
    deal = get(call, 1)

    shown = {name: deal[name] for name in ("ID", "OPPORTUNITY", "PROBABILITY", "OPENED")}
    assert shown == {"ID": "1", "OPPORTUNITY": "1000000.00", "PROBABILITY": "99", "OPENED": "Y"}
    assert deal["UF_CRM_1"] == ["1", "2.5"]
    assert deal["LEAD_ID"] is None
    assert all(value is None or isinstance(value, str | list) for value in deal.values())


def test_update_keeps_what_it_is_not_given(call: Call) -> None:
    add(call, TITLE="One", ORIGIN_ID="o-1", OPPORTUNITY="5")
    response = call("crm.deal.update", {"id": 1, "fields": {"STAGE_ID": "C3:WON"}})
    deal = get(call, 1)

    assert response.json()["result"] is True
    assert (deal["TITLE"], deal["ORIGIN_ID"], deal["OPPORTUNITY"]) == ("One", "o-1", "5.00")
    assert (deal["STAGE_ID"], deal["STAGE_SEMANTIC_ID"], deal["CLOSED"]) == ("C3:WON", "S", "Y")


def test_unknown_and_read_only_fields_are_ignored(call: Call) -> None:
    add(call, title="lower", ID="77", NONSENSE="x", DATE_CREATE="2001-01-01")
    deal = get(call, 1)

    assert (deal["ID"], deal["TITLE"], deal["DATE_CREATE"][:4]) == ("1", "Deal #1", "2024")
    assert "NONSENSE" not in deal


def test_a_deal_shows_the_first_of_its_contacts(call: Call) -> None:
    add(call, CONTACT_IDS=[84, 85])

    assert get(call, 1)["CONTACT_ID"] == "84"


def test_a_deleted_record_is_gone_and_its_id_is_not_used_again(call: Call) -> None:
    add(call, ORIGIN_ID="o-1")
    deleted = call("crm.deal.delete", {"id": 1}).json()["result"]

    assert deleted is True
    assert call("crm.deal.get", {"id": 1}).status_code == 400
    assert ids(call, filter={"=ORIGIN_ID": "o-1"}) == []
    assert add(call) == 2


@pytest.mark.parametrize(
    ("method", "params", "code", "text"),
    [
        pytest.param("crm.deal.add", {}, "", "Parameter 'fields' must be array.", id="no-fields"),
        pytest.param(
            "crm.deal.add", {"fields": "x"}, "", "Parameter 'fields' must be array.", id="text"
        ),
        pytest.param(
            "crm.deal.add",
            {"fields": {}, "params": "x"},
            "",
            "Parameter 'params' must be array.",
            id="params",
        ),
        pytest.param(
            "crm.deal.add",
            {"fields": {"OPPORTUNITY": "10,5"}},
            "",
            'Invalid value for the "Amount" field',
            id="amount",
        ),
        pytest.param(
            "crm.deal.add",
            {"fields": {"CURRENCY_ID": "roubles"}},
            "",
            'Invalid value for the "Currency" field',
            id="currency",
        ),
        pytest.param("crm.deal.get", {"id": 9}, "", "Not found", id="get-missing"),
        pytest.param(
            "crm.deal.update", {"id": 9, "fields": {}}, "", "Not found", id="update-missing"
        ),
        pytest.param("crm.deal.delete", {"id": 9}, "", "Not found", id="delete-missing"),
        pytest.param("crm.deal.get", {}, "", "ID is not defined or invalid.", id="no-id"),
        pytest.param(
            "crm.deal.update", {"id": 0}, "", "ID is not defined or invalid.", id="zero-id"
        ),
        pytest.param("crm.contact.get", {"id": 9}, "", "Not found", id="contact-get-missing"),
        pytest.param(
            "crm.contact.update",
            {"id": 9, "fields": {}},
            "",
            "Contact is not found",
            id="contact-update-missing",
        ),
        pytest.param(
            "crm.contact.delete",
            {"id": 9},
            "ERROR_CORE",
            "Element not found",
            id="contact-delete-missing",
        ),
        pytest.param(
            "crm.contact.add",
            {"fields": {"EMAIL": [{"VALUE": "nobody"}]}},
            "ERROR_CORE",
            'The field "Work e-mail" contains an invalid address',
            id="e-mail",
        ),
        pytest.param(
            "crm.deal.list", {"filter": "x"}, "", "Parameter 'filter' must be array.", id="filter"
        ),
        pytest.param(
            "crm.deal.list", {"order": "x"}, "", "Parameter 'order' must be array.", id="order"
        ),
        pytest.param(
            "crm.duplicate.findbycomm",
            {"values": ["1"]},
            "Communication type is not defined",
            "Parameter 'type' is required.",
            id="no-type",
        ),
        pytest.param(
            "crm.duplicate.findbycomm",
            {"type": "FAX", "values": ["1"]},
            "Communication type 'FAX' is not supported in current context",
            "",
            id="type",
        ),
        pytest.param(
            "crm.duplicate.findbycomm",
            {"type": "PHONE", "values": "1"},
            "Communication values is not defined",
            "Parameter 'values' is required.",
            id="values",
        ),
    ],
)
def test_what_a_method_refuses(
    call: Call, method: str, params: object, code: str, text: str
) -> None:
    response = call(method, params)

    assert response.status_code == 400
    assert response.json() == {"error": code, "error_description": text}


def test_the_texts_follow_the_portals_language_and_the_codes_do_not() -> None:
    http = Http(language="ru")
    with http.runner:
        body = http.call("crm.deal.get", {"id": 9}).json()

    assert body == {"error": "", "error_description": "Не найдено"}


# -- multifields and duplicates


def test_every_line_gets_its_own_id_and_a_line_without_one_is_added_again(call: Call) -> None:
    line = {"VALUE": "+7 900 000-00-01", "VALUE_TYPE": "WORK"}
    add(call, "contact", NAME="Ann", PHONE=[line])
    call("crm.contact.update", {"id": 1, "fields": {"PHONE": [line]}})
    phones = get(call, 1, "contact")["PHONE"]

    assert phones == [{"ID": own, "TYPE_ID": "PHONE", **line} for own in ("1", "2")]


def test_a_line_with_its_id_is_changed_and_an_empty_one_deleted(call: Call) -> None:
    add(call, "contact", EMAIL=[{"VALUE": "a@b.c"}, {"VALUE": "d@e.f"}])
    changed = {"EMAIL": [{"ID": "1", "VALUE": "new@b.c"}, {"ID": "2", "VALUE": ""}]}
    call("crm.contact.update", {"id": 1, "fields": changed})
    emails = get(call, 1, "contact")["EMAIL"]

    assert [(one["ID"], one["VALUE"]) for one in emails] == [("1", "new@b.c")]


def test_a_line_with_an_id_of_another_contact_is_ignored(call: Call) -> None:
    add(call, "contact", EMAIL=[{"VALUE": "a@b.c"}])
    stray = {"EMAIL": [{"ID": "99", "VALUE": "stray@b.c"}]}
    call("crm.contact.update", {"id": 1, "fields": stray})

    assert [one["VALUE"] for one in get(call, 1, "contact")["EMAIL"]] == ["a@b.c"]


def test_lines_may_come_as_a_map_by_id(call: Call) -> None:
    add(call, "contact", EMAIL={"n0": {"VALUE": "a@b.c"}})
    changed = {"EMAIL": {"1": {"VALUE": "new@b.c"}, "n0": {"VALUE": "second@b.c"}}}
    call("crm.contact.update", {"id": 1, "fields": changed})
    emails = get(call, 1, "contact")["EMAIL"]

    assert [(one["ID"], one["VALUE"]) for one in emails] == [("1", "new@b.c"), ("2", "second@b.c")]


def test_the_marks_follow_the_lines(call: Call) -> None:
    add(call, "contact", EMAIL=[{"VALUE": "a@b.c"}])
    contact = get(call, 1, "contact")

    assert (contact["HAS_EMAIL"], contact["HAS_PHONE"]) == ("Y", "N")
    assert "PHONE" not in contact


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        pytest.param("PHONE", ["+79000000001"], {"CONTACT": [1, 2]}, id="phone"),
        pytest.param("PHONE", ["8 (900) 000-00-01"], {"CONTACT": [1, 2]}, id="as-dialled"),
        pytest.param("EMAIL", ["ANN@B.C"], {"CONTACT": [1]}, id="any-case"),
        pytest.param("EMAIL", ["no@b.c", "ann@b.c"], {"CONTACT": [1]}, id="several"),
        pytest.param("EMAIL", ["no@b.c"], [], id="none-is-a-list"),
        pytest.param("EMAIL", [f"{n}@b.c" for n in range(20)] + ["ann@b.c"], [], id="the-21st"),
    ],
)
def test_duplicates_are_found_by_phone_and_email(
    call: Call, kind: str, values: list[str], expected: object
) -> None:
    phone = [{"VALUE": "+7 900 000 00 01"}]
    add(call, "contact", PHONE=phone, EMAIL=[{"VALUE": "ann@b.c"}])
    add(call, "contact", PHONE=phone)
    params = {"type": kind, "values": values, "entity_type": "CONTACT"}

    assert call("crm.duplicate.findbycomm", params).json()["result"] == expected


def test_there_are_no_leads_to_be_duplicates_of(call: Call) -> None:
    add(call, "contact", EMAIL=[{"VALUE": "a@b.c"}])
    params = {"type": "EMAIL", "values": ["a@b.c"], "entity_type": "LEAD"}

    assert call("crm.duplicate.findbycomm", params).json()["result"] == []


# -- lists


@pytest.fixture
def five(call: Call) -> None:
    for n, title in enumerate(("Alpha", "Beta", "gamma", "Delta", "Alpha two"), start=1):
        add(call, TITLE=title, OPPORTUNITY=n * 10, ORIGINATOR_ID="p", ORIGIN_ID=f"o-{n}")
    call("crm.deal.update", {"id": 5, "fields": {"ORIGIN_ID": None}})


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({"=ORIGINATOR_ID": "p", "=ORIGIN_ID": "o-2"}, "2", id="origin"),
        pytest.param({"ORIGIN_ID": "o-2"}, "2", id="no-prefix-is-equal"),
        pytest.param({"=ORIGIN_ID": ["o-1", "o-3"]}, "1 3", id="equal-to-any"),
        pytest.param({"@ORIGIN_ID": ["o-1", "o-3", "o-9"]}, "1 3", id="in"),
        pytest.param({"!@ID": [1, 2, 3]}, "4 5", id="not-in"),
        pytest.param({"=ORIGIN_ID": ""}, "5", id="empty"),
        pytest.param({"!=ORIGIN_ID": ""}, "1 2 3 4", id="not-empty"),
        pytest.param({"!TITLE": "Alpha"}, "2 3 4 5", id="not"),
        pytest.param({"!=ORIGIN_ID": "o-1"}, "2 3 4 5", id="unequal-includes-unset"),
        pytest.param({">ID": 3}, "4 5", id="greater"),
        pytest.param({">=ID": "3"}, "3 4 5", id="at-least"),
        pytest.param({"<ID": 3}, "1 2", id="less"),
        pytest.param({"<=OPPORTUNITY": "20"}, "1 2", id="numbers-not-texts"),
        pytest.param({"=OPPORTUNITY": 50}, "5", id="equal-numbers"),
        pytest.param({"%TITLE": "alpha"}, "1 5", id="like"),
        pytest.param({"=%TITLE": "alpha%"}, "1 5", id="like-with-marks"),
        pytest.param({"%=TITLE": "%ta"}, "2 4", id="like-the-other-way"),
        pytest.param({">DATE_CREATE": "2024-08-30T12:00:00+00:00"}, "1 2 3 4 5", id="since"),
        pytest.param({">DATE_CREATE": "2024-08-30T14:00:00+00:00"}, "", id="since-later"),
        pytest.param({"=ID": "2", "=ORIGIN_ID": "o-1"}, "", id="all-must-hold"),
        pytest.param({"=NONSENSE": "x"}, "1 2 3 4 5", id="unknown-field-is-ignored"),
    ],
)
@pytest.mark.usefixtures("five")
def test_a_filter_selects(call: Call, filters: object, expected: str) -> None:
    assert ids(call, filter=filters) == expected.split()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param({}, "1 2 3 4 5", id="by-id"),
        pytest.param({"ID": "DESC"}, "5 4 3 2 1", id="backwards"),
        pytest.param({"OPPORTUNITY": "DESC"}, "5 4 3 2 1", id="numbers"),
        pytest.param({"ORIGIN_ID": "ASC"}, "5 1 2 3 4", id="unset-first"),
        pytest.param({"ORIGINATOR_ID": "ASC", "ID": "DESC"}, "5 4 3 2 1", id="two-keys"),
    ],
)
@pytest.mark.usefixtures("five")
def test_an_order_sorts(call: Call, order: object, expected: str) -> None:
    assert ids(call, order=order) == expected.split()


@pytest.mark.usefixtures("five")
def test_a_multifield_filter_matches_the_whole_value(call: Call) -> None:
    add(call, "contact", PHONE=[{"VALUE": "+79001"}, {"VALUE": "+79002"}])

    assert ids(call, "contact", filter={"PHONE": "+79002"}) == ["1"]
    assert ids(call, "contact", filter={"PHONE": "79002"}) == []


def test_pages_hold_fifty_and_say_where_the_next_begins(call: Call) -> None:
    for _ in range(101):
        add(call)
    pages = [call("crm.deal.list", {"start": start}).json() for start in (0, 50, 100)]

    assert [len(page["result"]) for page in pages] == [50, 50, 1]
    assert [page.get("next") for page in pages] == [50, 100, None]
    assert {page["total"] for page in pages} == {101}


def test_start_minus_one_does_not_count_and_pages_by_id(call: Call) -> None:
    for _ in range(60):
        add(call)
    found: list[str] = []
    while rows := ids(call, start=-1, filter={">ID": found[-1] if found else 0}):
        found += rows
    body = call("crm.deal.list", {"start": -1}).json()

    assert found == [str(n) for n in range(1, 61)]
    assert (body["total"], "next" in body) == (0, False)


def test_select_picks_fields_and_multifields_only_by_name(call: Call) -> None:
    add(call, "contact", NAME="Ann", UF_CRM_1="u", EMAIL=[{"VALUE": "a@b.c"}])

    def rows(**params: Any) -> dict[str, Any]:
        return call("crm.contact.list", params).json()["result"][0]

    assert rows(select=["NAME"]) == {"NAME": "Ann"}
    assert set(rows(select=["EMAIL"])) == {"ID", "EMAIL"}
    assert ("UF_CRM_1" in rows(), "EMAIL" in rows()) == (True, False)
    assert "UF_CRM_1" not in rows(select=["*"])
    assert rows(select=["UF_*"]) == {"UF_CRM_1": "u"}


# -- limits over HTTP


def test_over_the_bucket_the_portal_refuses_before_it_does_anything() -> None:
    http = Http(rate=2, burst=3)
    with http.runner:
        answers = [http.call("crm.deal.add", {"fields": {}}) for _ in range(5)]
    refusal = {"error": "QUERY_LIMIT_EXCEEDED", "error_description": "Too many requests"}

    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 503]
    assert answers[-1].json() == refusal
    assert "retry-after" not in answers[-1].headers
    summary = http.portal.summary()
    assert (summary["deals"], summary["limit_answers"], summary["max_bucket"]) == (3, 2, 3)


def test_over_its_operating_time_one_method_is_refused() -> None:
    http = Http(operating_limit=1, operating_costs={"crm.deal.add": 2})
    with http.runner:
        answers = [http.call("crm.deal.add", {"fields": {}}) for _ in range(2)]
        other = http.call("crm.deal.get", {"id": 1})

    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["error"] == "OPERATION_TIME_LIMIT"
    assert "time" not in answers[1].json()
    assert other.status_code == 200


def test_the_rights_are_those_that_the_webhook_was_given() -> None:
    usual, other = Http(), Http(rights=("user", "tasks"))
    with usual.runner, other.runner:
        rights = [http.call("scope").json()["result"] for http in (usual, other)]

    assert rights == [["crm"], ["user", "tasks"]]
