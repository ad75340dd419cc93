"""A real master, replica and sentinel: the client follows the master."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio

from coach.errors import ConfigurationError
from coach.store import ConnectionLost, NotSent, RedisError, open_redis
from coach.store.url import parse_sentinel_url
from tests.store.nodes import HOST, Node, open_node


def test_a_url_names_sentinels_and_a_service() -> None:
    target = parse_sentinel_url("redis+sentinel://me:secret@a,b:7000/main/2")
    assert [(s.host, s.port, s.password) for s in target.sentinels] == [
        ("a", 26379, None),
        ("b", 7000, None),
    ]
    assert target.service == "main"
    assert (target.server.username, target.server.password, target.server.db) == (
        "me",
        "secret",
        2,
    )
    for wrong in ("redis+sentinel://a", "redis+sentinel://a/main/x", "redis+sentinel://a:b/main"):
        with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
            parse_sentinel_url(wrong)


@pytest.mark.real_time
async def test_writes_go_on_with_the_new_master(tmp_path: Path) -> None:
    configuration = tmp_path / "sentinel.conf"
    async with (
        open_node(tmp_path) as master,
        open_node(tmp_path, "--replicaof", f"{HOST} {master.port}") as replica,
    ):
        configuration.write_text(
            f"sentinel monitor main {HOST} {master.port} 1\n"
            "sentinel down-after-milliseconds main 400\n"
            "sentinel failover-timeout main 2000\n"
        )
        async with open_node(tmp_path, str(configuration), "--sentinel") as sentinel:
            with trio.fail_after(20):
                while not await is_ready(sentinel, replica):  # noqa: ASYNC110  no event for it
                    await trio.sleep(0.1)
            url = f"redis+sentinel://{HOST}:1,{HOST}:{sentinel.port}/main"
            async with open_redis(url, wait_s=20) as redis:
                told: Counter[str] = Counter()
                await redis.set("k", "v")
                assert await redis.wait(1, 1_000) == 1
                with trio.fail_after(30):
                    master.kill()
                    while not told["answered"]:
                        try:
                            await redis.incr("count")
                            told["answered"] += 1
                        except (NotSent, ConnectionLost) as error:
                            told[type(error).__name__] += 1
                assert (await replica.ask("ROLE"))[0] == b"master"
                assert await redis.get("k") == b"v"
                assert told["ConnectionLost"] <= 1


@pytest.mark.real_time
async def test_a_demoted_master_is_left_at_once(tmp_path: Path) -> None:
    async with open_node(tmp_path) as first, open_node(tmp_path) as second:
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(f"sentinel monitor main {HOST} {first.port} 1\n")
        async with open_node(tmp_path, str(configuration), "--sentinel") as sentinel:
            url = f"redis+sentinel://{HOST}:{sentinel.port}/main"
            async with open_redis(url, wait_s=5) as redis:
                assert await redis.set("k", 1)
                await redis.rpush("list", "x")
                assert await redis.blpop(["list"], 1)
                await first.ask("REPLICAOF", HOST, second.port)
                with pytest.raises(RedisError) as caught:
                    await redis.set("k", 2)
                assert isinstance(caught.value, NotSent | ConnectionLost)
                await sentinel.ask("SENTINEL REMOVE", "main")
                await sentinel.ask("SENTINEL MONITOR", "main", HOST, second.port, 1)
                with trio.fail_after(5):
                    assert await redis.set("k", 3)
                    await redis.rpush("list", "y")
                    assert await redis.blpop(["list"], 1) == [b"list", b"y"]
                assert await second.ask("GET", "k") == b"3"


@pytest.mark.real_time
async def test_an_unknown_service_is_named(tmp_path: Path) -> None:
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text("")
    async with open_node(tmp_path, str(configuration), "--sentinel") as sentinel:
        url = f"redis+sentinel://{HOST}:{sentinel.port}/main"
        async with open_redis(url, wait_s=0.3) as redis:
            with pytest.raises(NotSent, match="no sentinel knows 'main'"):
                await redis.get("k")


async def is_ready(sentinel: Node, replica: Node) -> bool:
    """Whether the sentinel knows the replica, and that has the master's data."""
    known = await sentinel.ask("SENTINEL REPLICAS", "main")
    return bool(known) and (await replica.ask("ROLE"))[3] == b"connected"
