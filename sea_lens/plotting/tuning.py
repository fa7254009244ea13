"""The landscape of settings that a tuning tried."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from sea_lens.methods.tune import Tuning
from sea_lens.plotting.style import INK


def plot_tuning(tuning: Tuning) -> Figure:
    """Heat maps of the score in percent: explained variance by layers, a panel for each feature map, centering and strength.

    Green settings do better than the unedited model, brown ones worse. The frame marks the best of all.

    Args:
        tuning: From `tune_sea`.
    """
    table = tuning.table.assign(share=tuning.table["explained_variance"].map(str))
    shares = list(
        dict.fromkeys(table.sort_values("explained_variance", key=lambda column: column.map(np.mean))["share"])
    )
    layers = sorted(table["layers"].unique(), key=_layer_order)
    panels = list(table.groupby(["feature_map", "center", "strength"], sort=False))
    panels.sort(key=lambda panel: (panel[0][0] != "linear", *panel[0]))
    titles = [
        f"{feature_map}\n{'centered' if center else 'uncentered'}, strength {strength:g}"
        for (feature_map, center, strength), _ in panels
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
            color = INK if 0.2 < norm(score) < 0.8 else "white"
            text = "" if np.isnan(score) else f"{100 * score:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
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
