"""What a process has one of: built once, closed at its end."""

from __future__ import annotations

import logging

import pytest

from clients import process
from clients.process import PerProcess, close_all


class Line:
    """Something that has to be closed; *fails* says that it cannot be."""

    def __init__(self, fails=False):
        self.fails, self.closed = fails, 0

    def close(self):
        self.closed += 1
        if self.fails:
            raise OSError("gone")


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Those of this test alone: the clients of the whole run are not closed."""
    known = []
    monkeypatch.setattr(process, "_all", known)
    return known


def test_what_was_built_is_closed_once_and_built_anew():
    line = PerProcess(Line)
    first = line()
    line.close()
    line.close()
    second = line()

    assert (first.closed, second.closed) == (1, 0)
    assert second is not first


def test_what_was_never_built_is_not_built_to_be_closed():
    built = []
    line = PerProcess(lambda: built.append(Line()))
    line.close()

    assert built == []


def test_what_cannot_be_closed_is_let_go():
    line = PerProcess(object)
    first = line()
    line.close()

    assert line() is not first


def test_a_process_closes_all_it_has_built_whatever_becomes_of_one(caplog):
    lines = [PerProcess(Line), PerProcess(lambda: Line(fails=True)), PerProcess(Line)]
    built = [line() for line in lines]

    with caplog.at_level(logging.ERROR):
        close_all()

    assert [line.closed for line in built] == [1, 1, 1]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
