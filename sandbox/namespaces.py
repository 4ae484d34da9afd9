"""Hosts of our own on one machine: network namespaces with a cable to a bridge, which can be cut.

Needs root. Names begin with `per-`, so that what a killed run leaves behind can be told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


class NoNamespacesError(RuntimeError):
    """None can be made on this machine; the message says why."""


@dataclass
class Network:
    """A bridge, whose address all hosts reach, and the hosts."""

    name: str = field(default_factory=lambda: f"per-{os.getpid() % 100_000}")
    net: str = field(default_factory=lambda: f"10.213.{os.getpid() % 250}")  # private; two may run
    hosts: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where the servers of this machine are, as the hosts see it."""
        return f"{self.net}.1"

    def add(self) -> str:
        """Return the name of another host."""
        number = len(self.hosts) + 1
        host = f"{self.name}-{number}"
        self.hosts.append(host)
        _ip("netns", "add", host)
        _ip("link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", host)
        _ip("link", "set", host, "master", self.name, "up")
        _ip("-n", host, "addr", "add", f"{self.net}.{number + 1}/24", "dev", "eth0")
        _ip("-n", host, "link", "set", "eth0", "up")
        _ip("-n", host, "link", "set", "lo", "up")
        return host

    def command(self, host: str, command: list[str]) -> list[str]:
        """Return *command*, to be run on *host*."""
        return ["ip", "netns", "exec", host, *command]

    def cut(self, host: str) -> None:
        """Let nothing through to or from *host*, without a word to anybody."""
        _ip("link", "set", host, "nomaster")

    def heal(self, host: str) -> None:
        """Let everything through again."""
        _ip("link", "set", host, "master", self.name)


@contextmanager
def network() -> Iterator[Network]:
    """Make a network; it ends with the block.

    Raises:
        NoNamespacesError: not here.
    """
    if shutil.which("ip") is None:
        raise NoNamespacesError("there is no `ip` here (apt install iproute2)")
    made = Network()
    try:
        try:
            _ip("link", "add", made.name, "type", "bridge")
            _ip("addr", "add", f"{made.address}/24", "dev", made.name)
            _ip("link", "set", made.name, "up")
            made.add()  # so that whoever may make no namespaces hears it now
        except subprocess.CalledProcessError as error:
            raise NoNamespacesError(f"no network namespaces here: {error.stderr.strip()}") from None
        yield made
    finally:
        for host in made.hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", host)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", made.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
