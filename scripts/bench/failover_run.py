"""The failover benchmark itself: starts the processes, kills the first provider, says what came."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from processes import Lines, free_port, open_process
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from coach.errors import ConfigurationError, first_error
from coach.simulator.corpus import load_essays
from coach.store import open_embedded

START_S_MAX = 30.0
SETTLE_S = 2.0
END_S_MAX = 30.0
"""From the first one's death until every turn has its answer."""
ARRIVAL_S_MAX = 1.0
ANSWER_TOKENS_MAX = 40
"""Of the second provider: few, so that what is waited for is not its composing of answers."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is done."""

    clients: int
    events_per_s: float
    ramp_s: float
    limit_ms: float
    streams: int
    """That a connection to a provider may have open."""

    @property
    def endless_events(self) -> int:
        """So many that no turn of the first provider ends by itself."""
        return math.ceil((self.ramp_s + START_S_MAX + SETTLE_S + 10) * self.events_per_s)


@attrs.frozen
class Simulator:
    """A provider that runs."""

    process: trio.Process
    url: str
    ca: Path


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    plan = Plan(
        clients=options.clients,
        events_per_s=options.rate,
        ramp_s=options.ramp,
        limit_ms=options.limit_ms,
        streams=options.streams,
    )
    console = Console()
    runs: list[dict[str, Any]] = []
    complaint = ""
    try:
        for _ in range(options.runs):
            runs.append(trio.run(_measure, plan, console))
            console.print(_table(plan, runs[-1]))
    except* trio.TooSlowError:
        complaint = "the clients did not come up, or to their end, in time"
    except* ConfigurationError as group:
        complaint = str(first_error(group))
    except* KeyboardInterrupt:
        complaint = "interrupted"
    if complaint:
        print(f"failover: {complaint}", file=sys.stderr)
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(runs, indent=2) + "\n")
    return 0 if all(run["ok"] for run in runs) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="From a provider's death to the next one's work.")
    add = parser.add_argument
    add("--clients", type=int, default=300, metavar="N", help="live turns (300)")
    add("--rate", type=float, default=10.0, metavar="N", help="events a second of each (10)")
    add("--ramp", type=float, default=5.0, metavar="S", help="clients arrive over S seconds (5)")
    add("--streams", type=int, default=100, metavar="N", help="of a connection, at most (100)")
    add("--runs", type=int, default=1, metavar="N", help="how often (1)")
    add("--limit-ms", type=float, default=200.0, metavar="MS", help="what p99 may be (200)")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


async def _measure(plan: Plan, console: Console) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-failover-")))
        console.print(f"starting coach for {plan.clients} clients …", style="dim")
        redis = await stack.enter_async_context(open_embedded(folder))
        first = await _simulator(stack, folder / "first", "anthropic", plan, plan.endless_events)
        second = await _simulator(stack, folder / "second", "openai", plan, 1)
        tap = _Tap(second)
        second = attrs.evolve(
            second, url=f"https://127.0.0.1:{await stack.enter_async_context(tap.open())}"
        )
        url = f"http://127.0.0.1:{free_port()}"
        config = folder / "coach.toml"
        config.write_text(_settings(folder, redis.url, url, first, second, plan))
        log = folder / "coach.log"
        command = [sys.executable, "-m", "coach", "serve", "--config", str(config)]
        supervisor = await stack.enter_async_context(open_process(command, log=log))
        await _until_answers(f"{url}/readyz", None, supervisor, log)
        clients_log = folder / "clients.log"
        clients = await stack.enter_async_context(
            open_process(_load(plan, url), log=clients_log, piped=True)
        )
        lines = Lines(clients, clients_log, "the load")
        with trio.fail_after(START_S_MAX + plan.ramp_s):
            await lines.next()  # ready
        await trio.sleep(SETTLE_S)
        before = await _stats(second)
        died_at = time.monotonic()
        os.kill(first.process.pid, signal.SIGKILL)
        with trio.fail_after(END_S_MAX + SETTLE_S):
            turns = json.loads(await lines.next())["turns"]
        heard = (await _stats(second))["requests"] - before["requests"]
        return _figures(plan, turns, tap.arrivals(plan.clients, died_at), died_at, heard)


def _figures(
    plan: Plan, turns: list[dict[str, Any]], asked_at: list[float], died_at: float, heard: float
) -> dict[str, Any]:
    """Moments are relative to the death, in milliseconds."""
    seen_at = {
        "restarted": [turn["restarted_at"] for turn in turns if turn["restarted_at"]],
        "asked": asked_at,
        "answered": [turn["answered_at"] for turn in turns if turn["answered_at"]],
    }
    moments = {
        name: [(moment - died_at) * 1_000 for moment in values] for name, values in seen_at.items()
    }
    ends = Counter(turn["ended"] or "no end" for turn in turns)
    failed = len(turns) - ends["done"]
    figures: dict[str, Any] = {
        "clients": plan.clients,
        "streams_per_connection": plan.streams,
        "limit_ms": plan.limit_ms,
        **{f"{name}_ms": _percentiles(values) for name, values in moments.items()},
        "moved": len(moments["restarted"]),
        "requests_heard": int(heard),
        "reasons": dict(Counter(turn["reason"] for turn in turns)),
        "ends": dict(ends),
        "failed": failed,
    }
    p99 = figures["asked_ms"]["p99"]
    figures["ok"] = (
        not failed
        and figures["moved"] == figures["requests_heard"] == plan.clients
        and p99 is not None
        and p99 <= plan.limit_ms
    )
    return figures


class _Tap:
    """Stands before the second provider and notes when coach's bytes arrive there."""

    def __init__(self, simulator: Simulator) -> None:
        self._port = int(simulator.url.rpartition(":")[2])
        self._arrived: list[tuple[float, int]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Forward what comes to the port that is given, until the end of the block."""
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(
                partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1")
            )
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel("measured")

    def arrivals(self, count: int, since: float) -> list[float]:
        """When each of `count` requests had arrived whole, if all are of one size.

        What else coach sends within `ARRIVAL_S_MAX`, less than a hundredth, delays the last ones.
        """
        burst = [each for each in self._arrived if since <= each[0] <= since + ARRIVAL_S_MAX]
        request_bytes = sum(length for _, length in burst) / count
        moments: list[float] = []
        total = 0
        for moment, length in burst:
            total += length
            moments += [moment] * (int(total / request_bytes + 1e-6) - len(moments))
        return moments

    async def _serve(self, client: trio.SocketStream) -> None:
        async with (
            client,
            await trio.open_tcp_stream("127.0.0.1", self._port) as server,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(_pass_on, server, client, lambda _: None)
            await _pass_on(client, server, self._note)
            nursery.cancel_scope.cancel("coach has closed its connection")

    def _note(self, data: bytes) -> None:
        self._arrived.append((time.monotonic(), len(data)))


async def _pass_on(
    source: trio.SocketStream, target: trio.SocketStream, note: Callable[[bytes], None]
) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            note(data)
            await target.send_all(data)


async def _simulator(
    stack: AsyncExitStack, folder: Path, protocol: str, plan: Plan, events: int
) -> Simulator:
    folder.mkdir()  # noqa: ASYNC240  once, in memory
    port, log, ca = free_port(), folder / "simulator.log", folder / "simulator-ca.pem"
    options = {
        "protocol": protocol,
        "port": str(port),
        "data-dir": str(folder),
        "ttft-ms": "0",
        "ttft-jitter-ms": "0",
        "events-per-s": str(plan.events_per_s),
        "feedback-events-min": str(events),
        "stamp": "true",
        "max-concurrent-streams": str(plan.streams),
    }
    command = [sys.executable, "-m", "coach.simulator", *_flags(options)]
    process = await stack.enter_async_context(open_process(command, log=log))
    simulator = Simulator(process, f"https://127.0.0.1:{port}", ca)
    await _until_answers(f"{simulator.url}/stats", ca, process, log)
    return simulator


def _settings(
    folder: Path, redis_url: str, url: str, first: Simulator, second: Simulator, plan: Plan
) -> str:
    """One worker, and no limit that this load could reach."""
    providers = "".join(
        f"""
[[provider]]
name = "{name}"
kind = "{kind}"
base_url = "{simulator.url}"
model = "sim-1"
api_key = "bench"
ca_file = "{simulator.ca}"
feedback_output_tokens_max = {tokens_max}
"""
        for name, kind, simulator, tokens_max in (
            ("first", "anthropic", first, plan.endless_events * 16),
            ("second", "openai", second, ANSWER_TOKENS_MAX),
        )
    )
    return f"""
data_dir = "{folder}"
[redis]
url = "{redis_url}"
[server]
bind = "{url.removeprefix("http://")}"
workers = 1
[limits]
user_requests_per_minute = 1000000
user_tokens_per_minute = 1000000000
org_requests_per_minute = 1000000
org_tokens_per_minute = 1000000000
[log]
level = "warning"
{providers}"""


def _load(plan: Plan, url: str) -> list[str]:
    options = {
        "url": url,
        "clients": str(plan.clients),
        "ramp": str(plan.ramp_s),
        "within": str(END_S_MAX),
        "essay": load_essays()[0].text,
    }
    script = Path(__file__).with_name("failover_clients.py")
    return [sys.executable, str(script), *_flags(options)]


def _flags(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


async def _stats(simulator: Simulator) -> dict[str, float]:
    async with httpx.AsyncClient(verify=_trust(simulator.ca), trust_env=False) as client:
        stats: dict[str, float] = (await client.get(f"{simulator.url}/stats")).json()
        return stats


async def _until_answers(url: str, ca: Path | None, process: trio.Process, log: Path) -> None:
    with trio.move_on_after(START_S_MAX):
        while process.returncode is None:
            try:
                verify = _trust(ca) if ca is not None else True
                async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
                    if (await client.get(url)).status_code == 200:
                        return
            except (httpx.TransportError, OSError):
                pass
            await trio.sleep(0.1)
    raise ConfigurationError(f"{url} does not answer:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text()[-2_000:]


def _trust(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


def _percentiles(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1)
        if ordered
        else None
        for percent in (50, 95, 99)
    }


def _table(plan: Plan, figures: dict[str, Any]) -> Group:
    table = Table(
        title=f"{plan.clients} live turns, their provider killed; {os.cpu_count()} cores shared by"
        " all",
        title_justify="left",
    )
    for name in ("until", "p50", "p95", "p99"):
        table.add_column(name, justify="left" if name == "until" else "right")
    for name, key in (
        ("the student is told (restarted)", "restarted_ms"),
        ("the second provider has the request (asked)", "asked_ms"),
        ("the second provider answers (answered)", "answered_ms"),
    ):
        values = figures[key].values()
        table.add_row(name, *("–" if value is None else f"{value:.0f} ms" for value in values))
    note = Text(
        f"{figures['moved']} moved on, {figures['requests_heard']} requests heard by the second;"
        f" reasons: {figures['reasons']}; failed: {figures['failed']} {figures['ends']};"
        f" {'ok' if figures['ok'] else 'NOT OK'}: p99 may be {plan.limit_ms:.0f} ms",
        style="dim",
    )
    return Group(table, note)
