"""A host is cut off from everything and comes back: nothing is lost, nothing is done twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from acceptance.system import FAST_PORTAL, PATIENCE, QUICK, Portal, System
from fixtures.waiting import eventually

from sandbox.namespaces import Network, NoNamespacesError, network
from sandbox.stack import Stack

# A lease of 10 s. A call waits two of them here for its permit at most, and the kernel may send it for
# five; in life a lease is ten times that.
CAREFUL = {**QUICK, "RETRY_TIME_SCALE": "0.1", "WORKER_THREADS": "8"}
# So slow that each host always holds a permit for a moment that is to come. What it sends then, cut
# off, nobody hears: its kernel must not say it again when the others have looked for it in vain.
SCARCE = {"BITRIX_RATE": "8", "BITRIX_BURST": "8", "BITRIX_COALESCE": "false"}


@pytest.fixture
def net() -> Iterator[Network]:
    try:
        with network() as made:
            yield made
    except NoNamespacesError as missing:
        pytest.skip(str(missing))


def test_a_host_that_is_cut_off_for_a_while_loses_and_doubles_nothing(
    net: Network, tmp_path, order: str
):
    stack = Stack(tmp_path, env={**CAREFUL, **SCARCE}, host=net.address)
    stack.redis.options = ("--protected-mode", "no", "--bind", "127.0.0.1", net.address)
    system = System(stack)
    stack.env["REDIS_URL"] = stack.redis.url.replace("127.0.0.1", net.address)
    stack.start_portal(*FAST_PORTAL)
    system.portal = Portal(stack.url("portal"), stack.env["BITRIX_WEBHOOK_URL"])
    hosts = [net.hosts[0], net.add()]
    try:
        workers = [stack.worker(f"worker-{host}", "--without-mingle") for host in hosts]
        for host, worker in zip(hosts, workers, strict=True):
            worker.command = net.command(host, worker.command)
            worker.start()
        for worker in workers:
            worker.wait_for(lambda at=worker: at.says(" ready."), "the word 'ready'")
        slow = {"kind": "slow", "seconds": 0.3, "method": "crm.deal.add", "about": order}
        system.portal.arm({**slow, "times": 99})
        orders = [f"{order}-{n:02}" for n in range(40)]
        calls = [("create_deal", {"order_id": one, "title": "x"}) for one in orders]
        jobs = system.send_all(calls)
        eventually(lambda: len(system.portal.calls("crm.deal.add", order)) >= 12, within=PATIENCE)
        net.cut(hosts[0])
        # The other host gets what the lost one held, when nobody has vouched for it.
        eventually(lambda: len(system.ended(jobs)) == len(jobs), within=2 * PATIENCE)
        alone = {worker.name: worker.alive for worker in workers}
        system.portal.disarm()  # what arrives from now on takes effect at once
        net.heal(hosts[0])
        again = system.send("create_deal", order_id=f"{order}-again", title="x")
        outcomes = system.results([*jobs, again])
        system.calm()
        # The longer the cut, the longer a kernel waits before it says it again.
        eventually(lambda: not net.unheard(hosts[0], stack.ports["portal"]), within=2 * PATIENCE)

        assert {outcome["outcome"] for outcome in outcomes} <= {"created", "adopted"}
        assert [len(system.portal.rows("deal", one)) for one in orders] == [1] * len(orders)
        assert all(alone.values())
        assert all(worker.alive for worker in workers)
        assert system.open_letters() == []
    finally:
        system.end()
        stack.stop(signal.SIGKILL)
