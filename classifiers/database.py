"""What a failure of our own database means: one row is at fault, the database is, or the disk."""

from __future__ import annotations

import errno
import re

from sqlalchemy import exc

from classifiers.errors import DatabaseError, Fatal, InvalidData, JobError, Unclassified
from classifiers.http import plain_text

SERVICE = "database"

# The nearest ancestor wins. What stands here as InvalidData is the fault of one row: the database
# is well, and the next row may pass.
KINDS: dict[type[BaseException], type[JobError]] = {
    exc.IntegrityError: InvalidData,
    exc.DataError: InvalidData,
    exc.StatementError: InvalidData,  # a value that could not even be bound to the statement
    UnicodeEncodeError: InvalidData,  # SQLite, half a surrogate pair: not wrapped by SQLAlchemy
    OverflowError: InvalidData,  # SQLite, an integer above 64 bits: likewise
    exc.DBAPIError: DatabaseError,  # Operational, Interface, Programming, Internal, NotSupported
    exc.DisconnectionError: DatabaseError,
    exc.TimeoutError: DatabaseError,  # no free connection in the pool
    exc.PendingRollbackError: DatabaseError,  # the echo of a failure before it
    MemoryError: Fatal,
}

_FULL_TEXTS = ("database or disk is full", "no space left", "disk quota exceeded")
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# A table or column that a migration would have made: SQLite has only words, PostgreSQL codes.
_MISSING_TEXT = re.compile(r"no such (table|column)|has no column")
_MISSING_CODES = ("42P01", "42703")
_QUOTED = re.compile(r'".*"|".*')
_PASSWORD = re.compile(r"password\s*=\s*\S+", re.IGNORECASE)
_SHORT = 200  # characters: a driver's first line; more would be data


def classify(error: Exception) -> JobError:
    """Judge a failure in our own storage.

    The detail quotes the driver's first line at most: SQLAlchemy's own text, and the driver's
    further lines, repeat the row, which may be personal data.
    """
    if isinstance(error, JobError):
        return error
    said = _said(error)
    if _is_full(error, said.casefold()):
        return Fatal(f"the disk is full: {said}", service=SERVICE, code=_code(error))
    kind = next((KINDS[kind] for kind in type(error).__mro__ if kind in KINDS), Unclassified)
    if getattr(error, "connection_invalidated", False):
        kind = DatabaseError  # the connection is gone, whatever the driver calls it
    return kind(_detail(error, kind, said), service=SERVICE, code=_code(error))


def _detail(error: Exception, kind: type[JobError], said: str) -> str:
    name = type(error).__name__
    detail = f"{name}: {said}" if said else name
    if kind is DatabaseError and (_code(error) in _MISSING_CODES or _MISSING_TEXT.search(said)):
        return f"{detail}; run celery -A tasks db upgrade"
    return detail


def _said(error: Exception) -> str:
    """The words about *error* that hold no row."""
    match error:
        case exc.DBAPIError():
            line = _first_line(error.orig)
            # PostgreSQL quotes the value that it could not read.
            line = _QUOTED.sub('"…"', line) if isinstance(error, exc.DataError) else line
        case exc.TimeoutError():
            line = _first_line(error)  # the size of the pool
        case exc.SQLAlchemyError() | UnicodeError() | OverflowError():
            line = ""  # they quote statements, parameters or values on their first line
        case OSError():
            line = error.strerror or ""
        case _:
            line = _first_line(error)
    return plain_text(_PASSWORD.sub("password=***", line), limit=_SHORT)


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error or "").splitlines()), "")


def _is_full(error: Exception, said: str) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL_NUMBERS
    # A database server that is full is its own trouble: stopping every worker would not help it.
    local = not hasattr(getattr(error, "orig", None), "sqlstate")
    return isinstance(error, exc.DBAPIError) and local and any(t in said for t in _FULL_TEXTS)


def _code(error: Exception) -> str:
    """SQLSTATE of PostgreSQL, the error's name in SQLite, or the class."""
    driver = getattr(error, "orig", None) or error
    code = getattr(driver, "sqlstate", None) or getattr(driver, "sqlite_errorname", None)
    return str(code or type(error).__name__)
