"""The spool: where a dead letter waits on disk while Redis takes no writes."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

log = logging.getLogger(__name__)

READ_AT_ONCE = 1 << 20  # bytes; a spool may have grown for hours


class Backlog(NamedTuple):
    """How many letters wait in a spool, and how many lines of it were none."""

    waiting: int = 0
    torn: int = 0


class Spool:
    """One file of JSON lines in *folder*, shared by all processes of this machine.

    The folder is ours alone (0700), and so are its files (0600): letters hold what users sent.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "dead-letters.jsonl"
        self.corrupt = folder / "dead-letters.corrupt"
        self._rest = folder / "dead-letters.rest"
        self._lock = folder / "lock"  # of its own, because draining replaces the file
        self._folder = folder

    def append(self, line: str) -> None:
        """Write one line; when this returns it is on the disk.

        Raises:
            OSError: the disk is full or broken. Nothing of the line is left in the file.
        """
        with self._locked():
            _append(self.file, line.encode())
            _sync(self._folder)

    def drain(self, bury: Callable[[str], object]) -> int:
        """Give every line to *bury* and forget those it took; return how many.

        A line that Redis refuses stays; one that is no letter (ValueError) is kept in `corrupt`.
        Burying twice must do no harm: a crash in here leaves the whole file for the next time.
        """
        if not self.waiting():
            return 0
        with self._locked(), suppress(FileNotFoundError):  # another worker was faster
            buried, kept = self._sift(bury)
            if kept:
                self._rest.replace(self.file)
            else:
                self.file.unlink()
                self._rest.unlink()
            _sync(self._folder)
            log.warning("[DLQ] %d letters drained from the spool, %d stay", buried, kept)
            return buried
        return 0

    def waiting(self) -> bool:
        """Whether anything waits here."""
        return self.file.exists()

    def backlog(self) -> Backlog:
        """Count what lies here."""
        return Backlog(_lines(self.file), _lines(self.corrupt))

    def _sift(self, bury: Callable[[str], object]) -> tuple[int, int]:
        buried = kept = 0
        unreachable = False
        with self.file.open("rb") as lines, os.fdopen(_open(self._rest, os.O_TRUNC), "wb") as rest:
            for line in (line.rstrip(b"\n") for line in lines if line.strip()):
                try:
                    if not unreachable:
                        bury(line.decode())
                        buried += 1
                        continue
                except RedisError as error:
                    # A refusal is quick, and the next letter may fit; an absent Redis costs a
                    # timeout for each letter, and others wait for the lock.
                    unreachable = isinstance(error, RedisConnectionError | RedisTimeoutError)
                except ValueError:
                    log.exception("[DLQ] a torn line of the spool is kept in %s", self.corrupt)
                    _append(self.corrupt, line)
                    continue
                rest.write(line + b"\n")
                kept += 1
            rest.flush()
            os.fsync(rest.fileno())
        return buried, kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _open(self._lock)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _lines(path: Path) -> int:
    with suppress(FileNotFoundError, NotADirectoryError), path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(READ_AT_ONCE), b""))
    return 0


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | flags, 0o600)


def _append(path: Path, line: bytes) -> None:
    descriptor = _open(path)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        left = memoryview((b"\n" if torn else b"") + line + b"\n")
        try:
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make a file's coming and going as lasting as its contents."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
