"""What goes in and out over HTTP: the answers as they are written, and their description."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from reliability.dead_letters import Filter

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
MOST = 500  # rows of one page: some megabytes, if each carries a long traceback


class Answer(JSONResponse):
    """JSON, whatever a foreign publisher has put into its message.

    Half a surrogate pair is not UTF-8, and JSON has no NaN: the one stays escaped, the other
    becomes a text. A listing must not fail for one of its rows.
    """

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] = {}, **more: Any
    ) -> None:
        """Have no cache keep it: what it tells is of this moment, and of customers."""
        super().__init__(content, status_code, {"Cache-Control": "no-store"} | {**headers}, **more)

    def render(self, content: Any) -> bytes:
        try:
            text = json.dumps(content, default=str, allow_nan=False)
        except ValueError:
            told = json.loads(json.dumps(content, default=str), parse_constant=str)
            text = json.dumps(told)
        return text.encode()


class Problem(BaseModel):
    """Why it could not be done, in a sentence."""

    detail: str


# -- which letters


Since = Annotated[
    datetime | Annotated[str, Field(pattern=r"^\d{1,4}[mhd]$")],
    Field(description="ISO 8601 (without an offset: UTC), or so long ago: 30m, 2h, 7d."),
]
# A name or a text to look for. The limit has pydantic refuse half a surrogate pair, too.
Text = Annotated[str, Field(max_length=500)]
Cursor = Annotated[
    str,
    Query(
        # Digits, a colon, an id: anything else would be refused by Redis.
        pattern=r"^(-?\d{1,16}(\.\d{1,17})?:.+)?$",
        description="`next_cursor` of the page before.",
    ),
]
State = Literal["open", "replayed", "discarded", "all"]


def moment(given: datetime | str | None) -> datetime | None:
    """Return a time, or how long ago it was."""
    if isinstance(given, str):
        return datetime.now(UTC) - timedelta(**{UNITS[given[-1]]: int(given[:-1])})
    return given.replace(tzinfo=UTC) if given and given.tzinfo is None else given


class Which(BaseModel):
    """Which letters: those that match everything that is given."""

    model_config = ConfigDict(extra="forbid")  # a filter that is misspelt would pick all letters

    task: Annotated[Text, Field(description="Of this task.")] = ""
    error_type: Annotated[Text, Field(description="Of this error class.")] = ""
    fingerprint: Annotated[Text, Field(description="Of this group.")] = ""
    since: Annotated[Since | None, Field(description="Died at this time or later.")] = None
    until: Annotated[Since | None, Field(description="Died before this time.")] = None
    q: Annotated[
        Text, Field(description="With this text in ids, message or arguments, in whatever case.")
    ] = ""

    def filter(self, state: str = "open") -> Filter:
        """Return it as the dead letters know it."""
        return Filter(
            state=state,
            task=self.task,
            error_type=self.error_type,
            fingerprint=self.fingerprint,
            since=moment(self.since),
            until=moment(self.until),
            grep=self.q,
        )


class WhichPage(Which):
    """A page of letters."""

    state: State = "open"
    limit: Annotated[int, Field(ge=1, le=MOST)] = 100
    cursor: Cursor = ""


class WhichGroups(BaseModel):
    """Which causes, and how many of them."""

    model_config = ConfigDict(extra="forbid")

    state: State = "open"
    limit: Annotated[int, Field(ge=1, le=MOST)] = 100


class HowMany(BaseModel):
    """How many of them."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=MOST)] = 100


class ParkedPage(BaseModel):
    """A page of parked jobs: those that match everything that is given."""

    model_config = ConfigDict(extra="forbid")

    task: Annotated[Text, Field(description="Of this task.")] = ""
    service: Annotated[Text, Field(description="That wait for this upstream.")] = ""
    reason: Annotated[Text, Field(description="Of this error class, like RateLimited.")] = ""
    limit: Annotated[int, Field(ge=1, le=MOST)] = 100
    cursor: Cursor = ""


class ReplayOne(BaseModel):
    """How one letter is to be sent again."""

    model_config = ConfigDict(extra="forbid")

    dry_run: Annotated[bool, Field(description="Only say what would become of it.")] = False
    kwargs: Annotated[
        dict[str, Any] | None,
        Field(
            description="Other keyword arguments than it had: validated, and kept in its `edits`."
        ),
    ] = None


class ReplayMany(Which):
    """Which letters are to be sent again, and how: one of ids, a filter and `all` says which."""

    ids: Annotated[
        list[Text],
        Field(max_length=1000, description="These, by id."),
        AfterValidator(lambda ids: list(dict.fromkeys(ids))),  # named twice, and meant once
    ] = []
    all: Annotated[bool, Field(description="All open letters.")] = False
    dry_run: Annotated[
        bool, Field(description="Only say what would become of them; of the newest 100.")
    ] = False
    ramp: Annotated[
        bool, Field(description="1, then 10, then 100 …, while they end well; needed for many.")
    ] = False


class Note(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    note: Annotated[Text, Field(description="Shown to everybody who looks.")] = ""


# -- answers


class Call(BaseModel):  # type: ignore[no-redef]  # the plugin has a **kwargs of its own
    """The call itself."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]


class Times(BaseModel):
    """When, how often, and on whose behalf."""

    received_at: str | None
    failed_at: str
    retry_count: int
    trace_id: str


class Compensation(BaseModel):
    """Whether what the job had done is undone."""

    state: Literal["none", "needed", "sent", "done", "failed"]
    about: dict[str, str]


class Letter(BaseModel):
    """A job that died. Secrets stand as `•••` in it."""

    message_id: str
    original_queue: str
    error_type: str
    error_message: str
    message_body: Call
    metadata: Times
    category: str
    service: str
    code: str
    fingerprint: Annotated[str, Field(description="Letters of one cause have the same.")]
    traceback: str
    history: Annotated[list[dict[str, Any]], Field(description="Its attempts, oldest first.")]
    headers: dict[str, Any]
    payload_version: int
    raw: Annotated[str, Field(description="Base64 of a message that could not be read.")]
    release: str
    replays: Annotated[int, Field(description="How often it was sent again before it died.")]
    compensation: Compensation
    state: Literal["open", "replayed", "discarded"]
    settled_at: str | None
    settled_by: str
    note: str
    edits: list[dict[str, Any]]
    explanation: Annotated[str, Field(description="What usually helps.")]


class Letters(BaseModel):
    """A page, newest first.

    With `q` it may hold fewer letters than asked for, or none, and not be the last: each page looks
    through 2,000 letters at most.
    """

    items: list[Letter]
    next_cursor: Annotated[str | None, Field(description="None on the last page.")]


class Group(BaseModel):
    """The letters of one cause."""

    fingerprint: str
    count: int
    first_seen: str
    last_seen: str
    task: str
    error_type: str
    example_id: str
    example: str
    verdict: Annotated[dict[str, Any] | None, Field(description="What a person has said about it.")]
    explanation: str


class Outlook(BaseModel):
    """What a replay would come to."""

    message_id: str
    task: str
    verdict: Literal["replay", "skip"]
    why: str
    gate: str
    effect: str


class Outlooks(BaseModel):
    """What a replay of many would come to; *looked_at* says of how many that is."""

    looked_at: int
    more: Annotated[bool, Field(description="Whether there are letters that were not looked at.")]
    verdicts: dict[str, int]
    items: list[Outlook]


class Sent(BaseModel):
    """What was sent again, and why the rest was not."""

    sent: int
    refused: Annotated[dict[str, int], Field(description="Reason → letters.")]


class Run(BaseModel):
    """A ramped replay."""

    id: str
    by: str
    which: dict[str, Any]
    begun_at: str
    ids: list[str]
    state: Literal["running", "done", "stopped", "cancelled"]
    why: str
    waits: Annotated[str, Field(description="What keeps it from going on: a gate, or a person.")]
    over_at: str | None
    sent: int
    ended: int
    died: int
    returned: Annotated[int, Field(description="Died of what they had died of before.")]
    passed_over: int
    unheard: int
    under_way: int
    causes: dict[str, int]


class Settled(BaseModel):
    """What became of a letter."""

    message_id: str
    state: str


class Parked(BaseModel):  # type: ignore[no-redef]  # as above
    """A job that waits. Task, reason and service are as its publisher says."""

    message_id: str
    task: Any
    state: Annotated[
        Literal["parked", "suspect"],
        Field(description="A `suspect` waits to be run alone: workers have died with it."),
    ]
    args: Any
    kwargs: Any
    reason: Any
    service: Any
    code: Any = None
    detail: Any
    queue: str
    accepted_at: str | None = None
    since: str | None
    due: Annotated[str | None, Field(description="When it comes back; None if nobody knows.")]
    attempts: int
    replays: int = 0
    history: Any
    payload_version: Any = None


class ParkedJobs(BaseModel):
    """A page, soonest first; before the first one, and beyond its limit, the suspects.

    With a filter it may hold fewer jobs than asked for, or none, and not be the last: each page
    looks through 2,000 jobs at most.
    """

    items: list[Parked]
    next_cursor: Annotated[str | None, Field(description="None on the last page.")]


class Released(BaseModel):
    """What became of a parked job."""

    message_id: str
    outcome: Literal["released", "cancelled"]


class Gate(BaseModel):
    """The gate of one upstream."""

    service: str
    state: Literal["closed", "half_open", "open", "paused", "held"]
    budget_remaining: int
    retry_at: Annotated[
        str | None, Field(description="None for now, and for when a person has acted.")
    ]
    note: str
    since: str | None


class Opened(Gate):
    """A gate that was opened."""

    jobs_released: Annotated[
        int, Field(description="Jobs that come back now, in order, paced to the budget.")
    ]


class Up(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class Check(BaseModel):
    """One thing that has to be well."""

    name: str
    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether work can be done."""

    status: Literal["ready", "not ready"]
    checks: list[Check]


class Queued(BaseModel):
    """What became of a webhook: the id of its *job*, or the *outcome* `ignored`."""

    job: str | None = None
    outcome: str | None = None
