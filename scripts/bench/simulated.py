"""The simulated provider of a benchmark: a process, and what it has counted."""

from __future__ import annotations

import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio
from processes import free_port, open_process

START_S_MAX: Final = 30.0


@attrs.frozen
class Simulated:
    """A provider that runs."""

    url: str
    ca: Path

    async def stats(self) -> dict[str, Any]:
        """What it has counted since its start."""
        context = ssl.create_default_context(cafile=str(self.ca))
        async with httpx.AsyncClient(verify=context) as client:
            found: dict[str, Any] = (await client.get(f"{self.url}/stats")).json()
            return found


@asynccontextmanager
async def open_simulated(folder: Path, *options: str) -> AsyncIterator[Simulated]:
    """Run one while the block runs; it answers when the block begins.

    Args:
      folder: for its certificate and its log.
      options: of `python -m coach.simulator`, beside its port and folder.

    Raises:
      trio.TooSlowError: it has not answered within `START_S_MAX`.
    """
    port = free_port()
    command = [
        *(sys.executable, "-m", "coach.simulator", "--port", str(port)),
        *("--data-dir", str(folder), *options),
    ]
    async with open_process(command, log=folder / "simulator.log"):
        simulated = Simulated(f"https://127.0.0.1:{port}", folder / "simulator-ca.pem")
        with trio.fail_after(START_S_MAX):
            while True:
                try:
                    await simulated.stats()
                except (OSError, httpx.TransportError):
                    await trio.sleep(0.1)
                else:
                    break
        yield simulated
