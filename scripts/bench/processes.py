"""Processes of a benchmark: started in a nursery, ended with it, their CPU time read from /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

END_S_MAX = 12.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def open_process(
    command: Sequence[str], *, log: Path, piped: bool = False
) -> AsyncIterator[trio.Process]:
    """Run `command` while the block runs; then SIGTERM, and SIGKILL after `END_S_MAX`.

    Args:
      command: program and arguments.
      log: where its standard error goes, and its standard output unless piped.
      piped: standard input and output are pipes for the caller.
    """
    with log.open("ab") as sink:
        pipe = subprocess.PIPE if piped else None
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    stdin=pipe or subprocess.DEVNULL,
                    stdout=pipe or sink,
                    stderr=sink,
                    check=False,
                )
            )
            try:
                yield process
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)


async def _end(process: trio.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    with trio.move_on_after(END_S_MAX):
        await process.wait()
    if process.returncode is None:
        process.kill()


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, that process `pid` has used; source: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children(pid: int) -> list[int]:
    """Processes that `pid` has started and that still run."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def resident_bytes(pid: int) -> int:
    """Memory of process `pid` that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
