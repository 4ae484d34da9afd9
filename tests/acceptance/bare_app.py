"""A bare Celery application on our transport; what its tasks did stands in another database."""

from __future__ import annotations

import json
import os
import ssl
import time

from celery import Celery
from kombu import Queue
from redis import Redis

QUEUES = ("q", "other", "threads", "prefork", "solo")

app = Celery("bare", broker=os.environ["BROKER"], backend=os.environ["RESULTS"] or None)
app.conf.update(
    broker_transport=os.environ.get("TRANSPORT", "reliability.transport:Transport"),
    broker_transport_options={"global_keyprefix": "app:"} | json.loads(os.environ["OPTIONS"]),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_queues=[Queue(name, routing_key=name) for name in QUEUES],
    task_default_queue="q",
    task_acks_late=True,
    task_ignore_result=False,
    task_publish_retry_policy={"max_retries": 20, "interval_start": 0.2, "interval_step": 0},
    worker_prefetch_multiplier=int(os.environ.get("MULTIPLIER", "1")),
    worker_cancel_long_running_tasks_on_connection_loss=False,
    beat_schedule={
        "delayed": {
            "task": "run",
            "schedule": 0.5,
            "args": ["beat"],
            "options": {"countdown": 1},
        }
    },
    beat_schedule_filename=os.environ.get("BEAT_FILE", "/dev/null"),
)
if os.environ["BROKER"].startswith("rediss"):
    app.conf.broker_use_ssl = {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_ca_certs": os.environ["CA"],
        "ssl_check_hostname": False,
    }


def records() -> Redis:
    return Redis.from_url(os.environ["RECORDS"], decode_responses=True)


@app.task(name="run")
def run(name, seconds=0.0):
    with records() as redis:
        redis.rpush(f"started:{name}", time.time())
        time.sleep(seconds)
        redis.rpush(f"ended:{name}", time.time())


@app.task(name="again", bind=True)
def again(self, name, countdown):
    if self.request.retries == 0:
        raise self.retry(countdown=countdown)
    run(name)


@app.task(name="then")
def then(_, name):
    run(name)
