"""A portal's outbound webhooks: events sent once, as forms with PHP brackets (UPSTREAMS 1.5)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx

from sandbox.phpforms import build

HANDLER_ID = "201"  # the documented example's
MEMBER_ID = "a223c6b3710f85df22e9377d6c4f7553"  # the documented example's
# A slow handler must not pile up sockets here; the real queue server's patience is not documented.
PATIENCE = 10.0


class Outbound:
    """Sends events to *target*: fire and forget, no retries; the counts are for the summary."""

    def __init__(
        self,
        target: str,
        token: str,
        domain: str,
        clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter(sent=0, failed=0)
        self._target = target
        self._token = token
        self._domain = domain
        self._clock = clock
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._flying: set[asyncio.Task[int | None]] = set()

    def fire(self, event: str, record: int) -> None:
        """Send in the background, if anybody listens."""
        if self._target:
            task = asyncio.create_task(self.send(event, record))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def send(
        self, event: str, record: int, *, ts: int | None = None, token: str | None = None
    ) -> int | None:
        """Send one event; return the handler's status, None when no answer came."""
        if self._client is None:
            self._client = httpx.AsyncClient(transport=self._transport, timeout=PATIENCE)
        try:
            response = await self._client.post(
                self._target,
                content=build(self.form(event, record, ts=ts, token=token)),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
            )
        except httpx.HTTPError:
            self.counts["failed"] += 1
            return None
        self.counts["sent" if response.is_success else "failed"] += 1
        return response.status_code

    def form(
        self, event: str, record: int, *, ts: int | None = None, token: str | None = None
    ) -> dict[str, object]:
        """Return the event's fields; *ts* is the moment of sending, not of the change."""
        return {
            "event": event,
            "event_handler_id": HANDLER_ID,
            "data": {"FIELDS": {"ID": str(record)}},
            "ts": str(int(self._clock()) if ts is None else ts),
            "auth": {
                "domain": self._domain,
                "client_endpoint": f"https://{self._domain}/rest/",
                "server_endpoint": "https://oauth.bitrix.info/rest/",
                "member_id": MEMBER_ID,
                "application_token": self._token if token is None else token,
            },
        }

    async def settle(self) -> None:
        """Wait until nothing is on its way."""
        await asyncio.gather(*self._flying)

    async def close(self) -> None:
        """Give up what is still on its way."""
        for task in self._flying:
            task.cancel()
        if self._client is not None:
            await self._client.aclose()
            self._client = None
