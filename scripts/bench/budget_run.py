"""The budget benchmark itself: starts the processes, sets the demand, reads what became of it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import msgspec
import trio
from arguments import count
from budget_worker import Lane, Orders, Request
from processes import Lines, cpu_s, open_process
from rich.console import Console
from rich.table import Table
from simulated import START_S_MAX, Simulated, open_simulated

from coach.errors import ConfigurationError, first_error
from coach.simulator.corpus import load_essays
from coach.store import open_embedded, open_redis

WORKERS: Final = 4
ORGS: Final = {"a": 0.36, "b": 0.28, "c": 0.20, "d": 0.10, "e": 0.06}
"""Share of the demand: at twice the quota the first three want more than their part."""
LANES: Final[dict[Lane, float]] = {"interactive": 0.7, "submission": 0.2, "background": 0.1}
QUOTA: Final = {"requests": 3_000, "input_tokens": 400_000, "output_tokens": 60_000}
HARD: Final = 0.95
BIN_S: Final = 5.0
EVEN_FROM_S: Final = 65.0
"""Before, the burst that a full quota allows is still in the window, which is 61 s long."""
OUTPUT_MAX: Final = 400
PATIENCE_S: Final = 30.0
PROBE_S: Final = 10.0


@attrs.frozen(kw_only=True)
class Plan:
    """One run."""

    demand: float
    """Of the quota."""
    seconds: float
    is_governed: bool


@attrs.frozen
class Stage:
    """What all runs stand on."""

    folder: Path
    redis_url: str
    redis_pid: int
    simulator: Simulated


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    plans = [
        Plan(demand=demand, seconds=options.seconds, is_governed=True) for demand in options.demand
    ]
    if not options.no_off:
        plans.append(Plan(demand=max(options.demand), seconds=options.seconds, is_governed=False))
    runs: list[dict[str, Any]] = []
    complaint = ""
    try:
        mean = trio.run(_probe, console)
        runs.extend(trio.run(_measure, plan, mean, console) for plan in plans)
    except* (trio.TooSlowError, httpx.TransportError):
        complaint = "a process did not come up, or to its end, in time"
    except* ConfigurationError as group:
        complaint = str(first_error(group))
    if complaint:
        print(f"budget: {complaint}", file=sys.stderr)
        return 2
    console.print(_table(runs))
    for run in runs:
        for line in _lines(run):
            console.print(line, style="dim")
    if options.json is not None:
        options.json.write_text(json.dumps(runs, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(_markdown(runs))
    return 1 if any(run["refused"] for run in runs if run["is_governed"]) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="budget", description="A provider's budget under demand.")
    add = parser.add_argument
    add("--seconds", type=count, default=180, metavar="S", help="of each run (180)")
    add("--demand", type=_demands, default=(0.5, 1.0, 2.0), metavar="LIST",
        help="of the quota (0.5,1,2)")  # fmt: skip
    add("--no-off", action="store_true", help="leave out the run without a budget")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser


def _demands(text: str) -> tuple[float, ...]:
    demands = tuple(float(part) for part in text.split(","))
    if not all(0 < demand <= 10 for demand in demands):
        raise argparse.ArgumentTypeError("above 0, at most 10")
    return demands


# -- the stage -----------------------------------------------------------------------------------


async def _probe(console: Console) -> dict[str, float]:
    """What a request takes, by the names of `QUOTA`."""
    async with _open_stage() as stage:
        console.print("what a request takes …", style="dim")
        plan = Plan(demand=0.0, seconds=PROBE_S, is_governed=True)
        done = [each for each in await _run(stage, plan, per_s=4.0) if each.end == "done"]
    if not done:
        raise ConfigurationError("the simulator answered nothing")
    return {
        "requests": 1.0,
        "input_tokens": sum(each.input for each in done) / len(done),
        "output_tokens": sum(each.output for each in done) / len(done),
    }


async def _measure(plan: Plan, mean: dict[str, float], console: Console) -> dict[str, Any]:
    """One run on an empty Redis and a full quota."""
    name = f"{plan.demand:g} x" if plan.is_governed else f"{plan.demand:g} x, no budget"
    per_s = min(QUOTA[unit] / mean[unit] for unit in QUOTA) / 60 * plan.demand
    async with _open_stage() as stage:
        console.print(f"{name}: {per_s:.1f} requests/s for {plan.seconds:g} s …", style="dim")
        usage, begun_at = await _redis_usage(stage), time.monotonic()
        requests = await _run(stage, plan, per_s=per_s)
        took_s = time.monotonic() - begun_at
        stats, usage_after = await stage.simulator.stats(), await _redis_usage(stage)
    return {
        "demand": plan.demand,
        "seconds": plan.seconds,
        "is_governed": plan.is_governed,
        "per_s": round(per_s, 2),
        **figures(requests, plan.seconds),
        "refused": int(stats["rate_limited"]),
        **_redis_figures(requests, usage, usage_after, took_s),
    }


@asynccontextmanager
async def _open_stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-budget-")))
        redis = await stack.enter_async_context(open_embedded(folder))
        options = ["--events-per-s", "60"]
        for unit, limit in QUOTA.items():
            options += [f"--{unit.replace('_', '-')}-per-minute", str(limit)]
        simulator = await stack.enter_async_context(open_simulated(folder, *options))
        async with open_redis(redis.url) as client:
            pid = int((await client.info("server"))["process_id"])
        yield Stage(folder, redis.url, pid, simulator)


async def _run(stage: Stage, plan: Plan, *, per_s: float) -> list[Request]:
    """Four workers ask; all their requests."""
    config = stage.folder / "coach.toml"
    config.write_text(_settings(stage))
    command = [sys.executable, str(Path(__file__).with_name("budget_worker.py"))]
    found: list[Request] = []
    async with AsyncExitStack() as stack:
        log = stage.folder / "workers.log"
        workers = []
        for number in range(WORKERS):
            worker = await stack.enter_async_context(open_process(command, log=log, piped=True))
            orders = Orders(
                worker=number,
                config=str(config),
                per_s=per_s / WORKERS,
                seconds=plan.seconds,
                patience_s=PATIENCE_S,
                orgs=ORGS,
                lanes=LANES,
                essays=[essay.text for essay in load_essays()],
                is_governed=plan.is_governed,
                seed=round(plan.demand * 100),
            )
            await _tell(worker, msgspec.json.encode(orders))
            workers.append(worker)
        readers = [Lines(worker, log, "a worker") for worker in workers]
        with trio.fail_after(START_S_MAX):
            for reader in readers:
                await reader.next()
        begin_at = f"{time.monotonic() + 0.5}".encode()
        for worker in workers:
            await _tell(worker, begin_at)

        async def collect(reader: Lines) -> None:
            found.extend(msgspec.json.decode(await reader.next(), type=list[Request]))

        with trio.fail_after(plan.seconds + PATIENCE_S + 60):
            async with trio.open_nursery() as nursery:
                for reader in readers:
                    nursery.start_soon(collect, reader)
    return sorted(found, key=lambda request: request.wished_at)


def _settings(stage: Stage) -> str:
    limits = ", ".join(f"{unit}_per_minute = {limit}" for unit, limit in QUOTA.items())
    return f"""
data_dir = "{stage.folder}"
[redis]
url = "{stage.redis_url}"
[cache]
keep_warm = false
[log]
level = "error"
[[provider]]
name = "simulator"
kind = "anthropic"
base_url = "{stage.simulator.url}"
model = "sim-1"
api_key = "bench"
ca_file = "{stage.simulator.ca}"
feedback_output_tokens_max = {OUTPUT_MAX}
quota = {{ {limits} }}
"""


async def _tell(process: trio.Process, line: bytes) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(line + b"\n")


async def _redis_usage(stage: Stage) -> dict[str, float]:
    async with open_redis(stage.redis_url) as client:
        stats = await client.info("commandstats")
    scripts = sum(
        stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")
    )
    return {"scripts": scripts, "cpu_s": cpu_s(stage.redis_pid)}


# -- the figures ---------------------------------------------------------------------------------


def figures(requests: Sequence[Request], seconds: float) -> dict[str, Any]:
    """What became of them."""
    begun_at = min((request.wished_at for request in requests), default=0.0)
    waits: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        if request.admitted_at is not None:
            waits[request.lane].append(request.admitted_at - request.wished_at)
    used = {
        unit: sum(
            getattr(request, unit)
            for request in requests
            if request.admitted_at is not None and request.admitted_at - begun_at < seconds
        )
        for unit in ("input", "output")
    }
    minutes = seconds / 60
    wanted: dict[str, float] = defaultdict(float)
    got: dict[str, float] = defaultdict(float)
    mean = sum(r.output for r in requests) / max(1, sum(r.end == "done" for r in requests))
    for request in requests:
        wanted[request.org] += mean
        got[request.org] += request.output
    backlogged = backlogged_of(wanted, sum(got.values()))
    return {
        "requests": len(requests),
        "ends": dict(Counter(request.end for request in requests)),
        "share_of_quota": {
            "input": round(used["input"] / minutes / QUOTA["input_tokens"], 3),
            "output": round(used["output"] / minutes / QUOTA["output_tokens"], 3),
        },
        "wait_s": {lane: percentiles(waits[lane]) for lane in LANES},
        "jain": jain([got[org] for org in backlogged]) if len(backlogged) > 1 else None,
        "backlogged": sorted(backlogged),
        "output_by_org": {org: round(got[org]) for org in ORGS},
        "even": evenness(requests, begun_at, seconds),
    }


def backlogged_of(wanted: dict[str, float], capacity: float) -> set[str]:
    """Those who want more than their fair part, when those who want less have had theirs."""
    left, open_ = capacity, set(wanted)
    while open_:
        part = left / len(open_)
        served = {org for org in open_ if wanted[org] <= part}
        if not served:
            return open_
        left -= sum(wanted[org] for org in served)
        open_ -= served
    return set()


def jain(values: Iterable[float]) -> float:
    """Jain's fairness index: 1 is equal, 1/n is one for all."""
    found = list(values)
    squares = sum(value * value for value in found)
    return round(sum(found) ** 2 / (len(found) * squares), 4) if squares else 1.0


def evenness(requests: Sequence[Request], begun_at: float, seconds: float) -> dict[str, Any] | None:
    """Output tokens let in, every 5 s of them, against their mean; None: too short to tell."""
    bins = int((seconds - EVEN_FROM_S) // BIN_S)
    if bins < 6:
        return None
    sums = [0.0] * bins
    for request in requests:
        if request.admitted_at is not None:
            at = int((request.admitted_at - begun_at - EVEN_FROM_S) // BIN_S)
            if 0 <= at < bins:
                sums[at] += request.output
    mean = sum(sums) / bins
    return {
        "least": round(min(sums) / mean, 2) if mean else 0.0,
        "most": round(max(sums) / mean, 2) if mean else 0.0,
        "bins": [round(each) for each in sums],
        "of_hard": round(mean / BIN_S * 60 / (HARD * QUOTA["output_tokens"]), 3),
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99."""
    ordered = sorted(values)
    return {
        f"p{p}": round(ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))], 3)
        if ordered
        else None
        for p in (50, 95, 99)
    }


def _redis_figures(
    requests: Sequence[Request],
    before: dict[str, float],
    after: dict[str, float],
    took_s: float,
) -> dict[str, float]:
    admitted = max(1, sum(request.admitted_at is not None for request in requests))
    spent_s = after["cpu_s"] - before["cpu_s"]
    return {
        "scripts_per_admission": round((after["scripts"] - before["scripts"]) / admitted, 2),
        "redis_ms_per_admission": round(spent_s * 1_000 / admitted, 2),
        "redis_cpu_percent": round(100 * spent_s / took_s, 1),
    }


COLUMNS: Final = (
    "demand",
    "429s",
    "output used",
    "wait p50 / p95 / p99, s: interactive",
    "submission",
    "background",
    "left",
    "Jain",
    "each 5 s of the mean",
    "scripts",
    "Redis ms",
)


def rows_of(run: dict[str, Any]) -> list[str]:
    """A run in words."""
    even = run["even"]
    waits = (
        " / ".join(
            "–" if value is None else f"{value:.2f}" for value in run["wait_s"][lane].values()
        )
        for lane in LANES
    )
    return [
        f"{run['demand']:g} ×" + ("" if run["is_governed"] else ", no budget"),
        f"{run['refused']:,}",
        f"{run['share_of_quota']['output']:.0%}",
        *waits,
        f"{run['ends'].get('left', 0) / max(1, run['requests']):.0%}",
        "–" if run["jain"] is None else f"{run['jain']:.3f}",
        "–" if even is None else f"{even['least']:.0%}–{even['most']:.0%}",
        f"{run['scripts_per_admission']:.1f}",
        f"{run['redis_ms_per_admission']:.2f}",
    ]


def _table(runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(*COLUMNS, box=None)
    for run in runs:
        table.add_row(*rows_of(run))
    return table


def _lines(run: dict[str, Any]) -> Iterable[str]:
    yield (
        f"{run['demand']:g} x: {run['requests']:,} requests, {run['per_s']} a second; ends "
        f"{run['ends']}; output tokens by org {run['output_by_org']}, backlogged "
        f"{', '.join(run['backlogged']) or 'nobody'}; from minute 2 on "
        f"{'–' if run['even'] is None else format(run['even']['of_hard'], '.1%')} of the hard limit"
    )


def _markdown(runs: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += [f"| {' | '.join(rows_of(run))} |" for run in runs]
    return "\n".join(lines) + "\n"
