"""Fit on one data set, evaluate on others: does what an editor learned carry over?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from sea_lens.cache import write_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.compare import COSTS, UNEDITED, Benchmark, Comparison, EditorSource, cells, compare
from sea_lens.methods.sea.sea import fit_sea
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model
from sea_lens.tables import to_latex, to_markdown


@dataclass(frozen=True, eq=False)
class Transfer:
    """What editors fitted on one data set do on others.

    Attributes:
        comparison: Every source against every benchmark, with the whole results.
    """

    comparison: Comparison

    @property
    def table(self) -> pd.DataFrame:
        """As that of a `Comparison`, without costs: one row a source, after the unedited model's."""
        return self.comparison.table.drop(columns=list(COSTS))

    @property
    def changes(self) -> pd.DataFrame:
        """The matrix: one row a source, one column a benchmark, the change of the headline score."""
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
        """The unedited model's headline score on each benchmark."""
        return pd.Series({name: found.score for name, found in self.comparison.evaluations[UNEDITED].items()})

    def _matrix(self, what: str) -> pd.DataFrame:
        names = list(self.comparison.headlines)
        found = self.comparison.table.loc[list(self.comparison.editors), [f"{name} {what}" for name in names]]
        return found.set_axis(names, axis=1).rename_axis("source")

    def to_markdown(self) -> str:
        """The matrix with intervals, for a README or an issue; the first row has the unedited model's scores."""
        return to_markdown(self._readable())

    def to_latex(self) -> str:
        """The same, for a paper."""
        return to_latex(self._readable())

    def _readable(self) -> pd.DataFrame:
        columns = {}
        for name, headline in self.comparison.headlines.items():
            rows = self.table[[f"{name} {what}" for what in (headline, "change", "low", "high", "p_value")]]
            found = [cells(*row) for row in rows.itertuples(index=False)]
            columns[f"{name} {headline}"] = [change or score for score, change, _ in found]
        return pd.DataFrame(columns, index=self.table.index.rename("source"))

    def save(self, folder: str | Path) -> list[Path]:
        """Writes the comparison's files, and the matrix as `transfer.csv`.

        Returns:
            The files.
        """
        path = Path(folder) / "transfer.csv"
        written = self.comparison.save(folder)
        write_text(path, self.changes.to_csv())
        return [*written, path]

    def __repr__(self) -> str:
        return f"Transfer(changes of {self.comparison.headlines}:\n{self.changes.round(4)})"


def transfer(
    model: Model,
    sources: Mapping[str, Activations | Editor],
    benchmarks: Mapping[str, Benchmark],
    *,
    fit: Callable[[Activations], Editor] = fit_sea,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Transfer:
    """Fits an editor on each data set and evaluates it on all benchmarks: does what it learned carry over?

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        sources: By name, activations to fit on, or editors that were fitted already.
        benchmarks: By name. Where a source and a benchmark have one name, they are taken to be the same data set.
        fit: Makes an editor of activations, such as `partial(sl.fit_sea, explained_variance=0.9999)`.
        folder: As for `compare`.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there is no source or no benchmark, or a source is neither or called `"unedited"`.
        ModelMismatchError: If an editor does not fit the model.
    """
    wrong = {name: type(one).__name__ for name, one in sources.items() if not isinstance(one, (Activations, Editor))}
    if wrong:
        raise InputError(
            f"Sources are activations, from sl.collect_activations(model, demonstrations), or editors; {wrong} were given."
        )
    editors: dict[str, EditorSource] = {
        name: source if isinstance(source, Editor) else partial(fit, source) for name, source in sources.items()
    }
    return Transfer(compare(model, editors, benchmarks, folder=folder, repeats=0, progress=progress))
