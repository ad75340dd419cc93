"""One run of the relay benchmark: a simulator, one relay, its clients; one window measured."""

from __future__ import annotations

import json
import math
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import trio
from processes import ProcessEnded, cpu_s, free_port, open_process, resident_bytes
from relay_peers import START_S_MAX, Upstream, Variant, end_of, open_relay, until_answers

from coach.errors import ConfigurationError
from coach.simulator.corpus import load_essays

SETTLE_S = 2.0
RAMP_MORE_S_MAX = 30.0


@attrs.frozen(kw_only=True)
class Plan:
    """What is measured."""

    clients: int
    events_per_s: float
    seconds: float
    ramp_s: float
    ttft_ms: float
    load_processes: int | None
    """None: one for every 300 clients."""

    @property
    def answer_events(self) -> int:
        """So many that a turn is open from the ramp to the end of the window."""
        open_s = 2 * self.ramp_s + SETTLE_S + self.seconds + 20
        return math.ceil(open_s * self.events_per_s)

    def shares(self) -> list[int]:
        """Clients of each load process."""
        parts = self.load_processes or math.ceil(self.clients / 300)
        return [self.clients // parts + (index < self.clients % parts) for index in range(parts)]


@attrs.frozen
class Group:
    """Processes counted together."""

    pids: list[int]
    log: Path


async def measure(plan: Plan, variant: Variant) -> dict[str, Any]:
    """Start everything, measure one window, end everything.

    Raises:
      ConfigurationError: something did not start, or ended before its time.
      trio.TooSlowError: the clients did not all see text in time.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-relay-")))
        upstream, simulator = await stack.enter_async_context(open_simulator(plan, folder))
        relay = await stack.enter_async_context(open_relay(variant, upstream, folder))
        clients_log = folder / "clients.log"
        clients = [
            await stack.enter_async_context(
                open_process(_load(plan, relay.url, count), log=clients_log, piped=True)
            )
            for count in plan.shares()
        ]
        groups = {
            "relay": Group(relay.pids, relay.log),
            "simulator": simulator,
            "load generator": Group([client.pid for client in clients], clients_log),
            **{name: Group(pids, relay.log) for name, pids in relay.beside.items()},
        }
        try:
            with trio.fail_after(RAMP_MORE_S_MAX + plan.ramp_s * 2):
                for client in clients:
                    await _line(client)  # ready
            await trio.sleep(SETTLE_S)
            figures = await _window(plan, groups, clients, upstream)
        except (ProcessEnded, httpx.TransportError, trio.BrokenResourceError) as error:
            raise ConfigurationError(_who_ended(groups, error)) from error
    return {"relay": variant.name, **figures}


@asynccontextmanager
async def open_simulator(plan: Plan, folder: Path) -> AsyncIterator[tuple[Upstream, Group]]:
    """The provider; its answers are as long as the plan needs them."""
    port, ca, log = free_port(), folder / "simulator-ca.pem", folder / "simulator.log"
    url = f"https://127.0.0.1:{port}"
    options = {
        "port": str(port),
        "data-dir": str(folder),
        "ttft-ms": str(plan.ttft_ms),
        "ttft-jitter-ms": "0",
        "events-per-s": str(plan.events_per_s),
        "feedback-events-min": str(plan.answer_events),
        "stamp": "true",
    }
    command = [sys.executable, "-m", "coach.simulator", *_flags(options)]
    async with open_process(command, log=log) as process:
        await until_answers(f"{url}/stats", lambda: _trust(ca), process, log)
        upstream = Upstream(url=url, ca=ca, output_tokens_max=plan.answer_events * 16)
        yield upstream, Group([process.pid], log)


async def _window(
    plan: Plan, groups: dict[str, Group], clients: list[trio.Process], upstream: Upstream
) -> dict[str, Any]:
    """Measure for `plan.seconds`; the CPU is read right around the counting."""
    for client in clients:
        await _tell(client, "begin")
    stats, begun_s, cpu = await _stats(upstream), trio.current_time(), _cpu(groups)
    await trio.sleep(plan.seconds)
    ended_s, cpu_after = trio.current_time(), _cpu(groups)
    stats_after = await _stats(upstream)
    resident = sum(map(resident_bytes, groups["relay"].pids))
    counts = []
    for client in clients:
        await _tell(client, "end")
        counts.append(json.loads(await _line(client)))

    elapsed_s = ended_s - begun_s
    sent = int(stats_after["events_sent"] - stats["events_sent"])
    received = sum(count["events"] for count in counts)
    errors: dict[str, int] = {}
    for count in counts:
        for code, number in count["errors"].items():
            errors[code] = errors.get(code, 0) + number
    ttft = [value - plan.ttft_ms for count in counts for value in count["ttft_ms"]]
    latencies = [value for count in counts for value in count["latencies_ms"]]
    spent = {name: cpu_after[name] - cpu[name] for name in groups}
    return {
        "clients": plan.clients,
        "rate": plan.events_per_s,
        "seconds": round(elapsed_s, 2),
        "sent": sent,
        "received": received,
        "cpu_us_per_event": {
            name: round(value / max(1, received) * 1e6, 1) for name, value in spent.items()
        },
        "cpu_percent": {name: round(value / elapsed_s * 100, 1) for name, value in spent.items()},
        "latency_ms": percentiles(latencies),
        "ttft_added_ms": percentiles(ttft),
        "messages_per_event": round(
            sum(count["messages"] for count in counts) / max(1, received), 2
        ),
        "turns_done": sum(count["done"] for count in counts),
        "resident_mb": round(resident / 1e6, 1),
        "errors": errors,
    }


def percentiles(values: list[float]) -> dict[str, float | None]:
    """p50, p95 and p99, by nearest rank; None where there are no values."""
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 2)
        if ordered
        else None
        for percent in (50, 95, 99)
    }


def _load(plan: Plan, url: str, clients: int) -> list[str]:
    essay = load_essays()[0].text
    script = Path(__file__).with_name("relay_clients.py")
    options = {"url": url, "clients": str(clients), "ramp": str(plan.ramp_s), "essay": essay}
    return [sys.executable, str(script), *_flags(options)]


def _flags(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _cpu(groups: dict[str, Group]) -> dict[str, float]:
    return {name: sum(map(cpu_s, group.pids)) for name, group in groups.items()}


def _who_ended(groups: dict[str, Group], error: Exception) -> str:
    """Which of the processes is no more, and its last words, in one line."""
    for name, group in groups.items():
        for pid in group.pids:
            try:
                cpu_s(pid)
            except ProcessEnded:
                return f"the {name} (process {pid}) has ended mid-run; {end_of(group.log)}"
    return f"{type(error).__name__} although all processes run: {error}"


async def _line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            await process.wait()
            raise ProcessEnded(process.pid)
        line += data
    return line.decode().strip()


async def _tell(process: trio.Process, word: str) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(word.encode() + b"\n")


async def _stats(upstream: Upstream) -> dict[str, Any]:
    async with httpx.AsyncClient(verify=_trust(upstream.ca), trust_env=False) as client:
        with trio.fail_after(START_S_MAX):
            stats: dict[str, Any] = (await client.get(f"{upstream.url}/stats")).json()
    return stats


def _trust(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))
