"""What is kept of a job's end, whoever else speaks of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery import Celery
from celery.app.task import Context
from celery.states import FAILURE, PENDING, RETRY, SUCCESS

from reliability import results as results_of_ours
from reliability.redaction import HIDDEN, Redaction
from tasks import events


@pytest.fixture
def results(redis_server, redis_client):
    """The result backend of an application of ours."""
    return Celery(backend=f"reliability.results:Results+{redis_server.url}").backend


def test_a_job_that_comes_back_has_no_result_yet(results, redis_client):
    results.store_result("job", ValueError("not yet"), RETRY)

    assert results.get_state("job") == PENDING
    assert redis_client.keys() == []


@pytest.mark.parametrize(
    ("state", "result"), [(SUCCESS, {"outcome": "sent"}), (FAILURE, ValueError("never"))]
)
def test_the_late_news_of_a_retry_does_not_undo_an_end(results, state, result):
    results.store_result("job", result, state)
    results.store_result("job", ValueError("not yet"), RETRY)

    assert results.get_state("job") == state


@pytest.mark.parametrize("kept", [True, False], ids=["results are kept", "results are not kept"])
def test_an_error_callback_that_cannot_be_called_keeps_no_job_from_its_end(redis_server, kept):
    """The dead letter is written after that."""
    where = f"Results+{redis_server.url}" if kept else "NoResults"
    backend = Celery(backend=f"reliability.results:{where}").backend
    request = Context(id="job", errbacks=[5])

    backend.mark_as_failure("job", ValueError("never"), request=request)

    assert not kept or backend.get_state("job") == FAILURE


SECRET = "s3cret-in-an-address"


@pytest.fixture
def hiding(monkeypatch):
    """One secret that is to be hidden."""
    for module in (results_of_ours, events):
        monkeypatch.setattr(module, "redaction", lambda: Redaction([SECRET]))


@pytest.mark.usefixtures("hiding")
def test_a_result_tells_no_secret_that_an_error_has_told(results, redis_client):
    traceback = f"Traceback: ValueError: https://{SECRET}/"
    error = ValueError(f"cannot read https://{SECRET}/")
    results.store_result("job", error, FAILURE, traceback, Context(id="job"))
    (stored,) = map(redis_client.get, redis_client.keys())

    assert SECRET not in stored
    assert "cannot read" in stored
    assert str(results.get_result("job")) == f"cannot read https://{HIDDEN}/"


@pytest.mark.usefixtures("hiding")
def test_flower_hears_no_secret_that_an_error_has_told():
    heard = []
    eventer = SimpleNamespace(enabled=True, send=lambda kind, **fields: heard.append(fields))
    job = events.Request.__new__(events.Request)
    job._eventer, job.id = eventer, "job"
    job._task = SimpleNamespace(send_events=True)
    job.send_event("task-failed", exception=f"ValueError('{SECRET}')", traceback=SECRET)

    assert heard == [{"uuid": "job", "exception": f"ValueError('{HIDDEN}')", "traceback": HIDDEN}]
