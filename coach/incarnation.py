"""Names of processes from which others on the machine see whether they have ended.

A worker that is killed cannot say goodbye, and whoever waits for its answer waits in vain. Its name
tells where to look: the machine since it was started, and the process by number and start time, as
numbers are used again. Elsewhere, also in another container, the name tells nothing.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Final

from .child import is_running

_PROC: Final = Path("/proc")
_STARTED: Final = 19
"""Of what follows the command in /proc/<pid>/stat, the start time; source: proc(5), field 22."""


def new_name(role: str, pid: int | None = None) -> str:
    """A name that no other process has, and none has had: `role`, chance, and where to look.

    Args:
      role: of which operators know it.
      pid: whose name; None: this process's.
    """
    pid = pid or os.getpid()
    name, machine, started = f"{role}-{secrets.token_hex(4)}", _machine(), _started(pid)
    return f"{name}.{machine}.{pid}.{started}" if machine and started else name


def has_ended(name: str) -> bool:
    """Whether the process of this name is known to have ended; False where that cannot be seen.

    Not a checkpoint; some 40 µs.
    """
    parts = name.split(".")[1:]
    if len(parts) != 3 or parts[0] != _machine() or not parts[1].isdecimal():
        return False
    pid = int(parts[1])
    if not is_running(pid):
        return True
    started = _started(pid)
    return bool(started) and started != parts[2]


@cache
def _machine() -> str:
    """This machine since its start, and the container; empty where there is no telling."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text()
        processes = (_PROC / "self/ns/pid").readlink()  # two containers share numbers by chance
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {processes}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[_STARTED]
