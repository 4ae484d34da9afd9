"""The demo's crawls: whose bookmarks, what goes wrong with them, and what must come of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice
from math import ceil
from typing import Any, Literal, get_args

from config.services import PAGE
from sandbox.faults import Fault
from sandbox.x_answers import LIMIT_ROWS
from sandbox.x_posts import Invalid, Item
from sandbox.x_shelf import Flaw

Json = Mapping[str, Any]
# What has become of the access that we were given: it has ended, which X will tell us; it is about
# to end, which we know; or its user has taken it back.
Access = Literal["good", "ended", "ending", "gone"]

USER = 1_400_000_000  # an id of X's; this makes them all equally long
USUAL = 250  # bookmarks: three pages
MANY = 800  # bookmarks: nine pages, for which one window has too few requests
LIMIT = 3  # requests of a user in a window of 5 s; really 180 in 15 minutes (UPSTREAMS 4)
WINDOW = ("--limit", str(LIMIT), "--window", "5")
AWAY = 20.0  # seconds in which an answer is on its way; it takes less to kill a worker
RESET = 2.0  # seconds to the end of a limit that is scripted
IN_ORDER = "in order"


@dataclass(frozen=True, slots=True)
class Story:
    """What goes wrong with a crawl, and what must come of it all the same.

    A fault's `about` is the position at which the page begins that it strikes. The last request of
    a window is spared, for its answer says so: without that we would break the limit. A user whose
    access is good no more gives it again once we say so: *given_again*. A crawl that is *cancelled*
    in the middle is asked for once more; what is *asked* for twice is asked for twice at once.
    """

    name: str
    users: int = 1
    bookmarks: int = USUAL
    flaws: tuple[Flaw, ...] = ()
    faults: tuple[Fault, ...] = ()
    access: Access = "good"
    given_again: bool = False
    asked: int = 1
    cancelled: bool = False

    @property
    def pages(self) -> int:
        """Requests that one crawl takes where all is in order."""
        return max(1, ceil(self.bookmarks / PAGE))

    @property
    def in_vain(self) -> int:
        """Requests for a page that bring none, or one that nobody gets."""
        refused = self.access in {"ended", "gone"}
        return refused + sum(
            fault.method == "bookmarks" and fault.kind != "slow" for fault in self.faults
        )

    @property
    def limit_answers(self) -> int:
        """Answers that tell of a limit: those that are scripted, we break none."""
        return sum(fault.code in LIMIT_ROWS for fault in self.faults)

    @property
    def renewals(self) -> int:
        """Pairs of tokens that X gives for a refresh token."""
        return int(self.access in {"ended", "ending"})


def _every_kind() -> Iterator[Flaw]:
    """Yield each kind of invalid bookmark twice, on different pages."""
    for number, kind in enumerate(get_args(Invalid)):
        yield Flaw(7 + 13 * number, kind)
        yield Flaw(USUAL - 7 - 13 * number, kind)


def _on_page(position: int, kind: str, **more: Any) -> tuple[Fault, ...]:
    return (Fault(kind, "bookmarks", about=str(position), **more),)  # type: ignore[arg-type]


TOO_MANY, LEGACY = LIMIT_ROWS
# Asked for before the worker is killed. No token is renewed then: the answer would die with it.
OVERTURE = (
    # First of all: our own pause, shortened like all of them, is the longest wait of the demo.
    Story("a limit without a word of its end", faults=_on_page(0, "error", code=TOO_MANY)),
    Story(
        "the worker dies while X answers",
        faults=_on_page(0, "slow", seconds=AWAY, after=True),
        flaws=(Flaw(40, "no_id"), Flaw(100, "no_text")),
    ),
    Story(IN_ORDER, 2),
)
STORIES = (
    Story("cancelled, and asked for again", bookmarks=MANY, cancelled=True),
    Story("the access has been taken back", access="gone", given_again=True),
    Story(
        "the answer to a renewal is lost, and the access with it",
        access="ending",
        faults=(Fault("lost_answer", "token"),),
        given_again=True,
    ),
    Story("more pages than one window lets through", 2, MANY),
    Story("the token has ended", 2, access="ended"),
    Story("the token is about to end", access="ending"),
    Story("a limit", faults=_on_page(90, "error", code=TOO_MANY, seconds=RESET)),
    Story("a limit, in X's old words", faults=_on_page(0, "error", code=LEGACY, seconds=RESET)),
    Story("X is overloaded", faults=_on_page(90, "error", code="over_capacity")),
    Story("the gateway breaks down", faults=_on_page(0, "status", status=502)),
    Story("an answer is lost", 2, faults=_on_page(90, "lost_answer")),
    Story("the connection is reset", faults=_on_page(0, "refuse", drop="reset")),
    Story("a page that is no JSON", faults=_on_page(0, "non_json")),
    Story("bookmarks that are none", 2, flaws=tuple(_every_kind())),
    Story(
        "not all of it is shown",
        flaws=(Flaw(3, "gone"), Flaw(95, "protected"), Flaw(96, "unhydrated")),
    ),
    Story("half a character, and none", flaws=(Flaw(5, "lone_surrogate"), Flaw(6, "nul_text"))),
    Story("nothing is bookmarked", bookmarks=0),
    Story("asked for twice", asked=2),
    Story(IN_ORDER, 4),
)


@dataclass(frozen=True, slots=True)
class Reader:
    """A user of X whose bookmarks are crawled."""

    number: int
    story: Story

    @property
    def id(self) -> str:
        return str(USER + self.number)

    @property
    def arrival(self) -> Json:
        """What X is told of the user (`sandbox.x_users.Arrival`)."""
        arrival = {
            "id": self.id,
            "bookmarks": self.story.bookmarks,
            "invalid": [asdict(flaw) for flaw in self.story.flaws],
            **self._tokens,
        }
        return arrival | {"expires_in": 0} if self.story.access == "ended" else arrival

    @property
    def items(self) -> list[Item]:
        """The bookmarks as X has them, the oldest first."""
        kinds = {self.story.bookmarks - flaw.position: flaw.kind for flaw in self.story.flaws}
        numbers = range(1, self.story.bookmarks + 1)
        return [Item(self.id, number, kinds.get(number)) for number in numbers]

    @property
    def credential(self) -> Json:
        """What we are told of the user's access (`storage.credentials.save`)."""
        ends = datetime.now(UTC) if self.story.access == "ending" else None
        return {**self._tokens, "expires_at": ends}

    @property
    def _tokens(self) -> Json:
        return {"access_token": f"access-{self.id}", "refresh_token": f"refresh-{self.id}"}


def _told(numbers: Iterator[int], stories: Sequence[Story]) -> Iterator[Reader]:
    for story in stories:
        for number in islice(numbers, story.users):
            yield Reader(number, story)


_numbers = count(1)
BEFORE, AFTER = (tuple(_told(_numbers, stories)) for stories in (OVERTURE, STORIES))
READERS = (*BEFORE, *AFTER)


def faults() -> list[Json]:
    """Return what is to go wrong between X and us, each for one user alone."""
    return [
        asdict(replace(fault, about=f"/{reader.id}/{fault.about}/"))
        for reader in READERS
        for fault in reader.story.faults
    ]


def taken_back() -> list[str]:
    """Return the users who have taken back what they had given us."""
    return [reader.id for reader in READERS if reader.story.access == "gone"]


def outcomes() -> Mapping[str, int]:
    """Return how many crawls must end with which word."""
    asked = sum(reader.story.asked for reader in READERS)
    return {"completed": asked, "cancelled": sum(reader.story.cancelled for reader in READERS)}
