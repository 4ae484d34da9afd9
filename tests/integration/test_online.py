"""`doctor --online`: each upstream is asked whether it takes our credential, and hears no more."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fixtures.api import forget

from admin.cli.doctor import doctor
from admin.upstreams import CHECKS
from clients import bitrix, fhir, kie, telegram, x
from config import services
from config.settings import settings
from reliability.gate import Gate, states
from reliability.redaction import redaction
from sandbox.redis_server import free_port
from sandbox.stack import Stack
from storage import credentials

TOKEN = secrets.token_hex(12)
# What each upstream is asked, and where its credential is set.
QUESTIONS = {
    "bitrix": ("scope", "BITRIX_WEBHOOK_URL"),
    "kie": ("credit", "KIE_API_KEY"),
    "telegram": ("getMe", "TELEGRAM_BOT_TOKEN"),
    "x": ("token", "X_CLIENT_SECRET"),
    "integration-lab": ("metadata", "INTEGRATION_DESTINATIONS"),
}
PORTS = {"bitrix": "portal", "integration-lab": "lab"}  # where the stack has another word
CLIENTS = (bitrix.portal, fhir.destinations, kie.kie, telegram.telegram, x.x)


def destinations(port: int, token: str = TOKEN) -> str:
    return json.dumps({"lab": {"url": f"http://127.0.0.1:{port}/r4", "token": token}})


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Stack]:
    """Every upstream, and nobody who asks them anything but the doctor."""
    stack = Stack(tmp_path_factory.mktemp("online"))
    port = stack.ports["lab"] = free_port()
    stack.env["INTEGRATION_DESTINATIONS"] = destinations(port)
    stack.start_portal("--latency", "0")
    stack.start_kie("--credits", "1250000")
    stack.start_telegram()
    stack.start_x()
    command = [*(sys.executable, "-m", "sandbox.fhir", "--port", str(port)), "--token", TOKEN]
    lab = stack.process("fhir", command)
    lab.start()
    lab.wait_for(lambda: lab.says("http://"), "its address")
    yield stack
    stack.stop(signal.SIGKILL, keep_files=True)


class Clinic:
    """A host that knows all upstreams, to be set up otherwise; and the upstreams themselves."""

    def __init__(self, site: Stack, environment: pytest.MonkeyPatch) -> None:
        self.site = site
        self._environment = environment

    def set_up(self, **env: str) -> None:
        """Be a host with these settings instead."""
        for name, value in env.items():
            self._environment.setenv(name, value)
        forget()
        redaction.cache_clear()
        for client in CLIENTS:
            client.close()

    def told(self) -> dict[str, tuple[str, str]]:
        """What the doctor says of each upstream: its state, and the words with the advice."""
        found = [finding for check in CHECKS for finding in check()]
        parts = [(each, *each.found.partition(": ")) for each in found]
        return {name: (at.state, f"{words} {at.advice}".strip()) for at, name, _, words in parts}

    def address(self, name: str) -> str:
        return self.site.url(PORTS.get(name, name))

    def control(self, verb: str, name: str, what: str, **body: Any) -> Any:
        url = f"{self.address(name)}/_sandbox/{what}"
        return httpx.request(verb, url, trust_env=False, **body).raise_for_status().json()

    def asked(self) -> dict[str, dict[str, int]]:
        """How often which upstream was asked what, since it began."""
        return {name: self.control("GET", name, "summary")["by_method"] for name in QUESTIONS}

    def arm(self, name: str, **fault: Any) -> None:
        self.control("POST", name, "faults", json=[fault])


@pytest.fixture
def clinic(site: Stack, api_settings: pytest.MonkeyPatch) -> Iterator[Clinic]:
    clinic = Clinic(site, api_settings)
    ours = {"DATABASE_URL", "SPOOL_DIR"}  # the shared Redis and a database of this test
    clinic.set_up(**{name: value for name, value in site.env.items() if name not in ours})
    yield clinic
    for name in QUESTIONS:
        clinic.control("DELETE", name, "faults")
    api_settings.undo()
    clinic.set_up()


def gate(redis_client, name: str) -> Gate:
    return Gate(redis_client, next(each for each in services.services() if each.name == name))


def refused(clinic: Clinic) -> dict[str, str]:
    """Credentials that no upstream takes."""
    return {
        "BITRIX_WEBHOOK_URL": f"{clinic.address('bitrix')}/rest/1/{secrets.token_hex(8)}/",
        "KIE_API_KEY": secrets.token_hex(16),
        "TELEGRAM_BOT_TOKEN": f"123:{secrets.token_urlsafe(24)}",
        "X_CLIENT_SECRET": secrets.token_hex(24),
        "INTEGRATION_DESTINATIONS": destinations(clinic.site.ports["lab"], secrets.token_hex(9)),
    }


def states_of(told: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {name: told[name][0] for name in QUESTIONS}


def test_an_upstream_that_takes_its_credential_is_ok_and_asked_once(clinic):
    before = clinic.asked()

    told = clinic.told()

    assert states_of(told) == dict.fromkeys(QUESTIONS, "ok")
    assert "may use the CRM" in told["bitrix"][1]
    assert "1,250,000 credits" in told["kie"][1]
    assert "@sandbox_bot" in told["telegram"][1]
    assert "takes our app" in told["x"][1]
    assert "FHIR 4.0.1" in told["integration-lab"][1]
    after = clinic.asked()
    for name, (question, _) in QUESTIONS.items():
        assert after[name] == {**before[name], question: before[name].get(question, 0) + 1}


def test_a_refused_credential_is_a_problem_and_held_for_nobody_else(clinic, redis_client):
    clinic.set_up(**refused(clinic))

    told = clinic.told()

    assert states_of(told) == dict.fromkeys(QUESTIONS, "problem")
    for name, (_, variable) in QUESTIONS.items():
        assert variable in told[name][1]
        if name != "x":  # it is not a credential of a user that X refuses
            assert told[name][1].startswith("refuses our credential: ")
    assert {at.state for at in states(redis_client, services.services())} == {"closed"}


def taken(clinic: Clinic) -> None:
    """Leave all as it is."""


def with_wrong_ones(clinic: Clinic) -> None:
    clinic.set_up(**refused(clinic))


def echoed(clinic: Clinic) -> None:
    """Have every upstream say in its refusal what it was sent."""
    env = clinic.site.env
    codes = {"bitrix": "INVALID_CREDENTIALS", "kie": "401", "integration-lab": "login"}
    codes |= {"telegram": "unauthorized", "x": "invalid_client"}
    said = " ".join((clinic.site.code, env["KIE_API_KEY"], env["TELEGRAM_BOT_TOKEN"], TOKEN))
    for name, code in codes.items():
        clinic.arm(name, kind="error", code=code, description=f"{said} {env['X_CLIENT_SECRET']}")


@pytest.mark.parametrize("prepare", [taken, with_wrong_ones, echoed])
@pytest.mark.parametrize("options", [["--online"], ["--online", "--json"]], ids=["table", "json"])
def test_no_secret_is_shown(clinic, caplog, prepare, options):
    prepare(clinic)

    done = CliRunner().invoke(doctor, options)

    said = " ".join(done.output.split())
    assert ("takes our key" if prepare is taken else "refuses our credential") in said
    shown = done.output + caplog.text
    assert [secret for secret in settings().secrets if secret in shown] == []


def test_without_the_option_nobody_is_asked(clinic):
    before = clinic.asked()

    done = CliRunner().invoke(doctor, ["--json"])

    names = {finding["name"] for finding in json.loads(done.stdout)}
    assert names & {"upstreams", "users"} == set()
    assert "redis" in names
    assert clinic.asked() == before


def test_a_403_is_a_problem_whoever_says_it_and_pauses_nobody(clinic, redis_client):
    for name in QUESTIONS:
        clinic.arm(name, kind="status", status=403)

    assert states_of(clinic.told()) == dict.fromkeys(QUESTIONS, "problem")
    assert {at.state for at in states(redis_client, services.services())} == {"closed"}


def test_one_that_is_not_reached_is_a_problem_and_keeps_no_other_from_being_asked(clinic):
    nowhere = f"http://127.0.0.1:{free_port()}"
    clinic.set_up(
        BITRIX_WEBHOOK_URL=f"{nowhere}/rest/1/{clinic.site.code}/",
        TELEGRAM_BASE_URL=nowhere,
        X_BASE_URL=nowhere,
        INTEGRATION_DESTINATIONS=destinations(free_port()),
    )

    told = clinic.told()

    said = {name: (state, words.partition(":")[0]) for name, (state, words) in told.items()}
    assert said.pop("kie")[0] == "ok"
    assert {said[name] for name in said if name in QUESTIONS} == {("problem", "cannot be reached")}


def test_one_that_is_ill_is_a_problem_and_its_jobs_wait(clinic):
    clinic.arm("telegram", kind="status", status=502)

    state, words = clinic.told()["telegram"]

    assert (state, words.partition(":")[0]) == ("problem", "is not well")


def test_behind_a_paused_gate_nobody_is_asked(clinic, redis_client):
    gate(redis_client, "telegram").pause("anna", "their maintenance")
    before = clinic.asked()["telegram"]

    state, words = clinic.told()["telegram"]

    assert state == "skipped"
    assert "their maintenance" in words
    assert clinic.asked()["telegram"] == before


def test_a_credential_that_is_held_was_refused_and_is_not_tried_again(clinic, redis_client):
    gate(redis_client, "kie-queries").hold_credential(clinic.site.env["KIE_API_KEY"], "401")
    before = clinic.asked()["kie"]

    state, words = clinic.told()["kie"]

    assert state == "problem"
    assert "celery -A tasks gate reset kie-queries" in words
    assert clinic.asked()["kie"] == before


def test_a_limit_that_is_reached_is_not_overrun(clinic, redis_client):
    bot = gate(redis_client, "telegram")
    bot.report_limited(bot.admit(), 60.0)
    before = clinic.asked()["telegram"]

    state, words = clinic.told()["telegram"]

    assert (state, words.partition(":")[0]) == ("skipped", "cannot be asked now")
    assert clinic.asked()["telegram"] == before


def test_a_limit_of_the_question_to_x_stops_no_user(clinic, redis_client):
    clinic.arm("x", kind="error", code="too_many_requests", seconds=60)

    assert clinic.told()["x"][0] == "skipped"
    assert gate(redis_client, "x").admit(subject="7").wait == 0.0


def test_an_account_without_credits_is_a_problem(clinic):
    clinic.control("POST", "kie", "settings", json={"credits": 0})
    try:
        state, words = clinic.told()["kie"]
    finally:
        clinic.control("POST", "kie", "settings", json={"credits": 1_250_000})

    assert state == "problem"
    assert "no credits are left" in words


def test_a_webhook_without_its_right_is_a_problem(clinic, tmp_path):
    other = Stack(tmp_path / "other")
    try:
        other.start_portal("--right", "user", "--right", "tasks")
        clinic.set_up(BITRIX_WEBHOOK_URL=other.env["BITRIX_WEBHOOK_URL"])
        state, words = clinic.told()["bitrix"]
    finally:
        other.stop(signal.SIGKILL)

    assert state == "problem"
    assert "may use user, tasks, and not crm" in words
    assert "BITRIX_WEBHOOK_URL" in words


def test_users_whose_access_is_lost_are_counted_without_asking_x(clinic):
    for user in ("1", "2", "3"):
        credentials.save("x", user, access_token=f"token-{user}")
    good = clinic.told()
    credentials.lose(credentials.get("x", "2"), "spent")
    before = clinic.asked()["x"].get("bookmarks", 0)

    lost = clinic.told()

    assert ("3 users of X have given us access" in good, len(good)) == (True, len(lost))
    assert lost["1 of 3 users of X have to give us access again"][0] == "warning"
    assert clinic.asked()["x"].get("bookmarks", 0) == before


def test_what_is_not_set_up_here_is_not_asked(clinic):
    variables = ("BITRIX_WEBHOOK_URL", "KIE_API_KEY", "TELEGRAM_BOT_TOKEN", "X_CLIENT_ID")
    clinic.set_up(**dict.fromkeys((*variables, "INTEGRATION_DESTINATIONS"), ""))
    before = clinic.asked()

    assert clinic.told()["none is set up here"] == ("skipped", "")
    assert clinic.asked() == before
