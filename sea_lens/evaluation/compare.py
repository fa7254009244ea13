"""Several editors against several benchmarks in one call, side by side with what they cost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.cache import JSON, write_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.costs import bytes_on_disk, forward_slowdown, timing_batch
from sea_lens.evaluation.evaluation import Evaluation
from sea_lens.evaluation.metrics import Scale
from sea_lens.models.bridge import Model
from sea_lens.models.tokens import PaddedTokens, token_ids
from sea_lens.tables import interval_text, number_text, p_text, to_latex, to_markdown

UNEDITED = "unedited"
"""The row of the model as it is."""
TIMED_PROMPTS = 8
COSTS = ("fit_seconds", "slowdown", "bytes", "rank", "layers")


@runtime_checkable
class Benchmark(Protocol):
    """What editors are compared on, all but model and editor settled.

    Most are an evaluation with its questions filled in: `functools.partial(sl.evaluate_bbq, questions=questions)`.
    """

    def __call__(self, model: Model, *, editor: Editor | None, folder: str | Path | None, progress: bool) -> Evaluation:
        """Evaluates the model, and if there is an editor compares the edited with the unedited model.

        Args:
            model: Unedited.
            editor: To edit it with; None for none.
            folder: Where to keep what is not to be computed again; the same for all calls.
            progress: Whether to show a progress bar.
        """
        ...


EditorSource = Editor | Callable[[], Editor]
"""An editor, or a function that fits it, which is timed."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Editors against benchmarks.

    Attributes:
        table: One row an editor after the `"unedited"` model's. For every benchmark its headline score in a column of both
            names, such as `"bias accuracy"`, then `"bias change"` from the unedited model, `"bias low"` and `"bias high"`,
            the interval of the change, and `"bias p_value"`. (The unedited row has no change, and the interval is its
            score's.) Then costs, where known: `fit_seconds`, without the collection of activations; `slowdown`, how many
            times as long a forward pass takes (in the unedited row: noise); `bytes` of the saved editor; total `rank`;
            `layers`.
        long: One row an editor, benchmark and metric: `n`, `score`, and `change`, `low`, `high`, `p_value` as above.
        evaluations: The whole results: `evaluations[editor][benchmark]`.
        editors: By name, those that were fitted among them.
        timed_on: What forward passes were timed on, in words.
    """

    table: pd.DataFrame
    long: pd.DataFrame
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    editors: Mapping[str, Editor]
    timed_on: str

    @property
    def headlines(self) -> dict[str, str]:
        """The headline metric of each benchmark."""
        return {name: evaluation.headline for name, evaluation in self.evaluations[UNEDITED].items()}

    @property
    def scales(self) -> dict[str, Scale]:
        """What is best of the headline metric of each benchmark."""
        return {name: evaluation.scale() for name, evaluation in self.evaluations[UNEDITED].items()}

    def to_markdown(self) -> str:
        """The table, for a README or an issue, intervals in the cells of their numbers."""
        return to_markdown(self._readable())

    def to_latex(self) -> str:
        """The table, for a paper."""
        return to_latex(self._readable())

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `comparison.json`, `comparison.csv`, `metrics.csv` (the long table), and each evaluation in its folder.

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        places = _folder_names(list(self.evaluations)), _folder_names(list(self.headlines))
        facts: dict[str, JSON] = {
            "format": "sea_lens.comparison/1",
            "headlines": dict(self.headlines),
            "timed_on": self.timed_on,
            "editors": {name: editor.fingerprint for name, editor in self.editors.items()},
            "rows": json.loads(self.table.reset_index().to_json(orient="records", double_precision=15)),
            "evaluations": {
                editor: {name: f"evaluations/{places[0][editor]}/{places[1][name]}" for name in found}
                for editor, found in self.evaluations.items()
            },
        }
        write_text(folder / "comparison.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        write_text(folder / "comparison.csv", self.table.to_csv())
        write_text(folder / "metrics.csv", self.long.to_csv(index=False))
        written = [folder / name for name in ("comparison.json", "comparison.csv", "metrics.csv")]
        for editor, found in self.evaluations.items():
            for name, evaluation in found.items():
                written += evaluation.save(folder / "evaluations" / places[0][editor] / places[1][name])
        return written

    def _readable(self) -> pd.DataFrame:
        columns: dict[str, list[object]] = {}
        for name, headline in self.headlines.items():
            rows = self.table[[f"{name} {what}" for what in (headline, "change", "low", "high", "p_value")]]
            found = [cells(*row) for row in rows.itertuples(index=False)]
            columns[f"{name} {headline}"] = [score for score, _, _ in found]
            columns[f"{name} change"] = [change for _, change, _ in found]
            columns[f"{name} p"] = [p for _, _, p in found]
        for name in COSTS:
            if self.table[name].notna().any():
                columns["fit (s)" if name == "fit_seconds" else name] = list(self.table[name])
        return pd.DataFrame(columns, index=self.table.index)

    def __repr__(self) -> str:
        scores = [f"{name} {headline}" for name, headline in self.headlines.items()]
        rows = [
            f"  {editor}: " + ", ".join(f"{column} {row[column]:.4g}" for column in scores)
            for editor, row in self.table.iterrows()
        ]
        return "\n".join([f"Comparison({len(self.editors)} editors)", *rows])


def compare(
    model: Model,
    editors: Mapping[str, EditorSource],
    benchmarks: Mapping[str, Benchmark],
    *,
    folder: str | Path | None = None,
    timed_on: Sequence[str] | None = None,
    repeats: int = 20,
    progress: bool = True,
) -> Comparison:
    """Several editors on several benchmarks, in one table with what each costs.

    ```python
    truth = partial(sl.evaluate_truthfulqa, questions=sl.Questions.from_truthfulqa("TruthfulQA.csv"))
    sl.compare(model, {"SEA": editor, "half": editor.scaled(0.5)}, {"truth": truth})
    ```

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editors: By the names that rows are to have: editors, or functions without arguments that fit one, such as
            `partial(sl.fit_sea, activations, 0.998)`, whose time is then among the costs.
        benchmarks: By the names that columns are to have; see `Benchmark`.
        folder: Where benchmarks keep what they have computed. A run that was killed goes on there, and the unedited model is
            scored once for all editors. For None a temporary folder, which still does the latter.
        timed_on: Texts that make up the batch on which forward passes are timed; for None eight prompts of the first
            benchmark that has any, evenly spread, or beginnings of texts.
        repeats: Pairs of passes, edited and unedited in turn; 0 leaves the slowdown out.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there is no editor or no benchmark, an editor is none or called `"unedited"`, or by what is timed.
        ModelMismatchError: If an editor does not fit the model.
    """
    if not editors or not benchmarks or UNEDITED in editors:
        raise InputError(
            f"At least one editor and one benchmark are needed, by name, and the name {UNEDITED!r} is the unedited model's; "
            f"editors {list(editors)} and benchmarks {list(benchmarks)} were given."
        )
    if repeats < 0:
        raise InputError(f"repeats is a number of pairs of passes, 0 for none, and {repeats} was given.")
    batch = None if timed_on is None or not repeats else timing_batch(model, timed_on)
    fitted: dict[str, Editor] = {}
    seconds: dict[str, float] = {}
    for name, source in editors.items():
        started = time.perf_counter()
        fitted[name] = source if isinstance(source, Editor) else _fit(name, source)
        if not isinstance(source, Editor):
            seconds[name] = time.perf_counter() - started
        fitted[name].check(model)
    evaluations = _evaluate_all(model, fitted, benchmarks, folder, progress)
    if batch is None and repeats:
        batch = _prompts_to_time(model, evaluations[UNEDITED].values())
    costs = [
        _costs(model, fitted.get(name), seconds.get(name), batch, repeats)
        for name in tqdm(evaluations, desc="costs", unit="editor", disable=not progress)
    ]
    timed = "nothing" if batch is None else f"{repeats} pairs of passes over {_size(batch)}"
    parts = [_long(editor, name, found) for editor, row in evaluations.items() for name, found in row.items()]
    long = pd.concat(parts, ignore_index=True)
    return Comparison(_table(evaluations, costs), long, evaluations, fitted, timed)


def _fit(name: str, source: object) -> Editor:
    found = source() if callable(source) else source
    if not isinstance(found, Editor):
        what = "the function given for it returned" if callable(source) else "for it was given"
        raise InputError(
            f"Editor {name!r}: {what} a {type(found).__name__}. Give an editor (Editor.from_pretrained reads one from its "
            "folder), or a function without arguments that fits one."
        )
    return found


@contextmanager
def scores_kept_in(folder: str | Path | None) -> Iterator[Path]:
    """The folder given, or a temporary one."""
    if folder is not None:
        yield Path(folder)
    else:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)


def _evaluate_all(
    model: Model,
    editors: Mapping[str, Editor],
    benchmarks: Mapping[str, Benchmark],
    folder: str | Path | None,
    progress: bool,
) -> dict[str, dict[str, Evaluation]]:
    candidates: dict[str, Editor | None] = {UNEDITED: None, **editors}
    evaluations: dict[str, dict[str, Evaluation]] = {name: {} for name in candidates}
    count = len(candidates) * len(benchmarks)
    with (
        scores_kept_in(folder) as kept,
        tqdm(total=count, desc="evaluations", unit="evaluation", disable=not progress) as bar,
    ):
        for name, benchmark in benchmarks.items():
            for called, editor in candidates.items():
                evaluations[called][name] = benchmark(model, editor=editor, folder=kept, progress=progress)
                bar.update()
    return evaluations


def _long(editor: str, benchmark: str, evaluation: Evaluation) -> pd.DataFrame:
    table = evaluation.table
    score = table["edited" if evaluation.is_edited else "value"]
    return pd.DataFrame(
        {
            "editor": editor,
            "benchmark": benchmark,
            "metric": table.index,
            "n": table["n"].to_numpy(),
            "score": score.to_numpy(),
            **{name: table[name].to_numpy() if name in table else float("nan") for name in ("change", "low", "high")},
            "p_value": table["p_value"].to_numpy() if "p_value" in table else float("nan"),
        }
    )


def _table(evaluations: Mapping[str, Mapping[str, Evaluation]], costs: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    rows = []
    for (editor, results), spent in zip(evaluations.items(), costs, strict=True):
        row: dict[str, object] = {}
        for name, evaluation in results.items():
            own = _long(editor, name, evaluation).set_index("metric").loc[evaluation.headline]
            row[f"{name} {evaluation.headline}"] = own["score"]
            row |= {f"{name} {what}": own[what] for what in ("change", "low", "high", "p_value")}
        rows.append({**row, **spent})
    table = pd.DataFrame(rows, index=pd.Index(list(evaluations), name="editor"))
    return table.astype({"bytes": "Int64", "rank": "Int64"})


def _costs(
    model: Model, editor: Editor | None, seconds: float | None, batch: PaddedTokens | None, repeats: int
) -> dict[str, object]:
    return {
        "fit_seconds": float("nan") if seconds is None else seconds,
        "slowdown": float("nan") if batch is None else forward_slowdown(model, editor, batch, repeats),
        "bytes": None if editor is None else bytes_on_disk(editor),
        "rank": None if editor is None else sum(edit.rank for edit in editor.edits.values()),
        "layers": None if editor is None else _spans(editor.layers),
    }


def _prompts_to_time(model: Model, evaluations: Iterable[Evaluation]) -> PaddedTokens | None:
    for evaluation in evaluations:
        rows = evaluation.per_row
        prompts = [text for name in ("prompt", "begins") if name in rows for text in rows[name]]
        prompts = [prompt for prompt in prompts if token_ids(model, prompt)]
        if prompts:
            count = min(len(prompts), TIMED_PROMPTS)
            return timing_batch(model, [prompts[number * len(prompts) // count] for number in range(count)])
    return None


def _size(batch: PaddedTokens) -> str:
    rows, length = batch.ids.shape
    return f"{rows} texts of up to {length} tokens on {batch.ids.device}"


def _spans(layers: Sequence[int]) -> str:
    """Layers as `3,5,10-20`."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][-1] == layer - 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ",".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def cells(score: float, change: float, low: float, high: float, p_value: float) -> tuple[str, str, str]:
    """Score, change and p-value as text, the interval beside what it is of."""
    if pd.isna(change):
        return interval_text(score, low, high), "", ""
    return number_text(score), interval_text(change, low, high, sign="+"), p_text(p_value)


def _folder_names(names: Sequence[str]) -> dict[str, str]:
    """Names as folders can have them, no two the same."""
    found: dict[str, str] = {}
    for number, name in enumerate(names):
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "unnamed"
        while plain.lower() in map(str.lower, found.values()):
            plain += f"-{number}"
        found[name] = plain
    return found
