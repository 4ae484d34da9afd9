"""What a job may carry: the payload of a task is its function's signature, checked by pydantic."""

from __future__ import annotations

import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
)
from pydantic_core import ErrorDetails

from classifiers.errors import InvalidData, MissingFields


def _as_text(value: Any) -> Any:
    """Ids may come as int or str and are kept as text; True is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _as_decimal(value: Any) -> Any:
    """Amounts may come as str, int or float; a float is taken by its shortest spelling.

    What binary arithmetic leaves far behind the comma (0.1 + 0.2) was meant by nobody.
    """
    if not isinstance(value, float):
        return value
    cents = round(value, 2)
    return repr(cents if abs(value - cents) < NOISE else value)


def _in_digits(amount: Decimal) -> Decimal:
    """Spell the amount without an exponent or a minus zero: 1E+3 is no number to a portal."""
    return Decimal(f"{abs(amount):f}")


def _as_moment(value: Any) -> Any:
    """Numbers would pass for seconds since 1970, with an offset that nobody has named."""
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-", value)):
        return value
    raise ValueError("must be ISO 8601 with an offset, such as 2026-01-31T12:00:00+03:00")


def _in_utc(moment: datetime) -> datetime:
    if moment.year in {MINYEAR, MAXYEAR}:
        raise ValueError("must be a date that exists everywhere")
    return moment.astimezone(UTC)


def _is_one_line(text: str) -> str:
    if text != text.strip() or any(unicodedata.category(sign) == "Cc" for sign in text):
        raise ValueError("must not begin or end with a blank, nor hold control characters")
    return text


def _is_text(value: Any) -> Any:
    """Half a surrogate pair is legal in JSON, but can be written neither to a wire nor a row."""
    if HALF_A_PAIR.search(json.dumps(value, ensure_ascii=False, default=str)):
        raise ValueError("holds half a character (a lone surrogate)")
    return value


HALF_A_PAIR = re.compile("[\ud800-\udfff]")
NOISE = 1e-6  # of a rouble; every third decimal that anybody means is larger
HIDDEN = "•••"
PROBLEMS = 5  # told in full; a caller with more of them has mixed up something else
LONGEST_PATH = 80  # characters

Id = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=190),
    BeforeValidator(_as_text),
    AfterValidator(_is_one_line),
]
Money = Annotated[
    Decimal,
    BeforeValidator(_as_decimal),
    Field(ge=0, max_digits=18, decimal_places=2, allow_inf_nan=False),
    AfterValidator(_in_digits),
    PlainSerializer(str, return_type=str),
]
Timestamp = Annotated[
    AwareDatetime,
    BeforeValidator(_as_moment),
    AfterValidator(_in_utc),
    PlainSerializer(datetime.isoformat, return_type=str),
]
Fields = Annotated[dict[Annotated[str, Field(min_length=1)], JsonValue], Field(max_length=500)]

VERSION = "payload_version"  # header of a message: the shape of its arguments
FIRST = 1  # the version of a message that names none: it was sent before there were any
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def version_of(headers: Mapping[str, Any] | None) -> Any:
    """Return what a message says of its payload's version; `Payload.read` judges it."""
    return (headers or {}).get(VERSION, FIRST)


class Payload:
    """The checked arguments of one task; *task* is its name on the wire.

    *version* counts the shapes that the arguments have had on the wire. A message may be older
    than the release that runs it: it was queued, parked or dead while its task changed.
    `upcasters[n]` turns the arguments of version n, by name and as JSON, into those of n + 1.
    """

    def __init__(
        self,
        task: str,
        body: Callable[..., Any],
        version: int = FIRST,
        upcasters: Mapping[int, Upcaster] | None = None,
    ) -> None:
        self.task = task
        self.version = version
        self._upcasters = _complete(task, version, upcasters or {})
        self.signature = inspect.signature(body, eval_str=True)
        self.model = _model(task, self.signature)
        self._open = {
            name
            for name, parameter in self.signature.parameters.items()
            if any(kind in (Id, Timestamp) for kind in _kinds(parameter.annotation))
        }

    def write(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as they go on the wire: by name, JSON only.

        Raises:
            MissingFields: if a required one is missing.
            InvalidData: if one cannot be used; the message names each and says why.
        """
        return self._checked(args, kwargs).model_dump(mode="json")

    def read(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], version: Any = None
    ) -> dict[str, Any]:
        """Return the arguments of a message as the body wants them. Raises as `write` does.

        *version* is that of the message, see `version_of`; None means ours.
        """
        if version is not None:
            kwargs = self.brought_up(args, kwargs, version)
        checked = self._checked(args, kwargs)
        return {name: getattr(checked, name) for name in type(checked).model_fields}

    def brought_up(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], version: Any
    ) -> Mapping[str, Any]:
        """Return the arguments by name in today's shape, from that of *version*, unchecked.

        Raises:
            InvalidData: if it is newer than ours, no version at all, or does not hold what its
                upcaster needs.
        """
        if type(version) is not int or version < FIRST:
            raise InvalidData(f"{self.task}: {VERSION} is no version of a payload")
        if version > self.version:
            raise InvalidData(
                f"{self.task}: sent by a newer release, as version {version} of its payload; "
                f"this one reads up to {self.version}",
                code="newer_payload",
            )
        if version == self.version:
            return kwargs
        if args:  # the names they stood for went with the old signature
            raise InvalidData(f"{self.task}: version {version} of its payload has to come by name")
        older = deepcopy(dict(kwargs))  # the message goes on as it came if the job comes back
        for step in range(version, self.version):
            older = self._step(step, older)
        return older

    def _step(self, version: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._upcasters[version](kwargs)
        except Exception as failure:
            raise InvalidData(
                f"{self.task}: version {version} of its payload cannot be brought up to "
                f"{version + 1}: {type(failure).__name__}"
            ) from failure

    def ids(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return the ids among the arguments that `read` has returned."""
        kinds = {name: _kinds(p.annotation) for name, p in self.signature.parameters.items()}
        return {
            name: value
            for name, value in arguments.items()
            if value is not None and any(kind == Id for kind in kinds[name])
        }

    def shown(self, kwargs: Mapping[str, Any]) -> str:
        """Return the arguments as a monitor may show them: ids and times, no person's words."""
        return repr({name: kwargs[name] if name in self._open else HIDDEN for name in kwargs})

    def private(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that `shown` hides."""
        return {name: kwargs[name] for name in kwargs if name not in self._open}

    def _checked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BaseModel:
        try:
            bound = self.signature.bind_partial(*args, **kwargs).arguments if args else kwargs
            return self.model.model_validate(bound)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_url=False, include_context=False)
            missing = all(problem["type"] == "missing" for problem in problems)
            told = [f"{_path(p['loc'])}: {_said(p)}" for p in problems[:PROBLEMS]]
            told += [f"and {more} more"] if (more := len(problems) - PROBLEMS) > 0 else []
            text = "; ".join(told)
            raise (MissingFields if missing else InvalidData)(f"{self.task}: {text}") from None
        except TypeError as error:
            raise InvalidData(f"{self.task}: {error}") from None


def _complete(task: str, version: int, upcasters: Mapping[int, Upcaster]) -> Mapping[int, Upcaster]:
    """Return the upcasters, which lead from every older version to the next one, or refuse them."""
    if version < FIRST or set(upcasters) != set(range(FIRST, version)):
        raise TypeError(
            f"{task} is at version {version} of its payload: it needs an upcaster for each one "
            f"before that, and has {sorted(upcasters)}"
        )
    return upcasters


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Return an annotation and, of a union, its parts."""
    return annotation, *get_args(annotation)


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)[:LONGEST_PATH] or "payload"


def _said(problem: ErrorDetails) -> str:
    words = {"missing": "is missing", "extra_forbidden": "is no argument of this task"}
    return words.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")


def _model(task: str, signature: inspect.Signature) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            parameter.annotation,
            ... if parameter.default is inspect.Parameter.empty else parameter.default,
        )
        for name, parameter in signature.parameters.items()
    }
    return create_model(
        task,
        __config__=ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False),
        __validators__={"_is_text": field_validator("*")(_is_text)},
        **fields,
    )
