"""The command line of the simulated class: options, live progress, and the table at the end."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..errors import ConfigurationError
from .conversation import Tally
from .writers import (
    Plan,
    Presence,
    Report,
    check_loopback,
    check_reachable,
    simulate,
)

REFRESH_S = 0.25
LINE_EVERY_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args(argv)
    console = Console()
    try:
        plan = Plan(
            url=options.url.rstrip("/"),
            writers=options.writers,
            seconds=options.seconds,
            seed=options.seed,
            ramp_s=min(5.0, options.seconds / 10) if options.ramp is None else options.ramp,
            turn_every_s=options.turn_every,
        )
        if not options.allow_remote:
            check_loopback(plan.url)
        report = trio.run(_run, plan, console)
    except ConfigurationError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    console.print(_result(report))
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(report.as_dict(), indent=2) + "\n")
        except OSError as error:
            _complain(f"{options.json}: {error.strerror}")
            return 2
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Simulated students write, get feedback, and are graded.",
        epilog="Exit code: 0 all well, 1 errors or ungraded submissions, 2 could not begin.",
    )
    defaults = Plan()
    add = parser.add_argument
    add("--writers", type=int, default=defaults.writers, metavar="N", help="students (60)")
    add("--seconds", type=float, default=defaults.seconds, metavar="S", help="duration (60)")
    add("--url", default=defaults.url, help=f"the server ({defaults.url})")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--seed", type=int, default=defaults.seed, metavar="N", help="same seed, same class (1)")
    add("--ramp", type=float, metavar="S", help="arrivals are spread over S seconds (at most 5)")
    add(
        "--turn-every",
        type=float,
        default=defaults.turn_every_s,
        metavar="S",
        help="mean time between a student's requests for feedback (9)",
    )
    add("--allow-remote", action="store_true", help="permit a server on another machine")
    return parser


async def _run(plan: Plan, console: Console) -> Report:
    await check_reachable(plan.url)
    tally, presence = Tally(), Presence()
    async with trio.open_nursery() as nursery:
        watch = _watch_live if console.is_terminal else _watch_lines
        nursery.start_soon(watch, plan, tally, presence, console)
        report = await simulate(plan, tally=tally, presence=presence)
        nursery.cancel_scope.cancel("the run has ended")
    return report


async def _watch_live(plan: Plan, tally: Tally, presence: Presence, console: Console) -> None:
    begin_s = trio.current_time()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            elapsed_s = trio.current_time() - begin_s
            live.update(_progress(plan, tally, presence, elapsed_s), refresh=True)
            await trio.sleep(REFRESH_S)


async def _watch_lines(plan: Plan, tally: Tally, presence: Presence, console: Console) -> None:
    begin_s = trio.current_time()
    while True:
        await trio.sleep(LINE_EVERY_S)
        ttft = tally.ttft_ms.percentile(95)
        console.print(
            f"{trio.current_time() - begin_s:5.0f} s of {plan.seconds:.0f}:"
            f" {presence.connected} connected, {presence.typing} typing, {tally.turns} turns,"
            f" {tally.deltas} events, first token p95 {_ms(ttft)},"
            f" {tally.graded}/{tally.submissions} graded,"
            f" {sum(tally.errors.values())} errors",
            soft_wrap=True,
        )


def _progress(plan: Plan, tally: Tally, presence: Presence, elapsed_s: float) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold")
    grid.add_column()
    done = min(1.0, elapsed_s / plan.seconds)
    bar = "━" * round(done * 40)
    errors = ", ".join(f"{code} {count}" for code, count in sorted(tally.errors.items()))
    for name, value in (
        ("time", f"[cyan]{bar}[/cyan][dim]{'━' * (40 - len(bar))}[/dim] {elapsed_s:.0f} s"),
        ("students", f"{presence.connected} connected, {presence.typing} typing"),
        ("feedback", f"{tally.turns} turns, {tally.completed} complete, {tally.deltas} events"),
        ("first token", _percentiles(tally.ttft_ms.summary())),
        ("essays", f"{tally.graded} of {tally.submissions} graded"),
        ("errors", f"[red]{errors}[/red]" if errors else "[green]none[/green]"),
    ):
        grid.add_row(name, value)
    return grid


def _result(report: Report) -> Group:
    tally, figures = report.tally, report.as_dict()
    times = Table(
        title=f"{report.plan.writers} writers, {report.plan.seconds:.0f} s, {report.plan.url}",
        title_justify="left",
    )
    times.add_column("")
    for percentile in ("p50", "p95", "p99", "samples"):
        times.add_column(percentile, justify="right")
    for name, key, histogram in (
        ("time to first token", "ttft_ms", tally.ttft_ms),
        ("time to started", "started_ms", tally.started_ms),
        ("event latency *", "event_ms", tally.event_ms),
        ("time to score", "score_ms", tally.score_ms),
    ):
        row = figures[key]
        times.add_row(
            name, *(_ms(row[part]) for part in ("p50", "p95", "p99")), f"{histogram.count}"
        )
    counts = Table.grid(padding=(0, 2))
    counts.add_column(justify="right")
    counts.add_column(style="bold", justify="right")
    counts.add_column(style="dim")
    for name, value, note in (
        ("feedback turns", tally.turns, _turns_note(tally)),
        ("events", tally.deltas, f"{tally.chars} characters of feedback"),
        ("submissions", tally.submissions, ""),
        ("graded", tally.graded, f"{tally.degraded} degraded" if tally.degraded else ""),
        ("errors", sum(tally.errors.values()), ""),
        *((f"{code}", count, "") for code, count in figures["errors"].items()),
    ):
        counts.add_row(name, f"{value}", note)
    footnote = Text(
        "* gap between two events as they arrive, the provider's own spacing included", "dim"
    )
    return Group(times, footnote, counts)


def _turns_note(tally: Tally) -> str:
    queued = f", {tally.queued} queued first" if tally.queued else ""
    return f"{tally.completed} complete, {tally.superseded} replaced by a newer one{queued}"


def _complain(line: str) -> None:
    sys.stderr.write(f"simulate_writers: {line}\n")


def _percentiles(summary: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_ms(value)}" for name, value in summary.items())


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
