"""Dead letters: causes, the letters of one, and one with the story of its attempts."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from fastapi import Depends, Form, HTTPException, Query, Request
from starlette.responses import Response

from admin import repair, view
from admin.console import words
from admin.console.render import done, from_now, name_of, page, part
from admin.console.selection import Selection, selected
from admin.console.session import pages
from admin.repair import Refused
from reliability.causes import VERSION
from reliability.dead_letters import STATES, Filter, Letter, dead_letters
from reliability.parking import END_OF_TIME
from storage import archive
from tasks.dry_run import amended, dry_run, objection

router = pages()

SHOWN = 50  # letters on a page
NEWEST = 10  # letters on the page of their cause
# Digits, a colon, an id. Python reads numbers that Redis does not, such as 1_0.
CURSOR = re.compile(r"[0-9]{1,16}(\.[0-9]{1,17})?:.+", re.DOTALL)
DEAD = "dead_letter"  # the last entry of a history that ended so
CAUSES = 100  # more than that nobody reads; the most frequent come first

State = Annotated[str, Query()]


@router.get("/groups")
def causes(request: Request, state: State = "open") -> Response:
    """Show the causes of dead letters, the most frequent first."""
    state = state if state in {*STATES, "all"} else "open"
    groups = dead_letters().groups(state=state, limit=CAUSES)
    return page(
        request,
        "causes.html",
        place="/groups",
        groups=[view.group_row(group) for group in groups],
        state=state,
        most=CAUSES,
        total=dead_letters().count(Filter(state)),
    )


@router.get("/groups/{fingerprint}")
def cause(request: Request, fingerprint: str, state: State = "") -> Response:
    """Show one cause: what it means, since when, what to do, and its newest letters."""
    found = next(filter(None, (_group(fingerprint, each) for each in _looked_in(state))), None)
    if found is None:
        raise HTTPException(404, f"No dead letter has the cause {fingerprint}.")
    group, state = found
    which = Filter(state, fingerprint=fingerprint)
    newest = dead_letters().page(which, limit=NEWEST).letters
    return page(
        request,
        "cause.html",
        place="/groups",
        group=group,
        state=state,
        letters=list(map(view.letter_row, newest)),
        verdict=group["verdict"],
    )


def _looked_in(state: str) -> tuple[str, ...]:
    return (state,) if state in STATES else ("open", "all")


def _group(fingerprint: str, state: str) -> tuple[dict[str, Any], str] | None:
    group = dead_letters().group(fingerprint, state=state)
    return None if group is None else (view.group_row(group), state)


@router.post("/groups/{fingerprint}/fixed")
def fixed(
    request: Request,
    fingerprint: str,
    version: Annotated[str, Form()] = "",
    note: Annotated[str, Form()] = "",
) -> Response:
    """Note that a release has mended a cause."""
    there = f"/groups/{part(fingerprint)}"
    if not VERSION.fullmatch(version.strip()):
        return done(request, there, "Nothing is noted: write a release like 1.4.2.", well=False)
    dead_letters().fixed(fingerprint, by=name_of(request), version=version.strip(), note=note)
    return done(
        request,
        there,
        f"Noted as fixed in {version.strip()}. A death in it, or a later one, is shown as a "
        "regression. Its letters are as they were.",
    )


@router.post("/groups/{fingerprint}/ignore")
def ignore(
    request: Request,
    fingerprint: str,
    note: Annotated[str, Form()] = "",
    until: Annotated[str, Form()] = "",
) -> Response:
    """Discard the letters of a cause and those to come."""
    discarded = dead_letters().ignore(
        fingerprint, by=name_of(request), note=note, until=from_now(until, 1)
    )
    return done(
        request,
        f"/groups/{part(fingerprint)}?state=discarded",
        f"The cause is ignored{f' for {until}' if until else ''}: {discarded} letters are "
        "discarded, and each that comes will be. They stay readable.",
    )


@router.post("/groups/{fingerprint}/unsay")
def unsay(request: Request, fingerprint: str) -> Response:
    """Take back what was said about a cause."""
    lifted = dead_letters().lift(fingerprint)
    told = "The cause is as any other again. What was discarded stays so."
    return done(
        request,
        f"/groups/{part(fingerprint)}",
        told if lifted else "Nothing was said about it.",
        well=lifted,
    )


# -- letters


@router.get("/dead-letters")
def letters(
    request: Request,
    selection: Annotated[Selection, Depends(selected)],
    cursor: Annotated[str, Query()] = "",
) -> Response:
    """List letters, the newest first."""
    found = dead_letters().page(selection.which, limit=SHOWN, cursor=_known(cursor))
    counted = None if selection.which.grep or _costly(selection.which) else selection.which
    return page(
        request,
        "letters.html",
        place="/groups",
        letters=list(map(view.letter_row, found.letters)),
        selection=selection,
        cursor=found.cursor,
        total=None if counted is None else dead_letters().count(counted),
        tasks=sorted(dead_letters().open_by_task()),
        states=("open", "replayed", "discarded", "all"),
    )


def _costly(which: Filter) -> bool:
    """Whether counting them would look at each."""
    return bool(which.fingerprint and (which.task or which.error_type))


def _known(cursor: str) -> str:
    """Return a cursor of ours, empty for anything else that stands in an address."""
    return cursor if CURSOR.fullmatch(cursor) else ""


@router.get("/dead-letters/{message_id:path}")
def letter(request: Request, message_id: str) -> Response:
    """Show one letter whole, also one in the archive."""
    found, archived = _letter(message_id)
    row = view.letter_row(found)
    return page(
        request,
        "letter.html",
        place="/groups",
        letter=row,
        archived=archived,
        story=story_of(row),
        outlook=None if archived or found.state != "open" else next(dry_run([found])),
        differences=[view.difference(edit["before"], edit["after"]) for edit in row["edits"]],
    )


def _letter(message_id: str) -> tuple[Letter, bool]:
    """Return a letter, and whether it is in the archive only."""
    found = dead_letters().get(message_id)
    if found is not None:
        return found, False
    kept = archive.get(message_id)
    if kept is None:
        raise HTTPException(404, f"No dead letter has the id {message_id}.")
    return Letter.from_json(kept.letter), True


@router.post("/letter/replay")
def replay_one(request: Request, message_id: Annotated[str, Form(alias="id")]) -> Response:
    """Send one job again."""
    dead = _open(message_id)
    there = f"/dead-letters/{part(message_id)}"
    try:
        repair.replay(dead, name_of(request))
    except Refused as refusal:
        return done(request, there, f"Nothing was sent: {refusal}.", well=False)
    return done(
        request,
        there,
        f"Sent again, into the queue {dead.original_queue}, with a fresh budget. If it dies again, "
        "this letter opens again.",
    )


@router.post("/letter/discard")
def discard_one(
    request: Request,
    message_id: Annotated[str, Form(alias="id")],
    note: Annotated[str, Form()] = "",
) -> Response:
    """Settle one letter without sending it."""
    settled = dead_letters().discard(message_id, by=name_of(request), note=note)
    told = "Discarded. Nothing was sent; the letter stays readable."
    return done(
        request,
        f"/dead-letters/{part(message_id)}",
        told if settled else "It was not open any more: nothing has changed.",
        well=settled,
    )


# -- one letter, repaired


@router.get("/edit")
def edit(request: Request, message_id: Annotated[str, Query(alias="id")]) -> Response:
    """Show the arguments of a dead job, to be changed."""
    dead = _open(message_id)
    text = json.dumps(dead.message_body.kwargs, ensure_ascii=False, indent=2)
    return _editor(request, dead, text)


@router.post("/edit")
def amend(
    request: Request,
    message_id: Annotated[str, Form(alias="id")],
    arguments: Annotated[str, Form()],
    action: Annotated[str, Form()] = "preview",
) -> Response:
    """Show what a change comes to; on a second word write it down, and send the job again."""
    dead = _open(message_id)
    text = arguments.replace("\r\n", "\n")
    kwargs, against = _arguments(dead, text)
    if against or action not in {"save", "send"}:
        return _editor(request, dead, text, kwargs, against)
    there = f"/dead-letters/{part(message_id)}"
    try:
        changed = repair.edit(dead, kwargs, name_of(request))
        if action == "send":
            repair.replay(changed, name_of(request))
    except Refused as refusal:
        return done(request, there, f"Nothing was sent: {refusal}.", well=False)
    told = "Changed, and sent again with a fresh budget."
    kept = "Changed. What it was before is kept below; nothing was sent."
    return done(request, there, told if action == "send" else kept)


def _editor(
    request: Request,
    dead: Letter,
    text: str,
    kwargs: dict[str, Any] | None = None,
    against: str = "",
) -> Response:
    """Return the form; once something was looked at, with the difference and what comes of it."""
    looked_at = kwargs is not None and not against
    return page(
        request,
        "edit.html",
        place="/groups",
        letter=view.letter_row(dead),
        text=text,
        against=against,
        difference=view.difference(dead.message_body.kwargs, kwargs) if kwargs else "",
        outlook=next(dry_run([amended(dead, kwargs or {})])) if looked_at else None,
        status=422 if against else 200,
    )


def _arguments(dead: Letter, text: str) -> tuple[dict[str, Any], str]:
    """Return the arguments in a text, and what speaks against them, empty for nothing."""
    try:
        kwargs = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"This is no JSON: {error}."
    if not isinstance(kwargs, dict):
        return {}, "This is no object of arguments by name, { … }."
    if kwargs == dead.message_body.kwargs:
        return kwargs, "That changes nothing yet."
    return kwargs, objection(amended(dead, kwargs))


def _open(message_id: str) -> Letter:
    dead = dead_letters().get(message_id)
    if dead is None:
        raise HTTPException(404, f"No dead letter has the id {message_id}.")
    return dead


# -- the story


def story_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what has happened to a dead job, in the order in which it did."""
    told = row["metadata"]
    story = [_step(told["received_at"], "accepted", "good")] if told["received_at"] else []
    last = row["history"][-1:]  # the death itself, which the letter tells whole
    history = row["history"][:-1] if last and last[0].get("action") == DEAD else row["history"]
    story += steps(history)
    died = _step(told["failed_at"], "given up", "bad", row["error_type"], row["error_message"])
    story.append(died | {"code": row["code"]})
    story += [
        _step(edit["at"], f"arguments changed by {edit['by']}", "accent") for edit in row["edits"]
    ]
    if row["settled_at"]:
        state, tone = words.STATES[row["state"]]
        by = f" by {row['settled_by']}" if row["settled_by"] else ""
        story.append(_step(row["settled_at"], state + by, tone, detail=row["note"]))
    return story


def steps(history: Any) -> list[dict[str, Any]]:
    """Return the failures and waits of a job; what makes no sense in them is left out."""
    known = [entry for entry in history if isinstance(entry, dict) and _is_time(entry.get("at"))]
    return [
        _step(
            entry["at"],
            words.ACTIONS.get(entry.get("action", ""), str(entry.get("action", ""))),
            "warn",
            str(entry.get("error", "")),
            str(entry.get("detail", "")),
        )
        | {name: entry.get(name) for name in ("code", "service", "delay", "times", "since")}
        for entry in known
    ]


def _step(at: Any, what: str, tone: str, error: str = "", detail: str = "") -> dict[str, Any]:
    nothing = dict.fromkeys(("code", "service", "delay", "times", "since"))
    return nothing | {"at": at, "what": what, "tone": tone, "error": error, "detail": detail}


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < END_OF_TIME
