"""The rules of the house that a machine can read out of the sources."""

from __future__ import annotations

import ast
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from classifiers.errors import Duplicate, UserError, kinds
from clients import bitrix as portal
from clients import coalescing
from config import messages, services
from config.policies import DAY, LATE_AFTER, MONTH, PAID, POLICIES, TASKS, Action, row_for
from config.settings import Destination, Settings
from storage import database

ROOT = Path(__file__).parents[2]
# Right to left as DESIGN draws it: a layer may import those before it, never one of its own level.
LAYERS = (
    {"classifiers"},
    {"config"},
    {"storage", "reliability"},
    {"clients"},
    {"tasks", "celeryconfig"},
    {"admin"},
    {"sandbox", "flowerconfig"},
)
LEVEL = {package: level for level, layer in enumerate(LAYERS) for package in layer}

# A body says what to do, and the base what a failure means; each exception to that has its reason.
MAY_TRY = {
    "tasks.base": "turns failures into decisions",
    "tasks.failures": "signal handlers: Celery swallows what they raise, and the job with it",
    "tasks.payloads": "turns what pydantic complains about into a fact of ours",
    "tasks.dry_run": "that a payload cannot be read is an answer there",
    "tasks.compensation": "what cannot be sent now is sent by the upkeep",
    "tasks.caretaker": "a thread that ended would leave its worker uncared for",
    "tasks.schedule": "beat goes on where Redis is away",
    "tasks.lifecycle": "waits for a database that starts together with the worker",
    "tasks.reports": "a job ends as it would without Sentry",
    "tasks.traces": "takes back what it has set",
}
MAY_PRINT = {"tasks.lifecycle": "logging is not set up yet"}
MAY_READ_THE_ENVIRONMENT = {
    "config.settings": "where every variable is documented",
    "tasks.base": "FORKED_BY_MULTIPROCESSING is a mark that Celery sets, no setting",
}


def sources() -> dict[str, ast.Module]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in LEVEL:
        place = ROOT / package
        files = place.rglob("*.py") if place.is_dir() else [ROOT / f"{package}.py"]
        for file in filter(Path.exists, files):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


SOURCES = sources()


def imported(module: str) -> Iterator[str]:
    """The modules that *module* names in an import, wherever it stands."""
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else str(node.module)


def users(library: str) -> set[str]:
    return {module for module in SOURCES if library in {n.split(".")[0] for n in imported(module)}}


def outside(modules: set[str], *packages: str) -> list[str]:
    return sorted(module for module in modules if module.split(".")[0] not in packages)


def calls(module: str, *names: str) -> bool:
    """Whether *module* mentions one of these dotted names."""
    return any(
        isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in names
        for node in ast.walk(SOURCES[module])
    )


# -- who may import whom


def test_the_sources_are_found():
    assert {name.split(".")[0] for name in SOURCES} >= set(LEVEL) - {"flowerconfig"}
    assert {"tasks", "tasks.bitrix", "config.policies", "clients.http"} <= set(SOURCES)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_go_one_way(module):
    package = module.split(".")[0]
    others = {name.split(".")[0] for name in imported(module)} & set(LEVEL) - {package}
    wrong = {other for other in others if LEVEL[other] >= LEVEL[package]}

    assert not wrong, f"{module} must not import {wrong}"


def test_no_module_imports_itself_in_a_circle():
    graph = {module: set(imported(module)) & set(SOURCES) - {module} for module in SOURCES}

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_clients_and_their_classifiers_know_httpx():
    assert outside(users("httpx"), "clients", "classifiers", "sandbox") == []


def test_only_reliability_knows_redis():
    assert outside(users("redis"), "reliability", "sandbox") == []


def test_only_settings_read_the_environment():
    readers = {
        module
        for module in SOURCES
        if calls(module, "os.environ", "os.getenv", "environ", "getenv", "os.environb")
    }

    assert (
        readers - set(MAY_READ_THE_ENVIRONMENT) - {m for m in readers if m[:7] == "sandbox"}
        == set()
    )


def test_nobody_prints_where_a_log_is_read():
    printers = {module for module in SOURCES if calls(module, "print")}

    assert outside(printers - set(MAY_PRINT), "sandbox") == []


# -- errors and policies


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_travels_with_its_facts_and_has_a_policy(kind):
    own = {Duplicate: {"existing_id": "7"}, UserError: {"reason": "bad_photo"}}.get(kind, {})
    error = kind(
        "why", service="bitrix", operation="crm.deal.add", code="X", retry_after=1.0, **own
    )

    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    assert row_for(kind)


def test_every_wait_fits_into_its_budget_and_every_budget_into_a_day_or_a_persons_month():
    for row in [*POLICIES.values(), *(row for rows in TASKS.values() for row in rows.values())]:
        longest = row.backoff.cap * (1 + row.backoff.jitter)

        assert 0 < row.backoff.delay(0, 0.0) <= longest < row.budget
        assert row.budget <= DAY or row.budget == MONTH
        assert row.backoff.jitter > 0


# -- tasks

REPORT = """
import inspect
import json
from classifiers.errors import JobError, kinds
from tasks import app
from tasks.base import Job, Operation
app.loader.import_default_modules()
app.finalize()
from tasks.telegram import BUTTONS
from tasks.video import message_for
operations = {
    name: {
        "body": inspect.unwrap(task.run).__module__ + "." + inspect.unwrap(task.run).__name__,
        "adopts": task.adopt is not None,
        "asks_for_patience": task.ask_for_patience is not None,
        "compensation": task.compensation,
        "recurring": task.recurring,
        "amends": list(task.amends(JobError, Job("7"), {})),
        "queue": app.amqp.router.route({}, name)["queue"].name,
        "schema": task.payload.model.model_json_schema(mode="serialization"),
        "arguments": [
            p.kind is p.POSITIONAL_OR_KEYWORD and p.annotation is not p.empty
            for p in task.payload.signature.parameters.values()
        ],
    }
    for name, task in app.tasks.items() if isinstance(task, Operation)
}
print(json.dumps({
    "operations": operations,
    "plain": [name for name, task in app.tasks.items() if not isinstance(task, Operation)],
    "queues": list(app.amqp.queues),
    "buttons": {message: label for message, (label, _) in BUTTONS.items()},
    "reported": [message_for(name, k.__name__, k.category) for name in operations for k in kinds()],
}))
"""


@pytest.fixture(scope="module")
def registered() -> dict:
    """What a worker would know, asked in a process of its own: Celery is configured once."""
    environment = {"REDIS_URL": "redis://nowhere.invalid:1/0", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", REPORT],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def decorated() -> Iterator[tuple[str, ast.FunctionDef, ast.Call]]:
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            for decorator in getattr(node, "decorator_list", []):
                call = decorator if isinstance(decorator, ast.Call) else ast.Call(decorator, [], [])
                if ast.unparse(call.func) in {"operation", "app.task", "shared_task"}:
                    yield module, node, call


def test_every_task_says_its_name_on_the_wire():
    found = list(decorated())

    assert {function.name for _, function, _ in found} >= {"create_deal", "handle_webhook"}
    for module, function, call in found:
        name = {k.arg: k.value for k in call.keywords}.get("name")

        assert isinstance(name, ast.Constant), f"{module}.{function.name} has no name="
        assert all(part.isidentifier() for part in name.value.split(".", 1)), name.value
        assert "." in name.value


def test_every_task_is_where_its_name_says(registered):
    for name, task in registered["operations"].items():
        assert task["body"] == f"tasks.{name}"


def test_every_argument_of_a_task_is_checked_and_fits_into_json(registered):
    for name, task in registered["operations"].items():
        assert task["arguments"] or task["recurring"], name
        assert all(task["arguments"]), name
        assert task["schema"]["additionalProperties"] is False, name


def test_no_stock_task_slipped_in(registered):
    assert [name for name in registered["plain"] if not name.startswith("celery.")] == []


def test_every_row_of_a_task_is_about_a_task_that_exists(registered):
    assert set(TASKS) <= set(registered["operations"])


def test_every_task_that_adopts_knows_how(registered):
    for name, rows in TASKS.items():
        adopts = any(row.action is Action.ADOPT for row in rows.values())

        assert registered["operations"][name]["adopts"] == adopts, name


def compensated(registered) -> dict[str, dict]:
    """Each task that has a compensation, with that."""
    operations = registered["operations"]
    return {
        name: operations[task["compensation"]]
        for name, task in operations.items()
        if task["compensation"]
    }


def test_every_compensation_is_a_task_that_takes_what_it_is_told(registered):
    for name, compensation in compensated(registered).items():
        told = registered["operations"][name]["amends"]

        assert set(compensation["schema"]["properties"]) == set(told), name
        assert set(compensation["schema"]["required"]) <= set(told), name


def test_no_compensation_needs_one_itself(registered):
    assert not [name for name, task in compensated(registered).items() if task["compensation"]]


def test_what_is_paid_for_is_made_good_and_nobody_else_waits_like_it(registered):
    paid = {name for name, rows in TASKS.items() if PAID.items() <= rows.items()}

    assert paid == set(compensated(registered))


def test_only_who_has_paid_is_asked_for_patience(registered):
    asking = {name for name, task in registered["operations"].items() if task["asks_for_patience"]}

    assert asking <= set(compensated(registered))
    assert "video.generate" in asking


def test_every_task_has_a_queue_and_every_queue_an_upstream(registered):
    routed = {task["queue"] for task in registered["operations"].values()}

    assert routed <= set(registered["queues"])
    assert set(registered["queues"]) == set(Settings().queues)
    # Each destination of messages is an upstream of its own.
    others = {"upkeep", "integration"}
    assert set(registered["queues"]) - others <= {service.name for service in SERVICES}


def test_every_task_is_in_the_queue_of_whom_it_calls(registered):
    names = registered["operations"].items()
    queues = {name: task["queue"] for name, task in names if not name.startswith("bitrix.")}

    assert queues == {
        "video.generate": "kie",
        "video.handle_callback": "kie",
        "video.make_good": "kie",
        "video.send": "telegram",
        "video.handle_press": "telegram",
        "telegram.notify": "telegram",
        "bookmarks.crawl": "x",
        "bookmarks.cancel": "x",
        "integration.deliver": "integration",
        "replay.ramp": "upkeep",
        "upkeep.trim": "upkeep",
        "upkeep.compensate": "upkeep",
        "upkeep.ramps": "upkeep",
        "upkeep.canary": "upkeep",
    }
    assert {task["queue"] for name, task in names if name.startswith("bitrix.")} == {"bitrix"}


def test_task_bodies_do_not_catch():
    catching = {
        module
        for module, tree in SOURCES.items()
        if module.split(".")[0] == "tasks"
        and any(isinstance(node, ast.Try | ast.TryStar) for node in ast.walk(tree))
    }

    assert catching - set(MAY_TRY) == set()


def test_no_module_that_has_tasks_may_catch():
    assert {module for module, *_ in decorated()} & set(MAY_TRY) == set()


def test_task_bodies_hold_no_numbers():
    for module in {module for module, *_ in decorated()}:
        functions = [n for n in ast.walk(SOURCES[module]) if isinstance(n, ast.FunctionDef)]
        numbers = [
            f"{module}:{node.lineno}: {node.value}"
            for function in functions
            for statement in function.body
            for node in ast.walk(statement)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, int | float)
            and node.value not in {0, 1}
        ]

        assert numbers == []


# -- what users read


def literal(module: str, node: ast.expr) -> Iterator[str]:
    """The text of *node*: a literal, or one that the module gives a name."""
    if isinstance(node, ast.Name):
        for statement in SOURCES[module].body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == node.id:
                yield from literal(module, statement.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def given(beginning: str, place: int, keyword: str = "") -> set[str]:
    """The texts that calls with this *beginning* pass on, at this place or by this keyword."""
    return {
        text
        for module, tree in SOURCES.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call).startswith(beginning)
        for node in [
            *call.args[place : place + 1],
            *(each.value for each in call.keywords if each.arg == keyword),
        ]
        for text in literal(module, node)
    }


def answers() -> set[str]:
    """What is said to somebody who presses a button."""
    words = {
        node.value for node in ast.walk(SOURCES["tasks.video"]) if isinstance(node, ast.Constant)
    }
    return {word for word in words if isinstance(word, str) and word.startswith("press_")}


REASONS = {
    *given("_user(", 0),
    *given("Meaning(UserError", 1),
    *given("UserError(", 1, "reason"),
}


def test_every_word_to_a_user_has_a_text_and_no_text_is_left_over(registered):
    told = {
        *REASONS - {"recipient_unreachable"},  # whom it is about would not read it
        *registered["buttons"],
        *registered["buttons"].values(),
        *registered["reported"],
        *given("inform(", 2),
        *given("messages.text(", 0),
        *answers(),
    }

    assert told == set(messages._language("en").texts) == set(messages._language("ru").texts)


def test_whoever_cannot_be_reached_is_told_nothing():
    assert "recipient_unreachable" in REASONS
    assert not messages.has("recipient_unreachable")


# -- numbers that have to agree

BUILDERS = (services.bitrix, services.kie, services.kie_queries, services.telegram, services.x)
SERVICES = [build(Settings()) for build in BUILDERS]
BITRIX, KIE, KIE_QUERIES, TELEGRAM, X = SERVICES
LAB = services.integration("lab", Destination(url="https://fhir.example.com"))


@pytest.fixture(params=[*SERVICES, LAB], ids=lambda service: service.name)
def service(request) -> services.Service:
    return request.param


def test_every_upstream_has_a_gate_of_its_own():
    assert [service.name for service in services.services()] == [s.name for s in SERVICES]
    assert len({service.name for service in SERVICES}) == len(SERVICES)


def test_a_lease_outlives_every_call_it_covers(service):
    sent_by = service.patience  # the coalescer turns away what waits longer
    called = sent_by + 2 * service.connect_timeout + service.read_timeout

    assert service.lease > called
    assert service.patience > service.max_wait > coalescing.LINGER
    assert service.lease > called + database.PATIENCE  # and the way back to the database


def test_a_request_may_take_as_long_as_the_upstream_gives_it():
    assert BITRIX.read_timeout > 60  # UPSTREAMS 1.1
    assert TELEGRAM.read_timeout >= 60  # UPSTREAMS 3.4: generous, for uploads


def test_a_wait_for_a_predecessor_is_shorter_than_a_lease():
    assert BITRIX.lease > services.PREDECESSOR_GRACE


@pytest.mark.parametrize(
    ("service", "seconds", "most"),
    [
        pytest.param(KIE, 10 + 1, 20, id="kie"),  # UPSTREAMS 2.1; a second for calls that bunch
        pytest.param(KIE_QUERIES, 1, 10, id="kie-queries"),  # UPSTREAMS 2.1
        pytest.param(TELEGRAM, 1, 30, id="telegram"),  # UPSTREAMS 3.2
    ],
)
def test_no_span_of_time_holds_more_requests_than_an_upstream_takes(service, seconds, most):
    assert math.floor(service.rate * seconds) + service.burst <= most


def test_a_chat_gets_no_more_messages_than_telegram_takes():
    assert services.PRIVATE_PACE > 1  # UPSTREAMS 3.2
    assert 60 / services.GROUP_PACE < 20
    assert TELEGRAM.max_wait > services.PRIVATE_PACE  # a second message needs no second run


def test_a_generation_is_given_up_when_it_is_old_and_not_before():
    assert 600 <= services.GENERATION_DEADLINE <= 900  # UPSTREAMS 2.1
    assert services.VISIBLE_WITHIN >= 90  # UPSTREAMS 2.2
    assert services.VISIBLE_WITHIN + services.POLL_SLOWLY < services.GENERATION_DEADLINE
    assert services.CALLED_BACK_WITHIN >= services.GENERATION_DEADLINE
    assert KIE.lease < services.CALLED_BACK_WITHIN


def test_a_user_hears_of_a_slow_generation_before_it_is_given_up():
    assert LATE_AFTER + services.POLL_SLOWLY < services.GENERATION_DEADLINE


def test_a_batch_fits_what_a_portal_takes():
    assert BITRIX.ops_per_permit <= portal.PAGE
    assert 2 * portal.FINDS <= portal.PAGE
    assert portal.OPERATING_PAUSE < portal.OPERATING_WINDOW < DAY
