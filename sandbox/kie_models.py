"""The image-to-video models that the simulated KIE.AI makes videos with, and what they ask for.

Names and inputs are those of docs.kie.ai in August 2026; of `sora-2-image-to-video`, which had
disappeared by then, those of UPSTREAMS 2.1. Inputs that do not matter to us are let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Input:
    """What one field of `input` may be: *longest* in characters for a text, in items for a list."""

    kind: type = str
    required: bool = False
    options: tuple[str, ...] = ()
    longest: int = 0

    def complaint(self, name: str, value: Any) -> str:
        """Return what KIE says against *value* (UPSTREAMS 2.2, third parties), "" for nothing."""
        if value is None or value in ("", []):
            return f"{name} is required" if self.required else ""
        if not isinstance(value, self.kind) or (self.options and value not in self.options):
            return f"{name} is not within the range of allowed options"
        if isinstance(value, str | list) and 0 < self.longest < len(value):
            return "The text length cannot exceed the maximum limit"
        return ""


def _prompt(longest: int) -> Input:
    return Input(required=True, longest=longest)


def _one_of(*options: str, required: bool = False) -> Input:
    return Input(options=options, required=required)


_IMAGE = Input(required=True)
_IMAGES = Input(list, required=True, longest=1)

MODELS: Mapping[str, Mapping[str, Input]] = {
    "sora-2-image-to-video": {
        "prompt": _prompt(10_000),
        "image_urls": _IMAGES,
        "aspect_ratio": _one_of("landscape", "portrait"),
        "n_frames": _one_of("10", "15"),
        "remove_watermark": Input(bool),
        "upload_method": _one_of("s3", "oss"),
    },
    "bytedance/v1-pro-image-to-video": {
        "prompt": _prompt(10_000),
        "image_url": _IMAGE,
        "resolution": _one_of("480p", "720p", "1080p"),
        "duration": _one_of("5", "10"),
    },
    "hailuo/2-3-image-to-video-standard": {
        "prompt": _prompt(5_000),
        "image_url": _IMAGE,
        "duration": _one_of("6", "10"),
        "resolution": _one_of("768P", "1080P"),
    },
    "kling-2.6/image-to-video": {
        "prompt": _prompt(1_000),
        "image_urls": _IMAGES,
        "sound": Input(bool, required=True),
        "duration": _one_of("5", "10", required=True),
    },
    "wan/2-6-image-to-video": {
        "prompt": _prompt(5_000),
        "image_urls": _IMAGES,
        "duration": _one_of("5", "10", "15"),
        "resolution": _one_of("720p", "1080p"),
    },
}


def complaint(model: str, given: Mapping[str, Any]) -> str:
    """Return what KIE says against the `input` of a known *model*, "" if it takes it."""
    said = (field.complaint(name, given.get(name)) for name, field in MODELS[model].items())
    return next(filter(None, said), "")


def image_of(given: Mapping[str, Any]) -> str:
    """Return the address of the picture, whichever way the model calls it."""
    found = given.get("image_url") or given.get("image_urls") or ""
    return str(found[0] if isinstance(found, list) else found)
