"""Whatever goes wrong, no secret gets anywhere: logs, Redis, the database, Sentry, traces, metrics."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from acceptance.studio import rehearsal, studio
from acceptance.system import PATIENCE, System
from acceptance.visits import opened
from fixtures.ingest import Ingest
from fixtures.waiting import eventually

from sandbox.rehearsal import Part
from sandbox.scenarios import ALWAYS, SCENARIOS, Scenario, bot, kie


def spellings(secret: str) -> Iterator[bytes]:
    """The secret as it is, and as it looks inside base64, where message bodies are."""
    yield secret.encode()
    for shift in range(3):
        coded = b64encode(b"\0" * shift + secret.encode())
        yield coded[-(-shift * 4 // 3) : -4]  # the ends depend on the neighbours


def places(system: System, secret: str) -> list[str]:
    """The files of the system that hold *secret*: logs, spool, database, and all Redis ever held."""
    files = [path for path in system.stack.folder.rglob("*") if path.is_file()]
    forms = list(spellings(secret))
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.fixture
def office(site, sentry: Ingest, collector: Ingest, tmp_path) -> Iterator[System]:
    """A system that tells everybody who wants to know."""
    env = {"SENTRY_DSN": sentry.dsn} | OPEN | told_to(collector)
    with opened(tmp_path / "office", site, **env) as system:
        system.caller  # noqa: B018 - it starts beside the worker
        system.worker()
        system.portal.begin()
        yield system


OPEN = {"METRICS_PUBLIC": "true"}


def told_to(collector: Ingest) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret-of-the-collector",
    }


def keep(system: System, **told: Ingest) -> None:
    """Put beside its logs what a system has told others; its workers have to have ended."""
    for name, ingest in told.items():
        (system.stack.folder / f"{name}.told").write_bytes(b"\n".join(b for _, b in ingest.posted))
    metrics = httpx.get(f"{system.stack.url('api')}/metrics", trust_env=False, timeout=PATIENCE)
    (system.stack.folder / "metrics.told").write_bytes(metrics.content)


def test_no_secret_is_left_anywhere(office: System, order: str, sentry: Ingest, collector: Ingest):
    env = office.stack.env
    url = env["BITRIX_WEBHOOK_URL"]
    add = {"method": "crm.deal.add", "about": order}
    echo = f"cannot serve {url}crm.deal.add"
    failures = [
        {"kind": "error", "code": "INVALID_ARG_VALUE", "description": echo, "times": 2},
        {"kind": "status", "status": 403, "description": f"<a href='{url}'>no</a>"},
        {"kind": "non_json", "description": echo},
        {"kind": "lost_answer"},
    ]
    closing = [
        {"kind": "status", "status": 302, "headers": {"Location": f"{url}crm.deal.add"}},
        {"kind": "error", "code": "INVALID_CREDENTIALS", "description": echo},
    ]
    api = office.stack.start_api()
    jobs = []
    for n, failure in enumerate([*failures, *closing]):
        office.portal.arm(failure | add)
        fired = office.portal.fired()
        jobs.append(office.send("create_deal", order_id=f"{order}-{n}", title=order))
        eventually(lambda before=fired: office.portal.fired() > before)
        if failure in closing:
            eventually(lambda: office.gate.state().state != "closed")
            office.gate.reset()
            office.gate.resume()
    together = [("create_deal", {"order_id": f"{order}-b{n}", "title": order}) for n in range(9)]
    office.portal.arm(failures[0] | add | {"where": "batch", "times": 9})
    jobs += office.send_all(together)
    for token in (env["BITRIX_APPLICATION_TOKEN"], "wrong"):
        form = {"event": "ONCRMDEALADD", "data[FIELDS][ID]": "1", "ts": "1"}
        form |= {"auth[application_token]": token}
        door = f"{office.stack.url('api')}/webhooks/bitrix"
        httpx.post(door, data=form, trust_env=False, timeout=PATIENCE)
    eventually(lambda: len(office.ended(jobs)) == len(jobs))
    office.calm()
    office.stack.processes[0].stop()
    keep(office, sentry=sentry, collector=collector)
    api.kill()
    secrets = {
        "webhook code": urlsplit(url).path.split("/")[-2],
        "application token": env["BITRIX_APPLICATION_TOKEN"],
        "admin token": env["ADMIN_TOKEN"],
        "password of Redis": office.stack.redis.password,
        "password of Flower": env["FLOWER_BASIC_AUTH"].partition(":")[2],
        "key of Sentry": urlsplit(sentry.dsn).username,
        "key of the collector": "s3cret-of-the-collector",
    }

    # The search finds what is there, as it is and inside of messages.
    for kind in ("perennial.db", "worker.log", "appendonly.aof"):
        assert any(name.startswith(kind) for name in places(office, order))
    assert any({"sentry.told", "collector.told"} <= set(places(office, job)) for job in jobs)
    assert "metrics.told" in places(office, "bitrix.create_deal")
    assert {name: at for name, secret in secrets.items() if (at := places(office, secret))} == {}


def test_no_secret_of_a_video_is_left_anywhere(tmp_path, sentry: Ingest, collector: Ingest):
    with studio(tmp_path) as system, rehearsal(system) as player:
        env = system.stack.env
        env |= {"SENTRY_DSN": sentry.dsn} | OPEN | told_to(collector)
        key, token = env["KIE_API_KEY"], env["TELEGRAM_BOT_TOKEN"]
        of_kie = f"cannot serve {env['KIE_BASE_URL']} with Bearer {key}, {key}"
        of_bot = f"cannot serve {env['TELEGRAM_BASE_URL']}/bot{token}/sendVideo, {token}"
        failures = [
            {"kie": kie("error", code="422", description=of_kie, times=ALWAYS)},
            {"kie": kie("non_json", description=of_kie, after=True)},
            {"kie": kie("error", "recordInfo", code="500", description=of_kie, times=2)},
            {"kie": kie("lost_answer")},
            {"telegram": bot("error", code="400", description=of_bot, times=ALWAYS)},
            {"telegram": bot("non_json", description=of_bot)},
            {"telegram": bot("status", status=502, description=of_bot)},
            {"telegram": bot("lost_answer")},
            {"telegram": bot("error", "sendMessage", status=400, description=of_bot)},
        ]
        closing = {
            "kie": {"kie": kie("error", code="401", description=of_kie)},
            "telegram": {
                "telegram": bot("error", code="unauthorized", status=401, description=of_bot)
            },
        }
        worker = system.worker()
        cast = [
            Part(n, Scenario("told", SCENARIOS[0].end, **found)) for n, found in enumerate(failures)
        ]
        player.play(cast)
        for number, (service, found) in enumerate(closing.items(), len(cast)):
            held = Part(number, Scenario("told", SCENARIOS[0].end, **found))
            player.arm([held])
            player.give([held])
            eventually(
                lambda: any(job.reason == "Unauthorized" for job in system.parking.jobs()),
                within=PATIENCE,
            )
            system.operate("gate", "reset", service)
            player.rest()
        door = f"{system.stack.url('api')}/webhooks"
        header = "X-Telegram-Bot-Api-Secret-Token"
        patiently = {"trust_env": False, "timeout": PATIENCE}
        for secret in (env["TELEGRAM_WEBHOOK_SECRET"], "wrong"):
            sent = {header: secret}
            httpx.post(f"{door}/telegram", json={"update_id": 1}, headers=sent, **patiently)
        httpx.post(f"{door}/kie/nobody", json={"data": {"taskId": "1"}}, **patiently)
        player.rest()
        worker.stop()
        keep(system, sentry=sentry, collector=collector)
        died = {letter.error_type for letter in system.open_letters()}
        secrets = {
            "key of KIE": key,
            "HMAC key of KIE": env["KIE_WEBHOOK_HMAC_KEY"],
            "token of the bot": token.partition(":")[2],
            "secret of the bot's webhook": env["TELEGRAM_WEBHOOK_SECRET"],
        }

        assert died == {"InvalidData", "OutcomeUnknown"}
        for kind in ("perennial.db", "worker.log", "appendonly.aof"):
            assert any(name.startswith(kind) for name in places(system, cast[0].order))
        assert {"sentry.told", "collector.told"} <= set(places(system, "video.send"))
        assert {
            name: at for name, secret in secrets.items() if (at := places(system, secret))
        } == {}
