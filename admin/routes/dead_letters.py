"""The dead letters over HTTP: read, sent again, discarded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import HTTPException, Query, status

from admin import repair, view
from admin.routes.access import (
    CONFLICT,
    NOBODY,
    UNKNOWN,
    UNREADABLE,
    UNUSABLE,
    Operator,
    guarded_router,
)
from admin.routes.shapes import (
    Answer,
    Group,
    Letter,
    Letters,
    Outlook,
    Outlooks,
    ReplayMany,
    ReplayOne,
    Run,
    Sent,
    Settled,
    WhichGroups,
    WhichPage,
)
from reliability.dead_letters import Filter, Page, dead_letters
from reliability.dead_letters import Letter as Dead
from storage import archive
from tasks.dry_run import amended, dry_run
from tasks.replay import begin_ramp

router = guarded_router("dead letters", "/api/dead-letters")

AT_ONCE = 1_000  # letters that one request sends: a few seconds; more go in a ramp
REHEARSED = 100  # letters of which one request says what would become of them
REHEARSED_ONE: dict[int | str, dict[str, Any]] = {
    200: {"model": Outlook, "description": "A dry run: nothing was sent."}
}
REHEARSED_MANY: dict[int | str, dict[str, Any]] = {
    200: {"model": Outlooks, "description": "A dry run: nothing was sent."}
}
PAGES = 10  # searched for a text in one request: 20,000 letters, two seconds


@router.get("", response_model=Letters, responses=UNUSABLE)
def list_letters(which: Annotated[WhichPage, Query()]) -> Answer:
    """List dead letters, newest first; the open ones, if not told otherwise."""
    page = page_of(which.filter(which.state), which.limit, which.cursor)
    rows = [view.letter_row(letter) for letter in page.letters]
    return Answer({"items": rows, "next_cursor": page.cursor or None})


@router.get("/groups", response_model=list[Group], responses=UNUSABLE)
def list_groups(which: Annotated[WhichGroups, Query()]) -> Answer:
    """List the causes of letters, the most frequent first."""
    groups = dead_letters().groups(state=which.state, limit=which.limit)
    return Answer([view.group_row(group) for group in groups])


@router.get("/{message_id:path}", response_model=Letter, responses=UNKNOWN | UNUSABLE)
def show_letter(message_id: str) -> Answer:
    """Show one letter whole, also one that Redis keeps no longer."""
    found = dead_letters().get(message_id) or archived(message_id)
    if found is None:
        raise HTTPException(404, "no dead letter has that id")
    return Answer(view.letter_row(found))


@router.post(
    "/replay",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=Run | Sent,
    responses=REHEARSED_MANY | UNREADABLE | CONFLICT,
)
def replay_letters(many: ReplayMany, by: Operator = NOBODY) -> Answer:
    """Send many jobs again, with a fresh budget; what has had its effect is not done twice.

    One of `ids`, a filter or `all` says which. With `dry_run` nothing is sent. With `ramp` the
    answer is a replay that goes on by itself; see `/api/replays/{run}`. Without it they are sent
    before the answer comes: up to 1,000 of them.
    """
    which = picked(many)
    if many.dry_run:
        return Answer(rehearsal(which, many.ids))
    if many.ramp:
        run = begin_ramp(which, ids=many.ids, by=by)
        return Answer(view.run_row(run), 202, {"Location": f"/api/replays/{run.id}"})
    return Answer(sent(which, many.ids, by), 202)


@router.post(
    "/{message_id:path}/replay",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=Settled,
    responses=REHEARSED_ONE | UNKNOWN | UNREADABLE | CONFLICT,
)
def replay_letter(message_id: str, how: ReplayOne | None = None, by: Operator = NOBODY) -> Answer:
    """Send one job again, with a fresh budget; with other arguments, if some are given."""
    how = how or ReplayOne()
    dead = in_redis(message_id)
    if how.dry_run:
        dead = dead if how.kwargs is None else amended(dead, how.kwargs)
        return Answer(asdict(next(dry_run([dead]))))
    if how.kwargs is not None and how.kwargs != dead.message_body.kwargs:
        dead = repair.edit(dead, how.kwargs, by)
    repair.replay(dead, by)
    return Answer({"message_id": message_id, "state": "replayed"}, 202)


@router.delete(
    "/{message_id:path}", response_model=Settled, responses=UNKNOWN | UNUSABLE | CONFLICT
)
def discard_letter(
    message_id: str, note: Annotated[str, Query(max_length=500)] = "", by: Operator = NOBODY
) -> Answer:
    """Settle a letter without sending its job; it stays readable."""
    if not dead_letters().discard(message_id, by=by, note=note):
        dead = in_redis(message_id)
        if dead.state != "discarded":  # twice is as good as once
            raise HTTPException(409, f"it is {dead.state}")
    return Answer({"message_id": message_id, "state": "discarded"})


# -- which, and what becomes of them


def picked(many: ReplayMany) -> Filter:
    """Return the filter of a request. Raises 422 if it picks nothing, or twice."""
    which = many.filter()
    filtered = which != Filter()
    if sum((bool(many.ids), filtered or many.all)) > 1:
        raise HTTPException(422, "name ids or give a filter, not both")
    if not many.ids and not filtered and not many.all:
        raise HTTPException(422, "name ids, give a filter, or say all")
    if many.dry_run and many.ramp:
        raise HTTPException(422, "dry_run sends nothing, so that there is nothing to ramp")
    return which


def page_of(which: Filter, limit: int, cursor: str) -> Page:
    """Return a page of letters.

    All letters of a cause are of one task and one class, which are a part of its fingerprint. So
    one of them tells whether the filter means the cause; they need not be gone through.
    """
    if which.fingerprint and (which.task or which.error_type):
        cause = Filter(state=which.state, fingerprint=which.fingerprint)
        example = next(iter(dead_letters().page(cause, limit=1).letters), None)
        if example is None or which.task not in {"", example.message_body.task}:
            return Page(())
        if which.error_type not in {"", example.error_type}:
            return Page(())
        which = replace(which, task="", error_type="")
    return dead_letters().page(which, limit=limit, cursor=cursor)


def some(which: Filter, ids: Sequence[str], most: int) -> tuple[list[Dead], bool]:
    """Return up to *most* letters, and whether there are more, or may be."""
    if ids:
        known = [dead for message_id in ids if (dead := dead_letters().get(message_id))]
        return known[:most], len(known) > most
    found: list[Dead] = []
    cursor = ""
    for _ in range(PAGES):
        page = page_of(which, most - len(found), cursor)
        found, cursor = [*found, *page.letters], page.cursor
        if not cursor or len(found) >= most:
            break
    return found, bool(cursor)


def rehearsal(which: Filter, ids: Sequence[str]) -> dict[str, object]:
    """Say what a replay would come to now."""
    letters, more = some(which, ids, REHEARSED)
    outlooks = list(dry_run(letters))
    return {
        "looked_at": len(outlooks),
        "more": more,
        "verdicts": Counter(outlook.verdict for outlook in outlooks),
        "items": [asdict(outlook) for outlook in outlooks],
    }


def sent(which: Filter, ids: Sequence[str], by: str) -> dict[str, object]:
    """Send letters at once; say why what was not sent was not. Raises 409 for too many."""
    letters, more = some(which, ids, AT_ONCE)
    if more:
        raise HTTPException(
            409, f"that is more than {AT_ONCE} letters, or too many to look through: send a ramp"
        )
    refused = Counter(reason for dead in letters if (reason := refusal(dead, by)))
    if unknown := len(ids) - len(letters) if ids else 0:
        refused["no dead letter has that id"] = unknown
    return {"sent": len(letters) - refused.total() + unknown, "refused": refused}


def refusal(dead: Dead, by: str) -> str:
    """Send a letter, and return why that was not possible; empty if it was."""
    try:
        repair.replay(dead, by)
    except repair.Refused as why:
        return str(why)
    return ""


def in_redis(message_id: str) -> Dead:
    """Return a letter that can be acted on. Raises 404 if there is none."""
    found = dead_letters().get(message_id)
    if found is None:
        raise HTTPException(404, "no dead letter has that id")
    return found


def archived(message_id: str) -> Dead | None:
    """Return a letter that Redis keeps no longer."""
    kept = archive.get(message_id)
    return Dead.from_json(kept.letter) if kept else None
