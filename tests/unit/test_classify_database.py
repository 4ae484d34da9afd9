"""What a failure of our own database means."""

from __future__ import annotations

import errno
import sqlite3

import pytest
import sqlalchemy
from sqlalchemy import DateTime, Integer, String, bindparam, exc, text

from classifiers import foreign
from classifiers.database import classify
from classifiers.errors import (
    DatabaseError,
    Fatal,
    InvalidData,
    NotFound,
    Unclassified,
)

PERSON = "ivan@example.test"
SECRET = "s3cr3tc0de"


class DriverError(Exception):
    """What a PostgreSQL driver raises: a text of several lines, and an SQLSTATE."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def wrapped(kind: type[exc.DBAPIError], driver: Exception, **facts) -> exc.DBAPIError:
    return kind("INSERT INTO people (email) VALUES (?)", {"email": PERSON}, driver, **facts)


FULL = sqlite3.OperationalError("database or disk is full")
UNIQUE = DriverError(
    f'duplicate key value violates unique constraint "people_email"\nDETAIL: Key ({PERSON}) exists',
    "23505",
)

TABLE = {
    "operational": (wrapped(exc.OperationalError, DriverError("locked")), DatabaseError),
    "interface": (wrapped(exc.InterfaceError, DriverError("closed")), DatabaseError),
    "internal": (wrapped(exc.InternalError, DriverError("aborted")), DatabaseError),
    "unsupported": (wrapped(exc.NotSupportedError, DriverError("no")), DatabaseError),
    "broken file": (wrapped(exc.DatabaseError, DriverError("malformed")), DatabaseError),
    "programming": (wrapped(exc.ProgrammingError, DriverError("syntax")), DatabaseError),
    "any driver error": (wrapped(exc.DBAPIError, DriverError("?")), DatabaseError),
    "disconnected": (exc.DisconnectionError("gone"), DatabaseError),
    "pool": (exc.TimeoutError("QueuePool limit of size 5 reached"), DatabaseError),
    "echo": (exc.PendingRollbackError(f"Original exception was: {PERSON}"), DatabaseError),
    "integrity": (wrapped(exc.IntegrityError, UNIQUE), InvalidData),
    "data": (wrapped(exc.DataError, DriverError(f'bad integer: "{PERSON}"', "22P02")), InvalidData),
    "data, cut": (wrapped(exc.DataError, DriverError(f'bad: "{PERSON}\n"')), InvalidData),
    "unbindable": (
        exc.StatementError(f"bad {PERSON}", "INSERT", {"email": PERSON}, TypeError(PERSON)),
        InvalidData,
    ),
    "surrogate": (UnicodeEncodeError("utf-8", f"{PERSON}\ud800", 0, 1, PERSON), InvalidData),
    "too large": (OverflowError("Python int too large"), InvalidData),
    "disk full, SQLite": (wrapped(exc.OperationalError, FULL), Fatal),
    "disk full, but the server's": (
        wrapped(exc.OperationalError, DriverError("could not extend: No space left", "53100")),
        DatabaseError,
    ),
    "disk full, system": (OSError(errno.ENOSPC, "No space left on device", "/var/x"), Fatal),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), Fatal),
    "memory": (MemoryError(), Fatal),
    "another OSError": (OSError(errno.EACCES, "Permission denied", "/x"), Unclassified),
    "full, but not the disk": (ValueError("no space left in the field"), Unclassified),
    "bug": (KeyError("email"), Unclassified),
    "SQLAlchemy misused": (exc.ArgumentError(f"odd {PERSON}"), Unclassified),
    "no reason": (RuntimeError(), Unclassified),
}


@pytest.mark.parametrize(("error", "kind"), TABLE.values(), ids=TABLE)
def test_a_failure_is_the_rows_the_databases_or_the_disks(error, kind):
    assert type(classify(error)) is kind


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("disk full, SQLite", "database"),
        ("integrity", "database"),
        ("disk full, system", ""),
        ("memory", ""),
        ("bug", ""),
    ],
)
def test_outside_our_storage_only_the_databases_own_words_are_laid_to_it(name, service):
    assert foreign.classify(TABLE[name][0]).service == service


@pytest.mark.parametrize(("error", "kind"), TABLE.values(), ids=TABLE)
def test_no_row_gets_into_the_detail(error, kind):
    verdict = classify(error)

    assert PERSON not in f"{verdict!s} {verdict!r} {vars(verdict)}"
    assert "INSERT" not in verdict.detail
    assert verdict.service == "database"
    assert verdict.detail


def test_the_first_line_of_the_driver_is_kept():
    verdict = classify(wrapped(exc.IntegrityError, UNIQUE))

    assert verdict.detail == (
        'IntegrityError: duplicate key value violates unique constraint "people_email"'
    )
    assert verdict.code == "23505"


@pytest.mark.parametrize(
    "driver",
    [
        sqlite3.OperationalError("no such table: bookmarks"),
        sqlite3.OperationalError("no such column: text"),
        sqlite3.OperationalError("table bookmarks has no column named text"),
        DriverError('relation "bookmarks" does not exist', "42P01"),
        DriverError("отношение не существует", "42P01"),
        DriverError('column "text" does not exist', "42703"),
    ],
    ids=str,
)
def test_a_missing_table_tells_how_to_make_it(driver):
    verdict = classify(wrapped(exc.ProgrammingError, driver))

    assert type(verdict) is DatabaseError
    assert verdict.detail.endswith("run celery -A tasks db upgrade")


@pytest.mark.parametrize(
    "error",
    [
        wrapped(exc.ProgrammingError, DriverError("syntax error", "42601")),
        RuntimeError("no such table at the restaurant"),
    ],
    ids=["syntax", "not the database"],
)
def test_other_failures_give_no_such_advice(error):
    assert "upgrade" not in classify(error).detail


def test_a_lost_connection_is_the_databases_whatever_the_driver_calls_it():
    error = wrapped(exc.DataError, DriverError("closed"), connection_invalidated=True)

    assert type(classify(error)) is DatabaseError


def test_what_is_classified_already_stays():
    error = NotFound("gone")

    assert classify(error) is error


@pytest.mark.parametrize(
    "message",
    [
        f"cannot reach postgresql://perennial:{SECRET}@db/perennial",
        f"connection failed: password={SECRET} host=db",
        f"see https://portal.example/rest/1/{SECRET}/batch",
    ],
    ids=["url", "dsn", "webhook"],
)
@pytest.mark.parametrize(
    "build",
    [RuntimeError, lambda words: wrapped(exc.OperationalError, DriverError(words))],
    ids=["any", "driver"],
)
def test_no_secret_gets_into_the_detail(build, message):
    verdict = classify(build(message))

    assert SECRET not in f"{verdict!s} {verdict!r} {vars(verdict)}"


def test_an_unknown_failure_says_its_type_and_a_short_word():
    assert classify(KeyError("email")).detail == "KeyError: 'email'"
    assert len(classify(RuntimeError("x" * 999)).detail) < 250


def run(statement: str | sqlalchemy.TextClause, values: dict | None = None) -> Exception:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT NOT NULL)")
        )
        with pytest.raises((exc.StatementError, OverflowError, UnicodeError)) as caught:
            connection.execute(
                text(statement) if isinstance(statement, str) else statement, values or {}
            )
    engine.dispose()
    return caught.value


@pytest.mark.parametrize(
    ("statement", "values", "kind", "code"),
    [
        ("SELECT * FROM absent", {}, DatabaseError, "SQLITE_ERROR"),
        ("INSERT INTO people (id) VALUES (1)", {}, InvalidData, "SQLITE_CONSTRAINT_NOTNULL"),
        (
            "INSERT INTO people VALUES (:id, 'x')",
            {"id": 2**70},
            InvalidData,
            "OverflowError",
        ),
        (
            "INSERT INTO people VALUES (1, :email)",
            {"email": f"{PERSON}\ud800"},
            InvalidData,
            "UnicodeEncodeError",
        ),
        (
            text("INSERT INTO people VALUES (1, :at)").bindparams(bindparam("at", type_=DateTime)),
            {"at": PERSON},
            InvalidData,
            "StatementError",
        ),
    ],
    ids=["no table", "null", "integer", "surrogate", "type"],
)
def test_sqlite_itself_agrees(statement, values, kind, code):
    verdict = classify(run(statement, values))

    assert type(verdict) is kind
    assert verdict.code == code
    assert PERSON not in str(verdict)


def test_a_full_pool_is_the_databases():
    engine = sqlalchemy.create_engine(
        "sqlite://",
        poolclass=sqlalchemy.QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0.01,
    )
    with engine.connect(), pytest.raises(exc.TimeoutError) as caught:
        engine.connect()
    engine.dispose()

    verdict = classify(caught.value)

    assert type(verdict) is DatabaseError
    assert "size 1" in verdict.detail


def test_a_real_full_disk_is_fatal():
    engine = sqlalchemy.create_engine("sqlite://")
    table = sqlalchemy.Table(
        "big",
        sqlalchemy.MetaData(),
        sqlalchemy.Column("id", Integer),
        sqlalchemy.Column("t", String),
    )
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(text("PRAGMA max_page_count = 4"))
        with pytest.raises(exc.OperationalError) as caught:
            connection.execute(table.insert(), {"id": 1, "t": PERSON * 10_000})
    engine.dispose()

    verdict = classify(caught.value)

    assert type(verdict) is Fatal
    assert PERSON not in str(verdict)
