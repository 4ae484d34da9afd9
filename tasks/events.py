"""What a worker tells Flower of the ends of its jobs, without secrets."""

from __future__ import annotations

from typing import Any

from celery.worker import request

from reliability.redaction import redaction


class Request(request.Request):
    """A job in the hands of a worker."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Tell it; an error that is not ours may say anything: an address, a header."""
        super().send_event(type, **redaction().of(fields))
