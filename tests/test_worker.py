"""A worker process: what its supervisor hears of it, and with which code it ends."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypercorn.utils import LifespanFailureError

from coach.child import Process, exited, stop_child
from coach.supervisor import _line
from coach.worker import CONFIGURATION_EXIT, READY, _reason
from tests.support.stack import start_python

TINY = "tests.support.tiny_app:app"


def test_the_applications_words_stand_alone() -> None:
    """hypercorn puts words around them; a new version with other words must be noticed."""
    failure = LifespanFailureError("startup", "redis.url: no answer from 'x'")
    nested = ExceptionGroup("outer", [ExceptionGroup("inner", [failure])])
    assert str(failure) == "Lifespan failure in startup. 'redis.url: no answer from 'x''"
    assert _reason(nested) == "redis.url: no answer from 'x'"


@pytest.mark.real_time
async def test_it_says_ready_serves_and_ends_well(tmp_path: Path) -> None:
    async with a_worker(tmp_path) as (process, said, port):
        assert said == READY
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert f"hello {process.pid}".encode() in b"".join([data async for data in stream])
        process.terminate()
        assert await exited(process) == 0
    assert (tmp_path / "worker.log").read_text() == ""


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TINY_APP": "fail:it's no\nuse"}, "it's no use\n"),
        ({"COACH_SERVER__DRAIN_S": "soon"}, "the environment: Expected `float`, got `str`"),
    ],
)
async def test_what_an_operator_must_mend_is_one_line_to_the_supervisor(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    async with a_worker(tmp_path, environ) as (process, said, _):
        assert said.decode().startswith(expected)
        assert said.count(b"\n") == 1
        assert await exited(process) == CONFIGURATION_EXIT
    assert (tmp_path / "worker.log").read_text() == ""


@pytest.mark.real_time
async def test_a_bug_is_silence_to_the_supervisor_and_a_traceback_in_the_log(
    tmp_path: Path,
) -> None:
    missing = "tests.support.tiny_app:nothing"
    async with a_worker(tmp_path, application=missing) as (process, said, _):
        assert said == b""
        assert await exited(process) == 1
    assert "has no attribute 'nothing'" in (tmp_path / "worker.log").read_text()


@asynccontextmanager
async def a_worker(
    tmp_path: Path, environ: dict[str, str] | None = None, application: str = TINY
) -> AsyncIterator[tuple[Process, bytes, int]]:
    """A worker, what it says first (to the line's or the pipe's end), and its port."""
    read_fd, write_fd = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fds = (listener.fileno(), write_fd)
        command = ["-m", "coach", "worker", "--app", application]
        process = start_python(
            [*command, "--fd", f"{fds[0]}", "--ready-fd", f"{fds[1]}"],
            tmp_path / "worker.log",
            {**os.environ, **(environ or {})},
            pass_fds=fds,
        )
        os.close(write_fd)
        try:
            with trio.fail_after(10):
                said = await _line(read_fd)
            yield process, said, listener.getsockname()[1]
        finally:
            os.close(read_fd)
            await stop_child(process, within_s=1)  # noqa: ASYNC102  shields itself
    assert process.returncode != -signal.SIGKILL
