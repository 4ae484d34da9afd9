"""Many letters at once: looked at first, then sent again or discarded; and ramped replays."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from fastapi import Depends, Form, HTTPException, Request
from starlette.responses import Response

from admin import view
from admin.console.render import done, name_of, page, part
from admin.console.selection import SAMPLE, Picked, Selection, confirmed, fields, pick, selected
from admin.console.session import pages
from reliability.dead_letters import dead_letters
from reliability.replays import STEPS, Run, replays
from tasks.dry_run import dry_run, objection
from tasks.replay import begin_ramp, drive, send_again

router = pages()

AT_ONCE = 100  # letters at most that are sent within one request: a second of work
DISCARDED_AT_ONCE = 2_000  # letters of one request: a second of Redis
TOLD = 3  # reasons why letters were not sent


@router.get("/replay")
def rehearse(request: Request, selection: Annotated[Selection, Depends(selected)]) -> Response:
    """Say what sending these letters again would come to; nothing is sent by that."""
    picked = pick(selection)
    outlooks = list(dry_run(picked.letters(SAMPLE)))
    return page(
        request,
        "replay.html",
        place="/groups",
        selection=selection,
        picked=picked,
        fields=fields(picked),
        outlooks=outlooks,
        verdicts=Counter(outlook.verdict for outlook in outlooks),
        at_once=AT_ONCE,
        steps=STEPS,
    )


@router.post("/replay")
def replay(
    request: Request,
    picked: Annotated[Picked, Depends(confirmed)],
    how: Annotated[str, Form()] = "ramp",
) -> Response:
    """Send letters again, in a ramp or at once."""
    if how == "at-once" and picked.count <= AT_ONCE:
        return _at_once(request, picked)
    run = begin_ramp(picked.which, ids=picked.ids, by=name_of(request))
    return done(
        request,
        f"/replays/{run.id}?refresh=5",
        "The replay is under way: one job first, then ten, then a hundred. You may go; it stops "
        "by itself if they die of the same cause again.",
    )


def _at_once(request: Request, picked: Picked) -> Response:
    sent, refused = 0, Counter[str]()
    for letter in picked.letters(AT_ONCE):
        against = objection(letter)
        if not against and send_again(letter, by=name_of(request)):
            sent += 1
        else:
            refused[against or "somebody else has settled it"] += 1
    told = f"Sent {sent} of {sent + refused.total()} again."
    told += "".join(f" {count} not: {why}." for why, count in refused.most_common(TOLD))
    back = f"/groups/{part(picked.which.fingerprint)}" if picked.which.fingerprint else "/groups"
    return done(request, back, told, well=not refused)


@router.get("/discard")
def before_discard(
    request: Request, selection: Annotated[Selection, Depends(selected)]
) -> Response:
    """Say which letters would be discarded."""
    picked = pick(selection)
    sample = picked.letters(SAMPLE)
    return page(
        request,
        "discard.html",
        place="/groups",
        selection=selection,
        picked=picked,
        fields=fields(picked),
        letters=list(map(view.letter_row, sample)),
        most=DISCARDED_AT_ONCE,
    )


@router.post("/discard")
def discard(
    request: Request,
    picked: Annotated[Picked, Depends(confirmed)],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Settle letters without sending them."""
    ids = [letter.message_id for letter in picked.letters(DISCARDED_AT_ONCE)]
    by = name_of(request)
    count = sum(dead_letters().discard(each, by=by, note=note) for each in ids)
    left = max(0, picked.count - len(ids))
    more = f" {left} are left: discard once more." if left else ""
    return done(request, "/groups", f"Discarded {count} letters.{more}", well=not left)


# -- runs


@router.get("/replays")
def runs(request: Request) -> Response:
    """List the ramped replays of the last month."""
    rows = list(map(_row, replays().each()))
    return page(request, "runs.html", place="/replays", runs=rows)


@router.get("/replays/{run_id}")
def run(request: Request, run_id: str) -> Response:
    """Show how far a ramped replay is, and why it goes no further."""
    found = _run(run_id)
    return page(
        request,
        "run.html",
        place="/replays",
        run=_row(found),
        left=_left(found),
        steps=STEPS,
        step=found.step,
    )


@router.post("/replays/{run_id}")
def steer(
    request: Request, run_id: str, action: Annotated[Literal["cancel", "resume"], Form()]
) -> Response:
    """Stop a run, or have it go on."""
    found = _run(run_id)
    if action == "cancel":
        closed = replays().close(found.id, "cancelled", f"cancelled by {name_of(request)}")
        told = "No more jobs are sent. What is under way goes on."
        told = told if closed else "It was over already."
        return done(request, f"/replays/{found.id}", told, well=closed)
    # One that is running may have lost its driver: another one does no harm.
    replays().resume(found.id)
    drive(found.id)
    there = f"/replays/{found.id}?refresh=5"
    return done(request, there, "It goes on where it was, with one job first.")


def _run(run_id: str) -> Run:
    found = replays().get(run_id)
    if found is None:
        raise HTTPException(404, f"No replay has the id {run_id}; they are kept for a month.")
    return found


def _row(found: Run) -> dict[str, Any]:
    return view.run_row(found) | {"is_running": found.is_running}


def _left(found: Run) -> int | None:
    """Return how many letters are still to be sent; None where that would have to be searched."""
    if found.exhausted:
        return 0
    if found.ids:
        return max(0, len(found.ids) - int(found.cursor or 0))
    which = found.which
    if which.grep or (which.fingerprint and (which.task or which.error_type)):
        return None
    return dead_letters().count(which)
