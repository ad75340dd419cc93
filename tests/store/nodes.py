"""Servers of the embedded kind for tests of topologies: replicas, sentinels, cluster nodes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from coach.store.embedded import _binary
from coach.store.errors import RedisError
from coach.store.url import Target
from coach.store.wire import Limits, open_wire

HOST = "127.0.0.1"


@attrs.define
class Node:
    """A server process."""

    port: int
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> Target:
        return Target(host=HOST, port=self.port)

    async def start(self) -> None:
        with self.log.open("ab") as log_file:
            self.process = subprocess.Popen(  # noqa: ASYNC220  takes 2 ms
                self.command, stdout=log_file, stderr=log_file
            )
        with trio.fail_after(5):
            while True:
                try:
                    await self.ask("PING")
                except RedisError:
                    await trio.sleep(0.02)
                else:
                    return

    async def ask(self, *command: Any) -> Any:
        wire = await open_wire(self.target, name=None, limits=Limits())
        try:
            (reply,) = await wire.request([command])
        finally:
            wire.abort()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@asynccontextmanager
async def open_node(folder: Path, *options: str) -> AsyncIterator[Node]:
    """A server in a folder of its own, on a free port below 50,000 (a cluster's bus is +10,000)."""
    port = free_port()
    folder = folder / str(port)
    folder.mkdir()
    command = [str(_binary()), *options]
    command += ["--port", str(port), "--bind", HOST, "--dir", str(folder), "--save", ""]
    node = Node(port, command, folder / "log")
    try:
        await node.start()
        yield node
    finally:
        node.kill()


def free_port() -> int:
    """A port nobody listens on, whose +10,000 is free and a port too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((HOST, 0))
            port: int = first.getsockname()[1]
            try:
                second.bind((HOST, port + 10_000))
            except (OSError, OverflowError):
                continue
            return port
