"""The result of comparing methods: a row per method, all settings that were tried, and what could not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from sea_lens.arguments import check_arguments
from sea_lens.cells import cell_text, p_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.compare import Comparison
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.side_by_side import UNEDITED, broken_of, findings_of, score_cells, with_interval
from sea_lens.results import Result
from sea_lens.statistics import holm, mean_intervals, sign_flip_p_values

SCORED = "held out"
"""What the scored half is called in the comparison."""


@dataclass(frozen=True, eq=False, repr=False)
class MethodComparison(Result):
    """Methods that were tuned by one budget on one half of the questions, and scored once on the other half.

    Attributes:
        table: One row per method, after the unedited model's. On the held-out half: the headline `score`; its `change` from
            the unedited model with its paired interval `low` to `high` (see `metric_table`), its `p_value`, and `p_holm`,
            corrected for the number of methods; the change under norm-matched random editors, `control` with the range
            `control_low` to `control_high`; and under the same settings fitted on demonstrations whose sides were shuffled,
            `shuffled` with the range `shuffled_low` to `shuffled_high`. Damage and costs, as those of a `Comparison`:
            `kl`, `perplexity_ratio`, `is_broken`, `fit_seconds`, `slowdown`, `bytes`, `rank`, `layers`. On the fitting half:
            `tried` settings, the score of the best (`fitting_score`), and which that is (`setting`).
        left_out: Methods that did not run, and why.
        trials: Every setting of every method on the fitting half: `method`, `setting`, `score` with its interval, `kl`,
            `perplexity_ratio`, and `allowed`.
        comparison: The editors on the held-out half, question by question.
        budget: How many settings every method could try.

    Example:
        >>> options = {"layers": ["all"], "trials": 1, "max_new_tokens": 1, "control": 3, "shuffles": 1}
        >>> found = sl.compare_methods(model, demonstrations, fitting, questions, methods=["leace"], **options)
        >>> found.front, found.table["tried"].dropna().tolist()
        ([], [1])
    """

    table: pd.DataFrame
    left_out: Mapping[str, str]
    trials: pd.DataFrame
    comparison: Comparison
    budget: int

    @property
    def unedited(self) -> Evaluation:
        """The unedited model on the held-out half."""
        return self.comparison.evaluations[UNEDITED][SCORED]

    @property
    def editors(self) -> Mapping[str, Editor]:
        """The best editor of each method. They are not saved with the result."""
        return self.comparison.editors

    @property
    def metric(self) -> str:
        """What is scored."""
        return self.unedited.headline

    @property
    def front(self) -> list[str]:
        """Of the methods that are more than chance, those that no other one betters in effect and damage, by their damage."""
        return front_of(self.table.loc[self.more_than_chance])

    @property
    def more_than_chance(self) -> list[str]:
        """The methods whose change is better than chance and than every control and shuffled refit.

        That is `p_holm` of at most 0.05, and a change beyond the best of `control_high` and `shuffled_high`.
        """
        rows = self.table.iloc[1:]
        others = rows[[name for name in ("control_high", "shuffled_high") if name in rows]].max(axis=1).fillna(0.0)
        better = (rows["p_holm"] <= 0.05) & (rows["change"] > others.clip(lower=0.0))
        return [str(name) for name in rows.index[better]]

    def versus(self, method: str) -> pd.DataFrame:
        """How much better one method is than each other one, question by question, on the held-out half.

        Args:
            method: One that ran.

        Returns:
            One row per other method, with the mean `difference`, its paired 95 % interval `low` to `high`, the `p_value`
            of a sign-flip test, and `p_holm`, corrected for the number of the others.

        Raises:
            InputError: If it did not run.
        """
        check_arguments(MethodComparison.versus, locals())
        values = self._values()
        if method not in values:
            raise InputError(f"The methods that ran are {', '.join(values)}, and {method!r} was given.")
        others = [name for name in values if name != method]
        if not others:
            raise InputError(f"Only {method} ran, so there is nothing to compare it with.")
        apart = torch.stack([values[method] - values[name] for name in others], dim=1)
        low, high = mean_intervals(apart)
        p_values = sign_flip_p_values(apart)
        columns = {"difference": apart.mean(0), "low": low, "high": high, "p_value": p_values, "p_holm": holm(p_values)}
        return pd.DataFrame(
            {name: column.tolist() for name, column in columns.items()}, index=pd.Index(others, name="other")
        )

    def _values(self) -> dict[str, torch.Tensor]:
        """What each question counts for, by method."""
        return {
            name: torch.tensor(found[SCORED].per_row[f"{self.metric} edited"].to_numpy(dtype=float))
            for name, found in self.comparison.evaluations.items()
            if name != UNEDITED
        }

    @property
    def broken(self) -> list[str]:
        """The methods whose best editor breaks the model."""
        return broken_of(self.table)

    def _head(self) -> str:
        asked = self.table["score"].iloc[0]
        return (
            f"MethodComparison({len(self.table) - 1} methods, {self.budget} trials each at most; {self.metric} on "
            f"{len(self.unedited.per_row)} held-out questions, unedited {asked:.3g})"
        )

    def _readable(self) -> pd.DataFrame:
        cells = score_cells(self.comparison.table, SCORED, self.metric)
        del cells["p"]
        columns = {"method": list(map(str, self.table.index)), self.metric: cells.pop("score"), **cells}
        columns["p (Holm)"] = list(map(p_text, self.table["p_holm"]))
        if "shuffled" in self.table:
            ends = self.table[["shuffled", "shuffled_low", "shuffled_high"]].itertuples(index=False)
            columns["shuffled"] = [
                "" if pd.isna(one) else with_interval(one, low, high, "+") for one, low, high in ends
            ]
        for name in ("kl", "perplexity_ratio", "fit_seconds", "bytes", "tried", "setting"):
            if name in self.table:
                columns["fit (s)" if name == "fit_seconds" else name] = list(map(cell_text, self.table[name]))
        return pd.DataFrame(columns)

    def _below(self) -> str:
        lines = [f"{name} did not run: {why}" for name, why in self.left_out.items()]
        return "\n".join([*([findings_of(self.table)] if self.broken else []), *lines])


def front_of(rows: pd.DataFrame, effect: str = "change", damage: str = "kl") -> list[str]:
    """The rows that no other row betters in both columns (or in one, at the same of the other), by their damage.

    Args:
        rows: One per method.
        effect: The column that should be high.
        damage: The column that should be low.
    """
    found: list[str] = []
    highest = -float("inf")
    ordered = rows.dropna(subset=[effect, damage]).sort_values([damage, effect], ascending=[True, False])
    for name, value in ordered[effect].items():
        if value > highest:
            found.append(str(name))
            highest = value
    return found


def trials_table(method: str, table: pd.DataFrame, described: Sequence[str]) -> pd.DataFrame:
    """The rows of a tuning in columns that every method has."""
    kept = ["layers", "strength", "score", "low", "high", "n", "kl", "perplexity_ratio", "allowed"]
    return table[kept].assign(method=method, setting=list(described))[["method", "setting", *kept]]
