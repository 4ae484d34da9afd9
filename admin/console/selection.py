"""Which letters a page or an action is about: a filter as it stands in an address or a form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import Form, HTTPException, Query

from admin.console.render import SPANS, from_now
from reliability.dead_letters import STATES, Filter, Letter, dead_letters

SAMPLE = 20  # letters that are looked at before a person says yes to all
NAMED = 500  # letters at most that a search for a text may hand to an action


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter as people have written it, and as `dead_letters()` understands it."""

    which: Filter
    since: str = ""

    @property
    def query(self) -> dict[str, str]:
        """What leads to the same selection in an address."""
        which = self.which
        state = "" if which.state == "open" else which.state
        words = {"task": which.task, "error_type": which.error_type, "q": which.grep}
        return words | {"fingerprint": which.fingerprint, "since": self.since, "state": state}

    @property
    def sentence(self) -> str:
        """What is selected, in words."""
        which = self.which
        parts = [
            f"of {which.task}" if which.task else "",
            f"with {which.error_type}" if which.error_type else "",
            f"of the cause {which.fingerprint}" if which.fingerprint else "",
            f"of the last {self.since}" if self.since else "",
            f"that mention “{which.grep}”" if which.grep else "",
        ]
        return " ".join(filter(None, parts)) or "in all"


def selected(
    task: Annotated[str, Query()] = "",
    error_type: Annotated[str, Query()] = "",
    fingerprint: Annotated[str, Query()] = "",
    since: Annotated[str, Query()] = "",
    q: Annotated[str, Query()] = "",
    state: Annotated[str, Query()] = "open",
) -> Selection:
    """Read a selection from an address; what makes no sense in it is left out."""
    since = since if since in SPANS else ""
    state = state if state in {*STATES, "all"} else "open"
    names = (task.strip(), error_type.strip(), fingerprint.strip())
    which = Filter(state, *names, from_now(since, -1), grep=q.strip())
    return Selection(which, since)


@dataclass(frozen=True, slots=True)
class Picked:
    """What an action is about: *ids*, else the *count* letters of a filter.

    Letters that die from now on are not among it.
    """

    which: Filter
    ids: tuple[str, ...]
    count: int

    def letters(self, most: int | None = None) -> list[Letter]:
        """Return up to *most* of them, the newest first."""
        if self.ids:
            found = map(dead_letters().get, self.ids[:most])
            return [letter for letter in found if letter is not None]
        return list(islice(dead_letters().each(self.which), most))


def pick(selection: Selection) -> Picked:
    """Return the open letters of a selection, as they are at this moment.

    A text is looked for in as many letters as one page looks through, so that no request reads a
    million of them; what is found is picked by its id.
    """
    which = replace(selection.which, state="open", until=datetime.now(UTC))
    if not which.grep:
        return Picked(which, (), dead_letters().count(which))
    ids = tuple(x.message_id for x in dead_letters().page(which, limit=NAMED).letters)
    return Picked(which, ids, len(ids))


def confirmed(
    task: Annotated[str, Form()] = "",
    error_type: Annotated[str, Form()] = "",
    fingerprint: Annotated[str, Form()] = "",
    since: Annotated[str, Form()] = "",
    until: Annotated[str, Form()] = "",
    q: Annotated[str, Form()] = "",
    ids: Annotated[list[str] | None, Form()] = None,
) -> Picked:
    """Read back what a person was asked about: the same letters, whatever has died since."""
    which = Filter("open", task, error_type, fingerprint, _moment(since), _moment(until), q)
    named = tuple(ids or ())[:NAMED]
    # Without its end a selection would grow by what has died since it was looked at.
    unread = (since and which.since is None) or (which.until is None and not named)
    if unread:
        raise HTTPException(422, "the form is not whole: look at the letters once more")
    return Picked(which, named, len(named) or (0 if q else dead_letters().count(which)))


def fields(picked: Picked) -> list[tuple[str, str]]:
    """Return the hidden fields that `confirmed` reads."""
    which = picked.which
    values: dict[str, Any] = {
        "task": which.task,
        "error_type": which.error_type,
        "fingerprint": which.fingerprint,
        "since": which.since.isoformat() if which.since else "",
        "until": which.until.isoformat() if which.until else "",
        "q": which.grep,
    }
    return [(name, value) for name, value in values.items() if value] + [
        ("ids", each) for each in picked.ids
    ]


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except (ValueError, OverflowError):
        return None
