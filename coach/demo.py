"""`coach demo`: everything on this machine, with one command and one Ctrl-C.

    demo ── Valkey           embedded, unless redis.url is set
         ├─ simulator        unless a [[provider]] is configured
         ├─ coach serve ──── web workers
         └─ coach grade

The children get their settings from the environment, on top of the operator's own file; what they
say goes to log files in the data folder. One that ends on its own ends the demo.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import httpx
import msgspec
import trio

from . import config
from .child import Process, exited, how_it_ended, start_child, stop_child
from .errors import ConfigurationError
from .session import open_authority
from .simulator.writers import Plan, Report, simulate
from .store import open_embedded
from .supervisor import open_listener

START_S_MAX: Final = 30.0
STOP_S_MAX: Final = 2.5
"""From SIGTERM to SIGKILL: Ctrl-C ends everything within 3 s."""
DRAIN_S_MAX: Final = 1.5
POLL_S: Final = 0.03
SIMULATOR: Final = "simulator"
LOCAL_MODEL: Final = "local-model"
PROVIDERS: Final = frozenset((SIMULATOR, LOCAL_MODEL))
"""Parts that the others ask."""
CHECK_S: Final = 10.0
"""How long the student of a check types."""
LOCAL_OUTPUT_TOKENS: Final = 160
"""Of one answer: a local model writes some ninety tokens a second, for everybody together."""
QUOTA: Final = {
    "requests_per_minute": 4_000,
    "input_tokens_per_minute": 4_000_000,
    "output_tokens_per_minute": 1_000_000,
}
"""Of the simulated provider, and what coach is told of it; sixty busy students stay below."""


async def run_demo(
    *,
    port: int | None,
    data_dir: Path | None,
    config_file: Path | None,
    check: bool,
    local_model: bool = False,
) -> int:
    """Run everything until SIGINT or SIGTERM, or for one student. Returns the exit code.

    Args:
      port: of the page, 0 for a free one; None: what the settings say.
      data_dir: for Valkey's data, keys and logs; None: what the settings say, or for a check a
        folder that is removed afterwards.
      config_file: the operator's own settings.
      check: run one student from typing to grade on free ports, say what was seen, and stop.
      local_model: where no provider is configured, a small real model instead of the simulator.

    Raises:
      ConfigurationError: a part does not start, or ends on its own; the others have been stopped.
    """
    with tempfile.TemporaryDirectory(prefix="coach-check-") as scratch:
        if check and data_dir is None:
            data_dir = Path(scratch)
        settings = _settings(config_file, data_dir, 0 if check else port, check=check)
        code = 130 if check else 0
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
                async with _open_everything(settings, local_model=local_model) as url:
                    if check:
                        code = 0 if (await _check(url)).ok else 1
                    else:
                        _welcome(url, settings)
                        await trio.sleep_forever()
                nursery.cancel_scope.cancel("the check has ended")
    return code


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel("asked to stop")


def _settings(
    config_file: Path | None, data_dir: Path | None, port: int | None, *, check: bool
) -> config.Settings:
    """The operator's settings with the demo's; the children will read the same."""
    if config_file is not None:
        os.environ["COACH_CONFIG"] = str(config_file.absolute())
    if data_dir is not None:
        os.environ["COACH_DATA_DIR"] = str(data_dir.absolute())
    if check:
        os.environ["COACH_AUTH__MODE"] = "open"  # its student asks for a token
    settings = config.load(config.path_from_environment())
    if settings.server.scheme == "https":
        raise ConfigurationError("server.tls_certificate: leave it out, the demo is plain HTTP")
    host, configured_port = settings.server.address
    if port is None:
        port = configured_port
    bind = f"{'127.0.0.1' if check else host}:{port}"
    with open_listener(config.Server(bind=bind)) as probe:  # in use? then say so before all else
        port = probe.getsockname()[1]
    os.environ |= {
        "COACH_DATA_DIR": str(settings.data_path.absolute()),
        "COACH_SERVER__BIND": f"{bind.rpartition(':')[0]}:{port}",
        "COACH_SERVER__DRAIN_S": f"{min(DRAIN_S_MAX, settings.server.drain_s)}",
        "COACH_GRADING__DRAIN_S": f"{min(DRAIN_S_MAX, settings.grading.drain_s)}",
    }
    return config.load(config.path_from_environment())


@asynccontextmanager
async def _open_everything(settings: config.Settings, *, local_model: bool) -> AsyncIterator[str]:
    """Start all parts in order; gives the page's address once it is there.

    Raises:
      ConfigurationError: see `run_demo`.
    """
    environ = dict(os.environ)
    async with AsyncExitStack() as stack:
        if settings.redis.url is None:
            server = await stack.enter_async_context(open_embedded(settings.data_path))
            environ["COACH_REDIS__URL"] = server.url
        parts = await stack.enter_async_context(_open_parts(settings.data_path, environ))
        if not settings.provider:
            start = _start_local_model if local_model else _start_simulator
            environ["COACH_PROVIDER"] = await start(parts, settings.data_path)
        parts.start("serve", ["-m", "coach", "serve"])
        parts.start("grade", ["-m", "coach", "grade"])
        url = f"http://{settings.server.bind}"
        await _until_ready(f"{url}/readyz")
        yield url


# -- parts -----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Part:
    name: str
    process: Process
    log: Path

    async def watch(self) -> None:
        """Wait until it ends, which it should not."""
        code = await exited(self.process)
        said = self.last_line()
        if said.startswith("coach: "):
            raise ConfigurationError(said.removeprefix("coach: "))
        raise ConfigurationError(f"{self.name} {how_it_ended(code)}; {self.log} ends with: {said}")

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


@attrs.define(eq=False)
class _Parts:
    """The processes that have been started."""

    _data_dir: Path
    _environ: dict[str, str]
    """What the next part will get."""
    _nursery: trio.Nursery
    started: list[_Part] = attrs.field(factory=list)

    def start(self, name: str, arguments: Sequence[str]) -> _Part:
        """Start Python with `arguments`."""
        log = self._data_dir / f"{name}.log"
        with log.open("wb") as output:
            process = start_child(
                [sys.executable, *arguments], output=output, environ=self._environ
            )
        part = _Part(name=name, process=process, log=log)
        self.started.append(part)
        self._nursery.start_soon(part.watch)
        return part


@asynccontextmanager
async def _open_parts(data_dir: Path, environ: dict[str, str]) -> AsyncIterator[_Parts]:
    """Processes that are all stopped when the block is left.

    Those that ask the provider end first, so that no feedback breaks off at the last moment.
    """
    _prepare(data_dir)
    async with trio.open_nursery() as nursery:
        parts = _Parts(data_dir, environ, nursery)
        try:
            yield parts
        finally:
            nursery.cancel_scope.cancel("the demo ends")
            with trio.CancelScope(shield=True):
                for is_provider in (False, True):
                    async with trio.open_nursery() as stopping:
                        for part in parts.started:
                            if (part.name in PROVIDERS) is is_provider:
                                stop = partial(stop_child, part.process, within_s=STOP_S_MAX)
                                stopping.start_soon(stop)


def _prepare(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        (data_dir / "serve.log").touch()
    except OSError as error:
        raise ConfigurationError(
            f"data_dir: cannot write to {data_dir}: {error.strerror}"
        ) from error


async def _start_simulator(parts: _Parts, data_dir: Path) -> str:
    """Start a simulated provider; returns what coach needs to know of it, as JSON."""
    arguments = ["-m", "coach.simulator", "--data-dir", str(data_dir)]
    for name, value in QUOTA.items():
        arguments += [f"--{name.replace('_', '-')}", f"{value}"]
    url = await _until_it_says_ready(parts.start(SIMULATOR, arguments))
    provider = {
        "name": "simulator",
        "base_url": url,
        "model": "sim-writer-1",
        "api_key": "simulated",
        "ca_file": str(data_dir / "simulator-ca.pem"),
        "quota": QUOTA,
    }
    return msgspec.json.encode([provider]).decode()


async def _start_local_model(parts: _Parts, data_dir: Path) -> str:
    """Start a small model on this machine; otherwise like `_start_simulator`."""
    del data_dir
    url = await _until_it_says_ready(parts.start(LOCAL_MODEL, ["-m", "coach.local_model"]))
    provider = {
        "name": "local",
        "kind": "openai-compatible",
        "base_url": url,
        "model": "smollm2-135m-instruct",
        "api_key": "none",
        "feedback_output_tokens_max": LOCAL_OUTPUT_TOKENS,
    }
    return msgspec.json.encode([provider]).decode()


async def _until_it_says_ready(part: _Part) -> str:
    """The address that a provider's process says it serves."""
    with _patience(part.name):
        while not (said := part.last_line()).startswith("ready "):  # noqa: ASYNC110  a file
            await trio.sleep(POLL_S)
    return said.removeprefix("ready ")


async def _until_ready(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with _patience("coach serve"):
            while True:
                try:
                    if (await client.get(url)).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(POLL_S)


@contextmanager
def _patience(name: str) -> Iterator[None]:
    try:
        with trio.fail_after(START_S_MAX):
            yield
    except trio.TooSlowError as error:
        raise ConfigurationError(f"{name} was not ready after {START_S_MAX:g} s") from error


# -- what is said ----------------------------------------------------------------------------------


def _welcome(url: str, settings: config.Settings) -> None:
    authority = open_authority(settings)
    operator, educator = (
        authority.issue(user="demo", org="demo", role=role)[0] for role in ("operator", "educator")
    )
    print(f"Write at {url}")
    print(f"Watch it at {url}/ops#token={operator}")
    print(f"Review grades at {url}/review#token={educator}")
    print(f"Logs and data are in {settings.data_path}; Ctrl-C ends everything.", flush=True)


async def _check(url: str) -> Report:
    """One student writes an essay, gets feedback, hands in, and is graded."""
    report = await simulate(Plan(url=url, writers=1, seconds=CHECK_S, ramp_s=0, turn_every_s=2.5))
    tally = report.tally
    ttft, score = tally.ttft_ms.percentile(50), tally.score_ms.percentile(50)
    print(
        f"feedback     {tally.completed} complete of {tally.turns} asked for, {tally.deltas} deltas"
    )
    print(f"first token  {_ms(ttft)} (median)")
    print(
        f"tokens       {tally.tokens['input']} in, {tally.tokens['cached']} from the cache,"
        f" {tally.tokens['output']} out"
    )
    print(f"score        {tally.last_score} of 100, {_ms(score)} after handing in")
    print(f"whole check  {report.elapsed_s:.1f} s")
    if not report.ok:
        errors = ", ".join(f"{code} ×{count}" for code, count in tally.errors.items())
        print(f"FAILED       {errors or 'the essay was not graded'}", flush=True)
    return report


def _ms(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} ms"
