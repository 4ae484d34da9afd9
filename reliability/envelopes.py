"""A job's message as text, the same on every broker: what is parked on one comes back on another.

The shape is kombu's own, of its Redis transport: body, content type and encoding, headers, and
properties with `delivery_info` and `body_encoding`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from amqp.basic_message import Message
from kombu.utils.json import dumps, loads

from reliability.deaths import Run
from reliability.quarantine import DEATHS

# What an AMQP message keeps beside its headers. Not its expiry: RabbitMQ would drop a job unseen.
KEPT = ("delivery_mode", "priority", "correlation_id", "reply_to")
DELIVERIES = "x-delivery-count"  # a quorum queue's word for a message that comes again
DIED = "perennial_deaths"  # header of a copy: the deaths of the message it stands for


def due_at(headers: Mapping[str, Any] | None) -> float | None:
    """Return when a message wants to run, in unix seconds (naive is UTC); None for at once."""
    eta = (headers or {}).get("eta")
    if not eta:
        return None
    try:
        when = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, AttributeError):
        return None  # the worker rejects what it cannot read, and says so


def headers_of(message: Message) -> dict[str, Any]:
    """Return the headers of an AMQP message; empty if it has none."""
    return message.properties.get("application_headers") or {}


def deaths_of(message: Message) -> int:
    """Return how many workers are known to have died with what *message* is a copy of."""
    count = headers_of(message).get(DIED, 0)
    return count if isinstance(count, int) else 0


def came_before(message: Message) -> bool:
    """Return whether *message* was delivered before, and came back unanswered."""
    return bool(headers_of(message).get(DELIVERIES))


def run_of(message: Message) -> Run:
    """Return which run of which job *message* asks for."""
    headers = headers_of(message)
    retries = headers.get("retries")
    return str(headers.get("id")), retries if isinstance(retries, int) else 0


def plain_headers(message: Message) -> dict[str, Any]:
    """Return the headers of *message* without what only a delivery has."""
    headers = headers_of(message)
    return {name: value for name, value in headers.items() if name not in {DIED, DELIVERIES}}


def copy_of(message: Message, headers: Mapping[str, Any]) -> Message:
    """Return what a publisher sends to have *message* in a queue, with these *headers*."""
    kept = {name: message.properties[name] for name in KEPT if name in message.properties}
    return Message(
        message.body,
        content_type=message.properties.get("content_type"),
        content_encoding=message.properties.get("content_encoding"),
        application_headers=dict(headers),
        **{"delivery_mode": 2, **kept},
    )


def sealed(message: Message, queue: str, *, deaths: int = 0) -> str:
    """Return *message*, bound for *queue*, as text."""
    body = message.body
    raw = body if isinstance(body, bytes) else str(body).encode()
    headers = plain_headers(message)
    kept = {name: message.properties[name] for name in KEPT if name in message.properties}
    properties: dict[str, Any] = {
        **kept,
        "body_encoding": "base64",
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    if deaths:
        properties[DEATHS] = deaths
    text: str = dumps(
        {
            "body": b64encode(raw).decode(),
            "content-type": message.properties.get("content_type"),
            "content-encoding": message.properties.get("content_encoding"),
            "headers": headers,
            "properties": properties,
        }
    )
    return text


def opened(text: str | bytes) -> Message:
    """Return what `sealed`, or kombu's Redis transport, has written, as an AMQP message.

    Raises:
        ValueError, TypeError, KeyError: it is no such text.
    """
    envelope = loads(text)
    properties, body = envelope["properties"], envelope["body"]
    if properties.get("body_encoding") == "base64":
        body = b64decode(body)
    kept = {name: properties[name] for name in KEPT if properties.get(name) is not None}
    return Message(
        body,
        content_type=envelope.get("content-type"),
        content_encoding=envelope.get("content-encoding"),
        application_headers=dict(envelope["headers"]),
        **{"delivery_mode": 2, **kept},
    )
