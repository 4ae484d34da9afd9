"""Orders are deals, users are contacts: what the application knows is what the portal shows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from sqlalchemy import Connection

from classifiers.errors import Duplicate, Pending
from clients.bitrix import portal
from config.services import (
    CALLS_PER_CONTACT,
    CALLS_PER_UPDATE,
    PREDECESSOR_GRACE,
    PREDECESSOR_PATIENCE,
    bitrix,
)
from config.settings import settings
from reliability.dead_letters import dead_letters
from storage import effects, links
from storage.links import KEEP, Entity, Link
from tasks import operation
from tasks.base import END_OF_TIME, job
from tasks.payloads import Fields, Id, Money, Timestamp

Outcome = dict[str, Any]
Card = Mapping[str, Any]  # a row's fields, by the portal's own names

ENTITIES: Mapping[str, Entity] = {"ONCRMDEAL": "deal", "ONCRMCONTACT": "contact"}
MULTIFIELDS = ("EMAIL", "PHONE")
LOCAL_NUMBER = 10  # digits: +7 999 …, 8 999 … and 999 … are one phone

EVENTS = r"(?i)^ONCRM(DEAL|CONTACT)(ADD|UPDATE|DELETE)$"
Event = Annotated[str, StringConstraints(to_upper=True, pattern=EVENTS)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Email = Annotated[
    str, StringConstraints(strip_whitespace=True, pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)
]
Phone = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^\+?[\d\s().-]{5,30}$")]


# -- deals


def made_deal(_: str, order_id: str, **__: Any) -> list[str]:
    """Return the effect of a create, by its key."""
    return [key("deal", order_id)]


@operation(name="bitrix.create_deal", effect_keys=made_deal)
def create_deal(
    order_id: Id,
    title: Text,
    amount: Money | None = None,
    currency: Currency = "RUB",
    contact_user_id: Id | None = None,
    fields: Fields = {},  # noqa: B006 - pydantic copies it
    updated_at: Timestamp | None = None,
) -> Outcome:
    """Make the deal of an order, once; the order's id is the key."""
    contact = contact_of(contact_user_id)
    card = deal_card(title, amount, currency, fields)
    linked = {"CONTACT_IDS": [contact]} if contact else {}
    outcome = create("deal", order_id, card, updated_at, linked=linked, awaiting=contact_user_id)
    deal = links.get("deal", order_id)
    awaited = deal.awaiting if deal else None
    if awaited is not None and links.get("contact", awaited) is not None:
        # It came while we were busy, or something newer has overtaken us before we could write it.
        attach_contact.delay(order_id=order_id, user_id=awaited)
    return outcome


@operation(name="bitrix.update_deal")
def update_deal(order_id: Id, fields: Fields, updated_at: Timestamp | None = None) -> Outcome:
    """Write fields into the deal of an order; make the deal if no create is on its way."""
    return update_or_create("deal", order_id, fields, {"TITLE": order_id}, updated_at)


@operation(name="bitrix.attach_contact")
def attach_contact(order_id: Id, user_id: Id) -> Outcome:
    """Tell the deal of an order about its contact; no other field, and no version, is touched."""
    contact = links.get("contact", user_id)
    if contact is None:
        raise Pending(f"the contact of user {user_id} is not there", service="bitrix")
    with turn("deal", order_id) as deal:
        portal().update("deal", deal.remote_id, {"CONTACT_IDS": [contact.remote_id]})
        links.applied("deal", order_id, awaiting=None)
    return {"outcome": "updated", "deal_id": deal.remote_id, "contact_id": contact.remote_id}


def deal_card(title: str, amount: Any, currency: str, fields: Card) -> dict[str, Any]:
    """Return the fields of a deal; what the caller put into *fields* wins."""
    card: dict[str, Any] = {"TITLE": title}
    if amount is not None:
        card |= {"OPPORTUNITY": str(amount), "CURRENCY_ID": currency}
    return {**card, **fields}


def contact_of(user_id: str | None) -> str | None:
    """Return the portal's id of a user's contact; wait a little for one that may be on its way."""
    if user_id is None:
        return None
    link = links.get("contact", user_id)
    if link is None:  # a little, not until it comes: `attach` tells the deal later
        wait_while_young(f"the contact of user {user_id}")
    return link.remote_id if link else None


def attach(user_id: str) -> None:
    """Tell the deals that were made without this user's contact that it is there now."""
    for deal in links.awaiting(user_id):
        attach_contact.delay(order_id=deal.local_id, user_id=user_id)


# -- contacts


def adopt_contact(existing_id: str, user_id: str, **payload: Any) -> Outcome:
    """Take over a contact that is in the portal already, under the same e-mail or phone."""
    links.adopt("contact", user_id, existing_id)
    if "name" in payload:
        outcome = catch_up("contact", user_id, contact_card(**payload), payload["updated_at"])
    else:
        outcome = update("contact", user_id, payload["fields"], payload["updated_at"], "adopted")
    attach(user_id)
    return outcome


def made_contact(_: str, user_id: str, **__: Any) -> list[str]:
    """Return the effect of a create, by its key."""
    return [key("contact", user_id)]


@operation(name="bitrix.create_contact", adopt=adopt_contact, effect_keys=made_contact)
def create_contact(
    user_id: Id,
    name: Text,
    email: Email | None = None,
    phone: Phone | None = None,
    fields: Fields = {},  # noqa: B006 - pydantic copies it
    updated_at: Timestamp | None = None,
) -> Outcome:
    """Make the contact of a user, once; one with the same e-mail or phone is taken over."""
    card = contact_card(name, email, phone, fields)
    if links.get("contact", user_id) is None:
        outcome = create("contact", user_id, card, updated_at)
    else:  # ours already, perhaps adopted: an address that is new must not make a second one
        outcome = catch_up("contact", user_id, card, updated_at)
    attach(user_id)
    return outcome


@operation(name="bitrix.update_contact", adopt=adopt_contact)
def update_contact(user_id: Id, fields: Fields, updated_at: Timestamp | None = None) -> Outcome:
    """Write fields into the contact of a user; make the contact if no create is on its way."""
    outcome = update_or_create("contact", user_id, fields, {"NAME": user_id}, updated_at)
    attach(user_id)
    return outcome


def contact_card(
    name: str,
    email: str | None = None,
    phone: str | None = None,
    fields: Card = {},  # noqa: B006 - never written to
    **_: Any,
) -> dict[str, Any]:
    """Return the fields of a contact; what the caller put into *fields* wins."""
    card: dict[str, Any] = {"NAME": name}
    if email is not None:
        card["EMAIL"] = [{"VALUE": email, "VALUE_TYPE": "WORK"}]
    if phone is not None:
        card["PHONE"] = [{"VALUE": phone, "VALUE_TYPE": "WORK"}]
    return {**card, **fields}


def alone_with(card: Card) -> AbstractContextManager[None]:
    """Keep two jobs from making two contacts of one person at the same time."""
    keys = [f"bitrix.person:{address(kind, value)}" for kind, value in addresses(card)]
    span = CALLS_PER_CONTACT * lease()
    return effects.exclusive(*keys, owner=job().id, lease=span) if keys else nullcontext()


def refuse_double(card: Card) -> None:
    """Raise Duplicate if a contact has one of these addresses already."""
    for kind, value in addresses(card):
        for existing in portal().contacts_with(kind, value):
            raise Duplicate(f"a contact has this {kind}", service="bitrix", existing_id=existing)


def address(kind: str, value: str) -> str:
    """Return one spelling for all spellings of an e-mail address or phone number."""
    if kind == "EMAIL":
        return value.casefold()
    return re.sub(r"\D", "", value)[-LOCAL_NUMBER:]


def addresses(card: Card) -> list[tuple[str, str]]:
    """Return the (kind, value) of every e-mail address and phone number in *card*."""
    return [(kind, row["VALUE"]) for kind in MULTIFIELDS for row in rows_of(card.get(kind))]


def rows_of(value: Any) -> list[dict[str, Any]]:
    """Return a multifield as the portal wants it, from a text, a list of texts or of rows."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    rows = [v if isinstance(v, Mapping) else {"VALUE": v, "VALUE_TYPE": "WORK"} for v in values]
    return [{**row, "VALUE": str(row["VALUE"])} for row in rows if row.get("VALUE")]


# -- what the portal tells us


@operation(name="bitrix.handle_webhook")
def handle_webhook(
    event: Event,
    entity_id: Id,
    ts: Annotated[int, Field(ge=0, lt=END_OF_TIME)],
) -> Outcome:
    """Look at what has changed in the portal and keep it beside the link.

    UPSTREAMS 1.5: the event carries only the id; the row may be newer than the event, or gone.
    """
    entity = next(entity for prefix, entity in ENTITIES.items() if event.startswith(prefix))
    told_at = datetime.fromtimestamp(ts, UTC)
    if event.endswith("DELETE"):
        known = links.gone(entity, entity_id, told_at)
        return {"outcome": "target_gone" if known else "ignored", f"{entity}_id": entity_id}
    snapshot = portal().get(entity, entity_id)
    known = links.saw(entity, entity_id, snapshot, told_at)
    return {"outcome": "recorded" if known else "ignored", f"{entity}_id": entity_id}


# -- the process both share


def create(
    entity: Entity,
    local_id: str,
    card: Card,
    version: datetime | None,
    *,
    linked: Card = {},  # noqa: B006 - never written to
    given: Sequence[str] | None = None,
    awaiting: str | None = None,
) -> Outcome:
    """Make the row of *local_id* at most once; bring it up to date if it exists.

    *linked* are fields that are ours, not the caller's: two calls that differ in them are the
    same. *given* names the fields that an update brought, where it came before the create.
    *awaiting* is the user whose contact is in *linked*, or is to come.
    """
    earlier: list[str] = []
    with ExitStack() as alone:  # until the row is there

        def look() -> dict[str, str] | None:
            found = portal().find(entity, local_id)
            if found is None and entity == "contact":
                alone.enter_context(alone_with(card))
                refuse_double(card)
            earlier.extend([found] if found else [])
            return {"id": found} if found else None

        def record(connection: Connection, row: dict[str, str]) -> None:
            columns: links.Columns = {"awaiting": awaiting, "given": given}
            if not earlier:  # what an earlier call has written is not known: it is written again
                columns |= {"version": version, "accepted": unversioned(version)}
                columns |= {"digest": digest(card), "awaiting": None if linked else awaiting}
            links.remember(connection, entity, local_id, row["id"], **columns)

        made = effects.once(
            key(entity, local_id),
            lambda: {
                "id": portal().add(
                    entity,
                    local_id,
                    {**ready(entity, card), **linked},
                    for_update=given is not None,
                )
            },
            find=look,
            owner=job().id,
            lease=lease(),
            look_first=entity == "contact" or settings().bitrix_lookup_before_create,
            record=record,
        )
    if made.how == "done":
        return {"outcome": "created", f"{entity}_id": made.result["id"]}
    if awaiting is not None and not linked:  # an update may have made the row, and knew of nobody
        links.applied(entity, local_id, awaiting=awaiting)
    if given is not None:
        return update(entity, local_id, card, version, "adopted")
    return catch_up(entity, local_id, {**card, **linked}, version, mark=digest(card))


def catch_up(
    entity: Entity, local_id: str, card: Card, version: datetime | None, *, mark: str = ""
) -> Outcome:
    """Bring a row that exists up to a create's card, unless it was made of just this card."""
    mark = mark or digest(card)
    link = links.get(entity, local_id)
    if link is not None and link.digest == mark:
        return {"outcome": "created", f"{entity}_id": link.remote_id}
    return update(entity, local_id, card, version, "adopted", mark=mark)


def ready(entity: Entity, card: Card) -> Card:
    """Return the card with its multifields as the portal wants them."""
    if entity != "contact":
        return card
    return {**card, **{kind: rows_of(card[kind]) for kind in MULTIFIELDS if kind in card}}


def update_or_create(
    entity: Entity, local_id: str, fields: Card, least: Card, version: datetime | None
) -> Outcome:
    """Update the row; make it of *least* and *fields* if there is none and none is coming."""
    if links.get(entity, local_id) is not None:
        return update(entity, local_id, fields, version)
    wait_for_create(entity, local_id)
    return create(entity, local_id, {**least, **fields}, version, given=list(fields))


def update(
    entity: Entity,
    local_id: str,
    changes: Card,
    version: datetime | None,
    outcome: str = "updated",
    *,
    mark: str = "",
) -> Outcome:
    """Write *changes* into the row, one writer at a time, never an older state over a newer one.

    With a *mark*, the digest of its card, this is a create that came late: it fills in what the
    updates that overtook it have not given, and is remembered.
    """
    with turn(entity, local_id) as link:
        given: list[str] | None = None
        if mark and link.given is not None:
            changes = {name: value for name, value in changes.items() if name not in link.given}
        elif superseded(link, version):
            return {"outcome": "superseded", f"{entity}_id": link.remote_id}
        elif link.given is not None:
            given = sorted({*link.given, *changes})
        write(entity, link.remote_id, changes)
        links.applied(
            entity,
            local_id,
            version=version,
            accepted=unversioned(version),
            digest=mark or KEEP,
            given=given,
            awaiting=None if "CONTACT_IDS" in changes else KEEP,
        )
    return {"outcome": outcome, f"{entity}_id": link.remote_id}


@contextmanager
def turn(entity: Entity, local_id: str) -> Iterator[Link]:
    """Be the only one who writes into this row, and know what was written last."""
    span = CALLS_PER_UPDATE * lease()
    with effects.exclusive(key(entity, local_id), owner=job().id, lease=span):
        link = links.get(entity, local_id)
        if link is None:
            raise Pending(f"the link of {entity} {local_id} is not written yet", service="bitrix")
        yield link


def write(entity: Entity, row_id: str, changes: Card) -> None:
    """Send the changes. UPSTREAMS 1.1: a multifield row without its ID is added once more."""
    present = [kind for kind in MULTIFIELDS if entity == "contact" and kind in changes]
    if present:
        row = portal().get(entity, row_id)
        changes = {**changes, **{kind: new_rows(row.get(kind), changes[kind]) for kind in present}}
        changes = {name: value for name, value in changes.items() if value or name not in present}
    if changes:
        portal().update(entity, row_id, changes)


def new_rows(old: Any, wanted: Any) -> list[dict[str, Any]]:
    """Return the rows of *wanted* whose value is not among the *old* ones."""
    known = {str(row["VALUE"]).casefold() for row in rows_of(old or [])}
    return [row for row in rows_of(wanted) if str(row["VALUE"]).casefold() not in known]


def superseded(link: Link, version: datetime | None) -> bool:
    """Whether something newer was applied; updates with and without `updated_at` do not compare."""
    if version is not None:
        return link.version is not None and version < link.version
    accepted = unversioned(version)
    return accepted is not None and link.accepted is not None and accepted < link.accepted


def unversioned(version: datetime | None) -> datetime | None:
    """Return the time of acceptance as the version of an update that has none."""
    return job().accepted_at if version is None else None


def wait_for_create(entity: Entity, local_id: str) -> None:
    """Let a create go first, whether it was sent just before this job or is in trouble."""
    row = effects.get(key(entity, local_id))
    if row is not None and row.state != "done" and comes_back(row):
        raise Pending(f"{row.owner} is making {entity} {local_id}", service="bitrix")
    wait_while_young(f"the create of {entity} {local_id}")


def comes_back(row: effects.Row) -> bool:
    """Whether the job that last tried to make the row is another one, and will try again."""
    forgotten = PREDECESSOR_PATIENCE * settings().retry_time_scale
    if row.owner == job().id or (datetime.now(UTC) - row.updated_at).total_seconds() > forgotten:
        return False
    letter = dead_letters().get(row.owner)
    return letter is None or letter.state == "replayed"


def wait_while_young(what: str) -> None:
    """Give a job that was sent just before this one the time to go first."""
    grace = PREDECESSOR_GRACE * settings().retry_time_scale
    if job().age < grace:
        raise Pending(f"{what} may be on its way", service="bitrix", retry_after=grace - job().age)


def key(entity: Entity, local_id: str) -> str:
    """Return the name of the one effect that makes this row."""
    return f"bitrix.{entity}:{local_id}"


def digest(card: Card) -> str:
    """Return a fingerprint of a card, to recognise the same call."""
    text = json.dumps(card, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def lease() -> float:
    """Return how many seconds a call of ours may still take effect."""
    return bitrix(settings()).lease * settings().retry_time_scale
