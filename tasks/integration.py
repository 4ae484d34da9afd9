"""Messages to other systems: a FHIR resource or bundle goes to a destination, once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue

from clients import fhir
from clients.fhir import Fhir, destinations
from config import services
from config.settings import DestinationName, settings
from storage import effects
from tasks import operation
from tasks.base import job
from tasks.payloads import Id

Outcome = dict[str, Any]
Do = Callable[[], Outcome]

KIND = re.compile(r"[A-Z][A-Za-z]*")
# FHIR R4, data type `id`; as a part of an address, one or two dots alone would lead elsewhere.
FHIR_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9.-]{1,64}")


def _is_fhir(body: dict[str, Any]) -> dict[str, Any]:
    """Refuse in the caller what no server could take, or what could not be done once."""
    kind, own_id = body.get("resourceType"), body.get("id")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise ValueError("must be a FHIR resource, with its resourceType")
    if kind == "Bundle" and body.get("type") not in fhir.BUNDLES:
        raise ValueError(
            f"a Bundle must have the type {' or '.join(fhir.BUNDLES)}; the entries of a batch "
            "succeed one by one, so they are jobs of their own"
        )
    is_id = isinstance(own_id, str) and FHIR_ID.fullmatch(own_id)
    if kind != "Bundle" and "id" in body and not is_id:
        raise ValueError("has an id that is none: a text of A-Z a-z 0-9 - . and 64 at most")
    return body


Body = Annotated[dict[str, JsonValue], Field(min_length=1), AfterValidator(_is_fhir)]


def delivered(_: str, destination: str, message_id: str, **__: Any) -> list[str]:
    """Return the effect of a delivery, by its key."""
    return [key(destination, message_id)]


@operation(name="integration.deliver", effect_keys=delivered)
def deliver(destination: DestinationName, body: Body, message_id: Id) -> Outcome:
    """Hand a message to a destination, once: *message_id* is the key."""
    do, find = way(destinations()[destination], body, message_id)
    made = effects.once(
        key(destination, message_id), do, find=find, owner=job().id, lease=lease(destination)
    )
    return {"message_id": message_id, **made.result}


def way(server: Fhir, body: Body, message_id: str) -> tuple[Do, effects.Find | None]:
    """Return what delivers a message, and what finds out whether it was delivered."""
    kind = str(body["resourceType"])
    if kind == "Bundle":  # nobody can be asked about one: in doubt, a person decides
        return lambda: handed_over(server, body), None
    if "id" in body:  # the same again changes nothing, so there is no doubt to settle
        return lambda: updated(server, kind, body), lambda: None
    return (
        lambda: created(kind, server.create(body, message_id)),
        lambda: found(kind, server.find(kind, message_id)),
    )


def handed_over(server: Fhir, bundle: Body) -> Outcome:
    server.hand_over(bundle)
    return {"outcome": "delivered"}


def updated(server: Fhir, kind: str, body: Body) -> Outcome:
    is_new = server.update(body)
    return {"outcome": "created" if is_new else "updated", "resource": f"{kind}/{body['id']}"}


def created(kind: str, resource_id: str) -> Outcome:
    return {"outcome": "created", "resource": f"{kind}/{resource_id}"}


def found(kind: str, resource_id: str | None) -> Outcome | None:
    return None if resource_id is None else created(kind, resource_id)


def key(destination: str, message_id: str) -> str:
    """Return the key of the effect that delivers a message."""
    return f"integration.message:{destination}:{message_id}"


def lease(destination: str) -> float:
    """Return the seconds within which a delivery takes effect, or never will."""
    to = settings().destinations[destination]
    return services.scaled(services.integration(destination, to).lease)
