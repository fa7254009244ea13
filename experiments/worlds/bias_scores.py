"""What answers to the bias world's questions are judged by: six of BBQ's metrics, by the names of the tables here."""

from __future__ import annotations

from collections.abc import Sequence

from sea_lens.data.questions import Questions
from sea_lens.evaluation.bbq import score_bbq

METRICS = {
    "ambig accuracy": "accuracy_ambiguous",
    "disambig accuracy": "accuracy_disambiguated",
    "ambig unknown": "unknown_rate_ambiguous",
    "disambig unknown": "unknown_rate_disambiguated",
    "s_AMB": "bias_score_ambiguous",
    "s_DIS": "bias_score_disambiguated",
}


def bias_scores(questions: Questions, answers: Sequence[str]) -> dict[str, float]:
    """The six numbers by name; NaN where no question is of the context.

    Args:
        questions: From `BiasWorld.questions`.
        answers: One to each.
    """
    found = score_bbq(questions, answers)
    return {name: found[metric] for name, metric in METRICS.items()}
