"""How the sync with Bitrix24 is, in the fields of the system before this one.

That one read two streams of Redis with a loop of its own. Here it is a queue of Celery's, which
workers take from; the description of each field says what it means now.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from admin.readiness import stale
from admin.routes.access import guarded_router
from admin.routes.shapes import Answer
from config.services import bitrix
from config.settings import settings
from reliability import queues
from reliability.liveness import canary_age
from reliability.parking import parking
from reliability.queues import Waiting
from tasks import app
from tasks.bitrix import handle_webhook

router = guarded_router("sync with Bitrix24", "/bitrix/sync")

QUEUE = "bitrix"


class Exact(BaseModel):
    """These fields and no others."""

    model_config = ConfigDict(extra="forbid")


class WorkerConfig(Exact):
    """How the workers go about it."""

    max_retries: Annotated[
        int, Field(description="Retries of a failure that may pass by itself (`MAX_RETRIES`).")
    ]
    batch_size: Annotated[
        int, Field(description="Operations that share one request to the portal at most.")
    ]
    poll_interval: Annotated[
        float,
        Field(
            description="Seconds an idle worker sleeps at most. A new job wakes it at once; this "
            "is how late it notices that a parked one is due, or a lost ring of the bell. 0 where "
            "the broker hands jobs out by itself."
        ),
    ]


Status = Literal["running", "silent", "not_started", "disabled"]


class WorkerState(Exact):
    """The workers of the queue `bitrix`, all of them together, on whatever hosts."""

    worker_enabled: Annotated[
        bool, Field(description="`BITRIX_ENABLED` and `BITRIX_WORKER_ENABLED`, as set here.")
    ]
    worker_running: Annotated[
        bool,
        Field(
            description="Whether a worker has come to a canary of the queue within the last two "
            "minutes; beat sends one each 30 s."
        ),
    ]
    worker_task_exists: Annotated[
        bool, Field(description="Whether a worker has ever come to a canary of the queue.")
    ]
    worker_task_status: Annotated[
        Status,
        Field(
            description="`running`; `silent`: no canary was taken for two minutes (no worker, no "
            "beat, or a queue so long that it did not come to its canary); `not_started`: none "
            "ever; `disabled`: by a setting."
        ),
    ]
    pending_messages_count: Annotated[
        int,
        Field(
            description="Jobs that are accepted and not over: in the queue, in the hands of "
            "workers, or parked because of the portal (rate limit, pause, back-off …). A job that "
            "`countdown=` has put off is not in it, nor, with RabbitMQ, what workers have in "
            "hand."
        ),
    ]
    worker_config: WorkerConfig


class WorkerAnswer(Exact):
    """The state of the workers, in an envelope."""

    success: bool
    message: str
    data: WorkerState


class Stream(Exact):
    """Jobs of the queue `bitrix` that wait for a worker."""

    length: Annotated[
        int,
        Field(
            description="How many wait. Operations and webhooks share the queue; where more than "
            "1,000 wait, their shares are those of the oldest and the newest 500. A queue of "
            "RabbitMQ cannot be looked into: there all count as operations."
        ),
    ]
    groups: Annotated[
        int,
        Field(
            description="Groups of consumers: 1 if workers serve the queue, for they share its "
            "jobs, each of which one of them gets; else 0."
        ),
    ]
    last_id: Annotated[
        str | None,
        Field(description="Id of the newest job among them; null if none waits, or none is seen."),
    ]


class Streams(Exact):
    """What waits, by where it came from."""

    operations_stream: Annotated[
        Stream,
        Field(description="All else: deals and contacts, made and updated; beat's canaries."),
    ]
    webhooks_stream: Annotated[
        Stream, Field(description="Events of the portal that are to be looked at.")
    ]
    total_messages: Annotated[int, Field(description="Both lengths together; always exact.")]
    bitrix_configured: Annotated[bool, Field(description="Whether `BITRIX_WEBHOOK_URL` is set.")]


class StreamsAnswer(Exact):
    """The streams, in an envelope."""

    success: bool
    message: str
    data: Streams


@router.get("/worker/status", response_model=WorkerAnswer)
def worker_status() -> Answer:
    """Say whether workers serve the portal, and how much is still to be done."""
    config = settings()
    enabled = config.bitrix_enabled and config.bitrix_worker_enabled
    age = canary_age(QUEUE)
    status = state(age, enabled=enabled)
    return envelope(
        SENTENCES[status],
        {
            "worker_enabled": enabled,
            "worker_running": not stale(age),
            "worker_task_exists": age is not None,
            "worker_task_status": status,
            "pending_messages_count": pending(),
            "worker_config": {
                "max_retries": config.max_retries,
                "batch_size": bitrix(config).ops_per_permit,
                "poll_interval": app.conf.broker_transport_options.get("bell_timeout", 0.0),
            },
        },
    )


@router.get("/status", response_model=StreamsAnswer)
def sync_status() -> Answer:
    """Say what waits for a worker."""
    webhooks, operations = queues.waiting(QUEUE, handle_webhook.name)
    groups = 0 if stale(canary_age(QUEUE)) else 1
    total = webhooks.count + operations.count
    return envelope(
        f"{total} jobs wait for a worker",
        {
            "operations_stream": stream(operations, groups),
            "webhooks_stream": stream(webhooks, groups),
            "total_messages": total,
            "bitrix_configured": settings().bitrix_webhook_url is not None,
        },
    )


SENTENCES: dict[Status, str] = {
    "running": "workers serve the queue bitrix",
    "silent": "no worker has come to a canary of the queue bitrix for two minutes",
    "not_started": "no worker has come to a canary of the queue bitrix yet",
    "disabled": "the workers of the queue bitrix are switched off",
}


def state(age: float | None, *, enabled: bool) -> Status:
    """Return the state of the workers in one word; *age* is that of the last canary, in s."""
    if not enabled:
        return "disabled"
    if age is None:
        return "not_started"
    return "silent" if stale(age) else "running"


def pending() -> int:
    """Count the jobs that are accepted and not over, without going through them."""
    parked = sum(kind.count for kind in parking().kinds() if kind.service == QUEUE)
    return queues.lengths(QUEUE)[QUEUE] + queues.taken(QUEUE) + parked


def stream(jobs: Waiting, groups: int) -> dict[str, object]:
    return {"length": jobs.count, "groups": groups, "last_id": jobs.newest}


def envelope(message: str, data: dict[str, object]) -> Answer:
    return Answer({"success": True, "message": message, "data": data})
