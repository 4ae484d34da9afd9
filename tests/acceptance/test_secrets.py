"""Whatever goes wrong, no secret gets into a log, a result, a dead letter, Redis or the database."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
from acceptance.system import System
from fixtures.waiting import eventually


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


def test_no_secret_is_left_anywhere(office: System, order: str):
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
        eventually(lambda before=fired: office.portal.fired() > before, within=20)
        if failure in closing:
            eventually(lambda: office.gate.state().state != "closed", within=20)
            office.gate.reset()
            office.gate.resume()
    together = [("create_deal", {"order_id": f"{order}-b{n}", "title": order}) for n in range(9)]
    office.portal.arm(failures[0] | add | {"where": "batch", "times": 9})
    jobs += office.send_all(together)
    for token in (env["BITRIX_APPLICATION_TOKEN"], "wrong"):
        form = {"event": "ONCRMDEALADD", "data[FIELDS][ID]": "1", "ts": "1"}
        form |= {"auth[application_token]": token}
        httpx.post(f"{office.stack.url('api')}/webhooks/bitrix", data=form, trust_env=False)
    eventually(lambda: len(office.ended(jobs)) == len(jobs), within=30)
    office.calm()
    api.kill()
    secrets = {
        "webhook code": urlsplit(url).path.split("/")[-2],
        "application token": env["BITRIX_APPLICATION_TOKEN"],
        "admin token": env["ADMIN_TOKEN"],
        "password of Redis": office.stack.redis.password,
        "password of Flower": env["FLOWER_BASIC_AUTH"].partition(":")[2],
    }

    # The search finds what is there, as it is and inside of messages.
    for kind in ("perennial.db", "worker.log", "appendonly.aof"):
        assert any(name.startswith(kind) for name in places(office, order))
    assert {name: at for name, secret in secrets.items() if (at := places(office, secret))} == {}
