"""Celery's own settings. Ours are in `config.settings`; every value here has its reason."""

from typing import Any

from kombu import Queue

from config.services import scaled
from config.settings import settings

_config = settings()

imports = (
    "tasks.bitrix",
    "tasks.telegram",
    "tasks.video",
    "tasks.bookmarks",
    "tasks.integration",
    "tasks.replay",
    "tasks.failures",
    "tasks.upkeep",
    "tasks.caretaker",
    "tasks.measures",
    "tasks.lifecycle",
    "tasks.heartbeat",
    "tasks.logs",
    "tasks.reports",
    "tasks.spans",
)

# -- broker: our transport on Redis (reliability/transport.py) or RabbitMQ (reliability/rabbitmq.py)
broker_url = _config.broker_url
if broker_url.startswith("sentinel"):
    broker_transport = "reliability.transport:SentinelTransport"
elif broker_url.startswith("redis"):
    broker_transport = "reliability.transport:Transport"
elif broker_url.startswith("amqps"):
    broker_transport = "reliability.rabbitmq:SecureTransport"
elif broker_url.startswith("amqp"):
    broker_transport = "reliability.rabbitmq:Transport"
if broker_url.startswith("rediss"):
    broker_use_ssl = {"ssl_cert_reqs": "required"}
broker_transport_options = {
    "visibility_timeout": _config.visibility_timeout,
    "bell_timeout": min(1.0, _config.retry_time_scale),  # an idle worker looks at what is due
    "global_keyprefix": _config.redis_stream_prefix,
    "socket_timeout": 30,  # longer than any command of ours blocks
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "max_connections": _config.valkey_max_connections,
    "master_name": _config.redis_sentinel_master,
}
broker_heartbeat = 10  # s, on RabbitMQ: who is cut off is noticed, and its jobs come back, after 20
broker_connection_retry_on_startup = True  # a worker may be up before its Redis
broker_connection_max_retries = None  # and outlives it
task_publish_retry_policy = {"max_retries": 3, "interval_start": 0, "interval_step": 0.2}

# -- queues: one per upstream, so that a dead one starves nobody
task_queues = [Queue(name, routing_key=name) for name, obstacle in _config.queues.items()]
_queues = {
    "bitrix.*": "bitrix",
    "video.send": "telegram",
    "telegram.*": "telegram",
    "video.handle_press": "telegram",
    "video.*": "kie",
    "bookmarks.*": "x",
    "integration.*": "integration",
    "replay.*": "upkeep",
    "upkeep.*": "upkeep",
}
task_routes = {task: {"queue": name, "routing_key": name} for task, name in _queues.items()}
task_default_queue = "bitrix"
task_create_missing_queues = False  # a misspelt queue is an error, not a place to get lost in

# -- messages: JSON only, with arguments shown to monitors as they are kept: without secrets
accept_content = ["json"]
result_accept_content = ["json"]

# -- results
if _config.keep_results:
    _kind = "SentinelResults" if _config.redis_url.startswith("sentinel") else "Results"
    result_backend = f"reliability.results:{_kind}+{_config.redis_url}"
    result_backend_transport_options = {
        "global_keyprefix": f"{_config.redis_stream_prefix}perennial:result:",
        "master_name": _config.redis_sentinel_master,
    }
    if _config.redis_url.startswith("rediss"):
        redis_backend_use_ssl = {"ssl_cert_reqs": "required"}
    result_expires = 86_400  # a day, CONTRACT
else:
    result_backend = "reliability.results:NoResults"
task_ignore_result = not _config.keep_results
redis_socket_timeout = 10
redis_socket_connect_timeout = 5
redis_retry_on_timeout = True
redis_max_connections = _config.valkey_max_connections

# -- delivery
task_acks_late = True  # a job is done when it is done, not when it is taken
task_reject_on_worker_lost = None  # loops forever (CELERY.md, finding C)
worker_cancel_long_running_tasks_on_connection_loss = False  # they go on; their acks come later
worker_prefetch_multiplier = 1

# -- worker
worker_pool = "threads"  # the work is waiting for answers; threads share connections and batches
worker_concurrency = _config.worker_threads
worker_consumer = "tasks.failures:Consumer"
worker_send_task_events = True  # Flower
task_send_sent_event = True
worker_hijack_root_logger = True
worker_proc_alive_timeout = 30


# -- beat: sends what is due by the clock; a second one does no harm (tasks/schedule.py)
def _each(seconds: float, task: str, **options: Any) -> dict[str, Any]:
    """Return an entry that sends a job each so many *seconds*, good until the next one is sent."""
    every = scaled(seconds)
    return {"task": task, "schedule": every, "options": {"expires": every, **options}}


beat_scheduler = "tasks.schedule:Scheduler"
beat_max_loop_interval = 30  # s; silent for twice as long, it is ill (its answer to a ping)
beat_schedule = {
    "trim": _each(3600.0, "upkeep.trim"),  # 10,000 letters are a day of a bad month
    "compensate": _each(60.0, "upkeep.compensate"),  # what is owed is money; it was late before
    "ramps": _each(60.0, "upkeep.ramps"),  # a run that a crash has left alone is waited for
    **{
        # A queue that is left alone on purpose would only fill up with them.
        f"canary-{queue}": _each(30.0, "upkeep.canary", queue=queue) | {"kwargs": {"queue": queue}}
        for queue, obstacle in _config.queues.items()
        if not obstacle
    },
}
