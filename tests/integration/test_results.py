"""What is kept of a job's end, whoever else speaks of it."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.states import FAILURE, PENDING, RETRY, SUCCESS


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
