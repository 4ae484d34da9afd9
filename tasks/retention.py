"""Dead letters move from Redis to the archive when they are old, or too many."""

from __future__ import annotations

from collections.abc import Iterator

from config.settings import settings
from reliability.dead_letters import Filter, Letter, dead_letters
from storage import archive
from storage.archive import Archived

AT_ONCE = 10_000  # letters of one run: what is left is for the next


def trim() -> int:
    """Archive what `DEAD_LETTER_DAYS` and `DEAD_LETTERS_KEPT` say; return how many letters.

    Raises:
        RedisError: Redis does not answer. So does the database with an error of SQLAlchemy's; what
            was not archived stays.
    """
    config = settings()
    return dead_letters().trim(
        keep, days=config.dead_letter_days, kept=config.dead_letters_kept, at_most=AT_ONCE
    )


def keep(letters: list[Letter]) -> None:
    """Write letters to the archive."""
    archive.keep([archived(letter) for letter in letters])


def archived_ones(which: Filter) -> Iterator[Letter]:
    """Go through the letters that are in the archive, newest first; its texts are in no index."""
    those = archive.Which(
        which.state, which.task, which.error_type, which.fingerprint, which.since, which.until
    )
    letters = (Letter.from_json(each.letter) for each in archive.each(those))
    return (x for x in letters if x.mentions(which.grep)) if which.grep else letters


def archived(letter: Letter) -> Archived:
    """Return a letter as the archive has it; `Letter.from_json` reads its record again."""
    return Archived(
        message_id=letter.message_id,
        failed_at=letter.metadata.failed_at,
        state=letter.state,
        task=letter.message_body.task,
        error_type=letter.error_type,
        fingerprint=letter.fingerprint,
        letter=letter.to_json(),
    )
