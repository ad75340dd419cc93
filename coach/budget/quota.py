"""What a request asks of an endpoint, what the endpoint allows, what it says: the pure rules.

Amounts are tuples in the order of `DIMENSIONS`; where they stand for a limit, 0 means none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from .. import config

Lane = Literal["interactive", "submission", "background"]

LANES: Final[tuple[Lane, ...]] = ("interactive", "submission", "background")
"""Most urgent first."""

DIMENSIONS: Final = ("requests", "input", "output", "tokens")
"""What providers count; `tokens` is input and output together."""

Amounts = tuple[int, int, int, int]

NOTHING: Final[Amounts] = (0, 0, 0, 0)
UNSAID: Final[Amounts] = (-1, -1, -1, -1)

REMAINING: Final[Mapping[str, int]] = {
    "anthropic-ratelimit-requests-remaining": 0,
    "anthropic-ratelimit-input-tokens-remaining": 1,
    "anthropic-ratelimit-output-tokens-remaining": 2,
    "x-ratelimit-remaining-requests": 0,
    "x-ratelimit-remaining-tokens": 3,
}
"""Response header -> the dimension of which it says what is left.

Sources: docs.anthropic.com, API, Rate limits, "Response headers"; platform.openai.com, Guides,
Rate limits, "Rate limits in headers". `anthropic-ratelimit-tokens-remaining` is left out: it
repeats whichever limit is the nearest.
"""

DIGITS_MAX: Final = 15
"""Of a number in a header; int() refuses thousands of them with an error."""


@attrs.frozen
class Ask:
    """What one request may use, or has used: tokens. One request is implied."""

    input: int
    """Uncached input and cache writes."""
    output: int

    @property
    def amounts(self) -> Amounts:
        """Per dimension."""
        return (1, self.input, self.output, self.input + self.output)


@attrs.frozen
class Capacity:
    """How much of an endpoint's quota coach uses in any 60 s."""

    quota: Amounts
    """What the provider allows."""
    hard: Amounts
    """What is never exceeded."""
    soft: Amounts
    """From here on requests wait in line."""

    @classmethod
    def of(cls, quota: config.Quota, settings: config.Budget) -> Capacity:
        """The shares `settings` gives of `quota`; at least 1, or a small quota would be none."""
        limits = (
            quota.requests_per_minute,
            quota.input_tokens_per_minute,
            quota.output_tokens_per_minute,
            quota.tokens_per_minute,
        )

        def share(percent: int) -> Amounts:
            a, b, c, d = (
                0 if limit is None else max(1, limit * percent // 100) for limit in limits
            )
            return (a, b, c, d)

        return cls(share(100), share(settings.hard_percent), share(settings.soft_percent))

    def refuses(self, ask: Ask) -> str | None:
        """The name of the dimension whose whole quota the input alone exceeds, or None.

        The input is what it is: such a request can never be answered. The output is only a bound
        that is hardly ever reached, and never makes a request impossible.
        """
        for dimension in (1, 3):
            if 0 < self.quota[dimension] < ask.input:
                return DIMENSIONS[dimension]
        return None

    def spent(self, ask: Ask, used: Ask) -> Amounts:
        """What a request that was sent has spent, however it ended.

        Input and output together is how OpenAI counts, and it does so before it answers: the larger
        of the output's limit and its estimate of the prompt, whatever then is generated, read from
        its cache, or refused (platform.openai.com, Guides, Rate limits). A server that counts what
        was really used may come to more.
        """
        a, b, c, d = used.amounts
        return (a, b, c, max(d, ask.input, ask.output) if self.quota[3] else d)

    def as_said(self, quota: Amounts | None) -> Capacity:
        """With the quota that an operator said, where there is one."""
        if quota is None:
            return self
        a, b, c, d = (said or own for said, own in zip(quota, self.quota, strict=True))
        return attrs.evolve(self, quota=(a, b, c, d))

    def left(self, headers: Mapping[str, str]) -> Amounts:
        """What the provider says is left of the quota.

        Args:
          headers: of a response; names in lower case. Values that are no numbers are ignored.

        Returns:
          Per dimension; -1 where nothing was said, or nothing is limited.
        """
        left = list(UNSAID)
        for name, dimension in REMAINING.items():
            text = headers.get(name, "")
            is_number = text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX
            if is_number and self.quota[dimension]:
                left[dimension] = int(text)
        a, b, c, d = left
        return (a, b, c, d)

    def is_news(self, left: Amounts, spent: Amounts) -> bool:
        """Whether less is left than there would be if only `spent` had been spent."""
        return any(
            0 <= now < quota - used
            for now, quota, used in zip(left, self.quota, spent, strict=True)
        )

    def used(self, spent: Amounts) -> dict[str, float]:
        """Shares of the quota per limited dimension."""
        return {
            name: amount / quota
            for name, amount, quota in zip(DIMENSIONS, spent, self.quota, strict=True)
            if quota
        }


@attrs.frozen
class Outlook:
    """What the line says about waiting."""

    head_s: float | None
    """Until the next may go; None: when something is given back."""
    each_s: float
    """From one admission to the next."""

    def eta_s(self, position: int) -> float:
        """Seconds until `position` (from 1) may go, if nobody more urgent comes."""
        head_s = self.each_s if self.head_s is None else self.head_s
        return head_s + (position - 1) * self.each_s


TELL_S_MIN: Final = 0.2
"""Between two reports to the same student."""
ETA_CHANGE_S: Final = 1.0
ETA_CHANGE_SHARE: Final = 0.25


@attrs.frozen
class Told:
    """What a waiting request was last told, and when (seconds of trio's clock)."""

    position: int
    eta_s: float
    at_s: float

    def is_news(self, position: int, eta_s: float, now_s: float) -> bool:
        """Whether this should be told: the place changed, or the time clearly differs.

        Time that has passed is no news: a promise of 10 s is, 4 s later, one of 6 s.
        """
        if now_s - self.at_s < TELL_S_MIN:
            return False
        if position != self.position:
            return True
        expected_s = max(0.0, self.eta_s - (now_s - self.at_s))
        return abs(eta_s - expected_s) > max(ETA_CHANGE_S, ETA_CHANGE_SHARE * expected_s)
