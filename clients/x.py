"""How we call the API of X: the pages of a user's bookmarks, with tokens that are renewed in time.

Shapes: UPSTREAMS 4. Every user has a credential of their own, in `storage.credentials`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx

from classifiers import x as classifier
from classifiers.errors import (
    CredentialHeld,
    Forbidden,
    InternalError,
    InvalidData,
    JobError,
    NotConfigured,
    NotFound,
    Unauthorized,
)
from clients.http import Content, Upstream
from clients.process import PerProcess
from config import services
from config.settings import settings
from reliability.connection import redis
from reliability.gate import Gate, Permit
from storage import credentials
from storage.bookmarks import Bookmark
from storage.credentials import Credential, Tokens

logger = logging.getLogger(__name__)

RENEWAL = f"2/oauth2/{classifier.TOKEN}"
# A token with less time than this is renewed first: longer than a request may take.
MARGIN = 60.0  # s
LONGEST_LIFE = 365 * 86_400.0  # s; what claims to live longer is no time of a token
# The same under its old and its new name (UPSTREAMS 0, row 6); nobody knows which one X takes.
GENERATIONS = ("tweet.fields", "post.fields")
FIELDS = "author_id,created_at"  # beside `id` and `text`, which always come
# In place of a refresh token: X looks at the app before it looks at this.
NOBODYS = "perennial-asks-who-it-is"
# The fault of our client id: users whose token is still good need none.
METHOD_CODES = frozenset({"INVALID_CLIENT", "UNAUTHORIZED_CLIENT", "INVALID_REQUEST", "401"})

_ID = re.compile(r"[0-9]{1,64}")  # more digits than any id has, fewer than an index takes


@dataclass(frozen=True, slots=True)
class App:
    """Our client id at X; the *secret* is that of a confidential client."""

    id: str
    secret: str | None = field(default=None, repr=False)

    def signed(self, form: Mapping[str, str]) -> Content:
        """Return a request with *form* that says who we are (UPSTREAMS 4, row Token)."""
        if self.secret is None:
            return {"data": {**form, "client_id": self.id}}
        pair = b64encode(f"{self.id}:{self.secret}".encode()).decode()
        return {"data": form, "headers": {"Authorization": f"Basic {pair}"}}


@dataclass(frozen=True, slots=True)
class Page:
    """One page of bookmarks, the newest first; an item may be anything that JSON has, see `read`.

    *next_token* leads to the next page, None on the last one; *warnings* tell of what X left out.
    """

    items: tuple[Any, ...]
    next_token: str | None = None
    warnings: tuple[str, ...] = ()


class X:
    """The API of X. Without *app*, users are served for as long as their tokens last.

    *scale* multiplies the times of our own: how early a token is renewed, and how long that takes.
    """

    def __init__(self, upstream: Upstream, app: App | None, *, scale: float = 1.0) -> None:
        self.upstream = upstream
        self.app = app
        self.margin = timedelta(seconds=MARGIN * scale)
        self.lease = upstream.service.lease * scale  # s within which a renewal ends
        self.fields = GENERATIONS[0]  # what X took last

    # -- pages

    def page(self, user_id: str, page_token: str | None = None) -> Page | None:
        """Return the page behind *page_token*, without one the first; None if X knows it no more.

        Raises:
            CredentialHeld: the user has given us no access, or X refuses the one that we have.
            Unauthorized: X has just refused it.
            RateLimited: this user's requests are spent; *retry_after* is when there are new ones.
            NotConfigured: the token has to be renewed, and X_CLIENT_ID is not set or not known.
            OutcomeUnknown, Pending: the token has to be renewed, and nobody knows whether it was,
                or another job is at it.
        """
        try:
            answer = self._answer(self._credential(user_id), page_token)
        except InvalidData as refusal:
            if page_token is None or refusal.code != classifier.LOST_PAGE:
                raise
            return None
        self._heed(classifier.window(answer), user_id)
        return _page(answer.json(), page_token)

    def _answer(self, credential: Credential, page_token: str | None) -> httpx.Response:
        """Ask, and once more with another token if this one is refused."""
        try:
            return self._ask(credential, page_token, hold=False)
        except Unauthorized as refusal:
            other = self._instead_of(credential, refusal)
        return self._ask(other, page_token)

    def _ask(
        self, credential: Credential, page_token: str | None, *, hold: bool = True
    ) -> httpx.Response:
        """Ask with the names of fields that X took last, and with the others if it refuses."""
        fields = self.fields
        try:
            return self._list(credential, page_token, fields, hold=hold)
        except InvalidData as refusal:
            if refusal.code != classifier.UNKNOWN_FIELDS:
                raise
            self.fields = other = next(name for name in GENERATIONS if name != fields)
            logger.info("X takes no %s: it is asked with %s from now on", fields, other)
            return self._list(credential, page_token, other, hold=hold)

    def _list(
        self, credential: Credential, page_token: str | None, fields: str, *, hold: bool
    ) -> httpx.Response:
        params = {"max_results": str(services.PAGE), fields: FIELDS}
        if page_token is not None:
            params["pagination_token"] = page_token
        return self.upstream.call(
            "GET",
            f"2/users/{quote(credential.subject, safe='')}/{classifier.BOOKMARKS}",
            safe=True,
            subject=credential.subject,
            credential=_as_held(credential),
            hold=hold,
            params=params,
            headers={"Authorization": f"Bearer {credential.access_token}"},
        )

    def _heed(self, window: classifier.Window | None, user_id: str) -> None:
        """Send nothing more for a user who has no request left: it would be sent in vain."""
        if window is not None and window.remaining == 0:
            used_up = Permit(0.0, subject=user_id)
            self.upstream.gate.report_limited(used_up, window.reset_in, waiting=0)

    # -- tokens

    def _credential(self, user_id: str) -> Credential:
        """Return the credential of a user, renewed if it is about to expire."""
        credential = credentials.get(classifier.SERVICE, user_id)
        if credential is None:
            how = f"celery -A tasks bookmarks authorize {user_id}"
            raise _held(f"X user {user_id} has not given us access: {how}")
        if credential.lost is not None:
            raise _held(f"{credential.lost}; {credentials.again(user_id)}")
        # Without a refresh token it serves to its end, as it does while nobody knows when that is.
        if credential.refresh_token and self._is_expiring(credential.expires_at):
            return self._renewed(credential)
        return credential

    def _is_expiring(self, at: datetime | None) -> bool:
        return at is not None and at - datetime.now(UTC) < self.margin

    def _instead_of(self, credential: Credential, refusal: Unauthorized) -> Credential:
        """Return another credential in place of a refused one; if there is none, hold that."""
        if refusal.code != classifier.EXPIRED:  # a new token would have the same rights
            self._hold(credential, refusal)
            raise refusal
        return self._renewed(credential)

    def _renewed(self, credential: Credential) -> Credential:
        """Return a newer credential: another job's, or one that X gives us now."""
        try:
            return credentials.renewed(
                credential,
                partial(self._renew, credential.subject),
                owner=f"{socket.gethostname()}:{os.getpid()}",
                lease=self.lease,
            )
        except Unauthorized as refusal:
            self._hold(credential, refusal)
            raise

    def _hold(self, credential: Credential, refusal: Unauthorized) -> None:
        held = _as_held(credential)
        self.upstream.close_gate(refusal, credential=held, subject=credential.subject)

    def _renew(self, user_id: str, refresh_token: str) -> Tokens:
        """Spend a refresh token."""
        if self.app is None:
            raise NotConfigured(
                f"X_CLIENT_ID is not set, and the token of X user {user_id} has to be renewed",
                service=classifier.SERVICE,
                operation=classifier.TOKEN,
            )
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = self.upstream.call(
            "POST",
            RENEWAL,
            safe=False,
            subject=user_id,
            credential=refresh_token,
            hold=False,  # `_renewed` holds the whole credential
            **self.app.signed(form),
        )
        return _tokens(answer.json())

    # -- the app

    def check_app(self, *, within: float) -> None:
        """Have X say whether it takes our client id and secret, for a person: see `Upstream.call`.

        No user's token is shown, and no user's requests are spent: a renewal is asked for with a
        token that nobody has, and is good if it is this token that X refuses.

        Raises:
            NotConfigured: X does not take them, or X_CLIENT_ID is not set.
        """
        if self.app is None:
            raise NotConfigured(
                "X_CLIENT_ID is not set", service=classifier.SERVICE, operation=classifier.TOKEN
            )
        form = {"grant_type": "refresh_token", "refresh_token": NOBODYS}
        with suppress(Unauthorized):
            self.upstream.call(
                "POST",
                RENEWAL,
                safe=True,
                subject="app",  # a limit of this question is none of the users'
                within=within,
                **self.app.signed(form),
            )

    def close(self) -> None:
        """Let the connections go."""
        self.upstream.close()


def about_a_page(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Classify an answer, but take a page of which nothing may be shown for an empty one.

    What says that it is one is that its items were counted: there is such a list.
    """
    error = classifier.classify(response, safe=safe)
    nothing = isinstance(error, NotFound | Forbidden) and response.is_success
    return None if nothing and "result_count" in (response.json().get("meta") or {}) else error


def read(item: Any) -> Bookmark | InvalidData:
    """Read one item of a page, or say why it is no bookmark, by a `code`.

    `not_an_object`, `no_id` (it is missing, or no digits), `no_text`.
    """
    if not isinstance(item, dict):
        return _invalid("not_an_object", "an item that is no object")
    tweet_id, text = _digits(item.get("id")), item.get("text")
    if tweet_id is None:
        return _invalid("no_id", "a bookmark without an id of digits")
    if not isinstance(text, str):
        return _invalid("no_text", f"the bookmark {tweet_id} has no text")
    author_id, posted_at = _digits(item.get("author_id")), _moment(item.get("created_at"))
    return Bookmark(tweet_id, text, author_id, posted_at, item)


def _as_held(credential: Credential) -> str:
    """Return what the gate holds: the same token, stored once more by a person, gets a new try."""
    return f"{credential.version} {credential.access_token}"


def _page(body: Mapping[str, Any], asked: str | None) -> Page:
    """Read a page. A token that makes no sense is an error: it must not pass for the last page."""
    meta = body.get("meta") or {}
    if not isinstance(meta, dict):
        raise _senseless("what the answer says of itself is no object")
    token = meta.get("next_token") or None
    if token is not None and not isinstance(token, str):
        raise _senseless("the answer names the next page in a way that we do not know")
    if token is not None and token == asked:
        raise _senseless("the answer names itself as the next page")
    return Page(tuple(body.get("data") or ()), token, classifier.partial_errors(body))


def _tokens(body: Mapping[str, Any]) -> Tokens:
    """Read a renewed pair. Nothing in it may fail: the old one is spent."""
    refresh_token = body.get("refresh_token")
    return Tokens(
        body["access_token"].strip(),
        (refresh_token.strip() or None) if isinstance(refresh_token, str) else None,
        _end_of(body.get("expires_in")),
    )


def _end_of(life: Any) -> datetime | None:
    """Return when a token ends that has *life* seconds; None where that is no time."""
    if isinstance(life, int | float) and 0 < life <= LONGEST_LIFE:  # nor is NaN
        return datetime.now(UTC) + timedelta(seconds=life)
    return None


def _digits(value: Any) -> str | None:
    """Return an id; X sends it as a string, and others who speak for it as a number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def _moment(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _held(why: str) -> CredentialHeld:
    return CredentialHeld(why, service=classifier.SERVICE, operation=classifier.BOOKMARKS)


def _invalid(code: str, detail: str) -> InvalidData:
    return InvalidData(
        detail, service=classifier.SERVICE, operation=classifier.BOOKMARKS, code=code
    )


def _senseless(detail: str) -> InternalError:
    return InternalError(detail, service=classifier.SERVICE, operation=classifier.BOOKMARKS)


@PerProcess
def x() -> X:
    """Return the X of this process, as the settings describe it."""
    config = settings()
    service, scale = services.x(config), config.retry_time_scale
    upstream = Upstream(
        service,
        Gate(redis(), service, prefix=config.redis_stream_prefix, scale=scale),
        about_a_page,
        base_url=config.x_base_url,
        method_codes=METHOD_CODES,
    )
    secret = config.x_client_secret.get_secret_value() if config.x_client_secret else None
    app = App(config.x_client_id, secret) if config.x_client_id else None
    return X(upstream, app, scale=scale)
