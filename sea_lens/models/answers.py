"""Which answers a model gives or prefers, and how many of them are right."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch

from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model
from sea_lens.models.generate import greedy_answers
from sea_lens.models.log_probs import score_answers
from sea_lens.results import Result
from sea_lens.statistics import Proportion


@dataclass(frozen=True, repr=False)
class GreedyAnswers(Result):
    """The greedy answers to questions and which of them are right.

    Attributes:
        table: One row per question: `prompt`, `answer`, and `right`, whether the answer is one of the question's right ones.
    """

    table: pd.DataFrame

    @property
    def right(self) -> Proportion:
        """Share of answers that are right."""
        return Proportion(int(self.table["right"].sum()), len(self.table))


def answer_greedily(
    model: Model,
    questions: Questions,
    max_new_tokens: int = 32,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> GreedyAnswers:
    """Asks every question, and counts an answer as right when it equals one of the question's right answers.

    Hooks that are on the model act: measure an edited model under `with editor.attached(model):`. Case, outer white space
    and final punctuation do not count.

    Example:
        >>> with editor.attached(model):
        ...     print(answer_greedily(model, questions).right)
        93.3% [84.1, 97.4]

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: With their right answers.
        max_new_tokens: Longest answer in tokens.
        batch_size: Questions in one forward pass.
        progress: Whether to show a progress bar.
    """
    prompts = [question.prompt for question in questions]
    answers = greedy_answers(model, prompts, max_new_tokens, batch_size=batch_size, progress=progress)
    right = [
        _plain(answer) in {_plain(right) for right in question.right}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return GreedyAnswers(pd.DataFrame({"prompt": prompts, "answer": answers, "right": right}))


@dataclass(frozen=True, repr=False)
class Preferences(Result):
    """Whether the model finds a right answer likelier than every wrong one.

    Attributes:
        table: One row per question: `prompt`, `margin` (log-probability of the likeliest right answer less that of the
            likeliest wrong one, in nats), and `right`, whether it is above zero.
    """

    table: pd.DataFrame

    @property
    def right(self) -> Proportion:
        """Share of questions with a right answer likelier than every wrong one."""
        return Proportion(int(self.table["right"].sum()), len(self.table))


def prefer_right(model: Model, questions: Questions, *, batch_size: int = 16, progress: bool = False) -> Preferences:
    """Compares the summed log-probabilities of right and wrong answers, whatever the model would say by itself.

    Hooks that are on the model act. Longer answers are less likely, so right and wrong ones should be of similar length.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: Each with at least one right and one wrong answer.
        batch_size: Rows in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a question has no wrong answer, or the model predicts NaN.
    """
    bare = [index for index, question in enumerate(questions) if not question.wrong]
    if bare:
        raise InputError(f"Questions {bare[:10]} have no wrong answer to compare with. Give each one, or drop them.")
    scores = score_answers(model, questions, batch_size=batch_size, progress=progress)
    best = [scores.by_answer().masked_fill(~own, -torch.inf).amax(1) for own in (scores.is_right, scores.is_wrong)]
    margins = (best[0] - best[1]).tolist()
    table = pd.DataFrame({"prompt": [question.prompt for question in questions], "margin": margins})
    return Preferences(table.assign(right=table["margin"] > 0))


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".!?").strip().casefold()
