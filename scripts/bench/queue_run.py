"""The queue benchmark's command line: the sides in turns, and the table."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from arguments import count
from relay_peers import CACHE, SOURCES, PeerMissing, install
from rich.console import Console
from rich.table import Table

from coach.store import EmbeddedServer, open_embedded

SIDES: Final = ("coach", "saq", "arq", "bullmq")
MEASUREMENTS: Final = ("idle", "overload", "throughput", "fairness")
SIDE_S_MAX: Final = 180.0
COLUMNS: Final = (
    "queue",
    "picked up idle, p50 / p95, ms",
    "at 2 × overload, p50 / p95, ms",
    "no-ops done per s",
    "handed in per s",
)


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    sides = []
    for side in options.peers:
        try:
            prepare(side)
        except PeerMissing as missing:
            console.print(f"left out: {side}: {missing}", style="yellow")
        else:
            sides.append(side)
    if not sides:
        print("queue: nothing is left to measure", file=sys.stderr)
        return 2
    runs, failures = trio.run(_measure_all, sides, options, console)
    rows = [row for side in sides if runs[side] for row in rows_of(runs[side])]
    table = Table(*COLUMNS, box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in [*fairness_lines(runs.get("coach", [])), *failures]:
        console.print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(runs, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows))
    if not rows:
        return 2
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="queue", description="Pick-up latency, throughput and fairness of the grading queue."
    )
    add = parser.add_argument
    add("--peers", type=partial(_names, SIDES), default=("coach",), metavar="LIST",
        help=f"sides to measure, of {','.join(SIDES)} (coach)")  # fmt: skip
    add("--measure", type=partial(_names, MEASUREMENTS), default=MEASUREMENTS, metavar="LIST",
        help=f"of {','.join(MEASUREMENTS)} (all)")  # fmt: skip
    add("--jobs", type=count, default=10_000, metavar="N", help="of the throughput run (10000)")
    add("--places", type=count, default=10, metavar="N", help="jobs worked on at once (10)")
    add("--overload-seconds", type=count, default=4, metavar="S", help="its length (4)")
    add("--repeat", type=count, default=1, metavar="N", help="runs of each; medians count (1)")
    add("--json", type=Path, metavar="FILE", help="write all figures there as well")
    add("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser


def _names(known: Sequence[str], text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


# -- the sides ---------------------------------------------------------------------------------


def prepare(side: str) -> None:
    """Install what a side needs, once.

    Raises:
      PeerMissing: it cannot run here.
    """
    if side in ("saq", "arq"):
        listed = SOURCES / "queue_requirements.txt"
        pip = [str(_python()), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        install(
            "queues",
            listed,
            [sys.executable, "-m", "venv", "--clear", "."],
            [*pip, "--no-input", "--requirement", str(listed)],
        )
    elif side == "bullmq":
        for tool in ("node", "npm"):
            if shutil.which(tool) is None:
                raise PeerMissing(f"there is no {tool} on this machine")
        npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
        install(side, SOURCES / "bullmq" / "package.json", npm)
        shutil.copy(SOURCES / "bullmq" / "queue.cjs", CACHE / side)


def _python() -> Path:
    return CACHE / "queues" / "bin" / "python"


def _command(side: str, server: EmbeddedServer, plan: dict[str, Any]) -> list[str]:
    path = server.url.removeprefix("unix://")
    if side == "coach":
        script = Path(__file__).with_name("queue_coach.py")
        return [sys.executable, str(script), server.url, json.dumps(plan)]
    if side == "bullmq":
        return ["node", str(CACHE / side / "queue.cjs"), path, json.dumps(plan)]
    script = SOURCES / "queue_python.py"
    return [str(_python()), "-I", str(script), side, path, json.dumps(plan)]


async def _measure_all(
    sides: Sequence[str], options: argparse.Namespace, console: Console
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The sides in turns (A B C A B C), since the machine is not alone, on one server."""
    plan = {
        "measure": options.measure,
        "jobs": options.jobs,
        "places": options.places,
        "work_s": 0.02,
        "idle_jobs": 200,
        "idle_gap_s": 0.02,
        "overload_s": options.overload_seconds,
        "fair_jobs": 600,
    }
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    failures = []
    with tempfile.TemporaryDirectory(prefix="coach-queue-") as folder:
        async with open_embedded(Path(folder)) as server:
            for number in range(options.repeat):
                for side in sides:
                    console.print(f"{side}: run {number + 1} of {options.repeat} …", style="dim")
                    figures, complaint = await _tried(_command(side, server, plan))
                    if figures is not None:
                        runs[side].append(figures)
                    else:
                        failures.append(f"{side}: {complaint}")
    return runs, failures


async def _tried(command: list[str]) -> tuple[dict[str, Any] | None, str]:
    """A side's figures, or why there are none, in one line."""
    with trio.move_on_after(SIDE_S_MAX):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        if done.returncode == 0:
            figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return figures, ""
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        return None, f"exit code {done.returncode}, says: {said[-1][:300]}"
    return None, f"did not end within {SIDE_S_MAX:g} s"


# -- the table ---------------------------------------------------------------------------------


def rows_of(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A side's lines of the table: one a lane where it has lanes. Medians of the runs."""
    lanes = list(dict.fromkeys(lane for run in runs for part in _latencies(run) for lane in part))
    rows = []
    for number, lane in enumerate(lanes or ["all"]):
        rates = [
            _median(run["throughput"][key] for run in runs if "throughput" in run)
            for key in ("done_per_s", "handed_in_per_s")
        ]
        rows.append(
            (
                runs[0]["of"] if lane == "all" else f"{runs[0]['of']}, {lane}",
                _quantiles(runs, "idle", lane),
                _quantiles(runs, "overload", lane),
                *("" if rate is None or number else f"{rate:,.0f}" for rate in rates),
            )
        )
    return rows


def fairness_lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Shares of the orgs, least and most of the runs."""
    found = [run["fairness"] for run in runs if "fairness" in run]
    if not found:
        return []
    shares = {org: [run[org] * 100 for run in found] for org in found[0]}
    said = ", ".join(f"{org} {min(of):.1f}–{max(of):.1f} %" for org, of in shares.items())
    return [f"coach, shares of orgs of weights 3:2:1 (50, 33.3, 16.7 %): {said}"]


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The table for a page."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latencies(run: dict[str, Any]) -> list[dict[str, list[float]]]:
    return [run[name] for name in ("idle", "overload") if name in run]


def _quantiles(runs: Sequence[dict[str, Any]], name: str, lane: str) -> str:
    found = [sorted(run[name][lane]) for run in runs if run.get(name, {}).get(lane)]
    if not found:
        return "none" if any(name in run for run in runs) else ""
    p50, p95 = (_median(_quantile(waits, q) for waits in found) for q in (0.5, 0.95))
    assert p50 is not None
    assert p95 is not None
    return f"{p50:.1f} / {p95:.1f}" if p95 < 100 else f"{p50:.0f} / {p95:.0f}"


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None
