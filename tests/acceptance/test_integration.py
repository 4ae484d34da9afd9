"""Messages to a FHIR server: delivered once, whatever happens between us and it."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from acceptance.system import QUICK, System, Upstream

from sandbox.redis_server import free_port
from sandbox.stack import ROOT, Stack

TOKEN = secrets.token_hex(12)
TASK = "integration.deliver"


class Lab(Upstream):
    """The FHIR server, as its people see it."""

    def stored(self, message: str = "") -> list[dict]:
        """Everything it has, or what came with one message."""
        url = f"{self._address}/_sandbox/resources"
        found = self._http.get(url).raise_for_status().json()
        return [one for one in found if message in str(one.get("meta", ""))]


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Iterator[System]:
    """A worker beside a destination `lab` that answers, and one, `ward`, where nobody does."""
    folder = tmp_path_factory.mktemp("lab")
    port, nobody = free_port(), free_port()
    there = {
        "lab": {"url": f"http://127.0.0.1:{port}/r4", "token": TOKEN, "rate": 100},
        "ward": {"url": f"http://127.0.0.1:{nobody}/r4"},
    }
    stack = Stack(folder, env={**QUICK, "INTEGRATION_DESTINATIONS": json.dumps(there)})
    server = stack.process(
        "fhir",
        [sys.executable, "-m", "sandbox.fhir", "--port", str(port), "--token", TOKEN],
    )
    server.start()
    server.wait_for(lambda: server.says("http://"), "its address")
    system = System(stack)
    system.lab = Lab(f"http://127.0.0.1:{port}")
    system.worker("worker", "-Q", "integration")
    yield system
    system.end()
    stack.stop(signal.SIGKILL, keep_files=True)


@pytest.fixture
def lab(system: System) -> Iterator[Lab]:
    yield system.lab
    system.lab.disarm()


def deliver(system: System, message: str, body: dict, destination: str = "lab") -> str:
    return system.send(TASK, destination=destination, body=body, message_id=message)


def patient(**more) -> dict:
    return {"resourceType": "Patient", "name": [{"family": "Ivanova"}], **more}


def test_a_resource_is_stored_and_the_result_says_where(system, lab):
    result = system.done(TASK, destination="lab", body=patient(), message_id="m-1")

    (stored,) = lab.stored("m-1")
    assert result == {
        "outcome": "created",
        "message_id": "m-1",
        "resource": f"Patient/{stored['id']}",
    }
    assert stored["name"] == [{"family": "Ivanova"}]


def test_the_same_message_twice_is_one_resource(system, lab):
    jobs = [deliver(system, "m-2", patient()) for _ in range(3)]

    results = system.results(jobs)

    assert results[0] == results[1] == results[2]
    assert len(lab.stored("m-2")) == 1


def test_an_id_of_a_message_may_hold_what_an_address_may_not(system, lab):
    message = "Übung 1&_id=7"

    results = [system.result(deliver(system, message, patient())) for _ in range(2)]

    assert results[0] == results[1]
    assert len(lab.stored(message)) == 1


def test_a_lost_answer_is_looked_up_and_not_sent_again(system, lab):
    lab.arm({"kind": "lost_answer", "method": "create", "about": "m-3"})

    result = system.result(deliver(system, "m-3", patient()))

    (stored,) = lab.stored("m-3")
    assert result["resource"] == f"Patient/{stored['id']}"
    assert lab.summary()["by_method"]["search"] >= 1


def test_a_resource_with_an_id_of_its_own_is_written_over(system, lab):
    first = system.result(deliver(system, "m-4", patient(id="p-7", active=False)))
    then = system.result(deliver(system, "m-5", patient(id="p-7", active=True)))

    assert (first["outcome"], then["outcome"]) == ("created", "updated")
    assert [one["active"] for one in lab.stored() if one["id"] == "p-7"] == [True]


def test_an_old_message_that_comes_again_does_not_undo_a_newer_one(system, lab):
    system.result(deliver(system, "m-6", patient(id="p-8", active=False)))
    system.result(deliver(system, "m-7", patient(id="p-8", active=True)))

    system.result(deliver(system, "m-6", patient(id="p-8", active=False)))

    assert [one["active"] for one in lab.stored() if one["id"] == "p-8"] == [True]


def test_a_bundle_is_handed_over_once_and_in_doubt_a_person_decides(system, lab):
    bundle = {"resourceType": "Bundle", "id": "b-1", "type": "transaction", "entry": []}
    lab.arm({"kind": "lost_answer", "method": "bundle"})

    letter = system.letter(deliver(system, "m-8", bundle))

    assert letter.error_type == "OutcomeUnknown"
    assert lab.summary()["bundles"] == {"b-1": 1}


def test_what_the_server_refuses_is_a_dead_letter_that_says_where(system, lab):
    lab.arm(
        {
            "kind": "error",
            "method": "create",
            "code": "value",
            "description": "Patient.birthDate is no date",
            "times": 2,
        }
    )

    letter = system.letter(deliver(system, "m-9", patient(birthDate="soon")))

    assert (letter.error_type, letter.code) == ("InvalidData", "value")
    assert "Patient.birthDate is no date" in letter.error_message


def test_a_destination_that_is_down_holds_up_no_other(system, lab):
    waiting = [deliver(system, f"w-{n}", patient(), "ward") for n in range(5)]

    assert system.result(deliver(system, "m-10", patient()))["outcome"] == "created"
    assert system.parked(waiting[0]).service == "integration-ward"


def test_a_destination_that_nobody_has_named_is_waited_for_and_told(system):
    parked = system.parked(deliver(system, "m-11", patient(), "moon"), "NotConfigured")

    assert "INTEGRATION_DESTINATIONS" in parked.detail


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"destination": "http://169.254.169.254"}, "destination"),
        ({"body": {"name": "no resource"}}, "must be a FHIR resource"),
        ({"body": {"resourceType": "Bundle", "type": "batch"}}, "jobs of their own"),
        ({"body": {"resourceType": "Patient", "id": "../admin"}}, "has an id that is none"),
        ({"body": {"resourceType": "Patient", "id": ".."}}, "has an id that is none"),
        ({"body": {"resourceType": "Patient", "id": 7}}, "has an id that is none"),
        ({"body": {"resourceType": "Patient", "id": None}}, "has an id that is none"),
    ],
    ids=[
        "an address for a name",
        "no resource",
        "a batch",
        "a path for an id",
        "a step up for an id",
        "a number for an id",
        "null for an id",
    ],
)
def test_a_bad_payload_is_refused_in_the_caller(system, payload, said):
    good = {"destination": "lab", "body": patient(), "message_id": "m-12"}

    (answer,) = system.try_all([(TASK, good | payload)])

    assert said in answer["text"]


def test_the_sandbox_lets_nobody_in_without_the_token(lab):
    answer = httpx.get(f"{lab._address}/r4/Patient", trust_env=False, timeout=30)

    assert answer.status_code == 401


def test_the_sandbox_tells_its_address():
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.fhir", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
    finally:
        process.kill()
        process.communicate()
