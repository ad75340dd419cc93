"""Children end with their owner, are stopped in a bounded time, and say how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from coach.child import Process, exited, how_it_ended, is_running, start_child, stop_child
from tests.support.stack import descriptors_of, until

pytestmark = pytest.mark.real_time

SLEEPER = ["/bin/sleep", "60"]
DEAF = ["/bin/sh", "-c", "trap '' TERM; echo; exec sleep 60"]
OWNER = """
import sys, time
from coach.child import start_child
print(start_child(sys.argv[1:]).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_child_ends_with_its_owner(how: signal.Signals) -> None:
    with owner(SLEEPER) as (process, child):
        process.send_signal(how)
        process.wait()
        await until(lambda: not is_running(child))


async def test_ctrl_c_in_the_owners_terminal_does_not_reach_the_child() -> None:
    with owner(SLEEPER) as (process, child):
        assert os.getpgid(child) != os.getpgid(process.pid)
        assert os.getsid(child) == child


async def test_stop_asks_first() -> None:
    process = start_child(SLEEPER)
    began = trio.current_time()
    await stop_child(process, within_s=5)
    assert trio.current_time() - began < 1
    assert process.returncode == -signal.SIGTERM


async def test_stop_kills_who_does_not_listen() -> None:
    process = await deaf()
    began = trio.current_time()
    await stop_child(process, within_s=0.1)
    assert 0.1 <= trio.current_time() - began < 1
    assert process.returncode == -signal.SIGKILL


async def test_a_cancelled_stop_has_stopped_all_the_same() -> None:
    process = await deaf()
    with trio.move_on_after(0.05) as scope:
        await stop_child(process, within_s=0.2)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert process.returncode == -signal.SIGKILL


async def test_stopping_what_has_ended_changes_nothing() -> None:
    process = start_child(["/bin/sh", "-c", "exit 3"])
    assert await exited(process) == 3
    await stop_child(process, within_s=0)
    assert (await exited(process), process.returncode) == (3, 3)


async def test_a_cancelled_wait_leaves_the_child_alone_and_no_descriptor() -> None:
    process = start_child(SLEEPER)
    before = descriptors_of(os.getpid())
    with trio.move_on_after(0.02):
        await exited(process)
    assert process.poll() is None
    assert descriptors_of(os.getpid()) == before
    await stop_child(process, within_s=1)


async def test_two_may_wait_for_the_same_end() -> None:
    process, codes = start_child(SLEEPER), []

    async def wait() -> None:
        codes.append(await exited(process))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        process.kill()
    assert codes == [-signal.SIGKILL] * 2


async def test_without_pidfds_it_waits_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    process = start_child(["/bin/sleep", "0.05"])
    assert is_running(process.pid)
    assert await exited(process) == 0


async def test_it_gets_the_environment_and_descriptors_it_was_given_and_no_others() -> None:
    read_fd, write_fd = os.pipe()
    given, other = os.dup(read_fd), os.dup(read_fd)
    os.set_inheritable(other, True)
    command = ["/bin/sh", "-c", "echo $A$HOME, $(ls /proc/$$/fd)"]
    process = start_child(command, output=write_fd, environ={"A": "b"}, pass_fds=[given])
    assert await exited(process) == 0
    environ, *descriptors = os.read(read_fd, 65_536).decode().split()
    assert environ == "b,"
    assert f"{given}" in descriptors
    assert f"{other}" not in descriptors
    for fd in (read_fd, write_fd, given, other):
        os.close(fd)


def test_a_program_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="No such file"):
        start_child(["/no/such/program"])


def test_an_end_in_words() -> None:
    assert how_it_ended(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert how_it_ended(3) == "ended with code 3"


def test_a_zombie_does_not_run() -> None:
    process = start_child(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_running(process.pid)
    process.wait()
    assert not is_running(process.pid)


async def deaf() -> Process:
    """A child that ignores SIGTERM, and does so already."""
    read_fd, write_fd = os.pipe()
    process = start_child(DEAF, output=write_fd)
    os.close(write_fd)
    await trio.lowlevel.wait_readable(read_fd)
    os.close(read_fd)
    return process


@contextmanager
def owner(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Another process that has started `command` as its child; gives it and the child's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, *command], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
