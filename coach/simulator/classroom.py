"""The command line of the simulated class: what is asked for, and what a run leaves behind."""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from rich.console import Console

from ..errors import ConfigurationError
from ..nurseries import open_plain_nursery
from .arrivals import evenly, ramp_from, seconds_from, spike_from, steps_from
from .crowd import PROCESSES_MAX, Crowd, run_crowd
from .display import show_progress, show_result
from .report import write_report
from .verdict import TTFT_MS, judge
from .watch import Targets, Watch
from .writers import Plan, Report, check_loopback, check_reachable

AFTER_LAST_S: Final = 60.0
"""How long a run goes on after the last arrival of a ramp or of steps, where nobody says."""
LONG_PAUSES: Final = 0.2
FLAKY: Final = 0.2


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    console = Console()
    try:
        plan = plan_from(options)
        if not 1 <= options.processes <= PROCESSES_MAX:
            raise ConfigurationError(f"processes must be between 1 and {PROCESSES_MAX}")
        if not options.allow_remote:
            check_loopback(plan.url)
        targets = Targets(
            url=plan.url,
            local=_is_local(plan.url),
            provider_url=options.provider,
            provider_ca=options.provider_ca,
        )
        watch = Watch(Crowd(plan), targets)
        report = trio.run(partial(run_watched, watch, console, processes=options.processes))
        verdict = judge(watch.samples, ttft_ms=options.ttft, cores=os.cpu_count() or 1)
    except ConfigurationError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    console.print(show_result(report, verdict))
    try:
        if options.json is not None:
            figures = {**report.as_dict(), "verdict": verdict.as_dict()}
            options.json.write_text(json.dumps(figures, indent=2) + "\n")
        if options.report is not None:
            page = write_report(options.report, report, watch.samples, verdict)
            console.print(f"The report: {page}", soft_wrap=True)
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}")
        return 2
    return 0 if report.ok else 1


async def run_watched(watch: Watch, console: Console, *, processes: int) -> Report:
    """Run a watch's crowd, and show how far it is.

    Raises:
      ConfigurationError: no server answers, or a process of the crowd has died.
    """
    await check_reachable(watch.crowd.plan.url)
    async with open_plain_nursery() as nursery:
        nursery.start_soon(watch.run)
        nursery.start_soon(show_progress, watch, console)
        report = await run_crowd(watch.crowd, processes=processes)
        nursery.cancel_scope.cancel("the run has ended")
    return report


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the options ask for.

    Raises:
      ConfigurationError: they contradict each other, or a value is out of range.
    """
    plan = Plan(
        url=options.url.rstrip("/"),
        seed=options.seed,
        turn_every_s=options.turn_every,
        time_scale=options.time_scale,
        long_pauses=options.long_pauses,
        flaky=options.flaky,
        orgs=options.orgs,
        secret=_secret(options.secret),
    )
    scheduled = _schedule(options)
    if scheduled is None and not options.spike:
        seconds = plan.seconds if options.seconds is None else options.seconds
        ramp_s = min(5.0, seconds / 10) if options.ramp is None else seconds_from(options.ramp)
        writers = plan.writers if options.writers is None else options.writers
        return attrs.evolve(plan, writers=writers, seconds=seconds, ramp_s=ramp_s)
    if scheduled is None:
        writers = plan.writers if options.writers is None else options.writers
        ramp_s = 5.0 if options.ramp is None else seconds_from(options.ramp)
        scheduled = evenly(writers, ramp_s)
    elif options.writers is not None:
        raise ConfigurationError("--ramp FIRST:LAST:TIME and --steps say how many: omit --writers")
    spikes = [moment for spike in options.spike for moment in spike_from(spike)]
    arrivals = tuple(sorted([*scheduled, *spikes]))
    seconds = arrivals[-1] + AFTER_LAST_S if options.seconds is None else options.seconds
    return attrs.evolve(plan, writers=len(arrivals), seconds=seconds, arrivals=arrivals)


def _schedule(options: argparse.Namespace) -> tuple[float, ...] | None:
    is_ramp = options.ramp is not None and ":" in options.ramp
    if options.steps is None:
        return ramp_from(options.ramp) if is_ramp else None
    if options.ramp is not None:
        raise ConfigurationError("--ramp and --steps exclude each other")
    return steps_from(options.steps)


def _secret(text: str | None) -> str | None:
    """A key as it is, or that of a variable: a command line is seen by everybody on the machine."""
    if text is None or not text.startswith("env:"):
        return text
    name = text.removeprefix("env:")
    if not os.environ.get(name):
        raise ConfigurationError(f"--secret {text}: there is no {name} in the environment")
    return os.environ[name]


def _is_local(url: str) -> bool:
    try:
        check_loopback(url)
    except ConfigurationError:
        return False
    return True


def _time(text: str) -> float:
    try:
        return seconds_from(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Simulated students write, get feedback, and are graded.",
        epilog="Exit code: 0 all well, 1 errors or ungraded submissions, 2 could not begin.",
    )
    defaults = Plan()

    def add(name: str, meaning: str, **kwargs: Any) -> None:
        parser.add_argument(name, help=meaning, **kwargs)

    add("--writers", "students (60)", type=int, metavar="N")
    add("--seconds", "duration: 60, 90s, 10m, 4h (60; a minute after the last arrival)",
        type=_time, metavar="TIME")  # fmt: skip
    add("--url", f"the server ({defaults.url})", default=defaults.url)
    add("--json", "write the figures there as well", type=Path, metavar="FILE")
    add("--seed", "same seed, same class (1)", type=int, default=defaults.seed, metavar="N")
    add("--ramp", "arrivals within so long (at most 5 s); or FIRST:LAST:TIME, as 1:600:120s",
        metavar="RAMP")  # fmt: skip
    add("--steps", "more at each step, as 100,200,400:30s", metavar="STEPS")
    add("--spike", "N more in one moment, as 30@20s; may be repeated",
        action="append", default=[], metavar="N@TIME")  # fmt: skip
    add("--turn-every", "mean time between a student's requests for feedback (9)",
        type=float, default=defaults.turn_every_s, metavar="S")  # fmt: skip
    add("--time-scale", "students live so many times faster: typing, thinking, pauses (1)",
        type=float, default=defaults.time_scale, metavar="X")  # fmt: skip
    add("--long-pauses", f"share who put work aside for 5 to 10 minutes (0; alone: {LONG_PAUSES})",
        type=float, nargs="?", const=LONG_PAUSES, default=0.0, metavar="SHARE")  # fmt: skip
    add("--flaky", f"share whose phone loses its network once a minute (0; alone: {FLAKY})",
        type=float, nargs="?", const=FLAKY, default=0.0, metavar="SHARE")  # fmt: skip
    add("--orgs", "schools of unequal size; needs --secret (1)", type=int, default=1, metavar="N")
    add("--secret", "HS256 key to sign students' tokens with, or env:NAME", metavar="KEY")
    add("--processes", "of the load generator (1)", type=int, default=1, metavar="N")
    add("--report", "write run.json, samples.csv and index.html there", type=Path, metavar="DIR")
    add("--ttft", f"from where on a first token (p95) is late ({TTFT_MS:.0f})",
        type=float, default=TTFT_MS, metavar="MS")  # fmt: skip
    add("--provider", "a simulated provider, for its own figures", metavar="URL")
    add("--provider-ca", "whose certificate it has", metavar="FILE")
    add("--allow-remote", "permit a server on another machine", action="store_true")
    return parser


def _complain(line: str) -> None:
    sys.stderr.write(f"simulate_writers: {line}\n")
