"""The tokens by which users let us act for them: sealed, and renewed by one job at a time.

A refresh token is good once (UPSTREAMS 4, Rotation): the answer that spends it brings the next one.
So that we are about to spend it is written down before, and the new pair before anybody uses it.
Where no answer came, only the next attempt tells whether it was spent.

  version         counts the pairs that were stored; a change of an older pair changes nothing
  renewing_since  when a renewal began that is at work, or that was never answered
  lost            why the upstream takes this pair no more; a person has to authorise again
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import func, null, select, update
from sqlalchemy.exc import SQLAlchemyError

from classifiers.errors import InvalidData, JobError, OutcomeUnknown, Unauthorized, Unclassified
from storage import database, effects, encryption
from storage.effects import insist
from storage.models import credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

# RFC 6749, appendix A, has spaces too; none would survive a header or a copy by hand.
_TOKEN = re.compile(r"[\x21-\x7e]+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an upstream gives for a refresh token; the old one stays good if no new one came.

    *expires_at* is aware, or None where the upstream does not say.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Credential:
    """What one *subject*, a user of the upstream, has given us. Printing it shows no token."""

    service: str
    subject: str
    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: datetime | None
    version: int
    lost: str | None
    renewing_since: datetime | None = None


def save(
    service: str,
    subject: str | int,
    *,
    access_token: str,
    refresh_token: str | None = None,
    expires_at: datetime | None = None,
) -> None:
    """Store what a person has brought; it replaces all that was known of this subject.

    Raises:
        InvalidData: a token is not of visible ASCII, or *expires_at* has no time zone.
        NotConfigured: there is no key to encrypt it with.
    """
    if not all(map(_TOKEN.fullmatch, (access_token, refresh_token or "none"))):
        raise InvalidData("a token is of visible ASCII characters, and not empty", service=service)
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidData("expires_at needs a time zone", service=service)
    subject = str(subject)
    values = _values(service, subject, Tokens(access_token, refresh_token, expires_at))
    with database.write() as connection:
        fresh = database.insert(credentials, connection.dialect.name).values(
            service=service,
            subject=subject,
            version=1,
            created_at=database.now(),
            **values,
        )
        connection.execute(
            fresh.on_conflict_do_update(
                index_elements=[credentials.c.service, credentials.c.subject],
                set_={"version": credentials.c.version + 1, **values},
            )
        )


def get(service: str, subject: str | int) -> Credential | None:
    """Return what we have of this subject, lost or not.

    Raises:
        NotConfigured: no key of ours reads it.
    """
    subject = str(subject)
    which = (credentials.c.service == service, credentials.c.subject == subject)
    with database.read() as connection:
        row = connection.execute(select(credentials).where(*which)).one_or_none()
    if row is None:
        return None
    return Credential(
        service,
        subject,
        **encryption.unseal(row.tokens, _name(service, subject)),
        expires_at=row.expires_at,
        version=row.version,
        lost=row.lost,
        renewing_since=row.renewing_since,
    )


def lost(service: str) -> tuple[int, int]:
    """Return of how many subjects an upstream takes what they gave no more, and how many gave."""
    counts = select(func.count(credentials.c.lost), func.count())
    with database.read() as connection:
        gone, given = connection.execute(counts.where(credentials.c.service == service)).one()
    return gone, given


def lose(credential: Credential, why: str) -> None:
    """Note that the upstream takes this pair no more; a newer one stays as it is."""
    insist(lambda: _change(credential, lost=why, renewing_since=null()))


def renewed(
    of: Credential, renew: Callable[[str], Tokens], *, owner: str, lease: float
) -> Credential:
    """Return a newer pair than *of*: the one that another has stored meanwhile, or a renewed one.

    *renew* gives the refresh token to the upstream, once; *lease* is the time in seconds within
    which that ends, so it is longer than every deadline in it; *owner* is the job.

    Raises:
        Pending: another is renewing, or was when it died; *retry_after* is what its lease has left.
        Unauthorized: it is lost, or cannot be renewed; a person has to authorise again.
        JobError: what *renew* has raised.
    """
    # A redelivered job must wait for its former self, which may still be calling.
    run = f"{owner}:{uuid4().hex}"
    with effects.exclusive(f"credential:{of.service}:{of.subject}", owner=run, lease=lease):
        now = get(of.service, of.subject)
        if now is None:
            raise _unauthorized(of, f"{_name(of.service, of.subject)} has not given us access")
        if now.lost is not None:
            raise _unauthorized(now, now.lost)
        if now.version != of.version:
            return now
        if now.refresh_token is None:
            name = _name(now.service, now.subject)
            raise _unauthorized(now, f"the access of {name} ends, and came without a refresh token")
        if not _change(now, renewing_since=now.renewing_since or database.now()):
            return _known(now)  # a person has brought a newer pair in this moment
        return _store(now, _renew(now, now.refresh_token, renew))


def again(subject: str) -> str:
    """Tell people how to give access again."""
    return f"authorise again: celery -A tasks bookmarks authorize {subject}"


def _renew(now: Credential, refresh_token: str, renew: Callable[[str], Tokens]) -> Tokens:
    try:
        return renew(refresh_token)
    except Unauthorized as error:
        why = _loss(now, error)
        lose(now, why)
        raise _unauthorized(now, why, error) from error
    except (OutcomeUnknown, Unclassified):
        raise  # perhaps it is spent
    except JobError:
        _not_spent(now)
        raise


def _loss(now: Credential, error: Unauthorized) -> str:
    said = error.code or error.detail or "refused"
    why = f"the refresh token of {_name(now.service, now.subject)} is good no more ({said})"
    if now.renewing_since is None:
        return why
    return (
        f"{why}: it was given at {now.renewing_since:%Y-%m-%d %H:%M:%S} UTC, and the answer with "
        "the next one never arrived"
    )


def _not_spent(now: Credential) -> None:
    """Take the note of this attempt back; that of an earlier one stays, for its doubt does."""
    try:
        insist(lambda: _change(now, renewing_since=now.renewing_since or null()))
    except SQLAlchemyError:  # it must not hide the error that is about to be raised
        name = _name(now.service, now.subject)
        _log.exception("%s: could not note that the refresh token was not spent", name)


def _store(old: Credential, tokens: Tokens) -> Credential:
    """Store the pair that follows *old*; a newer one that a person has brought meanwhile stays."""
    tokens = replace(tokens, refresh_token=tokens.refresh_token or old.refresh_token)
    values = _values(old.service, old.subject, tokens)
    if not insist(lambda: _change(old, version=old.version + 1, **values)):
        name = _name(old.service, old.subject)
        _log.warning("%s: a newer pair was stored while this one was renewed", name)
    return _known(old)


def _known(old: Credential) -> Credential:
    newest = get(old.service, old.subject)
    assert newest is not None  # noqa: S101 - rows are never deleted
    return newest


def _values(service: str, subject: str, tokens: Tokens) -> dict[str, Any]:
    pair = {"access_token": tokens.access_token, "refresh_token": tokens.refresh_token}
    return {
        "tokens": encryption.seal(pair, _name(service, subject)),
        "expires_at": tokens.expires_at,
        "lost": null(),
        "renewing_since": null(),
        "updated_at": database.now(),
    }


def _change(of: Credential, **values: Any) -> bool:
    """Change the row as long as it holds this pair; False if it holds another."""
    statement = update(credentials).where(
        credentials.c.service == of.service,
        credentials.c.subject == of.subject,
        credentials.c.version == of.version,
    )
    values = {"updated_at": database.now(), **values}
    with database.write() as connection:
        return bool(connection.execute(statement.values(**values)).rowcount)


def _unauthorized(of: Credential, why: str, error: Unauthorized | None = None) -> Unauthorized:
    operation, code = (error.operation, error.code) if error else ("", "")
    detail = f"{why}; {again(of.subject)}"
    return Unauthorized(detail, service=of.service, operation=operation, code=code)


def _name(service: str, subject: str) -> str:
    return f"{service} user {subject}"
