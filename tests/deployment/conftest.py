"""The project as somebody has it who follows docs/deployment.md, in an engine of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from deployment.engine import ROOT, Engine, FailedError, lay_in, missing

PROFILES = ("--profile", "sandbox", "--profile", "monitoring")
NOT_CLONED = (".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.db*", ".env", "spool")


@dataclass(frozen=True, slots=True)
class Deployed:
    """What compose has brought up from *folder*."""

    engine: Engine
    folder: Path
    token: str  # of the administrator

    def compose(self, *words: str, told: str = "") -> str:
        return self.engine.compose("--project-directory", self.folder, *PROFILES, *words, told=told)

    def command(self, *words: str, told: str = "") -> str:
        """Run one of our commands where docs/deployment.md says."""
        return self.compose("exec", "-T", "api", "celery", "-A", "tasks", *words, told=told)

    def ask(self, method: str, url: str, body: Any = None, *, bearer: str = "") -> tuple[int, Any]:
        return self.engine.ask(method, url, body, bearer=bearer)


@pytest.fixture(scope="session")
def deployed() -> Iterator[Deployed]:
    """Everything up and healthy; gone afterwards."""
    if os.environ.get("COMPOSE") != "1":
        pytest.skip("takes minutes; `make compose-test` runs it")
    if why := missing():
        _do_without(why)
    home = Path(tempfile.mkdtemp(prefix="perennial-engine-"))
    engine = Engine(home)
    try:
        try:
            engine.start()
            lay_in(engine)
        except FailedError as error:
            _do_without(f"no engine can be had here: {error}")
        here = Deployed(engine, cloned(home), secrets.token_hex(16))
        fill_in(here)
        with engine.step("our image, from our Dockerfile (docker compose build)"):
            here.compose("build")
        with engine.step("everything up and healthy (docker compose up --wait)"):
            here.compose("up", "--detach", "--wait", "--wait-timeout", "300")
        yield here
        with engine.step("everything down (docker compose down)"):
            here.compose("down", "--volumes")
    finally:
        engine.stop()
        shutil.rmtree(home, ignore_errors=True)
        print(
            f"{sum(took for _, took in engine.steps):6.1f} s  in all, what overlapped counted twice"
        )


def _do_without(why: str) -> NoReturn:
    (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(why)


def cloned(home: Path) -> Path:
    """Return a copy of the project: this one may have a `.env`, which is nobody's business."""
    folder = home / "perennial"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_CLONED, "tests"))
    return folder


def fill_in(here: Deployed) -> None:
    """Write `.env` from the example: every secret that is empty there gets a value."""
    given = {
        "FLOWER_BASIC_AUTH": f"flower:{secrets.token_hex(8)}",
        "CREDENTIALS_KEY": b64encode(secrets.token_bytes(32)).decode(),
        "ADMIN_TOKEN": here.token,
        **{
            name: secrets.token_hex(12)
            for name in (
                "POSTGRES_PASSWORD",
                "BITRIX_APPLICATION_TOKEN",
                "KIE_WEBHOOK_HMAC_KEY",
                "TELEGRAM_WEBHOOK_SECRET",
            )
        },
    }
    lines = (here.folder / ".env.example").read_text(encoding="utf-8").splitlines()
    filled = [
        f"{line}{given.pop(name)}" if (name := line.removesuffix("=")) in given else line
        for line in lines
    ]
    assert not given, f"the example of an env file has no {', '.join(given)}"
    (here.folder / ".env").write_text("\n".join(filled) + "\n", encoding="utf-8")
