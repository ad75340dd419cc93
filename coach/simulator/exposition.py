"""Metrics in Prometheus' text format, as a scraper reads them; pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

_LINE: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels = tuple[tuple[str, str], ...]


class Exposition:
    """One scrape: values by name and labels."""

    def __init__(self, text: str = "") -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        for line in text.splitlines():
            found = None if line.startswith("#") else _LINE.match(line)
            if found is not None:
                labels = tuple(sorted(_LABEL.findall(found[2] or "")))
                try:
                    self._values.setdefault(found[1], {})[labels] = float(found[3])
                except ValueError:
                    continue

    def values(self, name: str) -> Mapping[Labels, float]:
        """All of one name."""
        return self._values.get(name, {})

    def total(self, name: str, **labels: str) -> float:
        """The sum of all with these labels; 0.0 where there is none."""
        return self._combined(sum, name, labels)

    def largest(self, name: str, **labels: str) -> float:
        """The largest of all with these labels; 0.0 where there is none."""
        return self._combined(lambda values: max(values, default=0.0), name, labels)

    def _combined(
        self, combine: Callable[[list[float]], float], name: str, labels: Mapping[str, str]
    ) -> float:
        wanted = set(labels.items())
        return combine(
            [value for found, value in self.values(name).items() if wanted <= set(found)]
        )

    def quantile(self, name: str, share: float, earlier: Exposition) -> float | None:
        """A histogram's quantile since an earlier scrape, over all labels; None: nothing was seen.

        Right within a bucket, of which the upper end is told; of the last one, its lower end.
        """
        counts: dict[float, float] = {}
        for scrape, sign in ((self, 1.0), (earlier, -1.0)):
            for labels, value in scrape.values(f"{name}_bucket").items():
                bound = float(dict(labels)["le"])
                counts[bound] = counts.get(bound, 0.0) + sign * value
        whole = counts.get(math.inf, 0.0)
        if whole <= 0:
            return None
        bound = next(bound for bound in sorted(counts) if counts[bound] >= share * whole)
        return min(bound, max(each for each in counts if each < math.inf))
