"""What benchmarks of questions with known answers have in common: score all answers before and after an edit, compare."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sea_lens.answer_scores import AnswerScores, score_answers
from sea_lens.editor import Editor
from sea_lens.editor_card import JSON
from sea_lens.errors import SeaLensWarning
from sea_lens.evaluation.metrics import Columns, Metric, metric_table, metrics_by_category
from sea_lens.evaluation.results import Evaluation, check_unhooked, provenance
from sea_lens.models import Model
from sea_lens.questions import Questions


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
    seed: int,
    confidence: float,
    batch_size: int,
    folder: str | Path | None,
    progress: bool,
) -> Evaluation:
    """Scores all answers and compares what follows from the scores.

    Args:
        benchmark: Its name.
        model: A TransformerBridge with a tokenizer, unedited.
        questions: As the model is to read them.
        editor: To edit the model with; None for none.
        columns: What each question counts for in the metrics, out of the scores, `rows` left out (it is 1 for all).
        metrics: The first is the headline.
        prompt: What the questions were put into, in words.
        options: What else the numbers depend on.
        seed: Of the resamples.
        confidence: Of the intervals.
        batch_size: Rows in one forward pass.
        folder: Where to keep finished batches.
        progress: Whether to show a progress bar.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes the score of no answer, or the model carries hooks.
    """
    started = time.perf_counter()
    check_unhooked(model, folder)
    plain = score_answers(model, questions, batch_size=batch_size, folder=folder, progress=progress)
    scores = {"unedited" if editor is not None else "log_probability": plain}
    if editor is not None:
        edited = score_answers(model, questions, editor, batch_size=batch_size, folder=folder, progress=progress)
        scores["edited"] = edited
        there = plain.n_tokens > 0
        if torch.equal(plain.log_probabilities[there], edited.log_probabilities[there]) and not editor.is_identity:
            warnings.warn(
                f"The edit at layers {editor.layers} changed the score of no answer to these {len(questions)} questions. Do "
                "its positions lie beyond them, or does it move activations by less than the model's precision?",
                SeaLensWarning,
                stacklevel=3,
            )
    counted: list[Columns] = [
        {"rows": torch.ones(len(questions), dtype=torch.float64), **columns(found)} for found in scores.values()
    ]
    sides = counted[0], counted[1] if editor is not None else None
    categories = [question.category for question in questions]
    table = metric_table(metrics, *sides, seed=seed, confidence=confidence)
    by_category = metrics_by_category(metrics, categories, *sides, seed=seed, confidence=confidence)
    return Evaluation(
        benchmark,
        metrics[0].name,
        table,
        by_category,
        _per_row(questions, counted),
        _per_answer(questions, scores),
        provenance(
            model,
            editor,
            source=questions.source,
            fingerprint=questions.fingerprint,
            n=len(questions),
            prompt=prompt,
            options={**options, "seed": seed, "confidence": confidence, "batch_size": batch_size},
            seconds=time.perf_counter() - started,
        ),
        scales={metric.name: metric.scale for metric in metrics},
    )


def _per_row(questions: Questions, counted: Sequence[Columns]) -> pd.DataFrame:
    frame: dict[str, list[object]] = {
        "prompt": [question.prompt for question in questions],
        "category": [question.category for question in questions],
    }
    names = [name for name in counted[0] if name != "rows"]
    for name in names:
        if len(counted) == 1:
            frame[name] = counted[0][name].tolist()
        else:
            frame |= {f"{name} unedited": counted[0][name].tolist(), f"{name} edited": counted[1][name].tolist()}
    return pd.DataFrame(frame).rename_axis("row")


def _per_answer(questions: Questions, scores: Mapping[str, AnswerScores]) -> pd.DataFrame:
    first = next(iter(scores.values()))
    answers = [(*question.true, *question.false) for question in questions]
    places = [(row, column) for row, own in enumerate(answers) for column in range(len(own))]
    rows, columns = torch.tensor(places).unbind(1)
    return pd.DataFrame(
        {
            "row": rows.tolist(),
            "answer": [answers[row][column] for row, column in places],
            "is_true": first.is_true[rows, columns].tolist(),
            "n_tokens": first.n_tokens[rows, columns].tolist(),
            **{name: found.log_probabilities[rows, columns].tolist() for name, found in scores.items()},
        }
    ).set_index("row")
