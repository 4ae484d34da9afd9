"""Every way a job can end without being done: its letter is there, once, complete, and replayable.

Each way is really taken, on a worker of ours: one of threads, one of processes (prefork), one that
meets a Redis which refuses the letter. Then the next release mends the cause, and what died is sent
again. The matrix of all ways is printed at the end, with `-rA` or `-s`. The jobs that take their
whole worker with them, and those beside them, are in `test_poison`.
"""

from __future__ import annotations

import json
import pickle
import signal
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from acceptance.system import QUICK, System
from acceptance.visits import LOGS
from celery import Celery
from fixtures.waiting import eventually

from reliability.dead_letters import Filter, Letter
from sandbox.stack import Process, Stack

APPLICATION = "tests.acceptance.ways"
PATIENCE = 60.0  # seconds for all deaths of a system together, on a busy machine
RETRIES = 2  # MAX_RETRIES here
RETRIED = ("retry",) * RETRIES
STOPPED = ("shutdown",) * 3  # so many workers have stopped for want of memory
JSON, PICKLE = "application/json", "application/x-python-serialize"
COLUMNS = {
    "test_its_letter_is_there": "present",
    "test_it_has_one_letter": "once",
    "test_its_letter_tells_all": "complete",
    "test_it_comes_back": "replayable",
}


@dataclass(frozen=True, eq=False)
class Way:
    """A way to die, and what its letter has to say.

    A call is sent as an application does; with a *body* a message goes straight into the queue.
    *tried* are the actions of its history before the last; *mend* is what a person does with
    `dlq edit` before it is sent again. *readable* says whether the call can be read, so that it is
    sent again as it is; else a person makes a call of its bytes.
    """

    name: str
    error: str
    says: str
    code: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: str = "ways.end"
    queue: str = "bitrix"
    options: Mapping[str, Any] = field(default_factory=dict)
    unchecked: bool = False
    tried: Sequence[str] = ()
    body: bytes | None = None
    content_type: str = JSON
    headers: Mapping[str, Any] | None = None
    item: bool = False
    mend: Sequence[str] = ()
    readable: bool = True

    def __str__(self) -> str:
        return self.name


def job(name: str, way: str, error: str, says: str, code: str = "", **more: Any) -> Way:
    return Way(name, error, says, code, kwargs={"way": way}, **more)


def in_threads(name: str, *told: str, **more: Any) -> Way:
    return job(f"threads: {name}", *told, **more)


def in_processes(name: str, *told: str, **more: Any) -> Way:
    return job(f"prefork: {name}", *told, queue="kie", **more)


def message(name: str, body: bytes, says: str, code: str = "", **more: Any) -> Way:
    """A message whose call cannot be read."""
    return Way(f"message: {name}", "InvalidData", says, code, body=body, readable=False, **more)


ERROR = ("error", "Unclassified", "it went wrong", "ValueError")
UNSERIALISABLE = ("unserialisable", "EncodeError", "not JSON serializable", "EncodeError")
REJECT = ("reject", "Permanent", "not for me", "rejected")
EXIT = ("exit", "Unclassified", "sys.exit('no more')", "SystemExit")
MEMORY = ("memory", "Fatal", "MemoryError", "MemoryError")
LOST = ("WorkerLostError", "Worker exited prematurely")
SOFT = ("endless", "Unclassified", "SoftTimeLimitExceeded", "SoftTimeLimitExceeded")
HARD = ("endless", "TimeLimitExceeded", "1.0", "TimeLimitExceeded")
KNOWN = {"way": "error"}  # what a person makes of a message that could not be read
CALL = json.dumps([[], KNOWN, {}]).encode()
FINAL = {"way": "unpicklable"}  # of no use to try again

DEATHS = (
    in_threads("raised error", *ERROR, tried=RETRIED),
    in_threads("unserialisable result", *UNSERIALISABLE),
    in_threads("unpicklable error", "unpicklable", "Permanent", "it holds a lock"),
    in_threads("Reject", *REJECT),
    in_threads("sys.exit", *EXIT, tried=RETRIED),
    job("threads: MemoryError", *MEMORY, queue="x", tried=STOPPED),
    in_processes("raised error", *ERROR, tried=RETRIED),
    in_processes("unserialisable result", *UNSERIALISABLE),
    in_processes("unpicklable error", "unpicklable", "Permanent", "it holds a lock"),
    in_processes("Reject", *REJECT),
    job("prefork: MemoryError", *MEMORY, queue="telegram", tried=STOPPED),
    in_processes("sys.exit", "exit", *LOST, "WorkerLostError"),
    in_processes("soft time limit", *SOFT, tried=RETRIED, options={"soft_time_limit": 0.3}),
    in_processes("hard time limit", *HARD, options={"time_limit": 1.0}),
    in_processes("child ends (os._exit)", "vanish", *LOST, "WorkerLostError"),
    in_processes("child killed (SIGKILL)", "killed", *LOST, "WorkerLostError"),
    Way("bad arguments", "InvalidData", "colour: is no argument of this task",
        kwargs=KNOWN | {"colour": "green"}, unchecked=True, tried=("retry",),
        mend=("--unset", "colour")),
    job("expired", "error", "Permanent", "expired before a worker came to it", "expired",
        options={"expires": "2020-01-01T00:00:00+00:00"}),
    Way("unknown task", "InvalidData", "no task is called 'ways.born' here", "unknown_task",
        kwargs=KNOWN, task="ways.born", unchecked=True),
    Way("unreadable eta", "InvalidData", "its eta is no time: ", kwargs=KNOWN, body=CALL,
        headers={"task": "ways.end", "eta": "tomorrow"}),
    Way("impossible eta", "InvalidData", "its eta is no time: ", kwargs=KNOWN, body=CALL,
        headers={"task": "ways.end", "eta": "0001-01-01T00:00:00+14:00"}),
    Way("impossible expiry", "InvalidData", "its expires is no time: ", kwargs=KNOWN, body=CALL,
        headers={"task": "ways.end", "expires": "9999-12-31T23:59:59-14:00"}),
    Way("error callback that is none", "Permanent", "it holds a lock", kwargs=FINAL,
        body=json.dumps([[], FINAL, {"errbacks": [5]}]).encode()),
    message("disallowed content type", pickle.dumps(([], KNOWN, {})), "cannot be read: ",
            content_type=PICKLE),
    message("body is not JSON", b"[[], {\xff\x00 no JSON", "cannot be read: "),
    message("body is cut off", CALL[:-4], "cannot be read: "),
    message("JSON that is no call: an object", b'{"hello": "world"}', "no task: "),
    message("JSON that is no call: numbers", b"[1, 2, 3]", "no task: "),
    message("JSON that is no call: a text", b'"abc"', "no task: "),
    message("JSON that is no call: odd parts", b'["abc", {}, {}]', "no task: "),
    message("JSON that names no task", b'{"n": 1}', "names none", headers={}),
    message("names no task, and is not JSON", b"\xff", "cannot be read: ", headers={}),
    message("corrupt item in the list", b"\xfe\x00 this is no message", "no message",
            "corrupt_item", item=True),
)  # fmt: skip

LATE = ("fails later", "Permanent", "it went wrong meanwhile")
SPOOLED = (
    job("letter refused: Redis is read-only", *LATE),
    job("letter refused: Redis is down", *LATE),
    job("letter refused: Redis is full, worker killed", *LATE),
)
READ_ONLY, DOWN, FULL = SPOOLED
ENDED = (
    in_threads("revoked", "error", "Cancelled", "it was revoked", "revoked",
               options={"countdown": 3600.0}),
    in_processes("revoked while it ran", "fails later", "Cancelled", "while it ran", "revoked"),
)  # fmt: skip
REVOKED, TERMINATED = ENDED
WAYS = (*DEATHS, *ENDED, *SPOOLED)

# No death: it comes back by itself.
UNPUBLISHED = job("retry() that Redis did not take", "retries later", "", "")


@dataclass
class Story:
    """What has become of the jobs of one system."""

    system: System
    ends: Path
    jobs: dict[Way, str] = field(default_factory=dict)
    letters: dict[Way, list[Letter]] = field(default_factory=dict)
    exported: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    told: dict[Way, int] = field(default_factory=dict)
    results: dict[Way, str] = field(default_factory=dict)
    replayed: dict[Way, str] = field(default_factory=dict)
    spooled: dict[Way, bool] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def send(self, ways: Sequence[Way]) -> None:
        """Send calls as an application does, and messages as whatever writes into a queue."""
        calls = [way for way in ways if way.body is None]
        asked = [
            {"task": way.task, "kwargs": dict(way.kwargs), "unchecked": way.unchecked}
            | {"options": {"queue": way.queue, **way.options}}
            for way in calls
        ]
        answers = self.system.caller.ask(calls=asked)
        self.jobs |= {way: told["job"] for way, told in zip(calls, answers, strict=True)}
        for way in ways:
            if way.body is not None:
                self.jobs[way] = str(uuid4())
                item = way.body if way.item else envelope(way, self.jobs[way])
                self.system.redis.lpush(way.queue, item)

    def about(self, way: Way) -> list[Letter]:
        """All letters there are about what died in this way."""
        true = b64encode(way.body or b"").decode()
        return [
            letter
            for letter in self.system.letters.each(Filter("all"))
            if self.jobs[way] in (letter.message_id, letter.metadata.trace_id)
            or (true and letter.raw == true)
        ]

    def says(self, text: str) -> int:
        """How often it stands in the logs."""
        logs = self.system.stack.folder.glob("*.log")
        return sum(log.read_text(errors="replace").count(text) for log in logs)

    def is_spooled(self, way: Way) -> bool:
        return bool(self.says(f"{self.jobs[way]} is spooled, Redis refuses it"))

    def at_work(self, *ways: Way) -> None:
        """Wait until these jobs are `meanwhile` at work."""
        for way in ways:
            eventually((self.ends / f"{self.jobs[way]}.begun").exists, within=PATIENCE)

    def go_on(self, *ways: Way) -> None:
        for way in ways:
            (self.ends / f"{self.jobs[way]}.go").touch()

    def is_done(self, way: Way) -> bool:
        return (self.ends / self.jobs[way]).exists()

    def ended(self, way: Way) -> str:
        """What the result of a job says of its end."""
        stored = self.system.redis.get(f"perennial:result:celery-task-meta-{self.jobs[way]}")
        return json.loads(stored)["status"] if stored else ""

    def take_stock(self) -> None:
        """Note what there is of each job when all have ended."""
        self.letters = {way: self.about(way) for way in self.jobs}
        for way, letters in self.letters.items():
            names = {letter.message_id for letter in letters}
            self.told[way] = sum(self.says(f"[{name}] dead-lettered") for name in names)
            self.spooled[way] = self.is_spooled(way)
            self.results[way] = self.ended(way)

    def send_again(self) -> None:
        """Replay what can be replayed, and wait for its end."""
        names = {
            way: letters[0].message_id + ("" if way.readable else "-repaired")
            for way, letters in self.letters.items()
            if letters
        }
        for way, name in names.items():
            if way.mend:
                self.system.stack.operate("dlq", "edit", name, *way.mend, "--yes")
        self.system.stack.operate("dlq", "replay", *names.values(), "--yes")
        files = {way: self.ends / name for way, name in names.items()}
        with suppress(AssertionError):  # whoever is missing is told by its test
            eventually(lambda: all(file.exists() for file in files.values()), within=PATIENCE)
        self.replayed = {way: file.read_text() for way, file in files.items() if file.exists()}

    def __getitem__(self, way: Way) -> Letter:
        assert self.letters[way], f"{way}: there is no letter"
        return self.letters[way][0]


def envelope(way: Way, name: str) -> str:
    """A message as kombu writes it into a list."""
    headers = {"task": way.task} if way.headers is None else dict(way.headers)
    if headers:
        headers |= {"id": name, "root_id": name, "lang": "py", "retries": 0}
    return json.dumps(
        {
            "body": b64encode(way.body).decode(),
            "content-encoding": "utf-8" if way.content_type == JSON else "binary",
            "content-type": way.content_type,
            "headers": headers,
            "properties": {
                "correlation_id": name,
                "delivery_tag": name,
                "delivery_info": {"exchange": "", "routing_key": way.queue},
                "body_encoding": "base64",
                "priority": 0,
            },
        }
    )


@contextmanager
def opened(folder: Path, **env: str) -> Iterator[Story]:
    ends = folder / "ends"
    ends.mkdir()
    ours = {"MAX_RETRIES": str(RETRIES), "RELEASE": "1.0", "ENDS": str(ends)}
    stack = Stack(folder, {**QUICK, **ours, "APPLICATION": APPLICATION, **env})
    stack.celery_app = APPLICATION
    system = System(stack)
    try:
        yield Story(system, ends)
    finally:
        system.end()
        stack.stop(signal.SIGKILL, keep_files=True)


def watched(workers: Sequence[Process], condition: Callable[[], Any]) -> None:
    """Wait, and start workers anew that end, as a supervisor does. What fails, the tests tell."""

    def so() -> Any:
        for worker in workers:
            if not worker.alive:
                worker.start()
        return condition()

    with suppress(AssertionError):
        eventually(so, within=PATIENCE, every=0.05)


def repair(story: Story, folder: Path) -> None:
    """Do what a person does: export the letters, make calls of the bytes, and import those."""
    story.system.operate("dlq", "export", str(folder / "letters"))
    lines = map(json.loads, (folder / "letters").read_text().splitlines())
    story.exported = {line["message_id"]: line for line in lines}
    with (folder / "repaired").open("w") as file:
        for way, letters in story.letters.items():
            for line in [story.exported[letter.message_id] for letter in letters]:
                if not way.readable:
                    call = {"task": "ways.end", "args": [], "kwargs": KNOWN}
                    name = f"{line['message_id']}-repaired"
                    mended = {"message_id": name, "message_body": call, "raw": ""}
                    file.write(json.dumps(line | mended) + "\n")
    story.system.operate("dlq", "import", str(folder / "repaired"))


@pytest.fixture(scope="module")
def deaths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All that die of themselves, in two workers; and in two more, that lack memory."""
    folder = tmp_path_factory.mktemp("ways")
    with opened(folder) as story:
        system = story.system
        story.send((*DEATHS, *ENDED))
        old = system.workers(
            {
                "threads": ("-Q", "bitrix"),
                # Celery takes `-P prefork` for no choice at all, and ours is of threads.
                "prefork": ("-Q", "kie", "-P", "processes", "-c", "3"),
                "memory": ("-Q", "x"),
                "memory-2": ("-Q", "telegram", "-P", "processes", "-c", "1"),
            }
        )
        story.at_work(TERMINATED)
        person = Celery(broker=system.stack.redis.url).control
        person.revoke(story.jobs[TERMINATED], terminate=True)
        person.revoke(story.jobs[REVOKED])
        eventually(
            lambda: old[0].says(f"flagged as revoked: {story.jobs[REVOKED]}"), within=PATIENCE
        )
        system.parking.release(story.jobs[REVOKED])
        watched(old, lambda: all(map(story.about, (*DEATHS, *ENDED))))
        watched(old, lambda: all(map(story.ended, ENDED)))
        story.take_stock()
        repair(story, folder)
        for worker in old:
            worker.kill()
        system.stack.env["RELEASE"] = "2.0"
        system.worker("mended", "-Q", "bitrix,kie,telegram,x")
        story.send_again()
        yield story


@pytest.fixture(scope="module")
def outages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """All that die while Redis takes no letter, one of them just before its worker.

    Results are not kept: a result waits a minute for Redis, and only then its letter is written.
    """
    with opened(tmp_path_factory.mktemp("outages"), KEEP_RESULTS="false") as story:
        system, redis = story.system, story.system.redis
        worker = system.worker("worker", "-Q", "bitrix")
        watch = partial(watched, [worker])

        story.send((READ_ONLY, UNPUBLISHED))
        story.at_work(READ_ONLY, UNPUBLISHED)
        redis.replicaof("127.0.0.1", 1)
        story.go_on(READ_ONLY, UNPUBLISHED)
        watch(lambda: story.is_spooled(READ_ONLY))
        watch(lambda: story.says(f"{story.jobs[UNPUBLISHED]}] reject requeue=True"))
        redis.replicaof("NO", "ONE")
        watch(lambda: story.is_done(UNPUBLISHED))

        story.send((DOWN, FULL))
        story.at_work(DOWN, FULL)
        system.stack.redis.stop()
        story.go_on(DOWN)
        watch(lambda: story.is_spooled(DOWN))
        system.stack.start_redis()
        watch(lambda: redis.hlen("unacked") == 1)  # the one that follows

        redis.config_set("maxmemory", 1)
        story.go_on(FULL)
        watch(lambda: story.is_spooled(FULL))
        watch(lambda: redis.hlen("unacked") == 0)
        worker.kill()
        redis.config_set("maxmemory", 0)

        system.stack.env["RELEASE"] = "2.0"
        system.worker("mended", "-Q", "bitrix")
        watched([], lambda: all(map(story.about, SPOOLED)))
        story.take_stock()
        story.send_again()
        yield story


@pytest.fixture
def story(way: Way, request: pytest.FixtureRequest) -> Story:
    found = request.getfixturevalue("outages" if way in (*SPOOLED, UNPUBLISHED) else "deaths")
    request.node.stash[LOGS] = found.system.stack.folder
    return found


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[Way, dict[str, bool]]]:
    """Which test has passed for which way; printed when all have been run."""
    cells: dict[Way, dict[str, bool]] = {}
    yield cells
    width = max(map(len, map(str, WAYS)))
    print("\n" + f"{'way to die':<{width}}", *COLUMNS.values(), sep="  ")
    for way, row in cells.items():
        marks = [f"{'yes' if row.get(name) else 'NO':<{len(name)}}" for name in COLUMNS.values()]
        print(f"{way.name:<{width}}", *marks, sep="  ")


@pytest.fixture
def cell(way: Way, matrix: dict, request: pytest.FixtureRequest) -> Iterator[None]:
    failed = request.session.testsfailed
    yield
    passed = request.session.testsfailed == failed
    matrix.setdefault(way, {})[COLUMNS[request.node.originalname]] = passed


every_way = pytest.mark.parametrize("way", WAYS, ids=str)


@every_way
@pytest.mark.usefixtures("cell")
def test_its_letter_is_there(way: Way, story: Story):
    assert story.letters[way] != []
    assert story.spooled[way] == (way in SPOOLED)


@every_way
@pytest.mark.usefixtures("cell")
def test_it_has_one_letter(way: Way, story: Story):
    assert len(story.letters[way]) == 1
    # What Redis took neither letter nor acknowledgement of has come back, and died again.
    assert way in SPOOLED or story.told[way] == 1


@every_way
@pytest.mark.usefixtures("cell")
def test_its_letter_tells_all(way: Way, story: Story):
    letter, job = story[way], story.jobs[way]
    named = way.headers != {} and not way.item
    # Whoever sends past `delay()` does not say when; our first retry does.
    dated = way.body is None and (not way.unchecked or way.tried)

    assert (letter.error_type, letter.code) == (way.error, way.code)
    assert way.says in letter.error_message
    assert letter.category
    assert letter.fingerprint
    assert letter.original_queue == way.queue
    assert letter.message_body.task == (way.task if named else "")
    assert [entry["action"] for entry in letter.history] == [*way.tried, "dead_letter"]
    assert letter.metadata.retry_count == len(way.tried)
    assert story.began < letter.metadata.failed_at.timestamp() < time.time()
    assert bool(letter.metadata.received_at) == bool(dated)
    assert letter.release == "1.0"
    if named:
        assert (letter.message_id, letter.metadata.trace_id) == (job, job)
    if way.readable:
        assert (letter.message_body.args, letter.message_body.kwargs) == ((), way.kwargs)
        assert letter.raw == ""
    else:
        assert b64decode(letter.raw) == way.body
        assert b64decode(story.exported[letter.message_id]["raw"]) == way.body


@every_way
@pytest.mark.usefixtures("cell")
def test_it_comes_back(way: Way, story: Story):
    assert story[way].replayable == way.readable
    assert story.replayed.get(way) == "done\n"


@pytest.mark.parametrize("way", ENDED, ids=str)
def test_who_waits_for_what_was_revoked_hears_so(way: Way, story: Story):
    assert story.results[way] == "REVOKED"


@pytest.mark.parametrize("way", [UNPUBLISHED], ids=str)
def test_a_retry_that_cannot_be_published_is_no_death(way: Way, story: Story):
    assert story.letters[way] == []
    assert (story.ends / story.jobs[way]).read_text() == "done\n"
