"""A RabbitMQ node of our own, for the tests and the measurements: Debian's, in its own folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from sandbox.redis_server import free_port

PATIENCE = 60.0  # s; Erlang takes six to start, and the machine may be busy
# Debian's script on PATH changes to the user rabbitmq; the one behind it runs as whoever calls it.
SCRIPTS = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")


def rabbitmq_binary() -> str | None:
    """Return how to start RabbitMQ; None if it is not installed."""
    return next((found for name in SCRIPTS if (found := shutil.which(name))), None)


@dataclass
class RabbitServer:
    """A node in *folder*; a restart keeps its ports and its data."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._distribution, self._names = free_port(), free_port()

    @property
    def url(self) -> str:
        """Where it answers; the guest may come from loopback only."""
        return f"amqp://guest:guest@{self.host}:{self.port}//"

    def start(self) -> RabbitServer:
        """Start it and wait until it takes connections."""
        with (self.folder / "rabbitmq.log").open("ab") as log:
            self.process = subprocess.Popen(
                [rabbitmq_binary() or SCRIPTS[0]],
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = (self.folder / "rabbitmq.log").read_text(errors="replace")[-600:]
                raise RuntimeError(f"RabbitMQ does not start; its log ends with:\n{last}")
            time.sleep(0.05)
        return self

    def drop_connections(self) -> None:
        """End all connections, as a load balancer or a network would."""
        tool = Path(rabbitmq_binary() or SCRIPTS[0]).with_name("rabbitmqctl")
        subprocess.run(
            [str(tool), "close_all_connections", "a drill"],
            env=self._env(),
            capture_output=True,
            check=True,
        )

    def kill(self) -> None:
        """End the node at once, as a crash would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End the node and what it has started: Erlang's own name server stays behind else."""
        self.kill()
        if epmd := shutil.which("epmd"):
            subprocess.run([epmd, "-kill"], env=self._env(), capture_output=True, check=False)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=2.0) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(probe.recv(1))  # not before it has booted
        except OSError:
            return False

    def _env(self) -> dict[str, str]:
        home = self.folder / "rabbitmq"
        home.mkdir(exist_ok=True)
        return {
            **os.environ,
            "HOME": str(home),  # where Erlang keeps the cookie of its nodes
            "RABBITMQ_NODENAME": f"perennial-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",  # it may be ended before it misses its node
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(home / "none"),
        }
