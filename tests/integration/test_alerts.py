"""Alert rules, the example of an Alertmanager and the dashboard: checked by their own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from reliability.connection import TIMEOUTS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
CASES = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]
PANELS = [
    panel
    for panel in json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"]
    if panel["type"] != "row"
]
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
STEPS = ["Detect", "Triage", "Mitigate", "Resolve", "Post-mortem"]
OF_PROMETHEUS = {"up"}


def documented() -> set[str]:
    """Every series that docs/metrics.md promises."""
    page = (ROOT / "docs/metrics.md").read_text()
    names = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE))
    return names | {"job_duration_seconds_bucket", "job_duration_seconds_count"}


def series_in(expression: str) -> set[str]:
    """The series that an expression reads: words that are neither functions nor labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(by|without)\s*\([^)]*\)", "", bare)
    words = set(re.findall(r"[a-z_]+[a-z](?!\w)(?!\s*\()", bare))
    return words - {"and", "or", "offset"}


def run(*command: str, cwd: Path = DEPLOY) -> str:
    if shutil.which(command[0]) is None:
        missing = f"{command[0]} is not installed (Debian: prometheus, prometheus-alertmanager)"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(missing)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.services
def test_the_rules_are_sound_and_fire_when_they_should_and_only_then():
    run("promtool", "check", "rules", "--lint=all", "prometheus/alerts.yml")
    run("promtool", "test", "rules", "alerts_test.yml", cwd=DEPLOY / "prometheus")


@pytest.mark.services
def test_the_configurations_are_sound(tmp_path):
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    token = tmp_path / "token"
    token.write_text("t")
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/admin_token", str(token)))
    (tmp_path / "alerts.yml").write_text((DEPLOY / "prometheus/alerts.yml").read_text())

    run("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
    run("amtool", "check-config", "alertmanager/alertmanager.yml")


def test_a_scrape_waits_for_the_news_that_redis_is_silent():
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["global"]
    timeout, interval = (
        int(scrape[f"scrape_{name}"].removesuffix("s")) for name in ("timeout", "interval")
    )

    assert TIMEOUTS["socket_timeout"] < timeout <= interval


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_is_tested_both_ways(rule):
    told = [
        bool(check["exp_alerts"])
        for case in CASES
        for check in case["alert_rule_test"]
        if check["alertname"] == rule["alert"]
    ]

    assert set(told) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_tells_how_bad_it_is_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url"} <= set(rule["annotations"])
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_section_in_the_runbook(rule):
    section = re.search(
        rf"^## {rule['alert']}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL
    )

    assert section is not None
    assert re.findall(r"^\*\*([\w-]+)\.\*\*", section[1], re.MULTILINE) == STEPS


def test_the_runbook_has_no_section_of_an_alert_that_is_none():
    sections = set(re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE))

    assert sections - {"Post-mortem"} == {rule["alert"] for rule in RULES}


def test_every_command_of_the_runbook_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = project["entry-points"]["celery.commands"]
    named = set(re.findall(r"celery -A tasks ([a-z]+)", RUNBOOK))

    assert named <= {*ours, "worker", "beat", "flower", "inspect", "control"}
    assert {"dlq", "gate", "parked", "doctor"} <= named


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_reads_what_there_is(rule):
    assert series_in(rule["expr"])
    assert series_in(rule["expr"]) <= documented() | OF_PROMETHEUS


@pytest.mark.parametrize("name", QUERIES)
def test_every_panel_reads_what_there_is(name):
    assert series_in(QUERIES[name])
    assert series_in(QUERIES[name]) - {"vector"} <= documented()


def test_every_metric_has_a_place_on_the_dashboard_or_in_an_alert():
    read = set().union(*map(series_in, [*QUERIES.values(), *(rule["expr"] for rule in RULES)]))
    read |= {name.removesuffix("_bucket") for name in read}

    assert documented() - read - {"job_duration_seconds_count"} == set()


@pytest.mark.services
def test_every_query_of_the_dashboard_can_be_read(tmp_path):
    records = [
        {"record": f"panel_{number}", "expr": expression}
        for number, expression in enumerate(QUERIES.values())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}))

    run("promtool", "check", "rules", str(file))


def test_panels_do_not_lie_upon_each_other():
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }

        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
