"""Dead letters: the jobs we gave up, each once, explained, and found by time, cause and task."""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, islice, product
from operator import itemgetter
from pathlib import Path
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from classifiers.errors import Fatal
from config.settings import settings
from reliability.causes import VERSION, Verdict, fingerprint, moment
from reliability.connection import redis
from reliability.keys import OURS
from reliability.redaction import HIDDEN, Redaction, as_json, storable
from reliability.scripts import script
from reliability.spool import Spool

log = logging.getLogger(__name__)

T = TypeVar("T")

STATES = ("open", "replayed", "discarded")
OWED = ("needed", "sent")  # states of a compensation that is to be sent, or to be confirmed
CHUNK = 200  # letters fetched at a time: some hundred kilobytes, a few milliseconds of Redis
MOST_SEARCHED = 2_000  # letters that one page looks through for a text: about 0.2 s
MOST_REPLAYS = 1_000_000_000  # a foreign message may say anything, and Lua has to count on from it
LONGEST_MESSAGE = 4_000  # characters; a whole HTML error page helps nobody
LONGEST_TRACEBACK = 20_000  # characters; its two ends tell the story
NAMES = ("message_id", "original_queue", "error_type", "fingerprint", "category", "state")


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
class Edit:
    """A change that a person made to the keyword arguments of a dead job.

    What they are *after* it has the shape of *payload_version*.
    """

    at: datetime
    by: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    payload_version: int = 1


@dataclass(frozen=True, slots=True)
class Letter:
    """One job that died.

    *replays* counts how often it was sent again before this death: a replayed message carries
    `letter.replays + 1`, and the letter it may become says so. *raw* is the base64 of what could
    not be decoded. *release* is that of the worker it died in. The last five fields are about the
    letter, not the job: *state* is open, replayed or discarded, and *edits* are what was changed
    in the call since it came, the oldest first; `message_body` is the call as it stands now.
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
    release: str = ""
    replays: int = 0
    compensation: Compensation = Compensation()
    state: str = "open"
    settled_at: datetime | None = None
    settled_by: str = ""
    note: str = ""
    edits: tuple[Edit, ...] = ()

    @property
    def run(self) -> int:
        """How often the job had been sent again when it died, as it says itself.

        Less than *replays* where the application has sent the job anew under its old id.
        """
        return replays_of(self.headers)

    @property
    def replayable(self) -> bool:
        """Whether the job can be sent again just as it was: known, readable, nothing hidden."""
        whole = not self.raw and HIDDEN not in as_json(self.message_body)
        return self.state == "open" and bool(self.message_body.task) and whole

    def mentions(self, text: str) -> bool:
        """Whether *text* is in its ids, message or arguments (`name=value`), in whatever case."""
        call = self.message_body
        said = [self.message_id, self.metadata.trace_id, self.error_message]
        said += map(_said, call.args)
        said += (f"{name}={_said(value)}" for name, value in call.kwargs.items())
        return text.casefold() in "\n".join(said).casefold()

    def to_json(self) -> str:
        """Return one line of JSON; a value that JSON does not know becomes its repr."""
        return as_json(self)

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
                "edits": tuple(map(_edit, facts.get("edits", ()))),
            }
            letter = cls(**facts)
            letter.metadata.failed_at.timestamp()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a dead letter: {error!r}") from error
        return letter


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters: those that match everything that is given; *until* itself is left out.

    *grep* is a text that the letter `mentions`; it is looked for in all that the rest leaves.
    """

    state: str = "open"  # or replayed, discarded, all
    task: str = ""
    error_type: str = ""
    fingerprint: str = ""
    since: datetime | None = None
    until: datetime | None = None
    grep: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some letters, newest first, and where to go on: `cursor` is empty on the last page.

    With `Filter.grep` a page may hold fewer letters than asked for, or none, and not be the last:
    it ends after `MOST_SEARCHED` letters that were looked through.
    """

    letters: tuple[Letter, ...]
    cursor: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """The letters of one cause that are in one state; *example* is the newest one's message."""

    fingerprint: str
    count: int
    first_seen: datetime
    last_seen: datetime
    task: str
    error_type: str
    example_id: str
    example: str = ""
    verdict: Verdict | None = None


OUR_NAMES = frozenset(
    entry.name for kind in (Letter, Body, Metadata, Compensation, Edit) for entry in fields(kind)
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
        self._redaction = Redaction(secrets, spared=OUR_NAMES)
        self._spool = spool

    # Writing

    def bury(self, letter: Letter) -> bool:
        """Write *letter* and index it. False if this death of this job is written already.

        A job that was replayed or discarded and dies again opens its letter again.
        """
        return self._write(self._presentable(letter))

    def bury_all(self, letters: Iterable[Letter]) -> int:
        """Write many letters, some hundred in one round trip; return how many were new."""
        return sum(
            self._changed_each("bury", (_burial(self._presentable(letter)) for letter in chunk))
            for chunk in _chunks(letters)
        )

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

    def note_ended_well(self, message_id: str, replays: int) -> bool:
        """Settle the letter of a job that has ended well after it was sent again so many times.

        It is open where whoever sent the job has crashed before the mark, or has yet to make it.
        False if that is known.
        """
        return self._changed("settle", message_id, "replayed", "", "", str(replays))

    def compensate(self, message_id: str, state: str, *, of: int | None = None) -> bool:
        """Set the state of the compensation. False if that is no change.

        *of* is the number of replays of the run it is about: what comes late for an earlier death
        does not settle a later one.
        """
        return self._changed("compensate", message_id, state, "" if of is None else str(of))

    def put_off(self, message_id: str) -> bool:
        """Have a compensation that is owed looked at again in an hour. False if none is."""
        return self._changed("put_off", message_id)

    def amend(
        self,
        message_id: str,
        kwargs: Mapping[str, Any],
        by: str,
        *,
        payload_version: int | None = None,
    ) -> bool:
        """Have the job called with *kwargs* when it is replayed; its positional arguments stay.

        The caller has validated them; without a *payload_version* they have the letter's. What they
        were before is kept in `Letter.edits`. False if the letter is unknown or not open, is of a
        message that could not be decoded, or was changed in this moment.
        """
        letter, mark = next(self._with_marks([message_id]), (None, ""))
        if letter is None or letter.state != "open" or letter.raw:
            return False
        before, after = letter.message_body.kwargs, self._redaction.of(dict(kwargs))
        version = letter.payload_version if payload_version is None else payload_version
        edits = (*letter.edits, Edit(self._now(), by, before, after, version))
        return self._changed("amend", message_id, mark, as_json(edits))

    # Verdicts

    def ignore(
        self, fingerprint: str, *, by: str, note: str = "", until: datetime | None = None
    ) -> int:
        """Discard the open letters of a cause and, *until* then, each that comes; return how many.

        A crash in between leaves some of them open; a second call discards those.
        """
        self._judge(fingerprint, Verdict("ignored", by, note, self._now(), until))
        place = f"{self._base}open:fingerprint:{fingerprint}"
        discarded = 0
        while message_ids := self._client.zrange(place, 0, CHUNK - 1):
            settled = self._changed_each(
                "settle", ((i, "discarded", by, note, "") for i in message_ids)
            )
            discarded += settled
            if not settled:  # another call is at it
                break
        return discarded

    def fixed(self, fingerprint: str, *, by: str, version: str, note: str = "") -> None:
        """Expect no more deaths of a cause from *version* on; its letters stay as they are.

        One that comes from an older worker is no surprise; any other is a regression.

        Raises:
            ValueError: *version* has no numbers to compare, like 1.4.2.
        """
        if not VERSION.fullmatch(version):
            raise ValueError(f"a version that cannot be compared: {version!r}; give one like 1.4.2")
        self._judge(fingerprint, Verdict("fixed", by, note, self._now(), version=version))

    def lift(self, fingerprint: str) -> bool:
        """Take a verdict back; letters that it has discarded stay so. False if there is none."""
        return bool(self._client.hdel(self._base + "verdicts", fingerprint))

    def verdict(self, fingerprint: str) -> Verdict | None:
        """Return what was said about a cause; None if nothing was, or if that has expired."""
        return self._verdicts([fingerprint])[fingerprint]

    def verdicts(self) -> dict[str, Verdict]:
        """Return every verdict that has not expired, by fingerprint."""
        verdicts = self._verdicts(self._client.hkeys(self._base + "verdicts"))
        return {name: verdict for name, verdict in verdicts.items() if verdict is not None}

    # Trimming

    def trim(
        self,
        archive: Callable[[list[Letter]], None],
        *,
        days: float,
        kept: int,
        at_most: int = 10_000,
    ) -> int:
        """Move the oldest letters to *archive*, and forget them; return how many.

        That are those older than *days*, and those beyond the *kept* newest; whatever their state,
        but none whose compensation is owed. *archive* gets some hundred at a time, before they are
        forgotten: a crash in between makes it get them again. One that changes in this moment stays
        for the next time.
        """
        before = (self._now() - timedelta(days=days)).timestamp()
        excess = self.count(Filter("all")) - kept
        trimmed = 0
        for chunk in _chunks(self._oldest(before, excess)):
            found = [
                (letter, mark)
                for letter, mark in self._with_marks(chunk)
                if letter.compensation.state not in OWED
            ][: at_most - trimmed]
            if found:
                archive([letter for letter, _ in found])
                trimmed += self._changed_each("forget", ((x.message_id, mark) for x, mark in found))
            if trimmed >= at_most:
                break
        return trimmed

    # Reading

    def get(self, message_id: str) -> Letter | None:
        """Return one letter, None if it is unknown."""
        return next(self._read([message_id]), None)

    def page(self, which: Filter | None = None, *, limit: int = 100, cursor: str = "") -> Page:
        """Return up to *limit* letters, newest first, from where the last page's cursor stands."""
        which = which or Filter()
        found = self._find(which, cursor)
        if which.grep:
            return self._searched(found, which.grep, limit)
        places = list(islice(found, limit + 1))
        letters = tuple(self._read(message_id for _, message_id in places[:limit]))
        return Page(letters, _cursor(places[limit - 1]) if len(places) > limit else "")

    def each(self, which: Filter | None = None) -> Iterator[Letter]:
        """Go through all letters, newest first, a few hundred in memory at a time."""
        which = which or Filter()
        letters = self._read(message_id for _, message_id in self._find(which))
        return (x for x in letters if x.mentions(which.grep)) if which.grep else letters

    def count(self, which: Filter | None = None) -> int:
        """Count letters; with a text, or a fingerprint and more, it has to look at each."""
        which = which or Filter()
        if which.grep:
            return sum(1 for _ in self.each(which))
        places, rest = self._places(which)
        if rest:
            return sum(1 for _ in self._find(which))
        pipeline = self._client.pipeline(transaction=False)
        for place in places:
            pipeline.zcount(place, _bound(which.since, "-inf"), _bound(which.until, "+inf", "("))
        return sum(pipeline.execute())

    def groups(self, *, state: str = "open", limit: int | None = 100) -> list[Group]:
        """Return the causes of letters in *state*, or of `all`, the most frequent first.

        Without a *limit* that is every cause.
        """
        return self._groups(self._biggest(state, limit), state)

    def group(self, fingerprint: str, *, state: str = "open") -> Group | None:
        """Return one cause, as `groups` does; None if it has no letter in that state."""
        count = self.count(Filter(state, fingerprint=fingerprint))
        return next(iter(self._groups([(fingerprint, count)], state)), None)

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

        That is one never sent, or sent or put off an hour ago and not confirmed since.
        """
        seconds, _ = self._client.time()
        owed: list[str] = self._client.zrange(
            self._base + "owed", "-inf", seconds, byscore=True, offset=0, num=limit
        )
        return owed

    def owed_count(self) -> int:
        """Count the compensations that are not confirmed, those under way included."""
        count: int = self._client.zcard(self._base + "owed")
        return count

    # The inside

    def _changed(self, action: str, message_id: str, *facts: str) -> bool:
        return bool(self._change(keys=[self._base], args=[action, message_id, *facts]))

    def _changed_each(self, action: str, facts: Iterable[tuple[str, ...]]) -> int:
        """Make many changes of one kind in one round trip; return how many came about."""
        pipeline = self._client.pipeline(transaction=False)
        for each in facts:
            self._change(keys=[self._base], args=[action, *each], client=pipeline)
        return sum(map(bool, pipeline.execute()))

    def _now(self) -> datetime:
        """The time of Redis: those of several hosts differ."""
        seconds, microseconds = self._client.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)

    def _judge(self, fingerprint: str, verdict: Verdict) -> None:
        self._client.hset(self._base + "verdicts", fingerprint, verdict.to_json())

    def _verdicts(self, fingerprints: list[str]) -> dict[str, Verdict | None]:
        if not fingerprints:
            return {}
        now = self._now()
        texts = self._client.hmget(self._base + "verdicts", fingerprints)
        verdicts = (text and Verdict.from_json(text) for text in texts)
        return {
            name: verdict if verdict and verdict.holds(now) else None
            for name, verdict in zip(fingerprints, verdicts, strict=True)
        }

    def _write(self, letter: Letter) -> bool:
        return self._changed("bury", *_burial(letter))

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
        hidden: dict[str, Any] = self._redaction.of(letter)
        # What finds a letter again stays as it is, whatever a secret happens to look like.
        hidden["message_body"]["task"] = storable(letter.message_body.task)
        hidden |= {name: storable(getattr(letter, name)) for name in NAMES}
        hidden["compensation"] = {
            "state": letter.compensation.state,
            "about": dict(letter.compensation.about),
        }
        hidden |= {
            "error_message": _cut(hidden["error_message"], LONGEST_MESSAGE),
            "traceback": _cut(hidden["traceback"], LONGEST_TRACEBACK),
            "raw": self._redaction.of_base64(letter.raw),
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

    def _places(self, which: Filter) -> tuple[list[str], dict[str, str]]:
        """Return the indexes to read, and what of the filter they leave unchecked."""
        given = {"task": which.task, "type": which.error_type}
        rest = {name: value for name, value in given.items() if value}
        suffix = ""
        if which.fingerprint:
            suffix = f":fingerprint:{which.fingerprint}"
        elif len(rest) == len(given):
            suffix, rest = f":both:{which.task}\n{which.error_type}", {}
        elif rest:
            ((name, value),) = rest.items()
            suffix, rest = f":{name}:{value}", {}
        return [f"{self._base}{state}{suffix}" for state in _states(which.state)], rest

    def _find(self, which: Filter, cursor: str = "") -> Iterator[tuple[float, str]]:
        """Yield failed_at and id, newest first; `Filter.grep` is not looked at."""
        at, _, last_id = cursor.partition(":")
        newest = at or _bound(which.until, "+inf", "(")
        oldest = _bound(which.since, "-inf")
        places, rest = self._places(which)
        walks = (self._walk(place, newest, oldest, back=True) for place in places)
        found: Iterator[tuple[float, str]] = heapq.merge(*walks, reverse=True)
        if at:
            found = (each for each in found if each < (float(at), last_id))
        return self._matching(found, rest) if rest else found

    def _oldest(self, before: float, excess: int) -> Iterator[str]:
        """Yield the ids that are to be trimmed, the oldest first."""
        walks = (self._walk(f"{self._base}{state}", "-inf", "+inf") for state in STATES)
        for n, (at, message_id) in enumerate(heapq.merge(*walks)):
            if n >= excess and at >= before:
                return
            yield message_id

    def _walk(
        self, place: str, first: str, last: str, *, back: bool = False
    ) -> Iterator[tuple[float, str]]:
        """Go through one index by time, not by rank: letters come and go meanwhile."""
        seen: list[str] = []  # of the moment that the last chunk ended with
        while True:
            most = CHUNK + len(seen)
            chunk = self._client.zrange(
                place,
                first,
                last,
                desc=back,
                byscore=True,
                offset=0,
                num=most,
                withscores=True,
            )
            yield from ((at, message_id) for message_id, at in chunk if message_id not in seen)
            if len(chunk) < most:
                return
            at = chunk[-1][1]
            seen, first = [message_id for message_id, score in chunk if score == at], repr(at)

    def _searched(self, found: Iterator[tuple[float, str]], text: str, limit: int) -> Page:
        """Return a page of the letters that mention *text*."""
        letters: list[Letter] = []
        last = None
        for chunk in _chunks(islice(found, MOST_SEARCHED)):
            read = {letter.message_id: letter for letter in self._read(i for _, i in chunk)}
            for last in chunk:
                letter = read.get(last[1])
                if letter is not None and letter.mentions(text):
                    letters.append(letter)
                if len(letters) == limit:
                    return Page(tuple(letters), _cursor(last))
        more = next(found, None)
        return Page(tuple(letters), _cursor(last) if last and more else "")

    def _biggest(self, state: str, limit: int | None) -> list[tuple[str, float]]:
        """Return the fingerprints with the most letters in *state*, and how many."""
        names = [f"{self._base}{each}:groups" for each in _states(state)]
        if len(names) == 1:
            last = -1 if limit is None else limit - 1
            biggest = self._client.zrange(names[0], 0, last, desc=True, withscores=True)
        else:
            biggest = self._client.zunion(names, withscores=True)[::-1][:limit]
        return list(biggest)

    def _groups(self, biggest: list[tuple[str, float]], state: str) -> list[Group]:
        """Return causes, each with its number of letters in *state*, as groups."""
        names = [fingerprint for fingerprint, _ in biggest]
        ends = self._ends(names, _states(state))
        newest = {x.fingerprint: x for x in self._read(last[0] for _, last in ends.values())}
        verdicts = self._verdicts(names)
        return [
            Group(
                fingerprint=fingerprint,
                count=int(count),
                first_seen=datetime.fromtimestamp(ends[fingerprint][0][1], UTC),
                last_seen=datetime.fromtimestamp(ends[fingerprint][1][1], UTC),
                task=newest[fingerprint].message_body.task,
                error_type=newest[fingerprint].error_type,
                example_id=newest[fingerprint].message_id,
                example=newest[fingerprint].error_message,
                verdict=verdicts[fingerprint],
            )
            for fingerprint, count in biggest
            if fingerprint in newest
        ]

    def _ends(
        self, fingerprints: list[str], states: tuple[str, ...]
    ) -> dict[str, tuple[tuple[str, float], tuple[str, float]]]:
        """Return id and failed_at of the first and the last letter of each that has any."""
        pipeline = self._client.pipeline(transaction=False)
        for name, state in product(fingerprints, states):
            place = f"{self._base}{state}:fingerprint:{name}"
            pipeline.zrange(place, 0, 0, withscores=True)
            pipeline.zrange(place, 0, 0, desc=True, withscores=True)
        found = iter(pipeline.execute())
        ends = {
            name: list(chain.from_iterable(islice(found, 2 * len(states)))) for name in fingerprints
        }
        at = itemgetter(1)
        return {name: (min(each, key=at), max(each, key=at)) for name, each in ends.items() if each}

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
        return (letter for letter, _ in self._with_marks(message_ids))

    def _with_marks(self, message_ids: Iterable[str]) -> Iterator[tuple[Letter, str]]:
        """Yield letters, each with its mark as it was read: a change can ask for that very one."""
        for chunk in _chunks(message_ids):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.hmget(self._base + "letters", chunk)
            pipeline.hmget(self._base + "marks", chunk)
            for body, mark in zip(*pipeline.execute(), strict=True):
                if body and mark:
                    yield _marked(Letter.from_json(body), json.loads(mark)), mark


def replays_of(headers: Mapping[str, Any]) -> int:
    """Return how often a person has sent the job of a message again, as far as that makes sense."""
    count = headers.get("replays")
    return count if type(count) is int and 0 <= count <= MOST_REPLAYS else 0


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


def _burial(letter: Letter) -> tuple[str, ...]:
    """Return a letter as the script wants it."""
    return (
        letter.message_id,
        letter.to_json(),
        f"{letter.metadata.failed_at.timestamp():.6f}",
        letter.message_body.task,
        letter.error_type,
        letter.fingerprint,
        str(letter.replays),
        letter.compensation.state,
        letter.release,
        as_json(letter.edits) if letter.edits else "",
        str(letter.run),
    )


def _marked(letter: Letter, mark: Mapping[str, Any]) -> Letter:
    if mark.get("edits"):
        letter = replace(letter, edits=tuple(map(_edit, json.loads(mark["edits"]))))
    if mark.get("edited"):
        last = letter.edits[-1]
        call = replace(letter.message_body, kwargs=last.after)
        letter = replace(letter, message_body=call, payload_version=last.payload_version)
    return replace(
        letter,
        state=mark["state"],
        replays=int(mark["replays"]),
        compensation=replace(letter.compensation, state=mark["compensation"]),
        settled_at=moment(mark["at"]),
        settled_by=mark["by"],
        note=mark["note"],
    )


def _known(kind: type, facts: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {name: value for name, value in facts.items() if name in names}


def _edit(facts: Mapping[str, Any]) -> Edit:
    return Edit(**_known(Edit, facts) | {"at": datetime.fromisoformat(facts["at"])})


def _said(value: Any) -> str:
    return value if isinstance(value, str) else as_json(value)


def _states(state: str) -> tuple[str, ...]:
    return STATES if state == "all" else (state,)


def _cursor(place: tuple[float, str]) -> str:
    return f"{place[0]!r}:{place[1]}"


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
