"""The edge's benchmark: starts coach, lets the crowd in, reads /proc, says what came."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from arguments import count
from edge_crowd import Crowd
from processes import ProcessEnded, children, cpu_s, free_port, open_process, resident_bytes
from relay_peers import end_of, until_answers
from relay_stage import percentiles
from rich.console import Console
from rich.table import Table
from simulated import open_simulated

from coach.errors import ConfigurationError, first_error
from coach.session import Authority
from coach.store import open_embedded

AT_ONCE: Final = 200
"""Of the students who come after the storm, on their way at a time."""
WARM_UP: Final = 20
STUDENTS_MAX: Final = 100_000
"""From one address: all of them are."""
SETTLE_S: Final = 2.0
COLUMNS: Final = (
    "workers",
    "storm",
    "welcome p50 / p95 / p99, s",
    "the last, s",
    "worker CPU µs, each",
    "idle",
    "KB, each",
    "CPU idle, % of a core",
    "alive after",
    "files before / after",
)


@attrs.frozen(kw_only=True)
class Plan:
    """What is done."""

    workers: int
    storm: int
    idle: int
    """Students in all, once those who come after the storm are there; 0: none come."""
    hold_s: float

    @property
    def students(self) -> int:
        """How many there are in the end."""
        return max(self.storm, self.idle)


@attrs.frozen(kw_only=True)
class Coach:
    """A coach that answers."""

    address: tuple[str, int]
    pids: list[int]
    """Of its workers."""
    secret: str
    log: Path


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    rows = []
    for workers in options.workers:
        plan = Plan(workers=workers, storm=options.storm, idle=options.idle, hold_s=options.hold)
        console.print(f"{workers} worker(s): {plan.students} students …", style="dim")
        complaint = None
        try:
            rows.append(trio.run(measure, plan))
        except* ConfigurationError as group:
            complaint = first_error(group)
        if complaint is not None:
            print(f"edge: {complaint}", file=sys.stderr)
            return 2
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row["lost"]:
            console.print(f"lost with {row['workers']} worker(s): {row['lost']}", style="red")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.markdown is not None:
        lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
        options.markdown.write_text("\n".join(lines) + "\n")
    return 1 if any(row["lost"] or row["alive"] < row["students"] for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge", description="An accept storm, and idle students.")
    add = parser.add_argument
    add("--workers", type=_counts, default=(1, 2), metavar="N[,N]", help="one run each (1,2)")
    add("--storm", type=count, default=2_000, metavar="N", help="who connect at once (2000)")
    add("--idle", type=int, default=10_000, metavar="N", help="students in all then (10000)")
    add("--hold", type=float, default=60.0, metavar="S", help="for so long (60)")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


async def measure(plan: Plan) -> dict[str, Any]:
    """One run: everything is started, measured and ended.

    Raises:
      ConfigurationError: something did not start, or ended before its time.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-edge-")))
        coach = await stack.enter_async_context(_open_coach(plan, folder))
        try:
            return await trio.to_thread.run_sync(_measured, plan, coach)
        except (ProcessEnded, OSError) as error:
            raise ConfigurationError(f"{error}; {end_of(coach.log)}") from error


def _measured(plan: Plan, coach: Coach) -> dict[str, Any]:
    authority = Authority(coach.secret, token_s=3_600, leeway_s=0)
    tokens = [
        authority.issue(user=f"student-{number}", org=f"school-{number % 20}", role="student")[0]
        for number in range(plan.students + WARM_UP)
    ]
    crowd = Crowd(coach.address, tokens)
    try:
        crowd.come(WARM_UP, at_once=1)
        time.sleep(SETTLE_S)
        memory, cpu = _resident(coach), _cpu(coach)
        began_s = time.monotonic()
        storm = crowd.come(plan.storm, at_once=plan.storm)
        last_s = max((student.greeted_s for student in storm), default=began_s) - began_s
        crowd.stay(SETTLE_S)
        storm_cpu = _cpu(coach) - cpu
        crowd.come(plan.students - plan.storm, at_once=AT_ONCE)
        crowd.stay(SETTLE_S)
        files, filled, idle_cpu = _files(coach), _resident(coach), _cpu(coach)
        held_s = time.monotonic()
        crowd.stay(plan.hold_s)
        held_s, idle_cpu = time.monotonic() - held_s, _cpu(coach) - idle_cpu
        files_after = _files(coach)
        alive = crowd.alive() - WARM_UP
    finally:
        crowd.leave()
    return {
        "workers": plan.workers,
        "storm": plan.storm,
        "welcome_s": percentiles([each.greeted_s - each.began_s for each in storm]),
        "last_s": round(last_s, 2),
        "storm_cpu_us": round(storm_cpu / plan.storm * 1e6),
        "students": plan.students,
        "kb": round((filled - memory) / plan.students / 1e3, 1),
        "idle_cpu_percent": round(idle_cpu / max(held_s, 1e-9) * 100, 1),
        "held_s": round(held_s, 1),
        "alive": alive,
        "files": [files, files_after],
        "lost": crowd.lost,
    }


def _cpu(coach: Coach) -> float:
    return sum(map(cpu_s, coach.pids))


def _resident(coach: Coach) -> int:
    return sum(map(resident_bytes, coach.pids))


def _files(coach: Coach) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in coach.pids)


@asynccontextmanager
async def _open_coach(plan: Plan, folder: Path) -> AsyncIterator[Coach]:
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        redis = await enter(open_embedded(folder))
        provider = await enter(open_simulated(folder))
        port, secret = free_port(), secrets.token_urlsafe(32)
        config, log = folder / "coach.toml", folder / "coach.log"
        config.write_text(
            f'data_dir = "{folder}"\n[redis]\nurl = "{redis.url}"\n'
            f'[server]\nbind = "127.0.0.1:{port}"\nworkers = {plan.workers}\n'
            f"connections_per_address = {STUDENTS_MAX}\n"
            f"connects_per_address_per_minute = {STUDENTS_MAX}\n"
            f'[auth]\nmode = "jwt"\nsecret = "{secret}"\n[log]\nlevel = "warning"\n'
            f'[[provider]]\nname = "simulator"\nbase_url = "{provider.url}"\nmodel = "sim-1"\n'
            f'api_key = "bench"\nca_file = "{provider.ca}"\n'
        )
        command = [sys.executable, "-m", "coach", "serve", "--config", str(config)]
        supervisor = await enter(open_process(command, log=log))
        await until_answers(f"http://127.0.0.1:{port}/readyz", True, supervisor, log)
        yield Coach(
            address=("127.0.0.1", port), pids=children(supervisor.pid), secret=secret, log=log
        )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["workers"]),
        f"{row['storm']:,}",
        " / ".join(f"{value:.2f}" for value in row["welcome_s"].values()),
        f"{row['last_s']:.2f}",
        f"{row['storm_cpu_us']}",
        f"{row['students']:,}",
        f"{row['kb']:.1f}",
        f"{row['idle_cpu_percent']:.1f}",
        f"{row['alive']:,}, {row['held_s']:.0f} s",
        " / ".join(map(str, row["files"])),
    ]
