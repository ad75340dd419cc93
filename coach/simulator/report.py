"""The report of a run: a folder with figures for programs, for spreadsheets and for people.

run.json      the run, its verdict, and every sample
samples.csv   one line a sample
index.html    what broke first, the figures, and charts; one file that needs no other
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from .charts import Chart, Series, svg
from .timeline import ROLES, Sample, as_csv, as_rows
from .verdict import (
    FILES_SHARE,
    LOOP_LAG_MS,
    PROCESS_CPU,
    PROVIDER_LATE_MS,
    QUEUE,
    REDIS_MS,
    TTFT_MS,
    Verdict,
)
from .writers import Report

PAGE: Final = Path(__file__).with_name("report.html")


def write_report(folder: Path, report: Report, samples: Sequence[Sample], verdict: Verdict) -> Path:
    """Write the three files; returns the page's path.

    Raises:
      OSError: it cannot be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        **report.as_dict(),
        "plan": report.plan.as_dict(),
        "verdict": verdict.as_dict(),
        "samples": as_rows(samples),
    }
    (folder / "run.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "samples.csv").write_text(as_csv(samples))
    page = folder / "index.html"
    page.write_text(page_of(report.as_dict(), report.plan.as_dict(), samples, verdict))
    return page


def page_of(
    figures: Mapping[str, Any],
    plan: Mapping[str, Any],
    samples: Sequence[Sample],
    verdict: Verdict,
) -> str:
    """The page as text: everything that is not ours is escaped."""
    first, *others = verdict.words()
    said = "".join(f"<p>{escape(line)}</p>" for line in others)
    mark = verdict.first or verdict.noticed
    writers = [(sample.at_s, float(sample.writers)) for sample in samples]
    drawn = [
        _figure(chart, svg(chart, writers, mark_s=mark.at_s if mark else None))
        for chart in charts_of(samples)
        if chart.shown
    ]
    page = PAGE.read_text()
    for name, text in (
        ("title", escape(f"{figures['writers']} writers, {figures['seconds']:.0f} s")),
        ("state", "broke" if mark else "held"),
        ("first", escape(first)),
        ("said", said),
        ("tiles", _tiles(figures)),
        ("charts", "".join(drawn)),
        ("plan", escape(", ".join(f"{key} {value}" for key, value in plan.items()))),
    ):
        page = page.replace(f"<!--{name}-->", text)
    return page


def charts_of(samples: Sequence[Sample]) -> list[Chart]:
    """Every chart there is; those that have nothing to show included."""
    rows = as_rows(samples)

    def line(name: str, key: str, scale: float = 1.0) -> Series:
        points = [
            (row["at_s"], None if row[key] is None else float(row[key]) * scale) for row in rows
        ]
        return Series(name, points)

    def each_role(suffix: str) -> list[Series]:
        return [line(role, f"{role.replace(' ', '_')}_{suffix}") for role in ROLES]

    return [
        Chart(title="Time to first token", unit="ms", limit=TTFT_MS, series=[
            line("p95", "ttft_p95_ms"), line("p50", "ttft_p50_ms")]),
        Chart(title="Started, and gap between two events (p95)", unit="ms", series=[
            line("started", "started_p95_ms"), line("gap", "event_gap_p95_ms")]),
        Chart(title="CPU of the busiest process", unit="of a core", limit=PROCESS_CPU,
              series=each_role("cpu_max")),
        Chart(title="CPU of the machine", unit="of all cores", series=[
            line("machine", "machine")]),
        Chart(title="Event loop lag of workers (p99)", unit="ms", limit=LOOP_LAG_MS, series=[
            line("workers", "loop_lag_p99_ms")]),
        Chart(title="Redis round trip (p99)", unit="ms", limit=REDIS_MS, series=[
            line("Redis", "redis_p99_ms")]),
        Chart(title="Provider's budget in use", unit="of the quota", series=[
            line("used", "budget_used")]),
        Chart(title="Wait for the budget (p95)", unit="ms", series=[
            line("wait", "budget_wait_p95_ms")]),
        Chart(title="Waiting", unit="", limit=QUEUE, series=[
            line("essays for a grader", "queue"), line("requests in line", "line")]),
        Chart(title="Time to score (p95)", unit="s", series=[
            line("score", "score_p95_ms", 0.001)]),
        Chart(title="Turns and streams", unit="", series=[
            line("streams open", "streams"), line("turns a second", "turns_per_s")]),
        Chart(title="Events", unit="a second", series=[line("events", "events_per_s")]),
        Chart(title="Open files of the fullest process", unit="", series=[
            line("files", "files")]),
        Chart(title="Open files", unit="of the limit", limit=FILES_SHARE, series=[
            line("workers", "files_share")]),
        Chart(title="Memory", unit="MB", series=each_role("mb")),
        Chart(title="Cost", unit="$ a writer and hour", series=[
            line("cost", "cost_per_writer_hour")]),
        Chart(title="Errors and refusals so far", unit="", series=[
            line("errors seen by students", "errors"), line("429 and 529", "refusals")]),
        Chart(title="The load's own lateness", unit="ms", limit=PROVIDER_LATE_MS, series=[
            line("simulated students (loop, p99)", "own_lag_p99_ms"),
            line("simulated provider (p95)", "provider_late_p95_ms")]),
    ]  # fmt: skip


def _figure(chart: Chart, drawing: str) -> str:
    keys = "".join(
        f'<span class="key"><i class="key-{number + 1}"></i>{escape(each.name)}</span>'
        for number, each in enumerate(chart.shown)
    )
    unit = f" <small>{escape(chart.unit)}</small>" if chart.unit else ""
    return (
        f"<figure><figcaption><h2>{escape(chart.title)}{unit}</h2><div>{keys}</div></figcaption>"
        f"{drawing}</figure>"
    )


def _tiles(figures: Mapping[str, Any]) -> str:
    errors = sum(figures["errors"].values())
    tiles = [
        ("first token p95", _ms(figures["ttft_ms"]["p95"])),
        ("first token p50", _ms(figures["ttft_ms"]["p50"])),
        ("time to score p95", _ms(figures["score_ms"]["p95"])),
        ("turns", f"{figures['turns']:,}"),
        ("events", f"{figures['events']:,}"),
        ("graded", f"{figures['graded']:,} of {figures['submissions']:,}"),
        ("errors", f"{errors:,}"),
    ]
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1_000:.1f} s"
