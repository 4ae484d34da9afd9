"""How a worker on RabbitMQ is alone with a suspect: it takes nothing until that has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reliability.rabbitmq_queues import SUSPECTS_OF

PATIENCE = 60.0  # s, more than nearly every job takes; one that hangs must not close its worker


@dataclass(slots=True)
class Solitude:
    """Whether a consuming channel seeks to be alone, and with the suspects of which queues.

    For the thread that reads from the connection.
    """

    channel: Any
    queues: Sequence[str] = ()
    tried_at: float = -PATIENCE
    with_one: bool = False

    @property
    def sought(self) -> bool:
        """Whether the channel takes nothing, to be alone with a suspect."""
        return bool(self.queues)

    @property
    def worth_a_try(self) -> bool:
        """Whether it may be sought: a worker that could not be alone works on for as long."""
        return not self.sought and time.monotonic() - self.tried_at >= PATIENCE

    def seek(self, queues: Sequence[str]) -> None:
        """Take nothing more until the suspects of *queues* have been run."""
        if self.worth_a_try and self.channel.connection is not None:
            self.queues, self.tried_at = queues, time.monotonic()
            self.channel.pause()
            self.look()

    def look(self) -> None:
        """Run the next suspect if nothing else is at work; go on as ever if there is none left."""
        if not self.sought or self.channel.connection is None or not self.channel.consumed:
            return
        if not self.channel.idle:
            if not self.with_one and time.monotonic() - self.tried_at > PATIENCE:
                self._go_on()
            return
        for queue in set(self.queues) & set(self.channel.consumed):
            message = self.channel.basic_get(SUSPECTS_OF + queue)
            if message is not None:
                self.with_one = True
                self.channel.hand_out(queue, message)
                return
        self.tried_at = -PATIENCE
        self._go_on()

    def _go_on(self) -> None:
        self.queues, self.with_one = (), False
        self.channel.resume()
