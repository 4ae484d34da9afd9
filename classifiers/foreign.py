"""Exceptions that are not ours: what a broken call, or our own database, has raised."""

from __future__ import annotations

import httpx

from classifiers import database, http
from classifiers.errors import JobError, Unclassified


def classify(error: Exception) -> JobError:
    """Judge any exception. A broken call is taken for one that is safe to repeat.

    Whose fault it is that matches nothing, nobody knows: it names no service.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, httpx.RequestError):
        return http.classify_transport(error, safe=True)
    judged = database.classify(error)
    if isinstance(judged, Unclassified) or _is_the_machines(error):
        judged.service = ""
    return judged


def _is_the_machines(error: Exception) -> bool:
    """Whether it is out of memory or disk, and it is not the database that says so."""
    return isinstance(error, MemoryError | OSError)
