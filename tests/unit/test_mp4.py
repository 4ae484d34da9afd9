"""What counts as a whole MP4."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.mp4 import flaw
from sandbox.mp4 import video


def box(kind, content=b"", length=None):
    length = 8 + len(content) if length is None else length
    return length.to_bytes(4) + kind.encode() + content


def long_box(kind, content=b"", length=None):
    length = 16 + len(content) if length is None else length
    return b"\0\0\0\1" + kind.encode() + length.to_bytes(8) + content


TYPE, INDEX, DATA = box("ftyp", b"isom"), box("moov", b"x" * 9), box("mdat", b"y" * 99)

WHOLE = {
    "a video": video("sofa"),
    "index first": TYPE + INDEX + DATA,
    "index last": TYPE + DATA + INDEX,
    "with boxes in between": TYPE + box("free") + INDEX + box("uuid", b"z") + DATA,
    "in fragments": TYPE + INDEX + box("moof", b"a") + DATA,
    "an empty index of fragments": TYPE + INDEX + box("moof"),
    "64-bit lengths": TYPE + long_box("mdat", b"y" * 99) + long_box("moov"),
    "a last box to the end": TYPE + INDEX + box("mdat", b"y" * 99, length=0),
}

BROKEN = {
    "nothing": (b"", "index"),
    "a page": (b"<html>404 Not Found</html>", "begin"),
    "JSON": (b'{"code":404}', "begin"),
    "another container": (b"\x1aE\xdf\xa3" + b"\0" * 99, "begin"),
    "not the type first": (INDEX + TYPE + DATA, "begin"),
    "the type alone": (TYPE, "index"),
    "no index": (TYPE + DATA, "index"),
    "no pictures": (TYPE + INDEX, "pictures"),
    "cut in the pictures": ((TYPE + INDEX + DATA)[:-1], "cut"),
    "cut in a header": ((TYPE + INDEX + DATA)[: len(TYPE + INDEX) + 7], "cut"),
    "cut in a long header": (TYPE + INDEX + long_box("mdat")[:15], "cut"),
    "longer than the file": (TYPE + INDEX + box("mdat", b"y", length=1000), "cut"),
    "a long one longer than the file": (TYPE + INDEX + long_box("mdat", length=2**63), "cut"),
    "shorter than its header": (TYPE + INDEX + DATA + box("free", length=7), "cut"),
    "a long one shorter than its header": (
        TYPE + INDEX + DATA + long_box("free", length=15),
        "cut",
    ),
    "zeros behind": (TYPE + INDEX + DATA + b"\0" * 7, "cut"),
}


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_a_whole_file_has_no_flaw(content):
    assert flaw(BytesIO(content)) == ""


@pytest.mark.parametrize(("content", "word"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_says_what_is_wrong(content, word):
    assert word in flaw(BytesIO(content))


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE)
def test_no_beginning_of_a_file_counts_as_whole(content):
    """But for a box that ends with the file, and for what comes after index and pictures."""
    complete = {TYPE + INDEX + box("moof"), TYPE + INDEX + box("moof", b"a")}
    open_ended = content == WHOLE["a last box to the end"]
    lengths = range(0, len(content), 1 if len(content) < 1000 else 97)
    passed = [content[:n] for n in lengths if not flaw(BytesIO(content[:n]))]

    assert open_ended or set(passed) <= complete


@given(st.binary(max_size=200))
def test_any_bytes_get_a_verdict(content):
    assert isinstance(flaw(BytesIO(content)), str)
    assert isinstance(flaw(BytesIO(TYPE + content)), str)
