"""All that the description of the API allows, and much that it does not: no 5xx, no surprise."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import schemathesis
from fixtures.api import forget
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from config.settings import settings
from reliability.dead_letters import Body, Letter, Metadata, dead_letters
from reliability.liveness import heard

TOKEN = "t0ken"
SECRETS = {  # whatever is not set answers 503 on purpose
    "ADMIN_TOKEN": TOKEN,
    "BITRIX_APPLICATION_TOKEN": "of-the-portal",
    "TELEGRAM_WEBHOOK_SECRET": "of-the-bot",
}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
TRIES = 10  # of each route, and as many of what its description does not allow


@pytest.fixture
def description(api_settings) -> Any:
    """The description of an API that has a bit of everything."""
    from admin.api import create_app
    from tasks import app

    for name, value in SECRETS.items():
        api_settings.setenv(name, value)
    forget()
    for queue, obstacle in settings().queues.items():
        if not obstacle:
            heard(queue)
    body = Body("bitrix.create_deal", (), {"order_id": "17", "title": "Tea"})
    died = Metadata(failed_at=datetime.now(UTC))
    for n in range(3):
        dead_letters().bury(Letter(f"job-{n}", "bitrix", "NotFound", "404", body, died))
        app.send_task("bitrix.create_deal", task_id=f"parked-{n}", queue="bitrix", countdown=3600)
    api = create_app()
    return schemathesis.openapi.from_asgi(
        "/openapi.json", api, headers={"Authorization": f"Bearer {TOKEN}"}
    )


KNOWN = {
    "message_id": st.sampled_from(["job-0", "job-1", "parked-0", "parked-1"]),
    "service": st.sampled_from(["bitrix", "telegram"]),
}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_nothing_that_is_sent_makes_it_fail(description, mode):
    statuses: Counter[int] = Counter()
    for result in description.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.POSITIVE or takes_something(operation):
            ask(operation, mode, statuses)

    expected = {200, 404} if mode is GenerationMode.POSITIVE else {422}
    assert expected <= set(statuses), "it was not let in, or sent nothing of interest"


def takes_something(operation: Any) -> bool:
    """Whether there is anything about a request that can be wrong.

    The webhooks take any object: what is no object is sent to them elsewhere.
    """
    queries = operation.query or operation.body
    return bool(queries) and not operation.path.startswith("/webhooks")


def ask(operation: Any, mode: GenerationMode, statuses: Counter[int]) -> None:
    """Send a route many things; what is known to it now and then, and rightly signed."""

    @hypothesis_settings(
        max_examples=TRIES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def send(case: Any, data: Any) -> None:
        for name in set(case.path_parameters or {}) & set(KNOWN):
            if data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(KNOWN[name])
        if isinstance(case.body, dict) and "bitrix" in operation.path:
            case.body["auth[application_token]"] = SECRETS["BITRIX_APPLICATION_TOKEN"]
        headers = {
            "Authorization": f"Bearer {TOKEN}",
            "X-Telegram-Bot-Api-Secret-Token": SECRETS["TELEGRAM_WEBHOOK_SECRET"],
        }
        answer = case.call_and_validate(headers=headers, checks=CHECKS)
        statuses[answer.status_code] += 1

    send()
