"""The page about failures says what the table says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from classifiers import errors
from config import policy_page
from config.policies import POLICIES, TASKS, Action, Backoff, Notify, row_for

ROOT = Path(__file__).parents[2]
COMMAND = "python -m config.policy_page > docs/failures.md"


def rows() -> dict[str, list[str]]:
    """The lines of the first table by the name of their class."""
    lines = [line for line in policy_page.page().splitlines() if line.startswith("| ")]
    cells = [line.strip("| ").split(" | ") for line in lines[1 : 1 + len(tree())]]
    return {cell[0].split("`")[1]: cell for cell in cells}


def task_rows(task: str) -> dict[str, list[str]]:
    """The lines of a task's own table by the name of their class."""
    _, _, below = policy_page.page().partition(f"### {task}\n")
    lines = [line for line in below.partition("\n#")[0].splitlines() if line.startswith("| `")]
    cells = [line.strip("| ").split(" | ") for line in lines]
    return {cell[0].strip("`"): cell for cell in cells}


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
        ("Unclassified", "told", "user: if late, and at the end; operator: alert"),
        ("UserError", "told", "user: at the end"),
        ("UserError", "then", "refund"),
        ("UserError", "log", "info"),
        ("CircuitOpen", "told", "user: if late, and at the end"),
        ("OutcomeUnknown", "then", "dead letter, no refund"),
        ("Fatal", "retries", "3"),
        ("Fatal", "log", "critical"),
    ],
)  # fmt: skip
def test_a_cell_says_what_its_row_says(name, column, text):
    assert rows()[name][policy_page.COLUMNS.index(column)] == text


def test_a_pending_result_is_said_to_be_looked_for_sooner():
    assert rows()["Pending"][4].endswith("sooner if a sooner time is named")


@pytest.mark.parametrize("task", TASKS)
def test_every_row_of_a_task_stands_on_the_page(task):
    shown = task_rows(task)

    assert list(shown) == [kind.__name__ for kind in TASKS[task]]
    assert {len(cells) for cells in shown.values()} == {len(policy_page.TASK_COLUMNS)}
    for kind, row in TASKS[task].items():
        cells = dict(zip(policy_page.TASK_COLUMNS, shown[kind.__name__], strict=True))

        assert cells["what we do"] == policy_page.ACTIONS[row.action]
        assert row.outcome in cells["then"]
        assert cells["log"] == policy_page.level(row)


@pytest.mark.parametrize(
    ("task", "name", "column", "text"),
    [
        ("video.generate", "UserError", "what we do", "end it as done"),
        ("video.generate", "UserError", "then", "result `refunded`, refund"),
        ("video.generate", "UserError", "told", "user: at the end"),
        ("video.generate", "Paused", "retries", "any number, 24 h in all"),
        ("video.generate", "Paused", "told", "user: if late, and at the end"),
        ("video.generate", "Blocked", "told", "user: if late, and at the end; operator: alert"),
        ("video.generate", "OutcomeUnknown", "then", "dead letter, refund"),
        ("video.send", "Retryable", "retries", "3"),
        ("video.send", "Retryable", "then", "dead letter, refund"),
        ("video.send", "OutcomeUnknown", "what we do", "dead letter"),
        ("video.send", "OutcomeUnknown", "then", "no refund"),
        ("video.send", "OutcomeUnknown", "told", "user: at the end"),
        ("video.send", "Duplicate", "then", "–"),
        ("video.send", "Duplicate", "told", "nobody"),
        ("telegram.notify", "UserError", "then", "result `undeliverable`"),
        ("telegram.notify", "OutcomeUnknown", "then", "–"),
        ("telegram.notify", "OutcomeUnknown", "told", "nobody"),
        ("video.handle_callback", "Pending", "then", "dead letter"),
        ("bookmarks.crawl", "Unauthorized", "retries", "any number, 720 h in all"),
        ("bookmarks.crawl", "Unauthorized", "first waits", "as named, or 60 s each, +0–25 %"),
        ("bitrix.update_deal", "NotFound", "then", "result `target_gone`"),
        ("bitrix.update_deal", "NotFound", "told", "nobody"),
    ],
)
def test_a_cell_of_a_task_says_what_its_row_says(task, name, column, text):
    assert task_rows(task)[name][policy_page.TASK_COLUMNS.index(column)] == text


def test_when_a_user_is_asked_for_patience_is_said_once():
    assert policy_page.page().count("after 5 failures or 10 minutes") == 1


def test_there_are_words_for_everything_the_table_can_say():
    assert set(policy_page.ACTIONS) == set(Action)
    assert set(policy_page.TOLD) == set(Notify)


def test_a_changed_row_changes_the_page(monkeypatch):
    before = policy_page.page()
    row = row_for(errors.InvalidData)[1]
    changed = {**POLICIES, errors.InvalidData: type(row)(row.action, attempts=2)}
    monkeypatch.setattr("config.policies.POLICIES", changed)

    assert policy_page.page() != before


@pytest.mark.parametrize(
    ("task", "kind"), [("video.send", errors.Retryable), ("bitrix.update_deal", errors.NotFound)]
)
def test_a_changed_row_of_a_task_changes_the_page(monkeypatch, task, kind):
    before = policy_page.page()
    changed = replace(TASKS[task][kind], backoff=Backoff(7.0), outcome="changed")
    monkeypatch.setitem(TASKS, task, {**TASKS[task], kind: changed})

    assert policy_page.page() != before


def test_a_bar_inside_a_cell_does_not_end_it():
    assert policy_page.line(("a|b", "c")) == "| a&#124;b | c |"
