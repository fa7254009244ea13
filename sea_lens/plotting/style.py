"""What all figures share: colors that color-blind readers and printers tell apart, canvases, and heat maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib import style as sheets
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

PROMOTED, SUPPRESSED, GREY, INK = "#0f5f5a", "#d96c47", "#a6acb2", "#222222"
VIOLET, GOLD = "#7b5ea7", "#e2b54f"
"""From dark to light: INK, PROMOTED, VIOLET, SUPPRESSED, GREY, GOLD, so that a gray print keeps them apart."""
WARNING = "#a3401f"
"""The hue of SUPPRESSED, dark enough for text."""
SHEET = Path(__file__).with_name("sea_lens.mplstyle")
COLUMNS = 4
MOST_PANELS = 8


class Drawing(Figure):
    """A matplotlib figure that notebooks show without pyplot, and whose fonts are embedded as Type 42."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Saves it as matplotlib does."""
        with matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):  # read when a figure is saved
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        return buffer.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Figures drawn inside look like this package's: colors, sizes, line styles, and fonts of Type 42 when saved.

    The style sheet is `sea_lens/plotting/sea_lens.mplstyle`. What `sl.plotting` draws needs it only where axes of your own
    are to match.

    Example:
        >>> from matplotlib import pyplot
        >>> with sl.plotting.styled():
        ...     figure, axes = pyplot.subplots()
        >>> axes.spines["top"].get_visible()
        False
        >>> pyplot.close(figure)
    """
    with sheets.context(SHEET):
        yield


def canvas(given: Figure | SubFigure | None, width: float, height: float) -> Figure | SubFigure:
    """The figure given, or a new one of this size in inches."""
    return Drawing(figsize=(width, height), layout="constrained") if given is None else given


def one_panel(given: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or the only ones of a new figure."""
    return canvas(None, width, height).subplots() if given is None else given


def panels(
    given: Figure | SubFigure | None, count: int, width: float, height: float, *, share_y: bool = False
) -> tuple[Figure | SubFigure, list[Axes]]:
    """A figure with this many panels of this size, at most four side by side."""
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = canvas(given, 0.6 + width * columns, 0.6 + height * rows)
    found = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for spare in found[count:]:
        spare.remove()
    return figure, found[:count]


def page(drawn: Axes | Figure | SubFigure) -> Figure:
    """The whole figure that axes or a part of a figure belong to."""
    figure = drawn.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def tidy(*drawn: Axes) -> None:
    """Takes away the frame's upper and right side."""
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)


def legend_below(figure: Figure | SubFigure, drawn: Iterable[Axes], columns: int = 3) -> None:
    """One legend for several axes, each label once."""
    entries = {
        label: handle
        for axes in drawn
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        if label
    }
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )


def in_words(name: object) -> str:
    """A metric's or effect's name as a title."""
    return " ".join(word.upper() if word in ("kl", "nll") else word for word in str(name).split("_"))


def tick_layers(axes: Axes, layers: Sequence[int | float]) -> None:
    """Marks layers on the x axis, some of them where there are many."""
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: -(-len(layers) // 12)])


def reach(
    middle: Iterable[float],
    low: Iterable[float],
    high: Iterable[float],
    least: float | Sequence[float] = -np.inf,
    most: float | Sequence[float] = np.inf,
) -> Float[np.ndarray, "two n"]:
    """Lengths of error bars, cut where values cannot be; 0 where an end is unknown."""
    points = np.asarray(list(middle), dtype=float)
    first = np.maximum(np.asarray(list(low), dtype=float), np.asarray(least))
    last = np.minimum(np.asarray(list(high), dtype=float), np.asarray(most))
    lengths = np.stack([points - first, last - points])
    return np.asarray(np.nan_to_num(lengths).clip(min=0))


def is_cut(
    low: Iterable[float],
    high: Iterable[float],
    least: float | Sequence[float] = -np.inf,
    most: float | Sequence[float] = np.inf,
) -> bool:
    """Whether `reach` cuts an interval, so that a figure can say so."""
    first, last = (np.asarray(list(ends), dtype=float) for ends in (low, high))
    return bool((first < np.asarray(least) - 1e-9).any() or (last > np.asarray(most) + 1e-9).any())


def heat_map(
    axes: Axes,
    values: Float[np.ndarray, "rows columns"],
    norm: Normalize,
    texts: Sequence[Sequence[str]],
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    colors: str | Colormap = "BrBG",
    framed: Iterable[tuple[int, int]] = (),
) -> AxesImage:
    """Cells with their texts, black or white by how dark a cell is; frames around some."""
    image = axes.imshow(values, cmap=colors, norm=norm, aspect="auto")
    size = 6 if max(np.shape(values)) > 12 else 8
    for (row, column), value in np.ndenumerate(np.asarray(values, dtype=float)):
        dark = np.dot(image.cmap(norm(value))[:3], (0.3, 0.59, 0.11)) < 0.5 and not np.isnan(value)
        ink = "white" if dark else INK
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=size, color=ink)
    for row, column in framed:
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.8))
    axes.set_xticks(range(len(columns)), [str(name) for name in columns])
    axes.set_yticks(range(len(rows)), [str(name) for name in rows])
    axes.tick_params(labelsize=8)
    return image
