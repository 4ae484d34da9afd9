"""The REST methods of a portal's CRM: what each takes, does, answers and refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.crm import CONTACT, DEAL, Records
from sandbox.crm_listing import find
from sandbox.crm_values import clean
from sandbox.refusals import (
    CONTACT_NOT_FOUND,
    ELEMENT_NOT_FOUND,
    NO_ID,
    NOT_FOUND,
    Refusal,
)

_COMM_VALUES = 20  # crm.duplicate.findbycomm looks at so many values and returns so many ids
_ORIGIN_FIELDS = ("ORIGINATOR_ID", "ORIGIN_ID")
Params = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method did: its result, and for a write the effect in words and the event."""

    result: Any
    total: int | None = None
    next: int | None = None
    effect: str = ""
    event: str = ""
    record: int = 0


class Crm:
    """Deals and contacts behind their REST methods."""

    def __init__(self, language: str = "en", rights: Sequence[str] = ("crm",)) -> None:
        self.deals = Records(DEAL)
        self.contacts = Records(CONTACT)
        self._title = "Сделка #{}" if language == "ru" else "Deal #{}"
        self._methods: dict[str, Callable[[Params, float], Outcome]] = {
            "crm.duplicate.findbycomm": self._find_by_comm,
            "scope": lambda _params, _now: Outcome(list(rights)),
        }
        for records in (self.deals, self.contacts):
            for verb, method in (
                ("add", self._add),
                ("update", self._update),
                ("get", self._get),
                ("list", self._list),
                ("delete", self._delete),
            ):
                self._methods[f"crm.{records.kind.name}.{verb}"] = _bound(method, records)

    def call(self, method: str, params: Params, now: float) -> Outcome:
        """Carry out one method, named in lower case; raise Refusal instead of an answer."""
        known = self._methods.get(method)
        if known is None:
            raise Refusal("ERROR_METHOD_NOT_FOUND")
        return known(params, now)

    def essentials(self, method: str, params: Params) -> dict[str, str]:
        """Return the ids a call is about: its own, and those of the record it names."""
        found: dict[str, str] = {}
        for source in (argument(params, "filter"), argument(params, "fields")):
            for key, value in source.items() if isinstance(source, Mapping) else ():
                name = key.lstrip("><=!@%")
                if name in (*_ORIGIN_FIELDS, "ID"):
                    found[name] = str(value)
        record = _identity(params)
        records = self.deals if method.startswith("crm.deal.") else self.contacts
        if record and record in records:
            for name in _ORIGIN_FIELDS:
                if records.value(record, name):
                    found.setdefault(name, records.value(record, name))
        return found | ({"ID": str(record)} if record else {})

    def _add(self, records: Records, params: Params, now: float) -> Outcome:
        fields = clean(records.kind, _fields(params))
        if records is self.deals and not fields.get("TITLE"):
            fields["TITLE"] = self._title.format(records.next_id())
        record = records.add(fields, now)
        return _written(records, record, "added", "ADD", record)

    def _update(self, records: Records, params: Params, now: float) -> Outcome:
        record = _required_identity(params)
        fields = _fields(params)
        if record not in records:
            raise Refusal("", NOT_FOUND if records is self.deals else CONTACT_NOT_FOUND)
        records.update(record, clean(records.kind, fields), now)
        return _written(records, record, "updated", "UPDATE", True)

    def _delete(self, records: Records, params: Params, _now: float) -> Outcome:
        record = _required_identity(params)
        if record not in records:
            deal = records is self.deals
            raise Refusal("", NOT_FOUND) if deal else Refusal("ERROR_CORE", ELEMENT_NOT_FOUND)
        records.delete(record)
        return _written(records, record, "deleted", "DELETE", True)

    def _get(self, records: Records, params: Params, _now: float) -> Outcome:
        record = _required_identity(params)
        if record not in records:
            raise Refusal("", NOT_FOUND)
        shown = records.view(record)
        return Outcome({name: value for name, value in shown.items() if value != []})

    def _list(self, records: Records, params: Params, _now: float) -> Outcome:
        select = argument(params, "select", [])
        page = find(
            records,
            select=select if isinstance(select, list) else [],
            filters=_map(params, "filter"),
            order=_map(params, "order"),
            start=_integer(argument(params, "start", 0)),
        )
        return Outcome(page.rows, page.total, page.next)

    def _find_by_comm(self, params: Params, _now: float) -> Outcome:
        kind = str(argument(params, "type", "")).upper()
        if not kind:
            raise Refusal("Communication type is not defined", "Parameter 'type' is required.")
        if kind not in ("PHONE", "EMAIL"):
            raise Refusal(f"Communication type '{kind}' is not supported in current context")
        values = argument(params, "values", [])
        if not isinstance(values, list) or not values:
            raise Refusal("Communication values is not defined", "Parameter 'values' is required.")
        owner = str(argument(params, "entity_type", "CONTACT")).upper()
        asked = [value for value in values if isinstance(value, str) and value][:_COMM_VALUES]
        found = {one for value in asked for one in self.contacts.of_line(kind, value)}
        # The simulated portal has neither leads nor companies.
        if owner != "CONTACT" or not found:
            return Outcome([])
        return Outcome({"CONTACT": sorted(found)[:_COMM_VALUES]})


def argument(params: Params, name: str, default: Any = None) -> Any:
    """Return a parameter by name; portals take `filter`, `FILTER`, `Filter` and `arFilter`."""
    for key, value in params.items():
        if key.lower() in (name, f"ar{name}") and value is not None:
            return value
    return default


def _bound(
    method: Callable[[Records, Params, float], Outcome], records: Records
) -> Callable[[Params, float], Outcome]:
    return lambda params, now: method(records, params, now)


def _written(records: Records, record: int, done: str, event: str, result: Any) -> Outcome:
    name = records.kind.name
    return Outcome(
        result,
        effect=f"{name} {record} {done}",
        event=f"ONCRM{name.upper()}{event}",
        record=record,
    )


def _fields(params: Params) -> Any:
    fields = argument(params, "fields")
    if not isinstance(fields, Mapping | list):
        raise Refusal("", "Parameter 'fields' must be array.")
    if not isinstance(argument(params, "params", {}), Mapping | list):
        raise Refusal("", "Parameter 'params' must be array.")
    return fields


def _map(params: Params, name: str) -> Mapping[str, Any]:
    value = argument(params, name, {})
    if not isinstance(value, Mapping | list):
        raise Refusal("", f"Parameter '{name}' must be array.")
    return value if isinstance(value, Mapping) else {}


def _identity(params: Params) -> int:
    value = argument(params, "id")
    return int(value) if re.fullmatch(r"\s*\d{1,18}\s*", str(value)) else 0


def _required_identity(params: Params) -> int:
    record = _identity(params)
    if not record:
        raise Refusal("", NO_ID)
    return record


def _integer(value: Any) -> int:
    return int(value) if re.fullmatch(r"-?\d{1,9}", str(value)) else 0
