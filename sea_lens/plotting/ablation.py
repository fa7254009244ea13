"""Which layers carry an effect, how they work together, and what the whole edit does."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sea_lens.analysis.effects import Effects
from sea_lens.analysis.layers import Ablation, Interactions
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED

PAIRS = (("only", "without"), ("first", "last"))
NAMES = {
    "only": "this layer only",
    "without": "all but this layer",
    "first": "the first n layers",
    "last": "the last n layers",
}


def plot_ablation(ablation: Ablation) -> Figure:
    """Two panels: bars of the change with one layer only and with all but one, and curves over the first and last n layers.

    Intervals are bootstrapped over questions; the grey band (or mark) is where the controls fall at the same layers.

    Args:
        ablation: From `ablate_layers`, with at least one of its modes.
    """
    table = ablation.table
    modes = list(table["mode"])
    pairs = [[mode for mode in pair if mode in modes] for pair in PAIRS]
    shown = [pair for pair in pairs if pair] or [["set"]]
    width = 1.6 + len(shown) * max(3.4, 0.34 * table["layer"].nunique())
    figure, panels = plt.subplots(1, len(shown), figsize=(width, 3.8), layout="constrained", sharey=True, squeeze=False)
    legend: dict[str, Artist] = {}
    whole = float(table.loc[table["mode"] == "all", "change"].iloc[0])
    for axes, pair in zip(panels.flat, shown, strict=True):
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axhline(whole, color=INK, linewidth=1, linestyle="--", label="the whole editor")
        if pair[0] in ("only", "without"):
            _bars(axes, ablation, pair)
        elif pair == ["set"]:
            _sets(axes, ablation)
        else:
            _curves(axes, ablation, pair)
        axes.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(label, handle)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    panels.flat[0].set_ylabel(f"change of {ablation.effect.replace('_', ' ')}")
    figure.suptitle(f"{ablation.n} questions, {ablation.confidence:.0%} intervals", fontsize=10)
    plt.close(figure)
    return figure


def _rows(ablation: Ablation, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Layers (or counts), changes and the reach of their intervals."""
    found = ablation.table[ablation.table["mode"] == mode]
    change = found["change"].to_numpy()
    reach = np.stack([change - found["low"].to_numpy(), found["high"].to_numpy() - change]).clip(min=0)
    return found["layer"].to_numpy(dtype=float, na_value=np.nan), change, reach


def _bars(axes: Axes, ablation: Ablation, pair: list[str]) -> None:
    height = 0.38
    for mode in pair:
        layers, change, reach = _rows(ablation, mode)
        shift = 0.0 if len(pair) == 1 else height * (pair.index(mode) - 0.5)
        color, hatch = (PROMOTED, "") if mode == "only" else (SUPPRESSED, "///")
        axes.bar(
            layers + shift,
            change,
            height,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=NAMES[mode],
        )
        axes.errorbar(layers + shift, change, yerr=reach, fmt="none", ecolor=INK, capsize=2, linewidth=0.9)
        if ablation.n_controls:
            found = ablation.table[ablation.table["mode"] == mode]
            low, high = found["control_low"], found["control_high"]
            axes.bar(layers + shift, high - low, 0.1, bottom=low, color=GREY, zorder=3, label=_control_name(ablation))
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: -(-len(layers) // 12)])
    axes.set_xlabel("layer")


def _curves(axes: Axes, ablation: Ablation, pair: list[str]) -> None:
    looks = {"first": (PROMOTED, "o", "-"), "last": (SUPPRESSED, "s", "--")}
    for mode in pair:
        counts, change, reach = _rows(ablation, mode)
        color, marker, line = looks[mode]
        if ablation.n_controls:
            found = ablation.table[ablation.table["mode"] == mode]
            axes.fill_between(
                counts,
                found["control_low"],
                found["control_high"],
                color=GREY,
                alpha=0.35,
                linewidth=0,
                label=_control_name(ablation),
            )
        axes.errorbar(
            counts, change, yerr=reach, color=color, marker=marker, linestyle=line, capsize=2, label=NAMES[mode]
        )
    axes.set_xticks(counts if len(counts) <= 16 else counts[:: -(-len(counts) // 12)])
    axes.set_xlabel("layers edited, n")


def _sets(axes: Axes, ablation: Ablation) -> None:
    found = ablation.table[ablation.table["mode"] == "set"]
    _, change, reach = _rows(ablation, "set")
    places = range(len(found))
    axes.bar(places, change, 0.6, color=PROMOTED)
    axes.errorbar(places, change, yerr=reach, fmt="none", ecolor=INK, capsize=2, linewidth=0.9)
    axes.set_xticks(places, [",".join(map(str, chosen)) for chosen in found["layers"]], rotation=45, ha="right")
    axes.set_xlabel("layers edited")


def _control_name(ablation: Ablation) -> str:
    return f"range of {ablation.n_controls} controls"


def plot_interactions(interactions: Interactions) -> Figure:
    """Heat map over pairs of layers: the change with both less the sum of each alone; the diagonal is each alone.

    Green pairs do more together than apart, brown ones do the same work twice. Framed cells have an interval without zero.

    Args:
        interactions: From `measure_interactions`.
    """
    layers = [int(layer) for layer in interactions.alone.index]
    grid = np.full((len(layers), len(layers)), np.nan)
    sure = np.zeros(grid.shape, dtype=bool)
    for row in interactions.table.itertuples():
        place = layers.index(int(str(row.second))), layers.index(int(str(row.first)))
        grid[place] = row.interaction
        sure[place] = float(str(row.low)) > 0 or float(str(row.high)) < 0
    reach = float(np.nanmax(np.abs(grid))) or 1.0
    side = max(4.2, 0.45 * len(layers) + 1.6)
    figure, axes = plt.subplots(figsize=(side + 1.1, side), layout="constrained")
    norm = TwoSlopeNorm(vmin=-reach, vcenter=0, vmax=reach)
    image = axes.imshow(grid, cmap="BrBG", norm=norm)
    small = len(layers) > 12
    for (row, column), value in np.ndenumerate(grid):
        if row == column:
            alone = f"{interactions.alone.iloc[row]:.2g}"
            axes.text(
                column, row, alone, ha="center", va="center", fontsize=6 if small else 8, color=INK, style="italic"
            )
        elif not np.isnan(value):
            color = INK if 0.2 < norm(value) < 0.8 else "white"
            axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=6 if small else 8, color=color)
            if sure[row, column]:
                frame = Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.2)
                axes.add_patch(frame)
    axes.set_xticks(range(len(layers)), list(map(str, layers)))
    axes.set_yticks(range(len(layers)), list(map(str, layers)))
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(f"interaction: change of {interactions.effect.replace('_', ' ')}", fontsize=8)
    axes.set_title(f"{interactions.n} questions; italic: each layer alone; framed: interval without 0", fontsize=8)
    plt.close(figure)
    return figure


def plot_effects(effects: Effects) -> Figure:
    """A small panel for each effect: its mean unedited and edited, the change with its interval, and that of the controls.

    Args:
        effects: From `measure_effects`.
    """
    table = effects.table
    columns = min(len(table), 4)
    rows = -(-len(table) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(0.6 + 2.5 * columns, 2.3 * rows), layout="constrained", squeeze=False
    )
    for axes, (name, row) in zip(panels.flat, table.iterrows(), strict=False):
        edited, low, high = row["edited"], row["unedited"] + row["low"], row["unedited"] + row["high"]
        axes.axhline(row["unedited"], color=INK, linestyle=":", linewidth=1, label="unedited")
        reach = [[max(0.0, edited - low)], [max(0.0, high - edited)]]
        axes.errorbar(
            [0], [edited], yerr=reach, color=PROMOTED, marker="o", capsize=3, linestyle="none", label="edited"
        )
        if effects.n_controls:
            control = row["unedited"] + row["control"]
            spread = [[row["control"] - row["control_low"]], [row["control_high"] - row["control"]]]
            label = f"{effects.n_controls} controls (range)"
            axes.errorbar([1], [control], yerr=spread, color=GREY, marker="s", capsize=3, linestyle="none", label=label)
        axes.set_xlim(-0.7, 1.7 if effects.n_controls else 0.7)
        axes.set_xticks([0, 1] if effects.n_controls else [0], ["edited", "controls"][: 1 + bool(effects.n_controls)])
        axes.set_title(str(name).replace("_", " "), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels.flat)[len(table) :]:
        axes.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(f"Means over {effects.n} questions; {effects.confidence:.0%} intervals of the change", fontsize=10)
    plt.close(figure)
    return figure
