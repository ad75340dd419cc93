"""Processes of a benchmark: started in a nursery, ended with it, their CPU time read from /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from coach.errors import ConfigurationError

END_S_MAX = 12.0
LOG_BYTES_SHOWN = 2_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ENDED = frozenset("ZX")


class ProcessEnded(Exception):
    """The process that was to be measured is no more."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has ended")
        self.pid = pid


@asynccontextmanager
async def open_process(
    command: Sequence[str],
    *,
    log: Path,
    piped: bool = False,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[trio.Process]:
    """Run `command` while the block runs; then SIGTERM, and SIGKILL after `END_S_MAX`.

    Args:
      command: program and arguments.
      log: where its standard error goes, and its standard output unless piped.
      piped: standard input and output are pipes for the caller.
      env: variables to set on top of this process's own.
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
                    env={**os.environ, **(env or {})},
                )
            )
            try:
                yield process
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)


class Lines:
    """What a process says on its standard output, line by line."""

    def __init__(self, process: trio.Process, log: Path, whose: str) -> None:
        """Read from a process that was opened `piped`; `whose` and `log` say why it ended."""
        assert process.stdout is not None
        self._stdout, self._log, self._whose = process.stdout, log, whose
        self._said = bytearray()

    async def next(self) -> str:
        """The next line.

        Raises:
          ConfigurationError: the process has ended; with the end of its log.
        """
        while b"\n" not in self._said:
            data = await self._stdout.receive_some()
            if not data:
                end = self._log.read_text(errors="replace")[-LOG_BYTES_SHOWN:]
                raise ConfigurationError(f"{self._whose} has ended:\n{end}")
            self._said += data
        line, _, rest = self._said.partition(b"\n")
        self._said = rest
        return line.decode()


async def _end(process: trio.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    with trio.move_on_after(END_S_MAX):
        await process.wait()
    if process.returncode is None:
        process.kill()


def cpu_s(pid: int) -> float:
    """Seconds of CPU, user and system, that process `pid` has used; source: proc(5).

    Raises:
      ProcessEnded: it has.
    """
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if fields[0] in _ENDED:
        raise ProcessEnded(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def children(pid: int) -> list[int]:
    """Processes that `pid` has started and that still run.

    Raises:
      ProcessEnded: `pid` has.
    """
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def resident_bytes(pid: int) -> int:
    """Memory of process `pid` that is in RAM.

    Raises:
      ProcessEnded: it has.
    """
    pages = int(_read(pid, "statm").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessEnded(pid) from error


def free_port() -> int:
    """A loopback port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
