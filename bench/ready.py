"""Loaded into a worker by a measurement: says that it is ready, whatever the log level."""

from celery import signals


@signals.worker_ready.connect
def _say(**_):
    print(" ready.", flush=True)
