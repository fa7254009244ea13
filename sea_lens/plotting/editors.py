"""Pictures of editors, and of the demo's result."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import LowRankEdit
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED
from sea_lens.worlds.demo import OrganismResult


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
        result: From `sea_lens.worlds.demo.run`.
    """
    figure, (bars, eigenvalues, layers) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    table = result.table
    colors = [GREY, PROMOTED, GREY, SUPPRESSED]
    positions = range(len(table))
    bars.barh(positions, table["truthful"], color=colors, height=0.62)
    reach = [table["truthful"] - table["low"], table["high"] - table["truthful"]]
    bars.errorbar(table["truthful"], positions, xerr=reach, fmt="none", ecolor=INK, capsize=3, linewidth=1)
    bars.set_yticks(positions, table.index)
    bars.invert_yaxis()
    bars.set_xlim(0, 1.05)
    bars.set_xlabel("truthful answers")
    bars.set_title(f"{result.plain.n} facts the fit has not seen (95 % intervals)", fontsize=10)

    _draw_eigenvalues(eigenvalues, result.editor)

    for column, color, marker in (("this layer alone", PROMOTED, "o"), ("all but this layer", SUPPRESSED, "s")):
        layers.plot(result.by_layer.index, result.by_layer[column], marker=marker, color=color, label=column)
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
