"""What a portal makes of the `fields` it is sent: strings, checked amounts, multifield lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from sandbox.crm import MULTIFIELDS, Kind
from sandbox.refusals import BAD_AMOUNT, BAD_CURRENCY, BAD_EMAIL, Refusal

MONEY = ("OPPORTUNITY", "TAX_VALUE")
_SWITCHES = ("OPENED", "CLOSED", "EXPORT", "IS_MANUAL_OPPORTUNITY")
_REPEATS = ("IS_RECURRING", "IS_RETURN_CUSTOMER", "IS_REPEATED_APPROACH")
FLAGS = frozenset((*_SWITCHES, *_REPEATS))
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_CURRENCY = re.compile(r"[A-Z]{3}")
# How a stage ends a deal: won, lost, or neither (STAGE_SEMANTIC_ID of crm.deal.get).
_SEMANTICS = {"WON": "S", "LOSE": "F", "APOLOGY": "F"}


def clean(kind: Kind, fields: Mapping[str, Any] | list[Any]) -> dict[str, Any]:
    """Return what is stored of *fields*; unknown names are ignored, bad values raise Refusal."""
    given = fields if isinstance(fields, Mapping) else {}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in kind.multifields:
            found[name] = _lines(name, value)
        elif name == "CONTACT_IDS" and kind.knows("CONTACT_ID"):
            # crm.deal.get shows only the first; crm.deal.list does not know the list at all.
            found["CONTACT_ID"] = _text(value[0]) if isinstance(value, list) and value else None
        elif kind.knows(name):
            found[name] = _value(name, value)
    return found | _stage(found)


def _value(name: str, value: Any) -> Any:
    if name in MONEY:
        return _money(value)
    if name in FLAGS:
        return "Y" if value in (True, "Y", "y", "1") else "N"
    if name == "CURRENCY_ID" and not (isinstance(value, str) and _CURRENCY.fullmatch(value)):
        raise Refusal("", BAD_CURRENCY)
    if isinstance(value, Mapping | list) and not name.startswith("UF_CRM_"):
        return "Array"  # what PHP prints for it
    return _text(value)


def _text(value: Any) -> Any:
    """Every scalar is kept as PHP would print it; nested values of custom fields likewise."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, Mapping):
        return {str(key): _text(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_text(child) for child in value]
    return None if value is None else str(value)


def _money(value: Any) -> str:
    if value is None or value == "":
        return "0.00"
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if isinstance(value, bool) or not amount.is_finite():
        raise Refusal("", BAD_AMOUNT)
    return f"{amount:.2f}"


def _stage(fields: Mapping[str, Any]) -> dict[str, str]:
    """Derive the pipeline's own marks: `C1:WON` is the won stage of category 1."""
    stage = fields.get("STAGE_ID")
    category = fields.get("CATEGORY_ID")
    if stage:
        semantics = _SEMANTICS.get(stage.rpartition(":")[2], "P")
        return {"STAGE_SEMANTIC_ID": semantics, "CLOSED": "N" if semantics == "P" else "Y"}
    return {"STAGE_ID": f"C{category}:NEW"} if category not in (None, "0") else {}


def _lines(name: str, value: Any) -> list[dict[str, str]]:
    assert name in MULTIFIELDS
    lines = list(_rows(name, value))
    for line in lines:
        if name == "EMAIL" and line.get("VALUE") and not _EMAIL.fullmatch(line["VALUE"]):
            raise Refusal("ERROR_CORE", BAD_EMAIL)
    return lines


def _rows(name: str, value: Any) -> Iterator[dict[str, str]]:
    """Accept a list of lines, or a map whose keys are line ids (`n0` adds one)."""
    keyed = value if isinstance(value, Mapping) else {}
    rows = [("", row) for row in value] if isinstance(value, list) else keyed.items()
    for key, row in rows:
        if not isinstance(row, Mapping):
            continue
        line = {"VALUE": str(row.get("VALUE") or ""), "TYPE_ID": name}
        own = str(row.get("ID") or key)
        if own.isdecimal():
            line["ID"] = own
        if row.get("VALUE_TYPE") or "ID" not in line:
            line["VALUE_TYPE"] = str(row.get("VALUE_TYPE") or "WORK")
        yield line
