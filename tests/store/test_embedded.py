"""The embedded server: its life is its owner's, its folder has one owner, its data stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from coach.errors import ConfigurationError
from coach.store import (
    Redis,
    find_embedded,
    keep_embedded,
    open_embedded,
    open_redis,
    share_embedded,
)
from coach.store.folder import LOG_BYTES_MAX

pytestmark = pytest.mark.real_time


async def test_it_serves_and_leaves_nothing_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "with spaces & ü"
    async with open_embedded(data_dir) as server, open_redis(server.url) as redis:
        assert server.url.startswith("unix://")
        assert await redis.ping()
        assert (data_dir / "valkey.url").read_text() == server.url
        pid = server.pid
        began = trio.current_time()
    assert trio.current_time() - began < 2
    assert not is_alive(pid)
    assert names_in(data_dir) == {"valkey.lock", "valkey.log", "appendonlydir"}


async def test_data_survive_a_clean_end_and_a_kill(tmp_path: Path) -> None:
    for number in range(3):
        async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
            assert int(await redis.get("count") or 0) == number
            await redis.incr("count")
            if number == 1:
                os.kill(server.pid, signal.SIGKILL)


async def test_without_appendonly_nothing_is_kept(tmp_path: Path) -> None:
    async with (
        open_embedded(tmp_path, appendonly=False) as server,
        open_redis(server.url) as redis,
    ):
        await redis.set("k", "v")
    assert names_in(tmp_path) == {"valkey.lock", "valkey.log"}


async def test_a_path_too_long_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    async with open_embedded(data_dir) as server:
        socket_path = Path(server.url.removeprefix("unix://"))
        assert not socket_path.is_relative_to(data_dir)
        async with open_redis(await find_embedded(data_dir)) as redis:
            assert await redis.ping()
    assert not socket_path.parent.exists()


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        await redis.set("k", "v")
        first_pid = server.pid
        os.kill(first_pid, signal.SIGKILL)
        await gone(first_pid)
        await loss_noticed(redis)
        with trio.fail_after(3):
            assert await redis.get("k") == b"v"
        assert server.pid != first_pid
        assert await find_embedded(tmp_path) == server.url


async def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as server:
        with pytest.raises(ConfigurationError) as caught:
            async with open_embedded(tmp_path):
                raise AssertionError("two owners")
        assert_one_line(caught.value, f"is in use by another coach (process {os.getpid()})")
        assert await find_embedded(tmp_path) == server.url  # undisturbed


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        async with open_embedded(tmp_path / "file" / "data"):
            raise AssertionError("in a file")
    assert_one_line(caught.value, f"data_dir: cannot write to {tmp_path}/file/data: Not a dir")


async def test_a_read_only_folder_is_one_line() -> None:
    with read_only_folder() as data_dir, pytest.raises(ConfigurationError) as caught:
        async with open_embedded(data_dir):
            raise AssertionError("read-only")
    assert_one_line(caught.value, f"data_dir: cannot write to {data_dir}: Permission denied")


async def test_a_server_that_cannot_start_is_one_line_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(ConfigurationError) as caught:
        async with open_embedded(tmp_path):
            raise AssertionError("started")
    assert_one_line(caught.value, "the embedded Valkey does not start", "appendonlydir")
    (tmp_path / "appendonlydir").unlink()
    async with open_embedded(tmp_path):
        pass


async def test_a_long_log_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "valkey.log").write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    async with open_embedded(tmp_path):
        assert (tmp_path / "valkey.log").stat().st_size < 100_000
        assert (tmp_path / "valkey.log.1").stat().st_size > LOG_BYTES_MAX


async def test_no_server_to_find_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coach.store.embedded.FIND_S_MAX", 0.2)
    (tmp_path / "valkey.url").write_text(f"unix://{tmp_path}/valkey.sock")  # a killed owner's
    with pytest.raises(ConfigurationError) as caught:
        await find_embedded(tmp_path)
    assert_one_line(caught.value, f"no embedded Valkey runs in {tmp_path}")


async def test_a_cancelled_start_leaves_no_server(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.002, 0.01, 0.03):
        with trio.move_on_after(delay_s):
            async with open_embedded(tmp_path):
                await trio.sleep_forever()
    async with open_embedded(tmp_path):
        pass


async def test_it_dies_with_a_killed_owner_whose_folder_is_free_at_once(tmp_path: Path) -> None:
    async with owner(tmp_path) as (process, server_pid):
        process.kill()
        await gone(process.pid)
        began = trio.current_time()
        async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
            assert await redis.get("k") == b"v"
            assert not is_alive(server_pid)
        assert trio.current_time() - began < 3


async def test_ctrl_c_reaches_its_owner_only(tmp_path: Path) -> None:
    async with owner(tmp_path) as (process, server_pid):
        os.killpg(process.pid, signal.SIGINT)
        began = trio.current_time()
        assert process.stdout is not None
        with trio.fail_after(5):
            said = await process.stdout.receive_some()
        assert said == b"b'v'\n"  # the server still served the owner's cleaning up
        await process.wait()
        assert trio.current_time() - began < 2
        assert not is_alive(server_pid)


@asynccontextmanager
async def owner(data_dir: Path) -> AsyncIterator[tuple[trio.Process, int]]:
    """Another process that owns a server in `data_dir`, in a process group of its own."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.store.owner", str(data_dir)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(10):
            server_pid = int(await process.stdout.receive_some())
        yield process, server_pid
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            process.kill()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


@contextmanager
def read_only_folder() -> Iterator[Path]:
    """A folder that this process cannot write, even when root runs the tests."""
    folder = Path(tempfile.mkdtemp())
    uid = os.geteuid()
    folder.chmod(0o555)
    try:
        if uid == 0:
            os.seteuid(65_534)
        yield folder
    finally:
        os.seteuid(uid)
        shutil.rmtree(folder)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def loss_noticed(redis: Redis) -> None:
    """Wait until the client knows: what it sends before may be lost with the server."""
    with trio.fail_after(3):
        while redis.statistics().connected:  # noqa: ASYNC110  the kernel's news has no event here
            await trio.sleep(0.001)


async def gone(pid: int) -> None:
    """Wait until a process has ended; a zombie has."""
    with trio.fail_after(3):
        while is_alive(pid):  # noqa: ASYNC110  another process has no event
            await trio.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def assert_one_line(error: ConfigurationError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


async def test_processes_of_a_machine_share_one_server_in_whatever_order_they_start(
    tmp_path: Path,
) -> None:
    async with share_embedded(tmp_path) as ours, share_embedded(tmp_path) as theirs:
        assert ours == theirs


async def test_who_stands_by_takes_over_when_the_owner_ends(tmp_path: Path) -> None:
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        async with open_embedded(tmp_path) as server:
            nursery.start_soon(partial(keep_embedded, tmp_path, say=said.append))
            await trio.sleep(1.2)
            assert len(said) == 1
            assert said[0].startswith("standing by; data_dir:")
            assert await find_embedded(tmp_path) == server.url
        with trio.fail_after(10):
            assert await find_embedded(tmp_path) == server.url
        assert said[1:] == [f"serving {server.url}"]
        nursery.cancel_scope.cancel()
