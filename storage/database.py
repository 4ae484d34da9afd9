"""Engines and transactions: the one place that tells SQLite from PostgreSQL."""

from __future__ import annotations

import math
import os
import re
import sqlite3
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Float, create_engine, event, literal, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.exc import TimeoutError as TimedOut
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.sql.functions import FunctionElement

from config.settings import settings
from storage.models import Moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Connection, Engine, Table
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.sql.compiler import SQLCompiler

PATIENCE = 10.0  # s a statement may take, waits for locks included: a thread cannot be killed
RESTED = 1.0  # s after which a connection may be dead without our knowing
BEGIN = "BEGIN IMMEDIATE"
SHORTLY = 0.02  # s until a file that somebody is just changing is tried again
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONNECTIONS = 16  # per process; five processes fit into PostgreSQL's default of 100

# UTF-8 (half a surrogate pair) or PostgreSQL (NUL) has them not.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class now(FunctionElement[datetime]):  # noqa: N801  # reads as the SQL function it is
    """The time, *plus* some seconds, as part of a statement.

    Workers on several hosts have skewed clocks, so PostgreSQL's own counts; SQLite is of one host.
    """

    type = Moment()
    inherit_cache = True

    def __init__(self, *, plus: float | ColumnElement[float] = 0.0) -> None:
        super().__init__(literal(plus, Float()) if isinstance(plus, float | int) else plus)


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"clock_timestamp() + make_interval(secs => {seconds})"


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return f"clock({compiler.process(element.clauses, **options)})"


def _clock(plus: float) -> str:
    """As SQLAlchemy stores a datetime in SQLite, to the microsecond."""
    moment = datetime.now(UTC) + timedelta(seconds=plus)
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


class _Turns:
    """Gives *count* turns at a time, in the order of asking.

    A plain lock or pool lets who comes at the right moment pass those who wait: of 64 threads on
    16 connections, some waited for 10 s.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Lock] = deque()
        self._counting = Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            self._pass_on()

    def _take(self) -> None:
        with self._counting:
            if self._free:
                self._free -= 1
                return
            called = Lock()
            called.acquire()
            self._waiting.append(called)
        mine = False
        try:
            mine = called.acquire(timeout=PATIENCE)
        finally:
            if not mine:
                self._leave(called)
        if not mine:
            raise TimedOut(f"no turn at the database within {PATIENCE:g} s")

    def _leave(self, called: Lock) -> None:
        with self._counting:
            if called in self._waiting:
                self._waiting.remove(called)
                return
        self._pass_on()  # it was called in the last moment

    def _pass_on(self) -> None:
        with self._counting:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


@dataclass(frozen=True, slots=True)
class _Database:
    """An engine, and whose turn it is to use a connection or, where only one can, to write.

    SQLite lets its writers poll for the lock; among threads it is better to queue.
    """

    engine: Engine
    connections: _Turns = field(default_factory=lambda: _Turns(CONNECTIONS))
    writing: _Turns = field(default_factory=lambda: _Turns(1))


_databases: dict[str, _Database] = {}
_opening = Lock()
_inherited: list[_Database] = []


def engine(url: str | None = None) -> Engine:
    """The engine of this process for *url* or, without one, for `DATABASE_URL`."""
    return _open(url).engine


def build(url: str, *, patience: float = PATIENCE, pooled: bool = True) -> Engine:
    """Make an engine of your own; a statement on it gives up after *patience* seconds.

    Raises:
        ValueError: for an SQLite database in memory, which no two connections would share.
    """
    address = make_url(url)
    options: dict[str, Any] = {"poolclass": NullPool}
    if pooled:
        options = {"poolclass": QueuePool, "pool_size": CONNECTIONS, "max_overflow": 0}
    if address.get_backend_name() == "sqlite":
        return _sqlite(address, patience, options)
    arguments = _postgresql_arguments(address, patience)
    made = create_engine(address, connect_args=arguments, **options)
    _ping_what_has_rested(made)
    return made


def _use_wal(connection: Any, patience: float) -> None:
    """Have SQLite write ahead; processes that start at once do so, too.

    The file remembers. SQLite does not wait for who is just changing it, whatever its timeout.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(SHORTLY)
        else:
            return


def _sqlite(address: URL, patience: float, options: dict[str, Any]) -> Engine:
    if address.database in {None, "", ":memory:"} or address.query.get("mode") == "memory":
        raise ValueError("DATABASE_URL names an SQLite database in memory; give it a file")
    made = create_engine(address, connect_args={"timeout": patience}, **options)

    @event.listens_for(made, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        _use_wal(connection, patience)
        # A power cut that took back an `intended` would let an effect happen twice.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.create_function("clock", 1, _clock)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            # A transaction that reads first and writes later cannot wait for another writer.
            connection.exec_driver_sql(BEGIN)

    return made


def _ping_what_has_rested(made: Engine) -> None:
    """Notice a restarted server before a job is charged an attempt for it.

    SQLAlchemy's own `pool_pre_ping` does so at every use, which took a third of the throughput.
    """

    @event.listens_for(made, "checkin")
    def _remember(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(made, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        if time.monotonic() - record.info.get("rests_since", math.inf) > RESTED:
            try:
                made.dialect.do_ping(connection)
            except made.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError from error  # it makes the pool connect anew


def _postgresql_arguments(address: URL, patience: float) -> dict[str, str | int]:
    """Deadlines for everything that waits on the network; what the URL says wins."""
    milliseconds = int(patience * 1000)
    deadlines: dict[str, str | int] = {
        "connect_timeout": int(PATIENCE),
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        # The second one frees the rows that a vanished host of ours had locked.
        "options": f"-c statement_timeout={milliseconds}"
        f" -c idle_in_transaction_session_timeout={milliseconds}",
    }
    return {name: value for name, value in deadlines.items() if name not in address.query}


@contextmanager
def read() -> Iterator[Connection]:
    """Lend a connection on which every statement stands alone."""
    database = _open()
    with database.connections.one(), database.engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def write() -> Iterator[Connection]:
    """Lend a connection for one writing statement; on PostgreSQL it costs one round trip."""
    lend = transaction if _is_sqlite(engine()) else read
    with lend() as connection:
        yield connection


@contextmanager
def transaction() -> Iterator[Connection]:
    """Lend a connection for a few statements that take effect together or not at all.

    Borrow no other connection meanwhile: on SQLite it would wait for this one to end.
    """
    database = _open()
    with (
        database.writing.one() if _is_sqlite(database.engine) else nullcontext(),
        database.connections.one(),
        database.engine.begin() as connection,
    ):
        yield connection


def insert(table: Table, dialect: str) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that knows ON CONFLICT."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def storable(text: str) -> str:
    """Return *text* as every database takes it: JSON has NUL and half surrogate pairs, too."""
    return _UNSTORABLE.sub(REPLACEMENT, text)


def _is_sqlite(an_engine: Engine) -> bool:
    return an_engine.dialect.name == "sqlite"


def _open(url: str | None = None) -> _Database:
    url = url or settings().database_url
    with _opening:
        if url not in _databases:
            _databases[url] = _Database(build(url))
        return _databases[url]


def _before_fork() -> None:
    # SQLite keeps its locks in the memory of the process; a child must inherit none.
    for database in list(_databases.values()):
        if _is_sqlite(database.engine):
            database.engine.dispose()


def _after_fork() -> None:
    global _opening  # noqa: PLW0603  # another thread of the parent may have held it
    # Kept, not closed: closing here would end the parent's sessions.
    _inherited.extend(_databases.values())
    _databases.clear()
    _opening = Lock()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
