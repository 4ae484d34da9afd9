"""Servers that an outage is made of: PostgreSQL, and Redis with a replica and three Sentinels."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from bench.tools import wait
from sandbox.redis_server import RedisServer, free_port

MASTER = "mymaster"
DOWN_AFTER = 2000  # ms without an answer after which a Sentinel believes the master dead


@dataclass
class Postgres:
    """A server that keeps its word (fsync), on TCP."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise FileNotFoundError("PostgreSQL is not installed (apt install postgresql)")
        self._binaries = found[-1]
        self.folder.mkdir()
        if os.getuid() == 0:  # it refuses to run as root
            self.folder.parent.chmod(0o755)
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-A", "trust", "-U", "postgres")
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/8 trust\n")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{self.host}:{self.port}/postgres"

    def start(self) -> None:
        listen = f"-c listen_addresses='{self.host}' -c unix_socket_directories='{self.folder}'"
        options = f"{listen} -c max_connections=200 -p {self.port}"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def kill(self) -> None:
        """Stop it as a crash would."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        place = ["-D", str(self.folder / "data")]
        subprocess.run(
            [*as_postgres, str(self._binaries / program), *place, *arguments],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


@dataclass
class Sentinels:
    """A master, a replica, and three Sentinels that watch them."""

    folder: Path
    servers: list[RedisServer] = field(default_factory=list)
    watchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def start(self) -> None:
        for name in ("first", "second"):
            (self.folder / name).mkdir()
            of = (*("--replicaof", "127.0.0.1"), str(self.servers[0].port)) if self.servers else ()
            self.servers.append(RedisServer(self.folder / name).start("--appendonly", "yes", *of))
        for number in range(3):
            self._watch(number)
        wait(self._in_step, within=30)

    def _watch(self, number: int) -> None:
        place = self.folder / f"sentinel-{number}"
        place.mkdir()
        self.ports.append(free_port())
        file = place / "sentinel.conf"
        file.write_text(
            f"port {self.ports[-1]}\nbind 127.0.0.1\ndir {place}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER}\n"
            f"sentinel failover-timeout {MASTER} 10000\n"
        )
        command = ["redis-sentinel", str(file)]
        with (place / "log").open("wb") as log:
            self.watchers.append(subprocess.Popen(command, stdout=log, stderr=log))

    @property
    def url(self) -> str:
        return ";".join(f"sentinel://127.0.0.1:{port}" for port in self.ports) + "/0"

    def master(self) -> int | None:
        """Return the port of whom the first Sentinel believes to be the master."""
        with suppress(RedisError), Redis(port=self.ports[0], decode_responses=True) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(MASTER)[1])
        return None

    def _in_step(self) -> bool:
        with suppress(RedisError), Redis(port=self.ports[0], decode_responses=True) as sentinel:
            known = sentinel.sentinel_master(MASTER)
            return known["num-slaves"] == 1 and known["num-other-sentinels"] == 2
        return False

    def fail_over(self) -> None:
        """Kill the master, and wait for another; then start it again, as what it is told to be."""
        old = next(server for server in self.servers if server.port == self.master())
        old.stop()
        wait(lambda: self.master() not in {None, old.port}, within=60)
        time.sleep(5.0)  # a supervisor takes a while, too
        old.start("--appendonly", "yes")

    def stop(self) -> None:
        for watcher in self.watchers:
            watcher.kill()
            watcher.wait()
        for server in self.servers:
            server.stop()


@contextmanager
def postgres(folder: Path, host: str = "127.0.0.1") -> Iterator[Postgres]:
    server = Postgres(folder / "postgres", host)
    server.start()
    try:
        yield server
    finally:
        with suppress(subprocess.CalledProcessError):
            server.kill()
