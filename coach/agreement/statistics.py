"""How far scores agree: quadratic weighted kappa, its interval, and what of it can be had at all.

Pure. Scores are places on a `Scale`: integers from 0 to `steps`. NumPy and scikit-learn are
imported when they are needed, since only `coach[evaluate]` brings them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES: Final = 1_000
CHUNK: Final = 100
"""Resamples at once: with 20,000 essays 5 arrays of 16 MB."""
LEVEL: Final = 0.95
SEED: Final = 20_261_125


@attrs.frozen(kw_only=True)
class Agreement:
    """How far one series of scores agrees with another, mostly a person's."""

    essays: int
    qwk: float
    """Quadratic weighted kappa; NaN where both give everybody the same score."""
    low: float
    high: float
    """Its bootstrap interval (percentiles, LEVEL)."""
    exact: float
    """Share of equal scores."""
    adjacent: float
    """Share of scores that are one step apart at most."""
    bias: float
    """Mean of score minus reference, in percent of the scale: above 0 is too kind."""
    spread: float
    """Standard deviation over the reference's: below 1 shies away from the ends."""


@attrs.frozen(kw_only=True)
class Ceilings:
    """What classical test theory says that can be reached; see `ceilings`."""

    human: float
    """QWK of the two raters with each other."""
    reliability: float
    """Share of one rater's variance that is the essays' own."""
    label_reliability: float
    """The same of the reference: equal to it for one rater's score, higher for the mean of two."""
    perfect: float
    """QWK of a judge without any error with the reference."""
    humanlike: float
    """QWK of a judge who errs as much as one rater."""


def qwk(scores: Sequence[int], reference: Sequence[int], *, steps: int) -> float:
    """Quadratic weighted kappa by scikit-learn.

    All places of the scale are passed as labels: without them scikit-learn counts the distance
    between two scores in labels that occur, and a score that nobody got would shorten it.

    Args:
      scores: of as many essays as `reference`, at least one.
      reference: what they are compared with.
      steps: the highest place of the scale.

    Returns:
      -1..1; NaN where both have one and the same score for everything.
    """
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the NaN, which is documented here
        kappa = cohen_kappa_score(scores, reference, labels=range(steps + 1), weights="quadratic")
    return float(kappa)


def agreement(scores: Sequence[int], reference: Sequence[int], *, steps: int) -> Agreement:
    """All figures of one series of scores; see `Agreement`. Arguments as of `qwk`."""
    import numpy as np

    ours, theirs = np.asarray(scores, float), np.asarray(reference, float)
    off = ours - theirs
    low, high = interval(scores, reference)
    sd = float(theirs.std())
    return Agreement(
        essays=len(ours),
        qwk=qwk(scores, reference, steps=steps),
        low=low,
        high=high,
        exact=float(np.mean(off == 0)),
        adjacent=float(np.mean(abs(off) <= 1)),
        bias=float(100 * off.mean() / steps),
        spread=float(ours.std()) / sd if sd else math.nan,
    )


def interval(
    scores: Sequence[int],
    reference: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """The percentile bootstrap interval of QWK over essays, at LEVEL; the same for the same seed.

    With quadratic weights kappa is `2 cov / (var + var + (mean - mean)²)` (Fleiss and Cohen 1973),
    which is what makes a thousand resamples cheap; `qwk` stays the one that is reported.
    """
    import numpy as np

    ours, theirs = np.asarray(scores, float), np.asarray(reference, float)
    draw = np.random.default_rng(seed)
    kappas = []
    for start in range(0, resamples, CHUNK):
        picks = draw.integers(0, len(ours), (min(CHUNK, resamples - start), len(ours)))
        kappas.append(_kappas(ours[picks], theirs[picks]))
    found = np.concatenate(kappas)
    found = found[np.isfinite(found)]
    if not len(found):
        return math.nan, math.nan
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _kappas(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[Any]:
    """Kappa of each row."""
    import numpy as np

    mean, other = ours.mean(axis=1), theirs.mean(axis=1)
    covariance = (ours * theirs).mean(axis=1) - mean * other
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas: NDArray[Any] = (
            2 * covariance / (ours.var(axis=1) + theirs.var(axis=1) + (mean - other) ** 2)
        )
    return kappas


def ceilings(
    first: Sequence[int], second: Sequence[int], *, steps: int, raters_in_label: int
) -> Ceilings:
    """What QWK a judge can reach where the reference is itself full of error.

    Classical test theory (the idea is Uto's, arXiv 2604.19131; the derivation below is ours): a
    rater's score is X = T + E, the essay's true score and an error without correlation to anything.
    Reliability is ρ = var T / var X, which is the correlation of two such raters. A reference that
    is the mean (or the sum) of k raters has the reliability ρₖ = kρ / (1 + (k - 1)ρ) (Spearman and
    Brown). With quadratic weights QWK = 2 cov / (var + var + (difference of means)²), and all
    covariances here are var T, hence

    * a judge who knows T, against the reference: 2 / (1 + 1/ρₖ) = 2ρₖ / (1 + ρₖ);
    * a judge with one rater's error: 2 / (1/ρ + 1/ρₖ), which is ρ itself where k is 1.

    Both are above the QWK of the two raters, which also loses what their means differ by, except
    for the second where k is 1. The rounding of T to the scale costs a coarse scale some of it.

    Args:
      first: one rater's scores.
      second: the other's, of the same essays; two at least.
      steps: the highest place of the raters' scale.
      raters_in_label: how many raters' scores are in the reference, 1 or 2.
    """
    import numpy as np

    ours, theirs = np.asarray(first, float), np.asarray(second, float)
    scale = float(ours.std() * theirs.std())
    covariance = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean())
    rho = min(1.0, max(0.0, covariance / scale)) if scale else math.nan
    of_label = raters_in_label * rho / (1 + (raters_in_label - 1) * rho)
    return Ceilings(
        human=qwk(first, second, steps=steps),
        reliability=rho,
        label_reliability=of_label,
        perfect=2 * of_label / (1 + of_label),
        humanlike=2 * rho * of_label / (rho + of_label) if rho else rho,
    )


def raters_in(label: Sequence[float], first: Sequence[float], second: Sequence[float]) -> int:
    """How many of two raters' scores are in the reference: 2 where it is their sum or mean.

    Anything else (the higher one, a third person's) counts as one rater's, which states the lower
    ceilings.
    """
    both = [one + other for one, other in zip(first, second, strict=True)]
    if list(label) in (both, [each / 2 for each in both]):
        return 2
    return 1
