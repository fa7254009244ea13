"""Which answers a model gives or prefers, and how many of them are right."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import AnswerScores, score_answers
from sea_lens.models.matching import MATCHES, Match
from sea_lens.results import Result
from sea_lens.statistics import Proportion

UNLIKE_LENGTHS = 1.5
"""From this ratio of the mean lengths of right and wrong answers on, sums of log-probabilities are warned of."""


@dataclass(frozen=True, repr=False)
class GreedyAnswers(Result):
    """The greedy answers to questions and which of them are right.

    Attributes:
        table: One row per question: `prompt`, `answer`, and `right`, whether it counts as right.
        match: What counts as right: `contains`, `exact` or `rouge`.
    """

    table: pd.DataFrame
    match: Match = "contains"

    @property
    def right(self) -> Proportion:
        """Share of answers that are right."""
        return Proportion(int(self.table["right"].sum()), len(self.table))


def answer_greedily(
    model: Model,
    questions: Questions,
    max_new_tokens: int = 32,
    *,
    match: Match = "contains",
    batch_size: int = 64,
    progress: bool = False,
) -> GreedyAnswers:
    """Asks every question, and compares the answers with the known right and wrong ones.

    Hooks that are on the model act: measure an edited model under `with editor.attached(model):`.

    Example:
        >>> with editor.attached(model):
        ...     print(sl.answer_greedily(model, questions, max_new_tokens=1).right)
        95.0% [76.4, 99.1]

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: With their right answers.
        max_new_tokens: Longest answer in tokens.
        match: When an answer is right. `"contains"`: it holds a right answer, word for word, and no wrong one. `"exact"`: it
            equals a right answer, but for case, outer white space and final punctuation. `"rouge"`: by ROUGE-L it is nearer
            to a right answer than to every wrong one, as TruthfulQA counts.
        batch_size: Questions in one forward pass.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per question with its answer and whether it is right; `right` counts them.

    Raises:
        InputError: If `match` is something else, or `"rouge"` where a question has no wrong answer.
    """
    check_arguments(answer_greedily, locals())
    check_is_model(model)
    if match not in MATCHES:
        raise InputError(f"match is one of {', '.join(MATCHES)}, and {match!r} was given.")
    if match == "rouge":
        check_compared(questions)
    prompts = [question.prompt for question in questions]
    answers = greedy_answers(model, prompts, max_new_tokens, batch_size=batch_size, progress=progress)
    right = right_ones(answers, questions, match)
    return GreedyAnswers(pd.DataFrame({"prompt": prompts, "answer": answers, "right": right}), match)


def right_ones(answers: Sequence[str], questions: Questions, match: Match) -> list[bool]:
    """Which answers to questions are right, as for `answer_greedily`."""
    return [
        MATCHES[match](answer, question.right, question.wrong)
        for question, answer in zip(questions, answers, strict=True)
    ]


@dataclass(frozen=True, repr=False)
class Preferences(Result):
    """Whether the model finds a right answer likelier than every wrong one.

    Attributes:
        table: One row per question: `prompt`, `margin` (log-probability of the likeliest right answer less that of the
            likeliest wrong one, in nats), and `right`, whether it is above zero.
        per_token: Whether log-probabilities are means over an answer's tokens, and not sums.
    """

    table: pd.DataFrame
    per_token: bool = False

    @property
    def right(self) -> Proportion:
        """Share of questions with a right answer likelier than every wrong one."""
        return Proportion(int(self.table["right"].sum()), len(self.table))


def prefer_right(
    model: Model,
    questions: Questions,
    *,
    per_token: bool = False,
    best_only: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> Preferences:
    """Compares the log-probabilities of right and wrong answers, whatever the model would say by itself.

    Hooks that are on the model act. Sums favor short answers, and the more so the less a model knows: where right answers
    are the shorter ones, any damage looks like a gain. Means over tokens do not.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: Each with at least one right and one wrong answer.
        per_token: Whether to take the mean over an answer's tokens instead of the sum.
        best_only: Whether only the first right answer counts, as in TruthfulQA's MC1.
        batch_size: Rows in one forward pass.
        progress: Whether to show a progress bar.

    Returns:
        A result whose `table` has one row per question with its margin in nats and whether it is above zero; `right`
        counts them.

    Raises:
        InputError: If a question has no wrong answer, or the model predicts NaN.

    Warns:
        SeaLensWarning: If sums are compared, and right and wrong answers differ in length by half or more.

    Example:
        >>> with editor.attached(model):
        ...     print(sl.prefer_right(model, questions, per_token=True).right)
        95.0% [76.4, 99.1]
    """
    check_arguments(prefer_right, locals())
    check_is_model(model)
    check_compared(questions)
    scores = score_answers(model, questions, batch_size=batch_size, progress=progress)
    if not per_token:
        _warn_of_scored(scores)
    margins = margins_of(scores, per_token=per_token, best_only=best_only).tolist()
    table = pd.DataFrame({"prompt": [question.prompt for question in questions], "margin": margins})
    return Preferences(table.assign(right=table["margin"] > 0), per_token)


def margins_of(scores: AnswerScores, *, per_token: bool, best_only: bool) -> Float[Tensor, " questions"]:
    """By question, the log-probability of the likeliest right answer less that of the likeliest wrong one, in nats.

    Args:
        scores: Of all answers.
        per_token: Whether to take the mean over an answer's tokens instead of the sum.
        best_only: Whether only the first right answer counts.
    """
    values, right = scores.by_answer(per_token), scores.is_right.clone()
    if best_only:
        right[:, 1:] = False
    best = [values.masked_fill(~own, -torch.inf).amax(1) for own in (right, scores.is_wrong)]
    return best[0] - best[1]


def check_compared(questions: Questions) -> None:
    """Refuses questions that right answers cannot be compared on.

    Raises:
        InputError: If a question has no wrong answer.
    """
    bare = [index for index, question in enumerate(questions) if not question.wrong]
    if bare:
        raise InputError(f"Questions {bare[:10]} have no wrong answer to compare with. Give each one, or drop them.")


def warn_of_lengths(right: float, wrong: float, sums: str, instead: str, *, stacklevel: int) -> None:
    """Warns where sums over tokens compare answers of unlike lengths.

    Args:
        right: Mean number of tokens of right answers.
        wrong: Of wrong ones.
        sums: What is summed, as the sentence's subject.
        instead: What to take instead.
        stacklevel: As of `warnings.warn`, counted from the caller.

    Warns:
        SeaLensWarning: If one side is longer by half or more.
    """
    if max(right, wrong) >= UNLIKE_LENGTHS * min(right, wrong):
        shorter = "right" if right < wrong else "wrong"
        effect = "rises" if right < wrong else "falls"
        warnings.warn(
            f"Right answers have {right:.3g} tokens on average and wrong ones {wrong:.3g}. {sums} favors the shorter "
            f"{shorter} ones, and {effect} with any damage to the model. Take {instead}.",
            SeaLensWarning,
            stacklevel=stacklevel + 1,
        )


def _warn_of_scored(scores: AnswerScores) -> None:
    lengths = scores.n_tokens.double()
    right, wrong = (
        float(((lengths * own).sum(1) / own.sum(1).clamp(min=1)).mean()) for own in (scores.is_right, scores.is_wrong)
    )
    warn_of_lengths(right, wrong, "A sum of log-probabilities", "per_token=True", stacklevel=3)
