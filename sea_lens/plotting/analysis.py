"""Which layers carry an effect, what an edit does to answers, and what can be read off activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, PercentFormatter

from sea_lens.analysis.effects import Effects
from sea_lens.analysis.layers import Ablation, Interactions
from sea_lens.analysis.massive import MassiveActivations
from sea_lens.analysis.probes import Probes, check_pair
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations, Role
from sea_lens.plotting.style import (
    GREY,
    INK,
    MOST_PANELS,
    PROMOTED,
    SUPPRESSED,
    canvas,
    heat_map,
    in_words,
    legend_below,
    one_panel,
    page,
    panels,
    reach,
    tick_layers,
    tidy,
)

Method = Literal["pca", "tsne"]
MODES = {
    "only": ("this layer only", PROMOTED, ""),
    "without": ("all but this layer", SUPPRESSED, "///"),
    "first": ("the first n layers", PROMOTED, "o-"),
    "last": ("the last n layers", SUPPRESSED, "s--"),
}
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("right_probability", "accuracy", "top_token", "total_variation"), (0.0, 1.0)),
    "rank": (1.0, np.inf),
    "kl": (0.0, np.inf),
}
"""The least and the greatest value of our effects."""


def plot_ablation(ablation: Ablation, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Bars of the change with one layer only and with all but one, and curves over the first and last n layers.

    Error bars are bootstrap intervals over questions. Grey is the range of the controls at the same layers.

    Args:
        ablation: From `ablate_layers`, with at least one of its modes.
        figure: To draw in; None makes one.
    """
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
    figure.suptitle(f"{ablation.n} questions, {ablation.confidence:.0%} intervals", fontsize=10)
    return page(figure)


def _draw_mode(axes: Axes, ablation: Ablation, mode: str, shift: float) -> None:
    rows = ablation.table[ablation.table["mode"] == mode]
    change, control = rows["change"].to_numpy(), f"range of {ablation.n_controls} controls"
    bars = {"yerr": reach(change, rows["low"], rows["high"]), "capsize": 2}
    if mode == "set":
        axes.bar(range(len(rows)), change, 0.6, color=PROMOTED, ecolor=INK, **bars)
        names = [",".join(map(str, chosen)) for chosen in rows["layers"]]
        axes.set_xticks(range(len(rows)), names, rotation=45, ha="right")
        axes.set_xlabel("layers edited")
        return
    name, color, look = MODES[mode]
    layers = rows["layer"].to_numpy(dtype=float)
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
    tick_layers(axes, layers.tolist())
    axes.set_xlabel("layer" if mode in ("only", "without") else "layers edited, n")


def plot_interactions(interactions: Interactions, *, axes: Axes | None = None) -> Figure:
    """Heat map over pairs of layers: the change with both less the sum of each alone; the diagonal is each alone.

    Green pairs do more together than apart, brown ones do the same work twice. Framed cells have an interval without zero.

    Args:
        interactions: From `measure_interactions`.
        axes: To draw in; None makes a figure.
    """
    layers = [int(layer) for layer in interactions.alone.index]
    grid = np.full((len(layers), len(layers)), np.nan)
    texts = [[""] * len(layers) for _ in layers]
    framed = []
    for row in interactions.table.to_dict("records"):
        place = layers.index(row["second"]), layers.index(row["first"])
        grid[place] = row["interaction"]
        texts[place[0]][place[1]] = f"{row['interaction']:.2g}"
        if row["low"] > 0 or row["high"] < 0:
            framed.append(place)
    for index, alone in enumerate(interactions.alone):
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

    Intervals are of the change, drawn around the edited mean and cut where an effect cannot be, such as an accuracy above 1.

    Args:
        effects: From `measure_effects`.
        figure: To draw in; None makes one.
    """
    table = effects.table
    figure, drawn = panels(figure, len(table), 2.4, 2.2)
    kinds = ["edited", "controls"][: 1 + bool(effects.n_controls)]
    for axes, (name, row) in zip(drawn, table.iterrows(), strict=True):
        plain, limits = float(row["unedited"]), RANGES.get(str(name), (-np.inf, np.inf))
        axes.axhline(plain, color=INK, linestyle=":", linewidth=1, label="unedited")
        marks = [(row["edited"], row["low"], row["high"], PROMOTED, "o", "edited")]
        if effects.n_controls:
            label = f"{effects.n_controls} controls (range)"
            controls = plain + row["control"], row["control_low"], row["control_high"]
            marks.append((*controls, GREY, "s", label))
        for place, (middle, low, high, color, marker, label) in enumerate(marks):
            ends = reach([middle], [plain + low], [plain + high], *limits)
            axes.errorbar([place], [middle], yerr=ends, color=color, fmt=marker, capsize=3, label=label)
        axes.set_xlim(-0.7, len(kinds) - 0.3)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_title(in_words(name), fontsize=9)
    tidy(*drawn)
    legend_below(figure, drawn[:1])
    figure.suptitle(f"Means over {effects.n} questions; {effects.confidence:.0%} intervals of the change", fontsize=10)
    return page(figure)


def plot_probes(probes: Probes, *, figure: Figure | SubFigure | None = None) -> Figure:
    """Three panels: what probes tell apart before and after the edit, by how much, and how they read neutral activations.

    Args:
        probes: From `probe_activations`.
        figure: To draw in; None makes one.
    """
    table = probes.table
    figure = canvas(figure, 12, 3.9)
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


def plot_activations(
    activations: Activations,
    edited: Activations | None = None,
    *,
    layers: Iterable[int] | None = None,
    method: Method = "pca",
    seed: int = 0,
    perplexity: float = 30.0,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Positive, negative, neutral and edited neutral activations in two dimensions, a panel per layer.

    Args:
        activations: Of the unedited model.
        edited: Of the same demonstrations under an editor; its neutral ones are drawn as well.
        layers: Which; for None all, or eight of them evenly spaced if there are more.
        method: `"pca"`: principal components of the unedited activations, into which edited ones are projected. `"tsne"`:
            t-SNE of all points together, where only neighborhoods mean something, not distances.
        seed: Of t-SNE.
        perplexity: Of t-SNE: about how many neighbors a point has.
        figure: To draw in; None makes one.

    Raises:
        InputError: If the activations do not belong together, a layer is absent, or an argument is out of range.
    """
    available = activations.layers if edited is None else check_pair(activations, edited)
    chosen = _choose_layers(available, layers)
    if method not in get_args(Method):
        raise InputError(f"method is one of {', '.join(get_args(Method))}, and {method!r} was given.")
    n_points = activations.n * (3 if edited is None else 4)
    if method == "tsne" and not 0 < perplexity < n_points:
        raise InputError(
            f"perplexity must be above 0 and below the number of points, {n_points}; {perplexity} was given. Lower it, or "
            'use method="pca".'
        )
    roles: tuple[Role, ...] = ("positive", "negative", "neutral")
    # Neutral marks are larger and lie underneath: a neutral answer may be the positive or the negative one.
    looks = [("positive", PROMOTED, "o", 9, 2), ("negative", SUPPRESSED, "s", 9, 2), ("neutral", GREY, "^", 46, 1)]
    looks += [] if edited is None else [("neutral, edited", INK, "x", 13, 3)]
    figure, drawn = panels(figure, len(chosen), 3.1, 3.0)
    for axes, layer in zip(drawn, chosen, strict=True):
        sets = [activations[role][layer].double().cpu().numpy() for role in roles]
        sets += [] if edited is None else [edited.neutral[layer].double().cpu().numpy()]
        points, names = _pca(sets) if method == "pca" else _tsne(sets, seed, perplexity)
        for (label, color, marker, area, order), found in zip(looks, points, strict=True):
            width = 0.7 if marker == "x" else 0
            axes.scatter(
                *found.T, c=color, marker=marker, s=area, zorder=order, alpha=0.7, linewidths=width, label=label
            )
        axes.set_title(f"layer {layer}", fontsize=10)
        axes.set_xlabel(names[0], fontsize=8)
        axes.set_ylabel(names[1], fontsize=8)
        if method == "tsne":
            axes.set_xticks([])
            axes.set_yticks([])
    tidy(*drawn)
    legend_below(figure, drawn[:1], columns=4)
    return page(figure)


def _choose_layers(available: Sequence[int], layers: Iterable[int] | None) -> list[int]:
    if layers is None:
        count = min(len(available), MOST_PANELS)
        return [available[int(index)] for index in np.linspace(0, len(available) - 1, count).round()]
    chosen = sorted(set(layers))
    if not chosen or set(chosen) - set(available):
        raise InputError(
            f"Layers {chosen} were asked for, and the activations have {list(available)}. Choose among those."
        )
    return chosen


def _pca(
    sets: Sequence[Float[np.ndarray, "n d_model"]],
) -> tuple[list[Float[np.ndarray, "n 2"]], tuple[str, str]]:
    """Points on the two principal components of the first three sets, and the names of the axes."""
    known = np.concatenate(sets[:3])
    mean = known.mean(0)
    _, values, components = np.linalg.svd(known - mean, full_matrices=False)
    axes = np.zeros((2, known.shape[1]))  # activations of width 1 have one component
    axes[: len(components[:2])] = components[:2]
    # A component's sign is arbitrary: positives go to the right and up, in every panel.
    axes[(sets[0].mean(0) - sets[1].mean(0)) @ axes.T < 0] *= -1
    shares = np.pad(np.square(values), (0, 2))[:2] / max(float(np.square(values).sum()), np.finfo(float).tiny)
    names = (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%})")
    return [(found - mean) @ axes.T for found in sets], names


def _tsne(
    sets: Sequence[Float[np.ndarray, "n d_model"]], seed: int, perplexity: float
) -> tuple[list[Float[np.ndarray, "n 2"]], tuple[str, str]]:
    """All points embedded together, and the names of the axes."""
    from sklearn.manifold import TSNE

    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(np.concatenate(sets))
    return np.split(np.asarray(found, dtype=float), np.cumsum([len(part) for part in sets])[:-1]), (
        "t-SNE 1",
        "t-SNE 2",
    )


def plot_massive_activations(massive: MassiveActivations, *, axes: Axes | None = None) -> Figure:
    """A map of the largest coordinates by layer: absolute values, those that meet the criterion framed.

    Args:
        massive: From `massive_activations`.
        axes: To draw in; None makes a figure.
    """
    table = massive.table
    grid = table.pivot_table("largest", "coordinate", "layer")
    met = table[table["massive"]]
    framed = [(grid.index.get_loc(row.coordinate), grid.columns.get_loc(row.layer)) for row in met.itertuples()]
    values = grid.to_numpy()
    above = values[values > 0] if (values > 0).any() else np.ones(1)  # zeros have no place on a logarithmic scale
    norm = LogNorm(above.min() / 1.2, above.max() * 1.2)
    texts = [["" if pd.isna(value) else f"{value:.0f}" for value in row] for row in values]
    size = (max(4.5, 0.42 * grid.shape[1] + 2.6), max(2.4, 0.36 * grid.shape[0] + 1.5))
    axes = one_panel(axes, *size)
    image = heat_map(
        axes, values, norm, texts, rows=list(grid.index), columns=list(grid.columns), colors="cividis_r", framed=framed
    )
    axes.set_xlabel("layer")
    axes.set_ylabel("coordinate")
    axes.set_title(
        f"Largest coordinates; framed: above {massive.magnitude:g} and {massive.ratio:g} x the median "
        f"({len(met) or 'none'})",
        fontsize=9,
    )
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("largest |activation|", fontsize=8)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(10, 10)))
    bar.ax.yaxis.minorticks_off()
    return page(axes)
