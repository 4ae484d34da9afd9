"""Our tasks on kombu's own Redis transport, for comparison."""

from tasks import app

app.conf.update(
    broker_transport=None,
    worker_consumer="celery.worker.consumer:Consumer",
    broker_transport_options={
        "visibility_timeout": 3,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "max_connections": 200,
    },
)
