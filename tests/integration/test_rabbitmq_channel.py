"""What a worker on RabbitMQ knows of its jobs: those that outlive a connection, and suspects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import spec
from amqp.basic_message import Message
from redis import Redis

from config.settings import settings
from reliability import connection, keys
from reliability.courier import Courier
from reliability.deaths import deaths
from reliability.envelopes import DIED
from reliability.rabbitmq import Channel
from reliability.solitude import Solitude

HEADERS = {"id": "job", "task": "bitrix.create_deal"}
JOB = Message("", application_headers=HEADERS)
SUSPECT = Message("", application_headers=HEADERS | {DIED: 2})
RUN = ("job", 0)


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
def our_redis(redis_server, redis_client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    _forget()
    yield redis_client
    monkeypatch.undo()
    _forget()


@pytest.fixture
def orphans(our_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> WhileLookedAt:
    orphans = WhileLookedAt()
    monkeypatch.setattr(Channel, "orphans", orphans)
    return orphans


def _forget() -> None:
    """Let this process read its settings anew."""
    settings.cache_clear()
    connection.redis_bytes.cache_clear()


@dataclass
class Errands:
    """What a courier was asked for."""

    asked: list[str] = field(default_factory=list)

    def __getattr__(self, errand: str) -> Callable[..., None]:
        return lambda *_: self.asked.append(errand)


def channel(wire: Wire) -> Channel:
    """A channel without a courier: what is asked of that is written down."""
    opened, errands = Channel(wire), Errands()
    opened._keep = lambda: errands
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


# -- suspects


def ends(consuming: Channel) -> None:
    consuming.basic_ack(1)


def goes_back(consuming: Channel) -> None:
    consuming.basic_reject(1, requeue=True)


@pytest.mark.parametrize(
    ("message", "alone", "leave", "asked"),
    [
        (SUSPECT, False, lambda _: None, ["set_aside"]),
        (SUSPECT, True, ends, ["dismiss"]),
        (SUSPECT, True, goes_back, ["copy"]),
        (JOB, False, ends, []),
    ],
    ids=["came by its queue", "ended", "goes back", "no suspect"],
)
def test_a_suspect_is_one_until_it_has_ended(our_redis, message, alone, leave, asked):
    consuming = channel(Wire())
    consuming._take("bitrix", 1, message, lambda: None, alone=alone)
    leave(consuming)

    assert consuming._keep().asked == asked


def test_a_suspect_that_waits_aside_is_answered_and_still_one(our_redis):
    consuming = channel(Wire())
    consuming._take("bitrix", 1, SUSPECT, lambda: None)
    consuming.basic_ack(1)  # as the courier does when its copy is in the quarantine

    assert consuming._keep().asked == ["set_aside"]


@pytest.mark.parametrize(
    ("waiting", "run_by", "known"),
    [(0, None, []), (1, None, [RUN]), (0, "another worker", [RUN])],
    ids=["ended unseen", "waits", "is run"],
)
def test_who_has_ended_in_a_worker_that_could_not_say_so_is_no_suspect(
    our_redis, monkeypatch, waiting, run_by, known
):
    client = SimpleNamespace(clone=lambda **_: None)
    consuming = SimpleNamespace(
        connection=SimpleNamespace(client=client), consumed=["bitrix"], soon=lambda _: None
    )
    consuming.solitude = Solitude(consuming)
    courier = Courier(consuming)
    monkeypatch.setattr(courier, "_suspects", lambda *_: waiting)
    if run_by:
        our_redis.set(keys.TURN, run_by)
    deaths().accuse(RUN, "bitrix", "{}")
    courier._see_to_suspects(None)

    assert deaths().accused(["bitrix"]) == {"bitrix": known}
