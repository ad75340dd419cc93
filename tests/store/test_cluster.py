"""A real cluster of three nodes: routing, redirections, a slot on its way, a node that dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from redis.exceptions import DataError

from coach.errors import ConfigurationError
from coach.store import ConnectionLost, NotSent, open_redis
from coach.store.routing import SLOTS_COUNT, routing_key, slot_of
from coach.store.scripts import from_source
from coach.store.url import parse_cluster_url
from tests.store.nodes import HOST, Node, open_node

COUNT = from_source("count", 'return redis.call("INCRBY", KEYS[1], ARGV[1])')


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("PING",), None),
        (("EVALSHA", "sha", 2, "k", "l", "arg"), "k"),
        (("EVAL", "return 1", 0), None),
        (("BLMPOP", 0, 1, "k", "LEFT"), "k"),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 0, "STREAMS", "k", ">"), "k"),
        (("XREAD", b"STREAMS", "k", "0"), "k"),
        (("XGROUP CREATE", "k", "g", "$"), "k"),
        (("SCRIPT LOAD", "return 1"), None),
        (("CLIENT UNBLOCK", 7), None),
    ],
)
def test_the_key_that_decides(command: tuple[object, ...], key: str | None) -> None:
    assert routing_key(command) == key


def test_slots_are_those_of_the_specification() -> None:
    assert slot_of("123456789") == 0x31C3 % SLOTS_COUNT
    assert slot_of("{user1000}.a") == slot_of(b"{user1000}.b") == slot_of("user1000")


def test_a_url_names_seeds() -> None:
    seeds = parse_cluster_url("redis+cluster://me:secret@a,b:7000,[::1]")
    assert [(seed.host, seed.port) for seed in seeds] == [("a", 6379), ("b", 7000), ("::1", 6379)]
    assert {seed.password for seed in seeds} == {"secret"}
    for wrong in ("redis+cluster://a/1", "redis+cluster://a?x=1", "redis+cluster://a:b"):
        with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
            parse_cluster_url(wrong)


@pytest.mark.real_time
async def test_commands_reach_the_nodes_of_their_keys(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as (url, nodes), open_redis(url) as redis:
        for number in range(60):
            await redis.set(f"k{number}", number)
        assert [int(await redis.execute_command("GET", f"k{n}")) for n in range(60)] == [*range(60)]
        assert min([await node.ask("DBSIZE") for node in nodes]) > 5
        assert {key async for key in redis.scan_keys("k?")} == {f"k{n}".encode() for n in range(10)}
        assert await redis.ping()
        pipe = redis.pipeline()
        pipe.set("{a}1", 1)
        pipe.incr("{a}1")
        assert await pipe.execute() == [True, 2]
        pipe.get("{a}1")
        pipe.get("{b}1")
        with pytest.raises(DataError, match="share their hash tag"):
            await pipe.execute()
        for key in ("a", "b", "c"):
            assert await COUNT(redis, [key], [1]) == 1
        await redis.script_flush()
        for key in ("a", "b", "c"):
            assert await COUNT(redis, [key], [1]) == 2
        with trio.fail_after(5):
            await redis.rpush("list", "x")
            assert await redis.blpop(["list"], 0) == [b"list", b"x"]
            assert await redis.waitaof(1, 0, 2_000) == [1, 0]
        assert redis.statistics().connected


@pytest.mark.real_time
async def test_a_slot_moves_under_load_and_nothing_runs_twice(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as (url, nodes), open_redis(url) as redis:
        slot = slot_of("{a}")
        source, target = owner_of(slot, nodes), nodes[0 if owner_of(slot, nodes) != nodes[0] else 1]
        answered: Counter[int] = Counter()
        ended = False

        async def write(me: int) -> None:
            while not ended:
                await COUNT(redis, [f"{{a}}{me}"], [1])
                answered[me] += 1

        async def transact(me: int) -> None:
            while not ended:
                pipe = redis.pipeline()
                pipe.incr(f"{{a}}{me}")
                pipe.incr(f"{{a}}{me}")
                await pipe.execute()
                answered[me] += 2

        async with trio.open_nursery() as nursery:
            for me in range(10):
                nursery.start_soon(write, me)
                nursery.start_soon(transact, 100 + me)
            await trio.sleep(0.1)
            await migrate(slot, source, target, nodes)
            before = answered.total()
            await trio.sleep(0.2)
            ended = True
        assert answered.total() > before
        for me, count in answered.items():
            assert int(await redis.execute_command("GET", f"{{a}}{me}")) == count


@pytest.mark.real_time
async def test_a_node_that_dies_and_comes_back(tmp_path: Path) -> None:
    async with open_cluster(tmp_path) as (url, nodes), open_redis(url, wait_s=8) as redis:
        victim = nodes[0]
        keys = [f"k{number}" for number in range(30)]
        mine = [key for key in keys if owner_of(slot_of(key), nodes) is victim]
        for key in keys:
            await redis.set(key, 0)
        told: Counter[str] = Counter()
        ended = False

        async def write(key: str) -> None:
            while not ended:
                try:
                    await redis.incr(key)
                    told[key] += 1
                except ConnectionLost:
                    told["lost"] += 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for key in keys:
                    nursery.start_soon(write, key)
                await trio.sleep(0.2)
                victim.kill()
                await trio.sleep(0.3)
                before = Counter(told)
                await victim.start()
                while any(told[key] <= before[key] for key in mine):  # noqa: ASYNC110  no event for it
                    await trio.sleep(0.02)
                ended = True
        assert told["lost"] <= len(mine)
        counts = {key: int(await redis.execute_command("GET", key)) for key in keys}
        assert all(told[key] <= counts[key] <= told[key] + 1 for key in keys)


@pytest.mark.real_time
async def test_without_a_node_a_command_was_not_sent(tmp_path: Path) -> None:
    async with open_redis(f"redis+cluster://{HOST}:1", wait_s=0.3) as redis:
        began = trio.current_time()
        with pytest.raises(NotSent):
            await redis.get("k")
        assert trio.current_time() - began < 1
        with pytest.raises(NotSent):
            await redis.waitaof(1, 0, 10)


@asynccontextmanager
async def open_cluster(folder: Path) -> AsyncIterator[tuple[str, list[Node]]]:
    """Three primaries that share the slots, and the URL of two of them."""
    options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--appendonly", "yes"]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node(folder, *options)) for _ in range(3)]
        for at, node in enumerate(nodes):
            first, last = at * SLOTS_COUNT // 3, (at + 1) * SLOTS_COUNT // 3 - 1
            await node.ask("CLUSTER ADDSLOTSRANGE", first, last)
            await node.ask("CLUSTER SET-CONFIG-EPOCH", at + 1)
        for node in nodes[1:]:
            await node.ask("CLUSTER MEET", HOST, nodes[0].port)
        with trio.fail_after(20):
            for node in nodes:
                while not await is_complete(node):  # noqa: ASYNC110  gossip has no event
                    await trio.sleep(0.05)
        seeds = ",".join(f"{HOST}:{node.port}" for node in nodes[:2])
        yield f"redis+cluster://{seeds}", nodes


async def is_complete(node: Node) -> bool:
    info = await node.ask("CLUSTER INFO")
    return b"cluster_state:ok" in info and len(await node.ask("CLUSTER SLOTS")) == 3


def owner_of(slot: int, nodes: list[Node]) -> Node:
    return next(node for at, node in enumerate(nodes) if slot < (at + 1) * SLOTS_COUNT // 3)


async def migrate(slot: int, source: Node, target: Node, nodes: list[Node]) -> None:
    """Move a slot with its keys, as the specification has it."""
    source_id, target_id = await source.ask("CLUSTER MYID"), await target.ask("CLUSTER MYID")
    await target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source_id)
    await source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target_id)
    while keys := await source.ask("CLUSTER GETKEYSINSLOT", slot, 3):
        await source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
        await trio.sleep(0.01)
    for node in (target, source, *nodes):
        await node.ask("CLUSTER SETSLOT", slot, "NODE", target_id)
