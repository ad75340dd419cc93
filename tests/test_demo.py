"""`coach demo`: one command starts all, one Ctrl-C ends it, and what goes wrong is one line."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from coach import local_model
from coach.child import Process, exited, is_running, stop_child
from tests.support.stack import (
    Student,
    family_of,
    open_simulator,
    open_websocket,
    plain_client,
    start_python,
    until,
)

pytestmark = pytest.mark.real_time

ESSAY = "The sea was calm that day, and nobody on the pier believed that it would stay so. " * 8


async def test_ctrl_c_ends_everything_also_while_students_write(tmp_path: Path) -> None:
    """Within 3 s, with exit code 0, no process left, and nothing said but the welcome."""
    async with demo(tmp_path) as running:
        port = running.port()
        url = f"http://127.0.0.1:{port}"
        async with plain_client() as client:
            assert "<html" in (await client.get(f"{url}/")).text
            token = (await client.post(f"{url}/api/token")).json()["token"]
        family = family_of(running.process.pid)
        assert len(family) == 6  # itself, Valkey, simulator, supervisor, worker, grader
        async with open_websocket(url) as websocket:
            student = Student(websocket, token)
            await student.send(type="hello", token=token)
            await student.ask(text=ESSAY)
            await student.until("delta")
            began = trio.current_time()
            os.killpg(running.process.pid, signal.SIGINT)
            assert await running.ends() == 0
            took_s = trio.current_time() - began
        assert took_s < 3
        assert not any(map(is_running, family))
    write, watch, grades, *rest = running.output().splitlines()
    assert grades.startswith(f"Review grades at http://127.0.0.1:{port}/review#token=ey")
    assert watch.startswith(f"Watch it at http://127.0.0.1:{port}/ops#token=ey")
    assert [write, *rest] == [
        f"Write at http://127.0.0.1:{port}",
        f"Logs and data are in {tmp_path / 'data'}; Ctrl-C ends everything.",
    ]
    for log in ("serve.log", "grade.log"):
        said = (tmp_path / "data" / log).read_text()
        assert not re.search(r"Traceback|\[(warning|error|critical)", said), said


async def test_a_check_goes_from_typing_to_grade_with_a_provider_of_ones_own(
    tmp_path: Path,
) -> None:
    """It says what it saw; no simulator is started where a provider is configured."""
    quick = ("--events-per-s", "80", "--judge-ms", "300")
    async with open_simulator(tmp_path, *quick) as url:
        settings = tmp_path / "coach.toml"
        settings.write_text(
            f'[[provider]]\nname = "own"\nbase_url = "{url}"\nmodel = "m"\napi_key = "k"\n'
            f'ca_file = "{tmp_path}/simulator-ca.pem"\n[auth]\nmode = "jwt"\nsecret = "{"s" * 32}"'
        )
        async with demo(tmp_path, "--check", "--config", str(settings)) as running:
            assert await running.ends(within_s=30) == 0
    said = running.output()
    for pattern in (
        r"^feedback +[1-9]\d* complete of [1-9]\d* asked for, [1-9]\d* deltas$",
        r"^first token +\d+ ms \(median\)$",
        r"^tokens +\d+ in, \d+ from the cache, [1-9]\d* out$",
        r"^score +\d{1,3} of 100, \d+ ms after handing in$",
        r"^whole check +\d+\.\d s$",
    ):
        assert re.search(pattern, said, re.MULTILINE), said
    assert len(said.splitlines()) == 5
    assert not (tmp_path / "data" / "simulator.log").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [("coach.simulator", "simulator"), ("coach serve", "serve"), ("coach grade", "grade")],
)
async def test_a_part_that_dies_ends_all_with_one_line(
    tmp_path: Path, part: str, name: str
) -> None:
    async with demo(tmp_path) as running:
        family = family_of(running.process.pid)
        (victim,) = [pid for pid in family if part in command_of(pid)]
        os.kill(victim, signal.SIGKILL)
        assert await running.ends() == 2
        assert not any(map(is_running, family))
    (said,) = running.output().splitlines()[4:]
    log = tmp_path / "data" / f"{name}.log"
    assert said.startswith(f"coach: {name} was ended by SIGKILL; {log} ends with: "), said


async def test_a_part_that_cannot_start_ends_all_with_its_own_line(tmp_path: Path) -> None:
    settings = tmp_path / "coach.toml"
    settings.write_text('[grading]\nrubric = "none.toml"')
    async with demo(tmp_path, "--config", str(settings), ready=False) as running:
        assert await running.ends() == 2
    (said,) = running.output().splitlines()
    assert said.startswith("coach: ")
    assert "none.toml" in said


async def test_a_port_in_use_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with demo(tmp_path, "--port", f"{port}", ready=False) as running:
            assert await running.ends() == 2
    assert re.fullmatch(
        f"coach: server.bind: 127.0.0.1:{port}: the port is in use: .*\n", running.output()
    )
    assert not (tmp_path / "data").exists()


async def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    async with demo(tmp_path, ready=False) as running:
        assert await running.ends() == 2
    assert re.fullmatch(f"coach: data_dir: cannot write to {tmp_path}/data: .*\n", running.output())


@pytest.mark.skipif(
    not local_model.is_installed(),
    reason="no local model: scripts/test --local-model installs it",
)
async def test_a_real_model_on_this_machine_streams_its_feedback(tmp_path: Path) -> None:
    async with demo(tmp_path, "--model", "local") as running:
        url = f"http://127.0.0.1:{running.port()}"
        async with plain_client() as client:
            token = (await client.post(f"{url}/api/token")).json()["token"]
        async with open_websocket(url) as websocket:
            student = Student(websocket, token)
            await student.send(type="hello", token=token)
            await student.ask(text=ESSAY[:200])
            started = await student.until("started")
            assert started["provider"] == "local"
            pieces = [str((await student.until("delta"))["text"]) for _ in range(5)]
            assert len("".join(pieces)) > 10
            await student.send(type="cancel", request="r")  # a busy machine need not write it all
            while (message := await student.receive())["type"] == "delta":
                pass
            assert (message["type"], message["code"]) == ("error", "cancelled")
    said = (tmp_path / "data" / "serve.log").read_text()
    assert not re.search(r"Traceback|\[(error|critical)", said), said


@attrs.frozen
class Running:
    """A demo."""

    process: Process
    log: Path

    def output(self) -> str:
        """What it has said on standard output and error."""
        return self.log.read_text()

    def port(self) -> int:
        """Of the page."""
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.output())
        assert found is not None
        return int(found[1])

    async def ends(self, *, within_s: float = 10.0) -> int:
        """Wait for its end; returns the exit code."""
        with trio.fail_after(within_s):
            return await exited(self.process)


@asynccontextmanager
async def demo(tmp_path: Path, *arguments: str, ready: bool = True) -> AsyncIterator[Running]:
    """A demo with its data below `tmp_path`, on a free port where `arguments` say nothing of it."""
    log = tmp_path / "demo.log"
    port = () if {"--port", "--check"} & set(arguments) else ("--port", "0")
    process = start_python(
        ["-m", "coach", "demo", "--data-dir", str(tmp_path / "data"), *port, *arguments], log
    )
    try:
        if ready and "--check" not in arguments:
            await until(lambda: "Ctrl-C" in log.read_text(), within_s=20)
        yield Running(process, log)
    finally:
        await stop_child(process, within_s=5)  # noqa: ASYNC102  shields itself


def command_of(pid: int) -> str:
    """A process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
