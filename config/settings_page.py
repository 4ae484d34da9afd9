"""The settings as a page for people: `python -m config.settings_page > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import UnionType
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from config.settings import Settings

INTRODUCTION = """\
# Configuration

Written by `python -m config.settings_page > docs/configuration.md`; change `config/settings.py`,
not this page.

Everything is set by environment variables, read once, when a process starts: a change needs a
restart. An empty variable counts as not set. A value that cannot be used ends the process with
exit code 2 and one sentence, which names the variable and never its value. Secrets are kept out of
logs, and `•••` stands for them in dead letters.

Redis has to be named one way or another, by `REDIS_URL`, `VALKEY_URL`, `REDIS_HOST` or
`CELERY_BROKER_URL`; the first that is set, in this order, counts. Everything else has a default or
is needed for one purpose only: workers take the jobs of a queue where its upstream is named, the
portal by `BITRIX_WEBHOOK_URL`, KIE.AI by `KIE_API_KEY`, the bot by `TELEGRAM_BOT_TOKEN`, X by
`X_CLIENT_ID` (or by another `X_BASE_URL`); elsewhere they leave them to others. The deadlines and
the breaker of an upstream are not settings; they stand in `config/services.py`. What follows a
failure is told in [failures.md](failures.md).
"""
COLUMNS = ("variable", "value", "default", "meaning")
KINDS: dict[type, str] = {
    SecretStr: "secret",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
}


def page() -> str:
    """Return the page: an introduction, and a table of every variable."""
    head = f"{line(COLUMNS)}\n|{'---|' * len(COLUMNS)}\n"
    rows = "\n".join(line(cells(name, field)) for name, field in Settings.model_fields.items())
    return f"{INTRODUCTION}\n{head}{rows}\n"


def variables() -> list[str]:
    """Return the name of every variable, in the order of the settings."""
    fields = Settings.model_fields.items()
    return [variable for name, field in fields for variable in names(name, field)]


def names(name: str, field: FieldInfo) -> list[str]:
    """Return the variables that set this field, the stronger first."""
    match field.validation_alias:
        case AliasChoices(choices=choices):
            return [str(choice) for choice in choices]
        case str(alias):
            return [alias]
        case _:
            return [name.upper()]


def cells(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the row of one field, one text for each of `COLUMNS`."""
    called = " or ".join(f"`{variable}`" for variable in names(name, field))
    return called, value(field), default(field), field.description or ""


def value(field: FieldInfo) -> str:
    """Say what kind of value it takes, and within which bounds."""
    return ", ".join([KINDS[kind(field.annotation)], *bounds(field)])


def kind(annotation: Any) -> type:
    """Return the type of an annotation without its None."""
    types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    found: type = next(one for one in types if one is not type(None))
    return found


def bounds(field: FieldInfo) -> Iterator[str]:
    """Yield each bound in words."""
    for bound in field.metadata:
        match bound:
            case Ge(ge=least):
                yield f"at least {least:g}"
            case Gt(gt=below):
                yield f"above {below:g}"
            case Le(le=most):
                yield f"at most {most:g}"
            case MinLen():
                yield "not empty"


def default(field: FieldInfo) -> str:
    """Return the value that counts where none is set."""
    match field.default:
        case None | "":
            return "–"
        case bool(truth):
            return f"`{str(truth).lower()}`"
        case int() | float() as number:
            return f"`{number:g}`"
        case other:
            return f"`{other}`"


def line(texts: tuple[str, ...]) -> str:
    """Return a line of a table; a bar inside a cell would end it."""
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
