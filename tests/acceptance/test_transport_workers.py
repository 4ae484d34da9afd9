"""Real workers on our transport: killed, cut off, stopped, starved; every job runs, once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from celery import Celery, chain, chord, group
from fixtures.redis_servers import RedisServer
from fixtures.waiting import PATIENCE, eventually
from redis import Redis
from redis.exceptions import RedisError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PREFIX = "app:"
PASSWORD = "s3cr3t-of-the-broker"


@dataclass
class Worker:
    """A `celery worker` (or beat) process of the bare application."""

    log: Path
    process: subprocess.Popen[bytes]

    def text(self):
        return self.log.read_text(errors="replace")

    def ready(self):
        eventually(lambda: " ready." in self.text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        return self

    def send(self, number):
        self.process.send_signal(number)

    def end(self, number=signal.SIGKILL):
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)  # with its pool
            else:
                self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@dataclass
class Stack:
    """One server, the processes that use it, and the application as a publisher sees it."""

    server: RedisServer
    folder: Path
    url: str
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self):
        self.redis = self.server.client(**self.environment.pop("client", {}))
        self.records = self.server.client(db=1, **self.environment.pop("records", {}))

    def env(self):
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "BROKER": self.url,
            "RESULTS": "",
            "RECORDS": re.sub(r"/\d$", "/1", self.url),
            "OPTIONS": json.dumps({"visibility_timeout": 2.0} | self.options),
            "BEAT_FILE": str(self.folder / "beat"),
            **self.environment,
        }

    def start(self, *arguments, command="worker", **environment):
        log = self.folder / f"{len(self.workers)}.log"
        if command == "worker":
            arguments = ("-n", f"w{len(self.workers)}@here", "--without-mingle", *arguments)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "bare_app",
                    command,
                    "-l",
                    "INFO",
                    *arguments,
                ],
                env=self.env() | environment,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(Worker(log, process))
        return self.workers[-1]

    def worker(self, *arguments, **environment):
        return self.start(*arguments, **environment).ready()

    def app(self):
        """Return the application, as this process publishes with it."""
        env = self.env()
        app = Celery("publisher", broker=self.url, backend=env["RESULTS"] or None)
        app.conf.broker_transport = env.get("TRANSPORT", "reliability.transport:Transport")
        app.conf.broker_transport_options = {
            "global_keyprefix": PREFIX,
            **json.loads(env["OPTIONS"]),
        }
        app.conf.task_default_queue = "q"
        # Results of this process die after the server has.
        app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
        return app

    def started(self, name):
        return [float(when) for when in self.records.lrange(f"started:{name}", 0, -1)]

    def ended(self, name):
        return [float(when) for when in self.records.lrange(f"ended:{name}", 0, -1)]

    def runs(self):
        return {
            key.removeprefix("started:"): self.records.llen(key)
            for key in self.records.keys("started:*")
        }

    def queued(self, queue="q"):
        return self.redis.llen(PREFIX + queue)

    def unacked(self):
        return self.redis.hlen(PREFIX + "unacked")

    def parked(self):
        return self.redis.zcard(PREFIX + "perennial:parked:due")

    def stop(self):
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.end()


@pytest.fixture
def stack(redis_server, tmp_path):
    with redis_server.client() as client:
        client.flushall()
    stack = Stack(redis_server, tmp_path, redis_server.url)
    yield stack
    stack.stop()


def send(app, name, *args, **options):
    return app.send_task("run", (name, *args), **options)


# -- nothing is lost, nothing waits in a worker


def test_no_job_is_lost_when_workers_are_killed(stack):
    app = stack.app()
    worker = stack.worker("-P", "threads", "-c", "8")
    for attempt in range(2):
        for number in range(60):
            send(app, f"{attempt}-{number}", 0.02)
        worker.end(signal.SIGKILL)
        worker = stack.worker("-P", "threads", "-c", "8")

    eventually(lambda: len(stack.runs()) == 120)
    eventually(lambda: stack.unacked() == stack.queued() == 0)


def test_every_kind_of_delay_survives_a_kill_and_runs_once_in_time(stack):
    stack.environment["RESULTS"] = stack.url.replace("/0", "/2")  # a chord needs them
    app = stack.app()
    worker = stack.worker("-P", "threads", "-c", "4")
    delay = 3
    sent = time.time()

    def run(name):
        return app.signature("run", (name,), immutable=True)

    send(app, "countdown", countdown=delay)
    app.send_task("again", ("retry", delay))
    chain(run("link 1"), run("link 2").set(countdown=delay)).apply_async()
    group(run(f"member {n}") for n in range(2)).apply_async(countdown=delay)
    chord([run("head").set(countdown=delay)], app.signature("then", ("body",))).delay()
    delayed = ["countdown", "retry", "link 2", "member 0", "member 1", "head", "body"]
    eventually(lambda: stack.parked() == 6)
    eventually(lambda: stack.unacked() == 0)
    worker.end(signal.SIGKILL)
    stack.worker("-P", "prefork", "-c", "2")
    due = max(sent + delay, time.time())
    eventually(lambda: all(stack.started(name) for name in delayed))
    eventually(lambda: stack.unacked() == stack.parked() == 0)

    assert set(stack.runs().values()) == {1}
    assert min(stack.started(name)[0] for name in delayed) >= sent + delay
    assert max(stack.started(name)[0] for name in delayed) < due + 8


def test_a_schedule_entry_with_a_countdown_is_parked(stack):
    stack.start(command="beat")
    eventually(stack.parked)
    assert stack.runs() == {}
    stack.worker("-P", "solo")

    eventually(lambda: stack.started("beat"))


# -- nothing runs beside itself


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_cut_connection_does_not_run_jobs_beside_themselves(stack, pool):
    stack.worker("-P", pool, "-c", "2")
    app = stack.app()
    send(app, "long", 3.5)
    eventually(lambda: stack.started("long"))
    for kind in ("normal", "pubsub"):
        stack.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    send(app, "short")
    eventually(lambda: stack.ended("short"))
    eventually(lambda: stack.ended("long"))
    eventually(lambda: stack.unacked() == stack.queued() == 0)

    assert stack.runs() == {"long": 1, "short": 1}


def test_a_worker_survives_a_restart_of_its_server(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    server = RedisServer(folder).start("--appendonly", "yes", "--appendfsync", "always")
    stack = Stack(server, tmp_path, server.url)
    try:
        worker = stack.worker("-P", "threads", "-c", "2")
        app = stack.app()
        send(app, "long", 5.5)
        send(app, "later", countdown=5)
        eventually(lambda: stack.started("long"))
        eventually(lambda: stack.unacked() == stack.parked() == 1)
        server.stop()
        server.start("--appendonly", "yes", "--appendfsync", "always")
        eventually(lambda: stack.ended("later"))
        eventually(lambda: stack.ended("long"))
        eventually(lambda: stack.unacked() == 0)

        assert worker.process.poll() is None
        assert stack.runs() == {"long": 1, "later": 1}
    finally:
        stack.stop()
        server.stop()


def test_a_job_longer_than_the_timeout_runs_once_in_every_pool(stack):
    stack.options["visibility_timeout"] = 1.5
    pools = ("threads", "prefork", "solo")
    for pool in pools:
        stack.start("-P", pool, "-c", "1", "-Q", pool)
    for worker in stack.workers:
        worker.ready()
    app = stack.app()
    for pool in pools:
        send(app, pool, 4, queue=pool, routing_key=pool)
    eventually(lambda: len(stack.runs()) == 3)
    idle = stack.worker("-P", "threads", "-c", "3", "-Q", ",".join(pools))
    stack.workers[0].send(signal.SIGTERM)  # and while a worker waits for its last job
    eventually(lambda: all(stack.ended(pool) for pool in pools))
    eventually(lambda: stack.unacked() == 0)

    assert stack.runs() == dict.fromkeys(pools, 1)
    assert "giving" not in idle.text()


# -- leaving


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_warm_shutdown_finishes_what_runs_and_returns_the_rest(stack, pool):
    worker = stack.worker("-P", pool, "-c", "1", MULTIPLIER="4")
    app = stack.app()
    send(app, "running", 4)
    for number in range(3):
        send(app, f"waiting {number}")
    eventually(lambda: stack.started("running") and stack.unacked() == 4)

    assert worker.end(signal.SIGTERM) == 0
    assert len(stack.ended("running")) == 1
    assert stack.unacked() == 0
    assert stack.queued() == 4 - len(stack.runs())

    stack.worker("-P", "threads", "-c", "1")
    eventually(lambda: stack.unacked() == stack.queued() == 0)

    assert stack.runs() == {"running": 1, "waiting 0": 1, "waiting 1": 1, "waiting 2": 1}


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_cold_shutdown_returns_everything_at_once(stack, pool):
    worker = stack.worker("-P", pool, "-c", "1")
    send(stack.app(), "cut", 3)
    eventually(lambda: stack.started("cut"))
    worker.end(signal.SIGQUIT)

    assert stack.unacked() == 0
    assert stack.queued() + len(stack.ended("cut")) >= 1
    assert stack.queued() == 1 or pool == "threads"  # a thread cannot be cut off


# -- operating


def test_control_commands_work_and_leave_nothing_behind(own_redis, tmp_path):
    with own_redis.client() as client:
        client.config_set("requirepass", PASSWORD)
    url = own_redis.url.replace("redis://", f"redis://:{PASSWORD}@")
    login = {"client": {"password": PASSWORD}, "records": {"password": PASSWORD}}
    stack = Stack(own_redis, tmp_path, url, environment=login)
    try:
        worker = stack.worker("-P", "threads", "-c", "2", "-Q", "q", "-E")
        control = stack.app().control
        app = stack.app()
        to = {"destination": ["w0@here"], "reply": True, "timeout": PATIENCE}
        assert control.broadcast("ping", **to) == [{"w0@here": {"ok": "pong"}}]

        keys = set(stack.redis.keys("*"))
        for _ in range(5):
            assert control.inspect(["w0@here"], timeout=PATIENCE).active_queues()
        bells = [key for key in stack.redis.keys("*") if "bell" in key]

        assert set(stack.redis.keys("*")) - keys <= set(bells) | {PREFIX + "perennial:beat"}
        assert all(0 < stack.redis.ttl(bell) <= 60 for bell in bells)
        assert not [key for key in stack.redis.keys("*") if "reply" in key and key not in keys]

        control.pool_grow(2, **to)
        for number in range(4):
            send(app, f"grown {number}", 0.5)
        eventually(lambda: len(stack.runs()) == 4)

        control.cancel_consumer("q", **to)
        send(app, "unheard")
        time.sleep(0.2)  # what is waited for is that nobody takes it
        assert stack.queued() == 1
        control.add_consumer("q", **to)
        eventually(lambda: stack.ended("unheard"))

        revoked = send(app, "revoked", countdown=1.5)
        control.revoke(revoked.id, **to)
        send(app, "kept", countdown=1.5)
        eventually(lambda: stack.ended("kept"))
        eventually(lambda: stack.unacked() == stack.parked() == 0)
        assert stack.started("revoked") == []

        control.cancel_consumer("q", **to)
        eventually(lambda: stack.unacked() == 0)
        send(app, "purged")
        assert app.control.purge() == 1
        assert not [key for key in stack.redis.keys("*") if not key.startswith(PREFIX)]

        stack.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda: worker.text().count("Connected to") >= 2)
        assert PASSWORD not in worker.text()
    finally:
        stack.stop()


def test_an_idle_worker_asks_little(stack):
    stack.worker(
        "-P", "threads", "-c", "2", "-Q", "q,other", "--without-heartbeat", "--without-gossip"
    )
    eventually(lambda: stack.redis.exists(PREFIX + "perennial:beat"))
    began = time.monotonic()
    stack.redis.config_resetstat()
    eventually(lambda: time.monotonic() > began + 3)
    stats = stack.redis.info("commandstats")
    seconds = time.monotonic() - began
    commands = sum(
        stats.get(f"cmdstat_{c}", {}).get("calls", 0) for c in ("brpop", "evalsha", "eval")
    )

    # a nap and a visit a second, and the beats: five in a visibility timeout of 2 s
    assert 0 < commands <= seconds * (2 + 5 / 2) + 4


def test_the_worker_speaks_tls(tmp_path, own_redis):
    certificate(tmp_path)
    folder = tmp_path / "tls"
    folder.mkdir()
    tls = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem", "cert.pem")]
    server = RedisServer(folder)
    port = own_redis.port + 1
    try:
        server.start(
            *(part for pair in zip(tls, files, strict=True) for part in pair),
            *("--tls-port", str(port), "--tls-auth-clients", "no"),
        )
    except RuntimeError:
        pytest.skip("this redis-server is built without TLS")
    stack = Stack(
        server,
        tmp_path,
        f"rediss://127.0.0.1:{port}/0",
        environment={"CA": files[0], "RECORDS": server.url[:-1] + "1"},
    )
    try:
        app = stack.app()
        app.conf.broker_use_ssl = {"ssl_cert_reqs": "required", "ssl_ca_certs": files[0], "ssl_check_hostname": False}  # fmt: skip
        worker = stack.worker("-P", "solo")
        send(app, "secret")
        eventually(lambda: stack.ended("secret"))
        listening = {row["laddr"].rsplit(":", 1)[1] for row in stack.redis.client_list() if row["name"] != "x" and row["cmd"] in ("brpop", "evalsha", "eval", "psubscribe")}  # fmt: skip

        assert listening == {str(port)}
        assert worker.process.poll() is None
    finally:
        stack.stop()
        server.stop()


def certificate(folder):
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_a_failover_of_the_sentinels_loses_no_job(tmp_path):
    sentinel_binary = shutil.which("redis-sentinel")
    if not sentinel_binary:
        missing = "redis-sentinel is not installed (apt install redis-sentinel)"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(missing)
    servers = []
    for name in ("master", "replica"):
        (tmp_path / name).mkdir()
        servers.append(RedisServer(tmp_path / name).start())
    master, replica = servers
    with replica.client() as client:
        client.replicaof("127.0.0.1", master.port)
        eventually(lambda: client.info("replication")["master_link_status"] == "up")
    watch = (
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 2\n"
        "sentinel down-after-milliseconds mymaster 500\n"
        "sentinel failover-timeout mymaster 3000\n"
    )
    sentinels = []
    for number in range(3):
        folder = tmp_path / f"sentinel-{number}"
        folder.mkdir()
        sentinels.append(Sentinel.start(sentinel_binary, folder, watch))
    records = RedisServer(tmp_path).start()
    url = ";".join(f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    stack = Stack(
        records,
        tmp_path,
        url,
        options={"master_name": "mymaster", "socket_timeout": 5, "socket_connect_timeout": 1},
        environment={
            "TRANSPORT": "reliability.transport:SentinelTransport",
            "RECORDS": records.url[:-1] + "1",
        },
    )
    try:
        eventually(lambda: all(sentinel.agrees() for sentinel in sentinels))
        stack.worker("-P", "threads", "-c", "2")
        app = stack.app()
        send(app, "before")
        eventually(lambda: stack.ended("before"))
        send(app, "during", 6)
        send(app, "parked", countdown=6)
        eventually(lambda: stack.started("during"))
        # A write before the failover is replicated in its own time; wait for ours.
        eventually(lambda: ask(replica, "ZCARD", PREFIX + "perennial:parked:due") == 1)
        master.stop()
        eventually(lambda: stack.ended("during") and stack.ended("parked"))
        eventually(lambda: ask(replica, "HLEN", PREFIX + "unacked") == 0)

        assert stack.runs() == {"before": 1, "during": 1, "parked": 1}
    finally:
        stack.stop()
        for server in (*sentinels, records, *servers):
            server.stop()


def ask(server, *command):
    """Return the answer on a new connection: a server drops all when its role changes."""
    with server.client() as client, suppress(RedisError):
        return client.execute_command(*command)


@dataclass
class Sentinel:
    """One Sentinel process in a folder of its own."""

    port: int
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, binary, folder, watch):
        port = RedisServer(folder).start()  # finds a free port
        number = port.port
        port.stop()
        settings = folder / "sentinel.conf"
        settings.write_text(f"port {number}\nbind 127.0.0.1\ndir {folder}\n{watch}")
        process = subprocess.Popen([binary, str(settings)], stdout=subprocess.DEVNULL)
        return cls(number, process)

    def agrees(self):
        with suppress(RedisError), Redis(port=self.port, decode_responses=True) as client:
            state = client.execute_command("SENTINEL", "MASTER", "mymaster")
            state = (
                state
                if isinstance(state, dict)
                else dict(zip(state[::2], state[1::2], strict=True))
            )
            return int(state["num-other-sentinels"]) == 2 and int(state["num-slaves"]) == 1
        return False

    def stop(self):
        self.process.kill()
        self.process.wait()
