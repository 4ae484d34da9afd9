"""Whether upstreams answer, and take the credentials in use: one harmless read of each.

The doctor asks for it by `--online` alone. Every question goes through the gate of its upstream, so
no limit is broken, and a gate that is closed stays closed: then nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from admin.doctor import OK, PROBLEM, SKIPPED, WARNING, Check, Finding
from classifiers.errors import (
    BillingExhausted,
    CredentialHeld,
    Forbidden,
    JobError,
    NetworkError,
    ServiceUnavailable,
    Unauthorized,
    Waiting,
)
from classifiers.http import plain_text
from clients.bitrix import portal
from clients.fhir import destinations
from clients.kie import kie
from clients.telegram import telegram
from clients.x import x
from config.settings import settings
from reliability.redaction import redaction
from storage import credentials

WITHIN = 10.0  # s for an answer, once it is its turn; whoever takes longer is not well


@dataclass(frozen=True, slots=True)
class Question:
    """What one upstream is asked: *ask* returns what there is to tell of its answer.

    *gate* is the one it goes through; *credential* says how to get another one, and *variables*
    where all that leads to the upstream is set.
    """

    name: str
    gate: str
    ask: Callable[[], str]
    credential: str
    variables: str


def upstreams() -> Iterator[Finding]:
    """Whether each upstream that is set up here answers, and takes our credential."""
    if not (asked := questions()):
        yield Finding("upstreams", SKIPPED, "none is set up here")
        return
    with ThreadPoolExecutor(len(asked)) as threads:  # who is silent keeps nobody waiting
        yield from threads.map(answer, asked)


def users() -> Iterator[Finding]:
    """Whose access X has refused for good; a question to X would spend what a user has left."""
    if settings().queues["x"]:
        return
    try:
        gone, given = credentials.lost("x")
    except SQLAlchemyError:
        yield Finding("users", SKIPPED, "database comes first")
        return
    if gone:
        yield Finding(
            "users",
            WARNING,
            f"{gone} of {given} users of X have to give us access again",
            "celery -A tasks bookmarks authorize USER_ID; their crawls wait, and say who they are",
        )
    else:
        yield Finding("users", OK, f"{given} users of X have given us access")


CHECKS: tuple[Check, ...] = (upstreams, users)


def questions() -> list[Question]:
    """Return what there is to ask, of the upstreams that are not left alone here."""
    config = settings()
    left_alone = {queue for queue, obstacle in config.queues.items() if obstacle}
    if config.x_client_id is None:  # a stand-in whose tokens never end needs no app
        left_alone.add("x")
    return [question for question in STANDING if question.name not in left_alone] + [
        Question(
            f"integration-{name}",
            f"integration-{name}",
            partial(_fhir, name),
            f"set another token of {name} in INTEGRATION_DESTINATIONS",
            "INTEGRATION_DESTINATIONS",
        )
        for name in config.destinations
    ]


def answer(question: Question) -> Finding:
    """Ask one upstream, and tell what came of it; secrets are in none of the words."""
    try:
        told = Finding("upstreams", OK, question.ask())
    except CredentialHeld as error:
        told = Finding(
            "upstreams",
            PROBLEM,
            f"was not asked: {error.detail}",
            f"{question.credential}; if the old one is good again: celery -A tasks gate reset "
            f"{question.gate}",
        )
    except Waiting as error:  # the gates tell the rest
        told = Finding("upstreams", SKIPPED, f"cannot be asked now: {error.detail}")
    except JobError as error:
        found, advice = _explained(question, error)
        told = Finding("upstreams", PROBLEM, f"{found}: {error.detail}", advice)
    found = redaction().of(f"{question.name}: {plain_text(told.found)}")
    return Finding(told.name, told.state, found, told.advice)


def _explained(question: Question, error: JobError) -> tuple[str, str]:
    match error:
        case Unauthorized():
            return "refuses our credential", question.credential
        case Forbidden():
            return "gives us no right", question.credential
        case BillingExhausted():
            return "wants money", "top the account up; its jobs wait meanwhile"
        case NetworkError():
            way = "look at the way there (name server, firewall, proxy) and at"
            return "cannot be reached", f"{way} {question.variables}"
        case ServiceUnavailable():
            return "is not well", "its jobs wait, and try again by themselves"
        case _:
            return "cannot be used", f"look at {question.variables}"


def _bitrix() -> str:
    rights = portal().rights(within=WITHIN)
    if "crm" not in rights:
        raise Forbidden(f"the webhook may use {', '.join(rights) or 'nothing'}, and not crm")
    return "takes our webhook, which may use the CRM"


def _kie() -> str:
    left = kie().credits(within=WITHIN)
    if left <= 0:
        raise BillingExhausted("no credits are left")
    return f"takes our key, {left:,.10g} credits are left"


def _telegram() -> str:
    return f"takes our token, the bot is @{telegram().name(within=WITHIN)}"


def _x() -> str:
    x().check_app(within=WITHIN)
    return "takes our app"


def _fhir(name: str) -> str:
    version = destinations()[name].version(within=WITHIN)
    return f"speaks FHIR {version} (which many servers say to anybody)"


STANDING = (
    Question(
        "bitrix",
        "bitrix",
        _bitrix,
        "make an inbound webhook in the portal, with the right CRM, and set BITRIX_WEBHOOK_URL to "
        "its address",
        "BITRIX_WEBHOOK_URL",
    ),
    Question(
        "kie",
        "kie-queries",
        _kie,
        "set KIE_API_KEY to a key of your account at KIE.AI",
        "KIE_BASE_URL and KIE_API_KEY",
    ),
    Question(
        "telegram",
        "telegram",
        _telegram,
        "set TELEGRAM_BOT_TOKEN to what @BotFather says",
        "TELEGRAM_BASE_URL and TELEGRAM_BOT_TOKEN",
    ),
    Question(
        "x",
        "x",
        _x,
        "set X_CLIENT_ID and X_CLIENT_SECRET to what X's developer console says",
        "X_BASE_URL, X_CLIENT_ID and X_CLIENT_SECRET",
    ),
)
