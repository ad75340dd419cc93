"""A run second by second: what the students saw, and what everything around them used meanwhile."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import attrs

from .host import SERVER_ROLES, Usage


@attrs.frozen(kw_only=True)
class Sample:
    """What was seen at one moment, or between the sample before and this one.

    None: nobody could tell (no feedback in that time, a server on another machine, …).
    """

    at_s: float
    """Since the first arrival."""
    writers: int
    """Connected students."""
    # -- students ------------------------------------------------------------------------------
    turns_per_s: float = 0.0
    events_per_s: float = 0.0
    ttft_p50_ms: float | None = None
    """Over the last few seconds, as the next ones."""
    ttft_p95_ms: float | None = None
    started_p95_ms: float | None = None
    event_gap_p95_ms: float | None = None
    score_p95_ms: float | None = None
    queued: int = 0
    """Turns that were told to wait in line, so far."""
    errors: int = 0
    """So far, as the next ones."""
    error_codes: dict[str, int] = attrs.field(factory=dict)
    submissions: int = 0
    graded: int = 0
    # -- the server, by its own metrics --------------------------------------------------------
    sessions: float | None = None
    streams: float | None = None
    """Open streams to providers."""
    loop_lag_p99_ms: float | None = None
    redis_p99_ms: float | None = None
    budget_wait_p95_ms: float | None = None
    budget_used: float | None = None
    """Of the quota dimension that is used most; 1 is all of it."""
    line: float | None = None
    """Requests that wait for a provider's budget."""
    queue: float | None = None
    """Essays that wait for a grader."""
    refusals: float | None = None
    """429s and 529s of providers, so far."""
    files_share: float | None = None
    """Of its limit of open files, what the worker with most of them uses."""
    # -- the machine -----------------------------------------------------------------------------
    machine: float | None = None
    """Share of all cores in use, by whomever."""
    usages: tuple[Usage, ...] = ()
    # -- load generator and simulated provider -----------------------------------------------------
    own_lag_p99_ms: float | None = None
    """Of the load generator's own event loops."""
    late_p99_ms: float | None = None
    """By how much students did things later than planned."""
    provider_late_p95_ms: float | None = None
    """By how much the simulated provider's events left later than it meant."""
    provider_429s: float | None = None
    """As the simulated provider counts them, judges' included; so far."""
    # -- money -------------------------------------------------------------------------------------
    tokens: dict[str, int] = attrs.field(factory=dict)
    """Of finished turns so far: input, cached, output."""
    cost_per_writer_hour: float | None = None
    """US dollars, over the last few seconds, grading included."""

    def cpu(self, role: str) -> float:
        """Cores that the processes of a role use together."""
        return sum(usage.cpu for usage in self.usages if usage.role == role)

    def busiest(self, role: str) -> float:
        """Share of a core of the busiest process of a role: alone it can use no more than 1."""
        return max((usage.cpu for usage in self.usages if usage.role == role), default=0.0)

    def memory_mb(self, role: str) -> float:
        """Of all processes of a role."""
        return sum(usage.memory_mb for usage in self.usages if usage.role == role)

    def fullest(self) -> Usage | None:
        """The server's process that is nearest to its limit of open files."""
        known = [each for each in self.usages if each.files_max and each.role in SERVER_ROLES]
        return max(known, key=lambda usage: usage.files / usage.files_max, default=None)


ROLES = ("worker", "grader", "redis", "simulated provider", "load generator")


def as_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Flat: one number a field, as CSV and the charts have it."""
    rows = []
    for sample in samples:
        row: dict[str, Any] = {
            name: getattr(sample, name)
            for name in attrs.fields_dict(Sample)
            if name not in {"usages", "error_codes", "tokens"}
        }
        for role in ROLES:
            key = role.replace(" ", "_")
            row[f"{key}_cpu"] = sample.cpu(role) if sample.usages else None
            row[f"{key}_cpu_max"] = sample.busiest(role) if sample.usages else None
            row[f"{key}_mb"] = sample.memory_mb(role) if sample.usages else None
        fullest = sample.fullest()
        row["files"] = fullest.files if fullest else None
        row["files_max"] = fullest.files_max if fullest else None
        for kind in ("input", "cached", "output"):
            row[f"tokens_{kind}"] = sample.tokens.get(kind, 0)
        rows.append({name: _rounded(value) for name, value in row.items()})
    return rows


def as_csv(samples: Sequence[Sample]) -> str:
    """The rows, with a head; empty cells for what nobody could tell."""
    rows = as_rows(samples)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["at_s", "writers"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
