"""A coach (or a usual server) as a load test wants it, with its own provider, and a load on it."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import httpx
import trio
from processes import END_S_MAX, free_port, open_process
from relay_peers import end_of
from rich.console import Console
from usual_stage import Usual, open_usual

from coach.errors import ConfigurationError
from coach.simulator.classroom import run_watched
from coach.simulator.crowd import Crowd
from coach.simulator.plan import Plan
from coach.simulator.timeline import Sample
from coach.simulator.watch import Targets, Watch
from coach.simulator.writers import Report

START_S_MAX = 30.0
REST_S = 2.0
"""Between the processes' start and the load: imports have then been paid."""
WIDE = 100_000_000
"""A quota or limit that nobody reaches."""


@attrs.frozen(kw_only=True)
class Setup:
    """What is put up."""

    workers: int = 1
    grades_at_once: int = 64
    quota: Mapping[str, int] = attrs.field(
        factory=lambda: {
            "requests_per_minute": WIDE,
            "input_tokens_per_minute": WIDE,
            "output_tokens_per_minute": WIDE,
        }
    )
    """Of the simulated provider, and what coach is told of it."""
    rollout: Mapping[str, int] = attrs.field(factory=dict)
    """Percent by flag, where it is not 100."""
    simulator: tuple[str, ...] = ()
    """Further options of the simulated provider."""
    environ: Mapping[str, str] = attrs.field(factory=dict)
    """Further settings of coach."""
    usual: Usual | None = None
    """This in place of coach; of all above it is told the number of workers."""


@attrs.frozen(kw_only=True)
class Stage:
    """What has been put up."""

    url: str
    provider_url: str
    provider_ca: str
    secret: str = attrs.field(repr=False)

    async def provider(self) -> dict[str, float]:
        """What the simulated provider has counted."""
        async with httpx.AsyncClient(
            trust_env=False, verify=self.provider_ca, timeout=END_S_MAX
        ) as client:
            found: dict[str, float] = (await client.get(f"{self.provider_url}/stats")).json()
            return found


@attrs.frozen(kw_only=True)
class Outcome:
    """A load that is over."""

    report: Report
    samples: list[Sample]
    provider: dict[str, float]
    """What the simulated provider counted."""


@asynccontextmanager
async def open_stage(setup: Setup, folder: Path) -> AsyncIterator[Stage]:
    """Start everything; it ends with the block.

    Args:
      setup: what is wanted.
      folder: an existing one, for data and logs.

    Raises:
      ConfigurationError: a part does not start.
    """
    secret, port = secrets.token_hex(24), free_port()
    quota = [
        part
        for name, value in setup.quota.items()
        for part in (f"--{name.replace('_', '-')}", f"{value}")
    ]
    simulator = [sys.executable, "-m", "coach.simulator", "--data-dir", str(folder)]
    async with open_process(
        [*simulator, *quota, *setup.simulator], log=folder / "simulator.log", piped=True
    ) as provider:
        assert provider.stdout is not None
        with trio.move_on_after(START_S_MAX):
            said = (await provider.stdout.receive_some()).decode()
        if not said.startswith("ready "):
            raise ConfigurationError(
                f"the simulated provider does not start; {end_of(folder / 'simulator.log')}"
            )
        stage = Stage(
            url=f"http://127.0.0.1:{port}",
            provider_url=said.split()[1],
            provider_ca=str(folder / "simulator-ca.pem"),
            secret=secret,
        )
        async with _open_server(setup, stage, port, folder) as server:
            await _until_ready(stage.url, server, folder)
            await trio.sleep(REST_S)
            yield stage


@asynccontextmanager
async def _open_server(
    setup: Setup, stage: Stage, port: int, folder: Path
) -> AsyncIterator[trio.Process]:
    if setup.usual is not None:
        async with open_usual(
            setup.usual,
            port=port,
            workers=setup.workers,
            provider_url=stage.provider_url,
            provider_ca=Path(stage.provider_ca),
            secret=stage.secret,
            folder=folder,
        ) as process:
            yield process
        return
    command = [sys.executable, "-m", "coach", "demo", "--port", f"{port}"]
    command += ["--data-dir", str(folder)]
    environ = _environ(setup, stage)
    async with open_process(command, log=folder / "server.log", env=environ) as process:
        yield process


def _environ(setup: Setup, stage: Stage) -> dict[str, str]:
    provider = {
        "name": "simulator",
        "base_url": stage.provider_url,
        "model": "sim-writer-1",
        "api_key": "simulated",
        "ca_file": stage.provider_ca,
        "quota": dict(setup.quota),
    }
    flags = {f"COACH_ROLLOUT__{flag.upper()}": f"{of}" for flag, of in setup.rollout.items()}
    return {
        "COACH_PROVIDER": json.dumps([provider]),
        "COACH_AUTH__MODE": "jwt",
        "COACH_AUTH__SECRET": stage.secret,
        "COACH_SERVER__WORKERS": f"{setup.workers}",
        "COACH_GRADING__CONCURRENCY": f"{setup.grades_at_once}",
        "COACH_GRADING__ORG_DEPTH_PERCENT": "100",
        "COACH_LIMITS__ORG_REQUESTS_PER_MINUTE": f"{WIDE}",
        "COACH_LIMITS__ORG_TOKENS_PER_MINUTE": f"{WIDE}",
        **flags,
        **setup.environ,
    }


async def _until_ready(url: str, server: trio.Process, folder: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.move_on_after(START_S_MAX):
            while server.returncode is None:
                try:
                    if (await client.get(f"{url}/readyz")).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(0.1)
    raise ConfigurationError(f"the server does not start; {end_of(folder / 'server.log')}")


async def put_load(
    stage: Stage,
    plan: Plan,
    console: Console,
    *,
    processes: int,
    until: Callable[[Sequence[Sample]], bool] | None = None,
) -> Outcome:
    """Let a plan's students write against a stage.

    Args:
      stage: what has been put up.
      plan: the students.
      console: is told how far it is.
      processes: of students.
      until: asked at every sample; when it says so the students are cut off.

    Raises:
      ConfigurationError: a process of the load has died.
    """
    plan = attrs.evolve(plan, url=stage.url, secret=stage.secret)
    targets = Targets(url=stage.url, provider_url=stage.provider_url, provider_ca=stage.provider_ca)
    watch = Watch(Crowd(plan), targets)
    began_s = trio.current_time()
    report = None
    with trio.CancelScope() as load:
        if until is not None:
            asked = until

            def look(_: Sample) -> None:
                if asked(watch.samples):
                    load.cancel("enough was seen")

            watch.on_sample = look
        report = await run_watched(watch, console, processes=processes)
    if report is None:
        report = Report(plan, watch.crowd.tally, trio.current_time() - began_s)
    return Outcome(report=report, samples=watch.samples, provider=await stage.provider())
