"""The benchmark's figures as tables: for the terminal and for docs/benchmarks.md."""

from __future__ import annotations

import os
from statistics import median
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

KEPT_UP_MIN = 0.97
"""Of the events sent, in a window, by a relay that keeps up."""
COLUMNS = (
    "load",
    "relay",
    "CPU µs per event",
    "of one core",
    "event latency p50 / p95 / p99, ms",
    "added TTFT p50 / p95, ms",
    "messages per event",
    "memory, MB",
    "notes",
)


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One run made of several of the same kind: the median of each figure, the sum of errors."""
    merged: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if key == "errors":
            merged[key] = {
                code: sum(value.get(code, 0) for value in values)
                for code in sorted({code for value in values for code in value})
            }
        elif isinstance(first, dict):
            merged[key] = {name: _median([value[name] for value in values]) for name in first}
        elif isinstance(first, str):
            merged[key] = first
        else:
            merged[key] = _median(values)
    costs = [run["cpu_us_per_event"]["relay"] for run in runs]
    merged["runs"], merged["cpu_us_range"] = len(runs), [min(costs), max(costs)]
    return merged


def _median(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return round(median(numbers), 2) if numbers else None


def single(figures: dict[str, Any]) -> Group:
    """One run, process by process."""
    cpu = Table(
        title=f"{figures['relay']}: {_load(figures)}, {figures['seconds']} s,"
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
        f"{figures['sent']:.0f} events sent, {figures['received']:.0f} received,"
        f" {figures['sent'] / figures['seconds']:.0f} a second,"
        f" {figures['messages_per_event']:.2f} messages an event;"
        f" relay {figures['resident_mb']} MB;"
        f" errors: {figures['errors'] or 'none'}",
        style="dim",
    )
    return Group(cpu, times, note)


def comparison(rows: list[dict[str, Any]]) -> Table:
    """All relays at all loads."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("load", "relay") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown(rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> str:
    """The same, as it stands in the documentation."""
    lines = [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["cpu_us_per_event"]:
        return [_load(row), row["relay"], *["–"] * (len(COLUMNS) - 3), row["failed"]]
    cost, (least, most) = row["cpu_us_per_event"]["relay"], row["cpu_us_range"]
    spread = f" ({least:.0f}–{most:.0f})" if row["runs"] > 1 else ""
    notes = []
    if row["received"] < KEPT_UP_MIN * row["sent"]:
        notes.append(f"behind: {row['received'] / row['sent']:.0%} delivered")
    if row["errors"]:
        notes.append(", ".join(f"{count} × {code}" for code, count in row["errors"].items()))
    if "failed" in row:
        notes.append(row["failed"])
    return [
        _load(row),
        row["relay"],
        f"{cost:.1f}{spread}",
        f"{row['cpu_percent']['relay']:.0f} %",
        " / ".join(_ms(value) for value in row["latency_ms"].values()),
        " / ".join(_ms(row["ttft_added_ms"][name]) for name in ("p50", "p95")),
        f"{row['messages_per_event']:.2f}",
        f"{row['resident_mb']:.0f}",
        "; ".join(notes),
    ]


def _load(row: dict[str, Any]) -> str:
    return f"{row['clients']:g} × {row['rate']:g}/s"


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
