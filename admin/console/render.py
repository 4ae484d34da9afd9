"""Pages: one environment of templates, what all of them know, and how they show times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse

from admin import view
from admin.console import words
from admin.console.session import Operator, said, say, was_told
from config.settings import settings

HERE = Path(__file__).parent
STATIC = HERE / "static"
REFRESHES = range(2, 61)  # s; faster would be a load, slower nobody waits for
DIGITS = 4
SOON = 1.0  # s that count as now
MINUTE, HOUR, DAY = 60, 3600, 86_400


class Place(NamedTuple):
    """An entry of the navigation."""

    path: str
    name: str


PLACES = (
    Place("/", "Overview"),
    Place("/groups", "Dead letters"),
    Place("/replays", "Replays"),
    Place("/parked", "Parked"),
    Place("/gates", "Gates"),
    Place("/holds", "Holds"),
    Place("/videos", "Videos"),
    Place("/credits", "Credits"),
    Place("/crawls", "Crawls"),
)


def page(
    request: Request, template: str, *, place: str = "", status: int = 200, **facts: Any
) -> HTMLResponse:
    """Return a page; *place* is where the navigation says that we are."""
    told = said(request)
    common = {
        "root": request.scope["root_path"],
        "operator": operator(request),
        "place": place,
        "places": PLACES,
        "said": told,
        "refresh": refresh(request),
        "refresh_address": refresh_address(request),
        "flower": settings().flower_url.rstrip("/"),
    }
    html = environment().get_template(template).render(common | facts)
    # Half a surrogate pair in somebody's payload is no UTF-8; the page has to show the rest of it.
    response = HTMLResponse(html.encode("utf-8", "backslashreplace"), status)
    if told:
        was_told(response, request)
    return response


def operator(request: Request) -> Operator | None:
    """Return who looks at the page; None where nobody has signed in."""
    return getattr(request.state, "operator", None)


def name_of(request: Request) -> str:
    """Return the name that stands in what this operator changes."""
    found = operator(request)
    assert found is not None  # noqa: S101 - every route depends on `signed_in`
    return found.name


def done(request: Request, path: str, text: str, *, well: bool = True) -> RedirectResponse:
    """Go to a page of ours after an action, and say there what it did."""
    response = RedirectResponse(f"{request.scope['root_path']}{path}", status_code=303)
    say(response, request, text, well=well)
    return response


def refresh(request: Request) -> int:
    """Return the seconds after which the page is to load itself again; 0 is never."""
    asked = request.query_params.get("refresh", "")
    # Python refuses to read a number of thousands of digits.
    known = asked.isascii() and asked.isdigit() and len(asked) < DIGITS and int(asked) in REFRESHES
    return int(asked) if known else 0


def refresh_address(request: Request) -> str:
    """Return this page's address with the refreshing turned on, or off if it is on."""
    rest = [(k, v) for k, v in request.query_params.multi_items() if k != "refresh"]
    asked = rest if refresh(request) else [*rest, ("refresh", "5")]
    return "?" + urlencode(asked)


@cache
def environment() -> Environment:
    """The templates: everything is escaped, and a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "ago": ago,
        "at": at,
        "iso": iso,
        "span": span,
        "number": number,
        "pretty": pretty,
        "part": part,
        "query": query,
        "worded": worded,
    }
    made.globals |= {
        "style": f"static/console.css?v={_version('console.css')}",
        "icon": f"static/icon.svg?v={_version('icon.svg')}",
        "words": words,
        "explain": view.explain,
    }
    return made


def moment(value: datetime | str | float) -> datetime:
    """Return a time, however the read model spells it."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime.fromtimestamp(value, UTC)


def ago(value: datetime | str | float) -> str:
    """Say how long ago a time was, or how far off it is."""
    seconds = time.time() - moment(value).timestamp()
    if abs(seconds) < SOON:
        return "now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def span(seconds: float) -> str:
    """Say a length of time in its two largest units at most."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min"
    if whole < DAY:
        hours, minutes = divmod(whole // MINUTE, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(whole // HOUR, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def at(value: datetime | str | float) -> str:
    """Return a time in UTC, without the year if it is this one."""
    when = moment(value).astimezone(UTC)
    this_year = when.year == datetime.now(UTC).year
    return when.strftime("%d %b %H:%M:%S" if this_year else "%d %b %Y %H:%M:%S")


def iso(value: datetime | str | float) -> str:
    """Return a time for machines."""
    return moment(value).isoformat(timespec="seconds")


def number(value: float) -> str:
    """Return a number with thin spaces between its thousands."""
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def pretty(value: Any) -> str:
    """Return a value as JSON that a person can read."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def worded(text: str) -> Markup:
    """Return a sentence of ours with what stands between backticks as code."""
    pieces = str(escape(text)).split("`")
    shown = (f"<code>{piece}</code>" if n % 2 else piece for n, piece in enumerate(pieces))
    return Markup("".join(shown))  # noqa: S704  every piece is escaped


def part(text: str) -> str:
    """Return a text as a part of a path."""
    return quote(text, safe="/")


def query(values: Mapping[str, str]) -> str:
    """Return what follows a question mark, without what is empty."""
    return urlencode({name: value for name, value in values.items() if value})


SPANS = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "4h": timedelta(hours=4),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}  # what forms offer; a command line takes any


def from_now(spell: str, sign: int) -> datetime | None:
    """Return the time a spell before (-1) or after (1) now; None for none of `SPANS`."""
    return datetime.now(UTC) + sign * SPANS[spell] if spell in SPANS else None


def _version(name: str) -> str:
    return sha256((STATIC / name).read_bytes()).hexdigest()[:10]
