"""The client against a real server: commands, pipelines, and a server that dies under load."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from redis.exceptions import DataError

from coach.store import (
    ConnectionLost,
    EmbeddedServer,
    NotSent,
    Redis,
    ResponseError,
    open_embedded,
    open_redis,
)
from tests.support.cancels import cancel_at_step
from tests.support.valkey import open_test_redis

pytestmark = pytest.mark.real_time


async def test_commands_and_their_replies(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        assert await redis.set("k", "ü") is True
        assert await redis.get("k") == "ü".encode()
        assert await redis.get("absent") is None
        await redis.zadd("z", {"a": 1.5})
        assert await redis.zscore("z", "a") == 1.5
        await redis.hset("h", mapping={"a": 1, "b": b"\x00\xff"})
        assert await redis.hgetall("h") == {b"a": b"1", b"b": b"\x00\xff"}
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await redis.incr("z")


@pytest.mark.parametrize("value", [{"a": 1}, None, "\ud800", object()])
async def test_what_redis_cannot_store_is_refused_and_harms_nobody(
    tmp_path: Path, value: object
) -> None:
    async with open_redis(f"unix://{tmp_path}/none.sock") as redis:
        with pytest.raises(DataError):
            await redis.execute_command("SET", "k", value)
        assert redis.statistics().unsent_count == 0


@pytest.mark.parametrize("name", ["SUBSCRIBE", "multi", "SELECT", "client reply"])
async def test_commands_that_would_change_the_shared_connection_are_refused(
    tmp_path: Path, name: str
) -> None:
    async with open_redis(f"unix://{tmp_path}/none.sock") as redis:
        with pytest.raises(DataError, match="changes the state"):
            await redis.execute_command(name, 1)
        with pytest.raises(DataError, match="changes the state"):
            redis.pipeline().execute_command(name, 1)


async def test_a_pipeline_is_one_transaction(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        pipe = redis.pipeline()
        pipe.set("a", 1)
        pipe.incr("a")
        assert len(pipe) == 2
        assert await pipe.execute() == [True, 2]
        assert await pipe.execute() == []


async def test_a_command_that_fails_within_a_pipeline_stops_no_other(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for transaction in (True, False):
            pipe = redis.pipeline(transaction=transaction)
            pipe.set("a", "text")
            pipe.incr("a")
            pipe.set("b", 1)
            first, failed, last = await pipe.execute(raise_on_error=False)
            assert (first, last) == (True, True)
            assert isinstance(failed, ResponseError)
            pipe.incr("a")
            with pytest.raises(ResponseError, match="not an integer"):
                await pipe.execute()


async def test_a_transaction_with_a_refused_command_runs_none(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        pipe = redis.pipeline()
        pipe.set("a", 1)
        pipe.execute_command("NOSUCHCOMMAND")
        with pytest.raises(ResponseError, match="unknown command"):
            await pipe.execute()
        assert await redis.get("a") is None


async def test_an_error_of_the_body_leaves_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as caught:
        async with open_redis(f"unix://{tmp_path}/none.sock"):
            await fail()
    assert caught.value.__context__ is None


async def test_a_cancellation_leaves_as_it_is(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):  # not a group of one
            async with open_redis(f"unix://{tmp_path}/none.sock"):
                await trio.lowlevel.checkpoint()


async def test_a_cancellation_does_not_hide_the_error_of_the_body(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(ResponseError):
            async with open_redis(f"unix://{tmp_path}/none.sock"):
                raise ResponseError


async def test_a_group_of_the_body_gets_no_second_one(tmp_path: Path) -> None:
    with pytest.RaisesGroup(KeyError, match="the body's own"):
        async with open_redis(f"unix://{tmp_path}/none.sock"):
            raise ExceptionGroup("the body's own", [KeyError()])


async def test_opening_does_not_wait_for_the_server(tmp_path: Path) -> None:
    answered = trio.Event()
    async with open_redis(f"unix://{tmp_path}/valkey.sock", name="early") as redis:

        async def ask() -> None:
            assert await redis.client_getname() == "early"
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.1)
            assert redis.statistics().unsent_count == 1
            async with open_embedded(tmp_path):
                await answered.wait()


async def test_commands_cancelled_at_any_step_never_disturb_the_next(tmp_path: Path) -> None:
    async with open_test_redis(tmp_path) as redis:
        for n in range(1, 12):
            for text in ("a", "b", "c"):
                with cancel_at_step(n):
                    assert await redis.echo(text) == text.encode()
                assert await redis.echo(f"{text}{n}") == f"{text}{n}".encode()


async def fail() -> None:
    await trio.lowlevel.checkpoint()
    raise KeyError("mine")


async def kill_server(server: EmbeddedServer, redis: Redis) -> None:
    os.kill(server.pid, signal.SIGKILL)


async def kill_clients(server: EmbeddedServer, redis: Redis) -> None:
    async with open_redis(server.url) as other:
        for _ in range(20):
            await other.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize("harm", [kill_server, kill_clients])
async def test_under_load_a_loss_is_told_right_and_nobody_hangs(
    tmp_path: Path, harm: Callable[[EmbeddedServer, Redis], Awaitable[None]]
) -> None:
    """What was answered has run, `NotSent` has not; the rest is `ConnectionLost`."""
    told: Counter[str] = Counter()
    async with open_embedded(tmp_path) as server, open_redis(server.url, wait_s=0.1) as redis:
        ended = False

        async def write(me: int) -> None:
            number = 0
            while not ended:
                number += 1
                try:
                    with trio.move_on_after(0.5 if number % 10 else 0.0005) as scope:
                        await redis.incr("counter")
                        told["answered"] += 1
                    told["cancelled"] += scope.cancelled_caught
                except (NotSent, ConnectionLost) as error:
                    told[type(error).__name__] += 1

        async def pop(me: int) -> None:
            while not ended:
                with trio.move_on_after(0.05):
                    try:
                        await redis.blpop([f"list{me}"], 0)
                    except (NotSent, ConnectionLost) as error:
                        told["pop " + type(error).__name__] += 1

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for me in range(50):
                    nursery.start_soon(write, me)
                for me in range(10):
                    nursery.start_soon(pop, me)
                for _ in range(3):
                    await trio.sleep(0.4)
                    before = redis.statistics().connections_count
                    await harm(server, redis)
                    while redis.statistics().connections_count == before:  # noqa: ASYNC110
                        await trio.sleep(0.02)  # however long the server takes to come back
                await trio.sleep(0.4)
                ended = True
        with trio.fail_after(5):
            counter = int(await redis.execute_command("GET", "counter"))
        most = told["answered"] + told["cancelled"] + told["ConnectionLost"]
        assert told["answered"] <= counter <= most
        assert redis.statistics().connections_count > 3  # the harm was done
        assert redis.statistics().written_count == 0
