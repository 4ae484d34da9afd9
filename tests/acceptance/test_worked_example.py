"""`docs/add-an-operation.md` is run as it stands: its task, its policy row, its tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.system import System
from acceptance.visits import opened, visited

GUIDE = Path(__file__).parents[2] / "docs" / "add-an-operation.md"
TASK, ROW, TESTS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)

# The guide's lines, with the names that they find in the files they are meant for.
MODULE = f"""
from classifiers import errors
from config import policies
from config.policies import GONE
from tasks.bitrix import *
from tasks.bitrix import operation, portal, turn

{TASK}

policies.TASKS.update({{{ROW}}})
"""

_found: dict = {}
exec(compile(TESTS, str(GUIDE), "exec"), _found)
EXAMPLES = {name: test for name, test in _found.items() if name.startswith("test_")}


@pytest.fixture(scope="module")
def example_office(site, tmp_path_factory) -> Iterator[System]:
    """A system whose application and worker have the task of the guide."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "example.py").write_text(MODULE)
    env = {"APPLICATION": "example", "PYTHONPATH": str(folder)}
    with opened(folder / "office", site, **env) as system:
        system.worker("worker", "--include", "example", "-Q", "bitrix")
        yield system


@pytest.fixture
def office(example_office, request) -> Iterator[System]:
    yield from visited(example_office, request)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_does_what_the_guide_says(name, office, order):
    EXAMPLES[name](office, order)


def test_the_guide_has_a_test_for_the_task_and_one_for_its_policy():
    assert len(EXAMPLES) == 2
