"""The capacity benchmark's command line: one load, its verdict against the target."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio
from arguments import count
from load_stage import Outcome, Setup, open_stage, put_load
from rich.console import Console
from usual_stage import Usual

from coach.errors import ConfigurationError
from coach.simulator.display import show_result
from coach.simulator.plan import Plan
from coach.simulator.report import write_report
from coach.simulator.verdict import judge

WRITERS = 2_000
SECONDS = 180
RAMP_SHARE = 0.5
"""Of the run, in which students arrive."""
TURN_EVERY_S = 30.0
STREAMING_EVENTS_MIN = 300
"""Of one answer, ten a second: it lasts as long as the student waits until the next question."""
GRACE_S = 60.0
ADDED_MS_MAX = 50.0


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    try:
        with tempfile.TemporaryDirectory(prefix="coach-capacity-") as folder:
            outcome = trio.run(partial(_measure, options, Path(folder), console))
    except ConfigurationError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 2
    verdict = judge(outcome.samples, cores=os.cpu_count() or 1)
    console.print(show_result(outcome.report, verdict))
    if options.report is not None:
        page = write_report(options.report, outcome.report, outcome.samples, verdict)
        console.print(f"The report: {page}", soft_wrap=True)
    own_ms = outcome.provider["ttft_ms_p95"]
    seen_ms = outcome.report.tally.ttft_ms.percentile(95) or 0.0
    peak = outcome.provider["streams_peak"]
    console.print(
        f"First token p95 {seen_ms:.0f} ms, of which the simulator took {own_ms:.0f} ms;"
        f" at most {peak:.0f} streams at once over {outcome.provider['handshakes']:.0f} handshakes."
    )
    if not verdict.valid:
        return 2
    return 0 if outcome.report.ok and seen_ms - own_ms <= ADDED_MS_MAX else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="capacity", description="How many students this machine serves, and what ends it."
    )
    add = parser.add_argument
    add("--writers", type=count, metavar="N", help=f"at the end of the ramp ({WRITERS})")
    add("--streaming", type=count, metavar="N", help="so many instead, all with feedback running")
    add("--seconds", type=count, default=SECONDS, metavar="S", help=f"duration ({SECONDS})")
    add("--usual", action="store_true", help="the usual server that coach is compared with")
    add("--workers", type=count, default=1, metavar="N", help="web worker processes (1)")
    add("--processes", type=count, default=1, metavar="N", help="of simulated students (1)")
    add("--seed", type=count, default=1, metavar="N", help="same seed, same students (1)")
    add("--report", type=Path, metavar="DIR", help="write figures and charts there")
    return parser


async def _measure(options: argparse.Namespace, folder: Path, console: Console) -> Outcome:
    simulator: tuple[str, ...] = ()
    if options.streaming is not None:
        simulator = ("--feedback-events-min", f"{STREAMING_EVENTS_MIN}")
    plan = Plan(
        writers=options.streaming or options.writers or WRITERS,
        seconds=options.seconds,
        ramp_s=options.seconds * RAMP_SHARE,
        turn_every_s=TURN_EVERY_S,
        grace_s=GRACE_S,
        seed=options.seed,
    )
    usual = Usual() if options.usual else None
    setup = Setup(workers=options.workers, simulator=simulator, usual=usual)
    async with open_stage(setup, folder) as stage:
        return await put_load(stage, plan, console, processes=options.processes)
