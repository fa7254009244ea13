"""Benchmarks before and after an edit, editors side by side, data efficiency, and transfer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sea_lens.arguments import check_arguments
from sea_lens.errors import InputError
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.data_efficiency import DataEfficiency
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.side_by_side import UNEDITED, broken_of
from sea_lens.evaluation.transfer import Transfer
from sea_lens.plotting.style import (
    GREY,
    INK,
    PROMOTED,
    SUPPRESSED,
    WARNING,
    canvas,
    heat_map,
    in_words,
    is_cut,
    legend_below,
    one_panel,
    page,
    reach,
    tidy,
)

MOST_CATEGORIES = 40
CONTROL: dict[str, Any] = {"color": INK, "marker": "x", "s": 18, "linewidths": 0.8, "zorder": 3}


def plot_evaluation(
    evaluation: Evaluation, metric: str | None = None, *, figure: Figure | SubFigure | None = None
) -> Figure:
    """Every metric before and after the edit, with the interval of the change; below, one of them by category.

    An edited model's interval is that of the change, drawn around its score up to where scores end: where it does not reach
    the unedited score, the change is more than chance. Without an editor, scores have their own intervals. A metric
    that leaves the range from -1 to 1 gets a panel of its own. Crosses are controls. What the edit costs stands above all, in
    red where it breaks the model. Only the 40 largest categories are drawn; one of a single question has a hollow bar and no
    interval.

    Args:
        evaluation: Of any benchmark.
        metric: The one drawn by category; the headline for None.
        figure: To draw in; None makes one.

    Raises:
        InputError: If there is no such metric.

    Example:
        >>> found = sl.evaluate_truthfulqa(model, questions, editor, control=0)
        >>> figure = sl.plotting.plot_evaluation(found)
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_evaluation, locals())
    chosen = evaluation.headline if metric is None else metric
    if chosen not in evaluation.table.index:
        raise InputError(f"The metrics are {', '.join(evaluation.table.index)}, and {chosen!r} was given.")
    groups, categories = _by_scale(evaluation.table), _categories(evaluation, chosen)
    heights = [0.32 * len(group) + 0.45 for group in groups]
    heights += [0.22 * len(categories) + 0.9] if len(categories) else []
    figure = canvas(figure, 6.4, sum(heights) + 0.7)
    drawn = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights).flat)
    for axes, group in zip(drawn, groups, strict=False):
        _draw_metrics(axes, group, evaluation)
    drawn[0].set_title(f"{evaluation.benchmark}, n = {int(evaluation.table['n'].max()):,}", fontsize=10)
    if evaluation.damage is not None:
        _say(figure, evaluation.damage.summary, evaluation.is_broken)
    if len(categories):
        _draw_categories(drawn[-1], categories, chosen, evaluation)
    legend_below(figure, drawn[: len(groups)], columns=2 if evaluation.controls.empty else 3)
    return page(figure)


def _say(figure: Figure | SubFigure, text: str, is_bad: bool) -> None:
    """A line or two above all panels."""
    width = int(14 * page(figure).get_figwidth())
    figure.suptitle("\n".join(wrap(text, width)), fontsize=8, color=WARNING if is_bad else INK)


def _by_scale(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Shares and the like together, everything else a group of its own."""
    numbers = table[[name for name in ("value", "unedited", "edited") if name in table]].abs().max(axis=1)
    shares = table[numbers <= 1]
    return ([shares] if len(shares) else []) + [table.loc[[name]] for name in table.index[~(numbers <= 1)]]


def _draw_metrics(axes: Axes, table: pd.DataFrame, evaluation: Evaluation) -> None:
    places, edited = np.arange(len(table)), evaluation.is_edited
    score = table["edited" if edited else "value"]
    shift = score - table["change"] if edited else 0.0
    if edited:
        axes.hlines(places, table["unedited"], score, color=GREY, linewidth=2, zorder=1)
        axes.scatter(table["unedited"], places, color=GREY, marker="o", s=42, zorder=2, label="unedited")
        for place, name in enumerate(table.index):
            if name in evaluation.controls:
                beside = table.at[name, "unedited"] + evaluation.controls[name]
                label = "controls" if place == 0 else None
                axes.scatter(beside, [place] * len(beside), **CONTROL, label=label)
    scales = [evaluation.scale(str(name)) for name in table.index]
    limits = [scale.low for scale in scales], [scale.high for scale in scales]
    ends = reach(score, table["low"] + shift, table["high"] + shift, *limits)
    label = "edited, with the interval of its change" if edited else "score, with its interval"
    if is_cut(table["low"] + shift, table["high"] + shift, *limits):
        label += ", cut at the scale's end"
    axes.errorbar(score, places, xerr=ends, fmt="D", color=PROMOTED, ecolor=INK, capsize=3, elinewidth=1, label=label)
    axes.set_yticks(places, [in_words(name) for name in table.index])
    axes.set_ylim(len(table) - 0.4, -0.6)
    _grid(axes)


def _grid(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    tidy(axes)


def _categories(evaluation: Evaluation, metric: str) -> pd.DataFrame:
    """One row per category, sorted; the largest categories where there are too many."""
    found = evaluation.by_category
    if not len(found):
        return pd.DataFrame()
    found = found[found.index.get_level_values("metric") == metric].droplevel("metric")
    largest = found.sort_values("n", ascending=False, kind="stable").iloc[:MOST_CATEGORIES]
    return largest.sort_values("change" if evaluation.is_edited else "value", kind="stable")


def _draw_categories(axes: Axes, table: pd.DataFrame, metric: str, evaluation: Evaluation) -> None:
    places, edited = np.arange(len(table)), evaluation.is_edited
    middle, several = table["change" if edited else "value"], table["n"] > 1
    kinds = _kinds(evaluation, metric, table["unedited"], table["edited"]) if edited else ["better"] * len(table)
    colors = [COLORS[kind] for kind in kinds]
    filled = [color if many else "none" for color, many in zip(colors, several, strict=True)]
    axes.barh(places, middle, height=0.66, color=filled, edgecolor=colors, linewidth=0.8)
    ends = reach(middle, table["low"], table["high"])[:, several]
    axes.errorbar(middle[several], places[several], xerr=ends, fmt="none", ecolor=INK, capsize=2, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [f"{name} ({n})" for name, n in zip(table.index, table["n"], strict=True)])
    axes.set_ylim(-0.7, len(table) - 0.3)
    total = evaluation.by_category.index.get_level_values("category").nunique()
    title = "By category" + (f", the {len(table)} largest of {total}" if total > len(table) else "")
    axes.set_title(title + ("" if several.all() else "; hollow: one question, no interval"), fontsize=10)
    axes.set_xlabel(("change of " if edited else "") + in_words(metric), fontsize=8)
    _grid(axes)


SHAPES = {"unedited": "D", "better": "^", "worse": "v", "neither": "o"}
COLORS = {"unedited": GREY, "better": PROMOTED, "worse": SUPPRESSED, "neither": INK}


def _kinds(evaluation: Evaluation, metric: str | None, before: Iterable[float], after: Iterable[float]) -> list[str]:
    """Whether changes are for the better or the worse."""
    gains = [evaluation.scale(metric).gain(*pair) for pair in zip(before, after, strict=True)]
    return ["better" if gain > 0 else "worse" if gain < 0 else "neither" for gain in gains]


def plot_comparison(comparison: Comparison, *, figure: Figure | SubFigure | None = None) -> Figure:
    """A panel per benchmark, the editors in it.

    Colors say whether a score comes nearer to its best value, which an axis names; a dotted line marks one that is inside
    the range. Intervals are of changes, drawn around edited scores up to where scores end: where one does not reach the
    dashed line, the unedited score, the change is more than chance. The unedited score has its own interval. Crosses are
    controls. Beside an editor's name stands its damage, KL in nats per token; red where it breaks the model.

    Args:
        comparison: From `compare`.
        figure: To draw in; None makes one.

    Example:
        >>> found = sl.compare(model, {"truthfulqa": questions}, {"whole": editor, "half": 0.5 * editor}, control=0)
        >>> figure = sl.plotting.plot_comparison(found)
        >>> len(figure.axes)
        1
    """
    check_arguments(plot_comparison, locals())
    table, headlines = comparison.table, comparison.headlines
    names = _with_damage(table)
    figure = canvas(
        figure,
        1.2 + 0.07 * max(len(line) for name in names for line in name.split("\n")) + 2.9 * len(headlines),
        1.8 + 0.42 * len(table),
    )
    drawn = list(figure.subplots(1, len(headlines), squeeze=False, sharey=True).flat)
    places = np.arange(len(table))
    for axes, (name, headline) in zip(drawn, headlines.items(), strict=True):
        scores, plain = table[f"{name} {headline}"], comparison.evaluations[UNEDITED][name]
        scale = plain.scale()
        shift = scores - table[f"{name} change"].fillna(scores)
        low, high = table[f"{name} low"] + shift, table[f"{name} high"] + shift
        ends = reach(scores, low, high, scale.low, scale.high)
        axes.axvline(plain.score, color=GREY, linestyle="--", linewidth=1)
        if scale.low < scale.best < scale.high and np.isfinite(scale.best):
            axes.axvline(scale.best, color=PROMOTED, linestyle=":", linewidth=1)
        kinds = np.array(["unedited", *_kinds(plain, None, [plain.score] * (len(scores) - 1), scores.iloc[1:])])
        axes.errorbar(scores, places, xerr=ends, fmt="none", ecolor=INK, capsize=3, linewidth=1)
        for kind, color in COLORS.items():
            of_kind = kinds == kind
            if of_kind.any():
                label = kind if kind == "unedited" else f"{kind} than unedited" if kind != "neither" else kind
                axes.scatter(
                    scores[of_kind], places[of_kind], color=color, marker=SHAPES[kind], s=42, zorder=3, label=label
                )
        for place, editor in enumerate(table.index):
            controls = comparison.evaluations[str(editor)][name].controls
            if headline in controls:
                beside = plain.score + controls[headline]
                axes.scatter(beside, [place] * len(beside), **CONTROL, label="controls")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(f"{in_words(headline)}\n({scale})", fontsize=8)
        _grid(axes)
    drawn[0].set_yticks(places, names)
    _redden(drawn[0], table)
    drawn[0].set_ylim(len(table) - 0.5, -0.5)
    legend_below(figure, drawn, columns=4)
    return page(figure)


def _with_damage(table: pd.DataFrame) -> list[str]:
    """The names of editors or sources, with what each costs."""
    costs = table["kl"].to_dict() if "kl" in table else {}
    broken = broken_of(table)
    names = []
    for name in map(str, table.index):
        told = "" if name == UNEDITED or pd.isna(costs.get(name)) else f"\nKL {costs[name]:.2g}"
        names.append(name + told + (": broken" if name in broken else ""))
    return names


def _redden(axes: Axes, table: pd.DataFrame) -> None:
    for name, label in zip(map(str, table.index), axes.get_yticklabels(), strict=True):
        if name in broken_of(table):
            label.set_color(WARNING)


def plot_data_efficiency(result: DataEfficiency, *, axes: Axes | None = None) -> Figure:
    """The score by number of demonstrations: a point per fit, a line of means, and a band of their interval.

    Fits that break the model are red crosses.

    Args:
        result: From `data_efficiency`.
        axes: To draw in; None makes a figure.

    Example:
        >>> from functools import partial
        >>> truth = partial(sl.evaluate_truthfulqa, questions=questions)
        >>> found = sl.data_efficiency(model, activations, truth, method=sl.SEA(0.5, center=True), sizes=[10, 120])
        >>> figure = sl.plotting.plot_data_efficiency(found)
        >>> figure.axes[0].get_xlabel()
        'demonstrations'
    """
    check_arguments(plot_data_efficiency, locals())
    curve, table = result.curve, result.table
    axes = one_panel(axes, 5.6, 4.2)
    axes.axhspan(*result.unedited_interval, color=GREY, alpha=0.2, linewidth=0)
    axes.axhline(result.unedited.score, color=INK, linestyle="--", linewidth=1, label="unedited, with its interval")
    known = curve.dropna(subset=["low"])
    label = f"{result.confidence:.0%} interval of the mean over draws"
    axes.fill_between(known.index, known["low"], known["high"], color=PROMOTED, alpha=0.18, linewidth=0, label=label)
    broken = table["is_broken"].eq(True) if "is_broken" in table else pd.Series(False, index=table.index)
    whole, bad = table[~broken], table[broken]
    axes.scatter(whole["size"], whole["score"], color=PROMOTED, s=14, alpha=0.6, linewidths=0, label="one fit")
    if len(bad):
        label = "one fit that breaks the model"
        axes.scatter(bad["size"], bad["score"], color=SUPPRESSED, s=18, marker="x", linewidths=0.9, label=label)
    axes.plot(curve.index, curve["mean"], color=PROMOTED, marker="o", markersize=5, label="mean")
    axes.set_xscale("log")
    axes.set_xticks(list(curve.index), [f"{size:,}" for size in curve.index])
    axes.minorticks_off()
    axes.set_xlabel("demonstrations")
    axes.set_ylabel(f"{result.unedited.benchmark} {in_words(result.unedited.headline)}")
    tidy(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False)
    return page(axes)


def plot_transfer(result: Transfer, *, axes: Axes | None = None) -> Figure:
    """A heat map of changes, what an editor was fitted on by what it is evaluated on; the unedited score under each name.

    Beside a source stands its editor's damage, KL in nats per token; red where it breaks the model. A change whose interval
    holds 0 is in brackets. Frames mark a data set's own benchmark, where the two have one name.
    Colors say by how much a change is for the better or the worse, and are missing where no value is best. They are on one
    scale where all scores are within 0 and 1, else each column has its own.

    Args:
        result: From `transfer`.
        axes: To draw in; None makes a figure.

    Example:
        >>> found = sl.transfer(model, {"truthfulqa": questions}, {"facts": activations}, method=sl.LEACE(), control=0)
        >>> figure = sl.plotting.plot_transfer(found)
        >>> len(figure.axes)
        2
    """
    check_arguments(plot_transfer, locals())
    changes, unedited, evaluations = result.changes, result.unedited, result.evaluations
    sources, benchmarks = list(map(str, changes.index)), list(map(str, changes.columns))
    found = [[evaluations[source][name] for name in benchmarks] for source in sources]
    alike = all(0 <= one.score <= 1 for row in [*found, evaluations[UNEDITED].values()] for one in row)
    gains = [
        [one.scale().gain(unedited[name], one.score) for name, one in zip(benchmarks, row, strict=True)]
        for row in found
    ]
    towards = np.nan_to_num(np.array(gains))
    largest = np.abs(towards).max(axis=None if alike else 0, keepdims=True)
    values, chance = changes.to_numpy(), (result.low.to_numpy() <= 0) & (result.high.to_numpy() >= 0)
    tops = np.broadcast_to(np.abs(values).max(axis=None if alike else 0, keepdims=True), values.shape)
    texts = [
        [f"({text})" if within else text for text, within in zip(map(_signed, row, most), inside, strict=True)]
        for row, most, inside in zip(values, tops, chance, strict=True)
    ]
    names = [f"{name}\n{in_words(result.headlines[name])}\n{unedited[name]:.3g}" for name in benchmarks]
    widest = max(len(line) for name in names for line in name.split("\n"))
    axes = one_panel(axes, 3.2 + max(1.1, 0.09 * widest) * len(names), 2.2 + 0.5 * len(changes))
    own = [(row, benchmarks.index(source)) for row, source in enumerate(sources) if source in benchmarks]
    shades = towards / np.where(largest > 0, largest, 1.0)
    told = _with_damage(result.table)[1:]
    image = heat_map(axes, shades, Normalize(-1, 1), texts, rows=told, columns=names, framed=own)
    _redden(axes, result.table.iloc[1:])
    axes.set_title("changes; in brackets: the interval holds 0", fontsize=9)
    axes.set_xlabel("evaluated on (unedited score below)", fontsize=9)
    axes.set_ylabel("fitted on", fontsize=9)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02, ticks=[-1, 0, 1])
    ends = [f"{sign}{float(largest.max()):.2g}" if alike else f"{sign}largest\nof column" for sign in "-+"]
    bar.ax.set_yticklabels([ends[0], "0", ends[1]], fontsize=8)
    bar.set_label("for the worse or the better", fontsize=8)
    return page(axes)


def _signed(value: float, largest: float) -> str:
    """A change with as many decimals as give the largest of its scale three digits."""
    decimals = 3 if not 0 < largest < math.inf else max(0, 2 - math.floor(math.log10(largest)))
    # Beside a far larger change, that of a broken model, a small one is none only if it is 0.
    return f"{value:+.2g}" if value and not float(f"{value:.{decimals}f}") else f"{value:+.{decimals}f}"
