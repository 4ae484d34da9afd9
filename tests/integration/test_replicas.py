"""Where Redis has a replica, a job is accepted when that has it, too."""

from __future__ import annotations

import signal
import time

import pytest
from fixtures.brokers import PREFIX
from fixtures.waiting import eventually
from kombu import Connection, Producer
from kombu.exceptions import OperationalError

from sandbox.redis_server import RedisServer

OURS = "reliability.transport:Transport"


@pytest.fixture
def replica(own_redis: RedisServer, tmp_path):
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RedisServer(folder).start("--replicaof", "127.0.0.1", str(own_redis.port))
    with server.client() as client:
        eventually(lambda: client.info("replication")["master_link_status"] == "up")
    yield server
    if server.process:
        server.process.send_signal(signal.SIGCONT)
    server.stop()


@pytest.fixture
def connection(own_redis: RedisServer):
    options = {"global_keyprefix": PREFIX, "waits_for_replica": True}
    with Connection(own_redis.url, transport=OURS, transport_options=options) as connection:
        yield connection


def publish(connection: Connection) -> None:
    once = {"max_retries": 0}
    Producer(connection.default_channel, serializer="json").publish(
        "job", routing_key="q", retry=True, retry_policy=once
    )


def test_a_job_that_was_accepted_is_on_the_replica(connection, replica: RedisServer):
    publish(connection)
    with replica.client() as client:
        assert client.llen(f"{PREFIX}q") == 1


def test_a_job_that_no_replica_confirms_is_not_accepted(connection, replica: RedisServer):
    publish(connection)
    replica.process.send_signal(signal.SIGSTOP)

    with pytest.raises(OperationalError, match="no replica has confirmed"):
        publish(connection)


def test_a_master_without_replicas_takes_jobs_without_waiting_each_time(connection, own_redis):
    publish(connection)
    begun = time.monotonic()
    for _ in range(5):
        publish(connection)
    with own_redis.client() as client:
        assert client.llen(f"{PREFIX}q") == 6
    assert time.monotonic() - begun < 4.0  # a second for each, would they wait for a replica
