"""The one seam to the outside: gate → httpx → classify → raise. One try; the task base retries."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypedDict, Unpack, cast

import httpx

from classifiers.errors import (
    BillingExhausted,
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
from clients.spans import answered, calling
from config.services import Service
from reliability.gate import Gate, Permit


def _is_a_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


# They log whole URLs and headers below WARNING; ours hold a webhook's code or a bot's token. A
# level alone could be lowered again by whoever sets up logging.
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"):
    logging.getLogger(_name).addFilter(_is_a_warning)

logger = logging.getLogger(__name__)

USER_AGENT = "perennial"
AS_SENT = {"content-encoding", "content-length", "transfer-encoding"}  # of the body on the wire
REFUSED = (RateLimited, BillingExhausted)  # the gate says when such calls should come back
CONNECTED = ".connect_tcp.complete"  # httpcore's word; what stands before it tells to what
UNREACHABLE = (NetworkError, ServiceUnavailable, OutcomeUnknown)  # what the breaker counts


class Classify(Protocol):
    """A classifier of one upstream's answers; None means success."""

    def __call__(self, response: httpx.Response, *, safe: bool) -> JobError | None: ...


class Content(TypedDict, total=False):
    """What a request carries, in httpx's own words."""

    params: Mapping[str, str]
    headers: Mapping[str, str]
    json: Any
    data: Mapping[str, str]
    files: Mapping[str, Any]


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
        if isinstance(error, REFUSED) and self.come_back is not None:
            error.retry_after = self.come_back
        return error


class Upstream:
    """One upstream behind its gate. *credential* is what a refusal of ours is tied to.

    It is empty where every subject has one of its own, which is given with each call.
    *method_codes* are the codes of refusals that concern one method, not the whole upstream;
    *headers* go with every request.
    """

    def __init__(
        self,
        service: Service,
        gate: Gate,
        classify: Classify,
        *,
        base_url: str,
        credential: str = "",
        method_codes: frozenset[str] = frozenset(),
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.service = service
        self.gate = gate
        self.classify = classify
        self.credential = credential
        self.method_codes = method_codes
        self._slots = threading.BoundedSemaphore(service.in_flight)
        self.client = httpx.Client(
            base_url=base_url,
            transport=transport,
            headers={"User-Agent": USER_AGENT, "Accept": "application/json", **(headers or {})},
            event_hooks={"request": [self._watch]},
            timeout=httpx.Timeout(
                service.read_timeout,
                connect=service.connect_timeout,
                write=service.connect_timeout,
                pool=service.max_wait,
            ),
            limits=httpx.Limits(max_connections=service.in_flight),
        )

    def call(
        self,
        verb: str,
        path: str,
        *,
        safe: bool,
        subject: str = "",
        pace: float = 0.0,
        credential: str | None = None,
        hold: bool = True,
        yields: bool = False,
        operation: str = "",
        within: float | None = None,
        **content: Unpack[Content],
    ) -> httpx.Response:
        """Make one call and return the good answer. *safe*: repeating it cannot double an effect.

        One that *yields* lets others have the budget first, where it is short. *credential* is the
        *subject*'s own: refused, it is held for that subject alone. Not so without *hold*, for who
        can renew it, and will call `close_gate` otherwise. *operation* is what the call is called
        where the end of its path will not do. *within* so many seconds a person wants an answer:
        such a question holds and pauses nothing, for this host may be set up otherwise than those
        that work.

        Raises:
            JobError: what the answer, or its absence, means.
            RateLimited, BillingExhausted, CircuitOpen, Paused, CredentialHeld: it was not sent;
                *retry_after* says when to come back.
        """
        with self._slot():
            permit = self.permit(subject=subject, pace=pace, credential=credential, yields=yields)
            time.sleep(permit.wait)  # the gate has reserved that moment for us
            answer = self.send(
                permit,
                verb,
                path,
                credential=credential,
                hold=hold,
                operation=operation,
                within=within,
                **content,
            )
        error = answer.error(safe)
        if error is not None:
            raise error
        return cast("httpx.Response", answer.response)  # only a response can be a success

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Be one of the requests that this process may have under way: the bulkhead."""
        if not self._slots.acquire(timeout=self.service.max_wait):
            patience = self.service.patience
            raise RateLimited(
                f"{self.service.in_flight} requests are under way, and none of them ended",
                service=self.service.name,
                retry_after=random.uniform(patience, 2 * patience),  # noqa: S311  spreads returns
            )
        try:
            yield
        finally:
            self._slots.release()

    def permit(
        self,
        waiting: int = 1,
        *,
        subject: str = "",
        pace: float = 0.0,
        credential: str | None = None,
        yields: bool = False,
    ) -> Permit:
        """Ask the gate for one request on behalf of *waiting* jobs; raises what `admit` does."""
        return self.gate.admit(
            waiting=waiting,
            credential=self.credential if credential is None else credential,
            subject=subject,
            pace=pace,
            yields=yields,
        )

    def send(
        self,
        permit: Permit,
        verb: str,
        path: str,
        *,
        waiting: int = 1,
        credential: str | None = None,
        hold: bool = True,
        operation: str = "",
        within: float | None = None,
        **content: Unpack[Content],
    ) -> Answer:
        """Make one request, and tell the gate how it went for the *waiting* jobs in it.

        *credential*, *hold*, *operation* and *within* are those of `call`. Never raises for the
        answer.
        """
        operation = operation or path.rsplit("/", 1)[-1]
        patience = self.service.read_timeout if within is None else within
        try:
            response = self._exchange(verb, path, operation, patience, content)
        except httpx.RequestError as failure:
            lost = partial(
                classify_transport, failure, service=self.service.name, operation=operation
            )
            answer = Answer(None, lambda safe: lost(safe=safe))
        else:
            answer = Answer(response, lambda safe: self.classify(response, safe=safe))
        error = answer.error(True)
        come_back = self._report(permit, error, waiting)
        if within is None and (hold or not isinstance(error, Unauthorized)):
            self.close_gate(error, credential=credential, subject=permit.subject)
        return replace(answer, come_back=come_back)

    def _exchange(
        self, verb: str, path: str, operation: str, patience: float, content: Content
    ) -> httpx.Response:
        """Return the whole answer, if it ends within *patience* seconds."""
        request = self.client.build_request(verb, path, **content)
        with calling(self.service.name, verb, operation, request.headers) as span:
            request.stream = sending = Sending(request, patience)
            received = bytearray()
            with closing(self.client.send(request, stream=True)) as answer:
                answered(span, answer.status_code)
                for part in answer.iter_bytes():
                    received += part
                    if sending.left <= 0:
                        raise httpx.ReadTimeout("the answer did not end", request=request)
        headers = [item for item in answer.headers.multi_items() if item[0] not in AS_SENT]
        return httpx.Response(
            answer.status_code, headers=headers, content=bytes(received), request=request
        )

    def _watch(self, request: httpx.Request) -> None:
        request.extensions["trace"] = self._limit_sending

    def _limit_sending(self, event: str, told: Mapping[str, Any]) -> None:
        """Have the kernel give up, too, what is not acknowledged in time: it must never arrive.

        It goes on sending what a connection that we have closed still holds. When a network is
        back, a call would take effect minutes after we have given it up, and after another worker
        has looked for it in vain. httpx's own `socket_options` do not reach the connections that
        HTTP_PROXY or NO_PROXY speak of.
        """
        if event.endswith(CONNECTED) and hasattr(socket, "TCP_USER_TIMEOUT"):
            wire = told["return_value"].get_extra_info("socket")
            in_time = int(self.service.connect_timeout * 1000)  # ms; a `Service.lease` counts on it
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, in_time)

    def _report(self, permit: Permit, error: JobError | None, waiting: int) -> float | None:
        """Tell the gate; return when a refused call should come back."""
        match error:
            case RateLimited() if error.code.upper() not in self.method_codes:
                return self.gate.report_limited(permit, error.retry_after, waiting=waiting)
            case BillingExhausted():
                return self.gate.report_unpaid(permit, str(error), waiting=waiting)
            case _ if isinstance(error, UNREACHABLE):
                self.gate.report_failure(permit)
            case _:
                self.gate.report_success(permit)
        return None

    def close_gate(
        self,
        error: JobError | None,
        *,
        by: str = "upstream",
        credential: str | None = None,
        subject: str = "",
    ) -> None:
        """Close the gate where the upstream is well and does not want us.

        A *credential* that is the *subject*'s own closes it for that subject alone.
        """
        try:
            match error:
                case Unauthorized() if credential is not None:
                    self.gate.hold_credential(credential, str(error), subject=subject)
                case Unauthorized():
                    self.gate.hold_credential(self.credential, str(error))
                case Blocked() | NotConfigured() if error.code.upper() not in self.method_codes:
                    self.gate.pause(by=by, note=str(error))
        except InternalError as closed:  # Redis is away: the next call will close it
            logger.warning("%s; the gate stays open after %s", closed, error)

    def close(self) -> None:
        """Let the connections go, for when this process ends."""
        self.client.close()


class Sending(httpx.SyncByteStream):
    """The body of *request* on its way: it and the answer have *seconds* in all.

    httpx's timeouts are between two bytes: an upload or an answer that trickles would hold a thread
    for as long as it likes, and threads cannot be killed. The time counts from the first byte, when
    the connection stands.
    """

    def __init__(self, request: httpx.Request, seconds: float) -> None:
        self._request = request
        self._body = cast("httpx.SyncByteStream", request.stream)
        self._seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the answer has to be here."""
        return self._until - time.monotonic()

    def __iter__(self) -> Iterator[bytes]:
        self._until = time.monotonic() + self._seconds
        for part in self._body:
            yield part
            if self.left <= 0:
                raise httpx.WriteTimeout("the request did not end", request=self._request)
        # The transport looks it up when it begins to wait for the answer.
        self._request.extensions["timeout"]["read"] = self.left

    def close(self) -> None:
        self._body.close()
