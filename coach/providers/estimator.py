"""How many tokens a prompt will be, before anybody has counted: learnt from what was counted.

What is learnt is tokens per byte of UTF-8, and not per character: English prose has some 4.4 bytes
a token, Russian about 5, Chinese and Japanese about 2.5, where characters a token differ fivefold.
The mean and the mean deviation follow the last few dozen answers, each with the weight `WEIGHT`;
cached input was counted by the provider as any other and is part of it.

One estimator an endpoint and process. It begins on the safe side.
"""

from __future__ import annotations

import math
from typing import Final

from .records import BYTES_PER_TOKEN, TOKENS_AROUND

WEIGHT: Final = 0.05
"""Of the newest answer; half of what is known is that of the last 14."""
TOKENS_PER_BYTE_MIN: Final = 1 / 8
TOKENS_PER_BYTE_MAX: Final = 1.0
"""Nobody's tokenizer is beyond these; a provider that says so counts something else as well."""
DEVIATIONS: Final = 2.5
"""Above the mean; of a normal distribution two standard deviations, so that 98 % fit."""
SIZE_MIN: Final = 400
"""Shorter prompts say more about what stands around the text."""


class Estimator:
    """What a model makes of text, in tokens."""

    def __init__(self) -> None:
        """Know nothing: `most` is high and `least` is low."""
        self._mean: float | None = None
        self._deviation = 0.0

    def most(self, size: int) -> int:
        """Tokens that a prompt of `size` bytes of UTF-8 will hardly exceed."""
        if self._mean is None:
            return math.ceil(size / BYTES_PER_TOKEN) + TOKENS_AROUND
        return math.ceil(size * _bounded(self._mean + self._spread)) + TOKENS_AROUND

    def least(self, size: int) -> int:
        """Tokens that it will hardly fall below."""
        if self._mean is None:
            return math.floor(size * TOKENS_PER_BYTE_MIN)
        return math.floor(size * _bounded(self._mean - self._spread))

    def learn(self, size: int, tokens: int) -> None:
        """A prompt of `size` bytes was `tokens` tokens, however the provider came by them."""
        if size < SIZE_MIN:
            return
        rate = _bounded((tokens - TOKENS_AROUND) / size)
        if self._mean is None:
            self._mean = rate
            self._deviation = abs(1 / BYTES_PER_TOKEN - rate) / 2
            return
        error = rate - self._mean
        self._mean += WEIGHT * error
        self._deviation += WEIGHT * (abs(error) - self._deviation)

    @property
    def _spread(self) -> float:
        return DEVIATIONS * self._deviation


def _bounded(rate: float) -> float:
    return min(max(rate, TOKENS_PER_BYTE_MIN), TOKENS_PER_BYTE_MAX)
