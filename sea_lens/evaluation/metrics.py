"""Metrics that are functions of column sums, such as an accuracy or a bias score, with paired intervals and tests.

A resample of the rows is then one weighted sum, and a ratio of counts is resampled in the same way as a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError
from sea_lens.statistics import ENOUGH, coin_flips, disagreements, flip_p_values, mean_intervals, resampled_counts

Columns = Mapping[str, Float[Tensor, " rows"]]
"""What is counted or added up: one number per row (question, text)."""
Sums = Mapping[str, Float[Tensor, " resamples"]]


@dataclass(frozen=True)
class Scale:
    """The values that a metric can have, and the best of them.

    Attributes:
        best: The best value; infinite if it has no bound, NaN if no value is best.
        low: The least possible value.
        high: The greatest possible value.
    """

    best: float = math.nan
    low: float = -math.inf
    high: float = math.inf

    def gain(self, before: float, after: float) -> float:
        """How much nearer to the best value a change leads; negative if away from it, NaN if no value is best."""
        if math.isinf(self.best):
            return math.copysign(1.0, self.best) * (after - before)
        # Scores as far to one side of the best as to the other differ by rounding.
        return round(abs(before - self.best) - abs(after - self.best), 12)

    def __str__(self) -> str:
        if math.isnan(self.best):
            return "no value is best"
        if self.best == self.high:
            return "higher is better"
        return "lower is better" if self.best == self.low else f"best at {self.best:g}"


SHARE = Scale(best=1.0, low=0.0, high=1.0)
"""A share; higher is better."""
FAULT = Scale(best=0.0, low=0.0, high=1.0)
"""A share; lower is better."""
PART = Scale(low=0.0, high=1.0)
"""A share; no value is best."""
COST = Scale(best=0.0, low=0.0)
"""A non-negative amount; lower is better."""
BIAS = Scale(best=0.0, low=-1.0, high=1.0)
"""A lean to one side (1) or the other (-1); 0 is best."""


@dataclass(frozen=True)
class Metric:
    """A number computed from the sums of columns.

    Attributes:
        name: The metric's name.
        value: Computes the metric from the sums, for many resamples at once; NaN where it is undefined.
        counted: The column whose sum is the number of rows that the metric is about.
        scale: The values that the metric can have, and the best of them.
        column: The column that the metric is the mean of, over the rows counted; None for other metrics.
    """

    name: str
    value: Callable[[Sums], Float[Tensor, " resamples"]]
    counted: str
    scale: Scale = Scale()
    column: str | None = None

    def of(self, columns: Columns) -> float:
        """The metric over all rows."""
        return float(self.value({name: values.double().sum(0, keepdim=True) for name, values in columns.items()}))


def mean(column: str, counted: str = "rows", name: str | None = None, scale: Scale = Scale()) -> Metric:
    """The mean of a column over the rows that another column counts."""
    return Metric(name or column, lambda sums: sums[column] / sums[counted], counted, scale, column)


def metric_table(
    metrics: Sequence[Metric],
    unedited: Columns,
    edited: Columns | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Metrics with their intervals over rows; for two models, with the interval of the change.

    Intervals are percentile bootstraps. Those are too narrow for means of fewer than 30 rows, which get the intervals of
    `statistics.mean_intervals`: Wilson's for a share, Bonett and Price's for the change of a share, Student's t otherwise.
    Ratios of sums (perplexity, bias scores) have bootstrap intervals whatever the number of rows. Where all rows are equal,
    as at an accuracy of 1, such an interval is a point; `Proportion.interval` (Wilson) of a share is not. Where resamples of
    fewer than 30 rows of counts all give one number, there is none.

    Args:
        metrics: The metrics.
        unedited: The columns of one model.
        edited: The columns of the other model, row for row; None if there is only one.
        seed: Seed of resamples and swaps.
        confidence: Confidence of the intervals.

    Returns:
        One row per metric that is defined on these rows. `n` is the number of rows it is about. With one model, `value` and
        its interval `low` to `high`. With two, `unedited`, `edited`, their difference `change` with its paired interval `low`
        to `high` (bootstrap: over resamples that both models share), and `p_value` of a two-sided permutation test that
        swaps the models row by row. Where an interval and a test disagree, `note` says why (see `disagreements`).

    Raises:
        InputError: If there are no rows, or `confidence` is not inside (0, 1).
    """
    names = list(unedited)
    plain = torch.stack([unedited[name].double() for name in names], dim=1)
    other = plain if edited is None else torch.stack([edited[name].double() for name in names], dim=1)
    if not len(plain) or not 0 < confidence < 1:
        raise InputError(
            f"At least one row and a confidence inside (0, 1) are needed; {len(plain)} and {confidence} were given."
        )

    def values(sums: Float[Tensor, "resamples columns"]) -> Float[Tensor, "resamples metrics"]:
        by_name = dict(zip(names, sums.unbind(1), strict=True))
        return torch.stack([metric.value(by_name) for metric in metrics], dim=1)

    first, second = values(plain.sum(0)[None])[0], values(other.sum(0)[None])[0]
    observed = second - first if edited is not None else first
    extreme = torch.zeros(len(metrics), dtype=torch.float64)
    # Sums are small, and metrics are made of all of them at once.
    drawn = [
        (counts @ other, None if edited is None else counts @ plain) for counts in resampled_counts(len(plain), seed)
    ]
    resampled = values(torch.cat([sums for sums, _ in drawn]))
    if edited is not None:
        resampled = resampled - values(torch.cat([sums for _, sums in drawn if sums is not None]))
        moved = torch.cat([swaps @ (other - plain) for swaps in coin_flips(len(plain), seed)])
        change = values(other.sum(0) - moved) - values(plain.sum(0) + moved)
        # A swap that leaves a metric undefined is no evidence against chance.
        extreme += ((change.abs() >= observed.abs() * (1 - 1e-9) - 1e-12) | change.isnan()).sum(0)
    tail = (1 - confidence) / 2
    spread = resampled.nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    for place, metric in enumerate(metrics):
        few = _few_values(metric, unedited, edited)
        if few is not None:
            values_of, is_share = few
            ends = mean_intervals(values_of[:, None], seed, confidence, shares=is_share, changes=edited is not None)
            spread[:, place] = torch.cat(ends)
    sums = dict(zip(names, plain.sum(0).tolist(), strict=True))
    are_counts = bool(((plain == 0) | (plain == 1)).all() and ((other == 0) | (other == 1)).all())
    for place, metric in enumerate(metrics):
        # Few rows of counts that all resample to one number do not say that another row could not come out otherwise.
        is_point = bool(spread[0, place] == spread[1, place])
        if are_counts and is_point and metric.column is None and sums[metric.counted] < ENOUGH:
            spread[:, place] = math.nan
    rows: dict[str, object] = {"n": [round(sums[metric.counted]) for metric in metrics]}
    if edited is None:
        rows |= {"value": first.tolist()}
    else:
        rows |= {"unedited": first.tolist(), "edited": second.tolist(), "change": observed.tolist()}
    rows |= {"low": spread[0].tolist(), "high": spread[1].tolist()}
    if edited is not None:
        p_values = flip_p_values(extreme, len(plain)).tolist()
        notes = disagreements(spread[0].tolist(), spread[1].tolist(), p_values, len(plain), confidence)
        rows |= {"p_value": p_values, **({"note": notes} if any(notes) else {})}
    table = pd.DataFrame(rows, index=pd.Index([metric.name for metric in metrics], name="metric"))
    return table[table["n"] > 0]


def _few_values(
    metric: Metric, unedited: Columns, edited: Columns | None
) -> tuple[Float[Tensor, " counted"], bool] | None:
    """What a mean over fewer rows than a bootstrap needs is the mean of, and whether they are a share's; else None."""
    counted = unedited[metric.counted].double()
    inside = counted == 1
    if metric.column is None or not 0 < inside.sum() < ENOUGH or not bool((inside | (counted == 0)).all()):
        return None
    sides = [columns[metric.column].double()[inside] for columns in (unedited, edited) if columns is not None]
    is_share = all(bool(((side == 0) | (side == 1)).all()) for side in sides)
    return (sides[0] if edited is None else sides[1] - sides[0]), is_share


def metrics_by_category(
    metrics: Sequence[Metric],
    categories: Sequence[str | None],
    unedited: Columns,
    edited: Columns | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """`metric_table` per category, in the order of their first rows; empty if no row has a category."""
    known = list(dict.fromkeys(category for category in categories if category is not None))
    tables = {}
    for category in known:
        rows = torch.tensor([own == category for own in categories])
        part = [
            None if columns is None else {name: values[rows] for name, values in columns.items()}
            for columns in (unedited, edited)
        ]
        assert part[0] is not None
        tables[category] = metric_table(metrics, part[0], part[1], seed=seed, confidence=confidence)
    found = pd.concat(tables, names=["category"]) if tables else pd.DataFrame()
    return found.fillna({"note": ""}) if "note" in found else found
