"""The records of a portal: deals and contacts, with their indexes, in memory."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

MULTIFIELDS = ("PHONE", "EMAIL", "WEB", "IM", "LINK")
INDEXED = ("PHONE", "EMAIL")  # what crm.duplicate.findbycomm can search
PORTAL_TIME = timezone(timedelta(hours=3))  # the documented examples are Moscow time

_ORIGIN = ("ORIGINATOR_ID", "ORIGIN_ID", "SOURCE_ID", "SOURCE_DESCRIPTION")
_CAMPAIGN = ("UTM_SOURCE", "UTM_MEDIUM", "UTM_CAMPAIGN", "UTM_CONTENT", "UTM_TERM")
_STAMPS = ("DATE_CREATE", "DATE_MODIFY", "LAST_ACTIVITY_TIME", "LAST_ACTIVITY_BY")
_MOVES = ("MOVED_BY_ID", "MOVED_TIME", "IS_NEW", "STAGE_SEMANTIC_ID")
_MARKS = ("ID", "CREATED_BY_ID", "MODIFY_BY_ID", "QUOTE_ID", "HAS_PHONE", "HAS_EMAIL", "HAS_IMOL")
# Set by the portal itself; a value for one of them is ignored like an unknown field.
READ_ONLY = frozenset((*_STAMPS, *_MOVES, *_MARKS))

# What a record shows for a field that nobody has set (crm.deal.get, crm.contact.get).
_COMMON: dict[str, str | None] = {
    **dict.fromkeys(("LEAD_ID", "COMPANY_ID", "COMMENTS", *_ORIGIN, *_CAMPAIGN, *_STAMPS)),
    "ASSIGNED_BY_ID": "1",
    "CREATED_BY_ID": "1",
    "MODIFY_BY_ID": "1",
    "LAST_ACTIVITY_BY": "1",
    "OPENED": "Y",
}
DEAL_FIELDS: dict[str, str | None] = {
    **dict.fromkeys(("ID", "TITLE", "PROBABILITY", "CONTACT_ID", "QUOTE_ID", "BEGINDATE")),
    **dict.fromkeys(("CLOSEDATE", "ADDITIONAL_INFO", "LOCATION_ID", "MOVED_BY_ID", "MOVED_TIME")),
    "TYPE_ID": "SALE",
    "CATEGORY_ID": "0",
    "STAGE_ID": "NEW",
    "STAGE_SEMANTIC_ID": "P",
    "CURRENCY_ID": "RUB",
    "OPPORTUNITY": "0.00",
    "IS_MANUAL_OPPORTUNITY": "N",
    "TAX_VALUE": "0.00",
    "CLOSED": "N",
    "IS_NEW": "Y",
    "IS_RECURRING": "N",
    "IS_RETURN_CUSTOMER": "N",
    "IS_REPEATED_APPROACH": "N",
    **_COMMON,
}
CONTACT_FIELDS: dict[str, str | None] = {
    **dict.fromkeys(("ID", "POST", "HONORIFIC", "NAME", "SECOND_NAME", "LAST_NAME", "PHOTO")),
    **dict.fromkeys(("BIRTHDATE", "ORIGIN_VERSION", "FACE_ID", "ADDRESS", "ADDRESS_2")),
    **dict.fromkeys(("ADDRESS_CITY", "ADDRESS_POSTAL_CODE", "ADDRESS_REGION", "ADDRESS_COUNTRY")),
    "TYPE_ID": "CLIENT",
    "EXPORT": "Y",
    "HAS_PHONE": "N",
    "HAS_EMAIL": "N",
    "HAS_IMOL": "N",
    **_COMMON,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record: its word in method names and the fields it shows."""

    name: str
    fields: Mapping[str, str | None]
    multifields: tuple[str, ...] = ()

    def knows(self, field: str) -> bool:
        """Say whether a value for *field* is kept; custom fields always are."""
        return (field in self.fields and field not in READ_ONLY) or field.startswith(
            ("UF_CRM_", "PARENT_ID_")
        )


DEAL = Kind("deal", DEAL_FIELDS)
CONTACT = Kind("contact", CONTACT_FIELDS, MULTIFIELDS)


class Records:
    """All records of one kind, found in O(1) by id, by origin, and by phone or e-mail."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._rows: dict[int, dict[str, Any]] = {}
        self._ids: list[int] = []
        self._last_id = 0
        self._last_line = 0
        self._by_origin: dict[str, set[int]] = {}
        # One entry per line, so that the same number twice on one contact shows as well.
        self._by_line: dict[tuple[str, str], list[int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, record: int) -> bool:
        return record in self._rows

    def next_id(self) -> int:
        return self._last_id + 1

    def view(self, record: int) -> dict[str, Any]:
        """Return all fields of *record*, the unset ones with their defaults."""
        return {**self.kind.fields, **self._rows[record]}

    def value(self, record: int, field: str) -> Any:
        return self._rows[record].get(field, self.kind.fields.get(field))

    def add(self, fields: Mapping[str, Any], now: float) -> int:
        """Store a new record; *fields* are clean (see `crm_values`)."""
        self._last_id += 1
        stamp = portal_time(now)
        self._rows[self._last_id] = {"ID": str(self._last_id), "DATE_CREATE": stamp}
        self._ids.append(self._last_id)
        self.update(self._last_id, fields, now)
        return self._last_id

    def update(self, record: int, fields: Mapping[str, Any], now: float) -> None:
        row = self._rows[record]
        self._unindex(record, row)
        for name, value in fields.items():
            row[name] = self._merged(row.get(name, []), value) if name in MULTIFIELDS else value
        row["DATE_MODIFY"] = row["LAST_ACTIVITY_TIME"] = portal_time(now)
        if self.kind.multifields:
            row["HAS_PHONE"] = "Y" if row.get("PHONE") else "N"
            row["HAS_EMAIL"] = "Y" if row.get("EMAIL") else "N"
        self._index(record, row)

    def delete(self, record: int) -> None:
        self._unindex(record, self._rows.pop(record))
        del self._ids[bisect_left(self._ids, record)]

    def ids(self, above: int = 0, *, descending: bool = False) -> Iterator[int]:
        """Walk through the ids greater than *above*."""
        places = range(bisect_right(self._ids, above), len(self._ids))
        return map(self._ids.__getitem__, reversed(places) if descending else places)

    def of_origin(self, origin: str) -> set[int]:
        return self._by_origin.get(origin, set())

    def of_line(self, kind: str, value: str) -> list[int]:
        """Return the ids with this phone or e-mail, each once, ascending."""
        return sorted(set(self._by_line.get((kind, normal_line(kind, value)), ())))

    def doubled_origins(self) -> list[tuple[str, str, int]]:
        """Return (originator, origin, count) of every origin that has more than one record."""
        found: list[tuple[str, str, int]] = []
        for origin, records in self._by_origin.items():
            originators = [str(self.value(record, "ORIGINATOR_ID") or "") for record in records]
            found += [
                (originator, origin, originators.count(originator))
                for originator in sorted(set(originators))
                if originators.count(originator) > 1
            ]
        return found

    def doubled_lines(self) -> list[tuple[str, str, int]]:
        """Return (PHONE or EMAIL, value, count) of every value that stands in several lines."""
        return [
            (*line, len(records)) for line, records in self._by_line.items() if len(records) > 1
        ]

    def _merged(self, old: list[dict[str, str]], new: Iterable[Mapping[str, str]]) -> list[Any]:
        """Apply multifield lines: an own ID changes or deletes, no ID adds (UPSTREAMS 1.1)."""
        lines = {line["ID"]: line for line in old}
        for line in new:
            known = line.get("ID", "")
            if not line.get("VALUE"):
                lines.pop(known, None)
            elif known in lines:
                lines[known] = {**lines[known], **line}
            elif not known:
                self._last_line += 1
                lines[str(self._last_line)] = {"ID": str(self._last_line), **line}
        return list(lines.values())

    def _index(self, record: int, row: Mapping[str, Any]) -> None:
        if row.get("ORIGIN_ID"):
            self._by_origin.setdefault(row["ORIGIN_ID"], set()).add(record)
        for line in _lines(row):
            self._by_line.setdefault(line, []).append(record)

    def _unindex(self, record: int, row: Mapping[str, Any]) -> None:
        if row.get("ORIGIN_ID"):
            _drop(self._by_origin, row["ORIGIN_ID"], record)
        for line in _lines(row):
            _drop(self._by_line, line, record)


def _lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (kind, normal_line(kind, line["VALUE"])) for kind in INDEXED for line in row.get(kind, ())
    ]


def _drop(index: dict[Any, Any], key: Any, record: int) -> None:
    index[key].remove(record)
    if not index[key]:
        del index[key]


def normal_line(kind: str, value: str) -> str:
    """Return what two spellings of one phone or e-mail have in common."""
    if kind == "EMAIL":
        return value.strip().lower()
    digits = re.sub(r"\D", "", value)
    # Within Russia the country code 7 is dialled as 8.
    return "7" + digits[1:] if len(digits) == 11 and digits[0] == "8" else digits


def portal_time(now: float) -> str:
    """Write a moment as a portal does: `2024-08-30T14:29:00+03:00`."""
    return datetime.fromtimestamp(int(now), tz=UTC).astimezone(PORTAL_TIME).isoformat()
