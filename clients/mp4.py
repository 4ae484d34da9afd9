"""Is this file a whole MP4? Its boxes on the top level tell, without a look at the pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

# ISO/IEC 14496-12: a box is its length (4 bytes), its type (4 bytes), then what it holds. Length 1:
# the true one follows in 8 bytes. Length 0: the box goes on to the end of the file.
HEADER, LONG_HEADER = 8, 16
LONG, TO_THE_END = 1, 0


def flaw(file: BinaryIO) -> str:
    """Return why no player would play *file*, in a few words; empty if nothing is wrong."""
    types: list[bytes] = []
    for kind, whole in _boxes(file):
        if not types and kind != b"ftyp":
            return "it does not begin as an MP4 does"
        if not whole:
            return "it is cut short"
        types.append(kind)
    if b"moov" not in types:
        return "it has no index (moov)"
    if b"mdat" not in types and b"moof" not in types:
        return "it has no pictures (mdat, moof)"
    return ""


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield the type of each box, and whether all of it is there; the first that is not ends it."""
    end = file.seek(0, os.SEEK_END)
    start = 0
    while start < end:
        file.seek(start)
        head = file.read(LONG_HEADER)
        length, header = int.from_bytes(head[:4]), HEADER
        if length == LONG:
            length, header = int.from_bytes(head[HEADER:]), LONG_HEADER
        elif length == TO_THE_END:
            length = end - start
        whole = header <= length <= end - start
        yield head[4:HEADER], whole
        if not whole:
            return
        start += length
