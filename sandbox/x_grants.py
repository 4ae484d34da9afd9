"""The tokens of the simulated X API: what users have given an app, renewed by rotation."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

SCOPES = ("bookmark.read", "tweet.read", "users.read")  # UPSTREAMS 4: what bookmarks ask for
OFFLINE = "offline.access"  # UPSTREAMS 4: without it there is no refresh token


@dataclass(slots=True)
class Grant:
    """What one user has given: one pair of tokens at a time; *ends* is the access token's."""

    user: str
    access: str
    refresh: str | None
    ends: float
    scopes: tuple[str, ...]

    def answer(self, now: float) -> dict[str, Any]:
        """Return what /2/oauth2/token answers with it."""
        offline = () if self.refresh is None else (OFFLINE,)
        found: dict[str, Any] = {
            "token_type": "bearer",
            "expires_in": int(self.ends - now),
            "access_token": self.access,
            "scope": " ".join(self.scopes + offline),
        }
        return found if self.refresh is None else found | {"refresh_token": self.refresh}


@dataclass(slots=True)
class Grants:
    """The pair that each user's grant has now, and whose any token is or was."""

    by_user: dict[str, Grant] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)

    def give(
        self,
        user: str,
        ends: float,
        *,
        access: str = "",
        refresh: str | None = "",
        scopes: tuple[str, ...] = SCOPES,
    ) -> Grant:
        """Let *user* authorise the app, anew if need be; "" makes a token, None leaves it out."""
        refresh = (refresh or _token()) if refresh is not None else None
        grant = Grant(user, access or _token(), refresh, ends, scopes)
        self.by_user[user] = grant
        self._owners |= {token: user for token in (grant.access, grant.refresh) if token}
        return grant

    def holder(self, access: str, now: float) -> Grant | None:
        """Return the grant whose access token this is, unless it has ended."""
        grant = self.by_user.get(self.owner(access))
        return grant if grant and grant.access == access and now < grant.ends else None

    def renew(self, refresh: str, ends: float) -> Grant | None:
        """Return a new pair for the newest refresh token of a user; None for any other.

        Whether X lets the old access token live to its end is not documented; here it ends with its
        pair, which is the harder of the two for whoever shares it.
        """
        grant = self.by_user.get(self.owner(refresh))
        if grant is None or grant.refresh != refresh:
            return None
        return self.give(grant.user, ends, scopes=grant.scopes)

    def owner(self, token: str) -> str:
        """Return whose token this is or was, "" if it never was one."""
        return self._owners.get(token, "")

    def expire(self, user: str, now: float) -> None:
        """End the access token; the refresh token stays good."""
        if user in self.by_user:
            self.by_user[user].ends = now

    def revoke(self, user: str) -> None:
        """Take back the whole grant."""
        self.by_user.pop(user, None)


def _token() -> str:
    return secrets.token_urlsafe(24)
