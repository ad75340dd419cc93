"""The before-and-after benchmark: its loads, and what is read out of each.

Before is a usual server (peers/usual_server.py); what coach's parts contribute is seen by switching
them off one by one. Six loads, since no single one shows everything:

ramp    feedback alone, asked for so often that turns and not typing fill the machine, by more
        students every second until first tokens are late: capacity, handshakes, sockets
steady  students in the middle of their essays, each asking twice a minute, so many that the server
        is well used: what a core of it carries, typing and whole answers included
class   all write for half a minute and hand in: time to score, CPU of turns and essays
hour    a few write their essays ten times as fast as students do, before a provider that is ten
        times as fast: what turns and essays of an hour are in tokens, history and caches included
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
from statistics import mean, median
from typing import Any, Final

import attrs
import trio
from arguments import count
from before_after_figures import (
    Capacity,
    Prices,
    Use,
    capacity_of,
    cpu_s,
    price_tokens,
    read_prices,
    ttft_at,
)
from before_after_tables import tables
from load_stage import Outcome, Setup, Stage, open_stage, put_load
from rich.console import Console
from usual_stage import Usual

from coach.errors import ConfigurationError
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
RAMP_WRITERS, RAMP_S = 1_000, 64.0
ALIKE_WRITERS: Final = 120
STEADY_S, STEADY_FROM_S = 130.0, 85.0
"""First readings, which are longer than the later ones, are over by then."""
STEADY_BEGUN: Final = 0.4
CLASS_WRITERS, CLASS_S, CLASS_GRACE_S = 120, 40.0, 45.0
HOUR_WRITERS, HOUR_S, HOUR_GRACE_S = 24, 80.0, 20.0
HOUR_SCALE: Final = 10
"""Students and provider: a draft of 390 words takes one minute, not ten, with as many turns."""
HOUR_PROVIDER: Final = (
    *("--ttft-ms", f"{200 / HOUR_SCALE}", "--ttft-jitter-ms", f"{40 / HOUR_SCALE}"),
    *("--events-per-s", f"{10 * HOUR_SCALE}", "--cache-ttl-s", f"{300 / HOUR_SCALE}"),
)
LIMIT_WRITERS, LIMIT_EVERY_S, LIMIT_S = 60, 3.0, 28.0
LIMIT_TOKENS: Final = 200_000
LIMIT_WORKERS: Final = 3
QUOTA_WRITERS, QUOTA_EVERY_S, QUOTA_S = 150, 5.0, 34.0


@attrs.frozen
class Variant:
    """A server: a usual one, or coach with some of its parts."""

    name: str
    rollout: Mapping[str, int] = attrs.field(factory=dict)
    cached: bool = True
    """The provider's prompt cache is used."""
    usual: Usual | None = None
    steady: int = 1_200
    """Students of the steady load: so many that the server's core is well used, and not all of it.
    At less load every server needs more CPU for each message, since a wake-up carries fewer."""

    def setup(self, prices: Prices, **changes: Any) -> Setup:
        """What is put up for it."""
        environ = {"COACH_PRICES__PRICE": json.dumps([price_of(prices.model)])}
        if not self.cached:
            environ |= NO_CACHE
        environ |= changes.pop("environ", {})
        simulator = changes.pop("simulator", ()) + (() if self.cached else UNCACHED)
        return Setup(
            rollout=self.rollout, environ=environ, simulator=simulator, usual=self.usual, **changes
        )


def on(*flags: str) -> dict[str, int]:
    """These parts on, the others off."""
    return ALL_OFF | dict.fromkeys(flags, 100)


USUAL: Final = Variant("usual server", usual=Usual(), steady=450)
PER_CALL: Final = Variant(
    "usual server, client per call", usual=Usual(client_per_call=True), steady=300
)
UNCACHED_OFF: Final = Variant("all off, no prompt cache", ALL_OFF, cached=False)
OFF: Final = Variant("all off", ALL_OFF)
QUEUE: Final = Variant("queue alone", on("queue"))
ON: Final = Variant("all on", on(*FLAGS))
SINGLES: Final = tuple(
    Variant(f"{flag} alone", on(flag)) for flag in ("pool", "shared_limits", "backpressure")
)
LOADS: Final[dict[str, tuple[Variant, ...]]] = {
    "ramp": (USUAL, PER_CALL, UNCACHED_OFF, OFF, *SINGLES, ON),
    "steady": (USUAL, PER_CALL, ON),
    "class": (USUAL, UNCACHED_OFF, OFF, QUEUE, ON),
    "hour": (USUAL, UNCACHED_OFF, ON),
    "limit": (USUAL, OFF, SINGLES[1]),
    "quota": (USUAL, OFF, SINGLES[2]),
}
"""What differs in which load."""
QUICK: Final = {"ramp": (USUAL, ON), "class": (USUAL, ON)}


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
class Steady:
    """What the same students, each asking twice a minute, showed of a variant."""

    cpu_ms: float
    """Of the workers, for a turn and the typing before it."""
    cpu: float
    """Cores that the workers used."""
    writers: float
    deltas: float
    """Messages of text in a turn."""
    ttft_ms: tuple[float, float]
    memory_mb: float
    errors: int

    @property
    def writers_a_core(self) -> float:
        """As many as a core of the server would carry, all of it used."""
        return self.writers / self.cpu


@attrs.frozen(kw_only=True)
class Handed:
    """What the class showed of a variant."""

    turn: Use
    """CPU and bytes. All that the workers did is counted for turns, typing and handing in too."""
    essay: Use
    score_ms: tuple[float, float]
    graded: int
    submissions: int
    errors: int


@attrs.frozen(kw_only=True)
class Hour:
    """What turns and essays of an hour were in tokens, as the provider counted them."""

    turn: Use
    essay: Use
    turns: int
    completed: int
    essays: int
    errors: int


@attrs.frozen(kw_only=True)
class Refused:
    """What a quota that was too small did."""

    rate_limited: float
    """429s that the provider sent."""
    turns: int
    errors: int
    error_codes: dict[str, int]
    queued: int
    ttft_ms: tuple[float, float]
    """p50 and p95 of the turns that were answered at all."""


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
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="before_after", description="A usual server, coach's parts one by one, and the bill."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the usual server and coach only; 4 minutes")
    add("--loads", type=_loads, default=tuple(LOADS), metavar="NAME,…",
        help=f"only these of {', '.join(LOADS)}")  # fmt: skip
    add("--writers", type=count, default=RAMP_WRITERS, metavar="N",
        help=f"at the end of the ramp ({RAMP_WRITERS})")  # fmt: skip
    add("--seed", type=count, default=1, metavar="N", help="same seed, same students (1)")
    add("--prices", type=Path, default=PRICES, metavar="FILE", help="what things cost")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


def _loads(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in LOADS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no load {unknown[0]}; there are {', '.join(LOADS)}")
    return names


async def _measure(
    options: argparse.Namespace, prices: Prices, console: Console
) -> dict[str, dict[str, Any]]:
    """Every load on every variant that differs in it."""
    measures: dict[str, Callable[[Variant, Path], Any]] = {
        "ramp": partial(_ramp, prices, options),
        "steady": partial(_steady, prices, options),
        "class": partial(_class, prices, options),
        "hour": partial(_hour, prices, options),
        "limit": partial(_limit, prices, options),
        "quota": partial(_quota, prices, options),
    }
    figures: dict[str, dict[str, Any]] = {}
    for name, variants in (QUICK if options.quick else LOADS).items():
        if name in options.loads:
            figures[name] = {}
            for variant in variants:
                found = await _with(variant, measures[name], name, console)
                figures[name][variant.name] = found
                if options.json is not None:  # each time: a run is long, and may be cut short
                    text = json.dumps(figures, indent=1, default=attrs.asdict)
                    options.json.write_text(f"{text}\n")
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
        # who came last has asked by then
        return bool(over.ended_by) or samples[-1].at_s >= seconds + 2 * RAMP_EVERY_S

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


async def _steady(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> Steady:
    plan = Plan(
        writers=variant.steady, seconds=LONG_S, ramp_s=25.0, turn_every_s=TURN_EVERY_S,
        begun=STEADY_BEGUN, grace_s=0.0, seed=options.seed,
    )  # fmt: skip
    async with open_stage(variant.setup(prices), folder) as stage:
        seen = await _load(stage, plan, until=lambda samples: samples[-1].at_s >= STEADY_S)
    samples = [sample for sample in seen.samples if sample.at_s >= STEADY_FROM_S]
    seconds = samples[-1].at_s - samples[0].at_s
    cpu = cpu_s(seen.samples, "worker") - cpu_s(seen.samples[: 1 - len(samples)], "worker")
    turns = mean(sample.turns_per_s for sample in samples)
    return Steady(
        cpu_ms=cpu / seconds / turns * 1_000,
        cpu=cpu / seconds,
        writers=mean(sample.writers for sample in samples),
        deltas=mean(sample.events_per_s for sample in samples) / turns,
        ttft_ms=(
            median(sample.ttft_p50_ms or 0.0 for sample in samples),
            median(sample.ttft_p95_ms or 0.0 for sample in samples),
        ),
        memory_mb=samples[-1].memory_mb("worker"),
        errors=samples[-1].errors,
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
    tally = seen.report.tally
    turns, essays = max(1, tally.turns), max(1, tally.graded)
    return Handed(
        turn=Use(
            app_cpu_s=cpu_s(seen.samples, "worker") / turns,
            redis_cpu_s=cpu_s(seen.samples, "redis") / turns,
            bytes_out=tally.bytes / turns,
        ),
        essay=Use(app_cpu_s=cpu_s(seen.samples, "grader") / essays),
        score_ms=_percentiles(tally.score_ms),
        graded=tally.graded,
        submissions=tally.submissions,
        errors=tally.errors.total(),
    )


async def _hour(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> Hour:
    plan = Plan(
        writers=HOUR_WRITERS, seconds=HOUR_S, ramp_s=5.0, time_scale=HOUR_SCALE,
        turn_every_s=TURN_EVERY_S, grace_s=HOUR_GRACE_S, seed=options.seed,
    )  # fmt: skip
    # nobody asks so often in an hour that a user's limit would be met
    environ = {
        "COACH_LIMITS__USER_REQUESTS_PER_MINUTE": "10000",
        "COACH_LIMITS__USER_TOKENS_PER_MINUTE": "10000000",
    }
    setup = variant.setup(prices, simulator=HOUR_PROVIDER, environ=environ)
    if setup.usual is not None:
        setup = attrs.evolve(setup, usual=attrs.evolve(setup.usual, user_requests=10_000))
    async with open_stage(setup, folder) as stage:
        seen = await _load(stage, plan)
    tally, price = seen.report.tally, price_of(prices.model)
    return Hour(
        turn=price_tokens(_tokens(seen.provider, "feedback", tally.turns), price),
        essay=price_tokens(_tokens(seen.provider, "judge", tally.graded), price),
        turns=tally.turns,
        completed=tally.completed,
        essays=tally.graded,
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
    setup = variant.setup(prices, workers=LIMIT_WORKERS, environ=environ)
    if setup.usual is not None:
        setup = attrs.evolve(setup, usual=attrs.evolve(setup.usual, school_tokens=LIMIT_TOKENS))
    async with open_stage(setup, folder) as stage:
        seen = await _load(stage, plan, until=lambda samples: samples[-1].at_s >= LIMIT_S)
    use = _tokens(seen.provider, "feedback", 1)
    used = use.prompt + use.output
    return {"limit": LIMIT_TOKENS, "used": used, "over": max(0.0, used - LIMIT_TOKENS)}


async def _quota(
    prices: Prices, options: argparse.Namespace, variant: Variant, folder: Path
) -> Refused:
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
    return Refused(
        rate_limited=seen.provider["rate_limited"],
        turns=tally.turns,
        errors=last.errors,
        error_codes=last.error_codes,
        queued=last.queued,
        ttft_ms=_percentiles(tally.ttft_ms),
    )


async def _load(
    stage: Stage, plan: Plan, until: Callable[[Sequence[Sample]], bool] | None = None
) -> Outcome:
    return await put_load(stage, plan, Console(quiet=True), processes=1, until=until)


def _tokens(provider: Mapping[str, float], kind: str, of: int) -> Use:
    """What the provider has counted of a kind of requests, for each of so many turns or essays."""
    of = max(1, of)
    return Use(
        input=provider[f"{kind}_input_tokens"] / of,
        cache_write=provider[f"{kind}_cache_write_tokens"] / of,
        cache_read=provider[f"{kind}_cache_read_tokens"] / of,
        output=provider[f"{kind}_output_tokens"] / of,
        requests=provider[f"{kind}_let_in"] / of,
    )


def _percentiles(histogram: Any) -> tuple[float, float]:
    return histogram.percentile(50) or 0.0, histogram.percentile(95) or 0.0
