"""The registry of benchmarks, and what those of questions with known answers share: score all answers, compare."""

from __future__ import annotations

import inspect
import pkgutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.cache import JSON
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.evaluation.evaluation import Evaluation, Run, no_change, provenance
from sea_lens.evaluation.guard import changes_of, guarded
from sea_lens.evaluation.metrics import Columns, Metric, metric_table, metrics_by_category
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import AnswerScores, score_answers
from sea_lens.models.tokens import stems_of
from sea_lens.models.unchanged import unchanged_weights

Kind = Literal["questions", "texts", "tasks"]
"""The data of a benchmark: `Questions`, plain texts, or names of lm-eval's tasks."""
EvaluateT = TypeVar("EvaluateT", bound=Callable[..., Evaluation])


@runtime_checkable
class Benchmark(Protocol):
    """An evaluation with everything but model and editor filled in, as `compare` takes it.

    `functools.partial(sl.evaluate_bbq, questions=questions)` is one, and so is any function with these keywords.
    """

    def __call__(self, model: Model, *, editor: Editor | None, folder: str | Path | None, progress: bool) -> Evaluation:
        """Evaluates the model; with an editor, compares the edited with the unedited model.

        Args:
            model: The model, unedited.
            editor: The editor, or None.
            folder: A folder for what need not be computed again; the same for all calls.
            progress: Whether to show progress bars.
        """
        ...


@dataclass(frozen=True)
class RegisteredBenchmark:
    """A benchmark by its name, with what the command line needs to know of it.

    Attributes:
        name: The name, as in `sea-lens evaluate NAME`.
        evaluate: A function of `(model, data, editor)` and of keywords, which become options.
        reads: What the data is; or a function that reads it from a path.
        templates: The template that a file's questions must be read with, by the `prompt` that needs it.
        also_writes: Writes further files of a result, from the result, its data and the folder.
    """

    name: str
    evaluate: Callable[..., Evaluation]
    reads: Kind | Callable[[Path], Any] = "questions"
    templates: Mapping[str, str] = field(default_factory=dict)
    also_writes: Callable[[Evaluation, Any, Path], list[Path]] | None = None

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.evaluate) or "").split("\n")[0]

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The function's keyword-only parameters, by name."""
        parameters = inspect.signature(self.evaluate).parameters
        return {name: found for name, found in parameters.items() if found.kind is found.KEYWORD_ONLY}

    def on(self, data: object, **options: object) -> Benchmark:
        """The benchmark on some data, ready for `compare`.

        Args:
            data: Questions, texts or tasks, as `evaluate` takes them.
            options: Keywords of `evaluate`.

        Raises:
            InputError: If the benchmark lacks an option.
        """
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise InputError(
                f"The benchmark {self.name!r} has no option {', '.join(unknown)}. It has: {', '.join(self.options)}."
            )
        name = list(inspect.signature(self.evaluate).parameters)[1]
        return partial(self.evaluate, **{name: data}, **options)


_REGISTERED: dict[str, RegisteredBenchmark] = {}


def register_benchmark(
    name: str,
    reads: Kind | Callable[[Path], Any] = "questions",
    *,
    templates: Mapping[str, str] = MappingProxyType({}),
    also_writes: Callable[[Evaluation, Any, Path], list[Path]] | None = None,
) -> Callable[[EvaluateT], EvaluateT]:
    """Makes a function a benchmark that `sea-lens evaluate NAME`, `sea-lens compare` and `compare` find by its name.

    A benchmark of the package's is one file in `sea_lens/evaluation/`; one of your own may stand in any module.

    Args:
        name: The name.
        reads: What the data is, or a function that reads it from a path.
        templates: See `RegisteredBenchmark`.
        also_writes: See `RegisteredBenchmark`.

    Returns:
        A decorator, which registers the function and gives it back.

    Raises:
        InputError: If another function has the name.

    Example:
        >>> @sl.register_benchmark("brief")
        ... def evaluate_brief(model, questions, editor=None, **options):
        ...     return sl.evaluate_truthfulqa(model, questions[:9], editor, **options)
        >>> evaluate_brief(model, questions, control=0).table["n"].tolist()
        [9, 9, 9]
    """
    check_arguments(register_benchmark, locals())

    def register(evaluate: EvaluateT) -> EvaluateT:
        if not callable(evaluate) or not name:
            raise InputError(
                f"A benchmark is a function with a name that is not empty; {evaluate!r:.80} and {name!r} were given."
            )
        known = _REGISTERED.get(name)
        if known is not None and _place(known.evaluate) != _place(evaluate):
            raise InputError(
                f"The benchmark {name!r} is already {'.'.join(_place(known.evaluate))}. Choose another name."
            )
        _REGISTERED[name] = RegisteredBenchmark(name, evaluate, reads, templates, also_writes)
        return evaluate

    return register


def _place(function: Callable[..., object]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def benchmarks() -> Mapping[str, RegisteredBenchmark]:
    """All benchmarks by name: those of every file in `sea_lens/evaluation/`, and your own."""
    package = import_module("sea_lens.evaluation")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return MappingProxyType(_REGISTERED)


def evaluate_answers(
    benchmark: str,
    model: Model,
    questions: Questions,
    editor: Editor | None,
    columns: Callable[[AnswerScores], Mapping[str, Tensor]],
    metrics: Sequence[Metric],
    *,
    prompt: str,
    options: Mapping[str, JSON],
    run: Run,
    prompts: Sequence[str] | None = None,
) -> Evaluation:
    """Scores all answers and compares what follows from the scores.

    Args:
        benchmark: The benchmark's name.
        model: A TransformerBridge with a tokenizer, unedited.
        questions: The questions as the model reads them.
        editor: The editor, or None.
        columns: What each question counts for in the metrics, from the scores; without `rows`, which is 1 for all.
        metrics: The metrics, the headline first.
        prompt: The template that the questions were put into.
        options: What else the numbers depend on.
        run: The keywords that every evaluation has.
        prompts: The prompts without worked examples, which damage is measured on; None for those of `questions`.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes the score of no answer, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.
    """
    started, controls = time.perf_counter(), run.controls_of(editor)
    with unchanged_weights():
        scored = partial(
            score_answers,
            model,
            questions,
            stems=stems_of(model, questions),
            batch_size=run.batch_size,
            folder=run.folder,
            progress=run.progress,
        )
        scores = {"unedited" if editor is not None else "log_probability": scored()}
        if editor is not None:
            plain, edited = scores["unedited"], scored(editor)
            scores["edited"] = edited
            there = plain.n_tokens > 0
            if torch.equal(plain.log_probabilities[there], edited.log_probabilities[there]) and not editor.is_identity:
                what = f"score of an answer to these {len(questions)} questions"
                warnings.warn(no_change(what), SeaLensWarning, stacklevel=3)
        counted = [_counted(columns, each) for each in scores.values()]
        sides = counted[0], counted[1] if editor is not None else None
        categories = [question.category for question in questions]
        asked = [question.prompt for question in questions]
        beside = [_counted(columns, scored(control)) for control in controls]
        evaluation = Evaluation(
            benchmark,
            metrics[0].name,
            metric_table(metrics, *sides, seed=run.seed, confidence=run.confidence),
            metrics_by_category(metrics, categories, *sides, seed=run.seed, confidence=run.confidence),
            per_question(questions, {}, counted),
            _per_answer(questions, scores),
            provenance(
                model,
                editor,
                source=questions.source,
                fingerprint=questions.fingerprint,
                n=len(questions),
                prompt=prompt,
                options={**options, **run.facts},
                seconds=time.perf_counter() - started,
            ),
            {metric.name: metric.scale for metric in metrics},
        )
        changes = changes_of(metrics, counted[0], beside)
        return guarded(evaluation, model, editor, controls, changes, run, prompts=prompts or asked, asked=asked)


def _counted(columns: Callable[[AnswerScores], Mapping[str, Tensor]], scores: AnswerScores) -> Columns:
    return {"rows": torch.ones(len(scores.n_tokens), dtype=torch.float64), **columns(scores)}


def per_question(questions: Questions, texts: Mapping[str, Sequence[str]], counted: Sequence[Columns]) -> pd.DataFrame:
    """One row per question: its prompt and category, texts by column name, and what it counts for on each side.

    Args:
        questions: The questions.
        texts: Further columns.
        counted: The columns of one model, or of the unedited and the edited one.
    """
    frame: dict[str, Sequence[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
        **texts,
    }
    sides = ("",) if len(counted) == 1 else (" unedited", " edited")
    for name in counted[0]:
        if name != "rows":
            frame |= {f"{name}{side}": columns[name].tolist() for side, columns in zip(sides, counted, strict=True)}
    return pd.DataFrame(frame).rename_axis("row")


def _per_answer(questions: Questions, scores: Mapping[str, AnswerScores]) -> pd.DataFrame:
    first = next(iter(scores.values()))
    answers = [(*question.right, *question.wrong) for question in questions]
    places = [(row, column) for row, own in enumerate(answers) for column in range(len(own))]
    rows, columns = torch.tensor(places).unbind(1)
    return pd.DataFrame(
        {
            "row": rows.tolist(),
            "answer": [answers[row][column] for row, column in places],
            "is_right": first.is_right[rows, columns].tolist(),
            "n_tokens": first.n_tokens[rows, columns].tolist(),
            **{name: found.log_probabilities[rows, columns].tolist() for name, found in scores.items()},
        }
    ).set_index("row")
