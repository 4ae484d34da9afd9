"""The spool on a real disk: many processes write, nothing is lost, nothing is read by others."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from reliability.spool import Spool


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "deep" / "spool")


def drained(spool):
    lines = []
    spool.drain(lines.append)
    return lines


def test_lines_come_out_in_the_order_they_went_in(spool):
    for line in ("один", "two", "three"):
        spool.append(line)

    assert spool.waiting()
    assert drained(spool) == ["один", "two", "three"]
    assert not spool.waiting()
    assert drained(spool) == []


def test_the_files_are_ours_alone(spool):
    old = os.umask(0)
    try:
        spool.append("secret")
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in spool.file.parent.iterdir()}

    assert stat.S_IMODE(spool.file.parent.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}


def test_an_empty_spool_makes_no_folder(spool):
    assert spool.drain(print) == 0
    assert not spool.file.parent.exists()


def test_many_processes_write_whole_lines(spool):
    program = (
        "import sys; from pathlib import Path; from reliability.spool import Spool\n"
        "for n in range(50): Spool(Path(sys.argv[1])).append(sys.argv[2] * 5000 + f' {n}')"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(spool.file.parent), name])
        for name in "abc"
    ]
    taken = []
    while any(writer.poll() is None for writer in writers):
        spool.drain(taken.append)
    spool.drain(taken.append)

    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sorted(taken) == sorted(f"{name * 5000} {n}" for name in "abc" for n in range(50))


def test_two_who_drain_at_once_take_each_line_once(spool):
    for n in range(200):
        spool.append(str(n))
    taken = []

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: spool.drain(taken.append), range(4)))

    assert sum(counts) == 200
    assert sorted(taken, key=int) == [str(n) for n in range(200)]


def test_a_refused_line_stays_and_the_others_go(spool):
    for line in ("small", "huge", "little"):
        spool.append(line)

    def bury(line):
        if line == "huge":
            raise OutOfMemoryError("used memory > 'maxmemory'")

    assert spool.drain(bury) == 2
    assert drained(spool) == ["huge"]


def test_an_absent_redis_is_asked_once(spool):
    for line in "abc":
        spool.append(line)
    asked = []

    def bury(line):
        asked.append(line)
        raise RedisConnectionError("refused")

    assert spool.drain(bury) == 0
    assert asked == ["a"]
    assert drained(spool) == ["a", "b", "c"]


def test_a_torn_line_is_kept_aside_and_harms_no_other(spool):
    spool.append("whole")
    with spool.file.open("ab") as file:
        file.write('{"torn": "ю'.encode()[:-1])
    spool.append("after the crash")

    def bury(line):
        if line.startswith("{"):
            raise ValueError("not a dead letter")

    assert spool.drain(bury) == 2
    assert spool.corrupt.read_bytes() == '{"torn": "ю'.encode()[:-1] + b"\n"
    assert not spool.waiting()


def test_a_whole_last_line_without_its_end_is_a_line(spool):
    spool.append("first")
    with spool.file.open("ab") as file:
        file.write(b"last")

    assert drained(spool) == ["first", "last"]


def test_a_crash_while_draining_leaves_every_line(spool):
    for line in "abc":
        spool.append(line)

    def crash(line):
        if line == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool.drain(crash)

    assert drained(spool) == ["a", "b", "c"]


def test_a_full_disk_leaves_no_half_line(spool):
    """A file size limit refuses the rest of a write, as a full disk does."""
    spool.append("first")
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from reliability.spool import Spool\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Spool(Path(sys.argv[1])).append('x' * 5000)\n"
        "except OSError: sys.exit(3)"
    )
    refused = subprocess.run([sys.executable, "-c", program, str(spool.file.parent)], check=False)

    assert refused.returncode == 3
    assert drained(spool) == ["first"]
