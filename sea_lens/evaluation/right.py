"""Which of any questions a model has right, by any measure that settings are tuned by, before and after an edit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import evaluate_answers, per_question, register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, check_questions, provenance
from sea_lens.evaluation.guard import changes_of, guarded
from sea_lens.evaluation.metrics import SHARE, Columns, Scale, mean, metric_table, metrics_by_category
from sea_lens.methods.measures import MATCH_OF, NAMES, NamedMeasure
from sea_lens.models.answers import check_compared, margins_of, right_ones
from sea_lens.models.bridge import Model
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import AnswerScores

RIGHT = mean("right", scale=SHARE)
MARGIN = mean("margin", scale=Scale(best=float("inf")))


@register_benchmark("right")
def evaluate_right(
    model: Model,
    questions: Questions,
    editor: Editor | None = None,
    *,
    measure: NamedMeasure = "preference_per_token",
    max_new_tokens: int = 32,
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures how many questions the model has right, by a measure that `tune` knows.

    - **right**: share of questions that the model has right.
    - **margin** (of log-probabilities): mean over questions of the log-probability of the likeliest right answer less that
      of the likeliest wrong one, in nats; per token where the measure is.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: The questions, as the model reads them.
        editor: The editor; the unedited model is then measured too, and compared.
        measure: What counts as right, as for `tune`.
        max_new_tokens: Longest greedy answer, for the measures of answers.
        control: How many norm-matched random editors to evaluate as well, or editors of your own; 0 for none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text.
        seed: Seed of the intervals, the permutation test and the controls.
        confidence: Confidence of the intervals.
        batch_size: Rows of tokens per forward pass. It changes no result, apart from rounding.
        folder: A folder for finished batches. A killed run continues there.
        progress: Whether to show progress bars.

    Returns:
        The evaluation, with the share from 0 to 1, the margin in nats; `per_row` has one row per question.

    Raises:
        InputError: If there is no such measure, or it needs wrong answers where a question has none.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes nothing, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> found = sl.evaluate_right(model, questions[:8], progress=False)
        >>> found.table.index.tolist()
        ['right', 'margin']
    """
    check_arguments(evaluate_right, locals())
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    check_model(model, editor)
    check_questions(questions)
    if measure not in NAMES:
        raise InputError(f"measure is one of {', '.join(NAMES)}, and {measure!r} was given.")
    if measure in MATCH_OF:
        return _of_answers(model, questions, editor, measure, max_new_tokens, run)
    check_compared(questions)
    return evaluate_answers(
        "right",
        model,
        questions,
        editor,
        partial(_preferring, per_token=measure == "preference_per_token", best_only=measure == "mc1"),
        [RIGHT, MARGIN],
        prompt="plain",
        options={"measure": measure},
        run=run,
    )


def _preferring(scores: AnswerScores, per_token: bool, best_only: bool) -> Mapping[str, Tensor]:
    margins = margins_of(scores, per_token=per_token, best_only=best_only)
    return {"right": (margins > 0).double(), "margin": margins}


def _of_answers(
    model: Model, questions: Questions, editor: Editor | None, measure: NamedMeasure, max_new_tokens: int, run: Run
) -> Evaluation:
    """By greedy answers."""
    if measure == "rouge":
        check_compared(questions)
    started = time.perf_counter()
    prompts, match = [question.prompt for question in questions], MATCH_OF[measure]
    answer = partial(
        greedy_answers,
        model,
        prompts,
        max_new_tokens,
        batch_size=run.batch_size,
        folder=run.folder,
        progress=run.progress,
    )
    controls = run.controls_of(editor)
    said = {"answer" if editor is None else "answer unedited": answer()}
    if editor is not None:
        said["answer edited"] = answer(editor=editor)

    def counted(answers: Sequence[str]) -> Columns:
        right = torch.tensor(right_ones(answers, questions, match), dtype=torch.float64)
        return {"rows": torch.ones_like(right), "right": right}

    columns = [counted(answers) for answers in said.values()]
    sides = columns[0], columns[1] if editor is not None else None
    changes = changes_of([RIGHT], columns[0], [counted(answer(editor=control)) for control in controls])
    options = {"measure": measure, "max_new_tokens": max_new_tokens, **run.facts}
    found = Evaluation(
        "right",
        RIGHT.name,
        metric_table([RIGHT], *sides, seed=run.seed, confidence=run.confidence),
        metrics_by_category(
            [RIGHT], [question.category for question in questions], *sides, seed=run.seed, confidence=run.confidence
        ),
        per_question(questions, said, columns),
        pd.DataFrame(),
        provenance(
            model,
            editor,
            source=questions.source,
            fingerprint=questions.fingerprint,
            n=len(questions),
            prompt="plain",
            options=options,
            seconds=time.perf_counter() - started,
        ),
        {RIGHT.name: RIGHT.scale},
    )
    answers = {name.removeprefix("answer "): texts for name, texts in said.items()}
    return guarded(found, model, editor, controls, changes, run, prompts=prompts, answers=answers)
