"""How we call KIE.AI: begin a generation, look at it, renew a link. Shapes: UPSTREAMS 2.1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from classifiers import kie as classifier
from classifiers.errors import (
    BillingExhausted,
    InternalError,
    InvalidData,
    JobError,
    NetworkError,
    NotConfigured,
    NotFound,
    Pending,
    ServiceUnavailable,
    UserError,
)
from clients.http import Classify, Upstream
from clients.process import PerProcess
from config import services
from config.services import Service
from config.settings import settings
from reliability.connection import redis
from reliability.gate import Gate, Permit

CREATE = f"api/v1/jobs/{classifier.CREATE}"
LOOK = f"api/v1/jobs/{classifier.LOOK}"
RENEW = "api/v1/common/download-url"
CREDITS = "api/v1/chat/credit"


@dataclass(frozen=True, slots=True)
class Model:
    """What a model wants as `input`: *image* names the photo's field, a list where it is plural.

    *prompt* is the most characters it takes; *fixed* is the same for every video.
    """

    image: str
    prompt: int
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def input(self, image_url: str, prompt: str) -> dict[str, Any]:
        """Return the whole `input` of one video."""
        image = [image_url] if self.image.endswith("s") else image_url
        return {"prompt": prompt, self.image: image, **self.fixed}


# What docs.kie.ai listed on 2026-08-19, and the one of UPSTREAMS 2.1. What stands as fixed is
# required by the model; everything else is left to its own defaults, which are the cheaper ones.
MODELS: Mapping[str, Model] = {
    # "Required", say clients of third parties; the official page does not.
    "sora-2-image-to-video": Model("image_urls", 10_000, {"upload_method": "s3"}),
    "kling-2.6/image-to-video": Model("image_urls", 1_000, {"sound": False, "duration": "5"}),
    "wan/2-6-image-to-video": Model("image_urls", 5_000),
    "hailuo/2-3-image-to-video-standard": Model("image_url", 5_000),
    "bytedance/v1-pro-image-to-video": Model("image_url", 10_000),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a generation is. *state*: KIE's own word, empty where it knows no such task (yet).

    waiting → queuing → generating → success | fail; an unknown word means that it goes on.
    *result_url* is where the video is, for some hours; *callback_url* the one given to `create`.
    """

    task_id: str
    state: str = ""
    result_url: str | None = None
    fail_code: str = ""
    fail_message: str = ""
    callback_url: str | None = None


class Kie:
    """KIE.AI with one *model*. Questions have a gate of their own: see `config.services`."""

    def __init__(self, creates: Upstream, queries: Upstream, model: str) -> None:
        self.creates = creates
        self.queries = queries
        self.model = model

    def create(self, image_url: str, prompt: str, callback_url: str | None = None) -> str:
        """Begin a generation, which costs money, and return the id of its task.

        Raises:
            NotConfigured: KIE_MODEL is not one we know the input of; the gate is paused with it.
            UserError: `prompt_too_long`, for this model; the user has to say what to leave out.
                Nothing was sent.
        """
        body = {"model": self.model, "input": self._input(image_url, prompt)}
        if callback_url is not None:
            body["callBackUrl"] = callback_url
        answer = self.creates.call("POST", CREATE, safe=False, json=body)
        return classifier.task_id(answer.json())

    def _input(self, image_url: str, prompt: str) -> dict[str, Any]:
        model = MODELS.get(self.model)
        if model is None:
            known = ", ".join(MODELS)
            unknown = NotConfigured(
                f"KIE_MODEL {self.model!r} is not known; known are {known}",
                service=classifier.SERVICE,
                operation=classifier.CREATE,
            )
            self.creates.close_gate(unknown, by="settings")
            raise unknown
        if len(prompt) > model.prompt:
            raise UserError(
                f"a prompt of {len(prompt)} characters; {self.model} takes {model.prompt}",
                reason="prompt_too_long",
                service=classifier.SERVICE,
                operation=classifier.CREATE,
            )
        return model.input(image_url, prompt)

    def stop_creating(self, failure: JobError) -> None:
        """Close the gate of `create` where a failed generation says that others will fail, too."""
        if isinstance(failure, BillingExhausted):
            self.creates.gate.report_unpaid(Permit(0.0), str(failure))
        else:
            self.creates.close_gate(failure)

    def look(self, task_id: str, *, yields: bool = False) -> Progress:
        """Return how far a generation is; one that *yields* lets others look first.

        Raises:
            Pending: KIE could not be asked just now; that is no failure of the generation.
        """
        try:
            answer = self.queries.call(
                "GET", LOOK, safe=True, yields=yields, params={"taskId": task_id}
            )
        except NotFound:
            return Progress(task_id)
        except (NetworkError, ServiceUnavailable) as error:
            raise Pending(
                f"KIE could not be asked: {error.detail}",
                service=error.service,
                operation=error.operation,
                code=error.code,
            ) from error
        return _progress(task_id, answer.json())

    def next_look(self, pause: float) -> float:
        """Return the seconds until a look that is due in *pause* seconds has its turn."""
        return self.queries.gate.queue_up(pause)

    def fresh_link(self, url: str) -> str | None:
        """Return another link to the file behind *url*, None where KIE has none any more."""
        try:
            answer = self.queries.call("POST", RENEW, safe=True, json={"url": url})
        except (NotFound, InvalidData):
            return None
        return next(_links(answer.json().get("data")), None)

    def credits(self, *, within: float) -> float:
        """Return the credits that are left, for a person: see `Upstream.call`."""
        left = self.queries.call("GET", CREDITS, safe=True, within=within).json().get("data")
        if isinstance(left, bool) or not isinstance(left, int | float):
            raise InternalError(
                "the answer names no credits", service=classifier.SERVICE, operation="credit"
            )
        return float(left)

    def close(self) -> None:
        """Let the connections go."""
        self.creates.close()
        self.queries.close()


def about_the_question(response: httpx.Response, *, safe: bool) -> JobError | None:
    """Classify an answer, but take the news that a generation has failed as a good one.

    KIE is well then: it is no failure for the breaker, and `look` tells the news.
    """
    error = classifier.classify(response, safe=safe)
    return None if error is not None and _is_over(error) else error


def _is_over(error: JobError) -> bool:
    return error.operation == classifier.LOOK and error.code in classifier.GENERATION_OVER


def _progress(task_id: str, body: Mapping[str, Any]) -> Progress:
    data = _object(body.get("data"))
    code = _text(body.get("code"))
    if code in classifier.GENERATION_OVER:
        state, told = "fail", (code, _text(body.get("msg")))
    else:
        state, told = _text(data.get("state")).lower() or "unknown", ("", "")
    return Progress(
        task_id,
        state=state,
        result_url=next(_links(data.get("resultJson")), None),
        fail_code=_text(data.get("failCode")) or told[0],
        fail_message=_text(data.get("failMsg")) or told[1],
        callback_url=_text(_object(data.get("param")).get("callBackUrl")) or None,
    )


def _links(value: Any) -> Iterator[str]:
    """Yield the links in a result, which KIE writes as JSON, as JSON in a string, or plainly."""
    match _decoded(value):
        case str() as link if link.startswith(("https://", "http://")):
            yield link
        case list() as links:
            for link in links:
                yield from _links(link)
        case dict() as result:
            for name in ("resultUrls", "resultUrl", "video_url", "url"):
                yield from _links(result.get(name))


def _object(value: Any) -> Mapping[str, Any]:
    found = _decoded(value)
    return found if isinstance(found, dict) else {}


def _decoded(value: Any) -> Any:
    """Return what a string says as JSON, anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


@PerProcess
def kie() -> Kie:
    """Return the KIE.AI of this process, as the settings describe it.

    Raises:
        NotConfigured: if KIE_API_KEY is not set.
    """
    config = settings()
    if config.kie_api_key is None:
        raise NotConfigured("KIE_API_KEY is not set", service=classifier.SERVICE)
    key = config.kie_api_key.get_secret_value()

    def upstream(service: Service, classify: Classify) -> Upstream:
        return Upstream(
            service,
            Gate(
                redis(), service, prefix=config.redis_stream_prefix, scale=config.retry_time_scale
            ),
            classify,
            base_url=config.kie_base_url,
            credential=key,
            headers={"Authorization": f"Bearer {key}"},
        )

    creates = upstream(services.kie(config), classifier.classify)
    queries = upstream(services.kie_queries(config), about_the_question)
    return Kie(creates, queries, config.kie_model)
