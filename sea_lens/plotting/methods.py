"""Methods against each other: what each gains, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sea_lens.arguments import check_arguments
from sea_lens.evaluation.method_comparison import MethodComparison, front_of
from sea_lens.methods.method import METHODS
from sea_lens.plotting.style import GREY, INK, PROMOTED, in_words, one_panel, page, reach, tidy

MARKERS = "oDs^vP*Xp<>hd8"
CHANCE = ("control_low", "control_high", "shuffled_low", "shuffled_high")
LEAST_KL = 1e-5
"""An edit that does nothing has no place on a logarithmic axis, and stands here."""


def plot_methods(comparison: MethodComparison, *, axes: Axes | None = None) -> Figure:
    """Effect against damage: a point per method, with the interval of its change.

    To the right is more damage, upwards more effect. A gray bar behind a point spans what random editors and shuffled refits
    come to; filled points are better than chance and than both. The stepped line is the front: of these, those that no other
    betters in effect at less damage. Edits that change nothing stand at the left edge.

    Args:
        comparison: From `compare_methods`.
        axes: To draw in; None makes a figure.

    Example:
        >>> options = {"layers": ["all"], "trials": 1, "max_new_tokens": 1, "control": 3, "shuffles": 1}
        >>> found = sl.compare_methods(model, demonstrations, fitting, questions, methods=["leace"], **options)
        >>> figure = sl.plotting.plot_methods(found)
        >>> figure.axes[0].get_xlabel()
        'damage: KL in nats per token'
    """
    check_arguments(plot_methods, locals())
    axes = one_panel(axes, 6.0, 3.6)
    draw_methods(axes, comparison.table.iloc[1:], comparison.more_than_chance, comparison.front)
    axes.set_ylabel(f"change of {in_words(comparison.metric)}", fontsize=8)
    axes.set_title(f"n = {int(comparison.unedited.table['n'].max()):,} held-out questions; gray: chance", fontsize=9)
    return page(axes)


def draw_methods(
    axes: Axes, rows: pd.DataFrame, filled: Sequence[str], front: Sequence[str] | None = None, label: str | None = None
) -> None:
    """The points of methods, with their names at the right.

    Args:
        axes: To draw in.
        rows: One per method, with `kl`, `change`, `low` and `high`, and the ranges of controls and refits where known.
        filled: The methods that are better than chance.
        front: The methods of the front; None finds them among the filled ones.
        label: A title.
    """
    names = list(map(str, rows.index))
    columns = {name: rows[name].to_numpy(dtype=float).tolist() for name in ("kl", "change", "low", "high")}
    places = dict(zip(names, [max(kl, LEAST_KL) for kl in columns["kl"]], strict=True))
    changes = dict(zip(names, columns["change"], strict=True))
    ends = zip(columns["low"], columns["high"], strict=True)
    chance = rows[[name for name in CHANCE if name in rows]].to_numpy(dtype=float)
    axes.set_xscale("log")
    axes.set_xlim(min(places.values()) / 2, 1.6 * max(places.values()))
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    on_front = front_of(rows.loc[[name in filled for name in names]]) if front is None else list(front)
    if on_front:
        stairs = [*(places[name] for name in on_front), axes.get_xlim()[1]]
        heights = [*(changes[name] for name in on_front), changes[on_front[-1]]]
        axes.step(stairs, heights, where="post", color=GREY, linewidth=1.2, linestyle="--", zorder=1)
    order = sorted({*METHODS, *names})  # so that a method has one marker in all figures
    for number, (name, (low, high)) in enumerate(zip(names, ends, strict=True)):
        x, y, around = places[name], changes[name], chance[number][np.isfinite(chance[number])]
        if len(around):
            axes.vlines(x, around.min(), around.max(), color=GREY, alpha=0.45, linewidth=5, zorder=2)
        lengths = reach([y], [low], [high])
        axes.errorbar(x, y, yerr=lengths, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2, zorder=3)
        color = PROMOTED if name in filled else "white"
        marker = MARKERS[order.index(name) % len(MARKERS)]
        axes.scatter(x, y, s=38, marker=marker, color=color, edgecolors=INK, linewidths=0.8, zorder=4)
    _name(axes, {name: (places[name], changes[name]) for name in names})
    axes.set_xlabel("damage: KL in nats per token", fontsize=8)
    if label is not None:
        axes.set_title(label, fontsize=9)
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.6)
    tidy(axes)


def _name(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Names in a column at the right, in the order of their points, each with a thin line to its own."""
    low, high = axes.get_ylim()
    names = sorted(points, key=lambda name: points[name][1])
    step = (high - low) / 22
    heights: list[float] = []
    for name in names:
        heights.append(max(points[name][1], heights[-1] + step if heights else low))
    over = heights[-1] - high if heights else 0.0
    if over > 0:  # the column is shifted down as a whole, as far as it goes
        top = high
        for place in reversed(range(len(heights))):
            heights[place] = min(heights[place], top)
            top = heights[place] - step
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            points[name],
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            fontsize=7,
            va="center",
            color=INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
        )
