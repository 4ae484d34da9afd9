"""The systems that acceptance tests run against: real processes, short waits."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from acceptance.system import FAST_PORTAL, System
from acceptance.visits import LOGS, PASSED, new_order, opened, visited

from sandbox.stack import Stack

LAST_LINES = 3_000  # characters of a log that a failed test shows


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
