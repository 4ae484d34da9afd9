"""An application, in a process of its own: it calls `delay()` and reads results, as users do.

One JSON line in, one JSON line out; `acceptance.system` speaks to it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from celery.result import AsyncResult

from storage import credentials, credits
from tasks import app, bitrix, bookmarks, integration, video
from tasks.base import Operation

TASKS = [bitrix, bookmarks, integration, video]
TASKS += map(import_module, os.environ.get("APPLICATION", "").split())  # of the test's own
OPERATIONS = {
    task.name: task
    for module in TASKS
    for task in vars(module).values()
    if isinstance(task, Operation)
}


def send(call):
    """Call a task; one whose message is not to be checked here goes out by its name alone."""
    task, kwargs, options = call["task"], call["kwargs"], call["options"]
    begun = time.monotonic()
    try:
        if call["unchecked"]:
            job = app.send_task(task, kwargs=kwargs, **options)
        elif options:
            job = OPERATIONS[task].apply_async(kwargs=kwargs, **options)
        else:
            job = OPERATIONS[task].delay(**kwargs)
    except Exception as error:  # noqa: BLE001 - whatever the caller would see
        return {
            "error": type(error).__name__,
            "text": str(error),
            "seconds": time.monotonic() - begun,
        }
    return {"job": job.id}


def get(job, timeout):
    result = AsyncResult(job, app=app)
    try:
        value = result.get(timeout=timeout, propagate=False)
    except Exception as error:  # noqa: BLE001 - such as none in time
        return {"state": type(error).__name__, "result": str(error)}
    return {"state": result.state, "result": value if result.successful() else repr(value)}


def answer(request):
    if "grant" in request:
        return str(credits.grant(request["grant"], request["amount"], "a gift"))
    if "access" in request:
        return credentials.save("x", request["access"], **request["tokens"])
    if "get" in request:
        return get(request["get"], request["timeout"])
    with ThreadPoolExecutor(len(request["calls"])) as pool:
        return list(pool.map(send, request["calls"]))


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
