"""What an editor is, and how its settings were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from sea_lens.analysis.subspaces import Spectra
from sea_lens.analysis.tokens import Directions
from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.tuning import Tuning
from sea_lens.plotting.style import (
    GREY,
    INK,
    MOST_PANELS,
    PROMOTED,
    SUPPRESSED,
    WARNING,
    canvas,
    heat_map,
    one_panel,
    page,
    panels,
    tick_layers,
    tidy,
)

SIDES = (("positive", PROMOTED, "o", "-"), ("negative", SUPPRESSED, "s", "--"))


def plot_editor(editor: Editor, *, axes: Axes | None = None) -> Figure:
    """What an editor does to activations, site by site: how much it adds along each of its directions.

    For SEA these are eigenvalues times the strength: directions above zero are promoted and those below suppressed. For a
    shift it is its length. An edit without directions, such as a random control, has no points.

    Args:
        editor: Any editor.
        axes: To draw in; None makes a figure.

    Example:
        >>> figure = sl.plotting.plot_editor(editor)
        >>> figure.axes[0].get_ylabel()
        'strength x gain'
    """
    check_arguments(plot_editor, locals())
    sites = editor.sites
    by_layer = len(sites) == len(editor.layers)
    places = [float(site.layer or 0) if by_layer else float(place) for place, site in enumerate(sites)]
    axes = one_panel(axes, max(4.5, 0.3 * len(sites) + 2), 3.4)
    axes.axhline(0, color=GREY, linewidth=1)
    for place, site in zip(places, sites, strict=True):
        edit = editor[site]
        gains = [] if edit.gains is None else (edit.strength * edit.gains.double()).tolist()
        colors = [PROMOTED if gain > 0 else SUPPRESSED for gain in gains]
        axes.vlines([place] * len(gains), 0, gains, color=GREY, linewidth=1)
        axes.scatter([place] * len(gains), gains, c=colors, s=28, zorder=3)
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    if by_layer:
        tick_layers(axes, editor.layers)
    else:
        axes.set_xticks(places, [str(site) for site in sites], rotation=90)
    axes.set_xlabel("layer" if by_layer else "site")
    axes.set_ylabel("strength x gain")
    axes.set_title("Directions promoted (above 0) and suppressed", fontsize=10)
    tidy(axes)
    return page(axes)


def plot_tuning(tuning: Tuning, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Heat maps of the score in percent: a method's most varied setting by layers, a panel per other setting and strength.

    Green settings do better than the unedited model, brown ones worse. Crossed ones break the model and are not chosen. The
    frame marks the best of all that are. Settings that were stopped early show the score of the questions that they saw, and
    none where that are none.

    Args:
        tuning: From `tune`.
        figure: To draw in; None makes one.

    Example:
        >>> methods = sl.grid(sl.SEA, center=[True], explained_variance=[0.5, 0.9])
        >>> tuning = sl.tune(model, activations, fitting, methods=methods, layers=["all"], max_new_tokens=1)
        >>> figure = sl.plotting.plot_tuning(tuning)
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_tuning, locals())
    table = tuning.table
    names = [str(name) for name in table.columns]
    cells = {name: table[name].tolist() for name in names[1 : names.index("layers")]}
    texts = {name: [_setting_text(value) for value in values] for name, values in cells.items()}
    by = max(texts, key=lambda name: len(set(texts[name])), default="")
    row_of = texts.pop(by, [""] * len(table))
    sizes = dict(zip(row_of, map(_size, cells.get(by, row_of)), strict=True))
    rows = sorted(sizes, key=lambda text: (sizes[text], text))
    layers = sorted(table["layers"].unique(), key=_layer_order)
    panel_of = list(zip(table["method"], *texts.values(), table["strength"], strict=True))
    found = sorted(set(panel_of))
    titles = [_panel_title(texts, panel, len(layers)) for panel in found]
    widest = max(len(line) for title in titles for line in title)
    width = max(2.2, 0.34 * len(layers), 0.115 * widest)
    figure, drawn = panels(figure, len(found), width, 1.1 + 0.3 * len(rows), share_y=True)
    plain = min(max(tuning.unedited.share, 0.01), 0.99)
    norm = TwoSlopeNorm(vmin=0, vcenter=plain, vmax=1)
    for axes, panel, title in zip(drawn, found, titles, strict=True):
        scores = np.full((len(rows), len(layers)), np.nan)
        here = [number for number, other in enumerate(panel_of) if other == panel]
        places = {number: (rows.index(row_of[number]), layers.index(table.at[number, "layers"])) for number in here}
        for number in reversed(here):  # of equal places the best stays
            scores[places[number]] = table.at[number, "score"]
        labels = [["" if np.isnan(score) else f"{100 * score:.0f}" for score in row] for row in scores]
        best = [places[0]] if 0 in here and tuning.n_allowed else []
        shown = [text or ("none" if by else "") for text in rows]
        image = heat_map(axes, scores, norm, labels, rows=shown, columns=layers, framed=best)
        kept = {place for number, place in places.items() if table.at[number, "allowed"]}
        for row, column in set(places.values()) - kept:
            for ends in ((-0.45, 0.45), (0.45, -0.45)):
                axes.plot(
                    [column - 0.45, column + 0.45], [row + end for end in ends], color=INK, linewidth=0.7, alpha=0.6
                )
        axes.set_title("\n".join(title), fontsize=9)
        axes.tick_params(axis="x", labelrotation=90)
    crossed = (
        "" if table["allowed"].all() else f" (crossed: breaks the model, KL above {tuning.max_kl:g} nats per token)"
    )
    figure.supxlabel(f"layers edited{crossed}", fontsize=9)
    figure.supylabel(by.replace("_", " "), fontsize=9)
    bar = figure.colorbar(image, ax=drawn, shrink=0.9, pad=0.01, format=PercentFormatter(1))
    bar.set_ticks([0, plain, 1])
    bar.ax.axhline(plain, color=INK, linewidth=1)
    fewer = " or fewer" if tuning.stopped else ""
    bar.set_label(f"score ({tuning.unedited.n}{fewer} questions; {tuning.unedited.share:.0%} unedited)", fontsize=8)
    return page(figure)


def _panel_title(texts: Mapping[str, Sequence[str]], panel: Sequence[Any], n_layers: int) -> list[str]:
    """Method, settings and strength; in one line each where they are too long for the panel's width together."""
    named = [f"{name.replace('_', ' ')} {text}" for name, text in zip(texts, panel[1:-1], strict=True) if text]
    together = ", ".join([panel[0], *named])
    return [*([together] if len(together) <= 4 * n_layers + 4 else [panel[0], *named]), f"strength {panel[-1]:g}"]


def _size(value: object) -> float:
    """What rows are sorted by: a number, or the mean of a pair; 0 for anything else."""
    return float(np.nan_to_num(np.mean(value))) if isinstance(value, int | float | tuple) else 0.0


def _setting_text(value: object) -> str:
    """A cell of a setting; empty where a method has no such setting."""
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if missing else ("yes" if value else "no") if isinstance(value, bool | np.bool_) else str(value)


def _layer_order(name: str) -> tuple[int, int, str]:
    """From the first layers alone over all of them to the last alone; sets of another kind after these."""
    side, _, count = name.partition(":")
    if side in ("first", "last"):
        return (0, int(count), "") if side == "first" else (2, -int(count), "")
    return (1, 0, "") if name == "all" else (3, 0, name)


def plot_spectra(spectra: Spectra, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Explained variance by rank of both cross-covariances, a panel per layer (eight at most); marks: ranks kept.

    Args:
        spectra: From `measure_spectra`.
        figure: To draw in; None makes one.

    Raises:
        InputError: If the editor's method cuts no subspaces.

    Example:
        >>> figure = sl.plotting.plot_spectra(sl.measure_spectra(editor, activations))
        >>> len(figure.axes)
        3
    """
    check_arguments(plot_spectra, locals())
    if spectra.curves.empty:
        raise InputError(
            "This editor's method cuts no subspaces, so it has no spectra to draw. See plot_principal_angles."
        )
    layers = spectra.table.index.tolist()
    if len(layers) > MOST_PANELS:
        layers = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, MOST_PANELS)]
    figure, drawn = panels(figure, len(layers), 2.5, 2.3, share_y=True)
    for axes, layer in zip(drawn, layers, strict=True):
        for side, color, marker, line in SIDES:
            rank = int(str(spectra.table.at[layer, f"rank_{side}"]))
            curve = spectra.curves[(spectra.curves["layer"] == layer) & (spectra.curves["side"] == side)]
            kept = curve[curve["rank"] == rank]
            axes.plot(curve["rank"], curve["explained"], color=color, linestyle=line, label=side)
            axes.plot(kept["rank"], kept["explained"], color=color, marker=marker, linestyle="none", label="")
            place, shift = (rank, float(kept["explained"].iloc[0])), -10 if side == "positive" else 4
            axes.annotate(str(rank), place, fontsize=8, color=color, xytext=(5, shift), textcoords="offset points")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_title(f"layer {layer}", fontsize=9)
    tidy(*drawn)
    drawn[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    drawn[0].legend(loc="lower right", fontsize=8, frameon=False)
    figure.supxlabel("rank", fontsize=9)
    figure.supylabel("explained variance", fontsize=9)
    return page(figure)


def plot_principal_angles(spectra: Spectra, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Two panels by layer: the principal angles between the subspaces, and how far the edit moves activations.

    Angles at zero edit nothing; a mark at 90 degrees stands for a direction that only the larger subspace has. For a method
    without subspaces the gains of the edit's directions stand in the place of angles.

    Args:
        spectra: From `measure_spectra`.
        figure: To draw in; None makes one.

    Example:
        >>> figure = sl.plotting.plot_principal_angles(sl.measure_spectra(editor, activations))
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_principal_angles, locals())
    table, by_name = spectra.table, isinstance(spectra.table.index[0], str)
    places = pd.Series(range(len(table)) if by_name else table.index, index=table.index)
    figure = canvas(figure, max(8.0, 0.44 * len(table) + 5), 3.6)
    angles, moved = figure.subplots(1, 2)
    if len(spectra.angles):
        found = spectra.angles
        angles.scatter(found["layer"].map(places), found["degrees"], color=PROMOTED, s=26, label="principal angle")
        unequal = places[table["rank_positive"] != table["rank_negative"]]
        if len(unequal):
            angles.scatter(unequal, [90] * len(unequal), color=SUPPRESSED, marker="s", s=24, label="one side only")
        angles.set_ylim(-3, 93)
        angles.set_yticks([0, 30, 60, 90])
        angles.set_ylabel("degrees")
        angles.set_title("Angles between positive and negative subspace", fontsize=10)
    else:
        angles.scatter(spectra.gains["layer"].map(places), spectra.gains["gain"], color=PROMOTED, s=26, label="gain")
        angles.axhline(0, color=INK, linewidth=0.8)
        angles.set_title("Gains of the edit's directions", fontsize=10)
    for side, color, look in (("neutral", INK, "^:"), ("positive", PROMOTED, "o-"), ("negative", SUPPRESSED, "s--")):
        if f"moved_{side}" in table:
            moved.plot(places, table[f"moved_{side}"], look, color=color, label=f"{side} moved")
    if "cosine_neutral" in table:
        moved.plot(places, 1 - table["cosine_neutral"], color=GREY, marker="x", label="neutral, 1 - cosine")
    moved.set_ylim(bottom=0)
    moved.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    moved.set_ylabel("share of the norm")
    moved.set_title("How far the edit moves activations", fontsize=10)
    for axes in (angles, moved):
        if by_name:
            axes.set_xticks(places, table.index, rotation=90, fontsize=7)
        else:
            tick_layers(axes, table.index.tolist())
        axes.set_xlabel("site" if by_name else "layer")
        axes.legend(fontsize=8, frameon=False)
    tidy(angles, moved)
    return page(figure)


def plot_directions(directions: Directions, *, most: int = 12, axes: Axes | None = None) -> Figure:
    """A table of the tokens that each direction raises and lowers, promoted directions first.

    Args:
        directions: From `read_directions`.
        most: Rows shown: half of them promoted, half suppressed, those of the largest gains.
        axes: To draw in; None makes a figure.

    Example:
        >>> figure = sl.plotting.plot_directions(sl.read_directions(model, editor, 1, k=3))
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_directions, locals())
    table = directions.table
    if len(table) > most:
        half = most // 2
        table = table.iloc[[*range(half), *range(len(table) - (most - half), len(table))]]
    words = [
        [
            row["kind"],
            f"{row['gain']:+.2f}",
            *("  ".join(map(_shown, row[side])) for side in ("raises", "lowers")),
        ]
        for row in table.to_dict("records")
    ]
    longest = [max(10, *(len(row[column]) for row in words)) for column in (2, 3)]
    widths = [1.0, 0.6, *(0.075 * length for length in longest)]
    axes = one_panel(axes, sum(widths) + 0.6, 0.9 + 0.3 * len(words))
    axes.set_axis_off()
    drawn = axes.table(
        words,
        colLabels=["", "gain", "raises most", "lowers most"],
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="left",
        colLoc="left",
        loc="center",
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.scale(1, 1.35)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0)
        if row and column < 2:
            cell.get_text().set_color(PROMOTED if words[row - 1][0] == "promoted" else WARNING)
        if not row:
            cell.get_text().set_color(GREY)
    sign = "pointing to where activations lie" if directions.oriented else "signs arbitrary"
    axes.set_title(f"What the edit at layer {directions.layer} reads and writes ({sign})", fontsize=10)
    return page(axes)


def _shown(token: str) -> str:
    """A token so that white space shows and matplotlib takes nothing in it for mathematics."""
    visible = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in token)
    return visible.replace("$", r"\$").strip() or "␣"
