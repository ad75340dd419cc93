"""The confusion plot: people's scores against the panel's, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Report
    from .scale import Scale

CELLS_MAX: Final = 13
"""Of a side; a longer scale is shown in groups of scores."""
INK: Final = "#1d3557"


def draw_confusion(report: Report, path: Path, *, title: str) -> None:
    """Write a PNG. Takes a second, and blocks.

    Args:
      report: whose widest panel is drawn.
      path: where to.
      title: above it.

    Raises:
      OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    labels, table = grouped(report.scale, report.confusion)
    size = len(labels)
    figure = Figure(figsize=(6.4, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    most = max(1, *map(max, table))
    axes.imshow(table, origin="lower", cmap="Blues", vmin=0, vmax=most)
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            if count:
                color = "white" if count > 0.6 * most else INK
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    for place in range(size):  # where both say the same
        corner = (place - 0.5, place - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=0.8))
    axes.set_xticks(range(size), labels)
    axes.set_yticks(range(size), labels)
    axes.set_xlabel(f"panel ({', '.join(report.panels[-1].judges)})")
    axes.set_ylabel("people")
    found = report.panels[-1].all
    figure.suptitle(title, color=INK)
    axes.set_title(
        f"{found.essays} essays, as judged: QWK {found.qwk:.2f} "
        f"({found.low:.2f} to {found.high:.2f}), exact {found.exact:.0%}, "
        f"adjacent {found.adjacent:.0%}",
        fontsize=9,
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=10 if size <= CELLS_MAX // 2 else 7)
    figure.savefig(path, format="png")


def grouped(scale: Scale, confusion: Sequence[Sequence[int]]) -> tuple[list[str], list[list[int]]]:
    """The table with at most CELLS_MAX rows and columns, and what they are called."""
    width = -(-len(confusion) // CELLS_MAX)
    starts = range(0, len(confusion), width)
    table = [
        [
            sum(sum(row[column : column + width]) for row in confusion[start : start + width])
            for column in starts
        ]
        for start in starts
    ]
    labels = []
    for start in starts:
        last = min(start + width, len(confusion)) - 1
        low, high = scale.low + start * scale.step, scale.low + last * scale.step
        labels.append(f"{low:g}" if low == high else f"{low:g}–{high:g}")
    return labels, table
