"""How we call a FHIR R4 server: store a resource once, hand over a transaction or a message.

Shapes: FHIR R4, "RESTful API" (http.html) and "Messaging" (messaging.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from classifiers import fhir as classifier
from classifiers import http
from classifiers.errors import InternalError, JobError, NotConfigured, OutcomeUnknown
from clients.http import Upstream
from clients.process import PerProcess
from config import services
from config.services import Service
from config.settings import Destination, settings
from reliability.connection import redis
from reliability.gate import Gate

# Marks what we have stored, so that it can be found: every resource has room for tags, and every
# server searches them (`_tag`).
TAG_SYSTEM = "urn:perennial:message"
BUNDLES = {"transaction": "", "message": "/$process-message"}  # type → what follows the base

Resource = Mapping[str, Any]


class Fhir:
    """One destination."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def create(self, resource: Resource, message_id: str) -> str:
        """Store a resource, marked with *message_id*; return the id that the server gives it.

        If-None-Exist has the server look first. Not every server heeds it, so the call is not
        `safe`; whoever repeats it should ask `find` before.

        Raises:
            OutcomeUnknown: among others, if the answer does not name the resource.
        """
        kind = resource["resourceType"]
        answer = self._call(
            "POST",
            quote(kind, safe=""),
            safe=False,
            json=_tagged(resource, message_id),
            headers={"If-None-Exist": f"_tag={quote(_token(message_id), safe='')}"},
        )
        if not (new := _id(answer, kind)):
            raise OutcomeUnknown(
                "the answer does not say where the resource is",
                service=self.upstream.service.name,
                operation=f"create {kind}",
            )
        return new

    def find(self, kind: str, message_id: str) -> str | None:
        """Return the id of the resource of this *kind* that was stored for a message, if one was.

        The oldest, should there be several.

        Raises:
            InternalError: among others, if the answer is none to this question: a server that
                knows no `_tag` may leave it out, and return what was never ours.
        """
        answer = self._call(
            "GET",
            quote(kind, safe=""),
            safe=True,
            params={"_tag": _token(message_id), "_sort": "_lastUpdated", "_count": "1"},
            headers={"Cache-Control": "no-cache"},  # a server may remember a search for a minute
        )
        return self._found(http.body_of(answer), kind, message_id)

    def _found(self, bundle: Mapping[str, Any], kind: str, message_id: str) -> str | None:
        resources = [entry.get("resource") or {} for entry in bundle.get("entry") or []]
        of_kind = [each for each in resources if each.get("resourceType") == kind]
        ours = [each for each in of_kind if _has_tag(each, message_id)]
        if bundle.get("resourceType") != "Bundle" or len(ours) < len(of_kind):
            raise InternalError(
                "the answer to a search by tag is none: does the server know `_tag`?",
                service=self.upstream.service.name,
                operation=f"search {kind}",
            )
        return str(ours[0]["id"]) if ours else None

    def update(self, resource: Resource) -> bool:
        """Store a resource under its own id; return whether it is new there."""
        kind = resource["resourceType"]
        path = f"{quote(kind, safe='')}/{quote(resource['id'], safe='')}"
        answer = self._call("PUT", path, safe=True, operation=f"update {kind}", json=resource)
        return answer.status_code == httpx.codes.CREATED

    def hand_over(self, bundle: Resource) -> None:
        """Have a transaction carried out, or a message processed. Nobody can be asked about it."""
        # Whole: httpx would end a bare base with a slash, which some servers do not know.
        base = str(self.upstream.client.base_url).rstrip("/")
        kind = bundle["type"]
        self._call("POST", base + BUNDLES[kind], safe=False, operation=kind, json=bundle)

    def version(self, *, within: float) -> str:
        """Return the version of FHIR that the server speaks, for a person: see `Upstream.call`.

        Raises:
            NotConfigured: among others, if what answers there is no FHIR server.
        """
        answer = self.upstream.call("GET", "metadata", safe=True, within=within)
        stated = http.body_of(answer)
        if stated.get("resourceType") != "CapabilityStatement":
            raise NotConfigured(
                "what answers there does not say that it is a FHIR server",
                service=self.upstream.service.name,
                operation="metadata",
            )
        return str(stated.get("fhirVersion") or "")

    def close(self) -> None:
        """Let the connections go."""
        self.upstream.close()

    def _call(
        self, verb: str, path: str, *, safe: bool, operation: str = "", **content: Any
    ) -> httpx.Response:
        headers = {"Content-Type": classifier.MEDIA_TYPE, **content.pop("headers", {})}
        return self.upstream.call(
            verb, path, safe=safe, operation=operation, headers=headers, **content
        )


class Destinations:
    """Every destination that the settings name, each behind its gate."""

    def __init__(self, by_name: Mapping[str, Fhir]) -> None:
        self._by_name = by_name

    def __getitem__(self, name: str) -> Fhir:
        """Return one of them.

        Raises:
            NotConfigured: there is none of this name.
        """
        if name not in self._by_name:
            raise NotConfigured(
                f"there is no destination {name!r}: name it in INTEGRATION_DESTINATIONS",
                service=classifier.SERVICE,
            )
        return self._by_name[name]

    def close(self) -> None:
        """Let all connections go."""
        for fhir in self._by_name.values():
            fhir.close()


def _tagged(resource: Resource, message_id: str) -> dict[str, Any]:
    meta = dict(resource.get("meta") or {})
    tags = [*(meta.get("tag") or []), _tag(message_id)]
    return {**resource, "meta": {**meta, "tag": tags}}


def _tag(message_id: str) -> dict[str, str]:
    return {"system": TAG_SYSTEM, "code": message_id}


def _has_tag(resource: Resource, message_id: str) -> bool:
    """Whether a resource has our tag; the server may have put a text for people beside it."""
    tags = (resource.get("meta") or {}).get("tag") or []
    return any(tag.items() >= _tag(message_id).items() for tag in tags)


def _token(message_id: str) -> str:
    """Return a search for our tag; FHIR escapes what separates, then HTTP does."""
    escaped = "".join(f"\\{sign}" if sign in "\\|,$" else sign for sign in message_id)
    return f"{TAG_SYSTEM}|{escaped}"


def _id(answer: httpx.Response, kind: str) -> str:
    """Return the new id, empty if the answer has none.

    It is the end of Location ([base]/[type]/[id]/_history/[version]), or in the resource itself.
    """
    parts = answer.headers.get("location", "").split("/_history/")[0].rstrip("/").split("/")
    if parts[-1]:
        return str(parts[-1])
    body = http.body_of(answer)
    return str(body.get("id") or "") if body.get("resourceType") == kind else ""


def _upstream(name: str, destination: Destination) -> Upstream:
    config, service = settings(), services.integration(name, destination)
    token = destination.token.get_secret_value() if destination.token else ""
    login = {"Authorization": f"Bearer {token}"} if token else {}
    return Upstream(
        service,
        Gate(redis(), service, prefix=config.redis_stream_prefix, scale=config.retry_time_scale),
        _classify_as(service),
        base_url=destination.url,
        credential=token or "none",  # a server that wants one is asked again when it is set
        headers={"Accept": classifier.MEDIA_TYPE, **login},
    )


def _classify_as(service: Service) -> Any:
    """Return the classifier, which names the gate that the failure is about."""

    def classify(response: httpx.Response, *, safe: bool) -> JobError | None:
        error = classifier.classify(response, safe=safe)
        if error is not None:
            error.service = service.name
        return error

    return classify


@PerProcess
def destinations() -> Destinations:
    """Return the destinations of this process, as the settings describe them."""
    known = settings().destinations.items()
    return Destinations({name: Fhir(_upstream(name, to)) for name, to in known})
