"""What a channel to RabbitMQ knows of jobs that have outlived their connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from amqp import spec
from amqp.basic_message import Message

from config.settings import settings
from reliability import connection
from reliability.rabbitmq import Channel

JOB = Message("", application_headers={"id": "job", "task": "bitrix.create_deal"})


class Wire:
    """As much of a connection as a channel needs; what is sent ends here."""

    confirm_publish = False
    loop = None

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self._used_channel_ids: list[int] = []
        self.acknowledged = 0

    def _get_free_channel_id(self) -> int:
        return 1

    def frame_writer(self, kind: int, channel: int, method: tuple[int, int], *_: Any) -> None:
        self.acknowledged += method == spec.Basic.Ack


class WhileLookedAt(dict):
    """The orphans; *meanwhile* happens in another thread while somebody looks for one."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.meanwhile = lambda: None

    def __contains__(self, run: object) -> bool:
        known = super().__contains__(run)
        thread = threading.Thread(target=self.meanwhile)
        thread.start()
        thread.join(timeout=0.2)  # time enough to come to a wrong answer
        self.threads.append(thread)
        return known


@pytest.fixture
def orphans(redis_server, redis_client, monkeypatch: pytest.MonkeyPatch) -> Iterator[WhileLookedAt]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    _forget()
    orphans = WhileLookedAt()
    monkeypatch.setattr(Channel, "orphans", orphans)
    yield orphans
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    """Let this process read its settings anew."""
    settings.cache_clear()
    connection.redis_bytes.cache_clear()


def channel(wire: Wire) -> Channel:
    """A channel without a courier: nothing here is an errand."""
    opened = Channel(wire)
    opened._keep = lambda: None
    return opened


@pytest.mark.parametrize("ends", ["while", "after"])
def test_a_job_that_ends_about_when_it_comes_again_is_acknowledged(orphans, ends):
    lost, found, runs = Wire(), Wire(), []
    first, second = channel(lost), channel(found)
    first._take("bitrix", 1, JOB, lambda: runs.append(1))
    first.collect()
    if ends == "while":
        orphans.meanwhile = lambda: first.basic_ack(1)
    second._take("bitrix", 2, JOB, lambda: runs.append(2))
    for thread in orphans.threads:
        thread.join()
    if ends == "after":
        first.basic_ack(1)

    assert runs == [1]
    assert (lost.acknowledged, found.acknowledged) == (0, 1)
    assert second.idle
