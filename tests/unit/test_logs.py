"""A line of a log: what it says, what it looks like, and what it never holds."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from config.settings import settings
from reliability.redaction import HIDDEN, redaction
from tasks import app, logs, traces

SECRET = "s3cret-t0ken"
QUOTED = 'pa"ss\\word'  # it looks otherwise inside of JSON


@pytest.fixture(autouse=True)
def configured(nowhere):
    nowhere.setenv("KIE_API_KEY", SECRET)
    nowhere.setenv("ADMIN_TOKEN", QUOTED)
    for cached in (settings, redaction):
        cached.cache_clear()
    yield
    for cached in (settings, redaction):
        cached.cache_clear()


def record(text: str = "said", *args, level: int = logging.INFO, **extra) -> logging.LogRecord:
    made = logging.LogRecord("tasks.video", level, __file__, 1, text, args, extra.pop("exc", None))
    vars(made).update(extra)
    return made


def line(of: logging.LogRecord) -> dict:
    return json.loads(logs.formatter(logs.JSON).format(of))


class Message:
    """What a worker takes in, as far as a line says of it."""

    def __init__(self, task: str, **headers) -> None:
        self.headers = {"id": "job-1", "root_id": "root-1", "task": task, **headers}
        self.delivery_info = {"routing_key": "kie"}


def test_a_line_says_when_how_loud_what_and_who():
    said = line(record("said %d", 7, level=logging.WARNING))

    assert said.pop("timestamp").endswith("+00:00")
    assert said == {"level": "warning", "event": "said 7", "component": "tasks.video"}


@pytest.mark.parametrize(
    ("task", "prefix"),
    [
        ("bitrix.create_deal", "[QUEUE_DEAL]"),
        ("bitrix.update_deal", "[QUEUE_DEAL_UPDATE]"),
        ("bitrix.create_contact", "[QUEUE_CONTACT]"),
        ("bitrix.update_contact", "[QUEUE_CONTACT_UPDATE]"),
        ("bitrix.handle_webhook", "[QUEUE]"),
        ("video.generate", "[QUEUE]"),
        ("nobody.knows", "[QUEUE]"),
    ],
)
def test_the_prefix_follows_from_the_task(task: str, prefix: str):
    with traces.about(Message(task)):
        said = line(record())

    assert said["event"] == f"{prefix} said"
    assert said["task"] == task


def test_every_task_with_a_prefix_of_its_own_exists():
    app.loader.import_default_modules()

    assert set(logs.PREFIXES) <= set(app.tasks)


def test_a_message_that_is_taken_in_is_named_with_its_tries():
    with traces.about(Message("video.generate", spent={"Retryable": 2})):
        said = line(record())

    facts = {"message_id": "job-1", "trace_id": "root-1", "queue": "kie", "attempt": 3}
    assert facts.items() <= said.items()
    assert "trace_id" not in line(record())


def test_celerys_lines_about_jobs_of_other_threads_name_them():
    said = line(record(data={"id": "job-2", "name": "video.send", "args": "()"}))

    assert (said["message_id"], said["task"]) == ("job-2", "video.send")
    assert "args" not in said


def failed(text: str) -> tuple:
    try:
        int(text)
    except ValueError:
        return sys.exc_info()


HOLDERS = {
    "text": lambda secret: record(f"GET https://host/{secret}/x"),
    "argument": lambda secret: record("said %s", secret),
    "traceback": lambda secret: record(exc=failed(f"refused {secret}")),
    "stack": lambda secret: record(stack_info=f"in {secret}"),
    "ids": lambda secret: record(data={"id": secret, "name": secret}),
    "name of an error": lambda secret: record(error_type=secret),
}


@pytest.mark.parametrize("secret", [SECRET, QUOTED], ids=["plain", "quoted"])
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("shape", [logs.JSON, logs.CONSOLE])
def test_no_part_of_a_line_holds_a_secret(shape: str, holder: str, secret: str):
    text = logs.formatter(shape).format(HOLDERS[holder](secret))

    assert HIDDEN in text
    assert secret not in text
    assert json.dumps(secret)[1:-1] not in text
    assert repr(secret)[1:-1] not in text


def test_an_error_is_named_and_its_traceback_is_one_field():
    said = line(record(exc=failed("no")))

    assert said["error_type"] == "ValueError"
    assert said["exception"].startswith("Traceback")
    assert line(record(error_type="InvalidData"))["error_type"] == "InvalidData"


@pytest.mark.parametrize("text", ["Заказ «7» – готов", "half \ud83d a pair", "two\nlines", "\x00"])
def test_whatever_is_said_is_one_line_of_json_that_can_be_written(text: str):
    written = logs.formatter(logs.JSON).format(record(text))
    written.encode()

    assert "\n" not in written
    assert json.loads(written)["event"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "stream", "shape"),
    [
        ("", io.StringIO(), logs.JSON),
        ("", None, logs.JSON),
        ("", Terminal(), logs.CONSOLE),
        ("json", Terminal(), logs.JSON),
        ("console", io.StringIO(), logs.CONSOLE),
    ],
)
def test_the_shape_suits_the_reader_unless_it_is_set(monkeypatch, wanted, stream, shape):
    monkeypatch.setenv("LOG_FORMAT", wanted)
    settings.cache_clear()

    assert logs.shape_for(stream) == shape


def test_a_line_for_a_terminal_is_no_json():
    text = logs.formatter(logs.CONSOLE).format(record("said %d", 7))

    assert "said 7" in text
    assert "{" not in text
