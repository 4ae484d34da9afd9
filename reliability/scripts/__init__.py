"""The Lua scripts, read once: each is one atomic step of the broker."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def script(name: str) -> str:
    """Return the source of `name.lua`."""
    return (files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
