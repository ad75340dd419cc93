"""What the processes of a coach on this machine use: CPU, memory, open files; source: proc(5).

Reading costs the watcher some 0.1 ms a process. Where there is no /proc, or the server is on
another machine, there is nothing to see, and what the server itself says must do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_LISTENING: Final = "0A"
_STARTERS: Final = re.compile(r"(?:python[\d.]*|coach|hypercorn|honcho)$")
"""Programs that may have started a coach: its processes are looked for below the topmost one."""
ROLES: Final = (
    # what a command line has in it, and what the process is for; the first that fits
    ("coach.simulator.crowd", "load generator"),
    ("coach.simulator", "simulated provider"),
    ("coach worker", "worker"),
    ("hypercorn", "worker"),
    ("usual_server", "worker"),  # scripts/bench has it to compare with
    ("coach grade", "grader"),
    ("valkey-server", "redis"),
    ("redis-server", "redis"),
    ("coach serve", "other"),
)
SERVER_ROLES: Final = ("worker", "grader", "redis", "other")
"""What would also run where students are real."""
LOAD_ROLES: Final = ("load generator", "simulated provider")


@attrs.frozen
class Usage:
    """What one process used between two looks."""

    pid: int
    role: str
    cpu: float
    """Of one core."""
    memory_mb: float
    files: int
    files_max: int


@attrs.define(eq=False)
class Host:
    """The machine, looked at now and then.

    Args:
      port: where the server listens.
      own: the load generator's processes.
    """

    port: int
    own: Iterable[int]
    cores: int = attrs.field(factory=lambda: os.cpu_count() or 1)
    _seen: dict[int, tuple[float, float]] = attrs.field(factory=dict)  # pid -> CPU s, when
    _machine: tuple[float, float] | None = None  # jiffies: busy, all
    _top: int | None = None  # the topmost process of the coach

    def look(self) -> list[Usage]:
        """What each process has used since the last look; nothing of one that was not there."""
        if self._top is None:
            self._top = topmost(self.port)
        own = set(self.own)
        pids = {**dict.fromkeys(own, "load generator")}
        pids[os.getpid()] = "load generator"
        if self._top is not None:
            for pid in descendants(self._top):
                if pid not in pids and (role := role_of(pid)):
                    pids[pid] = role
        now_s = time.monotonic()
        usages, seen = [], {}
        for pid, role in pids.items():
            try:
                cpu_s = _cpu_s(pid)
                memory_mb = int(_read(pid, "statm").split()[1]) * _PAGE_BYTES / 1e6
                files = len(os.listdir(PROC / f"{pid}/fd"))  # noqa: PTH208  names alone
                files_max = _files_max(pid)
            except (OSError, ValueError):
                continue  # it has ended
            seen[pid] = (cpu_s, now_s)
            if pid in self._seen:
                before_s, at_s = self._seen[pid]
                cpu = (cpu_s - before_s) / max(1e-6, now_s - at_s)
                usages.append(Usage(pid, role, cpu, memory_mb, files, files_max))
        self._seen = seen
        return usages

    def machine(self) -> float | None:
        """Share of all cores in use since the last call; None: it is the first, or no /proc."""
        try:
            first_line = (PROC / "stat").read_text().partition("\n")[0]
            fields = [float(part) for part in first_line.split()[1:]]
        except (OSError, ValueError):
            return None
        idle, whole = fields[3] + fields[4], sum(fields[:8])
        before, self._machine = self._machine, (whole - idle, whole)
        if before is None or whole <= before[1]:
            return None
        return (self._machine[0] - before[0]) / (whole - before[1])


def role_of(pid: int) -> str | None:
    """What a process is for; None: nothing to do with coach."""
    command = _command(pid)
    return next((role for part, role in ROLES if part in command), None)


def topmost(port: int) -> int | None:
    """The process from which whatever listens on `port` descends; None: nobody we may see."""
    listeners = _listeners(port)
    for entry in sorted(PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        if listeners and listeners & _sockets(entry):
            return _climb(int(entry.name))
    return None


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*"):
        parents.setdefault(_parent(int(entry.name)), []).append(int(entry.name))
    found, rest = [], [pid]
    while rest:
        found.append(rest.pop())
        rest += parents.get(found[-1], [])
    return found


def _climb(pid: int) -> int:
    while (parent := _parent(pid)) > 1:
        program = Path(_command(parent).partition(" ")[0]).name
        if not _STARTERS.match(program):
            break
        pid = parent
    return pid


def _listeners(port: int) -> set[str]:
    """Links of the sockets that listen on a port, as /proc/PID/fd has them."""
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (PROC / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found


def _sockets(process: Path) -> set[str]:
    links = set()
    try:
        for name in os.listdir(process / "fd"):  # noqa: PTH208  names alone
            links.add(os.readlink(process / "fd" / name))  # noqa: PTH115  not a file's path
    except OSError:
        return links  # another user's, or it has ended
    return links


def _parent(pid: int) -> int:
    try:
        return int(_read(pid, "stat").rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def _cpu_s(pid: int) -> float:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _files_max(pid: int) -> int:
    found = re.search(r"^Max open files\s+(\d+)", _read(pid, "limits"), re.MULTILINE)
    return int(found[1]) if found else 0


def _command(pid: int) -> str:
    try:
        return _read(pid, "cmdline").replace("\0", " ").strip()
    except OSError:
        return ""


def _read(pid: int, name: str) -> str:
    return (PROC / f"{pid}/{name}").read_text()
