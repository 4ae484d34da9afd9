"""The list language of a portal: select, filter prefixes, order and pages of fifty."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import islice
from typing import Any

from sandbox.crm import INDEXED, MULTIFIELDS, PORTAL_TIME, Records

PAGE = 50  # fixed by the portal (UPSTREAMS 1.1)
UNCOUNTED = -1  # the `start` that skips the count

_AMOUNTS = ("OPPORTUNITY", "TAX_VALUE", "PROBABILITY")
_LINKS = ("ID", "CATEGORY_ID", "CONTACT_ID", "COMPANY_ID", "LEAD_ID", "QUOTE_ID")
_PEOPLE = ("ASSIGNED_BY_ID", "CREATED_BY_ID", "MODIFY_BY_ID")
_NUMBERS = frozenset((*_AMOUNTS, *_LINKS, *_PEOPLE))
_STAMPS = ("DATE_CREATE", "DATE_MODIFY", "LAST_ACTIVITY_TIME", "MOVED_TIME")
_DATES = frozenset((*_STAMPS, "BEGINDATE", "CLOSEDATE", "BIRTHDATE"))
_PREFIX = re.compile(r">=|<=|!@|!=|=%|%=|>|<|@|%|=|!|")  # the longest first, none is equality
_ORDERINGS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One filter entry: the prefix, the field, and the values asked for."""

    prefix: str
    field: str
    wanted: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        held = _held(self.field, value)
        if self.prefix in _ORDERINGS:
            compare = _ORDERINGS[self.prefix]
            limit = _comparable(self.field, self.wanted[0]) if self.wanted else None
            return limit is not None and any(
                one is not None and compare(one, limit) for one in held
            )
        if "%" in self.prefix:
            return any(_like(self.prefix, one, value) for one in self.wanted)
        same = any(_comparable(self.field, one) in held for one in self.wanted)
        return same != self.prefix.startswith("!")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; *total* is 0 when it was not counted."""

    rows: list[dict[str, Any]]
    total: int
    next: int | None


def find(
    records: Records,
    *,
    select: Iterable[str],
    filters: Mapping[str, Any],
    order: Mapping[str, Any],
    start: int,
) -> Page:
    """Answer one list call."""
    read = (_condition(records, key, value) for key, value in filters.items())
    conditions = [condition for condition in read if condition is not None]
    matches = _ordered(records, conditions, order)
    if start == UNCOUNTED:
        return Page([_shown(records, one, select) for one in islice(matches, PAGE)], 0, None)
    # The portal counts in pages: a start of 75 is the page that begins at 50.
    offset = max(start, 0) // PAGE * PAGE
    if conditions:
        found = list(matches)
        total, page = len(found), found[offset : offset + PAGE]
    else:
        total, page = len(records), list(islice(matches, offset, offset + PAGE))
    following = offset + PAGE if total > offset + PAGE else None
    return Page([_shown(records, one, select) for one in page], total, following)


def _condition(records: Records, key: str, value: Any) -> Condition | None:
    """Read one filter entry; a field the portal does not know is ignored, as it does."""
    match = _PREFIX.match(key)
    prefix = match.group() if match else ""
    field = key[len(prefix) :]
    known = field in records.kind.fields or field in records.kind.multifields
    if not known and not field.startswith(("UF_CRM_", "PARENT_ID_")):
        return None
    wanted = value.values() if isinstance(value, Mapping) else value
    return Condition(
        prefix, field, tuple(wanted) if isinstance(value, Mapping | list) else (value,)
    )


def _candidates(records: Records, conditions: list[Condition]) -> Iterable[int] | None:
    """Use an index where a condition asks for equality; None: look at all of them."""
    for condition in conditions:
        wanted = [str(one) for one in condition.wanted if one not in (None, "", False)]
        if condition.prefix not in ("", "=", "@") or len(wanted) < len(condition.wanted):
            continue
        if condition.field == "ID":
            asked = {int(one) for one in wanted if one.isdecimal()}
            return sorted(one for one in asked if one in records)
        if condition.field == "ORIGIN_ID":
            return sorted({found for one in wanted for found in records.of_origin(one)})
        if condition.field in INDEXED:
            return sorted(
                {found for one in wanted for found in records.of_line(condition.field, one)}
            )
    return None


def _ordered(
    records: Records, conditions: list[Condition], order: Mapping[str, Any]
) -> Iterator[int]:
    sorting = [(field, str(way).upper() == "DESC") for field, way in order.items()]
    by_id = not sorting or sorting[0][0] == "ID"
    backwards = bool(sorting) and by_id and sorting[0][1]
    candidates = _candidates(records, conditions)
    if candidates is None:
        walk = records.ids(_lower_bound(conditions), descending=backwards)
    else:
        walk = iter(sorted(candidates, reverse=backwards))
    if conditions:
        walk = (
            one
            for one in walk
            if all(condition.holds(records.value(one, condition.field)) for condition in conditions)
        )
    if by_id:
        return walk
    found = list(walk)
    for field, descending in reversed(sorting):
        # Stable sorts from the last field to the first.
        found.sort(key=partial(_sort_key, records, field), reverse=descending)
    return iter(found)


def _sort_key(records: Records, field: str, record: int) -> tuple[bool, Any]:
    """An unset value comes first, as in MySQL."""
    value = _comparable(field, records.value(record, field))
    return (value is not None, value if value is not None else 0)


def _lower_bound(conditions: list[Condition]) -> int:
    """Return the id after which a walk by `>ID` may begin, so that paging stays cheap."""
    bounds = [
        int(limit) - (condition.prefix == ">=")
        for condition in conditions
        if condition.field == "ID" and condition.prefix in (">", ">=") and condition.wanted
        if (limit := _comparable("ID", condition.wanted[0])) is not None
    ]
    return max(bounds, default=0)


def _held(field: str, value: Any) -> list[Any]:
    """Return the values a record holds in *field*, ready to compare; unset is one None."""
    if isinstance(value, list):
        texts = [line["VALUE"] if isinstance(line, Mapping) else line for line in value]
        return [_comparable(field, text) for text in texts] or [None]
    return [_comparable(field, value)]


def _comparable(field: str, value: Any) -> Any:
    """Return numbers, moments and texts as such; None for what is unset or makes no sense."""
    if value is None or value is False or value == "":
        return None
    try:
        if field in _NUMBERS:
            return Decimal(str(value))
        if field in _DATES:
            moment = datetime.fromisoformat(str(value))
            return moment if moment.tzinfo else moment.replace(tzinfo=PORTAL_TIME)
    except (InvalidOperation, ValueError):
        return None
    return str(value)


def _like(prefix: str, wanted: Any, value: Any) -> bool:
    """Match without regard to case, as the portal's database does."""
    text = str(value or "").lower()
    if prefix == "%":
        return str(wanted).lower() in text
    pattern = ".*".join(re.escape(part) for part in str(wanted).lower().split("%"))
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _shown(records: Records, record: int, select: Iterable[str]) -> dict[str, Any]:
    asked = list(select) or ["*", "UF_*"]
    view = records.view(record)
    names = [name for name in view if _selected(name, asked)]
    if any(name in MULTIFIELDS for name in asked) and "ID" not in names:
        names = ["ID", *names]
    return {name: view[name] for name in names}


def _selected(name: str, asked: list[str]) -> bool:
    if name in asked:
        return True
    if name in MULTIFIELDS:
        return False
    return ("UF_*" in asked) if name.startswith("UF_") else ("*" in asked)
