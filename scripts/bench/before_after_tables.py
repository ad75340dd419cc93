"""The tables of before and after, in Markdown, as docs/benchmarks.md has them; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from before_after_figures import LINES, Prices, Use, bill, writers_of_tier


def tables(figures: Mapping[str, Mapping[str, Any]], prices: Prices) -> list[str]:
    """One table a load that was put, and the bill where there is what it needs."""
    makers = {
        "ramp": _ramps,
        "steady": _steadies,
        "class": _classes,
        "limit": _limits,
        "quota": _quotas,
    }
    lines: list[str] = []
    for name, make in makers.items():
        if name in figures:
            lines += ["", *make(figures[name])]
    if "hour" in figures:
        lines += ["", *_hours(figures["hour"])]
        if "class" in figures:
            lines += ["", *_bills(figures["class"], figures["hour"], prices)]
    return lines


def _table(*rows: tuple[object, ...]) -> list[str]:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]


def _ramps(found: Mapping[str, Any]) -> list[str]:
    head = (
        "ramp, a turn every 6 s", "capacity, writers", "ended by", "what broke first",
        "first token p50 / p95 at 120 writers, ms", "turns", "handshakes", "sockets",
        "worker CPU, ms a turn", "turns a second and core", "of the machine",
    )  # fmt: skip
    rows = [
        (
            name, ramp.capacity, ramp.capacity.ended_by or "the end of the ramp",
            ramp.first or "–", _pair(ramp.ttft_ms), ramp.turns, f"{ramp.handshakes:.0f}",
            f"{ramp.sockets:.0f}", f"{ramp.cpu_ms:.1f}", f"{1_000 / max(0.01, ramp.cpu_ms):.0f}",
            f"{ramp.machine:.0%}",
        )
        for name, ramp in found.items()
    ]  # fmt: skip
    return _table(head, *rows)


def _steadies(found: Mapping[str, Any]) -> list[str]:
    head = (
        "a turn every 30 s", "writers", "first token p50 / p95, ms", "messages a turn",
        "worker CPU, ms a turn with its typing", "of one core", "writers a core carries",
        "memory, MB", "errors",
    )  # fmt: skip
    rows = [
        (
            name, f"{steady.writers:.0f}", _pair(steady.ttft_ms), f"{steady.deltas:.0f}",
            f"{steady.cpu_ms:.1f}", f"{steady.cpu:.0%}", f"{steady.writers_a_core:,.0f}",
            f"{steady.memory_mb:.0f}", steady.errors,
        )
        for name, steady in found.items()
    ]  # fmt: skip
    return _table(head, *rows)


def _classes(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, handed in found.items():
        p50, p95 = (value / 1000 for value in handed.score_ms)
        graded = f"{handed.graded} of {handed.submissions}"
        rows.append((name, graded, f"{p50:.1f} / {p95:.1f}", handed.errors))
    return _table(("a class hands in", "graded", "time to score p50 / p95, s", "errors"), *rows)


def _limits(found: Mapping[str, Any]) -> list[str]:
    rows = [(name, f"{each['used']:,.0f}", f"{each['over']:,.0f}") for name, each in found.items()]
    limit = next(iter(found.values()))["limit"]
    head = f"{limit:,.0f} tokens a minute for one school, three workers, 28 s"
    return _table((head, "let through", "too many"), *rows)


def _quotas(found: Mapping[str, Any]) -> list[str]:
    head = (
        "more than a provider's quota, 34 s", "429s", "turns", "of them failed", "waited in line",
        "first token p50 / p95, ms",
    )  # fmt: skip
    rows = [
        (name, f"{each.rate_limited:.0f}", each.turns, each.errors, each.queued,
         _pair(each.ttft_ms))
        for name, each in found.items()
    ]  # fmt: skip
    return _table(head, *rows)


def _hours(found: Mapping[str, Any]) -> list[str]:
    head = (
        "an hour, ten times as fast", "a turn's tokens: new", "written to the cache",
        "read from it", "output", "an essay's tokens: new", "written", "read", "output",
        "turns", "completed", "errors",
    )  # fmt: skip
    rows = []
    for name, hour in found.items():
        turn, essay = (
            [f"{value:,.0f}" for value in (use.input, use.cache_write, use.cache_read, use.output)]
            for use in (hour.turn, hour.essay)
        )
        rows.append((name, *turn, *essay, hour.turns, hour.completed, hour.errors))
    return _table(head, *rows)


def _bills(classes: Mapping[str, Any], hours: Mapping[str, Any], prices: Prices) -> list[str]:
    uses = {
        name: (_with_cpu(hour.turn, classes[name].turn), _with_cpu(hour.essay, classes[name].essay))
        for name, hour in hours.items()
        if name in classes
    }
    bills = {name: bill(turn, essay, prices) for name, (turn, essay) in uses.items()}
    sums = {name: sum(lines.values()) for name, lines in bills.items()}
    rows = [(line, *(f"{bills[name][line]:.3f}" for name in uses)) for line in LINES]
    carried = [writers_of_tier(turn, essay, prices) for turn, essay in uses.values()]
    names = list(uses)
    ratio = sums[names[-1]] / sums[names[0]]
    said = (
        f"From ₹{sums[names[0]]:.1f} to ₹{sums[names[-1]]:.1f}, a ratio of {ratio:.2f}; the"
        f" reference goes from ₹{prices.before_inr:.0f} to ₹{prices.after_inr:.0f},"
        f" {prices.after_inr / prices.before_inr:.2f}."
    )
    return [
        *_table(
            ("₹ a concurrent writer and hour", *names),
            *rows,
            ("all", *(f"{sums[name]:.2f}" for name in names)),
            (
                "writers that the tier carries",
                *(f"{writers:.0f} ({limit})" for writers, limit in carried),
            ),
        ),
        "",
        said,
    ]


def _with_cpu(tokens: Use, rest: Use) -> Use:
    """Tokens of an hour, CPU and bytes of a class."""
    return attrs.evolve(
        tokens,
        app_cpu_s=rest.app_cpu_s,
        redis_cpu_s=rest.redis_cpu_s,
        bytes_out=rest.bytes_out,
    )


def _pair(values: tuple[float, float]) -> str:
    return f"{values[0]:.0f} / {values[1]:.0f}"
