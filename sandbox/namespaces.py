"""Hosts of our own on one machine: network namespaces with a cable to a bridge, which can be cut.

Needs root. Names begin with `per-` and the number of the network, which is in its addresses, too:
what a killed run leaves behind can be told, and is in nobody's way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

NUMBERS = 250  # networks that can be at a time: 10.213.0.0/24 and so on


class NoNamespacesError(RuntimeError):
    """None can be made on this machine; the message says why."""


@dataclass
class Network:
    """A bridge, whose address all hosts reach, and the hosts."""

    number: int
    hosts: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the bridge is called."""
        return f"per-{self.number}"

    @property
    def net(self) -> str:
        """What all its addresses begin with."""
        return f"10.213.{self.number}"

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

    def unheard(self, host: str, port: int) -> int:
        """Return the bytes that *host* still tries to send to this *port*."""
        look = ["ss", "-Htn", "state", "connected", "dport", "=", f":{port}"]
        rows = _run(*self.command(host, look)).splitlines()
        return sum(int(row.split()[2]) for row in rows)

    def up(self) -> None:
        """Give the bridge its address, and the network its first host."""
        _ip("addr", "add", f"{self.address}/24", "dev", self.name)
        _ip("link", "set", self.name, "up")
        self.add()  # so that whoever may make no namespaces hears it now

    def down(self) -> None:
        """Take everything away that is there."""
        for host in self.hosts:
            # The cable first: a namespace whose last words linger would keep it.
            for what in ("link", "netns"):
                with suppress(subprocess.CalledProcessError):
                    _ip(what, "del", host)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.name)


@contextmanager
def network() -> Iterator[Network]:
    """Make a network; it ends with the block.

    Raises:
        NoNamespacesError: not here.
    """
    if shutil.which("ip") is None:
        raise NoNamespacesError("there is no `ip` here (apt install iproute2)")
    made = _claimed()
    try:
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            raise _none(error) from None
        yield made
    finally:
        made.down()


def _claimed() -> Network:
    """Return a network with a number that nobody else has: its bridge says so."""
    for offset in range(NUMBERS):
        made = Network((os.getpid() + offset) % NUMBERS)
        # Without an address of its own it takes one of its cables', and another when that is cut.
        own = f"02:00:0a:d5:{made.number:02x}:01"
        try:
            _ip("link", "add", made.name, "address", own, "type", "bridge")
        except subprocess.CalledProcessError as error:
            if "File exists" not in error.stderr:
                raise _none(error) from None
        else:
            return made
    raise NoNamespacesError(f"{NUMBERS} networks of ours are here already (ip link del per-…)")


def _none(error: subprocess.CalledProcessError) -> NoNamespacesError:
    return NoNamespacesError(f"no network namespaces here: {error.stderr.strip()}")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
