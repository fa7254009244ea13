"""Fit on one data set, evaluate on others: does what an editor learned carry over?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from sea_lens.arguments import check_arguments
from sea_lens.cells import cell_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.compare import EditorSource, evaluate_all
from sea_lens.evaluation.data_efficiency import PUBLISHED, Fits, fitting_function
from sea_lens.evaluation.evaluation import Evaluation, Run
from sea_lens.evaluation.side_by_side import DAMAGE, UNEDITED, broken_of, comparison_table, findings_of, score_cells
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(Result):
    """What editors fitted on one data set do on others.

    Attributes:
        table: As that of a `Comparison`, without costs: one row per source, after the unedited model's. Intervals are paired
            and over questions (see `metric_table`).
        evaluations: The whole results: `evaluations[source][benchmark]`.
    """

    table: pd.DataFrame
    evaluations: Mapping[str, Mapping[str, Evaluation]]

    @property
    def headlines(self) -> dict[str, str]:
        """The headline metric per benchmark."""
        return {name: found.headline for name, found in self.evaluations[UNEDITED].items()}

    @property
    def changes(self) -> pd.DataFrame:
        """The change of the headline score: one row per source, one column per benchmark."""
        return self._matrix("change")

    @property
    def low(self) -> pd.DataFrame:
        """Lower ends of the intervals of `changes`."""
        return self._matrix("low")

    @property
    def high(self) -> pd.DataFrame:
        """Upper ends of the intervals of `changes`."""
        return self._matrix("high")

    @property
    def unedited(self) -> pd.Series:
        """The unedited model's headline score per benchmark."""
        return pd.Series({name: found.score for name, found in self.evaluations[UNEDITED].items()})

    @property
    def broken(self) -> list[str]:
        """The sources whose editors break the model."""
        return broken_of(self.table)

    def _below(self) -> str:
        return findings_of(self.table)

    def _matrix(self, what: str) -> pd.DataFrame:
        names = list(self.headlines)
        found = self.table.loc[self.table.index[1:], [f"{name} {what}" for name in names]]
        return found.set_axis(names, axis=1).rename_axis("source")

    def _readable(self) -> pd.DataFrame:
        """The changes with intervals; the first row has the unedited model's scores."""
        columns = {"source": list(map(str, self.table.index))}
        for name, headline in self.headlines.items():
            cells = score_cells(self.table, name, headline)
            columns[f"{name} {headline}"] = [
                change or score for score, change in zip(cells["score"], cells["change"], strict=True)
            ]
        for name in DAMAGE:
            if name in self.table:
                columns[name.replace("_", " ")] = list(map(cell_text, self.table[name]))
        return pd.DataFrame(columns)


def transfer(
    model: Model,
    benchmarks: Mapping[str, Benchmark | object],
    sources: Mapping[str, Activations | Editor],
    *,
    method: Fits = PUBLISHED,
    control: int | Sequence[Editor] = 3,
    damage: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Transfer:
    """Fits an editor on each data set and evaluates it on all benchmarks: does what it learned carry over?

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        benchmarks: By name, as for `compare`. Where a source and a benchmark share a name, they are the same data set.
        sources: By name, activations to fit on, or fitted editors.
        method: A method, such as `sl.SEA(0.9999)`, or a function from activations to an editor.
        control: As for `compare`.
        damage: As for `compare`.
        folder: A folder for what benchmarks compute, as for `compare`.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per data set after the unedited model's, with each benchmark's score and its
        change, with interval and controls.

    Raises:
        InputError: If there is no source or no benchmark, a source is neither activations nor an editor, or its name is
            `"unedited"`.
        ModelMismatchError: If an editor does not fit the model.

    Warns:
        BrokenModelWarning: If edits break the model.

    Example:
        >>> found = sl.transfer(model, {"truthfulqa": questions}, {"facts": activations}, method=sl.LEACE(), control=0)
        >>> found.changes.shape  # data to fit on by benchmarks
        (1, 1)
    """
    check_arguments(transfer, locals())
    check_is_model(model)
    wrong = {name: type(one).__name__ for name, one in sources.items() if not isinstance(one, (Activations, Editor))}
    if wrong:
        raise InputError(
            f"Sources are activations, from sl.collect_activations(model, demonstrations), or editors; {wrong} were given."
        )
    fit = fitting_function(method)
    editors: dict[str, EditorSource] = {
        name: source if isinstance(source, Editor) else partial(fit, source) for name, source in sources.items()
    }
    run = Run(folder=folder, progress=progress, control=control, damage=damage)
    evaluations, _, _ = evaluate_all(model, benchmarks, editors, run)
    return Transfer(comparison_table(evaluations), evaluations)
