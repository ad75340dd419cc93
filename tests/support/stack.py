"""A whole coach of real processes on free ports: Valkey, simulator, workers, a grader."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import httpx
import msgspec
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from coach.store import open_embedded

START_S_MAX = 30.0
END_S_MAX = 12.0


@attrs.frozen
class Stack:
    """What runs, and where."""

    url: str
    simulator_url: str
    redis_url: str
    data_dir: Path
    supervisor: trio.Process
    grader: trio.Process | None
    _ca: str

    async def simulator(self) -> dict[str, float]:
        """The simulator's `/stats`."""
        async with httpx.AsyncClient(verify=_trust(self._ca)) as client:
            response = await client.get(f"{self.simulator_url}/stats")
            stats: dict[str, float] = response.json()
            return stats

    async def control(self, **settings: object) -> None:
        """Change the simulator's latencies and faults."""
        async with httpx.AsyncClient(verify=_trust(self._ca)) as client:
            (await client.post(f"{self.simulator_url}/control", json=settings)).raise_for_status()

    async def token(self) -> str:
        """A new student's token."""
        async with httpx.AsyncClient() as client:
            token: str = (await client.post(f"{self.url}/api/token")).json()["token"]
            return token

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples over its labels."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        return sum(values)

    @asynccontextmanager
    async def student(self, token: str | None = None) -> AsyncIterator[Student]:
        """A connected student who has said hello."""
        async with open_websocket_url(
            f"{self.url.replace('http', 'ws', 1)}/ws", subprotocols=["coach.v1"]
        ) as websocket:
            student = Student(websocket)
            await student.send(type="hello", token=token or await self.token())
            welcome = await student.receive()
            assert welcome["type"] == "welcome", welcome
            yield student


@attrs.define
class Student:
    """A bare client of coach.v1."""

    websocket: WebSocketConnection

    async def send(self, **message: object) -> None:
        """Send one message."""
        await self.websocket.send_message(msgspec.json.encode(message).decode())

    async def receive(self) -> dict[str, object]:
        """Receive one message."""
        message: dict[str, object] = msgspec.json.decode(await self.websocket.get_message())
        return message

    async def until(self, *types: str) -> dict[str, object]:
        """Receive until a message of one of `types`; return that one."""
        while (message := await self.receive())["type"] not in types:
            pass
        return message


@asynccontextmanager
async def open_stack(
    data_dir: Path,
    *,
    workers: int = 1,
    grader: bool = True,
    simulator: Sequence[str] = (),
    settings: str = "",
    provider: str = "",
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Stack]:
    """Start everything, wait until it serves, end it by SIGTERM and check that it ended well.

    Args:
      data_dir: private to this stack.
      workers: web workers.
      grader: whether `coach grade` runs.
      simulator: further options of the simulator's command line.
      settings: further TOML, whole sections.
      provider: further lines of the provider's table.
      environ: further environment of coach's processes.
    """
    environment = {**os.environ, **(environ or {})}
    async with open_embedded(data_dir) as redis, trio.open_nursery() as nursery:
        port = free_port()
        command = [sys.executable, "-m", "coach.simulator", "--port", str(port)]
        simulated = await _start(
            nursery, data_dir, [*command, "--data-dir", str(data_dir), *simulator], environment
        )
        simulator_url, web_port = f"https://127.0.0.1:{port}", free_port()
        ca = data_dir / "simulator-ca.pem"
        url = f"http://127.0.0.1:{web_port}"
        path = data_dir / "coach.toml"
        path.write_text(
            f'data_dir = "{data_dir}"\n'
            f'[[provider]]\nname = "simulator"\nbase_url = "{simulator_url}"\nmodel = "sim-1"\n'
            f'api_key = "test"\nca_file = "{ca}"\n{provider}\n'
            f'[redis]\nurl = "{redis.url}"\n'
            f'[server]\nbind = "127.0.0.1:{web_port}"\nworkers = {workers}\n{settings}\n'
        )
        await _until_answers(f"{simulator_url}/stats", ca)
        coach = [sys.executable, "-m", "coach"]
        supervisor = await _start(
            nursery, data_dir, [*coach, "serve", "--config", str(path)], environment
        )
        graders = (
            await _start(nursery, data_dir, [*coach, "grade", "--config", str(path)], environment)
            if grader
            else None
        )
        await _until_answers(f"{url}/readyz", None)
        try:
            yield Stack(
                url=url,
                simulator_url=simulator_url,
                redis_url=redis.url,
                data_dir=data_dir,
                supervisor=supervisor,
                grader=graders,
                ca=str(ca),
            )
        finally:
            with trio.CancelScope(shield=True):
                for process in (supervisor, graders, simulated):
                    if process is not None:
                        await _end(process)


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _start(
    nursery: trio.Nursery, data_dir: Path, command: Sequence[str], environment: Mapping[str, str]
) -> trio.Process:
    at = command.index("-m")
    name = "-".join(part for part in command[at + 1 : at + 3] if not part.startswith("-"))
    with (data_dir / f"{name}.log").open("ab") as log:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
        )
    return process


async def _end(process: trio.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(END_S_MAX):
            await process.wait()
        if process.returncode is None:
            process.kill()
            raise AssertionError(f"{process.args!r} did not end within {END_S_MAX} s of SIGTERM")


async def _until_answers(url: str, ca: Path | None) -> None:
    with trio.fail_after(START_S_MAX):
        while True:
            try:
                verify = _trust(str(ca)) if ca is not None else True
                async with httpx.AsyncClient(verify=verify) as client:
                    if (await client.get(url)).status_code == 200:
                        return
            except (httpx.TransportError, OSError):
                pass
            await trio.sleep(0.05)


def _trust(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)
