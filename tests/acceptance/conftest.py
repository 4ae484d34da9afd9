"""The systems that acceptance tests run against: real processes, short waits."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from acceptance.system import FAST_PORTAL, QUICK, RATE, Portal, System

from sandbox.stack import Stack

LAST_LINES = 3_000  # characters of a log that a failed test shows

_orders = count(1)


def new_order() -> str:
    return f"{next(_orders):04d}"


@pytest.fixture
def order() -> str:
    """The id of an order, or of a user, that nobody has used before."""
    return f"order-{new_order()}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One portal for all systems: they use orders of their own."""
    stack = Stack(tmp_path_factory.mktemp("portal"))
    stack.start_portal(*FAST_PORTAL)
    yield stack
    stack.stop(signal.SIGKILL, keep_files=True)


@pytest.fixture(scope="session")
def staffed_office(site: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """What `office` lends to one test after the other."""
    with opened(tmp_path_factory.mktemp("office"), site) as system:
        system.caller  # noqa: B018 - it starts beside the worker
        system.worker()
        yield system


@pytest.fixture(scope="session")
def unstaffed_office(site: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """What `empty_office` lends to one test after the other."""
    with opened(tmp_path_factory.mktemp("empty"), site) as system:
        yield system


@pytest.fixture
def office(staffed_office: System, request: pytest.FixtureRequest) -> Iterator[System]:
    """A system with a worker on duty. Every test leaves it as it was."""
    yield from visited(staffed_office, request)


@pytest.fixture
def empty_office(unstaffed_office: System, request: pytest.FixtureRequest) -> Iterator[System]:
    """A system without a worker; those that a test starts end with it."""
    yield from visited(unstaffed_office, request)
    for process in unstaffed_office.stack.processes:
        process.kill()


@contextmanager
def opened(folder: Path, site: Stack, **env: str) -> Iterator[System]:
    """Run a system beside the one portal, with a password on its Redis."""
    shared = {name: site.env[name] for name in ("BITRIX_WEBHOOK_URL", "BITRIX_APPLICATION_TOKEN")}
    stack = Stack(folder, env={**QUICK, **RATE, **shared, **env})
    stack.ports["api"] = site.ports["api"]  # where the portal's own webhooks go
    stack.redis.password = secrets.token_urlsafe(12)
    system = System(stack, Portal(site.url("portal"), site.env["BITRIX_WEBHOOK_URL"]))
    try:
        yield system
    finally:
        system.end()
        stack.stop(signal.SIGKILL, keep_files=True)


def visited(system: System, request: pytest.FixtureRequest) -> Iterator[System]:
    """Let a test have the system; nothing may wait, run or be doubled when it leaves."""
    system.portal.begin()
    request.node.stash[LOGS] = system.stack.folder
    yield system
    system.portal.disarm()
    if request.node.stash.get(PASSED, False):
        system.calm()
        assert not any(system.portal.summary()["duplicates"].values())
    system.clear()


LOGS = pytest.StashKey()
PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call):
    """Show the ends of the logs beside a failure."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    if report.failed and LOGS in item.stash:
        for log in sorted(item.stash[LOGS].glob("*.log")):
            report.sections.append((log.name, log.read_text(errors="replace")[-LAST_LINES:]))
    return report
