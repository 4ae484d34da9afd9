"""pytest-celery's nodes: one set-up, on processes and, where there is an engine, on Docker."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from acceptance.system import PATIENCE, QUICK, RATE, Portal
from acceptance.visits import new_order, opened
from fixtures.nodes import Plant, Setup, docker_plant, local_plant, no_engine
from fixtures.waiting import eventually
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryWorkerCluster,
)

from sandbox.stack import Stack

OPTIONS = ("--without-mingle", "--without-gossip")
DOCKER = pytest.param("docker", marks=pytest.mark.services)


@pytest.fixture(scope="module", params=["processes", DOCKER])
def plant(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Plant]:
    if request.param == "processes":
        site: Stack = request.getfixturevalue("site")
        with opened(tmp_path_factory.mktemp("plant"), site) as system:
            yield local_plant(system.stack, site, *OPTIONS)
    elif why := no_engine():
        # Never a failure, not even with REQUIRE_SERVICES=1: the same tests run on processes.
        pytest.skip(why)
    else:
        with docker_plant(QUICK | RATE, *OPTIONS) as made:
            yield made
    gc.collect()  # results give back their connections while there is somebody to give them to


@pytest.fixture
def portal(plant: Plant) -> Portal:
    return Portal(plant.portal, plant.webhook)


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return Setup


@pytest.fixture
def celery_broker_cluster(plant: Plant) -> CeleryBrokerCluster:
    return CeleryBrokerCluster(plant.broker)


@pytest.fixture
def celery_backend_cluster(plant: Plant) -> CeleryBackendCluster:
    return CeleryBackendCluster(plant.backend)


@pytest.fixture
def celery_worker_cluster(plant: Plant, celery_setup_app) -> CeleryWorkerCluster:
    return CeleryWorkerCluster(plant.worker_node(celery_setup_app))


def create(setup: CeleryTestSetup, count: int) -> dict[str, object]:
    """Send *count* creates; return their results by order."""
    orders = [f"node-{new_order()}" for _ in range(count)]
    return {
        order: setup.app.send_task("bitrix.create_deal", kwargs={"order_id": order, "title": "x"})
        for order in orders
    }


def deals(results: dict[str, object], portal: Portal) -> list[tuple[str, int]]:
    """The outcome of each, and how many deals it has in the portal."""
    return [
        (result.get(timeout=PATIENCE)["outcome"], len(portal.rows("deal", order)))
        for order, result in results.items()
    ]


def test_the_set_up_is_ready_and_does_its_job(celery_setup: CeleryTestSetup, portal: Portal):
    assert celery_setup.ready(control=True)
    assert deals(create(celery_setup, 3), portal) == [("created", 1)] * 3


def test_jobs_survive_a_killed_worker(celery_setup: CeleryTestSetup, portal: Portal):
    portal.arm({"kind": "slow", "seconds": 1.0, "after": True, "method": "*", "times": 1})
    results = create(celery_setup, 6)
    eventually(portal.fired, within=PATIENCE)
    celery_setup.worker.kill()
    results |= create(celery_setup, 2)
    celery_setup.worker.restart()
    outcomes = deals(results, portal)

    assert {number for _, number in outcomes} == {1}
    assert {outcome for outcome, _ in outcomes} <= {"created", "adopted"}


def test_a_worker_survives_a_restarted_broker(celery_setup: CeleryTestSetup, portal: Portal):
    before = create(celery_setup, 3)
    outcomes = deals(before, portal)
    celery_setup.broker.kill()
    celery_setup.worker.wait_for_log("Connection to broker lost")
    celery_setup.broker.restart()
    outcomes += deals(create(celery_setup, 3), portal)

    assert outcomes == [("created", 1)] * 6
    assert celery_setup.worker.container.status == "running"
