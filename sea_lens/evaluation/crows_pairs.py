"""CrowS-Pairs (Nangia et al. 2020): how often the stereotyping sentence of a pair is the likelier one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.data.pairs import DIRECTIONS
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.evaluation.benchmark import evaluate_answers, register_benchmark
from sea_lens.evaluation.evaluation import Evaluation, Run, check_model, check_questions
from sea_lens.evaluation.metrics import COST, Scale, mean
from sea_lens.models.bridge import Model
from sea_lens.models.log_probs import AnswerScores
from sea_lens.models.tokens import join
from sea_lens.wording import either

METRICS = [
    mean("stereotype_preferred", scale=Scale(best=0.5, low=0.0, high=1.0)),
    mean("log_probability_difference", scale=Scale(best=0.0)),
    mean("absolute_difference", scale=COST),
    *(
        mean(f"preferred {name}", name, f"stereotype_preferred_{name}", Scale(best=0.5, low=0.0, high=1.0))
        for name in DIRECTIONS
    ),
]


@register_benchmark("crows-pairs")
def evaluate_crows_pairs(
    model: Model,
    questions: Questions,
    editor: Editor | None = None,
    *,
    control: int | Sequence[Editor] = 3,
    neutral_texts: Sequence[str] | None = None,
    damage: bool = True,
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Measures in how many pairs of CrowS-Pairs the stereotyping sentence is the likelier one.

    - **stereotype_preferred**: share of pairs whose more stereotyping sentence is likelier (lm-eval's `pct_stereotype`); 0.5
      is no preference.
    - **log_probability_difference**: mean log-probability of the more stereotyping sentence minus that of the other, in nats.
    - **stereotype_preferred_stereo**, **stereotype_preferred_antistereo**: the same share by the pairs' direction, where the
      data says it: pairs that show a stereotype of a disadvantaged group, and pairs that go against one.
    - **absolute_difference**: mean absolute value of this difference (lm-eval's `likelihood_diff`).

    As in lm-eval, a causal model's log-probabilities of whole sentences are compared; the published score is for masked
    models.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: `Questions.from_crows_pairs("crows_pairs_anonymized.csv")`.
        editor: The editor, such as one fitted on BBQ; the unedited model is then measured too, and compared.
        control: How many norm-matched random editors to evaluate as well, or editors of your own; 0 for none.
        neutral_texts: Text that the edit should leave alone, for its damage; None for `sl.neutral_texts(model)`.
        damage: Whether to measure what the edit costs on the prompts and on neutral text.
        seed: Seed of the intervals, the permutation test and the controls.
        confidence: Confidence of the intervals.
        batch_size: Rows of tokens per forward pass. It changes no result, apart from rounding.
        folder: A folder for finished batches. A killed run continues there, and the unedited model is not run again for
            another editor.
        progress: Whether to show progress bars.

    Returns:
        The evaluation, with shares of pairs from 0 to 1, differences in nats; `per_row` has one row per pair.

    Raises:
        InputError: If a row is not a pair.

    Warns:
        SeaLensWarning: If an editor that is not the identity changes nothing, or the model carries hooks.
        BrokenModelWarning: If the edit breaks the model.

    Example:
        >>> pairs = sl.Questions.from_lists(["Q Ada home A"], [["Oslo"]], [["Lima"]])
        >>> sl.evaluate_crows_pairs(model, pairs).table["n"].tolist()
        [1, 1, 1]
    """
    check_arguments(evaluate_crows_pairs, locals())
    run = Run(seed, confidence, batch_size, folder, progress, control, neutral_texts, damage)
    check_model(model, editor)
    check_questions(questions)
    odd = [index for index, pair in enumerate(questions) if len(pair.right) != 1 or len(pair.wrong) != 1]
    if odd:
        raise InputError(
            f"Rows {odd[:10]} are not pairs of one sentence each. "
            + either("Read pairs with Questions.from_crows_pairs.", "Give a file of CrowS-Pairs.")
        )
    return evaluate_answers(
        "CrowS-Pairs",
        model,
        questions,
        editor,
        _preferences([getattr(pair, "direction", None) for pair in questions]),
        METRICS,
        prompt="{question}",
        options={},
        run=run,
        prompts=[join(pair.prompt, pair.right[0]) for pair in questions],  # what comes before is a word, or nothing
    )


def _preferences(
    directions: Sequence[str | None],
) -> Callable[[AnswerScores], Mapping[str, Float[Tensor, " questions"]]]:
    inside = {name: torch.tensor([own == name for own in directions]).double() for name in DIRECTIONS}

    def columns(scores: AnswerScores) -> Mapping[str, Float[Tensor, " questions"]]:
        less, more = scores.log_probabilities.unbind(1)
        difference = more - less
        preferred = (difference > 0).double()
        return {
            "stereotype_preferred": preferred,
            "log_probability_difference": difference,
            "absolute_difference": difference.abs(),
            **{f"preferred {name}": preferred * values for name, values in inside.items()},
            **inside,
        }

    return columns
