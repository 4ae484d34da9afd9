"""What can become of a video: a table of troubles, and of how each must end.

Money, videos and messages are the measure, never the time that it took. A row with a `Trouble`
strikes everybody's videos, so it needs a system of its own; any number of the others fit into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from sandbox.bot_chats import State
from sandbox.faults import Fault
from sandbox.kie_answers import UNKNOWN_MODEL
from sandbox.kie_tasks import Plan

ALWAYS = 99  # more often than anybody tries
MODEL = "sora-2-image-to-video"
TRIES = 6  # one, and MAX_RETRIES


@dataclass(frozen=True, slots=True)
class End:
    """How it must end, for the order's user.

    result     the `outcome` of the order's own job; `dead` for a dead letter
    state      of the video, empty where there is none
    charged    how often the price was taken, and `refunded`: given back
    videos     that are in the chat (or in the one it has become)
    messages   codes of the texts that are in the chat, sorted
    answers    codes of what was shown for presses of buttons
    creates    generations that KIE has begun
    letters    classes of the dead letters that wait for a person, sorted
    """

    result: str
    state: str
    charged: int = 1
    refunded: int = 0
    videos: int = 0
    messages: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    creates: int = 1
    letters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Else:
    """How it may end as well, if workers are killed: *videos* are the least and the most.

    A message whose own job was killed is a dead letter, and may be missing.
    """

    state: str
    videos: tuple[int, int] = (0, 0)
    messages: tuple[str, ...] = ()
    charged: int = 1
    refunded: int = 0


def doubt(*messages: str, videos: tuple[int, int] = (0, 1), **more: int) -> Else:
    """A worker has died while it sent the video; *messages* are those before the one that asks."""
    return Else("unconfirmed", videos, _sorted([*messages, "delivery_unknown"]), **more)


def arrived(*messages: str, videos: tuple[int, int] = (1, 1)) -> Else:
    """It has arrived in the first round: its trouble was used up by a worker that died."""
    return Else("sent", videos, _sorted(messages))


# -- what a person does, when all has come to rest


@dataclass(frozen=True, slots=True)
class Press:
    """The user presses the newest button with this label, *times* times at once."""

    label: str
    times: int = 2


@dataclass(frozen=True, slots=True)
class Replay:
    """An operator replays the open dead letter of this task."""

    task: str = "video.generate"


@dataclass(frozen=True, slots=True)
class SendAgain:
    """The application calls `video.send` for a video that was delivered."""


@dataclass(frozen=True, slots=True)
class Spend:
    """The user spends the credits on another video."""


@dataclass(frozen=True, slots=True)
class Strike:
    """Telegram begins to do this to the chat."""

    faults: tuple[Fault, ...]


Step: TypeAlias = Press | Replay | SendAgain | Spend | Strike
TRY_AGAIN, SEND_AGAIN = Press("button_try_again"), Press("button_send_again")


# -- what is wrong with the whole system


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong until somebody puts it right, and how to see that it has been met.

    *worker* is what its environment says wrongly, *account* what the account at KIE is like. It is
    put right when a job is parked for the reason *parked*, or else when the video has ended; the
    worker's environment is not, where it *lasts*. *commands* are what an operator then types, with
    `JOB` for the job that was parked.
    """

    worker: Mapping[str, str] = field(default_factory=dict)
    account: Mapping[str, Any] = field(default_factory=dict)
    parked: str = ""
    lasts: bool = False
    commands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row.

    *plans* are what becomes of the photo at KIE, *kie* and *telegram* the faults of calls about
    this order, *chat* what its chat is like. The user can pay for *credits* videos, and gives the
    order *times* times at once. *weight* is how often it is drawn, where it is drawn by chance.
    """

    name: str
    end: End
    plans: tuple[Plan, ...] = ()
    kie: tuple[Fault, ...] = ()
    telegram: tuple[Fault, ...] = ()
    chat: State = "ok"
    credits: int = 1
    times: int = 1
    then: tuple[Step, ...] = ()
    trouble: Trouble | None = None
    killed: tuple[Else, ...] | None = None
    weight: int = 1

    @property
    def otherwise(self) -> tuple[Else, ...]:
        """Return its other ends where workers are killed: usually, what was sent is in doubt."""
        if self.killed is not None:
            return self.killed
        return () if self.end.state in {"", "refunded"} else (doubt(),)


# -- the ends that many rows share


def sent(*messages: str, videos: int = 1, creates: int = 1, **more: Any) -> End:
    """It has arrived, and is paid for."""
    return replace(
        End("sent", "sent", videos=videos, creates=creates), messages=_sorted(messages), **more
    )


def refunded(*messages: str, creates: int = 1, **more: Any) -> End:
    """The user can mend it, or nobody: no dead letter."""
    end = End("refunded", "refunded", refunded=1, creates=creates)
    return replace(end, messages=_sorted(messages), **more)


def died(error: str, *messages: str, creates: int = 1, **more: Any) -> End:
    """It was not made; the credits are back, and an operator can read why."""
    end = End("dead", "refunded", refunded=1, creates=creates, letters=(error,))
    return replace(end, messages=_sorted(messages), **more)


def undelivered(error: str, **more: Any) -> End:
    """It was made, and could not be delivered."""
    end = refunded("delivery_failed", letters=(error,))
    return replace(end, **more)


def unconfirmed(videos: int, **more: Any) -> End:
    """It may have arrived: stays paid for."""
    end = End("unconfirmed", "unconfirmed", videos=videos, messages=("delivery_unknown",))
    return replace(end, **({"letters": ("OutcomeUnknown",)} | more))


def _sorted(messages: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(messages))


OVERLOADED = ("still_working", "generation_overloaded")
BROKEN = ("still_working", "system_error")


# -- what goes wrong in them


def fails(message: str, code: str = "500", times: int = ALWAYS) -> tuple[Plan, ...]:
    """The generation ends as failed."""
    return (Plan(fail_code=code, fail_message=message, times=times),)


def kie(kind: str, method: str = "createTask", **more: Any) -> tuple[Fault, ...]:
    """A fault of KIE.AI."""
    return (Fault(**{"kind": kind, "method": method, **more}),)


def bot(kind: str, method: str = "sendVideo", **more: Any) -> tuple[Fault, ...]:
    """A fault of Telegram."""
    return (Fault(**{"kind": kind, "method": method, **more}),)


HICCUP = "Internal Error, Please try again later."  # UPSTREAMS 2.3
PEOPLE = "We currently do not support uploads of images containing photorealistic people."
GUARDRAILS = "This content may violate our guardrails concerning similarity to third-party content."
PROHIBITED = "Invalid prompt: prompt contains prohibited content"
ODD = bot("error", code="VIDEO_OF_A_KIND_NOBODY_KNOWS", times=ALWAYS)
TWICE_ODD = bot("error", code="VIDEO_OF_A_KIND_NOBODY_KNOWS", times=2)  # one try, and one retry
DOUBT = bot("status", status=502)
LOST = bot("lost_answer")
UNTOLD = (Else("unconfirmed"),)
SENT_TWICE = (
    arrived(videos=(1, 2)),
    arrived("delivery_unknown", videos=(1, 2)),
    doubt(videos=(0, 2)),
    doubt("delivery_unknown", videos=(0, 2)),
)
# Nothing had been sent yet, so that the refusals meant for the second sending met the first.
BY_LINK = arrived("delivery_unknown", "video_link", videos=(0, 0))
DEAF = Plan(callback="none", times=ALWAYS)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("all goes well", sent(), weight=150),
    # -- callbacks: UPSTREAMS 2.4
    Scenario("the callback is lost", sent(), plans=(DEAF,), weight=3),
    Scenario("the callback comes twice", sent(), plans=(Plan(callback="twice"),), weight=3),
    Scenario("the callback comes late", sent(), plans=(Plan(callback="late"),), weight=3),
    Scenario("the callback is wrongly signed", sent(), plans=(Plan(callback="wrong_signature"),)),
    # -- beginning a generation: UPSTREAMS 2.2
    Scenario(
        "the answer of a create is lost, and its callback found",
        sent(),
        kie=kie("lost_answer"),
        weight=3,
    ),
    Scenario(
        "the answer of a create makes no sense, and its callback is found",
        sent(),
        kie=kie("non_json", after=True),
    ),
    Scenario(
        "the answer of a create is lost, and its callback too",
        sent("still_working", creates=2),
        plans=(DEAF,),
        kie=kie("lost_answer"),
    ),
    Scenario(
        "every answer of a create is lost, and every callback",
        died("OutcomeUnknown", *OVERLOADED, creates=3),
        plans=(DEAF,),
        kie=kie("lost_answer", times=ALWAYS),
    ),
    Scenario("a create never arrives", sent("still_working"), kie=kie("refuse")),
    Scenario("KIE stumbles over a create (500)", sent("still_working"), kie=kie("error")),
    Scenario("KIE is in maintenance for a moment (455)", sent(), kie=kie("error", code="455")),
    Scenario(
        "KIE stays in maintenance (455)",
        died("ServiceUnavailable", *OVERLOADED, creates=0),
        kie=kie("error", code="455", times=ALWAYS),
    ),
    Scenario(
        "KIE wants us to slow down (429)",
        sent(),
        # Without the header we wait for 10 s, and with us everybody's video.
        kie=kie("error", code="429", headers={"Retry-After": "1"}, times=2),
    ),
    Scenario(
        "KIE does not take what we send (422)",
        died("InvalidData", "system_error", creates=0),
        kie=kie("error", code="422", description="The text is not valid", times=ALWAYS),
    ),
    # -- looking at it: UPSTREAMS 2.1 and 2.2
    Scenario(
        "a new task cannot be seen yet",
        sent(),
        kie=kie("error", "recordInfo", code="422"),
    ),
    Scenario(
        "KIE does not know the task it has begun",
        died("NotFound", "system_error"),
        kie=kie("error", "recordInfo", code="422", times=ALWAYS),
    ),
    Scenario("KIE cannot be asked", sent(), kie=kie("error", "recordInfo", code="500", times=2)),
    Scenario(
        "KIE has waited in vain itself (408)",
        sent(creates=2),
        kie=kie("error", "recordInfo", code="408", description="Timeout"),
    ),
    Scenario("KIE uses a new word for a state", sent(), plans=(Plan(state="dreaming"),)),
    Scenario(
        "a generation does not end",
        sent("still_working", creates=2),
        plans=(Plan(duration=86_400.0, callback="none"),),
    ),
    # -- what it says of the photo: UPSTREAMS 2.3
    Scenario(
        "there are people in the photo",
        refunded("photo_has_people"),
        plans=fails(PEOPLE),
        weight=3,
    ),
    Scenario("too dark", refunded("photo_too_dark"), plans=fails("The image is too dark", "422")),
    Scenario(
        "no product",
        refunded("photo_no_product"),
        plans=fails("No product detected in the image", "422"),
    ),
    Scenario(
        "too small",
        refunded("photo_too_small"),
        plans=fails("Image resolution is too low", "422"),
    ),
    Scenario(
        "the wrong format",
        refunded("photo_wrong_format"),
        plans=fails("Unsupported image format", "422"),
    ),
    Scenario(
        "the photo cannot be fetched",
        refunded("photo_unreachable"),
        plans=fails("Failed to download image", "422"),
    ),
    Scenario(
        "the prompt is not allowed",
        refunded("content_not_allowed"),
        plans=fails(PROHIBITED, "422"),
        weight=3,
    ),
    Scenario("the photo is not allowed", refunded("content_not_allowed"), plans=fails(GUARDRAILS)),
    Scenario(
        "the photo is refused without a reason",
        refunded("photo_rejected"),
        plans=fails("Unprocessable input", "422"),
    ),
    # -- when it comes to nothing
    Scenario(
        "it fails twice, then it works", sent(creates=3), plans=fails(HICCUP, times=2), weight=3
    ),
    Scenario(
        "it fails five times, then it works",
        sent("still_working", creates=TRIES),
        plans=fails("Service Unavailable", "501", times=5),
    ),
    Scenario(
        "it fails each time",
        died("ServiceUnavailable", *OVERLOADED, creates=TRIES),
        plans=fails("Generation timeout exceeded"),
    ),
    Scenario(
        "it fails in a way nobody knows",
        died("Unclassified", *BROKEN, creates=TRIES),
        plans=fails("Nobody has seen this before", "7"),
    ),
    # -- the file: UPSTREAMS 2.1
    Scenario("its link has expired, a fresh one works", sent(), plans=(Plan(expired=True),)),
    Scenario(
        "its link has expired for good",
        sent(creates=2),
        plans=(Plan(expired=True, fresh_link=False),),
    ),
    Scenario(
        "each link expires at once",
        died("ServiceUnavailable", *OVERLOADED, creates=TRIES),
        plans=(Plan(expired=True, fresh_link=False, times=ALWAYS),),
    ),
    Scenario("the file comes at the second try", sent(), kie=kie("status", "download", status=503)),
    Scenario(
        "half a file",
        died("InternalError", *BROKEN),
        plans=(Plan(file="truncated", times=ALWAYS),),
    ),
    Scenario(
        "the connection breaks within the file",
        died("ServiceUnavailable", *OVERLOADED),
        plans=(Plan(file="cut", times=ALWAYS),),
    ),
    Scenario(
        "a page instead of a file",
        died("InternalError", *BROKEN),
        plans=(Plan(file="html", times=ALWAYS),),
    ),
    Scenario(
        "a file too big for Telegram",
        sent("video_link", videos=0),
        plans=(Plan(file="huge", times=ALWAYS),),
        killed=(doubt(videos=(0, 0)), doubt("video_link", videos=(0, 0))),
    ),
    # -- delivering it: UPSTREAMS 3.3
    Scenario(
        "Telegram wants us to slow down",
        sent(),
        telegram=bot("error", code="too_many_requests", seconds=1, times=2),
        weight=3,
    ),
    Scenario("the user has blocked the bot", refunded(), chat="blocked", killed=UNTOLD, weight=3),
    Scenario("the user is gone", refunded(), chat="deactivated", killed=UNTOLD),
    Scenario("there is no such chat", refunded(), chat="not_found", killed=UNTOLD),
    Scenario("the bot was kicked", refunded(), chat="kicked", killed=UNTOLD),
    Scenario("the bot may not write there", refunded(), chat="no_rights", killed=UNTOLD),
    Scenario("the group has become a supergroup", sent(), chat="migrated"),
    Scenario("it arrives, and the answer is lost", unconfirmed(videos=1), telegram=LOST, weight=3),
    Scenario(
        "Telegram stumbles (500)", unconfirmed(videos=0), telegram=bot("error", code="restart")
    ),
    Scenario(
        "somebody in the chat deletes it at once",
        undelivered("BusinessRule"),
        telegram=bot("error", code="immediately_deleted", times=ALWAYS),
        killed=(doubt(videos=(0, 0)),),
    ),
    Scenario(
        "Telegram does not take it",
        undelivered("InvalidData"),
        telegram=ODD,
        killed=(doubt(videos=(0, 0)),),
    ),
    # -- messages have their own troubles
    Scenario(
        "the message has to wait",
        refunded("photo_has_people"),
        plans=fails(PEOPLE),
        telegram=bot("error", "sendMessage", code="too_many_requests", seconds=1),
    ),
    Scenario(
        "the answer of the message is lost",
        refunded("photo_has_people", letters=("OutcomeUnknown",)),
        plans=fails(PEOPLE),
        telegram=bot("lost_answer", "sendMessage"),
    ),
    # -- buttons
    Scenario(
        "the user wants it again, and has it twice",
        unconfirmed(videos=2, state="sent", answers=("press_sending", "press_sending"), letters=()),
        telegram=LOST,
        then=(SEND_AGAIN,),
        killed=SENT_TWICE,
    ),
    Scenario(
        "the user wants it again, and has it now",
        unconfirmed(videos=1, state="sent", answers=("press_sending", "press_sending"), letters=()),
        telegram=DOUBT,
        then=(SEND_AGAIN,),
        killed=SENT_TWICE,
        weight=2,
    ),
    Scenario(
        "the user tries again after an undelivered video",
        undelivered(
            "InvalidData",
            state="sent",
            charged=2,
            videos=1,
            creates=2,
            answers=("press_started", "press_started"),
        ),
        telegram=TWICE_ODD,
        then=(TRY_AGAIN,),
        killed=(
            arrived(),
            doubt(),
            doubt("delivery_failed", charged=2, refunded=1),
            # The message with the button was lost.
            Else("refunded", messages=("delivery_failed",), refunded=1),
        ),
    ),
    Scenario(
        "the user tries again after an overload",
        died(
            "ServiceUnavailable",
            *OVERLOADED,
            state="sent",
            charged=2,
            videos=1,
            creates=TRIES + 1,
            answers=("press_started", "press_started"),
        ),
        plans=fails(HICCUP, times=TRIES),
        then=(TRY_AGAIN,),
        killed=(
            arrived(),
            doubt(),
            doubt("generation_overloaded", charged=2, refunded=1),
            # The message with the button was lost.
            Else("refunded", messages=("generation_overloaded",), refunded=1),
        ),
        weight=2,
    ),
    Scenario(
        "the user tries again without credits",
        undelivered("InvalidData", answers=("insufficient_credits", "insufficient_credits")),
        telegram=ODD,
        then=(Spend(), TRY_AGAIN),
        killed=(doubt(videos=(0, 0)),),
    ),
    # -- credits
    Scenario(
        "the user has no credits",
        End("declined", "", charged=0, messages=("insufficient_credits",), creates=0),
        credits=0,
        weight=3,
    ),
    Scenario("the order comes twice", sent(), credits=2, times=2, weight=3),
    # -- operators, and the application
    Scenario(
        "a dead video is replayed",
        sent(*OVERLOADED, charged=2, refunded=1, creates=TRIES + 1),
        plans=fails(HICCUP, times=TRIES),
        then=(Replay(),),
        killed=(arrived(), doubt(), doubt("generation_overloaded", charged=2, refunded=1)),
        weight=2,
    ),
    Scenario(
        "a dead video is replayed, and the credits are spent",
        refunded(*OVERLOADED, creates=TRIES),
        plans=fails(HICCUP),
        then=(Spend(), Replay()),
    ),
    Scenario(
        "the dead delivery of a refunded video is replayed",
        undelivered("InvalidData", letters=()),
        telegram=ODD,
        then=(Replay("video.send"),),
        killed=(doubt(videos=(0, 0)), doubt("delivery_unknown", videos=(0, 0))),
    ),
    Scenario(
        "it is sent once more", sent(videos=2), then=(SendAgain(),), killed=SENT_TWICE, weight=3
    ),
    Scenario(
        "it is sent once more, and Telegram has forgotten the file",
        sent(videos=2),
        then=(Strike(bot("error", code="wrong_file_id")), SendAgain()),
        killed=(*SENT_TWICE, BY_LINK),
    ),
    Scenario(
        "it is sent once more, and Telegram cannot fetch it",
        sent(videos=2),
        then=(
            Strike(bot("error", code="wrong_file_id") + bot("error", code="url_failed")),
            SendAgain(),
        ),
        killed=(*SENT_TWICE, BY_LINK),
    ),
)

JOB = "JOB"
RESUME = ("gate", "resume", "kie")
NOWHERE = "http://127.0.0.1:9"  # the port of `discard`: nobody listens there

# These strike everybody's videos: each needs a system of its own.
SYSTEM_WIDE: tuple[Scenario, ...] = (
    Scenario(
        "our account at KIE is empty, and somebody tops it up",
        sent(),
        trouble=Trouble(account={"credits": 0}, parked="BillingExhausted"),
    ),
    Scenario(
        "the model is paused, until somebody says that it is back",
        sent(),
        trouble=Trouble(account={"paused": [MODEL]}, parked="NotConfigured", commands=(RESUME,)),
    ),
    Scenario(
        "the model is paused, and an operator cancels what waits for it",
        refunded("cancelled", result="cancelled", creates=0),
        trouble=Trouble(
            account={"paused": [MODEL]},
            parked="NotConfigured",
            commands=(("parked", "cancel", JOB), RESUME),
        ),
    ),
    Scenario(
        "the model is paused, and somebody revokes what waits for it",
        refunded("cancelled", result="cancelled", creates=0, letters=("Cancelled",)),
        trouble=Trouble(
            account={"paused": [MODEL]},
            parked="NotConfigured",
            commands=(("control", "revoke", JOB), ("parked", "release", JOB), RESUME),
        ),
    ),
    Scenario(
        "KIE does not know the model, until somebody says that it does",
        sent(),
        kie=kie("error", code="500", description=UNKNOWN_MODEL),
        trouble=Trouble(parked="NotConfigured", commands=(RESUME,)),
    ),
    Scenario(
        "Telegram refuses our token, until somebody says that it is right",
        sent(),
        telegram=bot("error", code="unauthorized"),
        trouble=Trouble(parked="Unauthorized", commands=(("gate", "reset", "telegram"),)),
    ),
    Scenario(
        "our account at KIE is empty, and stays so",
        died("BillingExhausted", *BROKEN, creates=0),
        trouble=Trouble(
            # Half an hour in 4 s.
            worker={"RETRY_TIME_SCALE": "0.002"},
            account={"credits": 0, "short_as": 500},
            lasts=True,
        ),
    ),
    Scenario(
        "KIE refuses our key",
        sent(),
        trouble=Trouble(worker={"KIE_API_KEY": "n0-such-key"}, parked="Unauthorized"),
    ),
    Scenario(
        "KIE cannot be reached",
        died("NetworkError", *OVERLOADED, creates=0),
        trouble=Trouble(worker={"KIE_BASE_URL": NOWHERE}, lasts=True),
    ),
    Scenario(
        "Telegram cannot be reached",
        undelivered("NetworkError"),
        # The message is to outlast it, and is tried MAX_RETRIES times; a video, three times.
        trouble=Trouble(worker={"TELEGRAM_BASE_URL": NOWHERE, "MAX_RETRIES": "99"}),
    ),
    Scenario(
        "nobody can call us back, and the answer of a create is lost",
        sent(creates=2),
        kie=kie("lost_answer"),
        trouble=Trouble(worker={"PUBLIC_URL": ""}, lasts=True),
    ),
)
