"""The files a bot has sent: where they come from, what is in them, and their file_ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from sandbox.bot_refusals import BotRefusal

# UPSTREAMS 2.1: landscape, ten seconds; what is said of a video of which nothing is known.
_SHAPE = {"duration": 10, "width": 1280, "height": 720}


@dataclass(frozen=True, slots=True)
class Content:
    """What counts of a file: its bytes, a print of them, and whether it begins as an MP4 does."""

    size: int
    digest: str
    mp4: bool


class Measure:
    """Takes a file in pieces, so that 50 MB are never in memory at once."""

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._hash = hashlib.blake2s(digest_size=8)

    def add(self, piece: bytes) -> None:
        if len(self._head) < 8:
            self._head += piece[:8]
        self.size += len(piece)
        self._hash.update(piece)

    def content(self) -> Content:
        return Content(self.size, self._hash.hexdigest(), self._head[4:8] == b"ftyp")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a video is to come from; an upload has its *content* already."""

    kind: Literal["file_id", "url", "upload"]
    reference: str
    content: Content | None = None
    shape: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Video:
    """One file the server keeps, for ever."""

    file_id: str
    content: Content
    shape: Mapping[str, int]

    def shown(self) -> dict[str, Any]:
        """Return it as a Video; what is no MP4 goes as a Document and has no shape (sendVideo)."""
        kept = {
            "file_id": self.file_id,
            "file_unique_id": f"AgAD{self.content.digest[:10]}",
            "file_size": self.content.size,
        }
        return {**self.shape, "mime_type": "video/mp4", **kept} if self.content.mp4 else kept


class Videos:
    """All files by their file_id; *url_limit* is in bytes."""

    def __init__(self, http: Callable[[], httpx.AsyncClient], url_limit: int) -> None:
        self._http = http
        self._url_limit = url_limit
        self._kept: dict[str, Video] = {}

    async def take(self, source: Source) -> Video:
        """Return the video that *source* leads to, fetched if it is a link; or refuse it."""
        if source.kind == "file_id":
            known = self._kept.get(source.reference)
            if known is None:
                raise BotRefusal("wrong_file_id")
            return known
        content = source.content or await self._fetch(source.reference)
        file_id = f"BAACAgIAAxkDAA{content.digest}{len(self._kept) + 1:08d}"
        video = self._kept[file_id] = Video(file_id, content, {**_SHAPE, **source.shape})
        return video

    async def _fetch(self, url: str) -> Content:
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL:
            raise BotRefusal("wrong_url") from None
        if not target.host:
            raise BotRefusal("wrong_url")
        try:
            async with self._http().stream("GET", target, follow_redirects=True) as response:
                return await self._read(response)
        except httpx.HTTPError:
            raise BotRefusal("url_failed") from None

    async def _read(self, response: httpx.Response) -> Content:
        if response.status_code != 200:
            raise BotRefusal("url_failed")
        if not response.headers.get("content-type", "").lower().startswith("video/"):
            raise BotRefusal("wrong_page_type")
        measure = Measure()
        async for piece in response.aiter_bytes():
            measure.add(piece)
            if measure.size > self._url_limit:
                # What the server says of a link to too much: tdlib/telegram-bot-api issue 150.
                raise BotRefusal("wrong_file")
        content = measure.content()
        if not content.mp4:
            raise BotRefusal("wrong_page_type")
        return content
