"""What a run of simulated students shows: its progress, and the table at the end."""

from __future__ import annotations

from typing import Any, Final

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .conversation import Tally
from .timeline import ROLES, Sample
from .verdict import Verdict
from .watch import Watch
from .writers import Report

REFRESH_S: Final = 0.25
LINE_EVERY_S: Final = 5.0


async def show_progress(watch: Watch, console: Console) -> None:
    """Show how far the run is, until cancelled: a live table, or lines where nobody looks."""
    await (_show_live if console.is_terminal else _say_lines)(watch, console)


async def _show_live(watch: Watch, console: Console) -> None:
    begin_s = trio.current_time()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(_progress(watch, trio.current_time() - begin_s), refresh=True)
            await trio.sleep(REFRESH_S)


async def _say_lines(watch: Watch, console: Console) -> None:
    begin_s = trio.current_time()
    tally, presence = watch.crowd.tally, watch.crowd.presence
    while True:
        await trio.sleep(LINE_EVERY_S)
        ttft = tally.ttft_ms.percentile(95)
        console.print(
            f"{trio.current_time() - begin_s:5.0f} s of {watch.crowd.plan.seconds:.0f}:"
            f" {presence.connected} connected, {presence.typing} typing, {tally.turns} turns,"
            f" {tally.deltas} events, first token p95 {_ms(ttft)},"
            f" {tally.graded}/{tally.submissions} graded,"
            f" {sum(tally.errors.values())} errors",
            soft_wrap=True,
        )


def _progress(watch: Watch, elapsed_s: float) -> Table:
    plan, tally, presence = watch.crowd.plan, watch.crowd.tally, watch.crowd.presence
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold")
    grid.add_column()
    done = min(1.0, elapsed_s / plan.seconds)
    bar = "━" * round(done * 40)
    errors = ", ".join(f"{code} {count}" for code, count in sorted(tally.errors.items()))
    latest = watch.samples[-1] if watch.samples else Sample(at_s=0, writers=0)
    for name, value in (
        ("time", f"[cyan]{bar}[/cyan][dim]{'━' * (40 - len(bar))}[/dim] {elapsed_s:.0f} s"),
        ("students", f"{presence.connected} connected, {presence.typing} typing"),
        ("feedback", f"{tally.turns} turns, {tally.completed} complete, {tally.deltas} events"),
        ("first token", _percentiles(tally.ttft_ms.summary())),
        ("just now", f"p50 {_ms(latest.ttft_p50_ms)}, p95 {_ms(latest.ttft_p95_ms)}"),
        ("essays", f"{tally.graded} of {tally.submissions} graded"),
        ("server", _server(latest)),
        ("cores", _cores(latest)),
        ("errors", f"[red]{errors}[/red]" if errors else "[green]none[/green]"),
    ):
        grid.add_row(name, value)
    return grid


def _server(sample: Sample) -> str:
    if sample.sessions is None:
        return "[dim]says nothing at /metrics[/dim]"
    return (
        f"{sample.sessions:.0f} sessions, {sample.streams or 0:.0f} streams;"
        f" loop late {_ms(sample.loop_lag_p99_ms)}, Redis {_ms(sample.redis_p99_ms)} (p99);"
        f" budget {sample.budget_used or 0:.0%}, {sample.line or 0:.0f} in line,"
        f" {sample.queue or 0:.0f} essays wait"
    )


def _cores(sample: Sample) -> str:
    if not sample.usages:
        return "[dim]not known[/dim]"
    used = [f"{role} {cpu:.0%}" for role in ROLES if (cpu := sample.cpu(role)) > 0]
    return ", ".join([f"machine {sample.machine or 0:.0%}", *used])


def show_result(report: Report, verdict: Verdict) -> Group:
    """The table at the end, and what broke first."""
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
    style = "green" if verdict.first is None and verdict.noticed is None else "yellow"
    words = [Text(line, style) for line in verdict.words()]
    return Group(times, footnote, counts, *words)


def _turns_note(tally: Tally) -> str:
    queued = f", {tally.queued} queued first" if tally.queued else ""
    return f"{tally.completed} complete, {tally.superseded} replaced by a newer one{queued}"


def _percentiles(summary: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_ms(value)}" for name, value in summary.items())


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
