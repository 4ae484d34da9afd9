"""The API where the database does not answer at its start: it opens, and tries again."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.api import Client, forget
from fixtures.waiting import PATIENCE, eventually

from sandbox.redis_server import free_port

ROOT = Path(__file__).parents[2]
OF_THE_PORTAL = "t0ken-of-the-portal"
EVENT = {
    "event": "ONCRMDEALUPDATE",
    "data[FIELDS][ID]": "662",
    "ts": "1736405807",
    "auth[application_token]": OF_THE_PORTAL,
}


@pytest.fixture
def quick(api_settings, monkeypatch) -> pytest.MonkeyPatch:
    """The settings; what has failed is tried again at once."""
    from admin import api

    api_settings.setenv("BITRIX_APPLICATION_TOKEN", OF_THE_PORTAL)
    api_settings.delenv("KIE_WEBHOOK_HMAC_KEY", raising=False)
    monkeypatch.setattr(api, "PAUSE", 0.02)
    return api_settings


@contextmanager
def opened() -> Iterator[Client]:
    """Start an application as uvicorn does, and end it."""
    from admin.api import create_app

    app = create_app()
    client = Client(app)
    lifespan = app.router.lifespan_context(app)
    client._loop.run(lifespan.__aenter__())
    try:
        yield client
    finally:
        client._loop.run(lifespan.__aexit__(None, None, None))
        client.close()


def ready(client: Client) -> Any:
    return client.get("/ready", params={"canaries": False})


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "tried again in" in record.getMessage()]


def test_without_its_database_it_takes_webhooks_and_is_ready_when_that_comes(
    quick, redis_client, tmp_path, caplog
):
    quick.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/later/perennial.db")
    forget()
    with opened() as client:
        before = ready(client)
        behind_a_balancer = client.get("/ready", params={"canaries": False, "database": False})
        event = client.post("/webhooks/bitrix", data=EVENT)
        news = client.post("/webhooks/kie/a-generation", json={"data": {"taskId": "t"}})
        eventually(lambda: len(told(caplog)) > 1)
        (tmp_path / "later").mkdir()
        eventually(lambda: ready(client).status_code == 200)
        known = client.post("/webhooks/kie/a-generation", json={"data": {"taskId": "t"}})

    assert before.status_code == 503
    assert "DATABASE_URL" in before.json()["checks"][1]["detail"]
    assert behind_a_balancer.status_code == 200
    assert event.status_code == 202
    assert redis_client.llen("bitrix") == 1
    assert (news.status_code, news.headers["retry-after"]) == (503, "5")
    assert known.json() == {"outcome": "ignored"}
    assert all(
        "see whether it runs, and DATABASE_URL" in each.getMessage() for each in told(caplog)
    )
    assert not any(record.exc_info for record in caplog.records)


def test_a_database_that_refuses_for_good_is_told_of_each_time_in_a_sentence(
    quick, postgresql, caplog
):
    address = postgresql.url("shared").replace("postgres@", "stranger@", 1)
    quick.setenv("DATABASE_URL", address)
    forget()
    with opened() as client:
        eventually(lambda: len(told(caplog)) > 2)
        answer = ready(client)

    said = {record.getMessage() for record in told(caplog)}
    assert answer.status_code == 503
    assert len(said) == 1
    assert 'role "stranger" does not exist' in said.pop()
    assert not any(record.exc_info for record in caplog.records)


def test_nothing_is_tried_any_more_after_its_end(quick, tmp_path, caplog):
    quick.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/never/perennial.db")
    forget()
    with opened():
        eventually(lambda: told(caplog))
        (trying,) = (thread for thread in threading.enumerate() if thread.name == "schema")

    trying.join(PATIENCE)
    assert not trying.is_alive()


def test_a_database_that_is_silent_keeps_neither_its_door_shut_nor_its_end_away(
    api_settings, tmp_path
):
    """In a process of its own, which would wait for its threads."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        url = f"postgresql+psycopg://{where}/perennial?connect_timeout=600"
        with (tmp_path / "log").open("wb") as log:
            api = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "--port", str(port), "admin.api:app"],
                env={**os.environ, "DATABASE_URL": url},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: answers(f"http://127.0.0.1:{port}/health"))
            api.send_signal(signal.SIGTERM)
            code = api.wait(PATIENCE)
        finally:
            api.kill()
            api.wait()

    assert code in {0, -signal.SIGTERM}
    assert "Traceback" not in (tmp_path / "log").read_text()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
