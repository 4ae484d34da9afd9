"""`celery -A tasks dlq export|import`: letters as lines of JSON, to be kept or moved elsewhere."""

from __future__ import annotations

import os
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import click
from pydantic import TypeAdapter, ValidationError

from admin.cli.common import exit_unless, guarded
from admin.cli.picking import chosen
from reliability.dead_letters import OWED, STATES, Filter, Letter, dead_letters
from tasks.base import END_OF_TIME

SHAPE = TypeAdapter(Letter)


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@chosen
@click.option("--state", type=click.Choice([*STATES, "all"]), default="open")
@guarded
def export(file: str, which: Filter, state: str) -> None:
    """Write letters to FILE (- for the output), one line of JSON each; they stay where they are."""
    count = 0
    with written(file) as lines:
        for letter in dead_letters().each(replace(which, state=state)):
            lines.write(letter.to_json() + "\n")
            count += 1
    click.echo(f"exported {count}", err=True)


@contextmanager
def written(file: str) -> Iterator[IO[str]]:
    """Open a file that is there when it is whole, and that nobody else may read."""
    if file == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    place = Path(file)
    draft = place.with_name(f".{place.name}.part")
    try:
        draft.unlink(missing_ok=True)
        private = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(private, "w", encoding="utf-8") as lines:
            yield lines
        draft.replace(place)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@click.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8", errors="surrogateescape"))
@guarded
def bring_in(file: IO[str]) -> None:
    """Bury the letters in FILE (- for the input) that are not known here; twice is once."""
    counts: Counter[str] = Counter()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            letter = read(line)
        except ValueError as error:
            counts["bad"] += 1
            click.echo(f"line {number}: {error}", err=True)
            continue
        new = restored(letter)
        counts["imported" if new else "known"] += 1
        counts["owing"] += new and letter.compensation.state in OWED
    click.echo(f"imported {counts['imported']}, known already {counts['known']}")
    if counts["owing"]:
        click.echo(
            f"what the jobs of {counts['owing']} of them had begun is made good from here: it is "
            "sent within the hour, whether or not it was sent where they come from"
        )
    exit_unless(not counts["bad"])


def read(line: str) -> Letter:
    """Read a line that `export` has written, and that a person may have changed since.

    Raises:
        ValueError: it is no letter, or a value in it is not what it has to be.
    """
    try:
        letter = SHAPE.validate_json(line)
    except ValidationError as error:
        flaw = error.errors(include_url=False)[0]
        place = ".".join(map(str, flaw["loc"])) or "not a dead letter"
        raise ValueError(f"{place}: {flaw['msg']}") from error
    b64decode(letter.raw, validate=True)
    if not letter.message_id:
        raise ValueError("message_id: is empty")
    if letter.state not in STATES:
        raise ValueError(f"state: is none of {', '.join(STATES)}")
    if not 0 < letter.metadata.failed_at.timestamp() < END_OF_TIME:
        raise ValueError("metadata.failed_at: is no time at which a job can have died")
    return letter


def restored(letter: Letter) -> bool:
    """Bury a letter in the state it was in. False if it is known here, and left as it is.

    One that a crash has left open between the two is known and open: it is settled now.
    """
    store = dead_letters()
    known = store.get(letter.message_id)
    if known is not None and not _is_half_done(known, letter):
        return False
    store.bury(replace(letter, replays=max(0, letter.replays - (letter.state == "replayed"))))
    settled = {"by": letter.settled_by, "note": letter.note}
    if letter.state == "discarded":
        store.discard(letter.message_id, **settled)
    elif letter.state == "replayed":
        store.mark_replayed(replace(letter, replays=letter.replays - 1), **settled)
    return True


def _is_half_done(known: Letter, letter: Letter) -> bool:
    same = known.metadata.failed_at == letter.metadata.failed_at
    return same and known.state == "open" and letter.state != "open"
