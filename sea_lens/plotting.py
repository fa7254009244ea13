"""One matplotlib figure for each result. Figures are returned, never shown."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from sea_lens.editor import Editor
from sea_lens.edits import LowRankEdit
from sea_lens.organism.experiment import OrganismResult
from sea_lens.tuning import Tuning

PROMOTED, SUPPRESSED, GREY, INK = "#1b7f79", "#c8553d", "#9aa0a6", "#222222"


def plot_editor(editor: Editor) -> Figure:
    """What an editor does to activations, layer by layer: the eigenvalues of its edits.

    Directions above zero are promoted and those below suppressed; a layer whose points lie at zero is hardly edited.

    Args:
        editor: Any editor.
    """
    figure, axes = plt.subplots(figsize=(max(4.5, 0.3 * len(editor.layers) + 2), 3.4), layout="constrained")
    _draw_eigenvalues(axes, editor)
    plt.close(figure)
    return figure


def plot_organism(result: OrganismResult) -> Figure:
    """Three panels: truthfulness against its controls, what each layer's edit holds, and what each layer's edit does.

    Args:
        result: From `sea_lens.organism.experiment.run`.
    """
    figure, (bars, eigenvalues, layers) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    table = result.table
    colours = [GREY, PROMOTED, GREY, SUPPRESSED]
    positions = range(len(table))
    bars.barh(positions, table["truthful"], color=colours, height=0.62)
    reach = [table["truthful"] - table["low"], table["high"] - table["truthful"]]
    bars.errorbar(table["truthful"], positions, xerr=reach, fmt="none", ecolor=INK, capsize=3, linewidth=1)
    bars.set_yticks(positions, table.index)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.05)
    bars.set_xlabel("truthful answers")
    bars.set_title(f"{result.plain.n} facts the fit has not seen (95 % intervals)", fontsize=10)

    _draw_eigenvalues(eigenvalues, result.editor)

    for column, colour, marker in (("this layer alone", PROMOTED, "o"), ("all but this layer", SUPPRESSED, "s")):
        layers.plot(result.by_layer.index, result.by_layer[column], marker=marker, color=colour, label=column)
    layers.axhline(result.plain.share, color=GREY, linestyle=":", label="plain")
    layers.axhline(result.edited.share, color=INK, linestyle="--", linewidth=1, label="the whole editor")
    layers.set_ylim(0, 1.05)
    layers.set_xticks(result.by_layer.index)
    layers.set_xlabel("layer")
    layers.set_ylabel("truthful answers")
    layers.set_title("What each layer's edit does", fontsize=10)
    layers.legend(fontsize=8, frameon=False, loc="lower right")
    for axes in (bars, layers):
        axes.spines[["top", "right"]].set_visible(False)
    plt.close(figure)
    return figure


def plot_tuning(tuning: Tuning) -> Figure:
    """Heat maps of the score in percent: explained variance by layers, a panel for each feature map, centring and strength.

    Green settings do better than the unedited model, brown ones worse. The frame marks the best of all.

    Args:
        tuning: From `tune_sea`.
    """
    table = tuning.table.assign(share=tuning.table["explained_variance"].map(str))
    shares = list(
        dict.fromkeys(table.sort_values("explained_variance", key=lambda column: column.map(np.mean))["share"])
    )
    layers = sorted(table["layers"].unique(), key=_layer_order)
    panels = list(table.groupby(["feature_map", "centre", "strength"], sort=False))
    panels.sort(key=lambda panel: (panel[0][0] != "linear", *panel[0]))
    titles = [
        f"{feature_map}\n{'centred' if centre else 'uncentred'}, strength {strength:g}"
        for (feature_map, centre, strength), _ in panels
    ]
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    width = max(0.5 * len(layers), 0.08 * max(len(line) for title in titles for line in title.split("\n")))
    size = (1.6 + columns * (0.3 + width), max(3.2, 0.9 + rows * (0.9 + 0.36 * len(shares))))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharey=True)
    plain = min(max(tuning.unedited.share, 0.01), 0.99)
    norm = TwoSlopeNorm(vmin=0, vcenter=plain, vmax=1)
    for index, (axes, (_, found), title) in enumerate(zip(grid.flat, panels, titles, strict=False)):
        cells = found.pivot_table("score", "share", "layers", "first").reindex(index=shares, columns=layers)
        image = axes.imshow(cells, cmap="BrBG", norm=norm, aspect="auto")
        for (row, column), score in np.ndenumerate(cells.to_numpy()):
            colour = INK if 0.2 < norm(score) < 0.8 else "white"
            text = "" if np.isnan(score) else f"{100 * score:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        if found.index.min() == 0:
            best = (layers.index(table.at[0, "layers"]) - 0.5, shares.index(table.at[0, "share"]) - 0.5)
            axes.add_patch(Rectangle(best, 1, 1, fill=False, edgecolor="black", linewidth=2.2))
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(layers)), layers, rotation=45, ha="right", fontsize=8)
        axes.tick_params(labelbottom=index + columns >= len(panels))
        axes.set_yticks(range(len(shares)), shares, fontsize=8)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("layers edited", fontsize=9)
    figure.supylabel("explained variance", fontsize=9)
    bar = figure.colorbar(image, ax=grid, shrink=0.9, pad=0.01, format=PercentFormatter(1))
    bar.set_ticks([0, plain, 1])
    bar.ax.axhline(plain, color=INK, linewidth=1)
    bar.set_label(f"score ({tuning.unedited.n} questions; {tuning.unedited.share:.0%} unedited)", fontsize=8)
    plt.close(figure)
    return figure


def _layer_order(name: str) -> tuple[int, int, str]:
    """From the first layers alone over all of them to the last alone; sets of another kind after these."""
    side, _, count = name.partition(":")
    if side in ("first", "last"):
        return (0, int(count), "") if side == "first" else (2, -int(count), "")
    return (1, 0, "") if name == "all" else (3, 0, name)


def _draw_eigenvalues(axes: Axes, editor: Editor) -> None:
    axes.axhline(0, color=GREY, linewidth=1)
    for layer, edit in editor.edits.items():
        values = (edit.strength * edit.eigenvalues.float()).tolist() if isinstance(edit, LowRankEdit) else []
        axes.vlines([layer] * len(values), 0, values, color=GREY, linewidth=1)
        axes.scatter(
            [layer] * len(values), values, c=[PROMOTED if v > 0 else SUPPRESSED for v in values], s=28, zorder=3
        )
    axes.set_xlim(editor.layers[0] - 0.6, editor.layers[-1] + 0.6)
    if len(editor.layers) <= 16:
        axes.set_xticks(editor.layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("strength x eigenvalue")
    axes.set_title("Directions promoted (above 0) and suppressed", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
