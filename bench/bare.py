"""The same nothing as a bare Celery task on the stock transport; all other settings are ours."""

from celery import Celery

app = Celery("bare")
app.config_from_object("celeryconfig")
app.conf.update(
    imports=(),
    broker_transport=None,
    worker_consumer="celery.worker.consumer:Consumer",
    task_routes={},
)


@app.task(name="bare.noop")
def noop(order_id: str) -> None:
    """Do nothing."""
