"""PHP's bracket notation, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.phpforms import as_php_array, build, parse

SIGNS = "aZя&=+%#?/'\"$\n"
WORDS = st.text(SIGNS, min_size=1).filter(str.strip)
NESTED = st.recursive(
    st.text(SIGNS + "[]. 12"),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(WORDS, inner, min_size=1),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("id=1", {"id": "1"}, id="scalar"),
        pytest.param("a[b][]=1&a[b][]=2", {"a": {"b": ["1", "2"]}}, id="append"),
        pytest.param("a[b][]=1&a[b][c]=2", {"a": {"b": {"0": "1", "c": "2"}}}, id="mixed-keys"),
        pytest.param("a[0]=x&a[1]=y", {"a": ["x", "y"]}, id="list-by-index"),
        pytest.param("a[1]=y&a[0]=x", {"a": {"1": "y", "0": "x"}}, id="out-of-order-is-a-map"),
        pytest.param("a[5]=x&a[]=y", {"a": {"5": "x", "6": "y"}}, id="append-after-the-highest"),
        pytest.param("a=1&a[b]=2", {"a": {"b": "2"}}, id="array-replaces-scalar"),
        pytest.param("a[b]=1&a=2", {"a": "2"}, id="scalar-replaces-array"),
        pytest.param("fields%5BTITLE%5D=%D0%AF%26B", {"fields": {"TITLE": "Я&B"}}, id="escaped"),
        pytest.param("t=a+b", {"t": "a b"}, id="plus-is-a-blank"),
        pytest.param("a.b=1&c d=2", {"a_b": "1", "c_d": "2"}, id="dots-and-blanks"),
        pytest.param("a[b=1", {"a_b": "1"}, id="unclosed"),
        pytest.param("flag&x=", {"flag": "", "x": ""}, id="no-value"),
        pytest.param("filter[%3E%3DID]=3", {"filter": {">=ID": "3"}}, id="escaped-prefix"),
        pytest.param("", {}, id="empty"),
    ],
)
def test_parse_reads_as_php_does(text: str, expected: dict[str, object]) -> None:
    assert parse(text) == expected


@given(st.dictionaries(WORDS, NESTED, min_size=1))
def test_what_is_built_is_parsed_back(data: dict[str, object]) -> None:
    assert parse(build(data)) == data


def test_build_writes_flags_as_digits_and_leaves_null_out() -> None:
    assert build({"a": True, "b": False, "c": None, "d": [1, 2]}) == "a=1&b=0&d%5B0%5D=1&d%5B1%5D=2"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param({}, [], id="empty"),
        pytest.param({"0": "a", "1": "b"}, ["a", "b"], id="counted"),
        pytest.param({"1": "b"}, {"1": "b"}, id="with-a-gap"),
        pytest.param({"a": "b"}, {"a": "b"}, id="named"),
    ],
)
def test_an_array_counted_from_zero_prints_as_a_list(entries: object, expected: object) -> None:
    assert as_php_array(entries) == expected
