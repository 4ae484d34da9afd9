"""Seals secrets for the database, so that who reads its rows or backups reads no token.

The key is `CREDENTIALS_KEY`. Without it an SQLite database has a key file beside it, so that a copy
of the database alone is of no use.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import make_url

from classifiers.errors import NotConfigured
from config.settings import settings

SERVICE = "credentials"


def seal(secret: dict[str, Any], owner: str) -> str:
    """Encrypt a JSON object that nobody's row but *owner*'s may hold.

    Raises:
        NotConfigured: there is no key.
    """
    written = json.dumps({"owner": owner, "secret": secret})
    return _keys(may_make=True).encrypt(written.encode()).decode()


def unseal(sealed: str, owner: str) -> dict[str, Any]:
    """Decrypt what was sealed for *owner*.

    Raises:
        NotConfigured: there is no key, none of ours fits, or it was sealed for another owner.
    """
    try:
        written = json.loads(_keys(may_make=False).decrypt(sealed))
    except InvalidToken:
        raise NotConfigured(
            f"no key of ours reads the tokens of {owner}: add the one they were stored with to "
            "CREDENTIALS_KEY, after a comma, or authorise again",
            service=SERVICE,
        ) from None
    if written["owner"] != owner:
        raise NotConfigured(
            f"in the row of {owner} are the tokens of {written['owner']}: authorise both again",
            service=SERVICE,
        )
    secret: dict[str, Any] = written["secret"]
    return secret


def _keys(*, may_make: bool) -> MultiFernet:
    """Every key that decrypts; the first of them encrypts."""
    configured = settings().credentials_key
    if configured is not None:  # the settings have seen to it that these are keys
        return MultiFernet([Fernet(key) for key in configured.get_secret_value().split(",")])
    file = _key_file()
    if may_make and not file.exists():
        _make(file)
    try:
        return MultiFernet([Fernet(file.read_text(encoding="ascii").strip())])
    except FileNotFoundError:
        why = "is gone"
    except ValueError:
        why = "holds no key"
    raise NotConfigured(
        f"{file}, which encrypts the tokens of users, {why}: bring it back, or remove it and "
        "authorise again",
        service=SERVICE,
    )


def _key_file() -> Path:
    address = make_url(settings().database_url)
    if address.get_backend_name() != "sqlite" or address.database is None:
        raise NotConfigured(
            "set CREDENTIALS_KEY, which encrypts the tokens of users; make one with "
            "openssl rand -base64 32, and give it to every worker and API",
            service=SERVICE,
        )
    return Path(address.database.removeprefix("file:") + ".key")


def _make(file: Path) -> None:
    """Make a key that only our user reads; of several processes that come at once, one does.

    It appears whole, and is on the disk before anything is encrypted with it.
    """
    descriptor, draft = tempfile.mkstemp(prefix=file.name, dir=file.parent)  # of mode 0600
    try:
        with os.fdopen(descriptor, "wb") as written:
            written.write(Fernet.generate_key() + b"\n")
            written.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        Path(draft).unlink()
    _sync(file.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
