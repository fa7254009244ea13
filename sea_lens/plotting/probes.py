"""What probes read off activations, and the activations themselves in two dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sea_lens.analysis.probes import Probes, check_pair
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations, Role
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED

Method = Literal["pca", "tsne"]
MOST_PANELS, COLUMNS = 8, 4


def plot_probes(probes: Probes) -> Figure:
    """Three panels: what probes tell apart before and after the edit, by how much, and how they read neutral activations.

    Args:
        probes: From `probe_activations`.
    """
    table = probes.table
    figure, (accuracy, margin, neutral) = plt.subplots(
        1, 3, figsize=(12, 3.9), layout=ConstrainedLayoutEngine(w_pad=0.12)
    )
    if "shuffled_accuracy" in table:
        band = {"color": GREY, "alpha": 0.3, "linewidth": 0}
        if len(table) > 1:
            accuracy.fill_between(
                table.index, table["shuffled_low"], table["shuffled_high"], label="shuffled labels", **band
            )
        else:
            accuracy.axhspan(*table[["shuffled_low", "shuffled_high"]].iloc[0], label="shuffled labels", **band)
    accuracy.axhline(0.5, color=INK, linestyle=":", linewidth=1, label="chance")
    lines = [("", "unedited", PROMOTED, "o", "-"), ("edited_", "edited, same probe", SUPPRESSED, "s", "-")]
    for prefix, name, color, marker, style in [*lines, ("refitted_", "edited, refitted probe", INK, "^", "--")]:
        if f"{prefix}accuracy" not in table:
            continue
        shares = table[f"{prefix}accuracy"]
        reach = [shares - table[f"{prefix}accuracy_low"], table[f"{prefix}accuracy_high"] - shares]
        look = {"color": color, "marker": marker, "linestyle": style, "label": name, "linewidth": 1.5, "markersize": 5}
        accuracy.errorbar(table.index, shares, yerr=reach, capsize=2, elinewidth=0.8, **look)
        if f"{prefix}margin" in table:
            margin.plot(table.index, table[f"{prefix}margin"], **look)
            neutral.plot(table.index, table[f"{prefix}neutral_positive"], **look)
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
    for axes in (accuracy, margin, neutral):
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(table.index[0] - 0.4, table.index[-1] + 0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    plt.close(figure)
    return figure


def plot_activations(
    activations: Activations,
    edited: Activations | None = None,
    layers: Iterable[int] | None = None,
    method: Method = "pca",
    seed: int = 0,
    perplexity: float = 30.0,
) -> Figure:
    """Positive, negative, neutral and edited neutral activations in two dimensions, a panel a layer.

    Args:
        activations: Of the unedited model.
        edited: Of the same demonstrations under an editor; its neutral ones are drawn as well.
        layers: Which; for None all, or eight of them evenly spaced if there are more.
        method: `"pca"`: principal components of the unedited activations, into which edited ones are projected. `"tsne"`:
            t-SNE of all points together, where only neighbourhoods mean something, not distances.
        seed: Of t-SNE.
        perplexity: Of t-SNE: about how many neighbours a point has.

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
    # Larger and underneath, for a neutral answer that is the positive or negative one lies where that does.
    looks = [("positive", PROMOTED, "o", 9, 2), ("negative", SUPPRESSED, "s", 9, 2), ("neutral", GREY, "^", 46, 1)]
    looks += [] if edited is None else [("neutral, edited", INK, "x", 13, 3)]
    columns = min(len(chosen), COLUMNS)
    rows = -(-len(chosen) // columns)
    size = (max(4.5, 3.1 * columns), 0.7 + 3.0 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout=ConstrainedLayoutEngine(w_pad=0.12))
    for axes, layer in zip(grid.flat, chosen, strict=False):
        sets = [activations[role][layer].double().cpu().numpy() for role in roles]
        sets += [] if edited is None else [edited.neutral[layer].double().cpu().numpy()]
        points, names = _pca(sets) if method == "pca" else _tsne(sets, seed, perplexity)
        for (label, color, marker, area, order), found in zip(looks, points, strict=True):
            look = {"c": color, "marker": marker, "s": area, "zorder": order, "alpha": 0.6 if order == 1 else 0.8}
            axes.scatter(*found.T, linewidths=0.7 if marker == "x" else 0, label=label, **look)
        axes.set_title(f"layer {layer}", fontsize=10)
        axes.set_xlabel(names[0], fontsize=8)
        axes.set_ylabel(names[1], fontsize=8)
        axes.tick_params(labelsize=7)
        if method == "tsne":
            axes.set_xticks([])
            axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    plt.close(figure)
    return figure


def _choose_layers(available: Sequence[int], layers: Iterable[int] | None) -> list[int]:
    if layers is None:
        count = min(len(available), MOST_PANELS)
        return [available[int(index)] for index in np.linspace(0, len(available) - 1, count).round()]
    chosen = sorted(set(layers))
    absent = sorted(set(chosen) - set(available))
    if absent or not chosen:
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
    names = ("t-SNE 1", "t-SNE 2")
    return np.split(np.asarray(found, dtype=float), np.cumsum([len(part) for part in sets])[:-1]), names
