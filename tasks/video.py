"""A user pays for a video of a photo: charge, have it made, deliver it, or give the credits back.

The process of `generate` and `send` is drawn in ARCHITECTURE.md; what the states of a video mean
is told in `storage.videos`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Connection

from classifiers.errors import (
    Cancelled,
    InternalError,
    JobError,
    NotFound,
    Pending,
    ServiceUnavailable,
    UserError,
)
from classifiers.kie import classify_failure
from clients.downloads import fetch
from clients.kie import Progress, kie
from clients.telegram import FileId, Link, Source, telegram
from config import messages, services
from config.settings import settings
from reliability.dead_letters import dead_letters
from reliability.parking import parking
from storage import chats, credits, effects, media, videos
from storage.videos import Ending, Generation, Order, Video
from tasks import measures, operation
from tasks.base import job
from tasks.payloads import Fields, Id, Money
from tasks.telegram import AGAIN, SEND, Locale, amount, inform, receipt

Outcome = dict[str, Any]


def _holds_no_token(link: str) -> str:
    """KIE gets the link as it is; one to a file of Telegram's holds the bot's token."""
    plain = unquote(link)
    if re.search(r"/bot\d+:", plain) or urlsplit(plain).username is not None:
        raise ValueError("holds a login or the token of a bot; pass a link that does not")
    return link


Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[^\s/]+\S*$", max_length=2000),
    AfterValidator(_holds_no_token),
]
Price = Annotated[Money, Field(le=credits.MOST)]
Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]
Press = Annotated[str, StringConstraints(max_length=64)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z]+\.[a-z_]+$")]

UNDER_WAY = {"ready", "sending"}
OUTCOMES = dict.fromkeys(("paid", *UNDER_WAY), "in_progress")
ANSWERS = {"sent": "press_done"} | dict.fromkeys(OUTCOMES, "press_running")
NO_CREDITS = "insufficient_credits"
OVERLOADED = {"transient", "network", "rate_limit"}  # categories that pass by themselves


# -- making it


def ask_for_patience(order_id: str, **_: Any) -> None:
    """Tell the user that it takes longer to make; once in a round."""
    video = videos.get(order_id)
    if video is not None and video.state == "paid":
        inform(video.chat_id, video.locale, "still_working", key=video.charge, mark=video.mark)


def delivery_of(_: str, order_id: str, **__: Any) -> list[str]:
    """Return the effect of an order, by its key: that its video was delivered."""
    video = videos.get(order_id)
    return [videos.sending_key(video.sender)] if video is not None and video.sender else []


def unpaid(order_id: str, user_id: str, cost: Decimal, **_: Any) -> str:
    """Say why a replay could not charge for a new round, or why there must be none."""
    video = videos.get(order_id)
    if video is not None and video.state != "refunded":
        return undecided(order_id)
    available = credits.balance(user_id)
    return "" if available >= cost else f"user {user_id} has {available} credits of {cost}"


def undecided(order_id: str, **_: Any) -> str:
    """Say that a person has to settle first whether a video has arrived; empty if none has to."""
    video = videos.get(order_id)
    in_doubt = video is not None and video.state == "unconfirmed"
    return f"it may have arrived: settle it with `videos settle {order_id}`" if in_doubt else ""


@operation(
    name="video.generate",
    compensation="video.make_good",
    ask_for_patience=ask_for_patience,
    effect_keys=delivery_of,
    obstacle=unpaid,
    yields=True,  # thousands look at KIE by the way; a new order, or news of one, goes before them
)
def generate(
    order_id: Id,
    user_id: Id,
    chat_id: Id,
    image_url: Url,
    prompt: Prompt,
    cost: Price = Decimal(1),
    locale: Locale = "ru",
) -> Outcome:
    """Charge the user, have the video made and see it delivered; the order's id is the key."""
    order = Order(order_id, user_id, chat_id, image_url, prompt, cost, locale)
    video = videos.begin(order, job().id, job().replays)
    if video.state == "paid":
        video = made(video)
    if video.state in UNDER_WAY:
        hand_over(video)
        raise Pending("it is made, and on its way to the user", service="telegram")
    if video.state == "refunded":
        explain_again(video)
    return outcome(video)


def made(video: Video) -> Video:
    """Return the video once it is made and here; one question to KIE a run.

    Raises:
        Pending: KIE is at it.
        JobError: it came to nothing; the next run begins another try.
    """
    generation = videos.generation(video, settings().kie_model)
    if generation.refused_for:
        raise UserError("KIE has refused it", reason=generation.refused_for, service="kie")
    if generation.number > services.tries(settings()):
        raise ServiceUnavailable("KIE has tried often enough", service="kie", code="tries")
    if generation.asked_at is None:
        if create(video, generation):
            raise another_look(0.0, "just begun")
        generation = videos.generation(video, settings().kie_model)
    # A callback has news of most; that others are looked at by the way must not keep those waiting.
    seen = kie().look(generation.task_id or "", yields=not job().woken)
    if seen.state == "success":
        return fetched(video, generation, seen)
    if seen.state == "fail":
        raise failed(generation, classify_failure(seen.fail_code, seen.fail_message))
    if not seen.state and generation.age > services.scaled(services.VISIBLE_WITHIN):
        raise NotFound("KIE took the job and does not know it", service="kie", code="lost")
    if generation.age > services.scaled(services.GENERATION_DEADLINE):
        videos.failed(generation.id, "not ready in time")
        raise ServiceUnavailable("not ready in time", service="kie", code="too_late")
    raise another_look(generation.age, seen.state or "not visible yet")


def failed(generation: Generation, failure: JobError) -> JobError:
    """Note a failed try, and return why; what stops others, too, is told to their gate."""
    refused_for = failure.reason if isinstance(failure, UserError) else ""
    videos.failed(generation.id, str(failure), refused_for=refused_for)
    kie().stop_creating(failure)
    return failure


def another_look(age: float, state: str) -> Pending:
    """Return the wait until KIE is asked again about a generation that is *age* seconds old."""
    pause = services.poll_pause(age, called_back=bool(settings().public_url))
    wait = kie().next_look(services.scaled(pause))
    return Pending(f"KIE is making it ({state})", service="kie", retry_after=wait)


def create(video: Video, generation: Generation) -> bool:
    """Have KIE begin, at most once. False if it had begun before, and may be over by now.

    Nothing there can be asked by our id (UPSTREAMS 2.1): what a lost answer has begun is found by
    its callback, and taken for not begun when that must have come.
    """

    def begin() -> Outcome:
        return {"task_id": kie().create(video.image_url, video.prompt, address(generation))}

    def called_back() -> Outcome | None:
        task_id = videos.task_of(generation.id)
        return {"task_id": task_id} if task_id else None

    def record(connection: Connection, result: Outcome) -> None:
        videos.asked(connection, generation.id, result["task_id"])

    lease = services.scaled(services.kie(settings()).lease)
    callbacks = services.scaled(services.CALLED_BACK_WITHIN) if settings().public_url else 0.0
    effect = effects.once(
        f"kie.create:{generation.id}",
        begin,
        find=called_back,
        owner=job().id,
        lease=lease,
        found_within=max(lease, callbacks),
        record=record,
    )
    return effect.how == "done"


def address(generation: Generation) -> str | None:
    """Return where KIE says that it has ended, if the outside can reach us."""
    base = settings().public_url
    return f"{base}/webhooks/kie/{generation.id}" if base else None


def fetched(video: Video, generation: Generation, seen: Progress) -> Video:
    """Fetch the file at once: its link ends (UPSTREAMS 2.1), ours is kept until it is delivered.

    Raises:
        ServiceUnavailable: the link is gone, and so is a fresh one; the next run makes it anew.
    """
    if seen.result_url is None:
        raise InternalError("KIE says success and names no file", service="kie", code="no_result")
    file = media.path(generation.id)
    link = next((link for link in links(seen.result_url) if fetch(link, file)), None)
    if link is None:
        videos.failed(generation.id, "the result has expired")
        raise ServiceUnavailable("the result has expired", service="kie", code="expired")
    now = videos.ready(video, generation.id, link)
    if now.generation != generation.id:  # the round was over before
        media.forget(generation.id)
    return now


def links(result_url: str) -> Iterator[str]:
    """Yield the link to a result, then a fresh one, if KIE still gives one."""
    yield result_url
    fresh = kie().fresh_link(result_url)
    if fresh is not None:
        yield fresh


# -- delivering it


def hand_over(video: Video) -> None:
    """Have a video delivered by a job of its own; once more, if nothing is heard for long."""
    silent_for = (datetime.now(UTC) - video.updated_at).total_seconds()
    if video.sender is None or silent_for > services.scaled(services.DELIVERY_LOST):
        sender = video.sender or video.delivery
        send.apply_async(kwargs={"order_id": video.order_id}, task_id=sender)
        videos.handed_over(video, sender)


def adopt_chat(existing_id: str, order_id: str) -> Outcome:
    """Go on in the chat that the video's chat has become (UPSTREAMS 3.3)."""
    video = videos.get(order_id)
    if video is not None:
        chats.moved(chats.now(video.chat_id), existing_id)
    result: Outcome = send.body(order_id)
    return result


def sent_by(job_id: str, **_: Any) -> list[str]:
    """Return the effect of one delivery, by its key."""
    return [videos.sending_key(job_id)]


@operation(
    name="video.send",
    compensation="video.make_good",
    adopt=adopt_chat,
    effect_keys=sent_by,
    obstacle=undecided,
)
def send(order_id: Id) -> Outcome:
    """Deliver the video of an order; called for one that was delivered, send it once more."""
    claimed = videos.claim(order_id, job().id)
    if claimed is None:
        raise NotFound(f"there is no video of order {order_id}", code="no_video")
    video, may_send = claimed

    def record(connection: Connection, result: Outcome) -> None:
        videos.sent(connection, order_id, result["message_id"], result["file_id"])

    if may_send:
        effects.once(
            videos.sending_key(job().id),
            lambda: delivered(still_ours(order_id)),
            owner=job().id,
            lease=services.scaled(services.delivery_lease(settings(), len(sources(video)))),
            record=record,
        )
        video = videos.get(order_id) or video
    if video.state == "sent":
        settle_doubts(video)
    end(video)
    return outcome(video)


def still_ours(order_id: str) -> Video:
    """Return the video once more, now that the sending is written down: a refund sees that."""
    claimed = videos.claim(order_id, job().id)
    if claimed is None or not claimed[1]:
        raise Pending("it has ended meanwhile", service="telegram")
    return claimed[0]


def delivered(video: Video) -> Outcome:
    """Send the video by the first way that Telegram takes; a link, where it takes none."""
    chat = chats.now(video.chat_id)
    for source in sources(video):
        if isinstance(source, Path) and not source.exists():
            fetch_again(video, source)
        sent = telegram().send_video(chat, source)
        if sent is not None:
            return receipt(sent)
    text = messages.text("video_link", video.locale, link=living_link(video))
    return receipt(telegram().send_message(chat, text))


def living_link(video: Video) -> str:
    """Return a link that still works for some time. Raises NotFound if there is none."""
    made_for = (datetime.now(UTC) - video.begun_at).total_seconds()
    if video.result_url is not None and made_for < services.RESULT_LIFE:
        return video.result_url
    fresh = kie().fresh_link(video.result_url) if video.result_url else None
    if fresh is None:
        raise NotFound("its links have expired", service="kie", code="expired")
    return fresh


def sources(video: Video) -> list[Source]:
    """Return what Telegram may send, the cheapest first.

    The file is not here when another host has fetched it: then Telegram may fetch it itself, and
    if it does not (UPSTREAMS 3.3), we do.
    """
    known: list[Source] = [FileId(video.file_id)] if video.file_id else []
    if video.generation is None or video.result_url is None:
        return known
    file = media.path(video.generation)
    return [*known, file] if file.exists() else [*known, Link(video.result_url), file]


def fetch_again(video: Video, file: Path) -> None:
    """Fetch a file that is not here (any more). Raises NotFound if nobody has it any more."""
    if not any(fetch(link, file) for link in links(video.result_url or "")):
        raise NotFound("its file is gone, and so are its links", service="kie", code="expired")


def settle_doubts(video: Video) -> None:
    """Close the letters that waited for somebody to say whether it had arrived."""
    for doubtful in video.doubts:
        dead_letters().discard(doubtful, by=job().id, note="it was sent again")


# -- giving up


@operation(name="video.make_good")
def make_good(
    task: Name,
    payload: Fields,
    job_id: str,
    replays: Count,
    error_type: str,
    category: str,
    reason: str,
    refund: bool,
    tell: bool,
) -> Outcome:
    """Give the credits back where the video will not come, and tell the user; both once.

    The arguments are those of `Operation.amends`.
    """
    order_id, why = str(payload["order_id"]), reason or error_type
    if task == generate.name:
        ending = videos.give_up_making(order_id, job_id, replays, why)
    else:
        ending = videos.give_up_sending(order_id, job_id, why, refund=refund)
    if ending is not None and ending.just_refunded:
        measures.refunded()
    if tell:
        explain(ending, payload, reason or message_for(task, error_type, category), job_id, replays)
    if ending is not None:
        end(ending.video)
    dead_letters().compensate(job_id, "done", of=replays)
    state = ending.video.state if ending else "declined"
    return {"outcome": OUTCOMES.get(state, state), "order_id": order_id, "reason": why}


def message_for(task: str, error_type: str, category: str) -> str:
    """Return the message about a failure that is not the user's."""
    if error_type == Cancelled.__name__:
        return "cancelled"
    if task == send.name:
        return "delivery_failed"
    return "generation_overloaded" if category in OVERLOADED else "system_error"


def explain(
    ending: Ending | None, payload: Mapping[str, Any], message: str, job_id: str, replays: int
) -> None:
    """Tell the user how it ended, unless another job goes on, or nobody would read it."""
    key = f"{job_id}-{replays}"
    if not messages.has(message):
        return
    if ending is not None and ending.by_this_job:
        video = ending.video
        said = "delivery_unknown" if video.state == "unconfirmed" else message
        inform(video.chat_id, video.locale, said, key=key, mark=video.mark, cost=video.cost)
    elif ending is None and message == NO_CREDITS:  # nothing else can be said of what never began
        available = credits.balance(payload["user_id"])
        cost = Decimal(payload["cost"])
        chat, locale = payload["chat_id"], payload["locale"]
        inform(chat, locale, message, key=key, cost=cost, available=available)


def explain_again(video: Video) -> None:
    """Tell the user once more why this job has given up: a crash may have kept it from doing so."""
    now = job()
    by_this_job = (video.job, video.replays) == (now.id, now.replays)
    explain(Ending(video, by_this_job), {}, video.reason or "", now.id, now.replays)


def end(video: Video) -> None:
    """Put away what a video that has ended needs no more, and wake the job that waits for it.

    Where only the job that had it made has ended, the video goes its way.
    """
    if video.state == "ready":
        hand_over(video)
    if video.state in {"sent", "refunded"}:
        media.forget(video.generation)
    if video.state not in OUTCOMES:
        wake(video)


def settle(order_id: str, *, arrived: bool, by: str) -> Video | None:
    """Carry out a person's word on an unconfirmed video; None if there is no doubt about it.

    Raises:
        Pending: it is being sent just now.
    """
    video = videos.settle(order_id, arrived=arrived, by=by)
    if video is not None:
        if not arrived:
            measures.refunded()
        for doubtful in video.doubts:
            dead_letters().discard(doubtful, by=by, note="settled")
        end(video)
    return video


# -- what the user presses


@operation(name="video.handle_press")
def handle_press(callback_id: Id, data: Press, chat_id: Id, message_id: Id) -> Outcome:
    """Do what a button asks for; a second tap changes nothing."""
    wanted, _, mark = data.partition(":")
    video = videos.by_token(mark.partition(":")[0])
    if video is None or chats.now(video.chat_id) != chat_id:
        return answered(callback_id, "press_refused", messages.LOCALES[0], {})
    said, facts = pressed(video, wanted, mark, message_id)
    return answered(callback_id, said, video.locale, facts) | {"order_id": video.order_id}


def answered(callback_id: str, said: str, locale: str, facts: Mapping[str, str]) -> Outcome:
    """Say what a press has led to, in the place where it was pressed."""
    telegram().answer_press(callback_id, messages.text(said, locale, **facts))
    return {"outcome": said}


def pressed(video: Video, wanted: str, mark: str, message_id: str) -> tuple[str, dict[str, str]]:
    """Return what is answered to a press on a button with this *mark*, and its facts."""
    if wanted == SEND and mark == video.mark and video.state == "unconfirmed":
        job_id = f"resend-{video.token}-{message_id}"  # one for all taps on one button
        send.apply_async(kwargs={"order_id": video.order_id}, task_id=job_id)
        return "press_sending", {}
    if wanted == AGAIN and mark == video.mark and video.state == "refunded":
        available = credits.balance(video.user_id)
        video = videos.get(video.order_id) or video  # another tap may have spent them just now
        if video.state == "refunded" and available < video.cost:
            return NO_CREDITS, {"needed": amount(video.cost), "available": amount(available)}
        if video.state == "refunded":
            video = videos.again(video.order_id, again_id(mark), after=video.round)
    if video.state == "paid" and video.job == again_id(mark):
        # Also for a second tap, and after a crash: sent twice, it is one job.
        generate.apply_async(kwargs=video.order, task_id=video.job)
        return "press_started", {}
    return ANSWERS.get(video.state, "press_refused"), {}


def again_id(mark: str) -> str:
    """Return the id of the one job that all taps on a button of this round begin."""
    return f"again-{mark}"


# -- what KIE tells us


@operation(name="video.handle_callback")
def handle_callback(generation: Id, task_id: Id | None = None) -> Outcome:
    """Wake the job that waits for a generation; it asks KIE itself, who has signed no news."""
    video = videos.called_back(generation, task_id)
    if video is None or video.state != "paid":
        return {"outcome": "ignored"}
    if not wake(video) and job().age < services.scaled(services.CALLBACK_PATIENCE):
        raise Pending("the job that waits for it is just looking", service="kie")
    return {"outcome": "recorded", "order_id": video.order_id}


# -- what they share


def wake(video: Video) -> bool:
    """Let the job that waits for a video come back now. False if it does not wait."""
    return parking().wake(video.job)


def outcome(video: Video) -> Outcome:
    """Return a video's state as the result of a job."""
    found = {
        "outcome": OUTCOMES.get(video.state, video.state),
        "order_id": video.order_id,
        "message_id": video.message_id,
        "reason": video.reason,
    }
    return {name: value for name, value in found.items() if value is not None}
