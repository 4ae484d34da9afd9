"""Dead letters: the jobs we gave up, each once, explained, and found by time, cause and task."""

from __future__ import annotations

import heapq
import json
import logging
import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from classifiers.errors import Fatal
from config.settings import settings
from reliability.connection import redis
from reliability.keys import OURS
from reliability.scripts import script
from reliability.spool import Spool

log = logging.getLogger(__name__)

T = TypeVar("T")

STATES = ("open", "replayed", "discarded")
CHUNK = 200  # letters fetched at a time: some hundred kilobytes, a few milliseconds of Redis
LONGEST_MESSAGE = 4_000  # characters; a whole HTML error page helps nobody
LONGEST_TRACEBACK = 20_000  # characters; its two ends tell the story
DEEPEST = 100  # levels; what is nested deeper is kept as text
HIDDEN = "•••"
NAMES = ("message_id", "original_queue", "error_type", "fingerprint", "category", "state")
SHORTEST_PART = 4  # a shorter secret is hidden where it is the whole value, not inside of words


@dataclass(frozen=True, slots=True)
class Body:
    """The call itself, as it came."""

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metadata:
    """When and how often; *failed_at* is the time the letters are sorted by."""

    failed_at: datetime
    received_at: datetime | None = None
    retry_count: int = 0
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Compensation:
    """Whether what the job had done is undone. *state*: none, needed, sent, done or failed.

    *about* are the ids of what it is about; unlike the rest of a letter they are kept as they are,
    for what they name could not be found by a part.
    """

    state: str = "none"
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Letter:
    """One job that died.

    *replays* counts how often it was sent again before this death: a replayed message carries
    `letter.replays + 1`, and the letter it may become says so. *raw* is the base64 of what could
    not be decoded. The last four fields are about the letter, not the job: *state* is open,
    replayed or discarded.
    """

    message_id: str
    original_queue: str
    error_type: str
    error_message: str
    message_body: Body
    metadata: Metadata
    category: str = ""
    service: str = ""
    code: str = ""
    fingerprint: str = ""
    traceback: str = ""
    history: tuple[Mapping[str, Any], ...] = ()
    headers: Mapping[str, Any] = field(default_factory=dict)
    payload_version: int = 1
    raw: str = ""
    replays: int = 0
    compensation: Compensation = Compensation()
    state: str = "open"
    settled_at: datetime | None = None
    settled_by: str = ""
    note: str = ""

    @property
    def replayable(self) -> bool:
        """Whether the job can be sent again just as it was: known, readable, nothing hidden."""
        whole = not self.raw and HIDDEN not in _text(self.message_body)
        return self.state == "open" and bool(self.message_body.task) and whole

    def to_json(self) -> str:
        """Return one line of JSON; a value that JSON does not know becomes its repr."""
        return _text(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, now or in another version.

        Raises:
            ValueError: it is no letter.
        """
        try:
            facts = _known(cls, json.loads(text))
            body = _known(Body, facts["message_body"])
            metadata = _known(Metadata, facts["metadata"])
            facts |= {
                "message_body": Body(**body | {"args": tuple(body.get("args", ()))}),
                "metadata": Metadata(
                    **metadata
                    | {name: _moment(metadata.get(name)) for name in ("failed_at", "received_at")}
                ),
                "compensation": Compensation(**_known(Compensation, facts.get("compensation", {}))),
                "history": tuple(facts.get("history", ())),
                "settled_at": _moment(facts.get("settled_at")),
            }
            letter = cls(**facts)
            letter.metadata.failed_at.timestamp()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a dead letter: {error!r}") from error
        return letter


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters: those that match everything that is given; *until* itself is left out."""

    state: str = "open"  # or replayed, discarded, all
    task: str = ""
    error_type: str = ""
    fingerprint: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some letters, newest first, and where to go on: `cursor` is empty on the last page."""

    letters: tuple[Letter, ...]
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """The open letters of one cause."""

    fingerprint: str
    count: int
    first_seen: datetime
    last_seen: datetime
    task: str
    error_type: str
    example_id: str


OUR_NAMES = frozenset(
    entry.name for kind in (Letter, Body, Metadata, Compensation) for entry in fields(kind)
) | {"error", "code", "service", "detail", "at", "delay", "action"}  # those of the history


class DeadLetters:
    """The store. *secrets* are hidden from every letter before it is written, here or to *spool*.

    Every method but `bury_or_spool` and `drain_spool` raises RedisError when Redis does not answer.
    """

    def __init__(
        self,
        client: Redis,
        *,
        prefix: str = "",
        secrets: Collection[str] = (),
        spool: Spool | None = None,
    ) -> None:
        self._client: Any = client  # redis-py's types allow for bytes, ours answers in text
        self._base = f"{prefix}{OURS}dead:"
        self._change = client.register_script(script("dead_letters"))
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._spool = spool

    # Writing

    def bury(self, letter: Letter) -> bool:
        """Write *letter* and index it. False if this death of this job is written already.

        A job that was replayed or discarded and dies again opens its letter again.
        """
        return self._write(self._presentable(letter))

    def bury_or_spool(self, letter: Letter) -> bool:
        """Write *letter*, to the spool if Redis refuses. False only if it was written already.

        Raises:
            Fatal: neither took it; the log has it whole.
        """
        letter = self._presentable(letter)
        try:
            return self._write(letter)
        except RedisError as refusal:
            self._put_aside(letter, refusal)
            return True

    def drain_spool(self) -> int:
        """Bury what waits in the spool of this machine; return how many letters that were."""
        if self._spool is None:
            return 0
        return self._spool.drain(lambda line: self._write(Letter.from_json(line)))

    def discard(self, message_id: str, *, by: str = "", note: str = "") -> bool:
        """Settle a letter without a replay. False if it is unknown or not open."""
        return self._changed("settle", message_id, "discarded", by, note, "")

    def mark_replayed(self, letter: Letter, *, by: str = "", note: str = "") -> bool:
        """Note that the job was sent again, from the letter as it was read before.

        False if somebody else replayed it, or if it has died again meanwhile: then it stays open.
        """
        replays = str(letter.replays + 1)
        return self._changed("settle", letter.message_id, "replayed", by, note, replays)

    def compensate(self, message_id: str, state: str, *, of: int | None = None) -> bool:
        """Set the state of the compensation. False if that is no change.

        *of* is the number of replays of the run it is about: what comes late for an earlier death
        does not settle a later one.
        """
        return self._changed("compensate", message_id, state, "" if of is None else str(of))

    # Reading

    def get(self, message_id: str) -> Letter | None:
        """Return one letter, None if it is unknown."""
        return next(self._read([message_id]), None)

    def page(self, which: Filter | None = None, *, limit: int = 100, cursor: str = "") -> Page:
        """Return up to *limit* letters, newest first, from where the last page's cursor stands."""
        which = which or Filter()
        found = list(islice(self._find(which, cursor), limit + 1))
        letters = tuple(self._read(message_id for _, message_id in found[:limit]))
        more = len(found) > limit
        return Page(letters, f"{found[limit - 1][0]!r}:{found[limit - 1][1]}" if more else "")

    def each(self, which: Filter | None = None) -> Iterator[Letter]:
        """Go through all letters, newest first, a few hundred in memory at a time."""
        yield from self._read(message_id for _, message_id in self._find(which or Filter()))

    def count(self, which: Filter | None = None) -> int:
        """Count letters; only a filter by more than one of its fields has to look at each."""
        which = which or Filter()
        places, rest = self._places(which)
        if rest:
            return sum(1 for _ in self._find(which))
        pipeline = self._client.pipeline(transaction=False)
        for place in places:
            pipeline.zcount(place, _bound(which.since, "-inf"), _bound(which.until, "+inf", "("))
        return sum(pipeline.execute())

    def groups(self, *, limit: int | None = 100) -> list[Group]:
        """Return the causes of open letters, the most frequent first; None means all."""
        last = -1 if limit is None else limit - 1
        biggest = self._client.zrange(self._base + "groups", 0, last, desc=True, withscores=True)
        pipeline = self._client.pipeline(transaction=False)
        for fingerprint, _ in biggest:
            place = f"{self._base}open:fingerprint:{fingerprint}"
            pipeline.zrange(place, 0, 0, withscores=True)
            pipeline.zrange(place, 0, 0, desc=True, withscores=True)
        ends = pipeline.execute()
        examples = {
            letter.fingerprint: letter for letter in self._read(e[0][0] for e in ends[1::2] if e)
        }
        return [
            Group(
                fingerprint=fingerprint,
                count=int(count),
                first_seen=datetime.fromtimestamp(first[0][1], UTC),
                last_seen=datetime.fromtimestamp(last[0][1], UTC),
                task=examples[fingerprint].message_body.task,
                error_type=examples[fingerprint].error_type,
                example_id=last[0][0],
            )
            for (fingerprint, count), first, last in zip(
                biggest, ends[::2], ends[1::2], strict=True
            )
            if fingerprint in examples
        ]

    def open_by_task(self) -> dict[str, int]:
        """Count open letters by task; a task whose letters are all settled counts 0."""
        counts = self._client.zrange(self._base + "tasks", 0, -1, withscores=True)
        return {task: int(count) for task, count in counts}

    def totals(self) -> dict[tuple[str, str], int]:
        """Count all deaths there ever were, by task and error type."""
        totals = self._client.hgetall(self._base + "total")
        return {(name.split("\n")[0], name.split("\n")[1]): int(n) for name, n in totals.items()}

    def owed(self, *, limit: int = 100) -> list[str]:
        """Return the ids of letters whose compensation has to be sent, the oldest debt first.

        That is one never sent, or sent an hour ago and not confirmed since.
        """
        seconds, _ = self._client.time()
        owed: list[str] = self._client.zrange(
            self._base + "owed", "-inf", seconds, byscore=True, offset=0, num=limit
        )
        return owed

    # The inside

    def _changed(self, action: str, message_id: str, *facts: str) -> bool:
        return bool(self._change(keys=[self._base], args=[action, message_id, *facts]))

    def _write(self, letter: Letter) -> bool:
        return self._changed(
            "bury",
            letter.message_id,
            letter.to_json(),
            f"{letter.metadata.failed_at.timestamp():.6f}",
            letter.message_body.task,
            letter.error_type,
            letter.fingerprint,
            str(letter.replays),
            letter.compensation.state,
        )

    def _put_aside(self, letter: Letter, refusal: RedisError) -> None:
        if self._spool is None:
            raise refusal
        try:
            self._spool.append(letter.to_json())
        except OSError as error:
            log.critical(
                "[DLQ] neither Redis nor the spool takes this letter: %s", letter.to_json()
            )
            raise Fatal(f"a dead letter can be written nowhere: {refusal}; {error}") from error
        log.error("[DLQ] %s is spooled, Redis refuses it: %s", letter.message_id, refusal)

    def _presentable(self, letter: Letter) -> Letter:
        """Hide secrets, cut what is endless, and name the cause."""
        hidden: dict[str, Any] = self._hide(letter)
        # What finds a letter again stays as it is, whatever a secret happens to look like.
        hidden["message_body"]["task"] = letter.message_body.task
        hidden |= {name: getattr(letter, name) for name in NAMES}
        hidden["compensation"] = {
            "state": letter.compensation.state,
            "about": dict(letter.compensation.about),
        }
        hidden |= {
            "error_message": _cut(hidden["error_message"], LONGEST_MESSAGE),
            "traceback": _cut(hidden["traceback"], LONGEST_TRACEBACK),
            "raw": self._hide_raw(letter.raw),
        }
        letter = Letter.from_json(json.dumps(hidden))
        return replace(
            letter,
            fingerprint=letter.fingerprint
            or fingerprint(
                letter.message_body.task,
                letter.service,
                letter.error_type,
                letter.code,
                letter.error_message,
            ),
        )

    def _hide(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float) and isfinite(value):
            return value
        if depth <= DEEPEST and isinstance(value := _unfolded(value), dict | list):
            if isinstance(value, list):
                return [self._hide(item, depth + 1) for item in value]
            return {self._hide_name(key): self._hide(value[key], depth + 1) for key in value}
        return self._hide_text(value if isinstance(value, str) else _text(value))

    def _hide_name(self, name: str) -> str:
        """A name of ours is none of theirs, even where a secret is as short as `code`."""
        return name if name in OUR_NAMES else self._hide_text(name)

    def _hide_text(self, text: str) -> str:
        # Half a surrogate pair cannot be stored as UTF-8.
        text = text.encode("utf-8", "backslashreplace").decode()
        if text in self._secrets:
            return HIDDEN
        for secret in self._secrets:
            if len(secret) >= SHORTEST_PART:
                text = text.replace(secret, HIDDEN)
        return text

    def _hide_raw(self, raw: str) -> str:
        content = b64decode(raw)
        for secret in self._secrets:
            if len(secret) >= SHORTEST_PART:
                content = content.replace(secret.encode(), HIDDEN.encode())
        return b64encode(content).decode()

    def _places(self, which: Filter) -> tuple[list[str], dict[str, str]]:
        """Return the indexes to read, and what of the filter they leave unchecked."""
        wanted = {
            "fingerprint": which.fingerprint,  # the narrowest first
            "type": which.error_type,
            "task": which.task,
        }
        given = {name: value for name, value in wanted.items() if value}
        name = next(iter(given), "")
        suffix = f":{name}:{given.pop(name)}" if name else ""
        states = STATES if which.state == "all" else (which.state,)
        return [f"{self._base}{state}{suffix}" for state in states], given

    def _find(self, which: Filter, cursor: str = "") -> Iterator[tuple[float, str]]:
        """Yield failed_at and id, newest first."""
        places, rest = self._places(which)
        found = heapq.merge(*(self._walk(place, which, cursor) for place in places), reverse=True)
        return self._matching(found, rest) if rest else found

    def _walk(self, place: str, which: Filter, cursor: str) -> Iterator[tuple[float, str]]:
        """Go through one index by time, not by rank: letters come and go meanwhile."""
        at, _, last_id = cursor.partition(":")
        newest = at or _bound(which.until, "+inf", "(")
        skip = 0
        while True:
            chunk = self._client.zrevrangebyscore(
                place, newest, _bound(which.since, "-inf"), start=skip, num=CHUNK, withscores=True
            )
            for message_id, score in chunk:
                if not at or (score, message_id) < (float(at), last_id):
                    yield score, message_id
            if len(chunk) < CHUNK:
                return
            oldest = chunk[-1][1]
            ties = sum(1 for _, score in chunk if score == oldest)
            skip = skip + ties if repr(oldest) == newest else ties
            newest = repr(oldest)

    def _matching(
        self, found: Iterable[tuple[float, str]], rest: Mapping[str, str]
    ) -> Iterator[tuple[float, str]]:
        for chunk in _chunks(found):
            marks = self._client.hmget(
                self._base + "marks", [message_id for _, message_id in chunk]
            )
            for item, mark in zip(chunk, marks, strict=True):
                if mark and rest.items() <= json.loads(mark).items():
                    yield item

    def _read(self, message_ids: Iterable[str]) -> Iterator[Letter]:
        for chunk in _chunks(message_ids):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hmget(self._base + "letters", chunk)
            pipeline.hmget(self._base + "marks", chunk)
            for body, mark in zip(*pipeline.execute(), strict=True):
                if body and mark:
                    yield _marked(Letter.from_json(body), json.loads(mark))


@lru_cache(maxsize=1)
def dead_letters() -> DeadLetters:
    """The dead letters of this process's Redis, spooled where the settings say."""
    config = settings()
    return DeadLetters(
        redis(),
        prefix=config.redis_stream_prefix,
        secrets=config.secrets,
        spool=Spool(Path(config.spool_dir)),
    )


def fingerprint(task: str, service: str, error_type: str, code: str, message: str) -> str:
    """Return a short name of the cause: the same for two deaths that differ in ids and numbers."""
    cause = _nameless(code) if " " in code else code.upper()  # a code may be a whole sentence
    facts = "\n".join((task, service, error_type, cause, _nameless(message)))
    return sha256(facts.encode("utf-8", "backslashreplace")).hexdigest()[:12]


# What varies between two messages of one cause, and what stands for it. The order counts.
VARIABLE = (
    (re.compile(r"\w+://[^\s\"'<>]+"), "<url>"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), "<email>"),
    (re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|«[^»]*»|“[^”]*”|`[^`]*`"), "<text>"),
    (re.compile(r"(?=[\w-]*\d)(?=[\w-]*[^\W\d])[\w-]{6,}"), "<id>"),
    (re.compile(r"\d+([.,:]\d+)*"), "<n>"),
    (re.compile(r"\s+"), " "),
)


def _nameless(message: str) -> str:
    for pattern, placeholder in VARIABLE:
        message = pattern.sub(placeholder, message)
    return message.strip().lower()[:300]  # beyond that it is an upstream's page, not a message


def _marked(letter: Letter, mark: Mapping[str, Any]) -> Letter:
    return replace(
        letter,
        state=mark["state"],
        replays=int(mark["replays"]),
        compensation=replace(letter.compensation, state=mark["compensation"]),
        settled_at=datetime.fromtimestamp(float(mark["at"]), UTC) if mark["at"] else None,
        settled_by=mark["by"],
        note=mark["note"],
    )


def _known(kind: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {name: value for name, value in facts.items() if name in names}


def _unfolded(value: Any) -> Any:
    """Return *value* as JSON knows it, one level deep."""
    if is_dataclass(value):
        return {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_unfolded)
    except RecursionError:
        return "(nested too deeply to be kept)"


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _bound(at: datetime | None, otherwise: str, exclusive: str = "") -> str:
    return otherwise if at is None else f"{exclusive}{at.timestamp():.6f}"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
