"""Every scenario ends as it must, in a real system: money, videos and messages."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest
from acceptance.studio import rehearsal, studio
from acceptance.system import PATIENCE, System
from acceptance.visits import LOGS
from fixtures.waiting import eventually

from sandbox.rehearsal import PATIENCE_ASKED, Part, parts
from sandbox.scenarios import JOB, SCENARIOS, SYSTEM_WIDE, End, Scenario
from sandbox.stack import Process

RICH = {"credits": 1_000_000, "short_as": 402, "paused": []}

# -- each order by itself


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, End]]:
    """What has come of each scenario; all are played at once."""
    with studio(tmp_path_factory.mktemp("videos")) as system, rehearsal(system) as player:
        system.worker()
        cast = parts(SCENARIOS)
        player.play(cast)
        seen = player.ends(cast)
        yield {part.scenario.name: seen[part.order] for part in cast}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_video_ends_as_it_must(ends: Mapping[str, End], scenario: Scenario):
    assert ends[scenario.name] == as_told(scenario.end, ends[scenario.name])


def as_told(wanted: End, end: End) -> End:
    """Return *wanted* without the word about patience, where the end of the round overtook it.

    Where nothing else is said, nothing can have overtaken it.
    """
    if PATIENCE_ASKED in end.messages or len(wanted.messages) == 1:
        return wanted
    messages = tuple(code for code in wanted.messages if code != PATIENCE_ASKED)
    return replace(wanted, messages=messages)


# -- everybody's trouble


@dataclass
class Site:
    """A system where everybody is in trouble, again and again, and its one worker."""

    system: System
    env: Mapping[str, str] | None = None
    worker: Process | None = None
    employed: int = 0

    def employ(self, env: Mapping[str, str]) -> None:
        """See that the worker on duty has this in its environment."""
        if self.env == env:
            return
        if self.worker:
            self.worker.stop()  # warmly: what is under way is no part of the trouble
        self.employed += 1
        self.worker, self.env = self.system.worker(f"worker-{self.employed}", **env), env

    def clear(self) -> None:
        """Forget what a test that has failed left behind."""
        if self.worker and self.system.leftovers():
            self.worker.kill()
            self.worker, self.env = None, None
            self.system.redis.flushall()


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with studio(tmp_path_factory.mktemp("trouble")) as system:
        yield Site(system)


@pytest.fixture
def site(open_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The same for one test after the other."""
    request.node.stash[LOGS] = open_site.system.stack.folder
    yield open_site
    open_site.clear()


@pytest.mark.parametrize("number", range(len(SYSTEM_WIDE)), ids=lambda n: SYSTEM_WIDE[n].name)
def test_everybodys_trouble_ends_as_it_must(site: Site, number: int):
    part = Part(number, SYSTEM_WIDE[number])
    trouble = part.scenario.trouble
    with rehearsal(site.system) as player:
        player.kie.post("settings", json={**RICH, **trouble.account}).raise_for_status()
        site.employ(trouble.worker)
        player.arm([part])
        player.give([part])
        job = eventually(lambda: met(site.system, part), within=PATIENCE)
        player.kie.post("settings", json=RICH).raise_for_status()
        if not trouble.lasts:
            site.employ({})
        for command in trouble.commands:
            typed = [job if word == JOB else word for word in command]
            if JOB in command:  # it looks again and again; while it runs it cannot be cancelled
                in_an_hour = time.time() + 3600
                eventually(lambda at=in_an_hour: site.system.parking.release(job, at=at))
            site.system.operate(*typed)
        player.rest()

        end = player.ends([part])[part.order]

        assert end == as_told(part.scenario.end, end)


def met(system: System, part: Part) -> str:
    """The job that has met the trouble, or the order whose video it has ended."""
    reason = part.scenario.trouble.parked
    if reason:
        return next((job.message_id for job in system.parking.jobs() if job.reason == reason), "")
    found = system.sql("SELECT state FROM videos WHERE order_id = ?", part.order)
    return part.order if found and found[0]["state"] in {"sent", "refunded"} else ""


def test_a_queue_without_its_key_is_left_alone(site: Site):
    site.employ({"KIE_API_KEY": "", "TELEGRAM_BOT_TOKEN": ""})
    said = site.worker.log.read_text()
    served = {
        queue["name"]
        for queues in json.loads(site.system.operate("inspect", "active_queues", "--json")).values()
        for queue in queues
    }
    part = Part(len(SYSTEM_WIDE), SCENARIOS[0])
    with rehearsal(site.system) as player:
        player.give([part])
        waiting = site.system.leftovers()
        site.employ({})
        player.rest()
        end = player.ends([part])[part.order]

    assert "perennial: the queue kie is left alone: KIE_API_KEY is not set\n" in said
    assert "perennial: the queue telegram is left alone: TELEGRAM_BOT_TOKEN is not set\n" in said
    assert served == {"bitrix", "upkeep", "x"}
    assert waiting == {"kie": 1}
    assert end == part.scenario.end
