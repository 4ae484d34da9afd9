"""What a worker tells Flower of the failures of its jobs, without secrets."""

from __future__ import annotations

from typing import Any

from celery.worker import request

from reliability.redaction import redaction


class Request(request.Request):
    """A job in the hands of a worker."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Tell it; an error that is not ours may say anything: an address, a header."""
        if "exception" in fields:  # the others are of our making, and of every job
            fields = redaction().of(fields)
        super().send_event(type, **fields)
