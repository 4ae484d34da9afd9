"""The files that the simulated KIE.AI has made: where each is, until when, and what is in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sandbox import mp4
from sandbox.journal import Entry
from sandbox.kie_tasks import Task, last_part
from sandbox.replies import Reply

_VIDEO = {"Content-Type": "video/mp4"}
_HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class File:
    """One address of a task's result; *expires* is a moment of the upstream's own clock."""

    task: Task
    expires: float

    def made(self, now: float) -> bool:
        """Whether there is a file, expired or not."""
        return self.task.state(now) == "success"


class Files:
    """Every address that was given away."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}

    def find(self, url: str) -> File | None:
        """Return what was given away as *url*, or as a path that ends like it."""
        return self._files.get(last_part(url))

    def publish(self, task: Task, expires: float, number: int = 0) -> str:
        """Give away an address; number 0 is the one that stands in the task's record."""
        url = address(task, number)
        self._files[last_part(url)] = File(task, expires)
        return url


def address(task: Task, number: int = 0) -> str:
    """Return where the result of *task* is, or will be."""
    return f"{task.home}/files/{name(task.id, number)}.mp4"


def name(*parts: object) -> str:
    """Return 32 hexadecimal digits, as KIE's own ids have: the same for the same parts."""
    text = " ".join(str(part) for part in parts)
    return hashlib.blake2s(text.encode(), digest_size=16).hexdigest()


def content(task: Task, entry: Entry) -> Reply:
    """Return the file that *task* has made, as its plan wants it."""
    kind = task.plan.file
    if kind == "html":
        return page(200, entry)
    if kind == "huge":
        length, pieces = mp4.huge_video(task.id)
        return Reply(200, headers=_sized(length), stream=pieces, entries=(entry,))
    whole = b"" if kind == "empty" else mp4.video(task.id)
    half = whole[: len(whole) // 2]
    if kind == "cut":
        headers = _sized(len(whole))
        return Reply(200, headers=headers, stream=(half,), drop="close", entries=(entry,))
    return Reply(200, half if kind == "truncated" else whole, _VIDEO, entries=(entry,))


def page(status: int, entry: Entry) -> Reply:
    """Return a page, as a file server has them."""
    text = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    return Reply(status, text.encode(), _HTML, entries=(entry,))


def _sized(length: int) -> dict[str, str]:
    return {**_VIDEO, "Content-Length": str(length)}
