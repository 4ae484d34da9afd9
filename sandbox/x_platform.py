"""The simulated X API without HTTP: an app, the users who let it in, and their bookmarks."""

from __future__ import annotations

import asyncio
import math
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from secrets import compare_digest
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from sandbox.faults import Call, Fault, FaultPlan
from sandbox.journal import Entry, Journal, digest
from sandbox.replies import Reply, endured
from sandbox.x_answers import (
    JSON,
    LIMIT_ROWS,
    PROBLEMS,
    Refused,
    invalid,
    media_type,
    refused,
    said,
    worded,
)
from sandbox.x_grants import SCOPES, Grants
from sandbox.x_listing import listed, read_listing
from sandbox.x_posts import Generation
from sandbox.x_users import Addition, Arrival, Authorization, User
from sandbox.x_window import Window, limit_headers

Method = Literal["bookmarks", "token"]
Host = Literal["api.x.com", "api.twitter.com"]  # UPSTREAMS 4.1: the new one and the old


@dataclass(frozen=True, slots=True)
class PlatformSettings:
    """How the API behaves; all times are seconds.

    Without *client_secret* the app is a public client. Each user may send *limit* requests (0: any
    number) within *window*. *generation* says which names of fields are taken and answered with,
    *problems* is the host that types of problems are at. An access token lives *expires_in*.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    client_id: str = "sandbox"
    client_secret: str = ""
    limit: Annotated[int, Field(ge=0)] = 180
    window: Annotated[float, Field(gt=0)] = 900.0
    generation: Generation = "tweet"
    problems: Host = "api.x.com"
    expires_in: Annotated[float, Field(gt=0)] = 7200.0
    latency: Annotated[float, Field(ge=0)] = 0.0
    seed: int = 0
    journal: Path | None = None


SETTINGS = TypeAdapter(PlatformSettings)


@dataclass(frozen=True, slots=True)
class Request:
    """One call: the last part of its path, its query or form, `Authorization`, the user's id."""

    method: Method
    params: Mapping[str, str]
    authorization: str = ""
    user: str = ""


class Platform:
    """The whole state; everything happens on one event loop, without threads."""

    def __init__(
        self,
        settings: PlatformSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.settings = self._at_first = settings or PlatformSettings()
        self.clock = clock
        self.journal = Journal(self.settings.journal)
        self._sleep = sleep
        self._begin()

    def _begin(self) -> None:
        self.settings = self._at_first
        self.faults = FaultPlan(self.settings.seed)
        self.users: dict[str, User] = {}
        self.grants = Grants()
        self.requests = 0
        self.errors: Counter[str] = Counter()

    def reset(self) -> None:
        """Forget users, tokens, faults, counters and journal; be as at the start."""
        self._begin()
        self.journal.clear(self.clock())

    def change(self, asked: Mapping[str, Any]) -> None:
        """Take over some settings; raise pydantic's ValidationError on a misspelt one."""
        self.settings = SETTINGS.validate_python({**asdict(self.settings), **asked})
        if {"limit", "window"} & set(asked):
            for user in self.users.values():
                user.window = self._window()

    def _window(self) -> Window:
        return Window(self.settings.limit, self.settings.window)

    # -- what the control API asks for

    def welcome(self, arrival: Arrival) -> User:
        """Take in a user, with tokens and bookmarks; one of the same id is forgotten."""
        user = self.users[arrival.id] = User(arrival.id, self._window())
        user.shelf.add(arrival.bookmarks, arrival.invalid)
        self.authorize(user, arrival)
        return user

    def authorize(self, user: User, given: Authorization) -> None:
        """Let *user* give the app a new pair of tokens; the old one is good for nothing then."""
        usual = self.settings.expires_in
        self.grants.give(
            user.id,
            self.clock() + (usual if given.expires_in is None else given.expires_in),
            access=given.access_token,
            refresh=given.refresh_token,
            scopes=given.scopes,
        )
        user.tokens_issued += 1

    def add(self, user: User, addition: Addition) -> list[str]:
        """Put new bookmarks on top of *user*'s; return the ids of the posts, the newest first."""
        return [item.id for item in user.shelf.add(addition.bookmarks, addition.invalid)]

    def expire(self, user: User) -> None:
        """End the access token of *user* before its time."""
        self.grants.expire(user.id, self.clock())

    def revoke(self, user: User) -> None:
        """Take back what *user* has given."""
        self.grants.revoke(user.id)

    def sight(self, user: User) -> dict[str, Any]:
        """Return what the control API tells of *user*."""
        return user.sight(self.grants.by_user.get(user.id))

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything that happened since the last reset."""
        users = self.users.values()
        return {
            "requests": self.requests,
            "users": len(users),
            "by_user": {user.id: user.requests for user in users},
            "limit_answers": {user.id: user.limit_answers for user in users if user.limit_answers},
            "refreshes": sum(user.refreshes for user in users),
            "pages": sum(user.pages.total() for user in users),
            "refetched": sum(user.refetched for user in users),
            "errors": dict(self.errors),
            "by_method": dict(self.journal.by_method),
            "by_status": dict(self.journal.by_status),
            "faults_fired": dict(self.faults.fired),
        }

    async def close(self) -> None:
        self.journal.close()

    # -- what the app asks for

    async def answer(self, request: Request) -> Reply:
        """Take one request to its reply; the caller settles the reply's entries."""
        self.requests += 1
        user = self._subject(request)
        entry = self.journal.record(
            at=self.clock(),
            request=self.requests,
            method=request.method,
            about=self._about(request, user),
            digest=digest(request.params),
        )
        if user is not None and request.method == "bookmarks":
            user.requests += 1
        reply, fault = await self._answer(request, entry)
        self._count(entry, user)
        return self._dressed(request, reply, entry, fault)

    async def _answer(self, request: Request, entry: Entry) -> tuple[Reply, Fault | None]:
        try:
            self._admit(request, entry.at)
        except Refused as refusal:
            return refused(refusal, entry), None
        strike = self.faults.strike(Call(request.method, _sights(entry)))
        reply = await endured(
            strike,
            lambda: self._act(request, entry),
            entry=entry,
            wording=worded,
            pause=self._pause,
        )
        return reply, strike.request

    def _subject(self, request: Request) -> User | None:
        if request.method == "bookmarks":
            return self.users.get(request.user)
        return self.users.get(self.grants.owner(request.params.get("refresh_token", "")))

    def _about(self, request: Request, user: User | None) -> dict[str, str]:
        """Return what the journal and the faults can know a call by."""
        if user is None:
            return {}
        if request.method == "token":
            return {"user": user.id}
        token = request.params.get("pagination_token", "")
        position = user.shelf.position(token)
        return {
            "user": user.id,
            "page": token,
            "position": "" if position is None else str(position),
        }

    def _admit(self, request: Request, now: float) -> None:
        if request.method == "token":
            self._admit_client(request)
            return
        grant = self.grants.holder(_bearer(request), now)
        if grant is None:
            raise Refused("unauthorized")
        if not self.users[grant.user].window.take(now):
            raise Refused("too_many_requests")

    def _admit_client(self, request: Request) -> None:
        """Let in a confidential client by Basic auth, a public one by the `client_id` it sends."""
        known = self.settings
        if known.client_secret:
            pair = f"{known.client_id}:{known.client_secret}".encode()
            expected = f"Basic {b64encode(pair).decode()}"
            if not compare_digest(request.authorization.encode(), expected.encode()):
                raise Refused("unauthorized_client")
        elif "client_id" not in request.params:
            raise Refused("no_parameter")
        elif request.params["client_id"] != known.client_id:
            raise Refused("invalid_client")

    def _act(self, request: Request, entry: Entry) -> Reply:
        act = self._list if request.method == "bookmarks" else self._renew
        try:
            return act(request, entry)
        except Refused as refusal:
            return refused(refusal, entry)

    def _list(self, request: Request, entry: Entry) -> Reply:
        # As it was when the request came: a token that ends while a page is slow is still good.
        grant = self.grants.holder(_bearer(request), entry.at)
        if grant is None:
            raise Refused("unauthorized")
        if request.user != grant.user:
            raise invalid(
                "id",
                request.user,
                f"The `id` query parameter value [{request.user}] must be the same as the "
                f"authenticating user [{grant.user}]",
            )
        if not set(SCOPES) <= set(grant.scopes):
            raise Refused("forbidden")
        user, generation = self.users[grant.user], self.settings.generation
        listing = read_listing(request.params, generation)
        page = listed(listing, user.shelf, generation)
        user.pages[listing.token] += 1
        return said(page, [entry])

    def _renew(self, request: Request, entry: Entry) -> Reply:
        kind, refresh = (request.params.get(name) for name in ("grant_type", "refresh_token"))
        if not kind or not refresh:
            raise Refused("no_parameter")
        if kind != "refresh_token":
            raise Refused("unsupported_grant")
        now = self.clock()
        grant = self.grants.renew(refresh, now + self.settings.expires_in)
        if grant is None:
            raise Refused("spent_token")
        user = self.users[grant.user]
        user.refreshes += 1
        user.tokens_issued += 1
        entry.effect = f"pair {user.tokens_issued} of {user.id} issued"
        return said(grant.answer(now), [entry])

    def _count(self, entry: Entry, user: User | None) -> None:
        if entry.error is not None:
            self.errors[entry.error] += 1
        if entry.error in LIMIT_ROWS and user is not None:
            user.limit_answers += 1

    def _dressed(self, request: Request, reply: Reply, entry: Entry, fault: Fault | None) -> Reply:
        """Return *reply* with the headers of the limit, and with the problems of our host."""
        headers = _lower(reply.headers)
        if headers.get("content-type") == JSON and reply.status >= 400:
            headers["content-type"] = media_type(reply)
        headers |= self._limit_told(request, entry, fault)
        if fault is not None:
            headers |= _lower(fault.headers)  # the script has the last word
        here = PROBLEMS.replace("api.x.com", self.settings.problems)
        return replace(
            reply, body=reply.body.replace(PROBLEMS.encode(), here.encode()), headers=headers
        )

    def _limit_told(self, request: Request, entry: Entry, fault: Fault | None) -> Mapping[str, str]:
        """Return the headers of the limit: of the real one, or of the one that *fault* scripts."""
        if fault is not None and fault.code in LIMIT_ROWS:
            if not fault.seconds:
                return {}
            return limit_headers(self.settings.limit, 0, math.ceil(self.clock() + fault.seconds))
        grant = self.grants.holder(_bearer(request), entry.at)
        return self.users[grant.user].window.headers() if grant else {}

    async def _pause(self, seconds: float) -> None:
        seconds += self.settings.latency / 2
        if seconds > 0:
            await self._sleep(seconds)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* with names that are equal if they mean the same."""
    return {name.lower(): value for name, value in headers.items()}


def _bearer(request: Request) -> str:
    scheme, _, token = request.authorization.partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _sights(entry: Entry) -> tuple[str, ...]:
    """Return what a fault's `about` is looked for in: `/USER/POSITION/` tells 1 from 11."""
    about = entry.about
    if not about:
        return ()
    return f"/{about['user']}/{about.get('position', '')}/", about.get("page", "")
