"""The whole system as local processes: Redis, upstreams, shop, worker, beat, Flower and the API."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from sandbox.redis_server import RedisServer, free_port

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
NOTHING: Mapping[str, str] = {}
PATIENCE = 60.0  # seconds for a process to come up, or to go down when asked, on a busy machine


class NotReadyError(RuntimeError):
    """A process did not come up; the message says what its log says."""


@dataclass
class Process:
    """One process of ours, with its log in a file; ended by its own id."""

    name: str
    command: list[str]
    env: Mapping[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own: Ctrl-C is for us, and we stop it in its turn."""
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, how: signal.Signals = signal.SIGTERM, patience: float = PATIENCE) -> int | None:
        """Ask it to end, and end it; return how it ended, None if it was not running."""
        if self.running is None:
            return None
        if self.running.poll() is None:
            self.running.send_signal(how)
        try:
            code = self.running.wait(patience)
        except subprocess.TimeoutExpired:
            self.running.kill()
            code = self.running.wait()
        self.running = None
        return code

    def kill(self) -> None:
        """End it as a power cut would."""
        self.stop(signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.running is not None and self.running.poll() is None

    def wait_for(self, ready: Callable[[], T], what: str) -> T:
        """Return the first truthy answer of *ready*.

        Raises:
            NotReadyError: if it takes too long, or the process ends meanwhile.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if answer := ready():
                return answer
            if self.running is not None and self.running.poll() is not None:
                break
            time.sleep(0.05)
        last = self.log.read_text(errors="replace").strip()[-600:]
        raise NotReadyError(f"{self.name}: {what} is not there; its log ends with:\n{last}")

    def says(self, text: str, after: int = 0) -> bool:
        """Whether *text* stands in the log behind its first *after* bytes."""
        return text.encode() in self.log.read_bytes()[after:]


@dataclass
class Stack:
    """Everything, on ports of its own, with all its files in *folder*."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    celery_app: str = "tasks"
    host: str = "127.0.0.1"  # where our servers answer

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.redis = RedisServer(self.folder)
        names = ("portal", "kie", "telegram", "x", "shop", "api", "flower")
        self.ports = {name: free_port() for name in names}
        self.code = secrets.token_hex(8)
        self.admin_token = secrets.token_urlsafe(16)
        self.flower_login = f"flower:{secrets.token_urlsafe(9)}"
        no_proxy = f"127.0.0.1,localhost,{self.host}"
        defaults = {
            "DATABASE_URL": f"sqlite:///{self.folder / 'perennial.db'}",
            "SPOOL_DIR": str(self.folder / "spool"),
            "SHOP_DATABASE": str(self.folder / "shop.db"),
            "BITRIX_WEBHOOK_URL": f"{self.url('portal')}/rest/1/{self.code}/",
            "BITRIX_APPLICATION_TOKEN": secrets.token_hex(8),
            "KIE_BASE_URL": self.url("kie"),
            "KIE_API_KEY": secrets.token_hex(16),
            "KIE_WEBHOOK_HMAC_KEY": secrets.token_hex(16),
            "TELEGRAM_BASE_URL": self.url("telegram"),
            "TELEGRAM_BOT_TOKEN": f"{secrets.randbelow(10**9)}:{secrets.token_urlsafe(24)}",
            "TELEGRAM_WEBHOOK_SECRET": secrets.token_hex(16),
            "X_BASE_URL": self.url("x"),
            "X_CLIENT_ID": secrets.token_hex(12),
            "X_CLIENT_SECRET": secrets.token_hex(24),
            "CREDENTIALS_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
            "PUBLIC_URL": self.url("api"),
            "MEDIA_DIR": str(self.folder / "media"),
            "SUPPORT_CONTACT": "@perennial_help",
            "ADMIN_TOKEN": self.admin_token,
            "FLOWER_BASIC_AUTH": self.flower_login,
            "FLOWER_URL": self.url("flower"),
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,  # where both are set, this is the one that counts
        }
        self.env = defaults | self.env

    def url(self, name: str) -> str:
        """Return where one of our servers answers."""
        return f"http://{self.host}:{self.ports[name]}"

    def start_redis(self) -> None:
        """Start the embedded server with what production has: an append-only file, no eviction.

        After a `redis.stop()` it comes back on the same port, with its data.
        """
        self.redis.start("--appendonly", "yes", "--maxmemory-policy", "noeviction")
        self.env["REDIS_URL"] = self.redis.url

    def start_portal(self, *options: str) -> Process:
        """Start the Bitrix24 portal; it tells our API what changes in it."""
        return self._serve(
            "portal",
            [
                *(sys.executable, "-m", "sandbox.bitrix", "--port", str(self.ports["portal"])),
                *("--host", self.host),
                *("--code", self.code, "--journal", str(self.folder / "portal.jsonl")),
                *("--application-token", self.env["BITRIX_APPLICATION_TOKEN"]),
                *("--webhook-target", f"{self.url('api')}/webhooks/bitrix"),
                *options,
            ],
            "/_sandbox/summary",
        )

    def start_kie(self, *options: str) -> Process:
        """Start KIE.AI; it calls our API back when a video is made."""
        return self._serve(
            "kie",
            [
                *(sys.executable, "-m", "sandbox.kie", "--port", str(self.ports["kie"])),
                *("--key", self.env["KIE_API_KEY"]),
                *("--hmac-key", self.env["KIE_WEBHOOK_HMAC_KEY"]),
                *("--journal", str(self.folder / "kie.jsonl"), *options),
            ],
            "/_sandbox/summary",
        )

    def start_telegram(self, *options: str) -> Process:
        """Start the Bot API; it tells our API of pressed buttons."""
        return self._serve(
            "telegram",
            [
                *(sys.executable, "-m", "sandbox.telegram", "--port", str(self.ports["telegram"])),
                *("--token", self.env["TELEGRAM_BOT_TOKEN"]),
                *("--secret", self.env["TELEGRAM_WEBHOOK_SECRET"]),
                *("--webhook-target", f"{self.url('api')}/webhooks/telegram"),
                *("--journal", str(self.folder / "telegram.jsonl"), *options),
            ],
            "/_sandbox/summary",
        )

    def start_x(self, *options: str) -> Process:
        """Start the API of X; its users come by its control API."""
        return self._serve(
            "x",
            [
                *(sys.executable, "-m", "sandbox.x", "--port", str(self.ports["x"])),
                *("--client-id", self.env["X_CLIENT_ID"]),
                *("--client-secret", self.env["X_CLIENT_SECRET"]),
                *("--journal", str(self.folder / "x.jsonl"), *options),
            ],
            "/_sandbox/summary",
        )

    def start_shop(self) -> Process:
        """Start the sample application."""
        return self._serve("shop", self._uvicorn("shop", "--factory", "sandbox.shop:create_app"))

    def start_api(self) -> Process:
        """Start our own API."""
        return self._serve("api", self._uvicorn("api", "admin.api:app"), "/health")

    def start_flower(self) -> Process:
        """Start Flower."""
        port = f"--port={self.ports['flower']}"
        return self._serve("flower", [*self.celery(), "flower", port], "/healthcheck")

    def worker(
        self, name: str = "worker", *options: str, env: Mapping[str, str] = NOTHING
    ) -> Process:
        """Return a worker that is yet to be started; *env* is for it alone."""
        command = [*self.celery(), "worker", "-l", "INFO", "-n", f"{name}@%h", *options]
        return self.process(name, command, env)

    def start_worker(
        self, name: str = "worker", *options: str, env: Mapping[str, str] = NOTHING
    ) -> Process:
        """Start a worker, and wait until it takes jobs."""
        worker = self.worker(name, *options, env=env)
        begun = worker.log.stat().st_size if worker.log.exists() else 0
        worker.start()
        worker.wait_for(lambda: worker.says(" ready.", begun), "the word 'ready'")
        return worker

    def start_beat(self, name: str = "beat") -> Process:
        """Start a beat, which sends what is due by the clock; a second one does no harm."""
        beat = self.process(name, [*self.celery(), "beat", "-l", "INFO"])
        beat.start()
        beat.wait_for(lambda: beat.says("beat: Starting..."), "that it starts")
        return beat

    def operate(self, *command: str, told: str = "") -> subprocess.CompletedProcess[str]:
        """Carry out one of our own commands (`dlq ls`, …), *told* so on standard input."""
        return subprocess.run(
            [*self.celery(), *command],
            env={**os.environ, **self.env},
            cwd=ROOT,
            input=told,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def celery(self) -> list[str]:
        """Return the command that every sub-command of Celery begins with."""
        return [sys.executable, "-m", "celery", "-A", self.celery_app]

    def stop(self, how: signal.Signals = signal.SIGTERM, *, keep_files: bool = False) -> None:
        """Stop everything, the youngest first, Redis last."""
        for process in reversed(self.processes):
            process.stop(how)
        self.redis.stop()
        if not keep_files:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _uvicorn(self, name: str, *target: str) -> list[str]:
        port = str(self.ports[name])
        quiet = ["--no-access-log", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", "--port", port, *quiet, *target]

    def _serve(self, name: str, command: list[str], path: str = "/") -> Process:
        process = self.process(name, command)
        process.start()
        process.wait_for(lambda: answers(f"{self.url(name)}{path}"), f"an answer at {path}")
        return process

    def process(self, name: str, command: list[str], env: Mapping[str, str] = NOTHING) -> Process:
        """Return a process of this stack that is yet to be started; it ends with the stack."""
        process = Process(name, command, {**self.env, **env}, self.folder / f"{name}.log")
        self.processes.append(process)
        return process


def answers(url: str) -> bool:
    """Whether somebody answers there, whatever it says."""
    try:
        httpx.get(url, timeout=2.0, trust_env=False)
    except httpx.TransportError:
        return False
    return True
