"""The FHIR sandbox: a simulated R4 server that messages are delivered to.

    python -m sandbox.fhir --port 8028 --token secret

takes `POST /r4/{type}` (with If-None-Exist), `PUT /r4/{type}/{id}`, `GET /r4/{type}?_tag=…`, a
transaction at `POST /r4`, a message at `POST /r4/$process-message` and `GET /r4/metadata`, which
wants the token like all of them. Single process, state in memory. What `sandbox.serving` lists
comes with it; a fault's `method` is `create`, `update`, `search`, `bundle` or `metadata`, its
`about` a part of the message's tag or of the resource's id, its `code` one of value set
`issue-type`.

GET    /_sandbox/resources    everything that is stored
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from secrets import compare_digest
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandbox import serving
from sandbox.faults import Call, Fault, FaultPlan
from sandbox.journal import Entry, Journal, digest
from sandbox.replies import Reply, answered, endured
from sandbox.serving import Delivery

BASE = "/r4"
METHODS = {"POST": "create", "PUT": "update", "GET": "search"}
# The status that goes with a code, where a fault names none.
STATUSES = {"login": 401, "forbidden": 403, "not-found": 404, "conflict": 409, "throttled": 429}
BUNDLES = ("transaction", "message")
STATEMENT = {
    "resourceType": "CapabilityStatement",
    "status": "active",
    "kind": "instance",
    "fhirVersion": "4.0.1",
    "format": ["json"],
}

Resource = dict[str, Any]


class Server:
    """The whole state; everything happens on one event loop, without threads."""

    def __init__(self, token: str = "", journal: Path | None = None, seed: int = 0) -> None:
        self.token = token
        self.journal = Journal(journal)
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self.faults = FaultPlan(self._seed)
        self.resources: dict[tuple[str, str], Resource] = {}
        self.bundles: Counter[str] = Counter()
        self.requests = 0

    def reset(self) -> None:
        """Forget resources, faults, counters and journal."""
        self._begin()
        self.journal.clear(time.time())

    async def close(self) -> None:
        self.journal.close()

    def summary(self) -> dict[str, Any]:
        """Return the counts since the last reset; *duplicates* are tags that several carry."""
        tags = Counter(tag for resource in self.resources.values() for tag in tags_of(resource))
        return {
            "requests": self.requests,
            "resources": len(self.resources),
            "bundles": dict(self.bundles),
            "duplicates": sorted(tag for tag, count in tags.items() if count > 1),
            "by_method": dict(self.journal.by_method),
            "by_status": dict(self.journal.by_status),
            "faults_fired": dict(self.faults.fired),
        }

    async def answer(self, request: Request) -> Reply:
        """Take one request to its reply; the caller settles the reply's entries."""
        self.requests += 1
        asked = Asked(request, read(await request.body()))
        entry = self.journal.record(
            at=time.time(),
            request=self.requests,
            method=asked.method,
            about=asked.about,
            digest=digest(asked.body or {}),
        )
        if not self._knows(request.headers.get("authorization", "")):
            return refused("login", "who are you?", 401, entry)
        strike = self.faults.strike(Call(asked.method, tuple(asked.about.values())))
        return await endured(
            strike,
            lambda: self._act(asked, entry),
            entry=entry,
            wording=worded,
            pause=asyncio.sleep,
        )

    def _knows(self, authorization: str) -> bool:
        expected = f"Bearer {self.token}" if self.token else ""
        return compare_digest(authorization.encode(), expected.encode())

    def _act(self, asked: Asked, entry: Entry) -> Reply:
        if asked.method == "search":
            return self._search(asked, entry)
        if asked.method == "metadata":
            return answered(STATEMENT, [entry])
        if asked.body is None:
            return refused("structure", "the body is no JSON object", 400, entry)
        if asked.method == "bundle":
            return self._take(asked.body, entry)
        if asked.body.get("resourceType") != asked.kind:
            return refused("invalid", f"this is no {asked.kind}", 400, entry)
        return self._create(asked, entry) if asked.method == "create" else self._put(asked, entry)

    def _create(self, asked: Asked, entry: Entry) -> Reply:
        same = self._tagged(asked.kind, asked.tag) if asked.tag else []
        if len(same) > 1:
            return refused("multiple-matches", "several resources match", 412, entry)
        if same:
            return located(same[0], [entry], status=200)
        resource = {**(asked.body or {}), "id": str(len(self.resources) + 1)}
        return self._store(resource, entry, status=201)

    def _put(self, asked: Asked, entry: Entry) -> Reply:
        if (asked.body or {}).get("id") != asked.id:
            return refused("invalid", "the id is not the one in the address", 400, entry)
        known = (asked.kind, asked.id) in self.resources
        return self._store(asked.body or {}, entry, status=200 if known else 201)

    def _store(self, resource: Resource, entry: Entry, *, status: int) -> Reply:
        self.resources[(resource["resourceType"], resource["id"])] = resource
        entry.effect = f"{resource['resourceType']}/{resource['id']} stored"
        return located(resource, [entry], status=status)

    def _take(self, bundle: Resource, entry: Entry) -> Reply:
        if bundle.get("resourceType") != "Bundle" or bundle.get("type") not in BUNDLES:
            return refused("invalid", "this is no transaction and no message", 400, entry)
        name = str(bundle.get("id") or len(self.bundles) + 1)
        self.bundles[name] += 1
        entry.effect = f"bundle {name} taken"
        return answered({"resourceType": "Bundle", "type": f"{bundle['type']}-response"}, [entry])

    def _search(self, asked: Asked, entry: Entry) -> Reply:
        found = self._tagged(asked.kind, asked.tag)[: asked.count]
        entries = [{"resource": resource} for resource in found]
        bundle = {"resourceType": "Bundle", "type": "searchset", "total": len(found)}
        return answered({**bundle, **({"entry": entries} if entries else {})}, [entry])

    def _tagged(self, kind: str, tag: str) -> list[Resource]:
        return [
            resource
            for (its_kind, _), resource in self.resources.items()
            if its_kind == kind and tag in tags_of(resource)
        ]


class Asked:
    """What one request asks for; *tag* is `system|code`, in a search or an If-None-Exist."""

    def __init__(self, request: Request, body: Resource | None) -> None:
        self.body = body
        self.kind = str(request.path_params.get("kind", ""))
        self.id = str(request.path_params.get("id", ""))
        self.count = int(request.query_params.get("_count", "100"))
        whole = {"POST": "bundle", "GET": "metadata"}  # of the server, not of a type of resource
        self.method = (METHODS if self.kind else whole)[request.method]
        condition = QueryParams(request.headers.get("if-none-exist", ""))
        self.tag = request.query_params.get("_tag", "") or condition.get("_tag", "")
        own = str((body or {}).get("id") or "")
        known = {"tag": self.tag, "id": self.id or own}
        self.about: Mapping[str, str] = {name: value for name, value in known.items() if value}


def tags_of(resource: Resource) -> list[str]:
    """Return the tags of a resource as a search names them."""
    tags = (resource.get("meta") or {}).get("tag") or []
    return [f"{tag.get('system', '')}|{tag.get('code', '')}" for tag in tags]


def located(resource: Resource, entries: list[Entry], *, status: int) -> Reply:
    """Return the answer to a create or an update: nothing but where the resource is."""
    where = f"{BASE}/{resource['resourceType']}/{resource['id']}/_history/1"
    return Reply(status, headers={"Location": where}, entries=tuple(entries))


def outcome(code: str, diagnostics: str) -> Resource:
    """Return an OperationOutcome with one error."""
    issue = {"severity": "error", "code": code, "diagnostics": diagnostics}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def refused(code: str, diagnostics: str, status: int, entry: Entry) -> Reply:
    entry.error = code
    return answered(outcome(code, diagnostics), [entry], status)


def worded(fault: Fault) -> tuple[Resource, int]:
    """Say the error that a fault has named, as a FHIR server does."""
    status = fault.status or STATUSES.get(fault.code, 422)
    return outcome(fault.code, fault.description or "as scripted"), status


def read(body: bytes) -> Resource | None:
    """Return the JSON object in a body, None if there is none."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def create_app(server: Server) -> Starlette:
    """Return the ASGI application of *server*; it lives as long as the application."""
    return serving.create_app(
        server,
        [
            Route("/_sandbox/resources", _resources),
            Route(BASE, _answer, methods=["POST"]),
            Route(f"{BASE}/$process-message", _answer, methods=["POST"]),
            Route(f"{BASE}/metadata", _answer),
            Route(f"{BASE}/{{kind}}", _answer, methods=["GET", "POST"]),
            Route(f"{BASE}/{{kind}}/{{id}}", _answer, methods=["PUT"]),
        ],
    )


async def _answer(request: Request) -> Response:
    server: Server = request.app.state.upstream
    return Delivery(server, await server.answer(request))


async def _resources(request: Request) -> Response:
    server: Server = request.app.state.upstream
    return JSONResponse(list(server.resources.values()))


def main() -> None:
    """Serve until interrupted; the first line printed is the address."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.fhir", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8028, help="0 takes a free one")
    parser.add_argument("--token", default="", help="the bearer token that it wants")
    parser.add_argument("--journal", type=Path, help="append every call to this JSONL file")
    options = parser.parse_args()
    app = create_app(Server(options.token, options.journal))
    listener = serving.bound(options.host, options.port)
    print(f"http://{options.host}:{listener.getsockname()[1]}{BASE}", flush=True)
    serving.create_server(app).run(sockets=[listener])


if __name__ == "__main__":
    main()
