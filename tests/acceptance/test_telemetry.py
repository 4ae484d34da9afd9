"""What a real worker, beat, API and Flower tell: log lines, Sentry's events, and traces."""

from __future__ import annotations

import json
import sys
from uuid import UUID

import httpx
import pytest
from acceptance.system import PATIENCE, System
from acceptance.visits import new_order, opened
from fixtures.ingest import Ingest, ingest
from fixtures.waiting import eventually

from sandbox.stack import answers

PARENT = "00f067aa0ba902b7"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def watched(site, sentry: Ingest, collector: Ingest, tmp_path_factory):
    """A system whose worker, beat and API tell everything, at once."""
    env = {
        "SENTRY_DSN": sentry.dsn,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",  # ms
    }
    with opened(tmp_path_factory.mktemp("watched"), site, **env) as system:
        system.stack.ports["api"] = system.stack.ports["shop"]  # the portal calls that of others
        system.caller  # noqa: B018 - it starts beside the rest
        system.stack.start_beat()
        told = [sys.executable, "-m", "uvicorn", "--port", str(system.stack.ports["api"])]
        api = system.stack.process("api", [*told, "admin.api:app"])
        api.start()
        system.worker()
        api.wait_for(lambda: answers(f"{system.stack.url('api')}/health"), "an answer")
        yield system


@pytest.fixture
def office(watched: System):
    watched.portal.begin()
    yield watched
    watched.clear()


def dying(office: System, order: str, description: str = "no") -> str:
    """Have a job of an order die at its second try; return its id."""
    fault = {"kind": "error", "code": "INVALID_ARG_VALUE", "description": description, "times": 2}
    office.portal.arm(fault | {"method": "crm.deal.add", "about": order})
    job = office.send("create_deal", order_id=order, title=f"Confidential {order} title")
    office.letter(job)
    return job


def asked_of_the_api(office: System, **headers: str) -> str:
    """Send the API a webhook of the portal; return the job that it becomes."""
    form = {"event": "ONCRMDEALADD", "data[FIELDS][ID]": "1", "ts": "1"}
    form["auth[application_token]"] = office.stack.env["BITRIX_APPLICATION_TOKEN"]
    door = f"{office.stack.url('api')}/webhooks/bitrix"
    told = httpx.post(door, data=form, headers=headers, trust_env=False, timeout=PATIENCE)
    return told.json()["job"]


# -- logs


def lines(office: System, process: str = "worker") -> list[dict]:
    """What a process has logged, from its first line of JSON on; each line has to be one."""
    text = (office.stack.folder / f"{process}.log").read_text()
    said = text[: text.rfind("\n") + 1].splitlines()  # the last one may be on its way
    first = next(n for n, line in enumerate(said) if line.startswith("{"))
    return [json.loads(line) for line in said[first:]]


def lines_of(office: System, job: str) -> list[dict]:
    return [line for line in lines(office) if line.get("message_id") == job]


def test_a_job_is_followed_from_its_first_line_to_its_letter_by_one_word(
    office: System, order: str
):
    job = dying(office, order)
    last = eventually(lambda: [one for one in lines_of(office, job) if "exception" in one])
    said = lines_of(office, job)

    assert {(one["trace_id"], one["task"], one["queue"]) for one in said} == {
        (job, "bitrix.create_deal", "bitrix")
    }
    assert all(one["event"].startswith("[QUEUE_DEAL] ") for one in said)
    assert [one["attempt"] for one in said] == sorted(one["attempt"] for one in said)
    assert {one["attempt"] for one in said} == {1, 2}
    assert sum(" received" in one["event"] for one in said) == 2
    told = [one for one in said if one["component"] == "tasks.base"]
    assert {(one["level"], one["error_type"]) for one in told} == {("error", "InvalidData")}
    assert office.letter(job).metadata.trace_id == job
    assert office.meta(job)["trace_id"] == job
    assert "Traceback" in last[0]["exception"]


def test_what_a_job_sends_carries_on_its_trace(office: System, order: str):
    office.done("create_deal", order_id=order, title="A", contact_user_id=f"u{order}")
    parent = office.send("create_contact", user_id=f"u{order}", name="Anna")
    children = eventually(
        lambda: [
            one
            for one in lines(office)
            if one.get("trace_id") == parent and one["message_id"] != parent
        ],
        within=PATIENCE,
    )

    assert {child["task"] for child in children} == {"bitrix.attach_contact"}
    assert all(child["event"].startswith("[QUEUE] ") for child in children)


@pytest.mark.parametrize(
    ("process", "component", "prefix"),
    [
        ("worker", "celery.apps.worker", "[WORKER] "),
        ("beat", "celery.beat", ""),
        ("api", "uvicorn.error", ""),
        ("flower", "flower.command", ""),
    ],
)
def test_every_process_speaks_json(office: System, process, component, prefix):
    if process == "flower":
        office.stack.start_flower()
    if process == "api":
        asked_of_the_api(office)
    said = eventually(
        lambda: [one for one in lines(office, process) if one["component"] == component],
        within=PATIENCE,
    )

    assert all(one["event"].startswith(prefix) for one in said)
    assert all({"timestamp", "level", "event"} <= one.keys() for one in said)


# -- Sentry


def heard(sentry, job: str) -> list[dict]:
    return [event for event in sentry.events() if event["contexts"]["job"]["message_id"] == job]


def test_a_dead_letter_is_one_event_with_what_finds_it_again(
    office: System, sentry: Ingest, order: str
):
    webhook = office.stack.env["BITRIX_WEBHOOK_URL"]
    job = dying(office, order, f"Confidential {order} title is refused at {webhook}")
    (event,) = eventually(lambda: heard(sentry, job), within=PATIENCE)
    letter = office.letter(job)

    assert event["fingerprint"] == [letter.fingerprint]
    assert event["tags"] == {
        "task": "bitrix.create_deal",
        "service": "bitrix",
        "error_type": "InvalidData",
        "category": "validation",
        "queue": "bitrix",
        "trace_id": job,
    }
    assert event["contexts"]["job"] | {"attempts": 2, "replays": 0} == event["contexts"]["job"]
    assert event["level"] == "error"
    assert event["exception"]["values"][-1]["stacktrace"]["frames"]
    said = json.dumps(event)
    assert "refused at" in said
    for private in ("Confidential", webhook, webhook.split("/")[-2], '"vars"'):
        assert private not in said


def test_what_was_expected_is_not_reported(office: System, sentry: Ingest):
    begun = len(sentry.events())
    gone = new_order()
    office.done("create_deal", order_id=gone, title="Gone")
    office.portal.arm({"kind": "status", "status": 503, "method": "crm.deal.update"})
    mended = office.done("update_deal", order_id=gone, fields={"TITLE": "Mended"})["outcome"]
    office.portal.call("crm.deal.delete", id=office.portal.row("deal", gone)["ID"])
    outcome = office.done("update_deal", order_id=gone, fields={"TITLE": "Changed"})["outcome"]
    last = dying(office, new_order())
    eventually(lambda: heard(sentry, last), within=PATIENCE)

    assert (mended, outcome) == ("updated", "target_gone")
    assert office.portal.fired()
    assert len(sentry.events()) == begun + 1


def test_a_refused_credential_is_reported_once_and_not_for_each_job(office: System, sentry: Ingest):
    begun = len(sentry.events())
    orders = [new_order() for _ in range(5)]
    office.portal.arm({"kind": "error", "code": "INVALID_CREDENTIALS", "times": 5})
    jobs = office.send_all([("create_deal", {"order_id": o, "title": o}) for o in orders])
    for job in jobs:
        office.parked(job)
    (event,) = eventually(lambda: sentry.events()[begun:], within=PATIENCE)

    assert event["tags"]["error_type"] == "Unauthorized"
    assert event["tags"]["trace_id"] in jobs
    office.portal.disarm()
    office.gate.reset()
    assert {result["outcome"] for result in office.results(jobs)} == {"created"}


def test_nobody_waits_for_a_sentry_that_does_not_answer(site, tmp_path):
    with ingest(deaf=True) as deaf, opened(tmp_path / "deaf", site, SENTRY_DSN=deaf.dsn) as system:
        worker = system.worker()
        job = dying(system, new_order())
        eventually(lambda: deaf.posted, within=PATIENCE)
        outcome = system.done("create_deal", order_id=new_order(), title="Alive")["outcome"]

        assert [letter.message_id for letter in system.open_letters()] == [job]
        assert outcome == "created"
        assert worker.stop() == 0


# -- traces


def of(collector: Ingest, trace_id: str, count: int) -> list:
    """The spans of a trace, once there are so many, in the order in which they began."""
    eventually(lambda: len(spans_of(collector, trace_id)) >= count, within=PATIENCE)
    return sorted(spans_of(collector, trace_id), key=lambda span: span.start_time_unix_nano)


def spans_of(collector: Ingest, trace_id: str) -> list:
    return [span for span in collector.spans() if span.trace_id == bytes.fromhex(trace_id)]


def is_a_run(span) -> bool:
    return span.kind == span.SPAN_KIND_CONSUMER


def facts(span) -> dict:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_job_its_calls_and_its_retries_are_one_trace_by_the_name_of_the_job(
    office: System, collector: Ingest
):
    job = dying(office, new_order())
    trace_id = office.letter(job).metadata.trace_id
    first, call, second, last_call = of(collector, UUID(trace_id).hex, 4)

    assert trace_id == job
    assert [span.name for span in (first, call)] == ["bitrix.create_deal", "bitrix crm.deal.add"]
    assert first.parent_span_id == second.parent_span_id == b""
    assert call.parent_span_id == first.span_id
    assert last_call.parent_span_id == second.span_id
    assert facts(first)["perennial.retried_after"] == "InvalidData"
    assert facts(second)["perennial.attempt"] == 2
    assert facts(second)["error.type"] == "InvalidData"
    assert facts(second)["messaging.message.id"] == job
    assert (first.status.code, second.status.code) == (0, 2)


def test_a_callers_trace_goes_on_in_the_jobs_of_its_request(office: System, collector: Ingest):
    job = asked_of_the_api(office, traceparent=f"00-{TRACE}-{PARENT}-01")
    run = eventually(
        lambda: next((one for one in spans_of(collector, TRACE) if is_a_run(one)), None),
        within=PATIENCE,
    )

    assert facts(run)["messaging.message.id"] == job
    assert run.parent_span_id == bytes.fromhex(PARENT)
    assert office.meta(job)["trace_id"] == TRACE
    assert {one["trace_id"] for one in lines_of(office, job)} == {TRACE}


def test_calls_that_go_out_together_are_linked_from_each_jobs_trace(
    office: System, collector: Ingest
):
    orders = [new_order() for _ in range(9)]
    jobs = office.send_all([("create_deal", {"order_id": n, "title": n}) for n in orders])
    office.results(jobs)
    numbers = {UUID(job).bytes for job in jobs}
    eventually(lambda: numbers <= called_for(collector), within=PATIENCE)

    assert any(span.links for span in collector.spans())


def called_for(collector: Ingest) -> set[bytes]:
    """The traces that calls of an upstream are part of, or linked to."""
    calls = [span for span in collector.spans() if span.kind == span.SPAN_KIND_CLIENT]
    return {at.trace_id for span in calls for at in (span, *span.links)}
