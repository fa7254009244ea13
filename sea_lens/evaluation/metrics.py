"""Metrics made of sums over rows, such as an accuracy or a bias score, with paired intervals and tests.

A metric is a function of column sums, so that a resample of the rows is one weighted sum, and a ratio of counts is
resampled as honestly as a mean.
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
from sea_lens.statistics import coin_flips, flip_p_values, resampled_counts

Columns = Mapping[str, Float[Tensor, " rows"]]
"""What is counted or added up, one number a row (a question, a text)."""
Sums = Mapping[str, Float[Tensor, " resamples"]]


@dataclass(frozen=True)
class Scale:
    """Which values a metric can have, and which of them is wished for.

    Attributes:
        best: The value that it is better to be nearer to; infinite where there is no end to better, NaN where none is best.
        low: The least possible value.
        high: The greatest possible value.
    """

    best: float = math.nan
    low: float = -math.inf
    high: float = math.inf

    def gain(self, before: float, after: float) -> float:
        """By how much a change is for the better; negative if for the worse, NaN where no value is best."""
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
"""Of what there ought to be as much of as possible, such as right answers."""
FAULT = Scale(best=0.0, low=0.0, high=1.0)
"""Of what there ought to be as little of as possible."""
PART = Scale(low=0.0, high=1.0)
"""Of what there is neither too much nor too little of."""
COST = Scale(best=0.0, low=0.0)
"""Of what is best where there is none, and of which there may be any amount."""
BIAS = Scale(best=0.0, low=-1.0, high=1.0)
"""Of what leans to one side or the other, and ought to lean to neither."""


@dataclass(frozen=True)
class Metric:
    """One number out of the sums of columns.

    Attributes:
        name: Its name.
        value: Computes it from the sums, for many resamples at once; NaN where it is undefined.
        counted: The column whose sum is the number of rows that it is about.
        scale: Which values it can have, and which is best.
    """

    name: str
    value: Callable[[Sums], Float[Tensor, " resamples"]]
    counted: str
    scale: Scale = Scale()

    def of(self, columns: Columns) -> float:
        """The number of all rows."""
        return float(self.value({name: values.double().sum(0, keepdim=True) for name, values in columns.items()}))


def mean(column: str, counted: str = "rows", name: str | None = None, scale: Scale = Scale()) -> Metric:
    """The mean of a column over the rows that another one counts."""
    return Metric(name or column, lambda sums: sums[column] / sums[counted], counted, scale)


def metric_table(
    metrics: Sequence[Metric],
    unedited: Columns,
    edited: Columns | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Metrics with percentile bootstrap intervals over rows; of two models, with those of the change.

    Where all rows are alike, as at an accuracy of 1, resamples are too, and the interval is a point: it does not say that
    another row could not have come out otherwise. `Proportion.interval` (Wilson) of shares does.

    Args:
        metrics: The metrics.
        unedited: The columns of one model.
        edited: Those of the other, row for row; None if there is none.
        seed: Of resamples and swaps.
        confidence: Of the intervals.

    Returns:
        One row a metric that is defined on these rows: `n`, the rows it is about; with one model `value` and its interval
        `low` to `high`; with two `unedited`, `edited`, their difference `change` with its interval `low` to `high`, from
        resamples that both models share, and `p_value` of a two-sided permutation test that swaps the models row by row.

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
    resampled = []
    extreme = torch.zeros(len(metrics), dtype=torch.float64)
    for counts in resampled_counts(len(plain), seed):
        found = values(counts @ other)
        resampled.append(found if edited is None else found - values(counts @ plain))
    if edited is not None:
        for swaps in coin_flips(len(plain), seed):
            moved = swaps @ (other - plain)
            change = values(other.sum(0) - moved) - values(plain.sum(0) + moved)
            # A swap that leaves a metric undefined says nothing against the change being chance.
            extreme += ((change.abs() >= observed.abs() * (1 - 1e-9) - 1e-12) | change.isnan()).sum(0)
    tail = (1 - confidence) / 2
    spread = torch.cat(resampled).nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    sums = dict(zip(names, plain.sum(0).tolist(), strict=True))
    rows: dict[str, object] = {"n": [round(sums[metric.counted]) for metric in metrics]}
    if edited is None:
        rows |= {"value": first.tolist()}
    else:
        rows |= {"unedited": first.tolist(), "edited": second.tolist(), "change": observed.tolist()}
    rows |= {"low": spread[0].tolist(), "high": spread[1].tolist()}
    if edited is not None:
        rows |= {"p_value": flip_p_values(extreme, len(plain)).tolist()}
    table = pd.DataFrame(rows, index=pd.Index([metric.name for metric in metrics], name="metric"))
    return table[table["n"] > 0]


def metrics_by_category(
    metrics: Sequence[Metric],
    categories: Sequence[str | None],
    unedited: Columns,
    edited: Columns | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """`metric_table` of every category, in the order of their first rows; empty if no row has one."""
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
    return pd.concat(tables, names=["category"]) if tables else pd.DataFrame()
