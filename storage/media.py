"""The files of videos, from the moment they are made until they are delivered.

A worker on another host does not see them unless MEDIA_DIR is shared; it then fetches a video anew.
"""

from __future__ import annotations

from pathlib import Path

from config.settings import settings


def path(generation_id: str) -> Path:
    """Where the file of a generation is, or is to be; its folder exists."""
    folder = Path(settings().media_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{generation_id}.mp4"


def forget(generation_id: str | None) -> None:
    """Remove the file of a generation, if there is one here."""
    if generation_id is not None:
        path(generation_id).unlink(missing_ok=True)
