"""The arithmetic of before and after: capacity out of a ramp, the bill of a writer's hour; pure."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import attrs

from coach.errors import ConfigurationError
from coach.simulator.timeline import Sample

TTFT_MS_MAX: Final = 600.0
ERROR_SHARE_MAX: Final = 0.01
LATE_SAMPLES: Final = 3
"""So many in a row, lest a hiccup be taken for an end."""
SETTLED_SAMPLES: Final = 5
"""What the first seconds say of turns a second is not kept."""
TURNS_MIN: Final = 100
"""Fewer say nothing about a share of errors."""
HOURS_A_MONTH: Final = 730
LINES: Final = (
    "feedback tokens",
    "grading tokens",
    "application servers",
    "Redis and queue",
    "bandwidth and monitoring",
)
GB: Final = 1e9


@attrs.frozen(kw_only=True)
class Capacity:
    """How many students a ramp was served for."""

    writers: float
    """Students that ask every `turn_every_s`, by the turns a second that were answered in time."""
    ended_by: str
    """first token, errors, or empty: the ramp ended first, and it is at least so many."""
    at_s: float

    def __str__(self) -> str:
        """As the table has it."""
        return f"{'' if self.ended_by else '≥ '}{self.writers:.0f}"


def capacity_of(samples: Sequence[Sample], *, turn_every_s: float) -> Capacity:
    """The most turns a second before first tokens are late, or more than 1 % of turns fail.

    Turns are counted rather than students: who has just arrived has asked nothing yet.

    Args:
      samples: of a ramp, in their order; `turns_per_s` is over the last few seconds.
      turn_every_s: how often a student asks.
    """
    best, late, turns, before_s = 0.0, 0, 0.0, 0.0
    for number, sample in enumerate(samples):
        turns += sample.turns_per_s * (sample.at_s - before_s)
        before_s = sample.at_s
        is_late = sample.ttft_p95_ms is not None and sample.ttft_p95_ms > TTFT_MS_MAX
        late = late + 1 if is_late else 0
        if turns >= TURNS_MIN and sample.errors > ERROR_SHARE_MAX * turns:
            return Capacity(writers=best * turn_every_s, ended_by="errors", at_s=sample.at_s)
        if late == LATE_SAMPLES:
            return Capacity(writers=best * turn_every_s, ended_by="first token", at_s=sample.at_s)
        if not is_late and number >= SETTLED_SAMPLES:
            best = max(best, sample.turns_per_s)
    at_s = samples[-1].at_s if samples else 0.0
    return Capacity(writers=best * turn_every_s, ended_by="", at_s=at_s)


def ttft_at(
    samples: Sequence[Sample], writers: float, *, turn_every_s: float
) -> tuple[float, float]:
    """First tokens while about so many students asked: medians of the samples' p50 and p95, in ms.

    About: half as many up to as many. (0, 0) where it was never so.
    """
    alike = [
        (sample.ttft_p50_ms, sample.ttft_p95_ms)
        for sample in samples
        if writers / 2 <= sample.turns_per_s * turn_every_s <= writers
        and sample.ttft_p50_ms is not None
        and sample.ttft_p95_ms is not None
    ]
    if not alike:
        return 0.0, 0.0
    return median(p50 for p50, _ in alike), median(p95 for _, p95 in alike)


@attrs.frozen(kw_only=True)
class Use:
    """What one turn, or one essay, has used on the average."""

    input: float = 0.0
    """Tokens, neither read from the cache nor written to it."""
    cache_write: float = 0.0
    cache_read: float = 0.0
    output: float = 0.0
    requests: float = 1.0
    app_cpu_s: float = 0.0
    """Of workers and graders."""
    redis_cpu_s: float = 0.0
    bytes_out: float = 0.0
    """To students."""
    usd: float = 0.0
    """What its tokens cost."""

    @property
    def prompt(self) -> float:
        """Tokens that are sent, cached or not."""
        return self.input + self.cache_write + self.cache_read


def price_tokens(use: Use, price: Mapping[str, Any]) -> Use:
    """The same with `usd`, by an entry of the price list: dollars for a million tokens."""
    usd = (
        use.input * price["input"]
        + use.cache_write * price["cache_write_5m"]
        + use.cache_read * price["cache_read"]
        + use.output * price["output"]
    )
    return attrs.evolve(use, usd=usd / 1e6)


@attrs.frozen(kw_only=True)
class Prices:
    """`before_after_prices.toml`."""

    model: str
    turns_per_hour: float
    essays_per_hour: float
    cpu_use: float
    host_vcpus: float
    host_usd_hour: float
    redis_vcpus: float
    redis_usd_hour: float
    usd_gb: float
    prompt_bytes_per_token: float
    monitoring_usd_host_month: float
    inr: float
    tier: dict[str, int]
    before_inr: float
    after_inr: float


def read_prices(path: Path) -> Prices:
    """The price file.

    Raises:
      ConfigurationError: something is missing or no number above 0, or a part does not say whence
        and when its prices are.
    """
    try:
        found = tomllib.loads(path.read_text())
        for name in ("host", "redis", "bandwidth", "monitoring", "rate", "tier"):
            if not found[name]["source"] or not found[name]["as_of"]:
                raise ConfigurationError(f"{path.name}: [{name}] needs source and as_of")
        prices = _prices_from(found)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except KeyError as error:
        raise ConfigurationError(f"{path.name}: {error.args[0]} is missing") from error
    for name, value in attrs.asdict(prices, recurse=False).items():
        if isinstance(value, int | float) and value <= 0:
            raise ConfigurationError(f"{path.name}: {name} must be above 0")
    return prices


def _prices_from(found: dict[str, Any]) -> Prices:
    host, redis, use = found["host"], found["redis"], found["use"]
    tier = {name: count for name, count in found["tier"].items() if name.endswith("_per_minute")}
    return Prices(
        model=found["tokens"]["model"],
        turns_per_hour=use["turns_per_hour"],
        essays_per_hour=use["essays_per_hour"],
        cpu_use=use["cpu_use"],
        host_vcpus=host["vcpus"],
        host_usd_hour=host["usd_hour"],
        redis_vcpus=redis["vcpus"],
        redis_usd_hour=redis["usd_hour"],
        usd_gb=found["bandwidth"]["usd_gb"],
        prompt_bytes_per_token=found["bandwidth"]["prompt_bytes_per_token"],
        monitoring_usd_host_month=found["monitoring"]["usd_host_month"],
        inr=found["rate"]["inr"],
        tier=tier,
        before_inr=found["reference"]["before_inr"],
        after_inr=found["reference"]["after_inr"],
    )


def bill(turn: Use, essay: Use, prices: Prices) -> dict[str, float]:
    """What a concurrent writer costs in an hour, in rupees, by line."""
    turns, essays = prices.turns_per_hour, prices.essays_per_hour
    app_cores = (turns * turn.app_cpu_s + essays * essay.app_cpu_s) / 3_600 / prices.cpu_use
    redis_cores = (turns * turn.redis_cpu_s + essays * essay.redis_cpu_s) / 3_600 / prices.cpu_use
    hosts = app_cores / prices.host_vcpus + redis_cores / prices.redis_vcpus
    prompts = (turns * turn.prompt + essays * essay.prompt) * prices.prompt_bytes_per_token
    sent = turns * turn.bytes_out + essays * essay.bytes_out + prompts
    usd = (
        turns * turn.usd,
        essays * essay.usd,
        app_cores / prices.host_vcpus * prices.host_usd_hour,
        redis_cores / prices.redis_vcpus * prices.redis_usd_hour,
        sent / GB * prices.usd_gb + hosts * prices.monitoring_usd_host_month / HOURS_A_MONTH,
    )
    return {line: amount * prices.inr for line, amount in zip(LINES, usd, strict=True)}


def writers_of_tier(turn: Use, essay: Use, prices: Prices) -> tuple[float, str]:
    """How many writers an account of the tier carries, and which of its limits ends it."""
    turns, essays = prices.turns_per_hour / 60, prices.essays_per_hour / 60
    asked = {
        "requests_per_minute": turns * turn.requests + essays * essay.requests,
        "input_tokens_per_minute": turns * (turn.input + turn.cache_write)
        + essays * (essay.input + essay.cache_write),
        "output_tokens_per_minute": turns * turn.output + essays * essay.output,
    }
    return min(
        (limit / asked[name], name.removesuffix("_per_minute").replace("_", " "))
        for name, limit in prices.tier.items()
        if asked[name] > 0
    )


def cpu_s(samples: Sequence[Sample], *roles: str) -> float:
    """Seconds of CPU that processes of these roles have used over the samples."""
    total, before_s = 0.0, 0.0
    for sample in samples:
        total += sum(map(sample.cpu, roles)) * (sample.at_s - before_s)
        before_s = sample.at_s
    return total
