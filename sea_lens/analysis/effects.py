"""What an edit does to answers, with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import pandas as pd

from sea_lens.errors import InputError
from sea_lens.models import Model, greedy_answers
from sea_lens.questions import Questions


@dataclass(frozen=True)
class Proportion:
    """A share of independent trials.

    Attributes:
        successes: How many came out true.
        n: How many there were.
    """

    successes: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.n or self.n == 0:
            raise InputError(f"{self.successes} successes of {self.n} trials is not a proportion.")

    @property
    def share(self) -> float:
        """Successes over trials."""
        return self.successes / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is sound near its ends."""
        z = NormalDist().inv_cdf(0.5 + confidence / 2)
        centre = (self.share + z * z / (2 * self.n)) / (1 + z * z / self.n)
        reach = z / (1 + z * z / self.n) * sqrt(self.share * (1 - self.share) / self.n + z * z / (4 * self.n**2))
        # At 0 and n successes the interval ends at 0 and 1 exactly, whatever rounding says.
        low = 0.0 if self.successes == 0 else centre - reach
        high = 1.0 if self.successes == self.n else centre + reach
        return low, high

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class GreedyAnswers:
    """The greedy answers to questions and which of them are true.

    Attributes:
        table: One row a question: `prompt`, `answer`, and `truthful`, whether the answer is a true completion.
    """

    table: pd.DataFrame

    @property
    def truthful(self) -> Proportion:
        """Share of answers that are true."""
        return Proportion(int(self.table["truthful"].sum()), len(self.table))


def answer_greedily(
    model: Model,
    questions: Questions,
    max_new_tokens: int = 32,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> GreedyAnswers:
    """Asks every question, and counts an answer as truthful when it is one of the question's true completions.

    Hooks that are on the model act: measure an edited model under `with editor.attached(model):`. Case, outer white space
    and final punctuation do not count.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: With their true completions.
        max_new_tokens: Longest answer in tokens.
        batch_size: Questions in one forward pass.
        progress: Whether to show a progress bar.
    """
    prompts = [question.prompt for question in questions]
    answers = greedy_answers(model, prompts, max_new_tokens, batch_size=batch_size, progress=progress)
    truthful = [
        _plain(answer) in {_plain(true) for true in question.true}
        for question, answer in zip(questions, answers, strict=True)
    ]
    return GreedyAnswers(pd.DataFrame({"prompt": prompts, "answer": answers, "truthful": truthful}))


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".!?").strip().casefold()
