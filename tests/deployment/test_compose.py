"""docker-compose.yml, brought up by a real engine, and one job of each kind through it."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from deployment.conftest import Deployed
from fixtures.waiting import eventually

pytestmark = pytest.mark.services
SERVERS = {"redis", "postgres", "prometheus", "alertmanager"}
API, SHOP = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
PORTAL, TELEGRAM, X, FHIR = (f"http://127.0.0.1:{port}" for port in (8024, 8026, 8027, 8028))
PROMETHEUS, ALERTMANAGER = "http://127.0.0.1:9090", "http://127.0.0.1:9093"


def containers(deployed: Deployed) -> dict[str, dict[str, Any]]:
    """Return what the engine knows of each service's container; here each has one."""
    ids = deployed.compose("ps", "--all", "--quiet").split()
    known = json.loads(deployed.engine.docker("inspect", *ids))
    return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in known}


def result_of(deployed: Deployed, job: str) -> Any:
    """Wait for the end of a job; Celery prints its result as Python would."""
    return ast.literal_eval(deployed.command("result", job).strip().splitlines()[-1])


def ordered(deployed: Deployed, path: str, order: dict[str, Any]) -> str:
    """Order something in the sample shop; return the id of the job that it sent."""
    status, answer = deployed.ask("POST", f"{SHOP}{path}", order)
    assert status == 202, answer
    job: str = answer["job"]
    return job


def test_every_container_is_healthy(deployed: Deployed):
    """Each has a check, and none needed a second start."""
    states = {name: one["State"] for name, one in containers(deployed).items()}
    health = {name: state.get("Health", {}).get("Status") for name, state in states.items()}
    restarts = {name: one["RestartCount"] for name, one in containers(deployed).items()}

    assert set(states) == set(deployed.compose("config", "--services").split())
    assert set(health.values()) == {"healthy"}, health
    assert not any(restarts.values()), restarts


def test_no_process_is_root(deployed: Deployed):
    users = {
        name: {line.split()[0] for line in top.strip().splitlines()[1:]}
        for name, one in containers(deployed).items()
        if (top := deployed.engine.docker("top", one["Id"], "-eo", "uid,pid,args"))
    }

    assert not [name for name, ids in users.items() if "0" in ids], users


def test_ours_may_do_and_write_as_little_as_they_need(deployed: Deployed):
    ours = {name: one for name, one in containers(deployed).items() if name not in SERVERS}
    hosts = {name: one["HostConfig"] for name, one in ours.items()}

    for name, host in hosts.items():
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"], name
        assert host["PidsLimit"], name


def test_ports_are_published_on_loopback_only(deployed: Deployed):
    published = {
        (name, bound["HostIp"])
        for name, one in containers(deployed).items()
        for ports in one["NetworkSettings"]["Ports"].values()
        for bound in ports or ()
    }

    assert {address for _, address in published} == {"127.0.0.1"}, published
    assert not {name for name, _ in published} & {"redis", "postgres"}


def test_redis_keeps_what_it_has_confirmed_and_evicts_nothing(deployed: Deployed):
    def setting(name: str) -> str:
        said = deployed.compose("exec", "-T", "redis", "redis-cli", "config", "get", name)
        return said.split()[-1]

    assert setting("appendonly") == "yes"
    assert setting("maxmemory-policy") == "noeviction"
    assert int(setting("maxmemory")) < containers(deployed)["redis"]["HostConfig"]["Memory"] / 2


def test_an_order_becomes_a_deal(deployed: Deployed):
    order = {"order_id": "o1", "title": "Two chairs", "amount": "4990"}
    result = result_of(deployed, ordered(deployed, "/orders", order))

    assert result["outcome"] == "created"
    assert deployed.ask("GET", f"{PORTAL}/_sandbox/summary")[1]["deals"] == 1


def test_a_video_is_paid_made_and_delivered(deployed: Deployed):
    deployed.command("credits", "grant", "7", "10", "--reason", "a gift")
    order = {"order_id": "v1", "user_id": 7, "chat_id": 7, "prompt": "Let it spin"}
    photo = {"image_url": "https://example.com/vase.jpg"}
    result = result_of(deployed, ordered(deployed, "/videos", order | photo))

    messages = deployed.ask("GET", f"{TELEGRAM}/_sandbox/messages?kind=video")[1]
    assert result["outcome"] == "sent"
    assert len(messages) == 1
    assert json.loads(deployed.command("credits", "show", "7", "--json"))["balance"] == "9.00"


def test_bookmarks_are_crawled(deployed: Deployed):
    user = {"id": "7", "access_token": "a", "refresh_token": "r", "bookmarks": 200}
    deployed.ask("POST", f"{X}/_sandbox/users", [user])
    deployed.command("bookmarks", "authorize", "7", told="a r")
    result = result_of(deployed, ordered(deployed, "/crawls", {"user_id": "7"}))

    assert (result["outcome"], result["stored"]) == ("completed", 200)


def test_nothing_is_dead_and_every_queue_is_served(deployed: Deployed):
    """`/ready` waits for a canary in each queue, which beat sends every 30 s."""
    eventually(lambda: deployed.ask("GET", f"{API}/ready")[0] == 200, within=90, every=1)

    assert json.loads(deployed.command("dlq", "ls", "--json")) == []


def test_the_console_and_the_metrics_are_in_the_image(deployed: Deployed):
    status, page = deployed.ask("GET", f"{API}/console/")
    closed, _ = deployed.ask("GET", f"{API}/metrics")
    opened, figures = deployed.ask("GET", f"{API}/metrics", bearer=deployed.token)

    assert status == 200
    assert "<form" in page  # where one logs in
    assert closed == 401
    assert opened == 200
    assert "job_queue_length" in figures


def test_prometheus_reads_the_metrics_and_knows_the_alertmanager(deployed: Deployed):
    def scraped() -> bool:
        _, answer = deployed.ask("GET", f"{PROMETHEUS}/api/v1/query?query=job_queue_length")
        return bool(answer["data"]["result"])

    eventually(scraped, within=90, every=1)
    rules = deployed.ask("GET", f"{PROMETHEUS}/api/v1/rules")[1]["data"]["groups"]
    known = deployed.ask("GET", f"{PROMETHEUS}/api/v1/alertmanagers")[1]["data"]

    assert rules
    assert known["activeAlertmanagers"]
    assert deployed.ask("GET", f"{ALERTMANAGER}/api/v2/status")[0] == 200


def test_an_order_outlives_redis_and_the_worker(deployed: Deployed):
    """Both end as in a power cut, with a job in the queue; the volume has it."""
    deployed.compose("kill", "worker-bitrix")
    job = ordered(deployed, "/orders", {"order_id": "o2", "title": "A table"})
    deployed.compose("kill", "redis")
    deployed.compose("up", "--detach", "--no-build", "redis", "worker-bitrix")

    assert result_of(deployed, job)["outcome"] == "created"


def test_what_is_asked_to_end_ends_by_itself(deployed: Deployed):
    """Last, for it stops everything: no process of ours has to be killed (137)."""
    deployed.compose("stop")
    ends = {
        name: one["State"]["ExitCode"]
        for name, one in containers(deployed).items()
        if name.startswith(("worker-", "beat", "api"))
    }

    assert set(ends.values()) == {0}, ends
