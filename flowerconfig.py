"""Flower, closed by default: on loopback, behind a password, and read-only.

Flower runs this file when `celery -A tasks flower` starts in this folder. Options on its command
line win, so `--address=0.0.0.0` opens it to a network on purpose.
"""

import secrets
from logging import getLogger

from admin.flower import install as _install
from config.settings import settings
from tasks.logs import dress as _dress

address = "127.0.0.1"
read_only = True

_dress(getLogger())
_install()

_login = settings().flower_basic_auth
if _login is None:
    _made_up = f"flower:{secrets.token_urlsafe(12)}"
    getLogger("flower").warning(
        "FLOWER_BASIC_AUTH is not set; for this run the login is %s", _made_up
    )
    basic_auth = [_made_up]
else:
    basic_auth = [_login.get_secret_value()]
