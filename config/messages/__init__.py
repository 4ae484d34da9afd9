"""What end users read: one plain text for each code, in Russian and in English."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Literal

Locale = Literal["ru", "en"]
LOCALES: tuple[Locale, ...] = ("ru", "en")


def text(code: str, locale: str, **facts: str) -> str:
    """Return the text of *code* in the language of *locale*, to be sent without a parse_mode.

    Facts are shown as they are given; those that the text has no use for are ignored. An empty
    `support` picks the words for users who cannot be sent to anybody.

    Raises:
        KeyError: if there is no such code, or a fact that its text needs is absent or empty.
    """
    language = locale_of(locale)
    template = _language(language).template(code, supported=facts.get("support") != "")
    missing = _needs(template) - {name for name, value in facts.items() if value}
    if missing:
        raise KeyError(f"{code} ({language}) needs {', '.join(sorted(missing))}")
    return template.format_map(facts)


def has(code: str) -> bool:
    """Whether users are told of *code* at all."""
    return all(code in _language(locale).texts for locale in LOCALES)


def locale_of(tag: str) -> Locale:
    """Return the language of a tag like `ru-RU` or `ru_RU`; English for those we do not speak."""
    language = tag.replace("_", "-").partition("-")[0].lower()
    return "ru" if language == "ru" else "en"


@dataclass(frozen=True, slots=True)
class _Language:
    """The templates of one language by code; *without_support* replaces some of *texts*."""

    texts: Mapping[str, str]
    without_support: Mapping[str, str]

    def template(self, code: str, *, supported: bool) -> str:
        if code not in self.texts:
            raise KeyError(f"no text for {code}")
        if not supported and code in self.without_support:
            return self.without_support[code]
        return self.texts[code]


@cache
def _language(locale: Locale) -> _Language:
    source = (files(__package__) / f"{locale}.toml").read_text(encoding="utf-8")
    texts = tomllib.loads(source)
    return _Language(without_support=texts.pop("without_support"), texts=texts)


def _needs(template: str) -> set[str]:
    return {fact for _, fact, _, _ in Formatter().parse(template) if fact is not None}
