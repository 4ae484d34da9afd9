"""The callbacks of the simulated KIE.AI (UPSTREAMS 2.4): who is told when, and what is answered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import httpx

PATIENCE = 15.0  # s; what the pages of other models say, the market's say nothing
REPEATED_AFTER = 1.0  # s between a callback's answer and its repetition
AT_ONCE = 64  # callbacks on their way, so that thousands due at once do not run out of sockets


@dataclass(frozen=True, slots=True)
class Ring:
    """What one task has to tell, *times* times; *heard* gets the answers' statuses, 0 for none."""

    task_id: str
    url: str
    body: Callable[[], Mapping[str, Any]]
    times: int = 1
    forged: bool = False
    heard: list[int] = field(default_factory=list)


class Callbacks:
    """Sends what is due, in the background; of one task never two at the same time."""

    def __init__(
        self,
        clock: Callable[[], float],
        key: Callable[[], str],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._key = key
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._room = asyncio.Semaphore(AT_ONCE)
        self._due: list[tuple[float, int, Ring]] = []
        self._scheduled = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flying: set[asyncio.Task[None]] = set()

    def schedule(self, due: float, ring: Ring) -> None:
        """Send *ring* at the time *due*."""
        self._scheduled += 1
        heappush(self._due, (due, self._scheduled, ring))
        if self._due[0][1] == self._scheduled:
            self._set_timer()

    def send_due(self) -> None:
        """Start sending everything that is due."""
        while self._due and self._due[0][0] <= self._clock():
            task = asyncio.create_task(self._send(heappop(self._due)[2]))
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)
        self._set_timer()

    async def settle(self) -> None:
        """Send everything that is due, and wait until nothing is on its way."""
        self.send_due()
        await asyncio.gather(*self._flying)

    def summary(self) -> dict[str, int]:
        """Return the counts; *answered* are those with a 2xx, *failed* all other that were sent."""
        ends = {name: self.counts[name] for name in ("sent", "answered", "failed")}
        return {**ends, "waiting": len(self._due), "flying": len(self._flying)}

    def clear(self) -> None:
        """Forget what is due and give up what is on its way."""
        self._due.clear()
        self.counts.clear()
        for task in self._flying:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        """Give up everything."""
        self.clear()
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._due:
            pause = max(0.0, self._due[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(pause, self.send_due)

    async def _send(self, ring: Ring) -> None:
        async with self._room:
            self.counts["sent"] += 1
            status = await self._post(ring)
        ring.heard.append(status)
        self.counts["answered" if status // 100 == 2 else "failed"] += 1
        if ring.times > 1:
            again = replace(ring, times=ring.times - 1)
            self.schedule(self._clock() + REPEATED_AFTER, again)

    async def _post(self, ring: Ring) -> int:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport, timeout=PATIENCE, trust_env=False
            )
        try:
            response = await self._client.post(
                ring.url, json=ring.body(), headers=self._signature(ring)
            )
        except (httpx.HTTPError, httpx.InvalidURL):
            return 0
        return response.status_code

    def _signature(self, ring: Ring) -> dict[str, str]:
        """Return the two headers, where a key is set; the body is not signed."""
        key = self._key()
        if not key and not ring.forged:
            return {}
        timestamp = str(int(self._clock()))
        signed = f"{ring.task_id}.{timestamp}".encode()
        secret = f"not {key}" if ring.forged else key
        signature = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
        return {
            "X-Webhook-Timestamp": timestamp,
            "X-Webhook-Signature": base64.b64encode(signature).decode(),
        }
