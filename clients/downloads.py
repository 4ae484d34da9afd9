"""How we fetch a finished video: whole, within limits, playable, or not at all.

The link is no API: no gate, no credential, and it may lead elsewhere.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import httpx

from classifiers import database
from classifiers.errors import Fatal, InternalError, JobError, RateLimited, ServiceUnavailable
from classifiers.http import classify_status, classify_transport, retry_after
from clients import mp4
from clients.http import USER_AGENT
from clients.process import PerProcess

SERVICE, OPERATION = "kie", "download"
DEADLINE = 120.0  # s for the whole file; a video of some MB takes seconds, a lease is longer
CONNECTING, SILENCE = 5.0, 15.0  # s; the file is there, so nobody has to think before it comes
# Fifteen seconds of 1080p are some tens of MB, and Telegram takes 50: more is no video of ours, and
# a few of them would fill the disk.
LARGEST = 200_000_000  # bytes
REDIRECTS = 3
AT_A_TIME = 32  # a slow host of files must not take every thread of a worker
PATIENCE = 1.0  # s to wait for a place among them
GONE = frozenset({403, 404, 410})  # UPSTREAMS 2.1: links expire; storage then says "forbidden"
PASSING = (RateLimited, ServiceUnavailable)
# What httpx calls a fault of the address; ours came with the answer of the upstream.
ASTRAY = (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL)
PART = ".part"


@PerProcess
def downloads() -> httpx.Client:
    """Return the client of this process."""
    return client()


def client(transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return a client for files; *transport* stands for the network."""
    return httpx.Client(
        transport=transport,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        follow_redirects=True,
        max_redirects=REDIRECTS,
        timeout=httpx.Timeout(SILENCE, connect=CONNECTING),
        limits=httpx.Limits(max_connections=None),  # as many as there are threads
    )


def fetch(url: str, to: Path, *, using: httpx.Client | None = None) -> bool:
    """Fetch a playable MP4; once *to* exists, it is complete. False if the link is gone.

    Raises:
        NetworkError, ServiceUnavailable, RateLimited: it may work later; the last one also where
            enough downloads are under way here.
        InternalError: what came is no video (`broken_file`), too large (`too_big`), or nothing.
        Fatal: the disk is full.
    """
    try:
        with _place(), _part(to) as part:
            if not _received(using or downloads(), url, part):
                return False
            _refuse_flaws(part)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(to)
    except OSError as error:
        raise _of_our_disk(error) from error
    return True


_places = threading.BoundedSemaphore(AT_A_TIME)


@contextmanager
def _place() -> Iterator[None]:
    if not _places.acquire(timeout=PATIENCE):
        raise RateLimited(
            f"{AT_A_TIME} downloads are under way", service=SERVICE, operation=OPERATION
        )
    try:
        yield
    finally:
        _places.release()


@contextmanager
def _part(to: Path) -> Iterator[BinaryIO]:
    """Lend a new file beside *to*; whatever is left of it afterwards is removed.

    A name of its own, because a job may run twice at a time. Those of dead workers go, too.
    """
    for left in to.parent.glob(f"*{PART}"):
        _remove_if_dead(left)
    part = to.with_name(f"{to.name}.{uuid4().hex}{PART}")
    try:
        with part.open("x+b") as file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def _remove_if_dead(part: Path) -> None:
    try:
        silent_for = time.time() - part.stat().st_mtime
    except FileNotFoundError:  # its own download is over
        return
    if silent_for > DEADLINE:
        part.unlink(missing_ok=True)


def _received(using: httpx.Client, url: str, part: BinaryIO) -> bool:
    """Write what the link leads to; False if that is nothing any more."""
    until = time.monotonic() + DEADLINE
    try:
        with using.stream("GET", url) as answer:
            if answer.status_code in GONE:
                return False
            _refuse_status(answer)
            _write(answer, part, until)
    except ASTRAY:
        # `from None`: httpx quotes the address.
        raise _broken("the link leads nowhere", "bad_link") from None
    except httpx.RequestError as error:
        raise classify_transport(error, safe=True, service=SERVICE, operation=OPERATION) from None
    return True


def _refuse_status(answer: httpx.Response) -> None:
    error = classify_status(
        answer.status_code,
        safe=True,
        service=SERVICE,
        operation=OPERATION,
        retry_after=retry_after(answer),
    )
    if error is None:
        return
    if isinstance(error, PASSING):
        raise error
    # A link has no credential, no plan and no settings that a person could mend.
    raise _broken(error.detail, error.code)


def _write(answer: httpx.Response, part: BinaryIO, until: float) -> None:
    size = 0
    for piece in answer.iter_bytes():
        size += len(piece)
        if size > LARGEST:
            raise _broken(f"it is larger than {LARGEST // 1_000_000} MB", "too_big")
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the file did not end")
        part.write(piece)


def _refuse_flaws(part: BinaryIO) -> None:
    flaw = mp4.flaw(part)
    if flaw:
        raise _broken(f"what came is no playable video: {flaw}", "broken_file")


def _broken(detail: str, code: str) -> InternalError:
    return InternalError(detail, service=SERVICE, operation=OPERATION, code=code)


def _of_our_disk(error: OSError) -> JobError:
    judged = database.classify(error)  # which knows when a disk is full
    kind = Fatal if isinstance(judged, Fatal) else InternalError
    why = error.strerror or type(error).__name__
    return kind(f"the video cannot be stored: {why}", service=SERVICE, operation=OPERATION)
