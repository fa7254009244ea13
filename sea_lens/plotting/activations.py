"""Activations themselves: in two dimensions, and the coordinates that dwarf the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from sea_lens.analysis.massive import MassiveActivations
from sea_lens.analysis.probes import check_pair
from sea_lens.arguments import check_arguments
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations, Role
from sea_lens.plotting.style import (
    GREY,
    INK,
    MOST_PANELS,
    PROMOTED,
    SUPPRESSED,
    heat_map,
    legend_below,
    one_panel,
    page,
    panels,
    tidy,
)

Method = Literal["pca", "tsne"]
EDITED = "neutral, edited"
LOOKS = {
    "positive": (PROMOTED, "o", 9, 2),
    "negative": (SUPPRESSED, "s", 9, 2),
    "neutral": (GREY, "^", 46, 1),  # larger and underneath: a neutral answer may be the positive or the negative one
    EDITED: (INK, "x", 13, 3),
}


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

    Example:
        >>> figure = sl.plotting.plot_activations(activations, layers=[1, 3])
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_activations, locals())
    check_pair(activations, edited)
    chosen = _choose_layers((edited or activations).layers, layers)
    if method not in get_args(Method):
        raise InputError(f"method is one of {', '.join(get_args(Method))}, and {method!r} was given.")
    order: tuple[Role, ...] = ("positive", "negative", "neutral")
    roles = [role for role in order if role in activations.roles]
    moved = edited.neutral if edited is not None and "neutral" in edited.roles else None
    n_points = activations.n * (len(roles) + (moved is not None))
    if method == "tsne" and not 0 < perplexity < n_points:
        raise InputError(
            f"perplexity must be above 0 and below the number of points, {n_points}; {perplexity} was given. Lower it, or "
            'use method="pca".'
        )
    figure, drawn = panels(figure, len(chosen), 2.6, 2.7)
    for axes, layer in zip(drawn, chosen, strict=True):
        sets = [activations[role][layer].double().cpu().numpy() for role in roles]
        others = [] if moved is None else [moved[layer].double().cpu().numpy()]
        points, names = _pca(sets, others) if method == "pca" else _tsne([*sets, *others], seed, perplexity)
        for label, found in zip([*roles, EDITED], points, strict=False):
            color, marker, area, depth = LOOKS[label]
            look: dict[str, Any] = {"c": color, "marker": marker, "s": area, "zorder": depth}
            axes.scatter(found[:, 0], found[:, 1], alpha=0.7, linewidths=0.7 * (marker == "x"), label=label, **look)
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
    sets: Sequence[Float[np.ndarray, "n width"]], others: Sequence[Float[np.ndarray, "n width"]]
) -> tuple[list[Float[np.ndarray, "n 2"]], tuple[str, str]]:
    """Points on the two principal components of the sets, others projected into these, and the names of the axes."""
    known = np.concatenate(sets)
    mean = known.mean(0)
    _, values, components = np.linalg.svd(known - mean, full_matrices=False)
    axes = np.zeros((2, known.shape[1]))  # activations of width 1 have one component
    axes[: len(components[:2])] = components[:2]
    # A component's sign is arbitrary: positives go to the right and up, in every panel.
    axes[(sets[0].mean(0) - sets[1].mean(0)) @ axes.T < 0] *= -1
    shares = np.pad(np.square(values), (0, 2))[:2] / max(float(np.square(values).sum()), np.finfo(float).tiny)
    names = (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%})")
    return [(found - mean) @ axes.T for found in (*sets, *others)], names


def _tsne(
    sets: Sequence[Float[np.ndarray, "n width"]], seed: int, perplexity: float
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

    Example:
        >>> figure = sl.plotting.plot_massive_activations(sl.massive_activations(activations, editor))
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_massive_activations, locals())
    table = massive.table
    grid = table.pivot_table("largest", "coordinate", "layer")
    rows, columns, values = list(grid.index), list(grid.columns), grid.to_numpy()
    met = table[table["massive"]]
    framed = [
        (rows.index(row), columns.index(column)) for row, column in zip(met["coordinate"], met["layer"], strict=True)
    ]
    above = values[values > 0] if (values > 0).any() else np.ones(1)  # zeros have no place on a logarithmic scale
    norm = LogNorm(above.min() / 1.2, above.max() * 1.2)
    texts = [["" if np.isnan(value) else f"{value:.0f}" for value in row] for row in values]
    axes = one_panel(axes, max(4.5, 0.42 * len(columns) + 2.6), max(2.4, 0.36 * len(rows) + 1.5))
    image = heat_map(axes, values, norm, texts, rows=rows, columns=columns, colors="cividis_r", framed=framed)
    axes.set_xlabel("layer")
    axes.set_ylabel("coordinate")
    criterion = f"above {massive.magnitude:g} and {massive.ratio:g} x the median"
    axes.set_title(f"Largest coordinates; framed ({len(met) or 'none'}):\n{criterion}", fontsize=9)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("largest |activation|", fontsize=8)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    bar.ax.yaxis.minorticks_off()
    return page(axes)
