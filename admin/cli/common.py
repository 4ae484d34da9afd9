"""What all commands share: options, errors in one sentence, tables and JSON."""

from __future__ import annotations

import getpass
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import islice
from operator import itemgetter
from textwrap import indent
from typing import Any, TypeVar

import click
from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from classifiers.errors import InvalidData, NotConfigured, Pending
from reliability.connection import RedisError
from tasks.base import classified

F = TypeVar("F", bound=Callable[..., Any])

PIPED_WIDTH = 200  # columns
SHOWN = 100  # rows of a table; --json shows everything unless --limit is given

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limited = click.option("--limit", type=click.IntRange(1), help="Show at most so many.")
confirmed = click.option("--yes", is_flag=True, help="Do not ask.")


def guarded(command: F) -> F:
    """Say in one sentence that Redis is away, or what cannot be sent, instead of a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except RedisError as error:
            raise click.ClickException(f"Redis does not answer: {error}") from error
        except (OperationalError, AMQPError) as error:
            raise click.ClickException(f"the broker does not answer: {error}") from error
        except InvalidData as error:
            raise click.ClickException(error.detail) from error

    return run  # type: ignore[return-value]  # click's decorators leave no signature to keep


@contextmanager
def the_database() -> Iterator[None]:
    """Say in one sentence what is wrong with the database or refused by it."""
    try:
        yield
    except (click.ClickException, RedisError, OperationalError, AMQPError):
        raise  # it says, or `guarded` does, which it is
    except (InvalidData, NotConfigured, Pending) as error:
        raise click.ClickException(error.detail) from error
    except Exception as error:
        raise click.ClickException(
            f"the database cannot be used: {classified(error)} (check DATABASE_URL)"
        ) from error


Columns = dict[str, Callable[[dict[str, Any]], Any]]


def plain(*names: str) -> Columns:
    return {name: itemgetter(name) for name in names}


def rows_of(
    items: Iterable[Any], limit: int | None, as_json: bool, row: Callable[[Any], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    most = limit if limit is not None or as_json else SHOWN
    return map(row, islice(items, most))


def print_rows(
    rows: Iterable[dict[str, Any]],
    columns: Columns,
    as_json: bool,
    nothing: str,
) -> None:
    """Print a table, or an array of JSON, one row after the other: there may be a million."""
    if as_json:
        print_array(rows)
        return
    rows = list(rows)
    if not rows:
        click.echo(nothing)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        wordy = name in {"message", "explanation", "note"}
        table.add_column(name, overflow="fold" if wordy else "ellipsis", no_wrap=not wordy)
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        # What upstreams and people have written is no markup.
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in cells))
    console().print(table)


def console() -> Console:
    """Return where tables go; a pipe or a file has no width, so it gets a wide one."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def print_json(value: Any) -> None:
    click.echo(_as_json(value))


def print_array(values: Iterable[Any]) -> None:
    before = "["
    for value in values:
        click.echo(f"{before}\n{indent(_as_json(value), '  ')}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without an entry
        return "somebody"


def exit_unless(done: bool) -> None:
    if not done:
        raise SystemExit(1)
