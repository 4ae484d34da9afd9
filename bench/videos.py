"""A thousand videos, most of them good ones, while workers are killed with -9: who lost what?"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from bench.tools import stack, table
from sandbox.rehearsal import PATIENCE_ASKED, Part, Rehearsal, parts
from sandbox.scenarios import SCENARIOS, Else, End, Press, Scenario, SendAgain
from sandbox.stack import Process, Stack

VIDEOS, QUICK = 1_000, 150
SEED = 20261122
LIVES = (1.0, 5.0)  # seconds that pass before another worker is killed
PATIENCE = 900.0  # seconds until all has come to rest; the machine may be busy
# KIE may be asked for as much as it likes, Telegram at its documented rate.
DRILL = {
    "RETRY_TIME_SCALE": "0.03",
    "VISIBILITY_TIMEOUT": "3",
    "WORKER_THREADS": "32",
    "KIE_RATE": "50",
    "KIE_QUERY_RATE": "100",
}
KIE = ("--fast", "--duration", "1", "--spread", "2", "--late", "3", "--latency", "0.02")
QUIET = ("-l", "WARNING", "--without-mingle", "--without-gossip", "-I", "bench.ready")


def run(console: Console, *, quick: bool = False) -> None:
    count = QUICK if quick else VIDEOS
    shown = table(
        f"{count:,} videos of all scenarios, two workers, one killed with -9 every few seconds",
        *("accepted", "ended", "wrong balances", "wrong number of videos", "wrong messages"),
        *("doubled videos", "in doubt", "kills", "seconds"),
    )
    command = [sys.executable, "-m", "bench.videos", str(count)]
    shown.add_row(*json.loads(subprocess.check_output(command)))
    console.print(shown)
    console.print()


class Killer(threading.Thread):
    """Ends one worker of *made* after the other, and starts it again, until it is stopped."""

    def __init__(self, made: Stack) -> None:
        super().__init__(daemon=True)
        self.kills = 0
        self.stopped = threading.Event()
        self.random = random.Random(SEED)
        self.workers = [made.worker(name, *QUIET) for name in ("one", "two")]

    def employ(self, worker: Process) -> None:
        begun = worker.log.stat().st_size if worker.log.exists() else 0
        worker.start()
        worker.wait_for(lambda: worker.says(" ready.", begun), "a sign of life")

    def run(self) -> None:
        while not self.stopped.wait(self.random.uniform(*LIVES)):
            victim = self.random.choice(self.workers)
            victim.kill()
            self.kills += 1
            self.employ(victim)


def measure(count: int) -> list[str]:
    """Play *count* scenarios; return the cells of the row, and tell of each that went wrong."""
    drawn = random.Random(SEED).choices(SCENARIOS, [s.weight for s in SCENARIOS], k=count)
    with stack(**DRILL) as made:
        made.start_kie(*KIE)
        made.start_telegram("--latency", "0.02")
        made.start_api()
        from storage import credits  # reads the environment when imported
        from tasks import app, video  # noqa: F401  # the latter declares the tasks

        def send(task: str, payload) -> str:
            return app.tasks[task].delay(**payload).id

        player = Rehearsal(made, send, lambda user, amount: credits.grant(user, amount, "a gift"))
        killer = Killer(made)
        for worker in killer.workers:
            killer.employ(worker)
        cast = parts(drawn)
        begun = time.monotonic()
        killer.start()
        player.play(cast, PATIENCE)
        seconds = time.monotonic() - begun
        killer.stopped.set()
        killer.join()
        found = judged(cast, player)
        player.end()
    cells = [found["accepted"], found["ended"], found["balance"], found["videos"]]
    cells += [found["messages"], found["doubled"], found["in doubt"], killer.kills, round(seconds)]
    return [str(cell) for cell in cells]


# -- judging


def judged(cast: Sequence[Part], player: Rehearsal) -> Counter[str]:
    """Count what went wrong; each case is told on standard error."""
    ends, doubtful = player.ends(cast), player.doubtful()
    found = Counter(accepted=sum(len(player.jobs[part.order]) for part in cast))
    for part in cast:
        end = ends[part.order]
        chats = (str(part.chat), str(part.new_chat))
        lost = Counter({code: n for (chat, code), n in doubtful.items() if chat in chats})
        wrong = faults(part.scenario, end, lost)
        found["ended"] += len([result for result in player.results(part) if result != "none"])
        found["in doubt"] += end.state == "unconfirmed"
        found.update(wrong)
        if wrong:
            print(f"{', '.join(wrong)}: {part.order} {part.scenario.name}", file=sys.stderr)
            print(f"  {end}\n  lost: {dict(lost)}", file=sys.stderr)
    return found


def faults(scenario: Scenario, end: End, lost: Counter[str]) -> list[str]:
    """Return what is wrong with an *end*, given the messages that may be lost."""
    found = []
    legal = [as_else(scenario.end), *scenario.otherwise]
    kept = 0 if end.state in {"", "refunded"} else 1
    paid = [e for e in legal if (e.state, e.charged, e.refunded) == money(end)]
    if not paid or end.charged - end.refunded != kept:
        found.append("balance")
    if not any(e.videos[0] <= end.videos <= e.videos[1] for e in paid or legal):
        found.append("videos")
    if not any(is_told(e, end, lost) for e in paid or legal):
        found.append("messages")
    if end.videos > 1 and not asked_for_more(scenario):
        found.append("doubled")
    return found


def as_else(end: End) -> Else:
    return Else(end.state, (end.videos, end.videos), end.messages, end.charged, end.refunded)


def money(end: End) -> tuple[str, int, int]:
    return end.state, end.charged, end.refunded


def is_told(wanted: Else, end: End, lost: Counter[str]) -> bool:
    """Whether the messages are those of *wanted*; one about patience may come in each round."""
    heard, due = Counter(end.messages), Counter(wanted.messages)
    patience = heard.pop(PATIENCE_ASKED, 0)
    due.pop(PATIENCE_ASKED, None)
    return patience <= end.charged and heard <= due and due - heard <= lost


def asked_for_more(scenario: Scenario) -> bool:
    again = (step for step in scenario.then if isinstance(step, Press | SendAgain))
    return any(step != Press("button_try_again") for step in again)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
