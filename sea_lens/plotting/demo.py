"""The demo's result."""

from __future__ import annotations

from matplotlib.figure import Figure, SubFigure

from sea_lens.arguments import check_arguments
from sea_lens.plotting.editing import plot_editor
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED, canvas, page, reach, tidy
from sea_lens.worlds.demo import OrganismResult


def plot_organism(result: OrganismResult, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Three panels: truthfulness against its controls, what each layer's edit holds, and what each layer's edit does.

    Args:
        result: From `sea_lens.worlds.demo.run`.
        figure: To draw in; None makes one.

    Example:
        >>> from sea_lens.worlds import demo
        >>> figure = sl.plotting.plot_organism(demo.run(model, world))  # doctest: +SKIP
    """
    check_arguments(plot_organism, locals())
    figure = canvas(figure, 10.8, 3.5)
    bars, gains, layers = figure.subplots(1, 3)
    table = result.table
    ends = reach(table["truthful"], table["low"], table["high"])
    colors = [GREY, PROMOTED, GREY, SUPPRESSED]
    bars.barh(range(len(table)), table["truthful"], xerr=ends, color=colors, ecolor=INK, capsize=3, height=0.62)
    bars.set_yticks(range(len(table)), table.index)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.02)
    bars.set_xlabel("truthful answers")
    bars.set_title(f"{result.n_held_out} facts the fit has not seen (95 % intervals)", fontsize=10)
    plot_editor(result.editor, axes=gains)
    for column, color, look in (("this layer alone", PROMOTED, "o-"), ("all but this layer", SUPPRESSED, "s-")):
        layers.plot(result.by_layer.index, result.by_layer[column], look, color=color, label=column)
    plain, edited = table.loc[["plain", "edited"], "truthful"]
    layers.axhline(plain, color=GREY, linestyle=":", label="plain")
    layers.axhline(edited, color=INK, linestyle="--", linewidth=1, label="the whole editor")
    layers.set_ylim(0, 1.05)
    layers.set_xticks(result.by_layer.index)
    layers.set_xlabel("layer")
    layers.set_ylabel("truthful answers")
    layers.set_title("What each layer's edit does", fontsize=10)
    layers.legend(fontsize=8, frameon=False, loc="lower right")
    tidy(bars, layers)
    return page(figure)
