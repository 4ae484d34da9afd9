"""`kill -9` of a worker at every point of a video: the balance, one video, the message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from acceptance.studio import rehearsal, studio
from acceptance.system import PATIENCE, System
from fixtures.waiting import eventually

from sandbox.rehearsal import Part, Rehearsal
from sandbox.scenarios import (
    ALWAYS,
    PEOPLE,
    End,
    Scenario,
    bot,
    died,
    fails,
    kie,
    refunded,
    sent,
    unconfirmed,
)

# Where a video is when its worker dies. Two wait for an upstream: these are its own faults; the
# others are in `video_pauses.py`. The last one stops the database.
POINTS = (
    Scenario("asked", sent(), kie=kie("lost_answer", drop="hang")),
    Scenario("begun", sent()),
    Scenario("made", sent()),
    Scenario("unsent", unconfirmed(videos=0)),
    Scenario("underway", unconfirmed(videos=1), telegram=bot("lost_answer", drop="hang")),
    Scenario("arrived", sent()),
    Scenario("refunded", refunded("photo_has_people"), plans=fails(PEOPLE)),
    Scenario(
        "compensated",
        died("InvalidData", "system_error", creates=0),
        kie=kie("error", code="422", description="The text is not valid", times=ALWAYS),
    ),
    Scenario("charged", sent()),
)
# What is in the database at that moment: the state of the video, and the transfers of its user.
BEFORE = {
    "asked": ("paid", 2),
    "begun": ("paid", 2),
    "made": ("ready", 2),
    "unsent": ("sending", 2),
    "underway": ("sending", 2),
    "arrived": ("sent", 2),
    "refunded": ("refunded", 3),
    "compensated": ("refunded", 3),
    "charged": (None, 1),
}


@pytest.fixture(scope="module")
def crash(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Mapping[str, End], Mapping[str, tuple]]]:
    """Stop a worker with one video at every point, and kill it."""
    folder = tmp_path_factory.mktemp("video-crash")
    with studio(folder) as system, rehearsal(system) as player:
        victim = system.worker("victim", "-I", "tests.acceptance.video_pauses", PAUSES=str(folder))
        cast = [Part(number, point, name=point.name) for number, point in enumerate(POINTS)]
        player.arm(cast)
        for part in cast:
            player.give([part])
            eventually(lambda p=part: has_arrived(p, player), within=PATIENCE)
        before = {part.scenario.name: standing(part, system) for part in cast}
        victim.kill()
        system.worker("other")
        player.rest()
        ends = player.ends(cast)
        yield {part.scenario.name: ends[part.order] for part in cast}, before


def has_arrived(part: Part, player: Rehearsal) -> bool:
    """Whether the video has come to its point."""
    match part.scenario.name:
        case "asked":
            return part.order in player.kie.get("tasks", params={"about": part.order}).text
        case "underway":
            return bool(player.bot.get("messages", params={"chat_id": part.chat}).json())
        case point:
            return (player.stack.folder / point).exists()


def standing(part: Part, system: System) -> tuple[str | None, int]:
    """The state of the video, and how many transfers its user has."""
    states = system.sql("SELECT state FROM videos WHERE order_id = ?", part.order)
    account = f"user:{part.user}"
    (moved,) = system.sql(
        "SELECT count(*) AS n FROM credit_transfers WHERE ? IN (debit, credit)", account
    )
    return (states[0]["state"] if states else None), moved["n"]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_kill_leaves_a_balance_that_is_explained(crash, point: Scenario):
    ends, before = crash

    assert before[point.name] == BEFORE[point.name]
    assert ends[point.name] == point.end
