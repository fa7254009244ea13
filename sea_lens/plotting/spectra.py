"""What an edit is made of: spectra, angles, the tokens its directions say, and massive activations."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from sea_lens.analysis.massive import MassiveActivations
from sea_lens.analysis.subspaces import Spectra
from sea_lens.analysis.tokens import Directions
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED

SIDES = (("positive", PROMOTED, "o", "-"), ("negative", SUPPRESSED, "s", "--"))
MOST_PANELS, COLUMNS = 8, 4


def plot_spectra(spectra: Spectra) -> Figure:
    """Explained variance by rank of both cross-covariances, a panel a layer (eight at most); marks: ranks kept.

    Args:
        spectra: From `measure_spectra`.
    """
    layers = spectra.table.index.tolist()
    if len(layers) > MOST_PANELS:
        layers = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, MOST_PANELS)]
    columns = min(COLUMNS, len(layers))
    rows = -(-len(layers) // columns)
    size = (0.8 + 2.5 * columns, 0.7 + 2.3 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, layer in zip(panels.flat, layers, strict=False):
        for side, color, marker, line in SIDES:
            rank = int(str(spectra.table.at[layer, f"rank_{side}"]))
            chosen = spectra.curves[(spectra.curves["layer"] == layer) & (spectra.curves["side"] == side)]
            axes.plot(chosen["rank"], chosen["explained"], color=color, linestyle=line, label=side)
            kept = chosen[chosen["rank"] == rank]
            axes.plot(kept["rank"], kept["explained"], color=color, marker=marker, linestyle="none")
            axes.annotate(
                f"{rank}",
                (rank, float(kept["explained"].iloc[0])),
                fontsize=8,
                color=color,
                xytext=(5, -10 if side == "positive" else 4),
                textcoords="offset points",
            )
        axes.set_xscale("log")
        axes.set_title(f"layer {layer}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels.flat)[len(layers) :]:
        axes.set_visible(False)
    panels.flat[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel("rank", fontsize=9)
    figure.supylabel("explained variance", fontsize=9)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    plt.close(figure)
    return figure


def plot_principal_angles(spectra: Spectra) -> Figure:
    """Two panels by layer: the principal angles between the subspaces, and how far the edit moves activations.

    Angles at zero edit nothing; a mark at 90 degrees stands for a direction that only the larger subspace has.

    Args:
        spectra: From `measure_spectra`.
    """
    table = spectra.table
    width = max(4.0, 0.22 * len(table) + 2.5)
    figure, (angles, moved) = plt.subplots(1, 2, figsize=(2 * width, 3.6), layout="constrained")
    angles.scatter(spectra.angles["layer"], spectra.angles["degrees"], color=PROMOTED, s=26, label="principal angle")
    unequal = table[table["rank_positive"] != table["rank_negative"]]
    if len(unequal):
        angles.scatter(unequal.index, [90] * len(unequal), color=SUPPRESSED, marker="s", s=24, label="one side only")
    angles.set_ylim(-3, 97)
    angles.set_yticks([0, 30, 60, 90])
    angles.set_ylabel("degrees")
    angles.set_title("Angles between positive and negative subspace", fontsize=10)
    looks = {"neutral": (INK, "^", ":"), "positive": (PROMOTED, "o", "-"), "negative": (SUPPRESSED, "s", "--")}
    for side, (color, marker, line) in looks.items():
        moved.plot(
            table.index, table[f"moved_{side}"], color=color, marker=marker, linestyle=line, label=f"{side} moved"
        )
    moved.plot(table.index, 1 - table["cosine_neutral"], color=GREY, marker="x", label="neutral, 1 - cosine")
    moved.set_ylim(bottom=0)
    moved.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    moved.set_ylabel("share of the norm")
    moved.set_title("How far the edit moves activations", fontsize=10)
    for axes in (angles, moved):
        axes.set_xlabel("layer")
        axes.set_xticks(table.index if len(table) <= 16 else table.index[:: -(-len(table) // 12)])
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    plt.close(figure)
    return figure


def plot_directions(directions: Directions, most: int = 12) -> Figure:
    """A table of the tokens that each direction raises and lowers, promoted directions first.

    Args:
        directions: From `read_directions`.
        most: Rows shown: half of them promoted, half suppressed, those of the largest eigenvalues.
    """
    table = directions.table
    if len(table) > most:
        half = most // 2
        table = table.iloc[[*range(half), *range(len(table) - (most - half), len(table))]]
    words = [
        [
            row["kind"],
            f"{row['eigenvalue']:+.2f}",
            "  ".join(map(_shown, row["raises"])),
            "  ".join(map(_shown, row["lowers"])),
        ]
        for _, row in table.iterrows()
    ]
    longest = [max(len(row[column]) for row in words) for column in (2, 3)]
    width = 3.0 + 0.075 * sum(longest)
    figure, axes = plt.subplots(figsize=(width, 0.9 + 0.3 * len(words)), layout="constrained")
    axes.set_axis_off()
    shares = [1.1 / width, 0.8 / width, *((width - 2.0) / width * length / max(1, sum(longest)) for length in longest)]
    drawn = axes.table(
        words,
        colLabels=["", "eigenvalue", "raises most", "lowers most"],
        colWidths=shares,
        cellLoc="left",
        loc="center",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.35)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0)
        if row and column < 2:
            cell.get_text().set_color(PROMOTED if words[row - 1][0] == "promoted" else SUPPRESSED)
        if not row:
            cell.get_text().set_color(GREY)
    sign = "pointing to where activations lie" if directions.oriented else "signs arbitrary"
    axes.set_title(f"What the edit at layer {directions.layer} reads and writes ({sign})", fontsize=10)
    plt.close(figure)
    return figure


def plot_massive_activations(massive: MassiveActivations) -> Figure:
    """A map of the largest coordinates by layer: absolute values, those that meet the criterion framed.

    Args:
        massive: From `massive_activations`.
    """
    table = massive.table
    layers, coordinates = sorted(table["layer"].unique()), sorted(table["coordinate"].unique())
    grid = np.full((len(coordinates), len(layers)), np.nan)
    figure, axes = plt.subplots(
        figsize=(max(4.5, 0.42 * len(layers) + 2.6), max(2.4, 0.36 * len(coordinates) + 1.5)), layout="constrained"
    )
    for row in table.to_dict("records"):
        grid[coordinates.index(row["coordinate"]), layers.index(row["layer"])] = row["largest"]
    above = grid[grid > 0] if (grid > 0).any() else np.ones(1)  # a layer of zeros has no place on a logarithmic scale
    norm = LogNorm(above.min() / 1.2, above.max() * 1.2)
    image = axes.imshow(grid, cmap="cividis_r", norm=norm, aspect="auto")
    for row in table.to_dict("records"):
        place = layers.index(row["layer"]), coordinates.index(row["coordinate"])
        color = "white" if norm(row["largest"]) > 0.6 else INK
        axes.text(*place, f"{row['largest']:.0f}", ha="center", va="center", fontsize=7, color=color)
        if row["massive"]:
            corner = (place[0] - 0.47, place[1] - 0.47)
            axes.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=SUPPRESSED, linewidth=2))
    axes.set_xticks(range(len(layers)), layers)
    axes.set_yticks(range(len(coordinates)), coordinates)
    axes.set_xlabel("layer")
    axes.set_ylabel("coordinate")
    found = int(table["massive"].sum())
    axes.set_title(
        f"Largest coordinates; {found or 'none'} above {massive.magnitude:g} and {massive.ratio:g} x the median",
        fontsize=9,
    )
    figure.colorbar(image, ax=axes, shrink=0.9).set_label("largest |activation|", fontsize=8)
    plt.close(figure)
    return figure


def _shown(token: str) -> str:
    """A token so that white space shows and matplotlib takes nothing in it for mathematics."""
    return (token.replace("\n", "\\n").replace("$", r"\$").strip(" ") or "␣").strip()
