"""The chaos itself: starts everything, breaks one part after the other, says what it has cost."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio

from coach.child import Process, start_child, stop_child
from coach.errors import ConfigurationError, first_error
from coach.simulator.plan import Plan
from coach.simulator.writers import Presence, Report, simulate
from coach.store import EmbeddedServer, open_embedded, open_redis

START_S_MAX: Final = 30.0
END_S_MAX: Final = 12.0
KILL_EVERY_S: Final = 20.0
PROVIDER_DEAD_S: Final = 10.0
OFFLINE_S: Final = (0.1, 40.0)
ONLINE_S: Final = 20.0
"""Mean time between two losses of a phone's network."""
SETTLE_S_MAX: Final = 30.0
"""After the last student has left: leases of killed workers run out, streams are reset."""
MAY_FAIL: Final = frozenset({"interrupted", "overloaded"})
"""What a student is told of a turn that was with a killed worker, or began without Redis."""
HELD: Final = (b"waiting", b"admitted")
"""States of tickets that somebody has; the others are remembered only."""
ASK: Final = '[[provider]]\nname = "{0}"\nkind = "{1}"\nbase_url = "{2}"\nmodel = "sim-1"\n'


@attrs.frozen
class Provider:
    """A simulated one."""

    name: str
    url: str
    ca: Path

    async def get(self, what: str) -> dict[str, Any]:
        """Its `/stats`."""
        async with self._client() as client:
            found: dict[str, Any] = (await client.get(f"{self.url}/{what}")).json()
            return found

    async def control(self, **settings: object) -> None:
        """Change its faults."""
        async with self._client() as client:
            (await client.post(f"{self.url}/control", json=settings)).raise_for_status()

    def _client(self) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.AsyncClient(verify=context, trust_env=False)


@attrs.frozen
class Stage:
    """What runs."""

    url: str
    redis: EmbeddedServer
    serve: Process
    providers: list[Provider]

    def workers(self) -> list[int]:
        """The worker processes."""
        path = Path(f"/proc/{self.serve.pid}/task/{self.serve.pid}/children")
        return [int(child) for child in path.read_text().split()]


@attrs.define
class Left:
    """What is there that nobody uses any more."""

    streams: int = 0
    tickets: int = 0
    reservations: int = 0

    @property
    def is_nothing(self) -> bool:
        """Whether that is so."""
        return not (self.streams or self.tickets or self.reservations)


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="coach-chaos-") as folder:
            return trio.run(partial(_run, options, Path(folder)))
    except* ConfigurationError as group:
        print(f"chaos: {first_error(group)}", file=sys.stderr)
    except* KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--writers", type=int, default=60, metavar="N")
    parser.add_argument("--minutes", type=float, default=2.0, metavar="M")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    return parser


async def _run(options: argparse.Namespace, folder: Path) -> int:
    seconds = options.minutes * 60
    presence = Presence()
    async with _open_stage(folder) as stage:
        plan = Plan(
            url=stage.url,
            writers=options.writers,
            seconds=seconds,
            seed=options.seed,
            ramp_s=min(10.0, seconds / 8),
            turn_every_s=min(9.0, seconds / 6),
            flaky=1.0,
            persistent=True,
            online_s=min(ONLINE_S, seconds / 3),
            offline_s=(OFFLINE_S[0], min(OFFLINE_S[1], seconds / 4)),
            half_open=0.3,
            grace_s=60,
        )
        events: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_break, stage, seconds, presence, events, options.seed)
            report = await simulate(plan, presence=presence)
            nursery.cancel_scope.cancel("the students have left")
        left = await _left_in_the_end(stage)
    return _say(report, left, events, options.json)


async def _break(
    stage: Stage, seconds: float, presence: Presence, events: list[str], seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311 - chaos, not secrets
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_kill_workers, stage, min(KILL_EVERY_S, seconds * 0.45), rng, events)
        nursery.start_soon(_kill_redis, stage, seconds / 3, events)
        nursery.start_soon(_kill_provider, stage, seconds / 2, events)
        await trio.sleep(seconds * 0.65)
        events.append(f"all {len(presence.links)} students lose their network at once")
        for link in list(presence.links):
            link.patience.cancel()


async def _kill_workers(
    stage: Stage, every_s: float, rng: random.Random, events: list[str]
) -> None:
    while True:
        await trio.sleep(every_s)
        workers = stage.workers()
        if len(workers) > 1:  # else the last one is being replaced
            events.append("a worker is killed")
            os.kill(rng.choice(workers), signal.SIGKILL)


async def _kill_redis(stage: Stage, after_s: float, events: list[str]) -> None:
    await trio.sleep(after_s)
    events.append("Valkey is killed, and starts again")
    os.kill(stage.redis.pid, signal.SIGKILL)


async def _kill_provider(stage: Stage, after_s: float, events: list[str]) -> None:
    await trio.sleep(after_s)
    events.append("the first provider dies, and returns")
    await stage.providers[0].control(faults={"reset": {"probability": 1.0}})
    await trio.sleep(min(PROVIDER_DEAD_S, after_s / 3))
    await stage.providers[0].control(faults={})


async def _left_in_the_end(stage: Stage) -> Left:
    """What is left once leases have run out; at the latest after `SETTLE_S_MAX`."""
    left = Left()
    with trio.move_on_after(SETTLE_S_MAX):
        while not (left := await _left(stage)).is_nothing:  # noqa: ASYNC110  other processes
            await trio.sleep(0.5)
    return left


async def _left(stage: Stage) -> Left:
    left = Left()
    for provider in stage.providers:
        left.streams += int((await provider.get("stats"))["streams_open"])
    async with open_redis(stage.redis.url) as redis:
        for provider in stage.providers:
            key = f"tickets:{{{provider.name}}}"
            tickets: list[bytes] = await redis.execute_command("HVALS", key)
            left.tickets += sum(ticket.startswith(HELD) for ticket in tickets)
        second, _ = await redis.time()
        async for key in redis.scan_iter("limit:*:leases*", count=1_000):
            # one whose lease has ended is given back by whoever looks into that window next
            left.reservations += int(await redis.zcount(key, int(second) * 1_000, "+inf"))
    return left


def _say(report: Report, left: Left, events: list[str], path: Path | None) -> int:
    tally = report.tally
    errors = {code: count for code, count in sorted(tally.errors.items()) if count}
    lost, doubled = errors.pop("text_lost", 0), errors.pop("text_doubled", 0)
    figures = {
        "writers": report.plan.writers,
        "seconds": round(report.elapsed_s, 1),
        "events": events,
        "connections_lost": tally.reconnects,
        "resumed": tally.resumed,
        "resumed_by_snapshot": tally.caught_up,
        "messages_replayed": tally.replayed,
        "resume_ms": tally.resume_ms.summary(),
        "turns": tally.turns,
        "completed": tally.completed,
        "superseded": tally.superseded,
        "turns_lost_with_their_session": tally.dropped,
        "deltas_lost": lost,
        "deltas_doubled": doubled,
        "submissions": tally.submissions,
        "graded": tally.graded,
        "errors": errors,
        "streams_left_open": left.streams,
        "tickets_left": left.tickets,
        "reservations_left": left.reservations,
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<30} {value}")
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
    is_well = (
        not (lost or doubled or set(errors) - MAY_FAIL)
        and tally.graded == tally.submissions >= report.plan.writers
        and tally.resumed > 0
        and tally.completed >= report.plan.writers / 2
        and left.is_nothing
    )
    print("nothing was lost" if is_well else "FAILED")
    return 0 if is_well else 1


@asynccontextmanager
async def _open_stage(folder: Path) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as exits:
        redis = await exits.enter_async_context(open_embedded(folder))
        providers = []
        for name, protocol in (("first", "anthropic"), ("second", "openai")):
            (folder / name).mkdir()  # noqa: ASYNC240  no student waits here
            opened = _open_provider(folder / name, name, protocol)
            providers.append(await exits.enter_async_context(opened))
        tables = "".join(
            ASK.format(each.name, kind, each.url) + f'api_key = "x"\nca_file = "{each.ca}"\n'
            for each, kind in zip(providers, ("anthropic", "openai"), strict=True)
        )
        bind = f"127.0.0.1:{_free_port()}"
        path = folder / "coach.toml"
        path.write_text(
            f'data_dir = "{folder}"\n{tables}[redis]\nurl = "{redis.url}"\n'
            f'[server]\nbind = "{bind}"\nworkers = 2\n'
            "[limits]\nuser_requests_per_minute = 1000\nuser_tokens_per_minute = 10000000\n"
            "org_requests_per_minute = 100000\norg_tokens_per_minute = 1000000000\n"
        )
        environ = {**os.environ, "COACH_CONFIG": str(path)}
        processes = []
        for command in ("serve", "grade"):
            opened_process = _open(["-m", "coach", command], folder / f"{command}.log", environ)
            processes.append(await exits.enter_async_context(opened_process))
        url = f"http://{bind}"
        await _until_ready(url, processes[0], folder / "serve.log")
        yield Stage(url, redis, processes[0], providers)


@asynccontextmanager
async def _open_provider(folder: Path, name: str, protocol: str) -> AsyncIterator[Provider]:
    log = folder / "provider.log"
    options = ["--number", "true", "--judge-ms", "500", "--events-per-s", "30"]
    command = ["-m", "coach.simulator", "--data-dir", str(folder), "--protocol", protocol]
    async with _open([*command, *options], log, os.environ.copy()) as process:
        with trio.fail_after(START_S_MAX):
            while not (said := log.read_text()).endswith("\n"):
                if process.poll() is not None:
                    raise ConfigurationError(f"the simulated provider has ended: {said}")
                await trio.sleep(0.05)
        yield Provider(name, said.split()[1], folder / "simulator-ca.pem")


@asynccontextmanager
async def _open(arguments: list[str], log: Path, environ: dict[str, str]) -> AsyncIterator[Process]:
    with log.open("ab") as output:
        process = start_child([sys.executable, *arguments], output=output, environ=environ)
    try:
        yield process
    finally:
        await stop_child(process, within_s=END_S_MAX)  # noqa: ASYNC102  shields itself


async def _until_ready(url: str, process: Process, log: Path) -> None:
    with trio.move_on_after(START_S_MAX):
        async with httpx.AsyncClient(trust_env=False) as client:
            while process.poll() is None:
                try:
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(0.1)
    raise ConfigurationError(f"coach does not serve:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text()[-2_000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
