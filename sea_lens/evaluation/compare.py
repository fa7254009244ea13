"""Several editors on several benchmarks in one call, side by side with what they cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments
from sea_lens.cells import cell_text
from sea_lens.editing.editor import Editor
from sea_lens.errors import BrokenModelWarning, InputError
from sea_lens.evaluation.benchmark import Benchmark
from sea_lens.evaluation.benchmark import benchmarks as registered_benchmarks
from sea_lens.evaluation.costs import bytes_on_disk, forward_slowdown
from sea_lens.evaluation.evaluation import Evaluation, Run
from sea_lens.evaluation.guard import guarded_from_outside, passing_on, unwarned
from sea_lens.evaluation.metrics import Scale
from sea_lens.evaluation.side_by_side import (
    COSTS,
    DAMAGE,
    UNEDITED,
    broken_of,
    comparison_table,
    findings_of,
    long_table,
    score_cells,
)
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.distributed import shows
from sea_lens.models.layers import spans
from sea_lens.models.shared_meters import sharing
from sea_lens.models.tokens import token_ids
from sea_lens.results import Result

TIMED_PROMPTS = 8
EditorSource = Editor | Callable[[], Editor]
"""An editor, or a function that fits it, which is timed."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """Editors against benchmarks.

    Attributes:
        table: One row per editor, after the `"unedited"` model's. Per benchmark: its headline score in a column of both
            names, such as `"bias accuracy"`; `"bias change"` from the unedited model with its paired interval `"bias low"` to
            `"bias high"` (of the kind that `metric_table` says); and `"bias p_value"`. The unedited row has no change; its
            interval is the score's. With controls also `"bias control"`, `"bias control_low"`, `"bias control_high"` and
            `"bias control_p_value"`. Then damage, the highest over the benchmarks' prompts and neutral text: `kl` in nats per
            token, `perplexity_ratio`, and whether the edit `is_broken`, so that its scores say little. Then costs where they
            are known: `fit_seconds`, without the collection of activations;
            `slowdown`, how many times as long a forward pass takes (noise in the unedited row); `bytes` of the saved editor;
            total `rank`; `layers`.
        long: One row per editor, benchmark and metric: `n`, `score`, and changes with p-values and controls, as above.
        evaluations: The whole results: `evaluations[editor][benchmark]`.
        editors: The editors by name, fitted ones among them. They are not saved with the result.

    Example:
        >>> found = sl.compare(model, {"truthfulqa": questions}, {"whole": editor}, control=0)
        >>> found.evaluations["whole"]["truthfulqa"].headline
        'MC1'
    """

    table: pd.DataFrame
    long: pd.DataFrame
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    editors: Mapping[str, Editor] = field(default_factory=dict, metadata={"saved": False})

    @property
    def broken(self) -> list[str]:
        """The editors that break the model."""
        return broken_of(self.table)

    def _below(self) -> str:
        return findings_of(self.table)

    @property
    def headlines(self) -> dict[str, str]:
        """The headline metric per benchmark."""
        return {name: evaluation.headline for name, evaluation in self.evaluations[UNEDITED].items()}

    @property
    def scales(self) -> dict[str, Scale]:
        """The scale of the headline metric per benchmark."""
        return {name: evaluation.scale() for name, evaluation in self.evaluations[UNEDITED].items()}

    def _readable(self) -> pd.DataFrame:
        """Intervals in the cells of their numbers; ready for a README or a paper."""
        columns: dict[str, list[str]] = {"editor": list(map(str, self.table.index))}
        for name, headline in self.headlines.items():
            cells = score_cells(self.table, name, headline)
            columns |= {f"{name} {headline if what == 'score' else what}": found for what, found in cells.items()}
        for name in (*DAMAGE, *COSTS):
            if name in self.table and self.table[name].notna().any():
                columns["fit (s)" if name == "fit_seconds" else name] = list(map(cell_text, self.table[name]))
        return pd.DataFrame(columns)


def compare(
    model: Model,
    benchmarks: Mapping[str, Benchmark | object],
    editors: Mapping[str, EditorSource],
    *,
    control: int | Sequence[Editor] = 3,
    damage: bool = True,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Measures several editors on several benchmarks, and puts them into one table with what each costs.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        benchmarks: By the names of their columns: benchmarks with everything but model and editor filled in, such as
            `functools.partial(sl.evaluate_bbq, questions=questions)`; or by a registered name (`"truthfulqa"`) its data.
        editors: By the names of their rows: editors, or functions without arguments that fit one, whose time is then among
            the costs, such as `partial(sl.SEA(0.998).fit, activations)`.
        control: How many norm-matched random editors each editor is compared with, or editors of your own. Benchmarks whose
            own default is 0 (lm-eval's tasks) have none, and one that was filled in with `control=` keeps its number.
        damage: Whether to measure what each edit costs on the benchmarks' prompts and on neutral text.
        folder: A folder for what benchmarks compute. A killed run continues there, and the unedited model is scored once for
            all editors. None is a temporary folder.
        progress: Whether to show progress bars.

    Returns:
        A result whose `table` has one row per editor after the unedited model's, with each benchmark's headline score
        and its change, with interval and controls, then damage and costs. `long` has every metric, `evaluations` the
        whole results.

    Raises:
        InputError: If there is no editor or no benchmark, or one of them is something else.
        ModelMismatchError: If an editor does not fit the model.

    Warns:
        BrokenModelWarning: If edits break the model.

    Example:
        >>> found = sl.compare(model, {"truthfulqa": questions}, {"whole": editor}, control=0)
        >>> found.table.index.tolist()
        ['unedited', 'whole']
    """
    check_arguments(compare, locals())
    check_is_model(model)
    run = Run(folder=folder, progress=progress, control=control, damage=damage)
    evaluations, fitted, seconds = evaluate_all(model, benchmarks, editors, run)
    texts = _prompts_to_time(model, evaluations[UNEDITED].values())
    costs = [
        _costs(model, texts, fitted.get(name), seconds.get(name))
        for name in tqdm(evaluations, desc="costs", unit="editor", disable=not shows(progress))
    ]
    parts = [long_table(editor, name, found) for editor, row in evaluations.items() for name, found in row.items()]
    return Comparison(comparison_table(evaluations, costs), pd.concat(parts, ignore_index=True), evaluations, fitted)


def evaluate_all(
    model: Model,
    benchmarks: Mapping[str, Benchmark | object],
    editors: Mapping[str, EditorSource],
    run: Run,
) -> tuple[dict[str, dict[str, Evaluation]], dict[str, Editor], dict[str, float]]:
    """Evaluations by editor and benchmark, the unedited model's first; the editors; and the seconds of those fitted."""
    if not editors or not benchmarks or UNEDITED in editors:
        raise InputError(
            f"Give at least one benchmark and one editor, by name; the name {UNEDITED!r} is the unedited model's. Benchmarks "
            f"{list(benchmarks)} and editors {list(editors)} were given."
        )
    measures = {name: _benchmark(name, given) for name, given in benchmarks.items()}
    fitted: dict[str, Editor] = {}
    seconds: dict[str, float] = {}
    for name, source in editors.items():
        started = time.perf_counter()
        fitted[name] = _editor(name, source)
        if fitted[name] is not source:
            seconds[name] = time.perf_counter() - started
        fitted[name].check(model)
    candidates: dict[str, Editor | None] = {UNEDITED: None, **fitted}
    evaluations: dict[str, dict[str, Evaluation]] = {name: {} for name in candidates}
    count = len(candidates) * len(measures)
    with (
        kept_in(run.folder) as kept,
        sharing(),
        unwarned(),
        tqdm(total=count, desc="evaluations", unit="evaluation", disable=not shows(run.progress)) as bar,
    ):
        for name, measure in measures.items():
            ready = partial(
                passing_on(measure, control=run.control, damage=run.damage), model, folder=kept, progress=run.progress
            )
            for called, editor in candidates.items():
                found = ready(editor=editor)
                again = partial(_of_control, ready)
                evaluations[called][name] = guarded_from_outside(found, model, editor, again, replace(run, folder=kept))
                bar.update()
    told = findings_of(comparison_table(evaluations))
    if told:
        warnings.warn(told, BrokenModelWarning, stacklevel=3)
    return evaluations, fitted, seconds


def _of_control(evaluate: Callable[..., Evaluation], editor: Editor) -> Evaluation:
    return evaluate(editor=editor)


@contextmanager
def kept_in(folder: str | Path | None) -> Iterator[Path]:
    """The folder given, or a temporary one."""
    if folder is not None:
        yield Path(folder)
    else:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)


def _benchmark(name: str, given: object) -> Benchmark:
    if isinstance(given, Editor):
        raise InputError(f"Benchmark {name!r} is an editor. compare takes the model, then benchmarks, then editors.")
    if callable(given):
        return given
    known = registered_benchmarks()
    if name not in known:
        raise InputError(
            f"Benchmark {name!r} is a {type(given).__name__}. Data is given by a registered benchmark's name "
            f"({', '.join(known)}); for another name give functools.partial(sl.evaluate_truthfulqa, questions=questions)."
        )
    return known[name].on(given)


def _editor(name: str, source: object) -> Editor:
    found = source() if callable(source) else source
    if not isinstance(found, Editor):
        what = "the function given for it returned" if callable(source) else "for it was given"
        raise InputError(
            f"Editor {name!r}: {what} a {type(found).__name__}. Give an editor (Editor.from_pretrained reads one from its "
            "folder), or a function without arguments that fits one."
        )
    return found


def _costs(model: Model, texts: Sequence[str], editor: Editor | None, seconds: float | None) -> dict[str, object]:
    return {
        "fit_seconds": float("nan") if seconds is None else seconds,
        "slowdown": forward_slowdown(model, texts, editor) if texts else float("nan"),
        "bytes": None if editor is None else bytes_on_disk(editor),
        "rank": None if editor is None else sum(edit.rank for edit in editor.edits.values()),
        "layers": None if editor is None else spans(editor.layers),
    }


def _prompts_to_time(model: Model, evaluations: Iterable[Evaluation]) -> list[str]:
    """Prompts of the first benchmark that has any, evenly spread; or the beginnings of its texts."""
    for evaluation in evaluations:
        rows = evaluation.per_row
        prompts = [text for name in ("prompt", "begins") if name in rows for text in rows[name]]
        prompts = [prompt for prompt in prompts if token_ids(model, prompt)]
        if prompts:
            count = min(len(prompts), TIMED_PROMPTS)
            return [prompts[number * len(prompts) // count] for number in range(count)]
    return []
