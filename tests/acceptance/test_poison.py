"""Jobs that kill their worker: they end as dead letters, and those beside them are done."""

from __future__ import annotations

import pytest
from acceptance.system import PATIENCE, System
from fixtures.supervisor import Supervisor

KILLERS = ("-I", "tests.acceptance.killers")
BYSTANDERS = 4


@pytest.mark.parametrize(("workers", "pills"), [(1, 1), (2, 2)])
def test_the_guilty_are_taken_out_and_the_innocent_are_done(
    empty_office: System, order: str, workers: int, pills: int
):
    office = empty_office
    guilty = [f"{order}-pill-{n}" for n in range(pills)]
    innocent = [f"{order}-beside-{n}" for n in range(BYSTANDERS)]
    calls = [("create_deal", {"order_id": o, "title": o}) for o in (*guilty, *innocent)]
    jobs = office.send_all(calls)
    names = [f"worker-{n}" for n in range(workers)]
    on_duty = Supervisor(office.workers(dict.fromkeys(names, KILLERS)))
    on_duty.until(lambda: len(office.ended(jobs)) == len(jobs))
    letters = {letter.message_id: letter for letter in office.open_letters()}
    made = [len(office.portal.rows("deal", one)) for one in innocent]
    tried = [call for one in guilty for call in office.portal.calls("crm.deal.add", one)]

    assert letters.keys() == set(jobs[:pills])
    assert {outcome["outcome"] for outcome in office.results(jobs[pills:])} == {"created"}
    assert made == [1] * BYSTANDERS
    assert tried == []
    # Each has killed once alone; before that, they have shared two deaths, or not.
    assert pills + 2 <= on_duty.deaths <= 3 * pills
    for job, pill in zip(jobs, guilty, strict=False):
        told = office.caller.ask(get=job, timeout=PATIENCE)
        letter = letters[job]
        assert (letter.error_type, letter.category) == ("PoisonPill", "system")
        assert letter.original_queue == "bitrix"
        assert letter.message_body.task == "bitrix.create_deal"
        assert letter.message_body.kwargs["order_id"] == pill
        assert letter.error_message.startswith("3 workers have died with it")
        assert letter.replayable
        assert (told["state"], "PoisonPill" in told["result"]) == ("FAILURE", True)
    assert office.redis.keys("perennial:quarantine:*") == []

    for worker in on_duty.workers:
        worker.kill()
    office.worker("mended")
    office.operate("dlq", "replay", *jobs[:pills])

    assert {outcome["outcome"] for outcome in office.results(jobs[:pills])} == {"created"}
    assert office.open_letters() == []
