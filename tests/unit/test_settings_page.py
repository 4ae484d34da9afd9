"""The page about configuration says what the settings say, and the README forgets none of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings

from config import settings_page
from config.settings import Settings

ROOT = Path(__file__).parents[2]
COMMAND = "python -m config.settings_page > docs/configuration.md"


class Sample(BaseSettings):
    plain: Annotated[str, Field(min_length=1, description="What | it is.")] = "a"
    token: Annotated[
        SecretStr | None, Field(validation_alias=AliasChoices("TOKEN", "OLD_TOKEN"))
    ] = None
    renamed_: Annotated[str, Field(validation_alias="RENAMED")] = ""
    rate: Annotated[float, Field(gt=0)] = 2.0
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    switch: bool = False


ROWS = {
    "plain": ("`PLAIN`", "text, not empty", "`a`", "What | it is."),
    "token": ("`TOKEN` or `OLD_TOKEN`", "secret", "–", ""),
    "renamed_": ("`RENAMED`", "text", "–", ""),
    "rate": ("`RATE`", "number, above 0", "`2`", ""),
    "port": ("`PORT`", "whole number, at least 1, at most 65535", "`6379`", ""),
    "switch": ("`SWITCH`", "`true` or `false`", "`false`", ""),
}


def test_the_page_in_the_repository_is_current():
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

    assert written == settings_page.page(), f"write it anew: {COMMAND}"


def test_the_command_that_the_page_names_writes_it():
    done = subprocess.run(
        [sys.executable, "-m", "config.settings_page"],
        cwd=ROOT,
        env={"PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )

    assert done.stdout == settings_page.page()
    assert COMMAND in done.stdout


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_how_a_variable_is_set(name):
    assert settings_page.cells(name, Sample.model_fields[name]) == ROWS[name]


def test_a_bar_in_a_text_does_not_end_its_cell():
    assert settings_page.line(("a | b", "c")) == "| a &#124; b | c |"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_explained(name):
    meaning = settings_page.cells(name, Settings.model_fields[name])[-1]

    assert meaning.endswith((".", "…")), "a sentence, or what a value looks like"


def test_the_readme_names_every_variable_and_no_other():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("## Configuration")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", listed))
    surroundings = {"REDIS_SERVER", "SHOP_DATABASE"}  # the sandbox reads them

    assert named == {*settings_page.variables(), *surroundings}


def test_the_example_of_an_env_file_sets_nothing_unknown():
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = re.findall(r"^#?\s*([A-Z][A-Z0-9_]+)=", text, re.MULTILINE)
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    composed = re.findall(r"\$\{([A-Z][A-Z0-9_]+)", compose)

    assert set(named) <= {*settings_page.variables(), *composed}
