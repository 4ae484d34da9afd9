"""Jobs that end their worker, loaded into it with `-I tests.acceptance.killers`.

A job whose order id says `pill` ends the whole process in a moment, as a crash in a library would;
one whose id says `beside` takes so long that it is there then. The product knows nothing of this.
"""

from __future__ import annotations

import os
import time

from celery import signals

MOMENT = 0.5  # seconds in which the others are taken, too


@signals.task_prerun.connect
def strike(kwargs=None, **_):
    order = str((kwargs or {}).get("order_id"))
    if "pill" in order:
        time.sleep(MOMENT)
        os._exit(1)
    if "beside" in order:
        time.sleep(2 * MOMENT)
