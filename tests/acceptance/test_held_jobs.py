"""A person holds jobs back, and lets them go; a worker that is on duty needs no telling."""

from __future__ import annotations

import time

from acceptance.system import System
from fixtures.waiting import eventually

from reliability.holds import FRESH, Holds


def test_held_jobs_wait_until_they_are_let_go_and_others_run(office: System, order: str):
    holds = Holds(office.redis)
    hold = holds.add(by="ann", task="bitrix.create_deal", where={"title": "Tea"}, note="recall")
    time.sleep(FRESH)  # what is promised: from now on it counts in every process
    held = [office.send("create_deal", order_id=f"{order}-{n}", title="Tea") for n in range(5)]
    parked = [office.parked(job, "Paused") for job in held]
    other = office.done("create_deal", order_id=f"{order}-other", title="Coffee")

    assert {(job.code, job.attempts) for job in parked} == {(hold.id, 0)}
    assert other["outcome"] == "created"
    assert [office.portal.rows("deal", f"{order}-{n}") for n in range(5)] == [[]] * 5

    holds.end(hold.id)  # as if the command had died here: the worker's upkeep does the rest
    eventually(lambda: not holds.each())

    assert [office.result(job)["outcome"] for job in held] == ["created"] * 5


def test_a_job_of_a_newer_release_is_kept_and_says_so(office: System, order: str):
    call = ("create_deal", {"order_id": order, "title": "Tea", "colour": "green"})
    (job,) = office.send_all([call], unchecked=True, headers={"payload_version": 2})
    letter = office.letter(job)

    assert (letter.error_type, letter.code) == ("InvalidData", "newer_payload")
    assert "sent by a newer release" in letter.error_message
    assert letter.headers["payload_version"] == 2
