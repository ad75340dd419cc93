"""Scripts survive SCRIPT FLUSH and a restart, and their errors leave as they are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from coach.store import ResponseError, Script, open_embedded, open_redis, script
from coach.store.scripts import from_source
from tests.support.valkey import open_test_redis

COUNT = from_source("count", 'return redis.call("INCRBY", KEYS[1], ARGV[1])')
REFUSE = from_source("refuse", 'return redis.error_reply("COACH_BADARG lease_ms")')


@pytest.mark.real_time
async def test_a_flushed_script_is_sent_again_and_runs_once(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        assert await COUNT(redis, ["k"], [1]) == 1
        await redis.script_flush()
        assert await COUNT(redis, ["k"], [1]) == 2
        async with trio.open_nursery() as nursery:
            await redis.script_flush()
            for _ in range(20):
                nursery.start_soon(COUNT, redis, ["k"], [1])
        assert await redis.get("k") == b"22"
        calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert await COUNT(redis, ["k"], [1]) == 23
        assert (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 1


@pytest.mark.real_time
async def test_a_script_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        assert await COUNT(redis, ["k"], [1]) == 1
        os.kill(server.pid, signal.SIGKILL)
        while redis.statistics().connected:  # noqa: ASYNC110  the kernel's news has no event here
            await trio.sleep(0.005)
        assert await COUNT(redis, ["k"], [1]) == 2


@pytest.mark.real_time
async def test_what_a_script_refuses_leaves_with_its_words(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for _ in range(2):
            with pytest.raises(ResponseError, match=r"^COACH_BADARG lease_ms$"):
                await REFUSE(redis, ["k"], [])


def test_a_script_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-script"):
        script("no-such-script")


def test_a_script_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coach.store.scripts.FOLDER", tmp_path)
    script.cache_clear()
    (tmp_path / "one.lua").write_text("return 'ü'")
    first = script("one")
    (tmp_path / "one.lua").unlink()
    assert script("one") is first
    assert first == Script("one", "return 'ü'", from_source("", "return 'ü'").sha)
    script.cache_clear()
