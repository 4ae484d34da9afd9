"""A backup of Redis, made and brought back by the commands of docs/deployment.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.redis_server import RedisServer, free_port, server_binary

PAGE = (Path(__file__).parents[2] / "docs/deployment.md").read_text("utf-8")
BACKUP = re.compile(r"`docker compose exec -T redis (redis-cli .*) > backup\.rdb`")
RESTORE = re.compile(r"docker compose run .* redis sh -c '(.*?)'", re.DOTALL)


def told(command: re.Pattern[str], port: int, folder: Path) -> str:
    """The command as the page has it, for a server and a folder of this test."""
    (text,) = command.findall(PAGE)
    text = re.sub(r"(?<=\s)/(?=data|backup)", f"{folder}/", text)
    text = re.sub(r"\bredis-server\b", f"{server_binary()} --port {port}", text)
    return re.sub(r"\bredis-cli\b", f"redis-cli -p {port}", text)


def carry_out(text: str) -> bytes:
    return subprocess.run(["sh", "-c", text], check=True, capture_output=True, timeout=30).stdout


@pytest.mark.services
def test_a_backup_of_redis_is_brought_back_as_the_page_says(own_redis, tmp_path):
    if shutil.which("redis-cli") is None:
        missing = "redis-cli is not installed (Debian: redis-tools)"
        (pytest.fail if os.environ.get("REQUIRE_SERVICES") == "1" else pytest.skip)(missing)
    own_redis.client().rpush("bitrix", "1", "2")
    (tmp_path / "data/appendonlydir").mkdir(parents=True)
    (tmp_path / "data/appendonlydir/appendonly.aof.manifest").write_text("of what was before")
    (tmp_path / "backup.rdb").write_bytes(carry_out(told(BACKUP, own_redis.port, tmp_path)))
    carry_out(told(RESTORE, free_port(), tmp_path))
    restored = RedisServer(tmp_path / "data").start("--appendonly", "yes")
    jobs = restored.client().lrange("bitrix", 0, -1)
    restored.stop()

    assert jobs == ["1", "2"]
