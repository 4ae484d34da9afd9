"""A real server and a real client: how a lost answer looks on the wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sandbox.bitrix import create_server
from sandbox.portal import Portal, PortalSettings


class Site:
    """A portal behind a socket of its own, in a thread."""

    def __init__(self) -> None:
        self.portal = Portal(PortalSettings())
        self.server, listener = create_server(self.portal)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        # A quarter of a second is far above an answer on loopback, and short for a test.
        self.client = httpx.Client(base_url=address, timeout=httpx.Timeout(5, read=0.25))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})

    def add(self, origin: str = "o-1") -> httpx.Response:
        path = "/rest/1/sandbox/crm.deal.add"
        return self.client.post(path, json={"fields": {"ORIGIN_ID": origin}})

    def arm(self, **fault: Any) -> None:
        self.client.post("/_sandbox/faults", json=[fault]).raise_for_status()

    def entries(self) -> list[dict[str, Any]]:
        return self.client.get("/_sandbox/journal").json()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.thread.start()
    deadline = time.monotonic() + 10
    while not site.server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    yield site
    site.client.close()
    site.server.should_exit = True
    site.thread.join(10)
    assert not site.thread.is_alive()


@pytest.mark.parametrize(
    ("kind", "drop", "error", "effect"),
    [
        pytest.param("lost_answer", "close", httpx.RemoteProtocolError, "deal 1 added", id="lost"),
        pytest.param("lost_answer", "reset", httpx.ReadError, "deal 1 added", id="lost-by-reset"),
        pytest.param("lost_answer", "hang", httpx.ReadTimeout, "deal 1 added", id="lost-hanging"),
        pytest.param("refuse", "close", httpx.RemoteProtocolError, "", id="refused"),
        pytest.param("refuse", "reset", httpx.ReadError, "", id="refused-by-reset"),
    ],
)
def test_the_client_sees_a_broken_read_and_the_journal_the_truth(
    site: Site, kind: str, drop: str, error: type[Exception], effect: str
) -> None:
    site.arm(kind=kind, drop=drop)
    with pytest.raises(error):
        site.add()
    (entry,) = site.entries()

    assert (entry["effect"], entry["answered"], entry["status"]) == (effect, False, 0)
    assert site.add("o-2").status_code == 200


def test_an_answer_nobody_waited_for_is_not_answered(site: Site) -> None:
    site.arm(kind="slow", seconds=0.5, after=True)
    with pytest.raises(httpx.ReadTimeout):
        site.add()
    deadline = time.monotonic() + 10
    while not site.entries()[0]["status"] and time.monotonic() < deadline:
        time.sleep(0.02)
    (entry,) = site.entries()

    assert (entry["effect"], entry["answered"], entry["status"]) == ("deal 1 added", False, 200)


def test_an_answer_does_not_wait_for_acknowledgements(site: Site) -> None:
    """With Nagle's delay on the listener every answer takes 40 ms: 4 s for this many."""
    began = time.monotonic()
    for n in range(100):
        site.add(f"o-{n}")

    assert time.monotonic() - began < 3
