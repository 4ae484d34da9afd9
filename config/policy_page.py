"""The policy table as a page for people: `python -m config.policy_page > docs/failures.md`."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from classifiers.errors import JobError
from config.policies import (
    DAY,
    LATE_AFTER,
    LATE_ATTEMPTS,
    PAID,
    PARTS,
    POLICIES,
    TASKS,
    USUAL,
    WAITS,
    Action,
    Backoff,
    Defaults,
    Notify,
    Policy,
    row_for,
)

INTRODUCTION = """\
# What goes wrong, and what follows

Written by `python -m config.policy_page > docs/failures.md`; change the sources, not this page.

An error says what happened; this table decides what follows. A class without a row of its own
follows its nearest ancestor, and shares that row's count of retries. What a job has been through
travels with it, so every row counts for itself, whichever worker runs the job.

- A **retry** spends an attempt. The waits are ours and grow; what an upstream asks for counts
  instead where it is longer.
- A **wait** spends none. The time that the upstream or our own gate has named counts as it is,
  never scaled: it is a place in a line that is spread out already. All waits of a job together last
  {day} at most, and one that would take longer is not begun; those that a person ends (a pause, a
  refused credential, a portal that has moved) count for themselves.
- A **refund**, and news for a **user**, come where somebody has paid for the job: with the videos.
  Credits go back once, and never for what may have arrived. A user is asked for patience once, when
  it is late: after {late_failures} failures or {late_minutes:g} minutes.
- `MAX_RETRIES` ({retries}) and `INITIAL_BACKOFF` ({backoff:g} s) change the rows that name them,
  `RETRY_TIME_SCALE` multiplies every wait that is ours, and a bound of less than a day.

To change a row, edit `POLICIES` in `config/policies.py`; for one task alone, or for a part of one,
`TASKS` and `PARTS` beside it. A new kind of failure is a class in `classifiers/errors.py`.
"""

SPECIAL_CASES = """\
## Where a task decides otherwise

These rows count instead of those above. Who has paid for a job waits for {day} in all, whoever has
to open what is closed.
"""

ACTIONS = {
    Action.RETRY: "retry",
    Action.PARK: "wait",
    Action.RECONCILE: "ask the upstream what became of it, then go on",
    Action.SKIP: "end it as done",
    Action.ADOPT: "take over what exists, and go on with it",
    Action.DEAD_LETTER: "dead letter",
    Action.ABORT: "stop at once, wait for a person",
    Action.SHUTDOWN: "stop this worker; the job goes on elsewhere",
}
COMES_BACK = {Action.RETRY, Action.RECONCILE, Action.SHUTDOWN, *WAITS}
TOLD = {
    Notify.NEVER: "",
    Notify.LATE: "user: if late, and at the end",
    Notify.END: "user: at the end",
}
CONSEQUENCES = ("what we do", "retries", "first waits", "then", "told", "log")
COLUMNS = ("error", "meaning", *CONSEQUENCES)
TASK_COLUMNS = ("error", *CONSEQUENCES)
SHOWN = 5  # waits: as many as MAX_RETRIES allows unless it is changed


def page() -> str:
    """Return the page: the tree with its policy, and the rows of single tasks."""
    introduction = INTRODUCTION.format(
        day=span(DAY),
        late_failures=LATE_ATTEMPTS,
        late_minutes=LATE_AFTER / 60,
        retries=Defaults().max_retries,
        backoff=Defaults().initial_backoff,
    )
    tree = table(COLUMNS, (cells(kind, depth) for kind, depth in walk(JobError)))
    special = SPECIAL_CASES.format(day=span(DAY))
    tasks = (f"### {task}\n\n{table(TASK_COLUMNS, task_cells(task))}" for task in (*TASKS, *PARTS))
    return "\n".join([introduction, tree, special, *tasks])


def walk(kind: type[JobError], depth: int = 0) -> Iterator[tuple[type[JobError], int]]:
    """Yield the tree as it is drawn in `classifiers.errors`, with the depth of each class."""
    yield kind, depth
    for deeper in kind.__subclasses__():
        if deeper.__module__ == JobError.__module__:
            yield from walk(deeper, depth + 1)


def cells(kind: type[JobError], depth: int) -> tuple[str, ...]:
    """Return the row of *kind*, one text for each of `COLUMNS`."""
    owner, policy = row_for(kind)
    follows = "" if kind in POLICIES else f" (as `{owner.__name__}`)"
    return (
        f"{'&emsp;' * depth}`{kind.__name__}`",
        meaning(kind),
        ACTIONS[policy.action] + follows,
        *after(policy, paid=True),
    )


def task_cells(task: str) -> Iterator[tuple[str, ...]]:
    """Yield the rows of *task*, one text for each of `TASK_COLUMNS`."""
    for kind, policy in own_rows(task).items():
        consequences = ACTIONS[policy.action], *after(policy, paid=is_paid(task))
        yield f"`{kind.__name__}`", *consequences


def own_rows(task: str) -> Mapping[type[BaseException], Policy]:
    """Return the rows of a task, or of a part of one."""
    return TASKS[task] if task in TASKS else PARTS[task]


def is_paid(task: str) -> bool:
    """Whether somebody pays for *task*, so that it has a user and something to refund."""
    return PAID.items() <= own_rows(task).items()


def after(policy: Policy, *, paid: bool) -> tuple[str, ...]:
    """Say what follows the action itself, one text for each of `CONSEQUENCES` but the first."""
    return (
        retries(policy),
        waits(policy),
        then(policy, paid=paid),
        told(policy, paid=paid),
        level(policy),
    )


def meaning(kind: type[JobError]) -> str:
    """Return the first sentence of the class."""
    text = " ".join((kind.__doc__ or "").split())
    return re.split(r"(?<=\.) ", text, maxsplit=1)[0]


def retries(policy: Policy) -> str:
    """Say how often, or for how long in all."""
    if policy.action not in COMES_BACK:
        return "none"
    if policy.action in WAITS:
        return f"any number, {span(policy.budget)} in all"
    if policy.attempts is None:
        return f"{Defaults().max_retries} (`MAX_RETRIES`)"
    return str(policy.attempts)


def waits(policy: Policy) -> str:
    """Say how long it takes until each of the first retries."""
    if policy.action not in COMES_BACK:
        return "–"
    ours = curve(policy)
    if policy.action not in WAITS:
        return ours
    return (
        f"{ours}; sooner if a sooner time is named" if policy.at_latest else f"as named, or {ours}"
    )


def curve(policy: Policy) -> str:
    """Return our own waits: those there are, or the first of a long row."""
    backoff: Backoff = policy.backoff
    allowed = Defaults().max_retries if policy.attempts is None else policy.attempts
    limited = policy.action not in WAITS and allowed <= SHOWN
    shown = [backoff.delay(turn, 0.0) for turn in range(allowed if limited else SHOWN)]
    spread = f"+0–{backoff.jitter:.0%}".replace("%", " %")
    if len(set(shown)) == 1:
        text = f"{shown[0]:g} s" + ("" if len(shown) == 1 else " each")
    else:
        text = ", ".join(f"{seconds:g}" for seconds in shown)
        text += " s" if limited else f", … s, at most {backoff.cap:g} s"
    named = " (`INITIAL_BACKOFF` is the first)" if backoff is USUAL else ""
    return f"{text}, {spread}{named}"


def then(policy: Policy, *, paid: bool) -> str:
    """Say what follows when the retries are spent, and what becomes of the credits."""
    end = ACTIONS[policy.then] if policy.action in COMES_BACK else ""
    result = f"result `{policy.outcome}`" if policy.outcome else ""
    credit = "refund" if policy.refund else "no refund"
    ends = paid and policy.action is not Action.ADOPT
    return ", ".join(filter(None, (end, result, credit if ends else ""))) or "–"


def told(policy: Policy, *, paid: bool) -> str:
    """Say who hears of it."""
    user = TOLD[policy.notify] if paid and policy.action is not Action.ADOPT else ""
    operator = "operator: alert" if policy.alert else ""
    return "; ".join(filter(None, (user, operator))) or "nobody"


def level(policy: Policy) -> str:
    """Return the level it is logged at."""
    return logging.getLevelName(policy.level).lower()


def span(seconds: float) -> str:
    """Say a long time in hours or minutes."""
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"  # noqa: PLR2004


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table with its head."""
    lines = [line(columns), f"|{'---|' * len(columns)}", *map(line, rows)]
    return "\n".join(lines) + "\n"


def line(texts: tuple[str, ...]) -> str:
    """Return a line of a table; a bar inside a cell would end it."""
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
