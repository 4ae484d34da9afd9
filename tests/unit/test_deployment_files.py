"""What runs in containers agrees with the settings, the queues and the deadlines it rests on."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from deployment.engine import IMAGES, ROOT

from config import services, settings_page
from config.settings import settings
from reliability.transport import Channel

KUBERNETES = ROOT / "deploy/kubernetes"
QUEUES = sorted(settings().queues)
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
OBJECTS = [
    document
    for file in sorted(KUBERNETES.glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]


def of(kind: str) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == kind}


PODS = {
    name: one["spec"]["template"]["spec"]
    for kind in ("Deployment", "Job")
    for name, one in of(kind).items()
}


@pytest.mark.parametrize("queue", QUEUES)
def test_each_queue_has_a_worker_of_its_own(queue: str):
    name = f"worker-{queue}"
    (container,) = PODS[name]["containers"]

    assert f"--queues {queue} " in COMPOSE["services"][name]["command"]
    assert container["command"][4:6] == ["--queues", queue]


def test_no_worker_is_for_a_queue_that_is_none():
    workers = {name for name in (*COMPOSE["services"], *PODS) if name.startswith("worker-")}

    assert workers == {f"worker-{queue}" for queue in QUEUES}


@pytest.mark.parametrize("queue", QUEUES)
def test_a_worker_is_given_the_time_of_three_calls_to_end(queue: str):
    longest = 3 * services.telegram(settings()).lease  # of one job; every other call ends sooner
    name = f"worker-{queue}"

    assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) >= longest
    assert PODS[name]["terminationGracePeriodSeconds"] >= longest


def test_workers_are_scaled_by_lists_that_the_transport_fills():
    lists = {
        queue: [queue, *(f"{queue}{Channel.sep}{step}" for step in Channel.priority_steps if step)]
        for queue in QUEUES
    }
    scaled = {
        name.removeprefix("worker-"): [one["metadata"]["listName"] for one in spec["triggers"]]
        for name, spec in ((name, one["spec"]) for name, one in of("ScaledObject").items())
    }

    for queue, watched in scaled.items():
        assert watched[0] == queue  # the list of all that is not in the background
        assert set(watched) <= set(lists[queue])
    assert set(scaled) == set(QUEUES) - {"upkeep"}


def test_what_is_scaled_does_not_say_itself_how_many_there_are():
    """`kubectl apply` would set them back each time."""
    deployments = of("Deployment")

    assert not [name for name in of("ScaledObject") if "replicas" in deployments[name]["spec"]]


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_may_do_and_write_as_little_as_it_needs(name: str):
    pod = PODS[name]
    (container,) = pod["containers"]
    box = container["securityContext"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert box["readOnlyRootFilesystem"]
    assert box["allowPrivilegeEscalation"] is False
    assert box["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["limits"]["memory"]
    assert "livenessProbe" in container or pod["restartPolicy"] == "Never"


def test_a_pod_runs_as_the_user_of_the_image():
    (uid,) = re.findall(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text("utf-8"))

    assert {pod["securityContext"]["runAsUser"] for pod in PODS.values()} == {int(uid)}


def test_the_configuration_of_the_pods_names_settings_only():
    named = {*of("ConfigMap")["perennial"]["data"], *of("Secret")["perennial"]["stringData"]}

    assert named <= set(settings_page.variables())


def test_what_a_budget_or_a_service_selects_is_there():
    """A misspelt selector selects nothing, and says nothing."""
    labels = {
        one["metadata"]["name"]: one["metadata"]["labels"] for one in of("Deployment").values()
    }
    names = {one["app.kubernetes.io/name"] for one in labels.values()}
    selected = {
        *(one["spec"]["selector"]["app.kubernetes.io/name"] for one in of("Service").values()),
        of("PodDisruptionBudget")["api"]["spec"]["selector"]["matchLabels"][
            "app.kubernetes.io/name"
        ],
    }
    (among,) = of("PodDisruptionBudget")["workers"]["spec"]["selector"]["matchExpressions"]

    assert set(labels) == names
    assert selected <= names
    assert set(among["values"]) == {name for name in names if name.startswith("worker-")}


def test_commands_are_typed_where_there_is_a_container():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "docker-compose.yml"]
    told = {
        name
        for page in pages
        for name in re.findall(r"docker compose exec (?:-T )?([\w-]+)", page.read_text("utf-8"))
    }

    assert "api" in told
    assert told <= set(COMPOSE["services"])


def test_every_image_of_others_has_a_stand_in():
    foreign = {
        one["image"]
        for one in COMPOSE["services"].values()
        if not one["image"].startswith("perennial:")
    }

    assert foreign == set(IMAGES.values())


def test_everything_on_one_host_fits_the_connections_of_postgresql():
    """A second worker of each upstream included."""
    from storage.database import CONNECTIONS

    ours = sum("DATABASE_URL" in one.get("environment", {}) for one in COMPOSE["services"].values())
    (allowed,) = re.findall(r"max_connections=(\d+)", COMPOSE["services"]["postgres"]["command"])

    assert ours * CONNECTIONS < int(allowed)
