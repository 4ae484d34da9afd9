"""A "Dead letters" entry inside Flower, behind its login; it only shows, the console repairs.

Flower 2.2 has no place for plug-ins (CELERY.md 6): `install` is called by `flowerconfig.py` before
Flower reads its list of handlers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from flower import urls
from flower.views import BaseHandler
from tornado.template import BaseLoader, Loader, Template
from tornado.web import HTTPError, authenticated, url

from admin import view
from config.settings import settings
from reliability.connection import RedisError
from reliability.dead_letters import Filter, dead_letters

TEMPLATES = Path(__file__).parent / "templates"
ENTRY = (TEMPLATES / "entry.html").read_text(encoding="utf-8")
# Where the entry goes: behind Flower's own last one.
BROKER = ">Broker</a>\n        </li>\n"
CAUSES = 50  # shown on one page; who has more of them needs the console
LETTERS = 50


class DeadLettersView(BaseHandler):
    """What jobs have died of, the most frequent first, or the letters of one cause."""

    @authenticated
    async def get(self, fingerprint: str = "") -> None:
        """Show the page; Redis is asked in a thread, beside Flower's own work."""
        loop = self.application.io_loop
        try:
            shown = await loop.run_in_executor(
                None, letters_of if fingerprint else causes, fingerprint
            )
        except RedisError as error:
            raise HTTPError(503, f"Redis cannot be reached: {type(error).__name__}") from None
        self.render("dead_letters.html", fingerprint=fingerprint, **shown)


def causes(_: str) -> dict[str, Any]:
    """Return the groups of open letters, and how many letters there are in all."""
    store = dead_letters()
    rows = [view.group_row(group) for group in store.groups(limit=CAUSES)]
    return {"groups": rows, "letters": [], "count": store.count(Filter(state="open"))}


def letters_of(fingerprint: str) -> dict[str, Any]:
    """Return the newest open letters of one cause, and how many it has."""
    store, which = dead_letters(), Filter(state="open", fingerprint=fingerprint)
    page = store.page(which, limit=LETTERS)
    rows = [view.letter_row(letter) for letter in page.letters]
    return {"groups": [], "letters": rows, "count": store.count(which)}


def console(*path: str) -> str:
    """Return the address of a page of the console; empty where nobody has said where it is."""
    base = settings().public_url
    return "/".join([f"{base}/console", *(quote(part, safe="") for part in path)]) if base else ""


class WithOurs(BaseLoader):
    """Flower's templates, with our page beside them and our entry in the navigation."""

    def __init__(self, theirs: str) -> None:
        super().__init__(namespace={"console": console})
        self.theirs = Loader(theirs)

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Return the name itself: there are no folders."""
        del parent_path
        return name

    def _create_template(self, name: str) -> Template:
        ours = TEMPLATES / name
        source = ours if ours.is_file() else Path(self.theirs.root) / name
        text = source.read_text(encoding="utf-8")
        if name == "navbar.html":
            text = text.replace(BROKER, BROKER + ENTRY, 1)
        return Template(text, name=name, loader=self)


def install() -> None:
    """Add our page to Flower's; once for a process, before its application is made."""
    pages = [
        url(r"/dead-letters", DeadLettersView, name="dead-letters"),
        url(r"/dead-letters/([0-9a-f]+)", DeadLettersView, name="dead-letters-of"),
    ]
    urls.handlers[-1:-1] = pages  # the last one takes every address that no other has taken
    urls.settings["template_loader"] = WithOurs(urls.settings["template_path"])
