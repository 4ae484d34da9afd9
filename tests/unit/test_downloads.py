"""A finished video is fetched whole, or there is no file."""

from __future__ import annotations

import errno
import os
import time
import traceback
from types import SimpleNamespace

import httpx
import pytest

from classifiers.errors import (
    Fatal,
    InternalError,
    NetworkError,
    RateLimited,
    ServiceUnavailable,
)
from clients import downloads
from clients.downloads import client, fetch
from sandbox.mp4 import video

URL = "https://files.example/secret-name/video.mp4?sign=s3cr3t"
VIDEO = video("sofa")


def answering(status=200, **options):
    return lambda request: httpx.Response(status, **(options or {"content": VIDEO}))


def raising(error):
    def answer(request):
        raise error

    return answer


def using(answer):
    return client(httpx.MockTransport(answer))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "7.mp4"


def error_of(answer, file, url=URL):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test looks at what it is
        fetch(url, file, using=using(answer))
    assert list(file.parent.iterdir()) == []
    return caught.value


class Pieces(httpx.SyncByteStream):
    def __init__(self, *pieces, then=None):
        self.pieces, self.then = pieces, then

    def __iter__(self):
        yield from self.pieces
        if self.then is not None:
            raise self.then


def test_a_video_is_here_and_whole(file):
    assert fetch(URL, file, using=using(answering())) is True
    assert file.read_bytes() == VIDEO
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_was_there_gives_way_to_the_new_one(file):
    file.write_bytes(b"old")
    fetch(URL, file, using=using(answering()))

    assert file.read_bytes() == VIDEO


def test_nothing_is_there_before_all_of_it_is(file):
    seen = []

    class Watched(httpx.SyncByteStream):
        def __iter__(self):
            yield VIDEO[:4000]
            seen.extend(path.name for path in file.parent.iterdir())
            yield VIDEO[4000:]

    fetch(URL, file, using=using(lambda request: httpx.Response(200, stream=Watched())))

    assert len(seen) == 1
    assert seen[0].startswith("7.mp4.")
    assert seen[0].endswith(".part")


def test_a_job_that_runs_twice_does_not_spoil_the_file(file):
    other = using(answering())

    class Meanwhile(httpx.SyncByteStream):
        def __iter__(self):
            yield VIDEO[:4000]
            assert fetch(URL, file, using=other)
            yield VIDEO[4000:]

    fetch(URL, file, using=using(lambda request: httpx.Response(200, stream=Meanwhile())))

    assert file.read_bytes() == VIDEO
    assert list(file.parent.iterdir()) == [file]


def test_what_a_dead_worker_left_is_removed_and_what_a_living_one_writes_is_not(file):
    dead, living = (file.parent / f"{name}.mp4.0.part" for name in ("dead", "living"))
    dead.write_bytes(b"x")
    living.write_bytes(b"x")
    os.utime(dead, (0, time.time() - downloads.DEADLINE - 60))
    fetch(URL, file, using=using(answering()))

    assert set(file.parent.iterdir()) == {file, living}


# -- the link


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_link_that_is_gone_is_no_error(file, status):
    assert fetch(URL, file, using=using(answering(status, text="Expired"))) is False
    assert list(file.parent.iterdir()) == []


def hops(count):
    def answer(request):
        hop = int(request.url.params.get("hop", 0))
        if hop < count:
            return httpx.Response(302, headers={"Location": f"https://cdn.example/?hop={hop + 1}"})
        return httpx.Response(200, content=VIDEO)

    return answer


def test_a_link_may_lead_elsewhere_but_not_in_circles(file):
    assert fetch(URL, file, using=using(hops(3))) is True

    file.unlink()
    error = error_of(hops(4), file)

    assert (type(error), error.code) == (InternalError, "bad_link")


@pytest.mark.parametrize(
    "url", ["ftp://x/y.mp4", "file:///etc/passwd", "y.mp4", "https://x:y/", ""]
)
def test_a_link_is_http_or_none(file, url):
    with pytest.raises(InternalError) as caught:
        fetch(url, file)

    assert caught.value.code == "bad_link"
    assert list(file.parent.iterdir()) == []


def test_a_link_cannot_lead_to_what_is_not_http(file):
    class Mixed(httpx.BaseTransport):
        def handle_request(self, request):
            if request.url.scheme == "https":
                return httpx.Response(302, headers={"Location": "ftp://files.example/y.mp4"})
            return httpx.HTTPTransport().handle_request(request)

    with pytest.raises(InternalError) as caught:
        fetch(URL, file, using=client(Mixed()))

    assert caught.value.code == "bad_link"


# -- what goes wrong on the way

FAILURES = {
    "500": (answering(500), ServiceUnavailable),
    "503": (answering(503), ServiceUnavailable),
    "408": (answering(408), ServiceUnavailable),
    "429": (answering(429, headers={"Retry-After": "7"}), RateLimited),
    # Nobody can mend the credential, the plan or the settings of a link.
    "401": (answering(401), InternalError),
    "402": (answering(402), InternalError),
    "405": (answering(405), InternalError),
    "400": (answering(400), InternalError),
    "a redirect to nowhere": (answering(302), InternalError),
    "a redirect to no http": (raising(httpx.UnsupportedProtocol(f"no {URL}")), InternalError),
    "not reached": (raising(httpx.ConnectError(f"no {URL}")), NetworkError),
    "silent": (raising(httpx.ReadTimeout(f"no {URL}")), ServiceUnavailable),
    "broken off": (
        answering(stream=Pieces(VIDEO[:900], then=httpx.RemoteProtocolError("closed"))),
        ServiceUnavailable,
    ),
}


@pytest.mark.parametrize(("answer", "kind"), FAILURES.values(), ids=FAILURES)
def test_a_failure_leaves_nothing_and_may_be_tried_again(file, answer, kind):
    error = error_of(answer, file)

    assert type(error) is kind
    assert (error.service, error.operation) == ("kie", "download")


def test_the_time_that_the_storage_asks_for_is_kept(file):
    assert error_of(FAILURES["429"][0], file).retry_after == 7


@pytest.mark.parametrize(("answer", "_"), FAILURES.values(), ids=FAILURES)
def test_no_error_shows_the_link(file, answer, _):
    error = error_of(answer, file)
    told = "".join(traceback.format_exception(error)) + repr(vars(error))

    assert "s3cr3t" not in told
    assert "secret-name" not in told


def test_a_file_that_trickles_is_given_up(file, monkeypatch):
    clock = SimpleNamespace(now=0.0, time=time.time)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(downloads, "time", clock)

    class Trickle(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                clock.now += 7
                yield b"x"

    error = error_of(lambda request: httpx.Response(200, stream=Trickle()), file)

    assert type(error) is ServiceUnavailable
    assert clock.now == 126


def test_a_file_that_is_too_large_is_not_written_to_its_end(file, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", 10_000)
    endless = Pieces(VIDEO, VIDEO, then=AssertionError("it was read to the end"))
    error = error_of(lambda request: httpx.Response(200, stream=endless), file)

    assert (type(error), error.code) == (InternalError, "too_big")


def test_the_largest_file_fits(file, monkeypatch):
    monkeypatch.setattr(downloads, "LARGEST", len(VIDEO))

    assert fetch(URL, file, using=using(answering()))


@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", VIDEO[:-1]], ids=["nothing", "a page", "cut"]
)
def test_what_is_no_playable_video_is_no_video(file, content):
    error = error_of(answering(content=content), file)

    assert (type(error), error.code) == (InternalError, "broken_file")


# -- our own disk


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Fatal), (errno.EDQUOT, Fatal), (errno.EIO, InternalError)],
    ids=errno.errorcode.get,
)
def test_a_disk_that_takes_no_more_is_our_own_trouble(file, number, kind):
    failing = Pieces(VIDEO[:99], then=OSError(number, os.strerror(number), "/media/7"))
    error = error_of(lambda request: httpx.Response(200, stream=failing), file)

    assert type(error) is kind
    assert os.strerror(number) in error.detail
