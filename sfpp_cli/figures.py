"""How the project's figures look: colours, sizes and axes that training curves and evaluation panels share.

It imports matplotlib, so it is imported only by those who plot.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfpp_cli.files import atomic_write

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of the curves, in order: Okabe and Ito's palette, which people with colour blindness can tell apart."""
INK = "#333333"
"""Titles, labels and axes."""
GRID = "#e2e2e2"
"""Grid lines and grey areas."""
COLUMNS = 3
"""Panels in a row, at most."""
PANEL = (4.6, 2.9)
"""Width and height of a panel, in inches."""
DPI = 120
"""Pixels an inch."""


def figure_of(panels: int) -> tuple[Figure, int, int]:
    """An empty figure with room for so many panels, and its (rows, columns)."""
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    size = (PANEL[0] * columns, PANEL[1] * rows)
    return Figure(figsize=size, dpi=DPI, layout="constrained"), rows, columns


def style_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and axis labels, a light grid behind the curves, no frame at the top and right."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(which="both", labelsize=8, colors=INK)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_png(figure: Figure, path: Path) -> None:
    """By matplotlib's Agg, without pyplot and its global state. UserError where `path` cannot be written."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI)
    atomic_write(path, picture.getvalue())
