"""Massive activations through the layers, what setting them does, and the attention that they draw."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sea_lens.analysis.implicit_bias import ImplicitBias
from sea_lens.analysis.massive import MassiveTokens
from sea_lens.arguments import check_arguments
from sea_lens.evaluation.massive import Interventions
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED, one_panel, page, reach, tick_layers, tidy

LINES = {"largest": (SUPPRESSED, "-"), "second": (PROMOTED, "--"), "third": (INK, ":"), "median": (GREY, "-.")}


def plot_massive_tokens(found: MassiveTokens, *, axes: Axes | None = None) -> Figure:
    """The three largest absolute activations of each layer and the median, as means over texts, as the paper draws them.

    Args:
        found: From `massive_tokens`.
        axes: To draw in; None makes a figure.

    Example:
        >>> figure = sl.plotting.plot_massive_tokens(sl.massive_tokens(model, sl.neutral_texts(model)[:3]))
        >>> figure.axes[0].get_xlabel()
        'layer'
    """
    check_arguments(plot_massive_tokens, locals())
    axes = one_panel(axes, 5.4, 3.4)
    layers = found.layers.index.tolist()
    for name, (color, style) in LINES.items():
        axes.plot(layers, found.layers[name], style, color=color, marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    tick_layers(axes, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("|activation|")
    axes.set_title(f"Largest activations, means of {found.n} texts", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return page(axes)


def plot_interventions(found: Interventions, *, axes: Axes | None = None) -> Figure:
    """Perplexity after each intervention over the unedited one, with intervals; on a logarithmic axis where one is tenfold.

    Args:
        found: From `intervene_on_massive`.
        axes: To draw in; None makes a figure.

    Example:
        >>> found = sl.intervene_on_massive(model, sl.neutral_texts(model)[:3], magnitude=10, ratio=5, control=1)
        >>> figure = sl.plotting.plot_interventions(found)
        >>> figure.axes[0].get_xlabel()
        'perplexity, times that of the unedited model'
    """
    check_arguments(plot_interventions, locals())
    table = found.table.iloc[::-1]
    axes = one_panel(axes, 6.0, 1.2 + 0.36 * len(table))
    bars = reach(table["ratio"], table["ratio_low"], table["ratio_high"])
    heights = list(range(len(table)))
    axes.errorbar(table["ratio"], heights, xerr=bars, fmt="o", color=INK, ecolor=GREY, capsize=3, markersize=5)
    axes.axvline(1, color=GREY, linewidth=0.8)
    if table["ratio"].max() >= 10:
        axes.set_xscale("log")
    axes.set_yticks(heights, [str(name) for name in table.index])
    axes.set_xlabel("perplexity, times that of the unedited model")
    head = f"Set after layer {found.layer}, {found.n} texts, {found.confidence:.0%} intervals"
    axes.set_title(f"{head} (unedited {found.unedited:.3g})", fontsize=9)
    tidy(axes)
    return page(axes)


def plot_implicit_bias(found: ImplicitBias, *, axes: Axes | None = None) -> Figure:
    """The share of attention that these tokens draw, by layer, and how much what they give varies beside the rest.

    Args:
        found: From `measure_implicit_bias`.
        axes: To draw in; None makes a figure.

    Example:
        >>> figure = sl.plotting.plot_implicit_bias(sl.measure_implicit_bias(model, sl.neutral_texts(model)[:3]))
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_implicit_bias, locals())
    axes = one_panel(axes, 5.4, 3.4)
    layers = found.table.index.tolist()
    for name, color, style, label in (
        ("attention", SUPPRESSED, "-", "share of attention"),
        ("bias_variance", PROMOTED, "--", "variance of what they give"),
        ("rest_variance", GREY, ":", "variance of what the others give"),
    ):
        axes.plot(layers, found.table[name], style, color=color, marker="o", markersize=3, label=label)
    axes.set_ylim(0, max(1.0, float(found.table["rest_variance"].max()) * 1.05))
    tick_layers(axes, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("share")
    whose = "the first token and the first delimiter" if found.kind == "both" else f"the {found.kind}"
    token = "" if found.kind == "both" or found.kind.endswith("delimiter") else " token"
    axes.set_title(f"Attention on {whose}{token}, {found.n} texts", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return page(axes)
