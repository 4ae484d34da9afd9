"""The page about failures says what the table says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from classifiers import errors
from config import policy_page
from config.policies import POLICIES, TASKS, Action, Notify, row_for

ROOT = Path(__file__).parents[2]
COMMAND = "python -m config.policy_page > docs/failures.md"


def rows() -> dict[str, list[str]]:
    """The lines of the first table by the name of their class."""
    lines = [line for line in policy_page.page().splitlines() if line.startswith("| ")]
    cells = [line.strip("| ").split(" | ") for line in lines[1 : 1 + len(tree())]]
    return {cell[0].split("`")[1]: cell for cell in cells}


def tree() -> list[str]:
    return [kind.__name__ for kind, _ in policy_page.walk(errors.JobError)]


def test_the_page_in_the_repository_is_current():
    written = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")

    assert written == policy_page.page(), f"write it anew: {COMMAND}"


def test_the_command_that_the_page_names_writes_it():
    done = subprocess.run(
        [sys.executable, "-m", "config.policy_page"],
        cwd=ROOT,
        env={"PYTHONUTF8": "1"},
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.decode() == policy_page.page()
    assert COMMAND in policy_page.page()


def test_every_class_stands_on_the_page_below_its_parent():
    places = {name: place for place, name in enumerate(tree())}

    assert list(rows()) == tree()
    assert set(tree()) == {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.JobError)
    }
    for name, cells in rows().items():
        kind = getattr(errors, name)
        if kind is not errors.JobError:
            parent = kind.__base__.__name__

            assert places[parent] < places[name]
            assert cells[0].count("&emsp;") == rows()[parent][0].count("&emsp;") + 1


def test_every_row_has_all_columns():
    assert {len(cells) for cells in rows().values()} == {len(policy_page.COLUMNS)}


@pytest.mark.parametrize(
    ("name", "column", "text"),
    [
        ("NetworkError", "what we do", "retry (as `Retryable`)"),
        ("NetworkError", "retries", "5 (`MAX_RETRIES`)"),
        ("NetworkError", "first waits", "1, 2, 4, 8, 16 s, +0–25 % (`INITIAL_BACKOFF` is the first)"),
        ("NetworkError", "then", "dead letter, refund"),
        ("CircuitOpen", "meaning", "Our own breaker keeps calls away from an upstream that is down."),
        ("InvalidData", "retries", "1"),
        ("InvalidData", "first waits", "2 s, +0–25 %"),
        ("RateLimited", "what we do", "wait"),
        ("RateLimited", "retries", "any number, 24 h in all"),
        ("RateLimited", "first waits", "as named, or 2, 4, 8, 16, 32, … s, at most 60 s, +0–25 %"),
        ("Paused", "first waits", "as named, or 60 s each, +0–25 %"),
        ("BillingExhausted", "retries", "any number, 30 min in all"),
        ("NotFound", "what we do", "dead letter (as `JobError`)"),
        ("NotFound", "retries", "none"),
        ("NotFound", "first waits", "–"),
        ("Unclassified", "meaning", "Nothing matched."),
        ("Unclassified", "told", "user: once, after 5 attempts or 10 minutes; operator: alert"),
        ("UserError", "told", "user: at once"),
        ("UserError", "log", "info"),
        ("CircuitOpen", "told", "nobody"),
        ("OutcomeUnknown", "then", "dead letter"),
        ("Fatal", "retries", "3"),
        ("Fatal", "log", "critical"),
    ],
)  # fmt: skip
def test_a_cell_says_what_its_row_says(name, column, text):
    assert rows()[name][policy_page.COLUMNS.index(column)] == text


def test_a_pending_result_is_said_to_be_looked_for_sooner():
    assert rows()["Pending"][4].endswith("sooner if a sooner time is named")


def test_every_row_of_a_task_stands_on_the_page():
    page = policy_page.page()

    for task, policies in TASKS.items():
        for kind, row in policies.items():
            line = next(
                x for x in page.splitlines() if x.startswith(f"| `{task}` | `{kind.__name__}`")
            )

            assert policy_page.ACTIONS[row.action] in line
            assert row.outcome in line


def test_there_are_words_for_everything_the_table_can_say():
    assert set(policy_page.ACTIONS) == set(Action)
    assert set(policy_page.TOLD) == set(Notify)


def test_a_changed_row_changes_the_page(monkeypatch):
    before = policy_page.page()
    row = row_for(errors.InvalidData)[1]
    changed = {**POLICIES, errors.InvalidData: type(row)(row.action, attempts=2)}
    monkeypatch.setattr("config.policies.POLICIES", changed)

    assert policy_page.page() != before


def test_a_bar_inside_a_cell_does_not_end_it():
    assert policy_page.line(("a|b", "c")) == "| a&#124;b | c |"
