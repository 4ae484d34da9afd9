"""Plays scenarios in a running system, and says what has come of each.

It sees what the outside sees: the chats, KIE's own record, the ledger in SQL, the dead letters.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import cache
from typing import Any

import httpx

from config import messages
from config.policies import LATE_AFTER
from reliability import keys
from reliability.dead_letters import DeadLetters, Letter
from sandbox.faults import Fault
from sandbox.scenarios import End, Press, Replay, Scenario, SendAgain, Spend, Step, Strike
from sandbox.stack import ROOT, Stack

PRICE = Decimal("2.50")
PRICE_IN_CENTS = 250  # as the ledger keeps it
FIRST_CHAT = 700_000_001  # all ids have as many digits, so that none is a part of another one
ELSEWHERE = 200_000_000  # what is bought on the side goes to another chat
QUEUES = ("bitrix", "kie", "telegram")
ACTORS = 4  # people at a time; some of them start a command
PATIENCE = 90.0  # seconds until all has come to rest
NOTIFY = "telegram.notify"
PATIENCE_ASKED = "still_working"
ENDS = {"FAILURE": "dead", "REVOKED": "cancelled"}
RESULT = "perennial:result:celery-task-meta-"

Send = Callable[[str, Mapping[str, Any]], str]
Grant = Callable[[str, Decimal], Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One order that plays a scenario; everything about it is its own. *name* begins its id."""

    number: int
    scenario: Scenario
    name: str = "order"

    @property
    def order(self) -> str:
        return f"{self.name}-{self.number:06d}"

    @property
    def user(self) -> str:
        return f"user-{self.number:06d}"

    @property
    def locale(self) -> str:
        return messages.LOCALES[self.number % 2]

    @property
    def chat(self) -> int:
        chat = FIRST_CHAT + self.number
        return -chat if self.scenario.chat in {"migrated", "kicked", "no_rights"} else chat

    @property
    def new_chat(self) -> int:
        """The supergroup that its chat has become, where it has."""
        return int(f"-100{abs(self.chat)}")

    def payload(self, order: str = "", chat: int = 0) -> dict[str, Any]:
        """Return what the application asks for; *order* and *chat* for a video on the side."""
        order = order or self.order
        return {
            "order_id": order,
            "user_id": self.user,
            "chat_id": chat or self.chat,
            "image_url": f"https://shop.example/{order}.jpg",
            "prompt": f"{order}: the cup turns, slowly",
            "cost": str(PRICE),
            "locale": self.locale,
        }


def parts(scenarios: Iterable[Scenario]) -> list[Part]:
    """Return an order for each of *scenarios*."""
    return [Part(number, scenario) for number, scenario in enumerate(scenarios)]


@dataclass
class Rehearsal:
    """One system, and the application in front of it: *send* calls a task, *grant* gives credits.

    *jobs* are those of each order, *given* the unix time at which it was given.
    """

    stack: Stack
    send: Send
    grant: Grant
    jobs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    given: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kie = self._control("kie")
        self.bot = self._control("telegram")
        self.redis = self.stack.redis.client()
        self.letters = DeadLetters(self.redis)

    def _control(self, upstream: str) -> httpx.Client:
        address = f"{self.stack.url(upstream)}/_sandbox/"
        return httpx.Client(base_url=address, timeout=30.0, trust_env=False)

    def end(self) -> None:
        """Hang up."""
        self.kie.close()
        self.bot.close()
        self.redis.close()

    # -- playing

    def play(self, cast: Sequence[Part], patience: float = PATIENCE) -> None:
        """Give all orders at once, and let people act whenever all has come to rest."""
        self.arm(cast)
        self.give(cast)
        self.rest(patience)
        for act in range(max(len(part.scenario.then) for part in cast)):
            steps = [(part, part.scenario.then[act : act + 1]) for part in cast]
            with ThreadPoolExecutor(ACTORS) as pool:
                done = [pool.submit(self.act, part, *step) for part, step in steps if step]
            for deed in done:
                deed.result()
            self.rest(patience)

    def arm(self, cast: Sequence[Part]) -> None:
        """Prepare what is to become of these orders."""
        plans = [replace(plan, about=p.order) for p in cast for plan in p.scenario.plans]
        faults = [replace(fault, about=p.order) for p in cast for fault in p.scenario.kie]
        rules = [_rule(part) for part in cast if part.scenario.chat != "ok"]
        _post(self.kie, "plans", [asdict(plan) for plan in plans])
        _post(self.kie, "faults", [asdict(fault) for fault in faults])
        _post(self.bot, "chats", rules)
        for part in cast:
            self.strike(part, part.scenario.telegram)

    def strike(self, part: Part, faults: Sequence[Fault]) -> None:
        """Let Telegram do something to the chat of *part*."""
        if faults:
            about = str(part.chat)
            _post(self.bot, "faults", [asdict(replace(fault, about=about)) for fault in faults])

    def give(self, cast: Sequence[Part]) -> None:
        """Give the users their credits, and let them order."""
        for part in cast:
            if part.scenario.credits:
                self.grant(part.user, PRICE * part.scenario.credits)
        for part in cast:
            self.given[part.order] = time.time()
            for _ in range(part.scenario.times):
                self.jobs[part.order].append(self.send("video.generate", part.payload()))

    def act(self, part: Part, step: Step) -> None:
        """Let somebody do something about a part."""
        match step:
            case Press(label, times):
                text = messages.text(label, part.locale)
                order = {"chat_id": part.chat, "label": text, "times": times}
                self.bot.post("press", json=order)
            case Replay(task):
                self.replay(part, task)
            case SendAgain():
                self.send("video.send", {"order_id": part.order})
            case Spend():
                side = part.payload(f"aside-{part.number:06d}", abs(part.chat) + ELSEWHERE)
                self.send("video.generate", side)
            case Strike(faults):
                self.strike(part, faults)

    def replay(self, part: Part, task: str) -> None:
        """Replay the open letters of one task and order, as an operator does."""
        found = [
            letter.message_id
            for letter in self.letters.each()
            if letter.message_body.task == task
            and letter.message_body.kwargs.get("order_id") == part.order
        ]
        if found:
            self.stack.operate("dlq", "replay", *found, "--yes")

    # -- waiting

    def rest(self, patience: float = PATIENCE) -> None:
        """Wait until nothing is on its way anywhere.

        Raises:
            TimeoutError: it takes longer than *patience* seconds; it says what is left.
        """
        deadline = time.monotonic() + patience
        while left := self.unrest():
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {patience:.0f} s there is still {left}")
            time.sleep(0.05)

    def unrest(self) -> dict[str, int]:
        """Return what waits or runs, by the place where it does."""
        # What is on its way into a queue first: nothing slips through between two looks.
        owed = len(self.letters.owed())
        calls = _get(self.kie, "summary")["callbacks"]
        with self.redis.pipeline(transaction=True) as look:
            for queue in QUEUES:
                look.llen(queue)
            look.hlen("unacked")
            look.zcard(keys.PARKED_DUE)
            counts = dict(zip((*QUEUES, "unacked", "parked"), look.execute(), strict=True))
        counts |= {"callbacks": calls["waiting"] + calls["flying"], "compensations": owed}
        return {place: count for place, count in counts.items() if count}

    # -- looking

    def ends(self, cast: Sequence[Part]) -> dict[str, End]:
        """Return what has come of each order."""
        sight = Sight.of(self)
        late = LATE_AFTER * float(self.stack.env.get("RETRY_TIME_SCALE", "1"))
        return {
            part.order: sight.end(part, self.results(part), self.given[part.order] + late)
            for part in cast
        }

    def doubtful(self) -> Counter[tuple[str, str]]:
        """Return the messages that may not have arrived, as dead letters say: (chat, code)."""
        said = (d.message_body.kwargs for d in self.letters.each() if d.message_body.task == NOTIFY)
        return Counter((str(known.get("chat_id")), str(known.get("message"))) for known in said)

    def results(self, part: Part) -> list[str]:
        """Return the outcomes of a part's jobs."""
        stored = [self.redis.get(f"{RESULT}{job}") for job in self.jobs[part.order]]
        return [_outcome(json.loads(meta)) if meta else "none" for meta in stored]


@dataclass(frozen=True, slots=True)
class Sight:
    """What everybody sees at one moment, by chat, order or user."""

    texts: Mapping[int, list[tuple[str, float]]]
    videos: Mapping[int, int]
    answers: Mapping[int, list[str]]
    prompts: Counter[str]
    letters: Sequence[Letter]
    states: Mapping[str, str]
    moved: Counter[tuple[str, str]]  # in cents

    @classmethod
    def of(cls, system: Rehearsal) -> Sight:
        """Look at everything once."""
        texts: dict[int, list[tuple[str, float]]] = defaultdict(list)
        answers: dict[int, list[str]] = defaultdict(list)
        videos = Counter[int]()
        for message in _get(system.bot, "messages"):
            if message["kind"] == "text":
                texts[message["chat_id"]].append((code_of(message["text"]), message["at"]))
            elif not message["deleted"]:
                videos[message["chat_id"]] += 1
        for press in _get(system.bot, "presses"):
            answers[press["chat_id"]] += [code_of(text) for text in press["answers"]]
        tasks = Counter(task["prompt"].partition(":")[0] for task in _get(system.kie, "tasks"))
        with sqlite3.connect(system.stack.folder / "perennial.db") as ledger:
            states = dict(ledger.execute("SELECT order_id, state FROM videos"))
            moved = Counter[tuple[str, str]]()
            for key, debit, amount in ledger.execute(
                "SELECT key, debit, amount FROM credit_transfers WHERE key LIKE 'video:%'"
            ):
                kind = "refunded" if debit == "spent" else "charged"
                moved[key.split(":")[1], kind] += amount
        letters = list(system.letters.each())
        return cls(texts, videos, answers, tasks, letters, states, moved)

    def end(self, part: Part, results: Sequence[str], late: float) -> End:
        """Return what has come of one order; from *late* on a user is asked for patience."""
        chats = (part.chat, part.new_chat)
        told = [text for chat in chats for text in self.texts.get(chat, ())]
        excused = () if PATIENCE_ASKED in part.scenario.end.messages else {PATIENCE_ASKED}
        return End(
            result=" ".join(sorted(set(results))),
            state=self.states.get(part.order, ""),
            charged=self._prices(part, "charged"),
            refunded=self._prices(part, "refunded"),
            videos=sum(self.videos[chat] for chat in chats),
            messages=tuple(sorted(c for c, at in told if c not in excused or at < late)),
            answers=tuple(self.answers.get(part.chat, ())),
            creates=self.prompts[part.order],
            letters=tuple(sorted(d.error_type for d in self.letters if _is_about(d, part))),
        )

    def _prices(self, part: Part, kind: str) -> int:
        """Return how often the price was moved, or -1 where it was another amount."""
        times, rest = divmod(self.moved[part.order, kind], PRICE_IN_CENTS)
        return -1 if rest else times


def _is_about(letter: Letter, part: Part) -> bool:
    known = letter.message_body.kwargs
    return known.get("order_id") == part.order or known.get("chat_id") in {
        str(part.chat),
        str(part.new_chat),
    }


@cache
def code_of(text: str) -> str:
    """Return the code of a text that a user has read; the text itself, if it is none of ours."""
    return next((code for code, shape in _shapes() if shape.fullmatch(text)), text)


@cache
def _shapes() -> list[tuple[str, re.Pattern[str]]]:
    """Return each code with what its texts look like, whatever facts they tell."""
    shapes = []
    for locale in messages.LOCALES:
        texts = tomllib.loads((ROOT / f"config/messages/{locale}.toml").read_text("utf-8"))
        for code, text in [*texts.pop("without_support").items(), *texts.items()]:
            shapes.append((code, re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)))))
    return shapes


def _outcome(meta: Mapping[str, Any]) -> str:
    if meta["status"] == "SUCCESS":
        return str(meta["result"]["outcome"])
    return ENDS.get(meta["status"], "none")


def _rule(part: Part) -> dict[str, Any]:
    rule: dict[str, Any] = {"chat_id": part.chat, "state": part.scenario.chat}
    return rule | ({"migrate_to": part.new_chat} if rule["state"] == "migrated" else {})


def _get(http: httpx.Client, path: str) -> Any:
    return http.get(path).raise_for_status().json()


def _post(http: httpx.Client, path: str, orders: Sequence[Any]) -> None:
    http.post(path, json=list(orders)).raise_for_status()
