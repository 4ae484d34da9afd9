"""Small videos that play: one H.264 picture of a single colour in an MP4 file, in plain Python.

The label stands in a `free` box, so that two videos can be told apart byte by byte.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

SIDE = 64  # pixels; a macroblock has 16
BLOCKS = (SIDE // 16) ** 2
SECOND = 1000  # the clock's ticks; the picture stays for one second
_LIGHT, _COLOUR = 256, 64  # samples of a macroblock: brightness, and each of two differences
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_PIECE = b"\1" * 65_536
# 52 MiB: above the 50 MB that a bot may upload (UPSTREAMS 3.1).
HUGE = 52 * 1024 * 1024


def video(label: str) -> bytes:
    """Return a whole file of some 7 KB."""
    head, picture = _file(label, 0)
    return head + picture


def huge_video(label: str, padding: int = HUGE) -> tuple[int, Iterator[bytes]]:
    """Return the length in bytes and the pieces of a file with *padding* behind its picture."""
    head, picture = _file(label, padding)
    return len(head) + len(picture) + padding, _pieces(head + picture, padding)


def _pieces(first: bytes, padding: int) -> Iterator[bytes]:
    yield first
    for left in range(padding, 0, -len(_PIECE)):
        yield _PIECE[:left]


def _file(label: str, padding: int) -> tuple[bytes, bytes]:
    """Return everything before the picture, and the picture: what `mdat` holds."""
    picture = _sample(_picture(label))
    begin = _box("ftyp", b"isom", struct.pack(">I", 512), b"isomiso2avc1mp41")
    begin += _box("free", label.encode())
    # The table of contents stands first and names where the picture begins; its size is fixed.
    offset = len(begin) + len(_movie(0, len(picture))) + 8
    head = begin + _movie(offset, len(picture))
    return head + struct.pack(">I4s", 8 + len(picture) + padding, b"mdat"), picture


def _box(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def _full(kind: str, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def _movie(offset: int, size: int) -> bytes:
    times = struct.pack(">4I", 0, 0, SECOND, SECOND)
    header = _full(
        "mvhd",
        0,
        times,
        struct.pack(">IH10x", 0x10000, 0x100),
        _MATRIX,
        struct.pack(">24xI", 2),
    )
    return _box("moov", header, _track(offset, size))


def _track(offset: int, size: int) -> bytes:
    header = _full(
        "tkhd",
        3,  # enabled, and part of the presentation
        struct.pack(">IIIIIQ", 0, 0, 1, 0, SECOND, 0),
        struct.pack(">8x"),
        _MATRIX,
        struct.pack(">II", SIDE << 16, SIDE << 16),
    )
    media = _full("mdhd", 0, struct.pack(">4IHH", 0, 0, SECOND, SECOND, 0x55C4, 0))
    handler = _full("hdlr", 0, struct.pack(">4x4s12x", b"vide"), b"video\0")
    source = _box("dinf", _full("dref", 0, struct.pack(">I", 1), _full("url ", 1)))
    information = _box("minf", _full("vmhd", 1, bytes(8)), source, _samples(offset, size))
    return _box("trak", header, _box("mdia", media, handler, information))


def _samples(offset: int, size: int) -> bytes:
    """Return the table of the one sample: how it is coded, how long it stays, where it is."""
    return _box(
        "stbl",
        _full("stsd", 0, struct.pack(">I", 1), _coding()),
        _full("stts", 0, struct.pack(">III", 1, 1, SECOND)),
        _full("stsc", 0, struct.pack(">IIII", 1, 1, 1, 1)),
        _full("stsz", 0, struct.pack(">III", 0, 1, size)),
        _full("stco", 0, struct.pack(">II", 1, offset)),
    )


def _coding() -> bytes:
    sequence, picture = _sequence_parameters(), _picture_parameters()
    configuration = _box(
        "avcC",
        bytes([1, *sequence[1:4], 0xFF, 0xE1]),
        struct.pack(">H", len(sequence)),
        sequence,
        b"\1",
        struct.pack(">H", len(picture)),
        picture,
    )
    return _box(
        "avc1",
        struct.pack(">6xH16xHH", 1, SIDE, SIDE),
        struct.pack(">II4xH32xHh", 0x480000, 0x480000, 1, 24, -1),
        configuration,
    )


def _bits(*fields: int | str) -> bytes:
    """Return numbers as Exp-Golomb codes and text as the bits it spells, filled up with zeros."""
    bits = ""
    for field in fields:
        if isinstance(field, str):
            bits += field
        else:
            code = f"{field + 1:b}"
            bits += "0" * (len(code) - 1) + code
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _sequence_parameters() -> bytes:
    blocks = SIDE // 16 - 1
    # Baseline profile, level 1; no reordering, no reference pictures, whole frames, no cropping.
    return b"\x67\x42\xc0\x0a" + _bits(0, 0, 2, 0, "0", blocks, blocks, "1", "1", "0", "0", "1")


def _picture_parameters() -> bytes:
    return b"\x68" + _bits(0, 0, "0", "0", 0, 0, 0, "0", "00", 0, 0, 0, "0", "0", "0", "1")


def _picture(label: str) -> bytes:
    """Return one picture whose macroblocks are not coded at all (I_PCM)."""
    # Broadcast levels: no byte is 0, so that nothing in the picture looks like a start code.
    light, *colours = (16 + value % 220 for value in hashlib.sha256(label.encode()).digest()[:3])
    samples = bytes([light]) * _LIGHT + b"".join(bytes([c]) * _COLOUR for c in colours)
    uncoded = 25  # I_PCM, in the numbering of macroblock types
    first = _bits(0, 7, 0, "0000", 0, "0", "0", 0, uncoded)
    return b"\x65" + first + samples + (_bits(uncoded) + samples) * (BLOCKS - 1) + b"\x80"


def _sample(unit: bytes) -> bytes:
    return struct.pack(">I", len(unit)) + unit
