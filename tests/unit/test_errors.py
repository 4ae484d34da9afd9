"""The exception tree: drawn as it is, and every fact survives the way through a message."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from classifiers import errors
from classifiers.errors import Duplicate, JobError, NotFound, UserError, kinds

OWN_FACTS = {Duplicate: {"existing_id": "42"}, UserError: {"reason": "bad_photo"}}
FACTS = {
    "service": "bitrix",
    "operation": "crm.deal.add",
    "code": "ERROR_CORE",
    "retry_after": 1.5,
}
CATEGORIES = {
    "transient",
    "rate_limit",
    "network",
    "permanent",
    "validation",
    "auth",
    "business",
    "user",
    "system",
    "database",
    "fatal",
}


def defined() -> dict[str, type[JobError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, JobError)
    }


def drawn() -> dict[str, str | None]:
    """Each class of the docstring's tree with its parent, read from the indentation."""
    parents: dict[str, str | None] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"( *)([A-Z]\w+)(?:  +\S.*)?", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        while path and path[-1][0] >= depth:
            path.pop()
        parents[name] = path[-1][1] if path else None
        path.append((depth, name))
    return parents


def build(kind: type[JobError]) -> JobError:
    return kind("the field is wrong", **FACTS, **OWN_FACTS.get(kind, {}))


every_class = pytest.mark.parametrize("kind", defined().values(), ids=defined())


def test_the_drawn_tree_is_the_tree():
    real = {
        name: kind.__base__.__name__ if kind is not JobError else None
        for name, kind in defined().items()
    }

    assert drawn() == real


def test_kinds_are_a_class_and_all_below_it():
    class PhotoError(UserError):
        pass

    class BlurredError(PhotoError):
        pass

    assert kinds(PhotoError) == [PhotoError, BlurredError]
    assert {*defined().values(), PhotoError, BlurredError} <= set(kinds())


@every_class
@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
    ids=["copy", "deepcopy", *(f"pickle{n}" for n in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_a_copy_keeps_every_fact(kind, again):
    error = build(kind)

    twin = again(error)

    assert type(twin) is kind
    assert vars(twin) == vars(error)
    assert vars(twin) == {"detail": "the field is wrong", **FACTS, **OWN_FACTS.get(kind, {})}
    assert twin.args == error.args
    assert str(twin) == str(error)


@every_class
def test_every_class_has_a_known_category(kind):
    assert kind.category in CATEGORIES


@every_class
def test_every_class_says_what_it_means(kind):
    assert kind.__doc__.strip()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (build(NotFound), "bitrix crm.deal.add: ERROR_CORE – the field is wrong"),
        (NotFound("gone", service="kie"), "kie – gone"),
        (NotFound(code="404"), "404"),
        (NotFound(), "NotFound"),
    ],
    ids=["all", "no code", "only code", "nothing"],
)
def test_it_reads_as_one_sentence(error, text):
    assert str(error) == text


@pytest.mark.parametrize("kind", [Duplicate, UserError])
def test_its_own_fact_is_required(kind):
    with pytest.raises(TypeError):
        kind("no fact")
