"""What a worker may ask of the `coach serve` above it: a line down a pipe that all of them inherit.

    renew           give every slot a new worker, one by one
    renew <slot>    give one slot a new worker

A line is shorter than PIPE_BUF, so that two workers' lines never mix. Nothing is answered: what
comes of it is seen in the workers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Final

import trio

VARIABLE: Final = "COACH_CONTROL_FD"
"""In a worker's environment: the end of the pipe that takes lines."""
_READ_MAX: Final = 4_096


@contextmanager
def open_control() -> Iterator[tuple[int, int]]:
    """The pipe: the end that is read, and the one that workers inherit."""
    read_fd, write_fd = os.pipe()
    try:
        os.set_blocking(write_fd, False)
        yield read_fd, write_fd
    finally:
        os.close(read_fd)
        os.close(write_fd)


async def asked(read_fd: int) -> AsyncGenerator[str, None]:
    """What workers ask for, line by line, for as long as it is iterated."""
    held = b""
    while True:
        await trio.lowlevel.wait_readable(read_fd)
        *lines, held = (held + os.read(read_fd, _READ_MAX)).split(b"\n")
        held = held[-_READ_MAX:]
        for line in lines:
            yield line.decode(errors="replace")


def is_supervised() -> bool:
    """Whether a `coach serve` is above this process."""
    return VARIABLE in os.environ


def ask_to_renew(slot: str | None) -> None:
    """Have a new worker take the place of one, or of each, which then drains. Not a checkpoint.

    Raises:
      OSError: the supervisor takes nothing in.
      KeyError: there is none, see `is_supervised`.
    """
    line = "renew\n" if slot is None else f"renew {slot}\n"
    os.write(int(os.environ[VARIABLE]), line.encode())
