"""Line charts as SVG text, for a page that needs nothing else: no script, no other file; pure.

Colours are the page's CSS variables, so that a chart is light or dark as the page is. Behind every
chart stands, as a grey hill with a scale of its own, how many writers there were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

import attrs

Points = Sequence[tuple[float, float | None]]

WIDTH: Final = 560
HEIGHT: Final = 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 44, 12, 26
_TICKS: Final = 4
TOP_LEAST: Final = 0.01
"""The end of a scale of nothing but zeros, and of a share of next to nothing."""
COLOURS: Final = 5
"""Variables `--line-1` … that a page defines."""


@attrs.frozen
class Series:
    """One line."""

    name: str
    points: Points
    """Seconds and a value; a gap where it is None."""


@attrs.frozen(kw_only=True)
class Chart:
    """One picture."""

    title: str
    unit: str
    series: Sequence[Series]
    limit: float | None = None
    """From where on it counts as reached: a dashed line."""

    @property
    def shown(self) -> list[Series]:
        """The lines that have a point."""
        return [each for each in self.series if any(value is not None for _, value in each.points)]


def svg(chart: Chart, writers: Points, *, mark_s: float | None = None) -> str:
    """Draw a chart.

    Args:
      chart: what.
      writers: how many there were, for the hill behind.
      mark_s: a moment to mark, if any.
    """
    last_s = max([1.0, *(at_s for at_s, _ in writers)])
    values = [value for each in chart.shown for _, value in each.points if value is not None]
    top = _nice(max([TOP_LEAST, *values]))
    if chart.limit is not None and chart.limit <= top * 2:
        top = _nice(max(top, chart.limit))
    most = _nice(max([1.0, *(value or 0.0 for _, value in writers)]))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        _hill(writers, last_s, most),
    ]
    for number in range(_TICKS + 1):
        y, share = _y(number / _TICKS, 1.0), number / _TICKS
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>',
            (
                f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">'
                f"{_short(top * share)}</text>"
            ),
            (
                f'<text class="tick faint" x="{WIDTH - _RIGHT + 6}" y="{y + 4}">'
                f"{_short(most * share)}</text>"
            ),
        ]
    parts += [
        f'<text class="tick" x="{_x(at_s, last_s)}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{at_s} s</text>"
        for at_s in _moments(last_s)
    ]
    if chart.limit is not None and chart.limit <= top:
        y = _y(chart.limit, top)
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
    if mark_s is not None:
        x = _x(mark_s, last_s)
        parts.append(f'<line class="mark" x1="{x}" x2="{x}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    for number, each in enumerate(chart.shown):
        path = _path(each.points, last_s, top)
        parts.append(f'<path class="line line-{number % COLOURS + 1}" d="{path}"/>')
    return "".join([*parts, "</svg>"])


def _path(points: Points, last_s: float, top: float) -> str:
    """A line with gaps; a point that stands alone is a dot of the line's width."""
    steps, pen_down = [], False
    for at_s, value in points:
        if value is not None:
            where = f"{_x(at_s, last_s)} {_y(value, top)}"
            steps.append(f"L{where}" if pen_down else f"M{where}h0")
        pen_down = value is not None
    return "".join(steps)


def _hill(writers: Points, last_s: float, most: float) -> str:
    known = [(at_s, value) for at_s, value in writers if value is not None]
    if not known:
        return ""
    ground = HEIGHT - _BOTTOM
    line = "".join(f"L{_x(at_s, last_s)} {_y(value, most)}" for at_s, value in known)
    first, last = _x(known[0][0], last_s), _x(known[-1][0], last_s)
    return f'<path class="hill" d="M{first} {ground}{line}L{last} {ground}Z"/>'


def _x(at_s: float, last_s: float) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * at_s / last_s, 1)


def _y(value: float, top: float) -> float:
    return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(1.0, value / top), 1)


def _moments(last_s: float) -> range:
    """Whole seconds, some five of them."""
    return range(0, int(last_s) + 1, max(1, round(_nice(last_s / 5))))


def _nice(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 6, 8 times a power of ten: ends of scales that can be read."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 6, 8, 10) if step * power >= value)


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1e6:.3g}M"
    if value >= 10_000:
        return f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
