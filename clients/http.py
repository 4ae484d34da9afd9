"""The one seam to the outside: gate → httpx → classify → raise. One try; the task base retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import httpx

from classifiers.errors import (
    Blocked,
    InternalError,
    JobError,
    NetworkError,
    NotConfigured,
    OutcomeUnknown,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
)
from classifiers.http import classify_transport
from config.services import Service
from reliability.gate import Gate, Permit


def _is_a_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


# They log whole URLs and headers below WARNING; ours hold a webhook's code or a bot's token. A
# level alone could be lowered again by whoever sets up logging.
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_is_a_warning)

logger = logging.getLogger(__name__)

AS_SENT = {"content-encoding", "content-length", "transfer-encoding"}  # of the body on the wire
UNREACHABLE = (NetworkError, ServiceUnavailable, OutcomeUnknown)  # what the breaker counts


class Classify(Protocol):
    """A classifier of one upstream's answers; None means success."""

    def __call__(self, response: httpx.Response, *, safe: bool) -> JobError | None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request: the response, or the facts of why there is none.

    *verdict* takes the safety of one call and says what the failure means for it; a batch carries
    calls of both kinds. *come_back* is the gate's place in the line for calls that were refused.
    """

    response: httpx.Response | None
    verdict: Callable[[bool], JobError | None]
    come_back: float | None = None

    def error(self, safe: bool) -> JobError | None:
        """Return what the failure means for a call, an error of its own each time."""
        error = self.verdict(safe)
        if isinstance(error, RateLimited) and self.come_back is not None:
            error.retry_after = self.come_back
        return error


class Upstream:
    """One upstream behind its gate. *credential* is what a refusal of ours is tied to.

    *method_codes* are the codes of refusals that concern one method, not the whole upstream.
    """

    def __init__(
        self,
        service: Service,
        gate: Gate,
        classify: Classify,
        *,
        base_url: str,
        credential: str,
        method_codes: frozenset[str] = frozenset(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.service = service
        self.gate = gate
        self.classify = classify
        self.credential = credential
        self.method_codes = method_codes
        self.client = httpx.Client(
            base_url=base_url,
            transport=transport,
            headers={"User-Agent": "perennial", "Accept": "application/json"},
            timeout=httpx.Timeout(
                service.read_timeout,
                connect=service.connect_timeout,
                write=service.connect_timeout,
                pool=service.max_wait,
            ),
            limits=httpx.Limits(max_connections=service.in_flight),
        )

    def permit(self, waiting: int = 1) -> Permit:
        """Ask the gate for one request on behalf of *waiting* jobs. Raises a `Waiting` error."""
        return self.gate.admit(waiting=waiting, credential=self.credential)

    def send(self, permit: Permit, path: str, body: Any, *, waiting: int = 1) -> Answer:
        """POST *body* as JSON, once, and tell the gate how it went for the *waiting* jobs in it.

        Never raises for the answer.
        """
        try:
            response = self._post(path, body)
        except httpx.RequestError as failure:
            lost = partial(classify_transport, failure, service=self.service.name, operation=path)
            answer = Answer(None, lambda safe: lost(safe=safe))
        else:
            answer = Answer(response, lambda safe: self.classify(response, safe=safe))
        return replace(answer, come_back=self._report(permit, answer.error(True), waiting))

    def _post(self, path: str, body: Any) -> httpx.Response:
        """Return the whole answer.

        httpx's read timeout is between two bytes: a body that trickles would hold a thread for as
        long as it likes. Threads cannot be killed, so the whole answer has a deadline, too.
        """
        deadline = time.monotonic() + self.service.read_timeout
        content = bytearray()
        with self.client.stream("POST", path, json=body) as answer:
            for part in answer.iter_bytes():
                content += part
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer did not end", request=answer.request)
        headers = [item for item in answer.headers.multi_items() if item[0] not in AS_SENT]
        return httpx.Response(
            answer.status_code, headers=headers, content=bytes(content), request=answer.request
        )

    def _report(self, permit: Permit, error: JobError | None, waiting: int) -> float | None:
        """Tell the gate; return when a refused call should come back."""
        match error:
            case RateLimited() if error.code.upper() not in self.method_codes:
                return self.gate.report_limited(permit, error.retry_after, waiting=waiting)
            case _ if isinstance(error, UNREACHABLE):
                self.gate.report_failure(permit)
            case _:
                self.gate.report_success(permit)
                self.close(error)
        return None

    def close(self, error: JobError | None) -> None:
        """Close the gate where the upstream is well and does not want us."""
        try:
            match error:
                case Unauthorized():
                    self.gate.hold_credential(self.credential, str(error))
                case Blocked() | NotConfigured() if error.code.upper() not in self.method_codes:
                    self.gate.pause(by="upstream", note=str(error))
        except InternalError as closed:  # Redis is away: the next call will close it
            logger.warning("%s; the gate stays open after %s", closed, error)
