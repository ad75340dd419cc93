"""The before-and-after benchmark: its loads, what is read out of each, and the tables.

Four loads, since no single one shows everything:

ramp    feedback alone, asked for so often that turns and not typing fill the machine, by more
        students every second until first tokens are late: capacity, handshakes, sockets
class   all write for half a minute and hand in: time to score, what turns and essays cost
limit   three workers, one school whose limit is reached: tokens let through beyond it
quota   a class that wants more than the provider's smallest tier gives: 429s
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import jwt
import trio
from arguments import count
from before_after_figures import (
    LINES,
    TTFT_MS_MAX,
    Capacity,
    Prices,
    Use,
    bill,
    capacity_of,
    cpu_s,
    read_prices,
    ttft_at,
    writers_of_tier,
)
from load_stage import Outcome, Setup, Stage, open_stage, put_load
from rich.console import Console

from coach.errors import ConfigurationError
from coach.simulator.exposition import Exposition
from coach.simulator.plan import Plan
from coach.simulator.timeline import Sample
from coach.simulator.verdict import judge

PRICES: Final = Path(__file__).with_name("before_after_prices.toml")
FLAGS: Final = ("pool", "shared_limits", "queue", "backpressure")
ALL_OFF: Final = dict.fromkeys(FLAGS, 0)
NO_CACHE: Final = {"COACH_CACHE__SINGLE_FLIGHT": "false", "COACH_CACHE__KEEP_WARM": "false"}
UNCACHED: Final = ("--cache-tokens-min", "1000000")
TURN_EVERY_S: Final = 30.0
RAMP_EVERY_S: Final = 6.0
LONG_S: Final = 3_600.0
"""So long a plan is when its students are cut off before they hand in."""
BOOKED_S: Final = 2.0
"""After which what was spent stands in Redis."""
RAMP_WRITERS, RAMP_S = 1_000, 64.0
ALIKE_WRITERS: Final = 120
CLASS_WRITERS, CLASS_S, CLASS_GRACE_S = 120, 40.0, 45.0
LIMIT_WRITERS, LIMIT_EVERY_S, LIMIT_S = 60, 3.0, 28.0
LIMIT_TOKENS: Final = 200_000
QUOTA_WRITERS, QUOTA_EVERY_S, QUOTA_S = 150, 5.0, 34.0


@attrs.frozen
class Variant:
    """Which parts are on."""

    name: str
    rollout: Mapping[str, int]
    cached: bool = True
    """The provider's prompt cache is used."""

    def setup(self, prices: Prices, **changes: Any) -> Setup:
        """What is put up for it."""
        environ = {"COACH_PRICES__PRICE": json.dumps([price_of(prices.model)])}
        if not self.cached:
            environ |= NO_CACHE
        environ |= changes.pop("environ", {})
        simulator = () if self.cached else UNCACHED
        return Setup(rollout=self.rollout, environ=environ, simulator=simulator, **changes)


def on(*flags: str) -> dict[str, int]:
    """These parts on, the others off."""
    return ALL_OFF | dict.fromkeys(flags, 100)


USUAL: Final = Variant("all off, no prompt cache", ALL_OFF, cached=False)
OFF: Final = Variant("all off", ALL_OFF)
QUEUE: Final = Variant("queue alone", on("queue"))
ON: Final = Variant("all on", on(*FLAGS))
SINGLES: Final = tuple(
    Variant(f"{flag} alone", on(flag)) for flag in ("pool", "shared_limits", "backpressure")
)


@attrs.frozen(kw_only=True)
class Ramp:
    """What the ramp showed of a variant."""

    capacity: Capacity
    first: str
    """What broke first, as the watcher of the load saw it; empty: nothing."""
    ttft_ms: tuple[float, float]
    """p50 and p95 while about `ALIKE_WRITERS` asked: the same load for all."""
    handshakes: float
    turns: int
    sockets: float
    """Connections to the provider that were open at once, at the most."""
    cpu_ms: float
    """Of the workers, for each turn."""
    machine: float
    """Of all cores, what was in use in the last seconds."""


@attrs.frozen(kw_only=True)
class Handed:
    """What the class showed of a variant."""

    turn: Use
    """All that the workers did is counted for turns, typing and handing in too."""
    essay: Use
    score_ms: tuple[float, float]
    graded: int
    submissions: int
    errors: int


def price_of(model: str) -> dict[str, Any]:
    """The entry of coach's price list for a model, for the simulated one.

    Raises:
      ConfigurationError: there is none.
    """
    listed = tomllib.loads((files("coach.ops") / "prices.toml").read_text())["price"]
    for price in listed:
        if model in price["models"]:
            return {**price, "models": ["sim-writer-1"]}
    raise ConfigurationError(f"the price list has no model {model}")


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console(width=200) if not sys.stdout.isatty() else Console()
    try:
        prices = read_prices(options.prices)
        figures = trio.run(partial(_measure, options, prices, console))
    except ConfigurationError as error:
        print(f"before_after: {error}", file=sys.stderr)
        return 2
    for line in tables(figures, prices):
        print(line)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1, default=attrs.asdict) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="before_after", description="Coach's parts off, each on, and all on; and the bill."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="all off and all on only; 3 minutes")
    add("--writers", type=count, default=RAMP_WRITERS, metavar="N",
        help=f"at the end of the ramp ({RAMP_WRITERS})")  # fmt: skip
    add("--seed", type=count, default=1, metavar="N", help="same seed, same students (1)")
    add("--prices", type=Path, default=PRICES, metavar="FILE", help="what things cost")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


async def _measure(
    options: argparse.Namespace, prices: Prices, console: Console
) -> dict[str, dict[str, Any]]:
    """Every load on every variant that differs in it."""
    ramp = partial(_ramp, prices, options)
    handed = partial(_class, prices, options)
    over = partial(_limit, prices, options)
    refused = partial(_quota, prices, options)
    quick: bool = options.quick
    figures: dict[str, dict[str, Any]] = {"ramp": {}, "class": {}, "limit": {}, "quota": {}}
    for variant in (OFF, ON) if quick else (USUAL, OFF, *SINGLES, ON):
        figures["ramp"][variant.name] = await _with(variant, ramp, "ramp", console)
    for variant in (OFF, ON) if quick else (USUAL, OFF, QUEUE, ON):
        figures["class"][variant.name] = await _with(variant, handed, "class", console)
    if not quick:
        for variant in (OFF, SINGLES[1]):
            figures["limit"][variant.name] = await _with(variant, over, "limit", console)
        for variant in (OFF, SINGLES[2]):
            figures["quota"][variant.name] = await _with(variant, refused, "quota", console)
    return figures


async def _with(
    variant: Variant,
    load: Callable[[Variant, Path], Any],
    name: str,
    console: Console,
) -> Any:
    began_s = trio.current_time()
    with tempfile.TemporaryDirectory(prefix="coach-before-") as folder:
        found = await load(variant, Path(folder))
    console.print(f"{name}, {variant.name}: {trio.current_time() - began_s:.0f} s", highlight=False)
    return found


# -- the loads -------------------------------------------------------------------------------------


async def _ramp(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> Ramp:
    seconds = RAMP_S / 2 if options.quick else RAMP_S
    plan = Plan(
        writers=options.writers, seconds=LONG_S, ramp_s=seconds, turn_every_s=RAMP_EVERY_S,
        grace_s=0.0, seed=options.seed,
    )  # fmt: skip

    def is_over(samples: Sequence[Sample]) -> bool:
        over = capacity_of(samples, turn_every_s=RAMP_EVERY_S)
        return bool(over.ended_by) or samples[-1].at_s >= seconds

    async with open_stage(variant.setup(prices), folder) as stage:
        seen = await _load(stage, plan, until=is_over)
    tally = seen.report.tally
    verdict = judge(seen.samples, cores=os.cpu_count() or 1)
    return Ramp(
        capacity=capacity_of(seen.samples, turn_every_s=RAMP_EVERY_S),
        first=verdict.first.name if verdict.first is not None else "",
        ttft_ms=ttft_at(seen.samples, ALIKE_WRITERS, turn_every_s=RAMP_EVERY_S),
        handshakes=seen.provider["handshakes"],
        turns=tally.turns,
        sockets=seen.provider["connections_peak"],
        cpu_ms=cpu_s(seen.samples, "worker") / max(1, tally.turns) * 1_000,
        machine=max(sample.machine or 0.0 for sample in seen.samples[-5:]),
    )


async def _class(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> Handed:
    seconds = CLASS_S / 2 if options.quick else CLASS_S
    plan = Plan(
        writers=CLASS_WRITERS, seconds=seconds, ramp_s=seconds / 4, turn_every_s=TURN_EVERY_S,
        grace_s=CLASS_GRACE_S, seed=options.seed,
    )  # fmt: skip
    async with open_stage(variant.setup(prices), folder) as stage:
        seen = await _load(stage, plan)
        sent = _sent(seen.samples)
        spent = {line["reason"]: line for line in await _spent(stage)}
    tally = seen.report.tally
    turns, essays = max(1, tally.turns), max(1, tally.graded)
    whole, graded = spent.get("feedback", {}), spent.get("grading", {})
    return Handed(
        # of whole answers: many are cut here by the end of the class, as they seldom are in an hour
        turn=Use(
            **_tokens(whole, int(whole.get("requests", 1))),
            app_cpu_s=cpu_s(seen.samples, "worker") / turns,
            redis_cpu_s=cpu_s(seen.samples, "redis") / turns,
            bytes_out=sent / turns,
        ),
        essay=Use(**_tokens(graded, essays), app_cpu_s=cpu_s(seen.samples, "grader") / essays),
        score_ms=_percentiles(tally.score_ms),
        graded=tally.graded,
        submissions=tally.submissions,
        errors=tally.errors.total(),
    )


async def _limit(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> dict[str, float]:
    """Tokens let through in less than a minute, by a limit that holds for any minute."""
    plan = Plan(
        writers=LIMIT_WRITERS, seconds=LONG_S, ramp_s=2.0, turn_every_s=LIMIT_EVERY_S,
        grace_s=0.0, seed=options.seed,
    )  # fmt: skip
    environ = {"COACH_LIMITS__ORG_TOKENS_PER_MINUTE": f"{LIMIT_TOKENS}"}
    async with open_stage(variant.setup(prices, workers=3, environ=environ), folder) as stage:
        seen = await _load(stage, plan, until=lambda samples: samples[-1].at_s >= LIMIT_S)
    used = Exposition(seen.metrics).total("coach_tokens_total")
    return {"limit": LIMIT_TOKENS, "used": used, "over": max(0.0, used - LIMIT_TOKENS)}


async def _quota(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> dict[str, Any]:
    plan = Plan(
        writers=QUOTA_WRITERS, seconds=LONG_S, ramp_s=4.0, turn_every_s=QUOTA_EVERY_S,
        grace_s=0.0, seed=options.seed,
    )  # fmt: skip
    # half of a tier: a class of this size wants more than that within half a minute
    quota = {name: most // 2 for name, most in prices.tier.items()}
    async with open_stage(variant.setup(prices, quota=quota), folder) as stage:
        seen = await _load(stage, plan, until=lambda samples: samples[-1].at_s >= QUOTA_S)
    tally = seen.report.tally
    last = seen.samples[-1]  # the cut itself fails turns
    return {
        "429s": seen.provider["rate_limited"],
        "turns": tally.turns,
        "errors": last.errors,
        "error_codes": last.error_codes,
        "queued": last.queued,
    }


async def _load(
    stage: Stage, plan: Plan, until: Callable[[Sequence[Sample]], bool] | None = None
) -> Outcome:
    return await put_load(stage, plan, Console(quiet=True), processes=1, until=until)


# -- what is read ----------------------------------------------------------------------------------


async def _spent(stage: Stage) -> list[dict[str, Any]]:
    """The server's own bill, by reason."""
    await trio.sleep(BOOKED_S)
    claims = {"sub": "bench", "org": "bench", "role": "operator", "exp": 4_000_000_000}
    token = jwt.encode(claims, stage.secret, algorithm="HS256")
    async with httpx.AsyncClient(base_url=stage.url, trust_env=False) as client:
        response = await client.get(
            "/api/costs", params={"by": "reason"}, headers={"Authorization": f"Bearer {token}"}
        )
        response.raise_for_status()
        lines: list[dict[str, Any]] = response.json()["lines"]
        return lines


def _tokens(line: Mapping[str, Any], of: int) -> dict[str, float]:
    """What a line of the bill comes to for each of so many turns or essays."""
    names = ("input", "cache_write", "cache_read", "output", "requests")
    sums = {name: float(line.get(name, 0)) / of for name in names}
    return {**sums, "usd": float(line.get("cost", 0)) / of}


def _sent(samples: Sequence[Sample]) -> float:
    """Bytes that the workers have written by write(2): that is to students; source: proc(5)."""
    total = 0.0
    pids = {usage.pid for usage in samples[-1].usages if usage.role == "worker"}
    for pid in pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            total += float(value) if name == "wchar" else 0.0
    return total


def _percentiles(histogram: Any) -> tuple[float, float]:
    return histogram.percentile(50) or 0.0, histogram.percentile(95) or 0.0


# -- what is said ----------------------------------------------------------------------------------


def tables(figures: Mapping[str, Mapping[str, Any]], prices: Prices) -> list[str]:
    """Markdown, as docs/benchmarks.md has it."""
    heads = (
        f"a ramp, a turn every {RAMP_EVERY_S:.0f} s", "capacity, writers", "ended by",
        "what broke first", f"first token p50 / p95 at {ALIKE_WRITERS} writers, ms",
        "turns", "handshakes",
        "sockets", "worker CPU, ms a turn", "of the machine",
    )  # fmt: skip
    lines = ["", f"| {' | '.join(heads)} |", f"| {'--- | ' * len(heads)}".rstrip()]
    for name, ramp in figures["ramp"].items():
        lines.append(
            f"| {name} | {ramp.capacity} | {ramp.capacity.ended_by or 'the end of the ramp'} |"
            f" {ramp.first or '–'} |"
            f" {ramp.ttft_ms[0]:.0f} / {ramp.ttft_ms[1]:.0f} |"
            f" {ramp.turns} | {ramp.handshakes:.0f} | {ramp.sockets:.0f} |"
            f" {ramp.cpu_ms:.1f} | {ramp.machine:.0%} |"
        )
    lines += [
        "",
        "| a class hands in | graded | time to score p50 / p95, s | errors |",
        "| --- | --- | --- | --- |",
    ]
    for name, handed in figures["class"].items():
        p50, p95 = (value / 1000 for value in handed.score_ms)
        lines.append(
            f"| {name} | {handed.graded} of {handed.submissions} | {p50:.1f} / {p95:.1f} |"
            f" {handed.errors} |"
        )
    for name, found in figures["limit"].items():
        lines.append(
            f"\nLimit of {found['limit']:,} tokens, three workers, {name}:"
            f" {found['used']:,.0f} let through, {found['over']:,.0f} too many."
        )
    for name, found in figures["quota"].items():
        lines.append(
            f"\nMore than the quota, {name}: {found['429s']:.0f} 429s,"
            f" {found['errors']} of {found['turns']} turns failed, {found['queued']} waited."
        )
    return [*lines, *_bills(figures, prices)]


def _bills(figures: Mapping[str, Mapping[str, Any]], prices: Prices) -> list[str]:
    pairs = {name: (handed.turn, handed.essay) for name, handed in figures["class"].items()}
    names = list(pairs)
    bills = {name: bill(turn, essay, prices) for name, (turn, essay) in pairs.items()}
    lines = [
        "",
        f"| ₹ a concurrent writer and hour | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    lines += [
        f"| {line} | {' | '.join(f'{bills[name][line]:.3f}' for name in names)} |" for line in LINES
    ]
    sums = {name: sum(bills[name].values()) for name in names}
    lines.append(f"| all | {' | '.join(f'{sums[name]:.2f}' for name in names)} |")
    carried = [writers_of_tier(*pairs[name], prices) for name in names]
    said = " | ".join(f"{writers:.0f} ({limit})" for writers, limit in carried)
    lines.append(f"| writers that the tier carries | {said} |")
    ratio = sums[names[-1]] / sums[names[0]]
    reference = prices.after_inr / prices.before_inr
    lines.append(
        f"\nFrom ₹{sums[names[0]]:.1f} to ₹{sums[names[-1]]:.1f}, a ratio of {ratio:.2f};"
        f" the reference goes from ₹{prices.before_inr:.0f} to ₹{prices.after_inr:.0f},"
        f" {reference:.2f}. First tokens count as late above {TTFT_MS_MAX:.0f} ms (p95)."
    )
    return lines
