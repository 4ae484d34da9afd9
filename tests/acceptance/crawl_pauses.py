"""Ends a run in the middle of its second page; loaded with `-I tests.acceptance.crawl_pauses`.

As `$POINT` says: `halfway` stops the worker dead, as in `pauses`; `exhausted` fails once, as when
memory is out.
"""

from __future__ import annotations

import os

from tasks import bookmarks
from tests.acceptance.pauses import after


def where(session, items, then, *, over):
    return "halfway-" if (then.page, then.in_page) == (1, 50) else ""


def exhausted(keep):
    def failing(session, *rest, **options):
        if (session.page, session.in_page) == (1, 50):
            raise MemoryError
        return keep(session, *rest, **options)

    return failing


if os.environ["POINT"] == "halfway":
    after(bookmarks, "keep", "halfway", where)
else:
    bookmarks.keep = exhausted(bookmarks.keep)
