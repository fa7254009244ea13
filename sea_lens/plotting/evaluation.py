"""Benchmarks before and after an edit, editors side by side, data efficiency, and transfer."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sea_lens.errors import InputError
from sea_lens.evaluation.compare import UNEDITED, Comparison
from sea_lens.evaluation.data_efficiency import DataEfficiency
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.metrics import Scale
from sea_lens.evaluation.transfer import Transfer
from sea_lens.plotting.style import GREY, INK, PROMOTED, SUPPRESSED

MOST_CATEGORIES = 40


def plot_evaluation(evaluation: Evaluation, metric: str | None = None) -> Figure:
    """Every metric before and after the edit, with the interval of the change; and the change of one by category.

    An edited model's interval is that of the change, drawn around its score up to where scores end: where it does not reach
    the unedited score, the change is more than chance. Without an editor, scores are drawn with their own intervals. A metric
    that leaves the range from -1 to 1 gets a panel of its own. Of more than 40 categories the largest are drawn.

    Args:
        evaluation: Of any benchmark.
        metric: The one drawn by category; the headline for None.

    Raises:
        InputError: If there is no such metric.
    """
    chosen = evaluation.headline if metric is None else metric
    if chosen not in evaluation.table.index:
        raise InputError(f"The metrics are {', '.join(evaluation.table.index)}, and {chosen!r} was given.")
    groups, categories = _by_scale(evaluation.table), _categories(evaluation, chosen)
    side = 1 if categories.empty else 2
    heights = [0.34 * len(group) + 0.4 for group in groups]
    height = max(sum(heights), 1.3, 0.24 * len(categories) + 0.4)
    longest = max([*map(len, evaluation.table.index), *map(len, categories.index.astype(str))])
    figure = plt.figure(figsize=(side * (3.6 + 0.075 * longest), height + 0.9), layout="constrained")
    # What categories need more in height than metrics stays empty: points far apart are hard to compare.
    spare = height - sum(heights)
    grid = figure.add_gridspec(
        len(groups) + (spare > 0.3), side, height_ratios=[*heights, *([spare] if spare > 0.3 else [])]
    )
    for row, group in enumerate(groups):
        axes = figure.add_subplot(grid[row, 0])
        _draw_metrics(axes, group, evaluation)
        if row == 0:
            axes.set_title(evaluation.benchmark, fontsize=10)
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    if not categories.empty:
        _draw_categories(figure.add_subplot(grid[:, 1]), categories, chosen, evaluation)
    plt.close(figure)
    return figure


def _by_scale(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Shares and the like together, everything else a group of its own."""
    numbers = table[[name for name in ("value", "unedited", "edited") if name in table]].abs().max(axis=1)
    shares = table[numbers <= 1]
    others = [table.loc[[name]] for name in table.index[~(numbers <= 1)]]
    return ([shares] if len(shares) else []) + others


def _draw_metrics(axes: Axes, table: pd.DataFrame, evaluation: Evaluation) -> None:
    places, edited = np.arange(len(table)), evaluation.is_edited
    reach = _reach(table["change"] if edited else table["value"], table["low"], table["high"])
    score = table["edited" if edited else "value"].to_numpy()
    if edited:
        axes.hlines(places, table["unedited"], score, color=GREY, linewidth=2, zorder=1)
        axes.scatter(table["unedited"], places, color=GREY, marker="o", s=42, zorder=2, label="unedited")
    label = "edited, with the interval of its change" if edited else "score, with its interval"
    axes.errorbar(
        score,
        places,
        xerr=_within([evaluation.scale(name) for name in table.index], score, reach),
        color=PROMOTED,
        ecolor=INK,
        marker="D",
        linestyle="none",
        capsize=3,
        elinewidth=1,
        label=label,
    )
    axes.set_yticks(places, [str(name).replace("_", " ") for name in table.index])
    axes.set_ylim(len(table) - 0.4, -0.6)
    _plain(axes)


def _reach(middle: pd.Series, low: pd.Series, high: pd.Series) -> Float[np.ndarray, "two n"]:
    """Lengths of error bars."""
    lengths = np.stack([middle.to_numpy() - low.to_numpy(), high.to_numpy() - middle.to_numpy()])
    return np.asarray(np.nan_to_num(lengths).clip(min=0))


def _within(
    scales: Sequence[Scale], scores: Float[np.ndarray, " n"], reach: Float[np.ndarray, "two n"]
) -> Float[np.ndarray, "two n"]:
    """Error bars around scores, cut where no score can be. An unedited score can, so whether they reach it stays."""
    ends = np.array([[scale.low, scale.high] for scale in scales]).T
    return np.asarray(np.minimum(reach, np.abs(scores - ends)))


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _categories(evaluation: Evaluation, metric: str) -> pd.DataFrame:
    """One row a category, sorted; the largest categories where there are too many."""
    found = evaluation.by_category
    if not len(found):
        return pd.DataFrame()
    found = found[found.index.get_level_values("metric") == metric].droplevel("metric")
    largest = found.sort_values("n", ascending=False, kind="stable").iloc[:MOST_CATEGORIES]
    return largest.sort_values("change" if evaluation.is_edited else "value", kind="stable")


def _draw_categories(axes: Axes, table: pd.DataFrame, metric: str, evaluation: Evaluation) -> None:
    places, what = np.arange(len(table)), "change" if evaluation.is_edited else "value"
    middle = table[what].to_numpy()
    if evaluation.is_edited:
        colors = _colors(evaluation.scale(metric), table["unedited"], table["edited"])
    else:
        colors = [PROMOTED] * len(table)
    axes.barh(places, middle, height=0.66, color=colors)
    reach = _reach(table[what], table["low"], table["high"])
    axes.errorbar(middle, places, xerr=reach, fmt="none", ecolor=INK, capsize=2, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [f"{name} ({n})" for name, n in zip(table.index, table["n"], strict=True)])
    axes.set_ylim(-0.7, len(table) - 0.3)
    total = evaluation.by_category.index.get_level_values("category").nunique()
    axes.set_title(
        "By category" + (f", the {len(table)} largest of {total}" if total > len(table) else ""), fontsize=10
    )
    axes.set_xlabel(("change of " if evaluation.is_edited else "") + metric.replace("_", " "), fontsize=8)
    _plain(axes)


def _colors(scale: Scale, before: pd.Series, after: pd.Series) -> list[str]:
    """Of changes: one color for the better, one for the worse, and a third where nothing is either."""
    gains = [scale.gain(first, second) for first, second in zip(before, after, strict=True)]
    return [PROMOTED if gain > 0 else SUPPRESSED if gain < 0 else INK for gain in gains]


def plot_comparison(comparison: Comparison) -> Figure:
    """A panel a benchmark, the editors in it; and one of the slowdown, where it is known.

    Editors are green that bring a score nearer to its best value (which an axis names; a dotted line where it is inside the
    range), red those that take it farther away, black those that do neither.

    Intervals are of changes, drawn around edited scores up to where scores end: where one does not reach the dashed line, the
    unedited score, the change is more than chance. (The unedited score has its own.)

    Args:
        comparison: From `compare`.
    """
    table, headlines = comparison.table, comparison.headlines
    timed = bool(table["slowdown"].notna().any())
    places = np.arange(len(table))
    count = len(headlines) + timed
    names = [str(name) for name in table.index]
    size = (1.2 + 0.07 * max(map(len, names)) + 2.9 * count, 1.3 + 0.42 * len(table))
    figure, grid = plt.subplots(1, count, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, (name, headline) in zip(grid.flat, headlines.items(), strict=False):
        scores = table[f"{name} {headline}"]
        score = scores.to_numpy()
        reach = _reach(table[f"{name} change"].fillna(scores), table[f"{name} low"], table[f"{name} high"])
        scale = comparison.scales[name]
        reach = _within([scale] * len(table), score, reach)
        axes.axvline(score[0], color=GREY, linestyle="--", linewidth=1)
        if scale.low < scale.best < scale.high and np.isfinite(scale.best):
            axes.axvline(scale.best, color=PROMOTED, linestyle=":", linewidth=1)
        colors = [GREY, *_colors(scale, scores.iloc[[0] * (len(scores) - 1)], scores.iloc[1:])]
        axes.errorbar(score, places, xerr=reach, fmt="none", ecolor=INK, capsize=3, linewidth=1)
        axes.scatter(score, places, color=colors, marker="D", s=38, zorder=3)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(f"{headline.replace('_', ' ')}\n({scale})", fontsize=8)
    if timed:
        axes = grid.flat[-1]
        slowdown = table["slowdown"].to_numpy()
        axes.axvline(1, color=GREY, linestyle="--", linewidth=1)
        axes.scatter(slowdown, places, color=[GREY, *[INK] * (len(table) - 1)], marker="s", s=30, zorder=3)
        axes.set_title("Time of a forward pass", fontsize=10)
        axes.set_xlabel("times the unedited model's", fontsize=8)
    for axes in grid.flat:
        _plain(axes)
    grid.flat[0].set_yticks(places, names)
    grid.flat[0].set_ylim(len(table) - 0.5, -0.5)
    plt.close(figure)
    return figure


def plot_data_efficiency(result: DataEfficiency) -> Figure:
    """The score by number of demonstrations: every fit a point, their mean a line, its interval a band.

    The axis shows where fits are; a band of few seeds reaches beyond it.

    Args:
        result: From `data_efficiency`.
    """
    curve, table = result.curve, result.table
    figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    low, high = result.unedited_interval
    axes.axhspan(low, high, color=GREY, alpha=0.2, linewidth=0)
    axes.axhline(result.unedited.score, color=INK, linestyle="--", linewidth=1, label="unedited")
    known = curve.dropna(subset=["low"])
    label = f"{result.confidence:.0%} interval of the mean over draws"
    axes.fill_between(known.index, known["low"], known["high"], color=PROMOTED, alpha=0.18, linewidth=0, label=label)
    axes.scatter(table["size"], table["score"], color=PROMOTED, s=14, alpha=0.6, linewidths=0, label="one fit")
    axes.plot(curve.index, curve["mean"], color=PROMOTED, marker="o", markersize=5, label="mean")
    shown = [*table["score"], low, high]
    margin = 0.08 * (max(shown) - min(shown)) or 0.05
    axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.set_xscale("log")
    axes.set_xticks(list(curve.index), [f"{size:,}" for size in curve.index])
    axes.minorticks_off()
    axes.set_xlabel("demonstrations")
    axes.set_ylabel(f"{result.unedited.benchmark} {result.unedited.headline.replace('_', ' ')}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    plt.close(figure)
    return figure


def plot_transfer(result: Transfer) -> Figure:
    """A heat map of changes, what an editor was fitted on by what it is evaluated on; the unedited score under each name.

    A change whose interval holds 0 is in brackets. Frames mark a data set's own benchmark, where the two have one name.
    Colors say by how much a change is for the better or the worse, and are missing where no value is best. They are on one
    scale where all scores are within 0 and 1, else each column has its own.

    Args:
        result: From `transfer`.
    """
    changes, unedited = result.changes, result.unedited
    scores = [row[name].score for row in result.comparison.evaluations.values() for name in row]
    alike = all(0 <= score <= 1 for score in scores)
    values, low, high = changes.to_numpy(), result.low.to_numpy(), result.high.to_numpy()
    gains = [
        [evaluation.scale().gain(unedited[name], evaluation.score) for name, evaluation in row.items()]
        for row in (result.comparison.evaluations[source] for source in changes.index)
    ]
    towards = np.nan_to_num(np.array(gains))
    largest = np.abs(towards).max(axis=None if alike else 0, keepdims=True)
    shades = towards / np.where(largest > 0, largest, 1.0)
    headlines = result.comparison.headlines
    names = [f"{name}\n{headline.replace('_', ' ')}\n{unedited[name]:.3g}" for name, headline in headlines.items()]
    left, below = (max(map(len, texts)) for texts in (changes.index, "\n".join(names).split("\n")))
    size = (1.8 + 0.075 * left + max(1.1, 0.085 * below) * len(names), 1.8 + 0.5 * len(changes))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(shades, cmap="BrBG", norm=Normalize(-1, 1), aspect="auto")
    for (row, column), change in np.ndenumerate(values):
        sure = low[row, column] > 0 or high[row, column] < 0
        text = f"{change:+.3g}" if sure else f"({change:+.3g})"
        color = INK if abs(shades[row, column]) < 0.6 else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
        if changes.index[row] == changes.columns[column]:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.8))
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(changes)), list(changes.index), fontsize=8)
    axes.set_xlabel(f"evaluated on ({UNEDITED} score below)", fontsize=9)
    axes.set_ylabel("fitted on", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02, ticks=[-1, 0, 1])
    ends = [f"{sign}{float(largest.max()):.2g}" if alike else f"{sign}largest\nof column" for sign in "-+"]
    bar.ax.set_yticklabels([ends[0], "0", ends[1]], fontsize=8)
    bar.set_label("for the worse or the better", fontsize=8)
    plt.close(figure)
    return figure
