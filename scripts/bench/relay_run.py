"""The relay benchmark itself: starts the processes, measures one window, prints the table."""

from __future__ import annotations

import argparse
import json
import math
import os
import ssl
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from processes import children, cpu_s, free_port, open_process, resident_bytes
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from coach.errors import ConfigurationError, first_error
from coach.simulator.corpus import load_essays
from coach.store import open_embedded

START_S_MAX = 30.0
SETTLE_S = 2.0


@attrs.frozen(kw_only=True)
class Plan:
    """What is measured."""

    clients: int
    events_per_s: float
    seconds: float
    ramp_s: float
    ttft_ms: float
    load_processes: int

    @property
    def answer_events(self) -> int:
        """So many that a turn is open from the ramp to the end of the window."""
        return math.ceil((2 * self.ramp_s + SETTLE_S + self.seconds + 20) * self.events_per_s)


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    plan = Plan(
        clients=options.clients,
        events_per_s=options.rate,
        seconds=options.seconds,
        ramp_s=options.ramp,
        ttft_ms=options.ttft_ms,
        load_processes=options.load_processes or math.ceil(options.clients / 300),
    )
    console = Console()
    figures: dict[str, Any] | None = None
    complaint = ""
    try:
        figures = trio.run(_measure, plan, console)
    except* trio.TooSlowError:
        complaint = "the clients did not come up in time"
    except* ConfigurationError as group:
        complaint = str(first_error(group))
    except* KeyboardInterrupt:
        complaint = "interrupted"
    if figures is None:
        print(f"relay: {complaint}", file=sys.stderr)
        return 2
    console.print(_table(plan, figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if figures["errors"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="CPU and latency of relaying provider events.")
    add = parser.add_argument
    add("--clients", type=int, default=300, metavar="N", help="open turns (300)")
    add("--rate", type=float, default=10.0, metavar="N", help="events a second of each (10)")
    add("--seconds", type=float, default=15.0, metavar="S", help="length of the window (15)")
    add("--ramp", type=float, default=5.0, metavar="S", help="clients arrive over S seconds (5)")
    add("--ttft-ms", type=float, default=200.0, metavar="MS", help="the simulator's (200)")
    add("--load-processes", type=int, metavar="N", help="one for every 300 clients")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


async def _measure(plan: Plan, console: Console) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-relay-")))
        console.print(f"starting coach for {plan.clients} clients …", style="dim")
        redis = await stack.enter_async_context(open_embedded(folder))
        provider_url, ca = f"https://127.0.0.1:{free_port()}", folder / "simulator-ca.pem"
        simulator = await stack.enter_async_context(
            open_process(_simulator(plan, provider_url, folder), log=folder / "simulator.log")
        )
        await _until_answers(f"{provider_url}/stats", ca, simulator, folder / "simulator.log")
        url = f"http://127.0.0.1:{free_port()}"
        config = folder / "coach.toml"
        config.write_text(_settings(folder, redis.url, url, provider_url, ca, plan))
        supervisor = await stack.enter_async_context(
            open_process(
                [sys.executable, "-m", "coach", "serve", "--config", str(config)],
                log=folder / "coach.log",
            )
        )
        await _until_answers(f"{url}/readyz", None, supervisor, folder / "coach.log")
        (worker,) = children(supervisor.pid)

        clients = [
            await stack.enter_async_context(
                open_process(_load(plan, url, count), log=folder / "clients.log", piped=True)
            )
            for count in _shares(plan.clients, plan.load_processes)
        ]
        with trio.fail_after(START_S_MAX + plan.ramp_s * 2):
            for client in clients:
                if await _line(client) != "ready":
                    raise ConfigurationError(_end_of(folder / "clients.log"))
        console.print("steady; measuring …", style="dim")
        await trio.sleep(SETTLE_S)
        groups = {
            "web worker": [worker],
            "simulator": [simulator.pid],
            "load generator": [client.pid for client in clients],
            "valkey": [redis.pid],
        }
        return await _window(plan, groups, clients, provider_url, ca, worker)


async def _window(
    plan: Plan,
    groups: dict[str, list[int]],
    clients: list[trio.Process],
    provider_url: str,
    ca: Path,
    worker: int,
) -> dict[str, Any]:
    """Measure for `plan.seconds`; the CPU is read right around the counting."""
    for client in clients:
        await _tell(client, "begin")
    stats, begun_s, cpu = await _stats(provider_url, ca), trio.current_time(), _cpu(groups)
    await trio.sleep(plan.seconds)
    ended_s, cpu_after = trio.current_time(), _cpu(groups)
    stats_after = await _stats(provider_url, ca)
    counts = []
    for client in clients:
        await _tell(client, "end")
        counts.append(json.loads(await _line(client)))

    elapsed_s = ended_s - begun_s
    events = int(stats_after["events_sent"] - stats["events_sent"])
    errors: dict[str, int] = {}
    for count in counts:
        for code, number in count["errors"].items():
            errors[code] = errors.get(code, 0) + number
    ttft = [value - plan.ttft_ms for count in counts for value in count["ttft_ms"]]
    latencies = [value for count in counts for value in count["latencies_ms"]]
    received = sum(count["events"] for count in counts)
    return {
        "clients": plan.clients,
        "seconds": round(elapsed_s, 2),
        "events": events,
        "events_per_s": round(events / elapsed_s, 1),
        "received": received,
        "worker_cpu_us_per_event": round(
            (cpu_after["web worker"] - cpu["web worker"]) / events * 1e6, 1
        ),
        "cpu_us_per_event": {
            name: round((cpu_after[name] - cpu[name]) / events * 1e6, 1) for name in groups
        },
        "cpu_percent": {
            name: round((cpu_after[name] - cpu[name]) / elapsed_s * 100, 1) for name in groups
        },
        "latency_ms": _percentiles(latencies),
        "ttft_added_ms": _percentiles(ttft),
        "turns_done": sum(count["done"] for count in counts),
        "events_per_read": round(received / max(1, sum(count["reads"] for count in counts)), 2),
        "worker_resident_mb": round(resident_bytes(worker) / 1e6, 1),
        "errors": errors,
    }


def _simulator(plan: Plan, url: str, folder: Path) -> list[str]:
    port = url.rpartition(":")[2]
    options = {
        "port": port,
        "data-dir": str(folder),
        "ttft-ms": str(plan.ttft_ms),
        "ttft-jitter-ms": "0",
        "events-per-s": str(plan.events_per_s),
        "feedback-events-min": str(plan.answer_events),
        "stamp": "true",
    }
    command = [sys.executable, "-m", "coach.simulator"]
    return command + [part for name, value in options.items() for part in (f"--{name}", value)]


def _load(plan: Plan, url: str, clients: int) -> list[str]:
    essay = load_essays()[0].text
    script = Path(__file__).with_name("relay_clients.py")
    options = {"url": url, "clients": str(clients), "ramp": str(plan.ramp_s), "essay": essay}
    command = [sys.executable, str(script)]
    return command + [part for name, value in options.items() for part in (f"--{name}", value)]


def _settings(
    folder: Path, redis_url: str, url: str, provider_url: str, ca: Path, plan: Plan
) -> str:
    """One worker, and no limit that this load could reach."""
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
[[provider]]
name = "simulator"
base_url = "{provider_url}"
model = "sim-1"
api_key = "bench"
ca_file = "{ca}"
feedback_output_tokens_max = {plan.answer_events * 16}
"""


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _cpu(groups: dict[str, list[int]]) -> dict[str, float]:
    return {name: sum(map(cpu_s, pids)) for name, pids in groups.items()}


async def _line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            raise ConfigurationError("a load process has died; see its log")
        line += data
    return line.decode().strip()


async def _tell(process: trio.Process, word: str) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(word.encode() + b"\n")


async def _stats(url: str, ca: Path) -> dict[str, Any]:
    async with httpx.AsyncClient(verify=_trust(ca), trust_env=False) as client:
        stats: dict[str, Any] = (await client.get(f"{url}/stats")).json()
        return stats


async def _until_answers(url: str, ca: Path | None, process: trio.Process, log: Path) -> None:
    verify: ssl.SSLContext | bool = True
    with trio.move_on_after(START_S_MAX):
        while process.returncode is None:
            try:
                if ca is not None:
                    verify = _trust(ca)
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
        f"p{percent}": round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 2)
        if ordered
        else None
        for percent in (50, 95, 99)
    }


def _table(plan: Plan, figures: dict[str, Any]) -> Group:
    cpu = Table(
        title=f"{plan.clients} turns × {plan.events_per_s:g} events/s, {figures['seconds']} s,"
        f" {os.cpu_count()} cores shared by all",
        title_justify="left",
    )
    for name in ("process", "CPU µs per event", "of one core"):
        cpu.add_column(name, justify="left" if name == "process" else "right")
    for name, cost in figures["cpu_us_per_event"].items():
        cpu.add_row(name, f"{cost:.1f}", f"{figures['cpu_percent'][name]:.0f} %")
    times = Table()
    for name in ("", "p50", "p95", "p99"):
        times.add_column(name, justify="right" if name else "left")
    for name, key in (
        ("latency added to an event", "latency_ms"),
        ("time to first token added", "ttft_added_ms"),
    ):
        values = figures[key].values()
        times.add_row(name, *("–" if value is None else f"{value:.1f} ms" for value in values))
    note = Text(
        f"{figures['events']} events sent, {figures['received']} received,"
        f" {figures['events_per_s']} a second, {figures['events_per_read']} a read;"
        f" worker {figures['worker_resident_mb']} MB;"
        f" errors: {figures['errors'] or 'none'}",
        style="dim",
    )
    return Group(cpu, times, note)
