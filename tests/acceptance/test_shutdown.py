"""A worker that is asked to stop finishes what it runs and gives back the rest."""

from __future__ import annotations

from acceptance.system import System
from fixtures.waiting import eventually


def test_a_worker_finishes_what_it_runs_and_gives_back_the_rest(empty_office: System, order: str):
    office = empty_office
    orders = [f"{order}-{n:02}" for n in range(12)]
    slow = {"kind": "slow", "seconds": 3.0, "method": "crm.deal.add", "about": order, "times": 3}
    office.portal.arm(slow)
    # It takes them all at once, to have some that it does not run.
    first = office.worker(
        "first", "--prefetch-multiplier", "4", WORKER_THREADS="3", BITRIX_COALESCE="false"
    )
    jobs = office.send_all([("create_deal", {"order_id": one, "title": "x"}) for one in orders])
    eventually(lambda: len(office.portal.calls("crm.deal.add", order)) == 3)
    eventually(lambda: office.leftovers() == {"unacked": 12})
    code = first.stop()
    ended = office.ended(jobs)
    left = office.leftovers()
    office.worker("second")
    outcomes = office.results(jobs)

    assert code == 0
    assert len(ended) == 3
    assert left == {"bitrix": 9}
    assert [outcome["outcome"] for outcome in outcomes] == ["created"] * 12
    assert [len(office.portal.calls("crm.deal.add", one)) for one in orders] == [1] * 12
