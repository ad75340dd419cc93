"""How a student types an essay: pure, seeded, and ending in exactly the essay's text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import attrs

PAUSE_S: Final = (0.3, 2.0)
"""Range of the pauses between splices, seconds."""
THINK_S: Final = (1.5, 3.0)
"""Range of the pauses after which a student looks at the feedback, seconds."""
TYPO_CHANCE: Final = 0.15
"""Chance that a splice holds a slip which a later one corrects."""
_UNHURRIED_S: Final = 20.0
"""An essay typed in less time than this has its pauses shortened in proportion."""

Splice = tuple[int, int, str]
"""Replace `delete` UTF-16 units at `at` by `insert`."""


@attrs.frozen
class Typed:
    """After `pause_s` seconds these splices are made."""

    pause_s: float
    splices: tuple[Splice, ...]
    text: str
    """The whole draft after them."""


@attrs.frozen
class Thought:
    """The student stops typing for `pause_s` seconds and then wants feedback."""

    pause_s: float


def keystrokes(
    text: str,
    *,
    duration_s: float,
    think_every_s: float,
    rng: random.Random,
    time_scale: float = 1.0,
    begun: int = 0,
) -> Iterator[Typed | Thought]:
    """Type `text` once in about `duration_s` seconds.

    Args:
      text: the essay; the last `Typed` carries exactly it.
      duration_s: sum of all pauses, seconds, > 0; kept within about 10 %.
      think_every_s: mean distance of thoughts, seconds, > 0. One always comes last.
      rng: source of randomness; a seed replays the same typing.
      time_scale: how much faster the student lives; the other two are in the time that is lived.
      begun: so many characters are there already, and are put in at once.
    """
    haste = min(1.0 / time_scale, duration_s / _UNHURRIED_S)
    thoughts = max(1.0, duration_s / think_every_s)
    thinking_s = thoughts * haste * sum(THINK_S) / 2
    chars_per_s = (len(text) - begun) / max(duration_s - thinking_s, duration_s / 4)

    written, rest = text[:begun], text[begun:]
    if written:
        yield Typed(PAUSE_S[0] * haste, ((0, 0, written),), written)
    slip: tuple[int, str, str] | None = None  # index in `written`, what stands there, what should
    until_thought_s = think_every_s * rng.uniform(0.6, 1.4)
    while rest or slip:
        pause_s = rng.uniform(*PAUSE_S) * haste
        splices: list[Splice] = []
        if slip and (not rest or rng.random() < 0.4):
            index, wrong, right = slip
            splices.append((_units(written[:index]), _units(wrong), right))
            written = written[:index] + right + written[index + len(wrong) :]
            slip = None
        if rest:
            size = max(1, round(pause_s * chars_per_s))
            chunk, rest = rest[:size], rest[size:]
            typed = chunk
            if slip is None and rng.random() < TYPO_CHANCE:
                typed, slip = _slipped(chunk, len(written), rng)
            splices.append((_units(written), 0, typed))
            written += typed
        yield Typed(pause_s, tuple(splices), written)
        until_thought_s -= pause_s
        if until_thought_s <= 0 and rest:
            pause_s = rng.uniform(*THINK_S) * haste
            until_thought_s = think_every_s * rng.uniform(0.6, 1.4) - pause_s
            yield Thought(pause_s)
    yield Thought(rng.uniform(*THINK_S) * haste)


def _slipped(
    chunk: str, offset: int, rng: random.Random
) -> tuple[str, tuple[int, str, str] | None]:
    """Leave out, double or swap letters; return what is typed and what must be put right."""
    if len(chunk) < 4:
        return chunk, None
    at = rng.randrange(len(chunk) - 1)
    right = chunk[at : at + 2]
    wrong = rng.choice((right[0], right[0] * 2 + right[1], right[::-1]))
    return chunk[:at] + wrong + chunk[at + 2 :], (offset + at, wrong, right)


def _units(text: str) -> int:
    """Length in UTF-16 code units, in which the protocol counts."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
