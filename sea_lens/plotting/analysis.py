"""What an edit does to answers, which layers carry it, and what probes read before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sea_lens.analysis.effects import Effects
from sea_lens.analysis.layers import Ablation, Interactions
from sea_lens.analysis.probes import Probes
from sea_lens.arguments import check_arguments
from sea_lens.models.damage import Damage
from sea_lens.plotting.style import (
    GREY,
    INK,
    PROMOTED,
    SUPPRESSED,
    canvas,
    heat_map,
    in_words,
    is_cut,
    legend_below,
    one_panel,
    page,
    panels,
    reach,
    tick_layers,
    tidy,
)

MODES = {
    "only": ("this layer only", PROMOTED, ""),
    "without": ("all but this layer", SUPPRESSED, "///"),
    "first": ("the first n layers", PROMOTED, "o-"),
    "last": ("the last n layers", SUPPRESSED, "s--"),
}
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("right_probability", "accuracy", "top_token", "total_variation"), (0.0, 1.0)),
    "rank": (1.0, np.inf),
    "answer_kl": (0.0, np.inf),
}
"""The least and the greatest value of our effects."""


def plot_ablation(ablation: Ablation, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Bars of the change with one layer only and with all but one, and curves over the first and last n layers.

    Error bars are bootstrap intervals over questions. Grey is the range of the controls at the same layers.

    Args:
        ablation: From `ablate_layers`, with at least one of its modes.
        figure: To draw in; None makes one.

    Example:
        >>> ablation = sl.ablate_layers(model, questions, editor, modes=["only"], effect="top_token", control=0)
        >>> figure = sl.plotting.plot_ablation(ablation)
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_ablation, locals())
    table = ablation.table
    groups = [
        [mode for mode in pair if (table["mode"] == mode).any()] for pair in (("only", "without"), ("first", "last"))
    ]
    groups = [group for group in groups if group] or [["set"]]
    width = max(3.4, 0.3 * table["layer"].nunique())
    figure = canvas(figure, 1.6 + len(groups) * width, 3.8)
    drawn = list(figure.subplots(1, len(groups), sharey=True, squeeze=False).flat)
    whole = float(table.loc[table["mode"] == "all", "change"].iloc[0])
    for axes, group in zip(drawn, groups, strict=True):
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axhline(whole, color=INK, linewidth=1, linestyle="--", label="the whole editor")
        for place, mode in enumerate(group):
            _draw_mode(axes, ablation, mode, 0.38 * (place - (len(group) - 1) / 2))
    drawn[0].set_ylabel(f"change of {in_words(ablation.effect)}")
    tidy(*drawn)
    legend_below(figure, drawn)
    title = f"{ablation.n} questions, {ablation.confidence:.0%} intervals{_cost(ablation.damage)}"
    figure.suptitle(title, fontsize=10)
    return page(figure)


def _cost(damage: Damage | None) -> str:
    """What an edit costs, as the end of a title."""
    if damage is None:
        return ""
    return f"\nKL {damage.kl:.3g} nats per token{': THIS EDIT BREAKS THE MODEL' if damage.is_broken else ''}"


def _draw_mode(axes: Axes, ablation: Ablation, mode: str, shift: float) -> None:
    rows = ablation.table[ablation.table["mode"] == mode]
    change, control = rows["change"].to_numpy(), f"range of {ablation.n_controls} controls"
    bars: dict[str, Any] = {"yerr": reach(change, rows["low"], rows["high"]), "capsize": 2}
    if mode == "set":
        axes.bar(range(len(rows)), change, 0.6, color=PROMOTED, ecolor=INK, **bars)
        names = [",".join(map(str, chosen)) for chosen in rows["layers"]]
        axes.set_xticks(range(len(rows)), names, rotation=45, ha="right")
        axes.set_xlabel("layers edited")
        return
    name, color, look = MODES[mode]
    by_name = any(isinstance(name, str) for names in rows["layers"] for name in names) and mode in ("only", "without")
    layers = np.arange(len(rows), dtype=float) if by_name else rows["layer"].to_numpy(dtype=float)
    if mode in ("only", "without"):
        axes.bar(
            layers + shift, change, 0.38, color=color, hatch=look, edgecolor="white", ecolor=INK, label=name, **bars
        )
        if ablation.n_controls:
            low, high = rows["control_low"], rows["control_high"]
            axes.bar(layers + shift, high - low, 0.1, bottom=low, color=GREY, zorder=3, label=control)
    else:
        if ablation.n_controls:
            ends = rows["control_low"], rows["control_high"]
            axes.fill_between(layers, *ends, color=GREY, alpha=0.35, linewidth=0, label=control)
        axes.errorbar(layers, change, fmt=look, color=color, label=name, **bars)
    if by_name:
        (every,) = ablation.table.loc[ablation.table["mode"] == "all", "layers"]
        axes.set_xticks(layers, every, rotation=90, fontsize=7)
    else:
        tick_layers(axes, layers.tolist())
    axes.set_xlabel("layer" if mode in ("only", "without") else "layers edited, n")


def plot_interactions(interactions: Interactions, *, axes: Axes | None = None) -> Figure:
    """Heat map over pairs of layers: the change with both less the sum of each alone; the diagonal is each alone.

    Green pairs do more together than apart, brown ones do the same work twice. Framed cells have an interval without zero.

    Args:
        interactions: From `measure_interactions`.
        axes: To draw in; None makes a figure.

    Example:
        >>> pairs = sl.measure_interactions(model, questions, editor.first_layers(2))
        >>> figure = sl.plotting.plot_interactions(pairs)
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_interactions, locals())
    layers = interactions.alone.index.tolist()
    grid = np.full((len(layers), len(layers)), np.nan)
    texts = [[""] * len(layers) for _ in layers]
    framed = []
    for row in interactions.table.to_dict("records"):
        place = layers.index(row["second"]), layers.index(row["first"])
        grid[place] = row["interaction"]
        texts[place[0]][place[1]] = f"{row['interaction']:.2g}"
        if row["low"] > 0 or row["high"] < 0:
            framed.append(place)
    for index, alone in enumerate(interactions.alone["change"]):
        texts[index][index] = f"({alone:.2g})"
    most = float(np.nanmax(np.abs(grid))) or 1.0
    side = max(4.2, 0.45 * len(layers) + 1.6)
    axes = one_panel(axes, side + 1.1, side)
    norm = TwoSlopeNorm(vmin=-most, vcenter=0, vmax=most)
    image = heat_map(axes, grid, norm, texts, rows=layers, columns=layers, framed=framed)
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    tidy(axes)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(f"interaction: change of {in_words(interactions.effect)}", fontsize=8)
    axes.set_title(f"{interactions.n} questions; in brackets: each layer alone; framed: interval without 0", fontsize=8)
    return page(axes)


def plot_effects(effects: Effects, *, figure: Figure | SubFigure | None = None) -> Figure:
    """A small panel per effect: its mean unedited and edited, the change with its interval, and that of the controls.

    Intervals are of the change, drawn around the edited mean and cut where an effect cannot be, such as an accuracy above 1;
    the title says so. Effects whose numbers are all the same, as several are of answers of one token, share a panel.

    Args:
        effects: From `measure_effects`.
        figure: To draw in; None makes one.

    Example:
        >>> effects = sl.measure_effects(model, questions, editor, effects=["top_token"], control=0)
        >>> figure = sl.plotting.plot_effects(effects)
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_effects, locals())
    table = effects.table
    shared = _alike(table)
    figure, drawn = panels(figure, len(shared), 2.4, 2.2)
    kinds = ["edited", "controls"][: 1 + bool(effects.n_controls)]
    cut = False
    for axes, (name, also) in zip(drawn, shared.items(), strict=True):
        row = dict[str, Any](table.loc[name])
        plain, limits = float(row["unedited"]), RANGES.get(str(name), (-np.inf, np.inf))
        axes.axhline(plain, color=INK, linestyle=":", linewidth=1, label="unedited")
        marks = [(row["edited"], row["low"], row["high"], PROMOTED, "o", "edited")]
        if effects.n_controls:
            label = f"{effects.n_controls} controls (range)"
            controls = plain + row["control"], row["control_low"], row["control_high"]
            marks.append((*controls, GREY, "s", label))
        for place, (middle, low, high, color, marker, label) in enumerate(marks):
            ends = reach([middle], [plain + low], [plain + high], *limits)
            cut |= is_cut([plain + low], [plain + high], *limits)
            axes.errorbar([place], [middle], yerr=ends, color=color, fmt=marker, capsize=3, label=label)
        axes.set_xlim(-0.7, len(kinds) - 0.3)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_title("\n= ".join(map(in_words, (name, *also))), fontsize=9)
    tidy(*drawn)
    legend_below(figure, drawn[:1])
    intervals = f"{effects.confidence:.0%} intervals of the change{', cut where the scale ends' if cut else ''}"
    title = f"Means over {effects.n} questions; {intervals}{_cost(effects.damage)}"
    figure.suptitle(title, fontsize=10)
    return page(figure)


def _alike(table: pd.DataFrame) -> dict[str, list[str]]:
    """The first effect of each kind, with those whose numbers are all the same."""
    found: dict[str, list[str]] = {}
    for name, row in table.iterrows():
        numbers = row.to_numpy(dtype=float)
        same = [one for one in found if np.allclose(table.loc[one].to_numpy(dtype=float), numbers, equal_nan=True)]
        found.setdefault(same[0], []).append(str(name)) if same else found.update({str(name): []})
    return found


def plot_probes(probes: Probes, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Three panels: what probes tell apart before and after the edit, by how much, and how they read neutral activations.

    Args:
        probes: From `probe_activations`.
        figure: To draw in; None makes one.

    Example:
        >>> probes = sl.probe_activations(activations.at_sites([1]), n_shuffles=1)
        >>> figure = sl.plotting.plot_probes(probes)
        >>> len(figure.axes)
        3
    """
    check_arguments(plot_probes, locals())
    table = probes.table
    figure = canvas(figure, 9.9, 3.6)
    drawn = accuracy, margin, neutral = figure.subplots(1, 3)
    if "shuffled_accuracy" in table:
        # One layer alone gets a band of some width.
        places = [table.index[0] - 0.4, *table.index, table.index[-1] + 0.4] if len(table) == 1 else table.index
        low, high = (np.resize(table[f"shuffled_{end}"], len(places)) for end in ("low", "high"))
        accuracy.fill_between(places, low, high, color=GREY, alpha=0.3, linewidth=0, label="shuffled labels")
    accuracy.axhline(0.5, color=INK, linestyle=":", linewidth=1, label="chance")
    for prefix, name, color, look in (
        ("", "unedited", PROMOTED, "o-"),
        ("edited_", "edited, same probe", SUPPRESSED, "s-"),
        ("refitted_", "edited, refitted probe", INK, "^--"),
    ):
        if f"{prefix}accuracy" not in table:
            continue
        shares = table[f"{prefix}accuracy"]
        ends = reach(shares, table[f"{prefix}accuracy_low"], table[f"{prefix}accuracy_high"])
        accuracy.errorbar(table.index, shares, yerr=ends, fmt=look, color=color, capsize=2, elinewidth=0.8, label=name)
        if f"{prefix}margin" in table:
            margin.plot(table.index, table[f"{prefix}margin"], look, color=color, label=name)
            neutral.plot(table.index, table[f"{prefix}neutral_positive"], look, color=color, label=name)
    margin.axhline(0, color=INK, linestyle=":", linewidth=1)
    neutral.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    accuracy.set_title(f"Accuracy, {probes.n} demonstrations (95 % intervals)", fontsize=10)
    accuracy.set_ylabel("told apart, positive from negative")
    margin.set_title("Signed margin", fontsize=10)
    margin.set_ylabel("in unedited standard deviations")
    neutral.set_title("Neutral activations", fontsize=10)
    neutral.set_ylabel("read as positive")
    for axes in (accuracy, neutral):
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in drawn:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(table.index[0] - 0.4, table.index[-1] + 0.4)
    tidy(*drawn)
    legend_below(figure, [accuracy], columns=5)
    return page(figure)
