"""What goes to a FHIR server, and what is believed of its answers."""

from __future__ import annotations

from types import SimpleNamespace
from urllib.parse import parse_qs

import httpx
import pytest

from classifiers.errors import InternalError, NotConfigured, OutcomeUnknown
from classifiers.fhir import classify
from clients.fhir import TAG_SYSTEM, Fhir
from clients.http import Upstream
from config.services import integration
from config.settings import Destination
from reliability.gate import Gate

BASE = "https://fhir.example.com/r4"
PATIENT = {"resourceType": "Patient"}
OUTCOME = {"resourceType": "OperationOutcome", "id": "all-ok", "issue": []}


def tagged(message, **more):
    tag = {"system": TAG_SYSTEM, "code": message, "display": "for people"}
    return {**PATIENT, "id": "7", "meta": {"tag": [tag]}, **more}


def bundle(*resources):
    entries = [{"resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries}


@pytest.fixture
def server(redis_client):
    """A server that answers whatever is asked with `server.answer`, and a client of it."""
    server = SimpleNamespace(requests=[], answer=httpx.Response(201, headers={"Location": "x/7"}))

    def respond(request):
        server.requests.append(request)
        if isinstance(server.answer, Exception):
            raise server.answer
        return server.answer

    service = integration("lab", Destination(url=BASE, rate=1000))
    transport = httpx.MockTransport(respond)
    upstream = Upstream(
        service, Gate(redis_client, service), classify, base_url=BASE, transport=transport
    )
    server.fhir = Fhir(upstream)
    return server


@pytest.mark.parametrize("message", ["m-1", "Übung", "a&_id=5", "a b", "100%", "a#b", "a+b"])
def test_the_condition_of_a_create_is_our_tag_and_nothing_else(server, message):
    server.fhir.create(PATIENT, message)

    condition = server.requests[0].headers["If-None-Exist"]
    assert parse_qs(condition) == {"_tag": [f"{TAG_SYSTEM}|{message}"]}


def test_what_separates_values_in_a_search_is_escaped(server):
    server.fhir.create(PATIENT, "a|b,c$d\\e")

    condition = server.requests[0].headers["If-None-Exist"]
    assert parse_qs(condition)["_tag"] == [f"{TAG_SYSTEM}|a\\|b\\,c\\$d\\\\e"]


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(201, headers={"Location": f"{BASE}/Patient/7/_history/1"}),
        httpx.Response(201, headers={"Location": f"{BASE}/Patient/7"}),
        httpx.Response(200, json=tagged("m-1")),
    ],
    ids=["a version of it", "it", "the resource"],
)
def test_a_new_resource_is_where_the_answer_says(server, answer):
    server.answer = answer

    assert server.fhir.create(PATIENT, "m-1") == "7"


@pytest.mark.parametrize(
    "answer",
    [httpx.Response(200), httpx.Response(200, json=OUTCOME), httpx.Response(200, text="welcome")],
    ids=["nothing", "the id of an outcome", "something else"],
)
def test_an_answer_that_names_no_resource_leaves_a_doubt(server, answer):
    server.answer = answer

    with pytest.raises(OutcomeUnknown):
        server.fhir.create(PATIENT, "m-1")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (bundle(tagged("m-1")), "7"),
        (bundle(OUTCOME, tagged("m-1")), "7"),
        (bundle(OUTCOME), None),
        (bundle(), None),
        ({"resourceType": "Bundle", "type": "searchset", "total": 0}, None),
    ],
    ids=["ours", "ours, with a remark", "a remark alone", "none", "no entries"],
)
def test_a_search_finds_what_has_our_tag(server, answer, found):
    server.answer = httpx.Response(200, json=answer)

    assert server.fhir.find("Patient", "m-1") == found


@pytest.mark.parametrize(
    "answer",
    [
        bundle({**PATIENT, "id": "8"}),
        bundle(tagged("m-2")),
        {},
        OUTCOME,
    ],
    ids=["no tag", "the tag of another", "an empty object", "no bundle"],
)
def test_an_answer_to_another_question_is_not_believed(server, answer):
    server.answer = httpx.Response(200, json=answer)

    with pytest.raises(InternalError, match="does the server know `_tag`"):
        server.fhir.find("Patient", "m-1")


def test_a_lost_update_is_named_by_its_kind_and_not_by_its_patient(server):
    server.answer = httpx.ReadTimeout("")

    with pytest.raises(Exception, match="update Patient") as lost:
        server.fhir.update({**PATIENT, "id": "ivanova-1970"})
    assert "ivanova" not in str(lost.value)


def test_the_version_is_the_one_that_the_server_states(server):
    stated = {"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"}
    server.answer = httpx.Response(200, json=stated)

    assert server.fhir.version(within=5.0) == "4.0.1"
    assert [str(request.url) for request in server.requests] == [f"{BASE}/metadata"]


@pytest.mark.parametrize("body", [{}, {"ok": True}, OUTCOME])
def test_what_states_no_capability_is_no_fhir_server(server, body):
    server.answer = httpx.Response(200, json=body)

    with pytest.raises(NotConfigured):
        server.fhir.version(within=5.0)
