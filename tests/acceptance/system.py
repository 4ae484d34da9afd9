"""The whole system under test, as its users see it: an application, the portal, the operator."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import httpx
from fixtures.waiting import PATIENCE, eventually
from redis import Redis

from config.services import Service
from reliability import keys
from reliability.dead_letters import DeadLetters, Filter, Letter
from reliability.gate import Gate, GateState
from reliability.parking import Parked, Parking
from sandbox.stack import ROOT, Process, Stack

HERE = Path(__file__).parent

# Short waits; the scale leaves 5 s for a call to take effect (`config.services.Service.lease`),
# so that a machine that stalls for a moment does not make a live worker look like a dead one.
QUICK = {"RETRY_TIME_SCALE": "0.05", "VISIBILITY_TIMEOUT": "3", "WORKER_THREADS": "16"}
# Fast enough not to be what a test waits for; the portal is told the same.
RATE = {"BITRIX_RATE": "100", "BITRIX_BURST": "100"}
SERVICE = Service("bitrix", 100, 100, max_wait=5.0, connect_timeout=5.0, read_timeout=65.0)
QUEUES = ("bitrix", "kie", "telegram", "x")
# kombu's names of the lists of a queue: one for each priority.
LISTS = [queue + rank for queue in QUEUES for rank in ("", "\x06\x163", "\x06\x166", "\x06\x169")]
FAST_PORTAL = ("--rate", "100", "--burst", "100", "--latency", "0.01")


class Caller:
    """The application: a process of its own, as in life, that calls tasks and reads results."""

    def __init__(self, stack: Stack) -> None:
        self._asking = Lock()
        path = os.pathsep.join([str(ROOT), stack.env.get("PYTHONPATH", "")])
        with (stack.folder / "caller.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "caller.py")],
                env={**os.environ, **stack.env, "PYTHONPATH": path},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def ask(self, **request: Any) -> Any:
        with self._asking:  # several people act at once; each has to hear their own answer
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Upstream:
    """A simulated upstream at *address*: what goes wrong with it, and what it has been asked."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._http = httpx.Client(timeout=30, trust_env=False)
        self._begun = 0

    def arm(self, *faults: Mapping[str, Any]) -> None:
        self._control("POST", "faults", json=list(faults))

    def disarm(self) -> None:
        self._control("DELETE", "faults")

    def fired(self) -> int:
        """How many of the faults have struck, since the upstream began."""
        return sum(self._control("GET", "faults")["fired"].values())

    def summary(self) -> dict[str, Any]:
        return self._control("GET", "summary")

    def begin(self) -> None:
        """From here on counts what happens."""
        self._begun += len(self._journal())

    def _journal(self) -> list[dict[str, Any]]:
        return self._control("GET", "journal", params={"after": self._begun})

    def _control(self, verb: str, path: str, **options: Any) -> Any:
        url = f"{self._address}/_sandbox/{path}"
        return self._http.request(verb, url, **options).raise_for_status().json()


class Portal(Upstream):
    """The simulated portal at *address*, as its people and its journal see it."""

    def __init__(self, address: str, webhook: str) -> None:
        super().__init__(address)
        self._webhook = webhook

    def call(self, method: str, **params: Any) -> Any:
        """Do something in the portal, past the application."""
        answer = self._http.post(f"{self._webhook}{method}", json=params)
        return answer.raise_for_status().json()["result"]

    def calls(self, method: str = "", about: str = "") -> list[dict[str, Any]]:
        """What the portal was asked since `begin`: *about* one ORIGIN_ID, if given."""
        return [
            entry
            for entry in self._journal()
            if method in {"", entry["method"]} and about in entry["about"].get("ORIGIN_ID", "")
        ]

    def rows(self, entity: str, origin: str) -> list[dict[str, Any]]:
        """All rows of *entity* (`deal`, `contact`) that carry this ORIGIN_ID."""
        return self.call(
            f"crm.{entity}.list",
            filter={"=ORIGIN_ID": origin},
            select=["*", "UF_*", "EMAIL", "PHONE"],
            order={"ID": "ASC"},
        )

    def row(self, entity: str, origin: str) -> dict[str, Any]:
        """The only row that carries this ORIGIN_ID."""
        (row,) = self.rows(entity, origin)
        return row

    def get(self, entity: str, row_id: str) -> dict[str, Any]:
        return self.call(f"crm.{entity}.get", id=row_id)


class X(Upstream):
    """The simulated X, as its users see it."""

    def welcome(self, user: str, bookmarks: int, **more: Any) -> None:
        """Take in a user with so many bookmarks, who gives the app tokens."""
        self._control("POST", "users", json=[{"id": user, "bookmarks": bookmarks, **more}])

    def user(self, user: str) -> dict[str, Any]:
        (found,) = self._control("GET", "users", params={"id": user})
        return found

    def tell(self, order: str, user: str, **more: Any) -> None:
        """Have something happen to a user: `authorize`, `expire`, `bookmarks`."""
        self._control("POST", order, json={"id": user, **more})

    def change(self, **settings: Any) -> None:
        self._control("POST", "settings", json=settings)

    def asked(self, user: str) -> list[int]:
        """Where the pages began that were asked for, oldest first."""
        calls = (entry["about"] for entry in self._journal() if entry["method"] == "bookmarks")
        return [int(about["position"]) for about in calls if about.get("user") == user]

    def first_asked(self) -> list[str]:
        """The users, in the order in which their first pages were asked for."""
        users = (entry["about"].get("user") for entry in self._journal())
        return list(dict.fromkeys(user for user in users if user))


@dataclass
class System:
    """One Redis, one database, any number of workers, beside a portal that others use, too."""

    stack: Stack
    portal: Portal | None = None

    def __post_init__(self) -> None:
        self.stack.start_redis()
        self.redis: Redis = self.stack.redis.client()
        self.parking = Parking(self.redis)
        self.letters = DeadLetters(self.redis)
        self.gate = Gate(self.redis, SERVICE)

    def worker(self, name: str = "worker", *options: str, **env: str) -> Process:
        """Start a worker, and wait until it takes jobs."""
        (worker,) = self.workers({name: options}, **env)
        return worker

    def workers(self, named: Mapping[str, Sequence[str]], **env: str) -> list[Process]:
        """Start workers side by side, each with its options."""
        quick = ("--without-mingle", "--without-gossip")  # saves a second
        workers = [self.stack.worker(name, *quick, *own, env=env) for name, own in named.items()]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_for(lambda at=worker: at.says(" ready."), "the word 'ready'")
        return workers

    # -- the application's side

    @cached_property
    def caller(self) -> Caller:
        return Caller(self.stack)

    def send(self, task: str, **kwargs: Any) -> str:
        """Call a task; return the job's id."""
        return self.send_all([(task, kwargs)])[0]

    def send_all(self, calls: Sequence[tuple[str, Mapping[str, Any]]], **options: Any) -> list[str]:
        """Call many tasks at the same time."""
        return [answer["job"] for answer in self.try_all(calls, **options)]

    def try_all(
        self,
        calls: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        unchecked: bool = False,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Call many tasks; a refusal is `{error, text, seconds}`."""
        wanted = [
            {"task": f"bitrix.{task}" if "." not in task else task, "kwargs": kwargs}
            | {"unchecked": unchecked, "options": options}
            for task, kwargs in calls
        ]
        return self.caller.ask(calls=wanted)

    def grant(self, user: str, amount: Decimal) -> None:
        """Give credits to a user."""
        self.caller.ask(grant=user, amount=str(amount))

    def result(self, job: str) -> dict[str, Any]:
        """The result of a job that is done, or soon will be."""
        answer = self.caller.ask(get=job, timeout=PATIENCE)
        assert answer["state"] == "SUCCESS", answer
        return answer["result"]

    def meta(self, job: str) -> dict[str, Any]:
        """What is stored with the result of a job that is done, or soon will be."""
        key = f"perennial:result:celery-task-meta-{job}"
        return json.loads(eventually(lambda: self.redis.get(key), within=PATIENCE))

    def results(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        return [self.result(job) for job in jobs]

    def ended(self, jobs: Sequence[str]) -> list[str]:
        """Those of *jobs* that have a result by now."""
        stored = [self.redis.get(f"perennial:result:celery-task-meta-{job}") for job in jobs]
        return [
            job
            for job, meta in zip(jobs, stored, strict=True)
            if meta and json.loads(meta)["status"] in {"SUCCESS", "FAILURE"}
        ]

    def done(self, task: str, **kwargs: Any) -> dict[str, Any]:
        """Call a task and wait for its result."""
        return self.result(self.send(task, **kwargs))

    # -- the operator's side

    def operate(self, *command: str, told: str = "") -> str:
        """Carry out a sub-command of ours, *told* so on standard input; return what it prints."""
        outcome = self.stack.operate(*command, told=told)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        return outcome.stdout

    def look(self, *command: str) -> Any:
        """Carry out a sub-command that prints JSON."""
        return json.loads(self.operate(*command, "--json"))

    def letter(self, job: str) -> Letter:
        """The dead letter of a job that has died, or soon will."""
        return eventually(lambda: self.letters.get(job), within=PATIENCE)

    def parked(self, job: str, reason: str = "") -> Parked:
        """The parked job, once it is parked (for that *reason*)."""
        return eventually(
            lambda: (at := self.parking.get(job)) and reason in {"", at.reason} and at,
            within=PATIENCE,
        )

    def gate_is(self, state: str) -> GateState:
        """The gate, once it is in this state."""
        return eventually(
            lambda: (at := self.gate.state()).state == state and at, within=PATIENCE, every=0.005
        )

    # -- what is behind

    def leftovers(self) -> dict[str, int]:
        """What waits or runs, by the place where it does; empty when there is nothing to do."""
        with self.redis.pipeline(transaction=True) as look:  # a job in between is in one of them
            for name in LISTS:
                look.llen(name)
            look.hlen("unacked").zcard(keys.PARKED_DUE).llen(keys.CORRUPT)
            counts = zip((*LISTS, "unacked", "parked", "corrupt"), look.execute(), strict=True)
        return {place: count for place, count in counts if count}

    def calm(self) -> None:
        """Wait until nothing is queued, running or parked."""
        with suppress(AssertionError):  # the next one says more
            eventually(lambda: not self.leftovers(), within=PATIENCE)
        assert self.leftovers() == {}

    def open_letters(self) -> list[Letter]:
        return list(self.letters.each(Filter(state="open")))

    def sql(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Read from the database."""
        with sqlite3.connect(self.stack.folder / "perennial.db") as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(statement, values).fetchall()

    def effect(self, order: str, entity: str = "deal") -> str:
        """The state of the effect that makes the row of an order."""
        rows = self.sql("SELECT state FROM effects WHERE key = ?", f"bitrix.{entity}:{order}")
        return rows[0]["state"] if rows else ""

    def clear(self) -> None:
        """Make it as new for the next test: gates open, no letter open, no fault armed."""
        self.portal.disarm()
        self.gate.reset()
        self.gate.resume()
        for letter in self.open_letters():
            self.letters.discard(letter.message_id)

    def end(self) -> None:
        if "caller" in vars(self):
            self.caller.end()
        self.redis.close()
