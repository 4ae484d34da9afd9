"""What is sent to Sentry and what is not, as a real ingest gets it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import pytest
import sentry_sdk
from fixtures.ingest import Ingest

from classifiers.errors import (
    BillingExhausted,
    InvalidData,
    JobError,
    Pending,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    Unclassified,
    UserError,
    kinds,
)
from config.history import History
from config.policies import decide
from config.settings import settings
from reliability.dead_letters import Body, Letter, Metadata
from reliability.redaction import HIDDEN, redaction
from tasks import reports, traces

SECRET = "s3cret-t0ken"
AT = {
    "message_id": "job-1",
    "task": "video.generate",
    "trace_id": "t",
    "attempt": 1,
    "queue": "kie",
}


@pytest.fixture
def told(sentry: Ingest, nowhere):
    """The events that have come in, once all are sent; the logger `told` is listened to."""
    nowhere.setenv("KIE_API_KEY", SECRET)
    nowhere.setenv("SENTRY_DSN", sentry.dsn)
    nowhere.setenv("NO_PROXY", "127.0.0.1")
    for cached in (settings, redaction):
        cached.cache_clear()
    sentry.posted.clear()
    reports.forget()
    logger = logging.getLogger("told")
    logger.handlers.clear()
    reports.listen(logger)

    def events() -> list[dict]:
        sentry_sdk.flush(5)
        return sentry.events()

    yield events
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)
    for cached in (settings, redaction):
        cached.cache_clear()


def letter(error_type: str, message: str = "no", **kwargs) -> Letter:
    return Letter(
        "job-1",
        "kie",
        error_type,
        message,
        Body("video.generate", (), kwargs),
        Metadata(datetime.now(UTC), trace_id="root-1"),
    )


@pytest.mark.parametrize(
    ("error_type", "level"),
    [
        ("InvalidData", "error"),
        ("RateLimited", "error"),
        ("PoisonPill", "fatal"),
        ("TimeLimitExceeded", "error"),
        *((kind.__name__, None) for kind in kinds(UserError)),
        ("Cancelled", None),
    ],
)
def test_a_death_is_one_event_unless_it_was_meant_or_its_user_can_mend_it(told, error_type, level):
    reports.report_letter(letter(error_type), None, [])

    assert [event["level"] for event in told()] == ([level] if level else [])


def test_of_a_payload_only_ids_are_told(told):
    private = {"prompt": "a red balloon", "more": [{"phone": "+79990001122"}], "n": 1500, "s": "ok"}
    error = InvalidData(f"+79990001122 is no number, a red balloon of order-7, {SECRET}")
    error.__cause__ = ValueError("a red balloon")
    reports.report_letter(letter("InvalidData", str(error), **private), error, [private])
    (event,) = told()

    assert (
        event["exception"]["values"][-1]["value"]
        == f"{HIDDEN} is no number, {HIDDEN} of order-7, {HIDDEN}"
    )
    assert not any(word in json.dumps(event) for word in ("balloon", "7999", SECRET))


ALERTS = {
    "credential": (Unauthorized("no", service="x"), 1),
    "money": (BillingExhausted("no", service="kie"), 1),
    "nothing matched, tried again": (Unclassified("no"), 0),
    "unavailable": (ServiceUnavailable("no"), 0),
    "a limit": (RateLimited("no", retry_after=5), 0),
    "not ready": (Pending("no"), 0),
}


@pytest.mark.parametrize("name", ALERTS)
def test_a_wait_is_told_of_if_a_person_has_to_end_it_and_once(told, name):
    error, count = ALERTS[name]
    decision = decide(error, History(), "video.generate")
    for _ in range(3):
        reports.report_wait(error, decision, AT, [])

    assert len(told()) == count


def test_causes_of_waits_are_told_apart(told):
    errors: list[JobError] = [Unauthorized("no", service=name) for name in ("x", "kie")]
    for error in errors:
        reports.report_wait(error, decide(error, History()), AT, [])

    assert {event["tags"]["service"] for event in told()} == {"x", "kie"}


@pytest.mark.parametrize(
    ("name", "level", "extra", "count"),
    [
        ("told.caretaker", logging.ERROR, {}, 1),
        ("told.caretaker", logging.WARNING, {}, 0),
        ("told.caretaker", logging.ERROR, reports.REPORTED, 0),
        ("celery.app.trace", logging.ERROR, {}, 0),
        ("kombu.connection", logging.ERROR, {}, 0),
        ("opentelemetry.exporter", logging.ERROR, {}, 0),
        ("celery.worker", logging.CRITICAL, {}, 1),
    ],
)
def test_a_line_of_a_log_is_news_where_nobody_else_tells_it(told, name, level, extra, count):
    made = logging.getLogger(name).makeRecord(name, level, __file__, 1, "no", (), None, extra=extra)
    logging.getLogger("told").handle(made)

    assert len(told()) == count


class Message:
    headers = {"id": "job-1", "root_id": "root-1", "task": "video.generate"}  # noqa: RUF012
    delivery_info = {"routing_key": "kie"}  # noqa: RUF012


def test_a_line_of_a_log_goes_without_what_it_quotes_and_names_its_job(told):
    with traces.about(Message()):
        logging.getLogger("told").error(
            "%s is lost", "a red balloon", extra={"more": f"balloon {SECRET}"}
        )
    (event,) = told()

    assert event["logentry"] == {"message": "%s is lost"}
    assert event["tags"] == {"task": "video.generate", "trace_id": "root-1", "queue": "kie"}
    assert event["contexts"]["job"] == {"message_id": "job-1"}
    assert not any(word in json.dumps(event) for word in ("balloon", SECRET))


def test_without_an_address_nothing_is_set_up(nowhere):
    nowhere.setenv("SENTRY_DSN", "")
    settings.cache_clear()
    logger = logging.getLogger("untold")
    reports.listen(logger)
    reports.report_letter(letter("InvalidData"), None, [])
    settings.cache_clear()

    assert logger.handlers == []
    assert not sentry_sdk.get_client().is_active()
