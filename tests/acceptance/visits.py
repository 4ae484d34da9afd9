"""Systems that tests are lent, one after the other, and what they leave behind.

Beside conftest.py, not in it: pytest loads that under a name of its own, so that whoever imported from
it would have a second copy.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from acceptance.system import QUICK, RATE, Portal, System

from sandbox.stack import Stack

LOGS = pytest.StashKey()
PASSED = pytest.StashKey[bool]()

_orders = count(1)


def new_order() -> str:
    return f"{next(_orders):04d}"


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
