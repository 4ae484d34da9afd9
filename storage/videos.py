"""Videos that somebody pays for: charged with the row, refunded with its last word.

A round is one charge and what it bought; a refunded video may begin another round.

  paid         charged; KIE is asked for it, perhaps several times (`generations`)
  ready        made and fetched; the job `delivery` is to send it
  sending      that job, or another `sender`, is at it
  sent         it has arrived
  unconfirmed  it may have arrived: stays paid for, and a person or the user decides
  refunded     the credits are back; nothing is sent any more

The money moves in the transaction that changes the state, so a video is never both sent and
refunded, nor neither for good.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from sqlalchemy import func, select, update

from classifiers.errors import Pending
from storage import credits, database
from storage.models import effects, generations, videos

if TYPE_CHECKING:
    from decimal import Decimal

    from sqlalchemy import ColumnElement, Connection

State = Literal["paid", "ready", "sending", "sent", "unconfirmed", "refunded"]
TOKEN = 12  # random bytes, 16 characters: short enough for a button, too many to guess

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What the application asked for; *cost* in credits."""

    order_id: str
    user_id: str
    chat_id: str
    image_url: str
    prompt: str
    cost: Decimal
    locale: str


@dataclass(frozen=True, slots=True)
class Video(Order):
    """An order and what has become of it.

    *token* names it in buttons; *job* with its *replays* is the job that last worked on the round,
    to be woken when there is news; *sender* the job that delivers, *doubts* those that may have,
    *replayed* the replays that have worked on it.
    """

    token: str
    state: State
    round: int
    job: str
    replays: int
    generation: str | None
    result_url: str | None
    sender: str | None
    doubts: tuple[str, ...]
    replayed: tuple[str, ...]
    message_id: str | None
    file_id: str | None
    reason: str | None
    begun_at: datetime
    created_at: datetime
    updated_at: datetime

    @property
    def order(self) -> dict[str, Any]:
        """The arguments that the application gave."""
        return {field.name: getattr(self, field.name) for field in fields(Order)}

    @property
    def mark(self) -> str:
        """What the buttons of this round carry."""
        return f"{self.token}:{self.round}"

    @property
    def charge(self) -> str:
        """The key under which this round was charged."""
        return f"video:{self.order_id}:{self.round}"

    @property
    def delivery(self) -> str:
        """The id of the one job that delivers this round by itself."""
        return f"send-{self.token}-{self.round}"

    def is_delivery(self, job: str) -> bool:
        """Whether *job* delivers this round or a former one; any other has been asked for."""
        return job.startswith(f"send-{self.token}-")


@dataclass(frozen=True, slots=True)
class Generation:
    """One try to have a video made.

    *asked_at* is when KIE took it, *failure* why it came to nothing.
    """

    id: str
    order_id: str
    round: int
    number: int
    model: str
    task_id: str | None
    asked_at: datetime | None
    failure: str | None
    refused_for: str | None

    @property
    def age(self) -> float:
        """Seconds since KIE took it."""
        return 0.0 if self.asked_at is None else (datetime.now(UTC) - self.asked_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Ending:
    """A video as it is now. *by_this_job*: the job that gave up had the last word on it.

    *just_refunded*: its credits were given back by this very call, not by an earlier one.
    """

    video: Video
    by_this_job: bool
    just_refunded: bool = False


def get(order_id: str) -> Video | None:
    """Return the video of an order."""
    return _first(videos.c.order_id == order_id)


def by_token(token: str) -> Video | None:
    """Return the video that a button speaks of."""
    return _first(videos.c.token == token)


def counts() -> dict[str, int]:
    """Return how many videos are in which state."""
    with database.read() as connection:
        rows = connection.execute(select(videos.c.state, func.count()).group_by(videos.c.state))
        return dict(rows.all())


# ── A round ──────────────────────────────────────────────────────────────────────────────────


def begin(order: Order, job: str, replays: int) -> Video:
    """Charge for a new order, and return it; an order that is known is not charged again.

    But where it was refunded, and a person has sent the job again since, a new round begins.

    Raises:
        UserError: the user has too few credits; nothing is written.
    """
    known = get(order.order_id)
    if known is not None and not _is_news(known, job, replays):
        return known
    with database.transaction() as connection:
        if _inserted(connection, order, job, replays):
            video = _locked(connection, order.order_id)
            _charge(connection, video)
            return video
        video = _locked(connection, order.order_id)
        if not _is_news(video, job, replays):
            return video
        if video.state == "refunded":
            return _next_round(connection, video, job, replays)
        noted = _noted(video.replayed, job, replays)
        _change(connection, video, job=job, replays=replays, replayed=noted)
        return _locked(connection, order.order_id)


def again(order_id: str, job: str, *, after: int) -> Video:
    """Begin a round *after* a refunded one, because its user wants it; else leave it as it is.

    A tap that comes late, when that round has been had as well, begins no other.

    Raises:
        UserError: the user has too few credits; nothing is changed.
    """
    with database.transaction() as connection:
        video = _locked(connection, order_id)
        if video.state != "refunded" or video.round != after:
            return video
        return _next_round(connection, video, job, 0)


def give_up_making(order_id: str, job: str, replays: int, reason: str) -> Ending | None:
    """Refund a round whose video is not made, for the job that was working on it.

    A job that another one has overtaken ends nothing; nor does one whose video is made by now:
    that ends with its delivery. None if there is no such video.
    """
    with database.transaction() as connection:
        video = _find(connection, videos.c.order_id == order_id, lock=True)
        if video is None:
            return None
        ours = (video.job, video.replays) == (job, replays) and video.sender is None
        if video.state == "paid" and ours:
            return Ending(_refunded(connection, video, reason), True, True)
        return Ending(video, video.state == "refunded" and ours)


def give_up_sending(order_id: str, job: str, reason: str, *, refund: bool) -> Ending | None:
    """Refund a round whose video cannot be delivered, or note that it may have arrived.

    Credits are not returned for what may have arrived, whatever *refund* says; but they are where
    all jobs in doubt have been refused in the end. A job that comes late, from a round that is
    over, changes nothing. None if there is no such video.
    """
    with database.transaction() as connection:
        video = _find(connection, videos.c.order_id == order_id, lock=True)
        if video is None:
            return None
        delivers = video.state == "ready" and video.delivery == job
        delivers = delivers or (video.state == "sending" and video.sender == job)
        # A second message of one job may have been at it when the first one gave up.
        delivers = delivers or (video.state == "unconfirmed" and job in video.doubts)
        if delivers and refund and not _may_have_arrived(connection, {job, *video.doubts}):
            return Ending(_refunded(connection, video, reason, sender=job), True, True)
        if delivers or (video.state == "unconfirmed" and _is_a_doubt(video, job)):
            doubts = _with(video.doubts, job)
            _change(connection, video, state="unconfirmed", doubts=doubts, reason=reason)
            return Ending(_locked(connection, order_id), True)
        return Ending(video, video.state == "refunded" and video.sender == job)


def _refunded(connection: Connection, video: Video, reason: str, **values: Any) -> Video:
    key = f"{video.charge}:refund"
    credits.refund(connection, of=video.charge, key=key, reason=f"{_title(video)}: {reason}")
    _change(connection, video, state="refunded", reason=reason, **values)
    return _locked(connection, video.order_id)


def _is_news(video: Video, job: str, replays: int) -> bool:
    """Whether a job has to be noted: it is not the last one, nor an old copy of its message."""
    if job == video.job and replays <= video.replays:
        return False
    if video.state != "refunded":
        return True
    return replays > 0 and _replay(job, replays) not in video.replayed


def _noted(replayed: tuple[str, ...], job: str, replays: int) -> list[str]:
    """Add a replay to those that have had their turn: a late copy of it begins nothing."""
    return [*replayed, *({_replay(job, replays)} - {*replayed})] if replays else [*replayed]


def _replay(job: str, replays: int) -> str:
    return f"{job}/{replays}"


def _inserted(connection: Connection, order: Order, job: str, replays: int) -> bool:
    now = database.now()
    fresh = database.insert(videos, connection.dialect.name).values(
        **{field.name: getattr(order, field.name) for field in fields(Order)},
        token=secrets.token_urlsafe(TOKEN),
        state="paid",
        round=1,
        job=job,
        replays=replays,
        doubts=[],
        replayed=_noted((), job, replays),
        begun_at=now,
        created_at=now,
        updated_at=now,
    )
    statement = fresh.on_conflict_do_nothing(index_elements=[videos.c.order_id])
    # Not `rowcount`: on PostgreSQL it is -1 after an INSERT.
    written = connection.execute(statement.returning(videos.c.order_id))
    return written.one_or_none() is not None


def _next_round(connection: Connection, video: Video, job: str, replays: int) -> Video:
    _change(
        connection,
        video,
        state="paid",
        round=video.round + 1,
        job=job,
        replays=replays,
        replayed=_noted(video.replayed, job, replays),
        generation=None,
        result_url=None,
        sender=None,
        doubts=[],
        message_id=None,
        file_id=None,
        reason=None,
        begun_at=database.now(),
    )
    next_one = _locked(connection, video.order_id)
    _charge(connection, next_one)
    return next_one


def _charge(connection: Connection, video: Video) -> None:
    credits.charge(connection, video.user_id, video.cost, key=video.charge, reason=_title(video))


def _title(video: Video) -> str:
    return f"video {video.order_id}"


# ── Making it ────────────────────────────────────────────────────────────────────────────────


def generation(video: Video, model: str) -> Generation:
    """Return the try that is under way; begin the next one if there is none.

    What KIE has refused for the user's sake is the last try: it would be refused again.
    """
    latest = _latest(video)
    if latest is not None and (latest.failure is None or latest.refused_for):
        return latest
    number = 1 if latest is None else latest.number + 1
    with database.write() as connection:
        now = database.now()
        fresh = database.insert(generations, connection.dialect.name).values(
            id=uuid4().hex,
            order_id=video.order_id,
            round=video.round,
            number=number,
            model=model,
            created_at=now,
            updated_at=now,
        )
        connection.execute(fresh.on_conflict_do_nothing())  # another job has begun it just now
    return generation(video, model)  # which may have come to nothing by now, too


def asked(connection: Connection, generation_id: str, task_id: str) -> None:
    """Note KIE's own name for a try, in the transaction that marks its creation done."""
    connection.execute(
        _of(generation_id).values(
            task_id=task_id,
            asked_at=func.coalesce(generations.c.asked_at, database.now()),
            updated_at=database.now(),
        )
    )


def called_back(generation_id: str, task_id: str | None) -> Video | None:
    """Note what a callback says of a try whose creation was not answered; return its video."""
    with database.read() as connection:
        row = connection.execute(
            select(generations.c.order_id, generations.c.task_id).where(
                generations.c.id == generation_id
            )
        ).one_or_none()
    if row is None:
        return None
    if row.task_id is None and task_id:
        with database.write() as connection:
            statement = _of(generation_id).where(generations.c.task_id.is_(None))
            connection.execute(statement.values(task_id=task_id, updated_at=database.now()))
    return get(row.order_id)


def task_of(generation_id: str) -> str | None:
    """Return KIE's own name for a try, if it has become known."""
    with database.read() as connection:
        statement = select(generations.c.task_id).where(generations.c.id == generation_id)
        return connection.execute(statement).scalar_one_or_none()


def asked_for(generation_id: str) -> bool:
    """Whether there is such a try."""
    with database.read() as connection:
        statement = select(generations.c.id).where(generations.c.id == generation_id)
        return connection.execute(statement).scalar_one_or_none() is not None


def failed(generation_id: str, failure: str, *, refused_for: str = "") -> None:
    """Note that a try has come to nothing; the next run begins another one.

    Not where it was *refused_for* a reason that the user has to mend.
    """
    said = {"failure": failure, "refused_for": refused_for}
    with database.write() as connection:
        first = _of(generation_id).where(generations.c.failure.is_(None))  # its word stands
        connection.execute(first.values(**said, updated_at=database.now()))


def ready(video: Video, generation_id: str, result_url: str) -> Video:
    """Note that the video is made and fetched, unless the round is over; return it as it is now."""
    with database.write() as connection:
        connection.execute(
            update(videos)
            .where(
                videos.c.order_id == video.order_id,
                videos.c.round == video.round,
                videos.c.state == "paid",
            )
            .values(
                state="ready",
                generation=generation_id,
                result_url=result_url,
                updated_at=database.now(),
            )
        )
    return _known(video.order_id)


# ── Delivering it ────────────────────────────────────────────────────────────────────────────


def handed_over(video: Video, sender: str) -> None:
    """Note that *sender* was sent to deliver the video, now."""
    with database.write() as connection:
        connection.execute(
            update(videos)
            .where(
                videos.c.order_id == video.order_id,
                videos.c.round == video.round,
                videos.c.state.in_(["ready", "sending"]),
            )
            .values(sender=func.coalesce(videos.c.sender, sender), updated_at=database.now())
        )


def claim(order_id: str, job: str) -> tuple[Video, bool] | None:
    """Return a video and whether *job* may send it now; None if there is no such video.

    The first to come delivers what is ready, but no delivery of a former round. What has arrived,
    or may have, is sent again only by a job that somebody has asked for.

    Ask once more when the sending is written down as intended, just before the call: a refund that
    comes between sees the intent, or is seen.
    """
    with database.transaction() as connection:
        video = _find(connection, videos.c.order_id == order_id, lock=True)
        if video is None:
            return None
        if video.state == "ready" and (job == video.delivery or not video.is_delivery(job)):
            _change(connection, video, state="sending", sender=job)
            return _locked(connection, order_id), True
        if video.state == "unconfirmed" and _is_a_doubt(video, job):
            # Before the call: whoever gives up for the other doubts must know of this one.
            _change(connection, video, doubts=_with(video.doubts, job))
            return _locked(connection, order_id), True
        asked_for_more = video.state == "sent" and not video.is_delivery(job)
        return video, asked_for_more or (video.state == "sending" and video.sender == job)


def _is_a_doubt(video: Video, job: str) -> bool:
    """Whether *job* has left the doubt if a video has arrived, or is to end it."""
    return job in video.doubts or not video.is_delivery(job)


def _with(doubts: tuple[str, ...], job: str) -> list[str]:
    return [*doubts, *({job} - {*doubts})]


def sent(connection: Connection, order_id: str, message_id: str, file_id: str) -> None:
    """Note that it has arrived, in the transaction that marks the sending done.

    Credits that are back stay so; that it came all the same is logged.
    """
    noted = connection.execute(
        update(videos)
        .where(videos.c.order_id == order_id, videos.c.state != "refunded")
        .values(
            state="sent",
            message_id=message_id,
            file_id=file_id or videos.c.file_id,
            reason=None,
            updated_at=database.now(),
        )
    )
    if not noted.rowcount:
        _log.error("order %s: message %s has brought a refunded video", order_id, message_id)


def settle(order_id: str, *, arrived: bool, by: str) -> Video | None:
    """Write down a person's word on an unconfirmed video: it has *arrived*, or is paid back.

    None if there is no such video, or no doubt about it.

    Raises:
        Pending: a job is sending it just now, or its last call may still take effect.
    """
    with database.transaction() as connection:
        video = _find(connection, videos.c.order_id == order_id, lock=True)
        if video is None or video.state != "unconfirmed":
            return None
        if arrived:
            _change(connection, video, state="sent", reason=None)
            return _locked(connection, order_id)
        if _may_still_arrive(connection, video.doubts):
            raise Pending(f"the video of order {order_id} may still be about to arrive")
        return _refunded(connection, video, f"settled by {by}")


# ── Pieces of statements ─────────────────────────────────────────────────────────────────────


def _may_have_arrived(connection: Connection, jobs: set[str]) -> bool:
    keys = [sending_key(job) for job in jobs]
    of_jobs = select(effects.c.key).where(effects.c.key.in_(keys), effects.c.state != "undone")
    return connection.execute(of_jobs.limit(1)).first() is not None


def _may_still_arrive(connection: Connection, jobs: tuple[str, ...]) -> bool:
    keys = [sending_key(job) for job in jobs]
    open_still = effects.c.called_until > database.now()
    of_jobs = select(effects.c.key).where(effects.c.key.in_(keys), open_still)
    return connection.execute(of_jobs.limit(1)).first() is not None


def sending_key(job: str) -> str:
    """Return the name of the effect by which *job* sends a video."""
    return f"telegram.video:{job}"


def _change(connection: Connection, video: Video, **values: Any) -> None:
    statement = update(videos).where(videos.c.order_id == video.order_id)
    connection.execute(statement.values(**values, updated_at=database.now()))


def _of(generation_id: str) -> Any:
    return update(generations).where(generations.c.id == generation_id)


def _latest(video: Video) -> Generation | None:
    names = [field.name for field in fields(Generation)]
    with database.read() as connection:
        row = connection.execute(
            select(*(generations.c[name] for name in names))
            .where(generations.c.order_id == video.order_id, generations.c.round == video.round)
            .order_by(generations.c.number.desc())
            .limit(1)
        ).one_or_none()
    return None if row is None else Generation(**row._mapping)  # noqa: SLF001  # public, despite its name


def _first(where: ColumnElement[bool]) -> Video | None:
    with database.read() as connection:
        return _find(connection, where)


def _find(
    connection: Connection, where: ColumnElement[bool], *, lock: bool = False
) -> Video | None:
    statement = select(videos).where(where)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        return None
    columns = dict(row._mapping)  # noqa: SLF001  # public, despite its name
    lists = {name: tuple(columns[name]) for name in ("doubts", "replayed")}
    return Video(**columns | lists)


def _locked(connection: Connection, order_id: str) -> Video:
    video = _find(connection, videos.c.order_id == order_id, lock=True)
    assert video is not None  # noqa: S101 - rows are never deleted
    return video


def _known(order_id: str) -> Video:
    video = get(order_id)
    assert video is not None  # noqa: S101 - rows are never deleted
    return video
