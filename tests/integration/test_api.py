"""The HTTP door: who is let in, and what each route says and does."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from fastapi.routing import iter_route_contexts
from fixtures.api import TOKEN, Client, forget
from fixtures.refusing import refusing_broker
from sqlalchemy import text

from admin.routes import shapes
from config.settings import settings
from reliability import keys, queues
from reliability.dead_letters import Body, Letter, Metadata, dead_letters
from reliability.liveness import heard
from storage import database

ROOT = Path(__file__).parents[2]
ADMIN = {"Authorization": b"Bearer " + TOKEN.encode()}
JSON = {"Content-Type": "application/json"}
LATE = 1e10  # a due time that nobody sees

# What is reached without the token: each has its own reason, and its own check where it needs one.
OPEN = {
    ("GET", "/"),
    ("HEAD", "/"),
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/ready"),
    ("HEAD", "/ready"),
    ("POST", "/webhooks/bitrix"),
    ("POST", "/webhooks/kie/{job}"),
    ("POST", "/webhooks/telegram"),
}


@pytest.fixture
def stranger(api_settings) -> Iterator[Client]:
    """Somebody without a token."""
    from admin.api import create_app  # wants to know the queue when it is imported

    client = Client(create_app())
    yield client
    client.close()


@pytest.fixture
def admin(stranger) -> Client:
    """Somebody with the token."""
    stranger.headers = ADMIN
    return stranger


def bury(message_id: str = "job-1", *, minute: float = 0.0, **facts: Any) -> Letter:
    """Write a dead letter; *minute* is how long ago the job died."""
    facts = {
        "original_queue": "bitrix",
        "error_type": "ServiceUnavailable",
        "error_message": "503",
        "message_body": Body("bitrix.create_deal", (), {"order_id": "17", "title": "Tea"}),
        "metadata": Metadata(failed_at=datetime.now(UTC) - timedelta(minutes=minute)),
        "category": "transient",
        "service": "bitrix",
    } | facts
    dead_letters().bury(Letter(message_id=message_id, **facts))
    return dead_letters().get(message_id)


def park(redis_client, *ids: str, service: str = "bitrix", reason: str = "Paused") -> None:
    """Park jobs as the transport does, each due a second after the one before it."""
    from tasks import app

    for n, message_id in enumerate(ids):
        app.send_task(
            "bitrix.create_deal",
            kwargs={"order_id": message_id, "title": "Tea"},
            task_id=message_id,
            queue="bitrix",
            eta=datetime.now(UTC) + timedelta(hours=1, seconds=n),
            headers={"parking": {"reason": reason, "service": service}},
        )


def ids(answer: Any) -> list[str]:
    return [row["message_id"] for row in answer.json()["items"]]


def waiting(redis_client, queue: str = "bitrix") -> list[dict[str, Any]]:
    """The headers of the jobs in a queue, the oldest first."""
    return [json.loads(raw)["headers"] for raw in redis_client.lrange(queue, 0, -1)[::-1]]


# -- who is let in


def routes(client: Client) -> list[tuple[str, str]]:
    """Every route there is, but for the console's, which has a login of its own."""
    found = {
        (method, context.path)
        for context in iter_route_contexts(client.app.routes)
        for method in getattr(context, "methods", None) or {"GET"}
    }
    return sorted((method, path) for method, path in found if not path.startswith("/console"))


def call(client: Client, method: str, path: str, **more: Any) -> Any:
    return client.request(
        method, path.replace(":path", "").replace("{", "").replace("}", ""), **more
    )


WRONG = {
    "none": {},
    "empty": {"Authorization": ""},
    "no token": {"Authorization": "Bearer"},
    "an empty token": {"Authorization": "Bearer "},
    "another": {"Authorization": "Bearer wrong"},
    "one character short": {"Authorization": b"Bearer " + TOKEN[:-1].encode()},
    "one character long": {"Authorization": b"Bearer " + TOKEN.encode() + b"x"},
    "another case": {"Authorization": b"Bearer " + TOKEN.upper().encode()},
    "in Latin-1": {"Authorization": b"Bearer " + TOKEN.encode("latin-1")},
    "twice": {"Authorization": b"Bearer " + TOKEN.encode() + b", Bearer " + TOKEN.encode()},
    "no scheme": {"Authorization": TOKEN.encode()},
    "basic": {"Authorization": "Basic YWRtaW46dDBrZW4tb2YtdGhlLcOkZG1pbg=="},
    "as a token": {"Authorization": b"Token " + TOKEN.encode()},
    "another header": {"X-Admin-Token": TOKEN.encode()},
    "a cookie": {"Cookie": b"Authorization=Bearer " + TOKEN.encode()},
}


def test_every_route_but_the_open_ones_needs_the_token(stranger):
    every = routes(stranger)
    let_in = {
        (method, path, wrong)
        for method, path in set(every) - OPEN
        for wrong, headers in WRONG.items()
        if call(stranger, method, path, headers=headers).status_code != 401
    }

    assert set(every) >= OPEN
    assert len(set(every) - OPEN) >= 20
    assert let_in == set()


def test_no_route_is_open_without_a_token_of_ours(api_settings, stranger):
    api_settings.delenv("ADMIN_TOKEN")
    forget()
    answers = {
        (method, path, wrong): call(stranger, method, path, headers=headers)
        for method, path in set(routes(stranger)) - OPEN
        for wrong, headers in WRONG.items()
    }

    assert {answer.status_code for answer in answers.values()} == {503}
    assert {answer.text for answer in answers.values()} == {
        '{"detail": "not configured: set ADMIN_TOKEN"}'
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_types_no_more_than_the_host_is_led_to_the_console(stranger, method):
    answer = stranger.request(method, "/")

    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.content == b""


def test_the_token_is_asked_for_before_the_body_is_looked_at(stranger):
    answer = stranger.post("/api/dead-letters/replay", content=b"{no JSON")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_token_lets_in(stranger, scheme):
    shown = {"Authorization": scheme.encode() + b" " + TOKEN.encode()}

    assert stranger.get("/api/gates", headers=shown).status_code == 200


def test_a_token_is_not_taken_from_the_address(stranger):
    answer = stranger.get("/api/gates", params={"token": TOKEN, "access_token": TOKEN})

    assert answer.status_code == 401


@pytest.mark.parametrize(("public", "status"), [("false", 401), ("true", 200)])
def test_metrics_are_for_the_token_unless_they_are_public(api_settings, stranger, public, status):
    api_settings.setenv("METRICS_PUBLIC", public)
    forget()
    answer = stranger.get("/metrics")

    assert answer.status_code == status
    assert stranger.get("/metrics", headers=ADMIN).headers["content-type"].startswith("text/plain")


# -- the description


def test_the_description_is_clean(admin):
    described = admin.get("/openapi.json").json()
    operations = [
        operation | {"path": path}
        for path, methods in described["paths"].items()
        for operation in methods.values()
    ]
    names = [operation["operationId"] for operation in operations]

    assert len(set(names)) == len(names)
    for operation in operations:
        where = operation["operationId"]
        success = next(a for status, a in operation["responses"].items() if status < "300")

        assert operation.get("description"), where
        assert next(iter(success["content"].values()))["schema"], where
        assert ("security" in operation) == (
            operation["path"].startswith(("/api", "/bitrix", "/metrics"))
        ), where
        if "security" in operation:
            assert {"401", "503"} <= set(operation["responses"]), where
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_each_field_of_the_sync_says_what_it_means(admin):
    schemas = admin.get("/openapi.json").json()["components"]["schemas"]
    fields = [
        field
        for name in ("WorkerState", "WorkerConfig", "Stream", "Streams")
        for field in schemas[name]["properties"].values()
    ]

    assert all("description" in field for field in fields if "$ref" not in field)


# -- whether work can be done


def queues_served() -> list[str]:
    return [queue for queue, obstacle in settings().queues.items() if not obstacle]


def test_the_process_says_that_it_is_up(stranger):
    assert stranger.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 503)])
def test_whoever_watches_may_ask_without_a_body(stranger, path, status):
    assert stranger.request("HEAD", path).status_code == status


def test_ready_is_what_answers_and_is_served(stranger):
    for queue in queues_served():
        heard(queue)
    answer = stranger.get("/ready")

    assert answer.status_code == 200
    assert answer.json()["status"] == "ready"
    assert [check["name"] for check in answer.json()["checks"]] == [
        "redis",
        "database",
        "queue bitrix",
        "queue upkeep",
    ]


def test_a_queue_that_nobody_serves_is_not_ready(stranger, redis_client):
    heard("upkeep")
    redis_client.set(f"{keys.CANARY}bitrix", time.time() - 300)
    answer = stranger.get("/ready")

    assert answer.status_code == 503
    assert [check["name"] for check in answer.json()["checks"] if not check["ok"]] == [
        "queue bitrix"
    ]
    assert "for 300 s" in answer.json()["checks"][2]["detail"]
    assert stranger.get("/ready", params={"canaries": False}).status_code == 200


def test_a_queue_that_was_never_served_is_not_ready(stranger):
    answer = stranger.get("/ready")

    assert answer.status_code == 503
    assert "yet" in answer.json()["checks"][2]["detail"]


def test_without_redis_it_is_not_ready_and_says_no_more_than_that(api_settings, stranger):
    api_settings.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    forget()
    answer = stranger.get("/ready")

    assert answer.status_code == 503
    assert {check["name"]: check["ok"] for check in answer.json()["checks"]} == {
        "redis": False,
        "database": True,
    }
    assert not {"127.0.0.1", "s3cret"} & set(answer.text.replace(":", " ").split())


def test_a_redis_that_takes_no_writes_is_not_ready(stranger, redis_client):
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        answer = stranger.get("/ready", params={"canaries": False})
    finally:
        redis_client.config_set("min-replicas-to-write", 0)

    assert answer.status_code == 503
    assert answer.json()["checks"][0]["detail"].startswith("takes no writes")


def test_it_is_told_how_things_are_while_every_thread_waits(api_settings):
    """As webhooks do while Redis is silent."""
    from admin.api import create_app

    async def ask() -> list[int]:
        threads = to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        line = httpx.ASGITransport(create_app())
        async with threads, httpx.AsyncClient(transport=line, base_url="http://api") as watcher:
            asked = [watcher.get(path, headers=ADMIN) for path in ("/ready", "/metrics")]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(asyncio.wait_for(ask(), 20)) == [503, 200]


def test_a_broker_that_does_not_know_us_is_not_ready_and_quotes_nothing(api_settings):
    """In a process of its own: Celery is configured once."""
    with refusing_broker() as port:
        api_settings.setenv("CELERY_BROKER_URL", f"amqp://guest:s3cret@127.0.0.1:{port}//")
        told = elsewhere(REFUSED_BY_THE_BROKER)
    (ready, said), (metrics, figures), (status, _) = json.loads(told)

    assert (ready, metrics, status) == (503, 200, 503)
    assert "cannot be used (CELERY_BROKER_URL)" in said
    assert "broker_up 0.0" in figures
    assert "job_queue_length{" not in figures
    assert "s3cret" not in told


def test_without_its_database_it_is_not_ready(api_settings, stranger, tmp_path):
    api_settings.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/perennial.db")
    forget()
    answer = stranger.get("/ready")

    assert answer.status_code == 503
    assert answer.json()["checks"][1] == {
        "name": "database",
        "ok": False,
        "detail": "does not answer (DATABASE_URL)",
    }


@pytest.mark.parametrize(
    ("revision", "status"),
    [("", 503), ("0001", 503), ("9999", 200)],
    ids=["without tables", "of an older release", "of a newer release"],
)
def test_it_is_ready_when_its_database_has_what_this_release_needs(
    api_settings, stranger, revision, status
):
    with database.transaction() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        if revision:
            row = {"revision": revision}
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), row)
    answer = stranger.get("/ready", params={"canaries": False})

    assert answer.status_code == status
    assert ("db upgrade" in answer.json()["checks"][1]["detail"]) == (status == 503)


# -- what goes wrong


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/dead-letters"),
        ("GET", "/api/dead-letters/groups"),
        ("GET", "/api/dead-letters/job-1"),
        ("DELETE", "/api/dead-letters/job-1"),
        ("POST", "/api/dead-letters/job-1/replay"),
        ("GET", "/api/replays"),
        ("GET", "/api/parked"),
        ("POST", "/api/parked/job-1/release"),
        ("GET", "/api/gates"),
        ("POST", "/api/gates/bitrix/pause"),
        ("GET", "/bitrix/sync/status"),
        ("GET", "/bitrix/sync/worker/status"),
    ],
)
def test_without_redis_a_sentence_is_the_answer(api_settings, admin, method, path):
    api_settings.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    forget()
    answer = admin.request(method, path)

    assert answer.status_code == 503
    assert "Redis" in answer.json()["detail"]
    assert "s3cret" not in answer.text
    assert answer.headers["retry-after"] == "5"


def test_without_its_database_a_sentence_is_the_answer(api_settings, admin, tmp_path):
    api_settings.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/perennial.db")
    forget()
    answer = admin.get("/api/dead-letters/archived-long-ago")

    assert answer.status_code == 503
    assert "DATABASE_URL" in answer.json()["detail"]
    assert str(tmp_path) not in answer.text


REFUSED_BY_THE_BROKER = """
import json
from fixtures.api import TOKEN, Client
from admin.api import create_app
client = Client(create_app())
client.headers = {"Authorization": b"Bearer " + TOKEN.encode()}
answers = map(client.get, ("/ready", "/metrics", "/bitrix/sync/worker/status"))
print(json.dumps([(answer.status_code, answer.text) for answer in answers]))
"""


WITHOUT_A_BROKER = """
import json, sys
from fixtures.api import TOKEN, Client
from admin.api import create_app
client = Client(create_app())
client.headers = {"Authorization": b"Bearer " + TOKEN.encode()}
secret = {"X-Telegram-Bot-Api-Secret-Token": "of-the-bot"}
message = {"message_id": 5, "chat": {"id": 70}}
press = {"callback_query": {"id": "4", "data": "again:token", "message": message}}
answers = [
    client.post("/api/dead-letters/job-1/replay"),
    client.post("/api/dead-letters/replay", json={"all": True}),
    client.post("/webhooks/telegram", headers=secret, json=press),
    client.get("/ready"),
    client.get("/api/dead-letters"),
]
print(json.dumps([(answer.status_code, answer.text) for answer in answers]))
"""


def elsewhere(program: str) -> str:
    """Run a program in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_broker_nothing_is_settled_and_a_sentence_is_the_answer(api_settings):
    """In a process of its own: Celery is configured once."""
    bury()
    api_settings.setenv("CELERY_BROKER_URL", "amqp://guest:s3cret@127.0.0.1:1//")
    api_settings.setenv("TELEGRAM_WEBHOOK_SECRET", "of-the-bot")
    told = elsewhere(WITHOUT_A_BROKER)
    one, all_of_them, webhook, ready, listing = json.loads(told)

    assert [one[0], all_of_them[0], webhook[0], ready[0], listing[0]] == [503, 503, 503, 503, 200]
    assert "queue cannot be reached" in one[1]
    assert "CELERY_BROKER_URL" in ready[1]
    assert "s3cret" not in told
    assert dead_letters().get("job-1").state == "open"


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/api/dead-letters", {"limit": 0}),
        ("/api/dead-letters", {"limit": 501}),
        ("/api/dead-letters", {"since": "yesterday"}),
        ("/api/dead-letters", {"since": "99999d"}),
        ("/api/dead-letters", {"state": "lost"}),
        ("/api/dead-letters", {"cursor": "abc"}),
        ("/api/dead-letters", {"cursor": "nan:job-1"}),
        ("/api/dead-letters", {"fingerprnt": "a"}),
        ("/api/parked", {"cursor": "job-1"}),
        ("/api/parked", {"offset": "1"}),
        ("/api/dead-letters/groups", {"task": "bitrix.create_deal"}),
        ("/api/replays", {"state": "running"}),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_in_words(admin, path, params):
    answer = admin.get(path, params=params)

    assert answer.status_code == 422
    assert next(iter(params)) in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        ('{"all": true', "application/json", "the body is no JSON"),
        ('{"all": true}', "application/x-www-form-urlencoded", "Content-Type: application/json"),
        ('{"all": true}', "", "Content-Type: application/json"),
        ("[]", "application/json", "body: Input should be a valid dictionary"),
    ],
    ids=["half", "as curl sends it", "of no type", "a list"],
)
def test_a_body_that_cannot_be_used_is_refused_in_words(admin, content, kind, sentence):
    sent = {"content": content, "headers": {"Content-Type": kind} if kind else {}}
    answer = admin.post("/api/dead-letters/replay", **sent)

    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/api/dead-letters", "/api/gates/none"]
)
def test_no_answer_is_kept_by_a_cache(admin, path):
    assert admin.get(path).headers["cache-control"] == "no-store"


def test_a_refusal_does_not_repeat_what_was_sent(admin):
    sent = {"kwargs": {}, "pasword": "s3cret", "dry_run": "\ud800"}
    answer = admin.post("/api/dead-letters/job-1/replay", content=json.dumps(sent), headers=JSON)

    assert answer.status_code == 422
    assert "pasword" in answer.json()["detail"]
    assert "s3cret" not in answer.text


def test_an_endless_body_is_refused(stranger):
    answer = stranger.post("/webhooks/telegram", content=b"x" * 1_000_001)

    assert answer.status_code == 413


@pytest.mark.parametrize(
    "content",
    [b'{"taskId": "\\ud800"}', b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b"\xff\xfe"],
    ids=["half a surrogate pair", "nested deeply", "a long number", "no UTF-8"],
)
def test_a_webhook_that_nobody_can_read_is_refused(api_settings, stranger, content):
    api_settings.setenv("KIE_WEBHOOK_HMAC_KEY", "key")
    forget()

    assert stranger.post("/webhooks/kie/1", content=content).status_code == 422


# -- dead letters


def test_a_letter_has_the_fields_that_are_promised(admin):
    bury()
    row = admin.get("/api/dead-letters").json()["items"][0]

    assert next(iter(row)) == "message_id"
    assert {
        "message_id",
        "original_queue",
        "error_type",
        "error_message",
        "message_body",
        "metadata",
        "category",
        "fingerprint",
        "traceback",
        "history",
        "payload_version",
        "compensation",
    } <= set(row)
    assert set(row["message_body"]) == {"task", "args", "kwargs"}
    assert set(row["metadata"]) == {"received_at", "failed_at", "retry_count", "trace_id"}
    assert admin.get("/api/dead-letters/job-1").json() == row


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, ["new", "other", "old"]),
        ({"task": "bitrix.update_deal"}, ["other"]),
        ({"error_type": "NotFound"}, ["other"]),
        ({"task": "bitrix.create_deal", "error_type": "NotFound"}, []),
        ({"since": "30m"}, ["new"]),
        ({"since": "2h"}, ["new", "other"]),
        ({"until": "2h"}, ["old"]),
        ({"q": "TEA-9"}, ["old"]),
        ({"limit": 1}, ["new"]),
        ({"state": "replayed"}, []),
        ({"state": "all"}, ["new", "other", "old"]),
    ],
    ids=str,
)
def test_letters_are_found_by_what_they_are(admin, params, found):
    bury("old", minute=300, message_body=Body("bitrix.create_deal", (), {"order_id": "tea-9"}))
    bury("other", minute=60, error_type="NotFound", message_body=Body("bitrix.update_deal", (), {}))
    bury("new")

    assert ids(admin.get("/api/dead-letters", params=params)) == found


def test_letters_are_found_by_their_group_and_since_a_moment(admin):
    fingerprint = bury("one", minute=5).fingerprint
    bury("two", error_type="NotFound")
    now = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    groups = admin.get("/api/dead-letters/groups").json()

    assert ids(admin.get("/api/dead-letters", params={"fingerprint": fingerprint})) == ["one"]
    assert ids(admin.get("/api/dead-letters", params={"since": now})) == ["two"]
    assert {(group["fingerprint"], group["count"]) for group in groups} >= {(fingerprint, 1)}
    assert all(group["explanation"] for group in groups)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"task": "bitrix.create_deal"}, ["one"]),
        ({"task": "bitrix.update_deal"}, []),
        ({"error_type": "ServiceUnavailable"}, ["one"]),
        ({"error_type": "NotFound"}, []),
        ({"task": "bitrix.create_deal", "error_type": "ServiceUnavailable"}, ["one"]),
        ({"task": "bitrix.create_deal", "state": "replayed"}, []),
    ],
    ids=str,
)
def test_a_group_is_not_gone_through_for_a_task_or_class_of_another(admin, more, found):
    fingerprint = bury("one").fingerprint
    bury("two", error_type="NotFound")

    assert ids(admin.get("/api/dead-letters", params={"fingerprint": fingerprint} | more)) == found


def test_pages_have_each_letter_once_though_letters_come_and_go(admin):
    for n in range(25):
        bury(f"job-{n}", minute=n)
    seen, cursor = [], ""
    while cursor is not None:
        page = admin.get("/api/dead-letters", params={"limit": 7, "cursor": cursor})
        seen += ids(page)
        cursor = page.json()["next_cursor"]
        bury(f"late-{len(seen)}")  # newer than all: on no later page
        dead_letters().discard(seen[-1])  # the one the cursor stands at

    assert seen == [f"job-{n}" for n in range(25)]


def test_a_letter_that_is_archived_is_still_shown(admin):
    from tasks import retention

    bury("job-1", minute=60 * 24 * 31)
    retention.trim()

    assert dead_letters().get("job-1") is None
    assert admin.get("/api/dead-letters/job-1").json()["message_id"] == "job-1"


def test_an_id_may_have_slashes(admin):
    bury("order/17")

    assert admin.get("/api/dead-letters/order%2F17").json()["message_id"] == "order/17"
    assert admin.delete("/api/dead-letters/order%2F17").json()["state"] == "discarded"


def test_a_listing_shows_whatever_a_foreign_publisher_has_sent(admin, redis_client):
    from tasks import app

    app.send_task(
        "foreign.task",
        kwargs={"amount": float("nan"), "name": "\ud800"},
        task_id="odd",
        queue="bitrix",
        countdown=3600,
        headers={"parking": {"reason": 5, "service": ["x"]}},
    )
    [row] = admin.get("/api/parked").json()["items"]

    assert row["kwargs"] == {"amount": "NaN", "name": "\ud800"}
    assert row["reason"] == 5


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/dead-letters/nobody"),
        ("DELETE", "/api/dead-letters/nobody"),
        ("POST", "/api/dead-letters/nobody/replay"),
        ("GET", "/api/replays/nobody"),
        ("POST", "/api/replays/nobody/cancel"),
        ("GET", "/api/parked/nobody"),
        ("DELETE", "/api/parked/nobody"),
        ("POST", "/api/parked/nobody/release"),
        ("POST", "/api/gates/nobody/pause"),
        ("POST", "/api/gates/nobody/resume"),
    ],
)
def test_what_nobody_knows_is_not_found(admin, method, path):
    answer = admin.request(method, path)

    assert answer.status_code == 404
    assert set(answer.json()) == {"detail"}


# -- sent again


def test_a_letter_is_sent_again_once(admin, redis_client):
    bury()
    answer = admin.post("/api/dead-letters/job-1/replay", headers={"X-Operator": "anna"})
    again = admin.post("/api/dead-letters/job-1/replay")

    assert (answer.status_code, answer.json()) == (
        202,
        {"message_id": "job-1", "state": "replayed"},
    )
    assert again.status_code == 409
    assert [job["id"] for job in waiting(redis_client)] == ["job-1"]
    assert dead_letters().get("job-1").settled_by == "anna"


def test_a_letter_is_sent_with_other_arguments_and_keeps_what_they_were(admin, redis_client):
    bury()
    kwargs = {"order_id": "17", "title": "Coffee"}
    answer = admin.post(
        "/api/dead-letters/job-1/replay", json={"kwargs": kwargs}, headers={"X-Operator": "anna"}
    )
    [edit] = dead_letters().get("job-1").edits

    assert answer.status_code == 202
    assert (edit.by, edit.before["title"], edit.after["title"]) == ("anna", "Tea", "Coffee")
    assert len(waiting(redis_client)) == 1


@pytest.mark.parametrize(
    "kwargs", [{"title": "Coffee"}, {"order_id": "17", "title": "Tea", "colour": "red"}]
)
def test_arguments_that_the_task_cannot_use_are_refused(admin, redis_client, kwargs):
    bury()
    answer = admin.post("/api/dead-letters/job-1/replay", json={"kwargs": kwargs})

    assert answer.status_code == 409
    assert answer.json()["detail"]
    assert dead_letters().get("job-1").edits == ()
    assert waiting(redis_client) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_arguments_that_are_no_text_do_no_harm(admin, redis_client, dry_run):
    bury()
    kwargs = {"order_id": "\ud800", "title": "Tea", "fields": {"\ud800": 1}}
    body = json.dumps({"kwargs": kwargs, "dry_run": dry_run})
    answer = admin.post("/api/dead-letters/job-1/replay", content=body, headers=JSON)

    assert answer.status_code < 500
    assert admin.get("/api/dead-letters").status_code == 200


def test_a_dry_run_says_what_would_become_of_a_letter_and_touches_nothing(admin, redis_client):
    bury()
    bad = {"dry_run": True, "kwargs": {"title": "Coffee"}}
    good = admin.post("/api/dead-letters/job-1/replay", json={"dry_run": True})
    refused = admin.post("/api/dead-letters/job-1/replay", json=bad)

    assert (good.status_code, good.json()["verdict"]) == (200, "replay")
    assert (refused.status_code, refused.json()["verdict"]) == (200, "skip")
    assert dead_letters().get("job-1").state == "open"
    assert waiting(redis_client) == []


def test_many_letters_are_sent_by_a_filter(admin, redis_client):
    bury("one")
    bury("two", error_type="NotFound")
    bury("three", raw="AAA=")
    answer = admin.post("/api/dead-letters/replay", json={"error_type": "ServiceUnavailable"})

    assert answer.status_code == 202
    assert answer.json()["sent"] == 1
    assert list(answer.json()["refused"].values()) == [1]
    assert [job["id"] for job in waiting(redis_client)] == ["one"]


def test_many_letters_are_sent_by_their_ids(admin, redis_client):
    bury("one")
    bury("two")
    answer = admin.post("/api/dead-letters/replay", json={"ids": ["one", "one", "nobody"]})

    assert answer.json() == {"sent": 1, "refused": {"no dead letter has that id": 1}}
    assert [job["id"] for job in waiting(redis_client)] == ["one"]


def test_a_dry_run_of_many_says_of_how_many_it_speaks(admin, redis_client):
    for n in range(102):
        bury(f"job-{n}")
    answer = admin.post("/api/dead-letters/replay", json={"all": True, "dry_run": True})

    assert answer.status_code == 200
    assert (answer.json()["looked_at"], answer.json()["more"]) == (100, True)
    assert answer.json()["verdicts"] == {"replay": 100}
    assert waiting(redis_client) == []


def test_a_ramp_goes_on_by_itself_and_can_be_watched_and_stopped(admin, redis_client):
    bury()
    begun = admin.post(
        "/api/dead-letters/replay",
        json={"task": "bitrix.create_deal", "ramp": True},
        headers={"X-Operator": "anna"},
    )
    place = begun.headers["location"]
    [driver] = waiting(redis_client, "upkeep")
    cancelled = admin.post(f"{place}/cancel")
    again = admin.post(f"{place}/cancel")
    resumed = admin.post(f"{place}/resume")

    assert (begun.status_code, begun.json()["by"]) == (202, "anna")
    assert begun.json().keys() == shapes.Run.model_fields.keys()
    assert driver["task"] == "replay.ramp"
    assert [run["id"] for run in admin.get("/api/replays").json()] == [begun.json()["id"]]
    assert cancelled.json()["state"] == "cancelled"
    assert again.status_code == 409
    assert resumed.json()["state"] == admin.get(place).json()["state"] == "running"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"dry_run": True},
        {"ids": []},
        {"fingerprnt": "abc"},
        {"ids": ["one"], "all": True},
        {"ids": ["one"], "task": "bitrix.create_deal"},
        {"all": True, "dry_run": True, "ramp": True},
        {"task": "\ud800"},
        {"ids": ["\ud800"]},
        [],
    ],
    ids=str,
)
def test_many_letters_are_never_sent_by_mistake(admin, redis_client, body):
    bury("one")
    answer = admin.post("/api/dead-letters/replay", content=json.dumps(body), headers=JSON)

    assert answer.status_code == 422
    assert waiting(redis_client) == []


def test_more_letters_than_a_request_can_send_are_left_to_a_ramp(admin, redis_client, monkeypatch):
    from admin.routes import dead_letters as route

    monkeypatch.setattr(route, "AT_ONCE", 2)
    for n in range(3):
        bury(f"job-{n}")
    answer = admin.post("/api/dead-letters/replay", json={"all": True})

    assert answer.status_code == 409
    assert "ramp" in answer.json()["detail"]
    assert waiting(redis_client) == []


def test_a_letter_is_discarded_and_says_by_whom_and_why(admin):
    bury()
    answer = admin.delete(
        "/api/dead-letters/job-1", params={"note": "a test order"}, headers={"X-Operator": "anna"}
    )
    settled = dead_letters().get("job-1")

    assert answer.json() == {"message_id": "job-1", "state": "discarded"}
    assert (settled.settled_by, settled.note) == ("anna", "a test order")
    assert admin.delete("/api/dead-letters/job-1").status_code == 200


def test_a_letter_that_was_sent_again_cannot_be_discarded(admin):
    bury()
    admin.post("/api/dead-letters/job-1/replay")

    assert admin.delete("/api/dead-letters/job-1").status_code == 409


# -- parked jobs


def test_a_parked_job_has_the_fields_that_are_promised(admin, redis_client):
    park(redis_client, "job-1")
    [row] = admin.get("/api/parked").json()["items"]

    assert {
        "message_id",
        "task",
        "args",
        "kwargs",
        "reason",
        "service",
        "since",
        "due",
        "attempts",
    } <= set(row)
    assert (row["message_id"], row["reason"], row["service"]) == ("job-1", "Paused", "bitrix")
    assert admin.get("/api/parked/job-1").json() == row


def test_pages_of_parked_jobs_have_each_once_though_jobs_come_back(admin, redis_client):
    park(redis_client, *(f"job-{n:02}" for n in range(25)))
    redis_client.zadd(keys.PARKED_DUE, {f"job-{n:02}": LATE for n in range(10, 20)})  # at one time
    seen, cursor = [], ""
    while cursor is not None:
        page = admin.get("/api/parked", params={"limit": 4, "cursor": cursor})
        seen += ids(page)
        cursor = page.json()["next_cursor"]
        redis_client.zrem(keys.PARKED_DUE, seen[-1])  # the one the cursor stands at

    soonest = [f"job-{n:02}" for n in (*range(10), *range(20, 25), *range(10, 20))]
    assert seen == soonest


def test_parked_jobs_are_found_by_what_they_wait_for(admin, redis_client):
    park(redis_client, "a")
    park(redis_client, "b", reason="RateLimited")
    park(redis_client, "c", service="x", reason="RateLimited")

    assert ids(admin.get("/api/parked", params={"service": "bitrix"})) == ["a", "b"]
    assert ids(admin.get("/api/parked", params={"reason": "RateLimited"})) == ["b", "c"]
    assert ids(admin.get("/api/parked", params={"service": "x", "task": "other"})) == []


def test_a_page_of_parked_jobs_looks_through_so_many(admin, redis_client, monkeypatch):
    from reliability import parking

    monkeypatch.setattr(parking, "MOST_SEARCHED", 2)
    park(redis_client, "a", "b", "c")
    park(redis_client, "d", service="x")
    pages, cursor = [], ""
    while cursor is not None:
        page = admin.get("/api/parked", params={"service": "x", "cursor": cursor})
        pages.append(ids(page))
        cursor = page.json()["next_cursor"]

    assert [found for page in pages for found in page] == ["d"]
    assert len(pages) > 1


def test_jobs_that_wait_to_be_run_alone_are_listed_first(admin, redis_client):
    from tasks import app

    park(redis_client, "parked")
    app.send_task("bitrix.create_deal", task_id="suspect", queue="bitrix")
    redis_client.lpush(keys.quarantine("bitrix"), redis_client.rpop("bitrix"))
    first = admin.get("/api/parked", params={"limit": 1}).json()["items"]

    assert [(row["message_id"], row["state"]) for row in first] == [
        ("suspect", "suspect"),
        ("parked", "parked"),
    ]
    assert admin.get("/api/parked/suspect").json() == first[0]
    assert ids(admin.get("/api/parked", params={"service": "bitrix"})) == ["parked"]


def test_a_parked_job_is_released(admin, redis_client):
    park(redis_client, "job-1")
    answer = admin.post("/api/parked/job-1/release")

    assert answer.json() == {"message_id": "job-1", "outcome": "released"}
    assert redis_client.zscore(keys.PARKED_DUE, "job-1") < time.time()


def test_a_parked_job_is_cancelled_and_its_result_says_so(admin, redis_client):
    from tasks import app

    park(redis_client, "job-1")
    answer = admin.delete("/api/parked/job-1")

    assert answer.json() == {"message_id": "job-1", "outcome": "cancelled"}
    assert redis_client.zcard(keys.PARKED_DUE) == 0
    assert app.AsyncResult("job-1").state == "REVOKED"
    assert admin.delete("/api/parked/job-1").status_code == 404


# -- gates


def test_gates_have_the_fields_that_are_promised(admin):
    rows = admin.get("/api/gates").json()

    assert {"bitrix", "kie", "telegram", "x"} <= {row["service"] for row in rows}
    assert {"service", "state", "budget_remaining", "retry_at"} <= set(rows[0])


def test_a_gate_is_paused_and_says_by_whom_and_why(admin):
    answer = admin.post(
        "/api/gates/bitrix/pause", json={"note": "moving house"}, headers={"X-Operator": "anna"}
    )

    assert answer.json()["state"] == "paused"
    assert "anna" in answer.json()["note"]
    assert "moving house" in answer.json()["note"]


def test_a_resumed_gate_lets_its_jobs_come_back(admin, redis_client):
    admin.post("/api/gates/bitrix/pause")
    park(redis_client, "job-1", "job-2")
    park(redis_client, "job-3", service="x")
    answer = admin.post("/api/gates/bitrix/resume")

    assert (answer.json()["state"], answer.json()["jobs_released"]) == ("closed", 2)
    assert redis_client.zcount(keys.PARKED_DUE, "-inf", time.time() + 5) == 2


def test_a_reset_gate_forgets_what_held_it(admin):
    from admin import view
    from config.services import services

    bitrix = next(service for service in services() if service.name == "bitrix")
    view.gate_of(bitrix).hold_credential("a webhook", "401")

    assert admin.get("/api/gates").json()[0]["state"] == "held"
    assert admin.post("/api/gates/bitrix/reset").json()["state"] == "closed"


# -- the sync with Bitrix24


def envelope(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200
    assert list(answer.json()) == ["success", "message", "data"]
    return answer.json()["data"]


def test_the_worker_status_has_exactly_its_fields(admin):
    data = envelope(admin.get("/bitrix/sync/worker/status"))

    assert data == {
        "worker_enabled": True,
        "worker_running": False,
        "worker_task_exists": False,
        "worker_task_status": "not_started",
        "pending_messages_count": 0,
        "worker_config": {"max_retries": 5, "batch_size": 50, "poll_interval": 1.0},
    }


@pytest.mark.parametrize(
    ("enabled", "age", "told"),
    [
        ("true", 10, (True, True, "running")),
        ("true", 300, (False, True, "silent")),
        ("false", 300, (False, True, "disabled")),
    ],
)
def test_the_worker_status_comes_from_the_canary(
    api_settings, admin, redis_client, enabled, age, told
):
    api_settings.setenv("BITRIX_WORKER_ENABLED", enabled)
    forget()
    redis_client.set(f"{keys.CANARY}bitrix", time.time() - age)
    data = envelope(admin.get("/bitrix/sync/worker/status"))

    names = ("worker_running", "worker_task_exists", "worker_task_status")
    assert tuple(data[name] for name in names) == told


def test_pending_is_what_is_accepted_and_not_over(admin, redis_client):
    from tasks import app

    for n in range(3):
        app.send_task("bitrix.create_deal", kwargs={"order_id": str(n)}, queue="bitrix")
    app.send_task("video.send", kwargs={"order_id": "1"}, queue="telegram")
    park(redis_client, "parked")
    park(redis_client, "elsewhere", service="x")
    raw = redis_client.rpop("bitrix")
    redis_client.hset("unacked", "tag-1", json.dumps([json.loads(raw), "", "bitrix"]))
    redis_client.hset("unacked", "tag-2", json.dumps([json.loads(raw), "", "telegram"]))
    data = envelope(admin.get("/bitrix/sync/worker/status"))

    assert data["pending_messages_count"] == 2 + 1 + 1


def test_the_sync_status_has_exactly_its_fields(admin):
    nothing = {"length": 0, "groups": 0, "last_id": None}

    assert envelope(admin.get("/bitrix/sync/status")) == {
        "operations_stream": nothing,
        "webhooks_stream": nothing,
        "total_messages": 0,
        "bitrix_configured": True,
    }


def test_the_sync_status_tells_operations_from_webhooks(admin, redis_client):
    from tasks import app

    heard("bitrix")
    for n in range(3):
        app.send_task("bitrix.create_deal", task_id=f"deal-{n}", queue="bitrix")
    for n in range(2):
        app.send_task("bitrix.handle_webhook", task_id=f"event-{n}", queue="bitrix")
    redis_client.lpush("bitrix", "no message")
    data = envelope(admin.get("/bitrix/sync/status"))

    assert data["operations_stream"] == {"length": 4, "groups": 1, "last_id": None}
    assert data["webhooks_stream"] == {"length": 2, "groups": 1, "last_id": "event-1"}
    assert data["total_messages"] == 6


def test_a_long_queue_is_told_from_its_ends(admin, redis_client, monkeypatch):
    from tasks import app

    monkeypatch.setattr(queues, "LOOKED_AT", 10)
    for n in range(40):
        task = "bitrix.handle_webhook" if n % 2 else "bitrix.create_deal"
        app.send_task(task, task_id=f"job-{n}", queue="bitrix")
    data = envelope(admin.get("/bitrix/sync/status"))

    assert (data["total_messages"], data["webhooks_stream"]["length"]) == (40, 20)
    assert data["webhooks_stream"]["last_id"] == "job-39"
    assert data["operations_stream"]["last_id"] == "job-38"
