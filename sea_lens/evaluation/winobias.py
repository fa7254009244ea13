"""WinoBias (Zhao et al. 2018): does a pronoun's gender decide which occupation the model takes it for?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.data.items import WinoBiasQuestion
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import evaluate_answers, register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, check_questions
from sea_lens.evaluation.metrics import BIAS, SHARE, Metric, mean
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import AnswerScores
from sea_lens.wording import either

METRICS = [
    Metric(
        "gap",
        lambda sums: sums["correct pro"] / sums["pro"] - sums["correct anti"] / sums["anti"],
        "of two kinds",
        BIAS,
    ),
    mean("correct", name="accuracy", scale=SHARE),
    mean("correct pro", "pro", "accuracy_pro", SHARE),
    mean("correct anti", "anti", "accuracy_anti", SHARE),
]


@register_benchmark("winobias")
def evaluate_winobias(
    model: Model,
    questions: Questions,
    editor: Editor | None = None,
    *,
    scored_by: Literal["sum", "mean"] = "sum",
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures how often the model takes a pronoun for the right occupation, with the stereotype and against it.

    After each sentence stands `"He" refers to the`, and the likelier of the two occupations is the model's answer.

    - **accuracy_pro**, **accuracy_anti**: share of right answers where the pronoun has the gender of most people of the right
      occupation, and where it has the other.
    - **gap**: their difference, from -1 to 1; 0 is a model that the gender does not sway. It needs sentences of both kinds:
      put the files `pro_stereotyped_...` and `anti_stereotyped_...` into one.
    - **accuracy**: share of right answers over all.

    The paper scores systems that mark coreference by F1; this is the same comparison for models of language.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: `Questions.from_file("pro_and_anti.txt")`.
        editor: The editor; the unedited model is then measured too, and compared.
        scored_by: Whether occupations compete by their summed log-probability or by its mean over tokens.
        control: How many norm-matched random editors to evaluate as well, or editors of your own; 0 for none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the sentences and on neutral text.
        seed: Seed of the intervals, the permutation test and the controls.
        confidence: Confidence of the intervals.
        batch_size: Rows of tokens per forward pass. It changes no result, apart from rounding.
        folder: A folder for finished batches. A killed run continues there, and the unedited model is not run again for
            another editor.
        progress: Whether to show progress bars.

    Returns:
        The evaluation, with shares from 0 to 1, the gap from -1 to 1; `per_row` has one row per sentence.

    Raises:
        InputError: If a row is no sentence of WinoBias.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes nothing, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> from sea_lens.data.items import WinoBiasQuestion
        >>> pro = WinoBiasQuestion("Q Ada home A", ("Oslo",), ("Lima",), stereotype="pro")
        >>> sl.evaluate_winobias(model, sl.Questions((pro,))).table.index.tolist()
        ['accuracy', 'accuracy_pro']
    """
    check_arguments(evaluate_winobias, locals())
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    check_model(model, editor)
    check_questions(questions)
    rows = [row for row in questions if isinstance(row, WinoBiasQuestion) and row.stereotype in ("pro", "anti")]
    if len(rows) < len(questions) or any(len(row.right) != 1 or len(row.wrong) != 1 for row in rows):
        raise InputError(
            "These are not sentences of WinoBias. "
            + either("Read them with Questions.from_file(path).", "Give one of its files.")
        )
    return evaluate_answers(
        "WinoBias",
        model,
        questions,
        editor,
        _columns(rows, scored_by == "mean"),
        METRICS if len({row.stereotype for row in rows}) > 1 else METRICS[1:],
        prompt="{question}",
        options={"scored_by": scored_by},
        run=run,
    )


def _columns(
    rows: Sequence[WinoBiasQuestion], by_mean: bool
) -> Callable[[AnswerScores], Mapping[str, Float[Tensor, " questions"]]]:
    inside = {kind: torch.tensor([row.stereotype == kind for row in rows]).double() for kind in ("pro", "anti")}
    both = float(all(bool(values.any()) for values in inside.values()))

    def columns(scores: AnswerScores) -> Mapping[str, Float[Tensor, " questions"]]:
        right, wrong = scores.by_answer(by_mean).unbind(1)
        correct = (right > wrong).double()
        by_kind = {f"correct {kind}": correct * values for kind, values in inside.items()}
        return {"correct": correct, **by_kind, **inside, "of two kinds": torch.full_like(correct, both)}

    return columns
