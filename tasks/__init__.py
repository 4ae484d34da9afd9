"""What to do? The Celery application; its tasks are in the modules beside this one."""

from __future__ import annotations

from functools import partial

from celery import Celery

from tasks.base import Operation

app = Celery("perennial")
app.config_from_object("celeryconfig")

#: Declares an operation: `@operation(name="service.verb", …)`. Celery's own tasks stay plain.
operation = partial(app.task, base=Operation)

__all__ = ["app", "operation"]
