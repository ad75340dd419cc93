"""Child processes that live and die with their owner.

Not trio's `open_process`: that starts children from a worker thread, and a child that asks the
kernel to be ended with its parent would be ended with that thread. Popen takes 2 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final

import trio

_PR_SET_PDEATHSIG: Final = 1
_EXITED_IN_VAIN: Final = 1

Process = subprocess.Popen[bytes]
Output = int | IO[bytes]


def start_child(
    command: Sequence[str],
    *,
    output: Output | None = None,
    environ: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    orphan_signal: signal.Signals = signal.SIGTERM,
) -> Process:
    """Start a program that ends when this process does, however that ends. Not a checkpoint.

    Call it from the main thread: the kernel ends the child with the thread that started it. The
    child is in a session of its own, so that Ctrl-C in a terminal reaches the owner only. Where the
    kernel has no such service (it is not Linux), an owner that is killed leaves the child behind.

    Args:
      command: program and arguments; the program is not looked up in a shell.
      output: where its standard output and error go; None: where ours go.
      environ: the child's whole environment; None: ours.
      pass_fds: descriptors that the child inherits.
      orphan_signal: what the kernel sends the child when this process is gone.

    Raises:
      OSError: the program cannot be started.
    """
    return subprocess.Popen(  # noqa: S603  programs of ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=None if environ is None else dict(environ),
        start_new_session=True,
        pass_fds=tuple(pass_fds),
        preexec_fn=_die_with_parent(orphan_signal),  # noqa: PLW1509  takes no lock, allocates nothing to speak of
    )


async def exited(process: Process) -> int:
    """Wait until a child has ended; returns its exit code, or minus the signal that ended it."""
    if process.poll() is None:
        try:
            pidfd = os.pidfd_open(process.pid)
        except (AttributeError, OSError):  # not on this system
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            return process.wait()
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
    return process.wait()


async def stop_child(process: Process, *, within_s: float) -> None:
    """SIGTERM, and SIGKILL after `within_s`; returns when the child is gone, also if cancelled."""
    if process.poll() is None:
        process.terminate()
    with trio.move_on_after(within_s, shield=True):
        await exited(process)
    if process.poll() is None:
        process.kill()
        process.wait()


def is_running(pid: int) -> bool:
    """Whether a process, anybody's, has not ended. One that nobody has waited for yet has."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # not on this system: cannot tell a zombie
        return _answers_signals(pid)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        return not ended.poll(0)
    finally:
        os.close(pidfd)


def _answers_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def how_it_ended(code: int) -> str:
    """Words for an exit code as `exited` returns it."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _die_with_parent(orphan_signal: signal.Signals) -> Callable[[], None] | None:
    """What the child does before it becomes the program; only Linux knows how."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None:
        return None
    parent_pid = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, orphan_signal)
        if os.getppid() != parent_pid:  # it died before we asked
            os._exit(_EXITED_IN_VAIN)

    return ask
