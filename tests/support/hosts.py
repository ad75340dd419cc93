"""Two coaches and two graders behind HAProxy, with the configuration that operators are given."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from coach.child import Process, exited, start_child, stop_child

from .stack import Stack, free_port, open_stack, start_python, until_ready

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="no HAProxy here (Debian: haproxy)")


@attrs.define(eq=False)
class Hosts:
    """What runs. Each list's first is at the same place in the other's."""

    url: str
    """HAProxy's."""
    stack: Stack
    coaches: list[Process]
    graders: list[Process]
    _binds: list[str]

    async def restart_coach(self, index: int) -> None:
        """As a deploy does: SIGTERM, wait for it, start it, wait until it serves."""
        await self.end(self.coaches[index])
        self.coaches[index] = await self._start_coach(index)

    async def restart_grader(self, index: int) -> None:
        """Likewise."""
        await self.end(self.graders[index])
        self.graders[index] = self._start("grade", f"grade-{index}", {})

    async def end(self, process: Process) -> None:
        """SIGTERM; it drains and ends well."""
        process.send_signal(signal.SIGTERM)
        assert await exited(process) == 0

    async def _start_coach(self, index: int) -> Process:
        bind = self._binds[index]
        process = self._start("serve", f"serve-{index}", {"COACH_SERVER__BIND": bind})
        await until_ready(f"http://{bind}", process)
        return process

    def _start(self, command: str, name: str, environ: dict[str, str]) -> Process:
        environ = {**self.stack.environment, **environ}
        log = self.stack.data_dir / f"{name}.log"
        return start_python(["-m", "coach", command], log, environ)

    def log(self) -> str:
        """What all of them have written."""
        logs = sorted(self.stack.data_dir.glob("*-?.log"))
        return "".join(path.read_text() for path in logs) + self.stack.log()


@asynccontextmanager
async def open_hosts(
    data_dir: Path, *, settings: str, simulator: tuple[str, ...]
) -> AsyncIterator[Hosts]:
    """Start everything; end what is left, and see that it ends well."""
    assert HAPROXY is not None
    async with open_stack(data_dir, grader=False, settings=settings, simulator=simulator) as stack:
        second, public = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        first = stack.url.removeprefix("http://")
        hosts = Hosts(f"http://{public}", stack, [stack.supervisor], [], [first, second])
        with (data_dir / "haproxy.log").open("ab") as output:
            proxy = start_child(
                [HAPROXY, "-db", "-f", str(CONFIGURATION)],
                output=output,
                environ={**os.environ, "COACH_PUBLIC": public, "COACH_1": first, "COACH_2": second},
            )
        try:
            hosts.coaches.append(await hosts._start_coach(1))
            for index in range(2):
                hosts.graders.append(hosts._start("grade", f"grade-{index}", {}))
            await until_ready(hosts.url, proxy)
            yield hosts
            async with trio.open_nursery() as nursery:
                for process in [*hosts.coaches, *hosts.graders]:
                    nursery.start_soon(hosts.end, process)
        finally:
            for process in [*hosts.coaches, *hosts.graders, proxy]:
                await stop_child(process, within_s=1)  # noqa: ASYNC102  shields itself
