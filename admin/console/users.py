"""What users see the end of: their videos, their credits, and the crawls of their bookmarks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import Form, HTTPException, Query, Request
from starlette.responses import Response

from admin import view
from admin.console.render import done, name_of, page, part
from admin.console.session import pages
from classifiers.errors import Pending
from reliability.dead_letters import Filter, dead_letters
from reliability.parking import parking
from storage import bookmarks, credits, videos
from storage.bookmarks import Session
from storage.credits import Entry
from tasks.bookmarks import cancel as cancel_crawl
from tasks.video import settle

router = pages()

SHOWN = 100  # rows; the command line shows more
IN_DOUBT = Filter(task="video.send", error_type="OutcomeUnknown")
PRIVATE = {"image_url", "prompt", "token"}  # of a user, and no business of an operator


# -- videos


@router.get("/videos")
def all_videos(request: Request, order: Annotated[str, Query()] = "") -> Response:
    """Find a video by its order, and list those that a person has to decide about."""
    if order.strip():
        return _video_page(request, order.strip())
    letters = dead_letters().page(IN_DOUBT, limit=SHOWN).letters
    return page(
        request,
        "videos.html",
        place="/videos",
        letters=list(map(view.letter_row, letters)),
        total=dead_letters().count(IN_DOUBT),
    )


@router.get("/videos/{order_id:path}")
def video(request: Request, order_id: str) -> Response:
    """Show what has become of one video."""
    return _video_page(request, order_id)


def _video_page(request: Request, order_id: str) -> Response:
    found = videos.get(order_id)
    if found is None:
        raise HTTPException(404, f"No video of order {order_id} was asked for.")
    row = {name: value for name, value in asdict(found).items() if name not in PRIVATE}
    jobs = {name: job for name, job in (("made", found.job), ("delivered", found.sender)) if job}
    return page(
        request,
        "video.html",
        place="/videos",
        video=row,
        jobs={name: _where(job) | {"id": job} for name, job in jobs.items()},
    )


def _where(job: str) -> dict[str, Any]:
    """Say where a job is: parked, dead, or neither."""
    if (waiting := parking().get(job)) is not None:
        return {"place": "parked", "due": waiting.due, "reason": waiting.reason}
    if (letter := dead_letters().get(job)) is not None:
        return {"place": "dead", "state": letter.state, "error": letter.error_type}
    return {"place": ""}


@router.post("/videos")
def decide(
    request: Request,
    order_id: Annotated[str, Form(alias="id")],
    action: Annotated[Literal["arrived", "refund"], Form()],
) -> Response:
    """Settle a video of which nobody knows whether it has arrived."""
    there = f"/videos/{part(order_id)}"
    try:
        settled = settle(order_id, arrived=action == "arrived", by=name_of(request))
    except Pending as reason:
        return done(request, there, f"Not now: {reason.detail}.", well=False)
    if settled is None:
        return done(request, there, "It is not in doubt any more: nothing changed.", well=False)
    told = (
        "Settled as arrived; it stays paid for." if action == "arrived" else "The credits are back."
    )
    return done(request, there, f"{told} Its letters are closed, and its button sends nothing.")


# -- credits


@router.get("/credits")
def credits_of(request: Request, user: Annotated[str, Query()] = "") -> Response:
    """Show what a user has, and the transfers that led to it."""
    user = user.strip()
    entries = credits.history(user, SHOWN) if user else []
    return page(
        request,
        "credits.html",
        place="/credits",
        user=user,
        balance=credits.balance(user) if user else None,
        entries=[_entry(each) for each in entries],
        most=SHOWN,
    )


def _entry(entry: Entry) -> dict[str, Any]:
    """Return a transfer, with the order that its key names, if it is of a video."""
    kind, _, rest = entry.key.partition(":")
    order = rest.removesuffix(":refund").rpartition(":")[0] if kind == "video" else ""
    return asdict(entry) | {"order": order}


# -- crawls


@router.get("/crawls")
def crawls(request: Request, user: Annotated[str, Query()] = "") -> Response:
    """List the crawls, the newest first."""
    user = user.strip()
    found = bookmarks.sessions(user or None, SHOWN)
    return page(request, "crawls.html", place="/crawls", crawls=list(map(_crawl, found)), user=user)


@router.get("/crawls/{session_id:path}")
def one_crawl(request: Request, session_id: str) -> Response:
    """Show how far a crawl is, and what it waits for."""
    found = bookmarks.get(session_id)
    if found is None:
        raise HTTPException(404, f"No crawl has the id {session_id}.")
    return page(
        request,
        "crawl.html",
        place="/crawls",
        crawl=_crawl(found),
        job=_where(found.job) if found.open else {"place": ""},
        known=bookmarks.count(found.user_id),
    )


@router.post("/crawls")
def end_crawl(request: Request, session_id: Annotated[str, Form(alias="id")]) -> Response:
    """Have a crawl end at its next checkpoint."""
    there = f"/crawls/{part(session_id)}"
    found = bookmarks.get(session_id)
    if found is None or not found.open:
        return done(request, there, "It has ended already: nothing changed.", well=False)
    cancel_crawl.delay(session_id=session_id)
    return done(
        request,
        there,
        "It ends at its next checkpoint. What is stored stays; a later crawl goes on from there.",
    )


def _crawl(found: Session) -> dict[str, Any]:
    row = asdict(found)
    return row | {"open": found.open, "left_out": sum(found.skipped.values())}
