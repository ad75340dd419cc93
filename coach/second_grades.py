"""What it would cost to have essays graded again: for `coach regrade` and educators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .errors import ConfigurationError
from .grading import OUTPUT_TOKENS_USUAL, Usage
from .providers import estimate_tokens, judge_prompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import config
    from .grading import Chosen, Rubric
    from .ops import Prices


@attrs.frozen(kw_only=True)
class RegradeEstimate:
    """What a bulk job asks for, and what that may cost."""

    essays: int
    answers: int
    """Of judges; repairs and stand-ins come on top."""
    input: int
    output: int
    nano: int
    """What has a price, in nano-dollars."""
    unpriced: tuple[str, ...]
    """Providers whose price nobody knows."""
    measured: int
    """Essays that are counted by what their first grade used, not by the length of their text."""

    def as_json(self, prices: Prices, currency: str) -> dict[str, object]:
        """For programs."""
        return {
            "essays": self.essays,
            "answers": self.answers,
            "input_tokens": self.input,
            "output_tokens": self.output,
            "cost": f"{prices.from_nano(self.nano, currency):.4f}",
            "currency": currency,
            "unpriced": self.unpriced,
            "measured": self.measured,
        }


def estimate_regrade(
    chosen: Sequence[Chosen],
    settings: config.Settings,
    rubric: Rubric,
    prices: Prices,
    *,
    batch: bool = False,
) -> RegradeEstimate:
    """What it may cost to have a fresh panel read these essays; nothing is asked.

    An essay with a grade counts with what a judge used for that on average. One without counts as
    if nothing of its prompt were cached, which is too much, with OUTPUT_TOKENS_USUAL of output.
    Each seat of the panel has the price of the provider that it begins with; with `batch` that of
    its batches.

    Raises:
      ConfigurationError: there is no provider.
    """
    providers = settings.provider
    if not providers:
        raise ConfigurationError("no [[provider]] is configured: nobody would be asked")
    seats = [providers[(seat + 1) % len(providers)] for seat in range(settings.grading.judges)]
    around = judge_prompt(
        rubric=rubric.as_text(),
        assignment="",
        essay="",
        schema=rubric.schema(),
        output_tokens_max=OUTPUT_TOKENS_USUAL,
    ).size()
    input_, output, nano, measured = 0, 0, 0, 0
    found = [prices.find(provider=seat.name, model=seat.model) for seat in seats]
    for essay in chosen:
        if essay.grade is None:
            usage = Usage(input=estimate_tokens(around + essay.bytes), output=OUTPUT_TOKENS_USUAL)
        else:
            usage = _of_one(essay.grade.usage, max(1, essay.grade.judges))
            measured += 1
        for price in found:
            if price is not None:
                nano += price.nano(usage, cache=settings.cache.ttl, batch=batch)
        input_ += len(seats) * (usage.input + usage.cache_write + usage.cache_read)
        output += len(seats) * usage.output
    missing = {seat.name for seat, price in zip(seats, found, strict=True) if price is None}
    return RegradeEstimate(
        essays=len(chosen),
        answers=len(chosen) * len(seats),
        input=input_,
        output=output,
        nano=nano,
        unpriced=tuple(sorted(missing)),
        measured=measured,
    )


def _of_one(usage: Usage, judges: int) -> Usage:
    return Usage(**{name: -(-tokens // judges) for name, tokens in attrs.asdict(usage).items()})
