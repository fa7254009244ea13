"""What an edit does to answers, with confidence intervals, and to everything else the model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import pandas as pd
import torch
from torch import Tensor

from sea_lens.editor import Editor
from sea_lens.edits import precise_dtype
from sea_lens.errors import InputError
from sea_lens.models import Model, PaddedTokens, check_context_length, greedy_answers, token_ids
from sea_lens.questions import Questions
from sea_lens.scoring import completion_log_probabilities


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
        """Wilson's score interval: see `wilson_interval`."""
        return wilson_interval(float(self.successes), self.n, confidence)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is sound near its ends.

    Args:
        successes: Of n independent trials; a fraction where a trial can come out half true.
        n: Number of trials.
        confidence: Of the interval.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    # At 0 and n successes the interval ends at 0 and 1 exactly, whatever rounding says.
    return (0.0 if successes == 0 else centre - reach), (1.0 if successes == n else centre + reach)


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


@dataclass(frozen=True)
class Preferences:
    """Whether the model finds a true completion likelier than every false one.

    Attributes:
        table: One row a question: `prompt`, `margin` (log-probability of the likeliest true completion less that of the
            likeliest false one, in nats), and `truthful`, whether it is above zero.
    """

    table: pd.DataFrame

    @property
    def truthful(self) -> Proportion:
        """Share of questions with a true completion likelier than every false one."""
        return Proportion(int(self.table["truthful"].sum()), len(self.table))


def prefer_truth(model: Model, questions: Questions, *, batch_size: int = 16, progress: bool = False) -> Preferences:
    """Compares the summed log-probabilities of true and false completions, whatever the model would say by itself.

    Hooks that are on the model act. As longer completions are less likely, true and false ones should be alike in length.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: Each with a true and a false completion at least.
        batch_size: Texts in one forward pass.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a question has no false completion.
    """
    bare = [index for index, question in enumerate(questions) if not question.false]
    if bare:
        raise InputError(
            f"Questions {bare[:10]} have no false completion to compare with. Give each one, or drop them."
        )
    texts = [(q.prompt, completion) for q in questions for completion in (*q.true, *q.false)]
    scores = iter(completion_log_probabilities(model, texts, batch_size=batch_size, progress=progress))
    margins = [max(next(scores) for _ in q.true) - max(next(scores) for _ in q.false) for q in questions]
    table = pd.DataFrame({"prompt": [question.prompt for question in questions], "margin": margins})
    return Preferences(table.assign(truthful=table["margin"] > 0))


@torch.no_grad()
def kl_to_unedited(model: Model, editor: Editor, texts: Sequence[str], *, batch_size: int = 16) -> float:
    """Mean over tokens of KL(unedited || edited) of the next-token distributions, in nats: what an edit costs elsewhere.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        editor: The editor.
        texts: Text whose continuations should stay as they are. What follows a text's last token does not count.
        batch_size: Texts in one forward pass. It does not change the result.

    Raises:
        InputError: If no text has two tokens, or one does not fit the model's context.
    """
    if isinstance(texts, str) or batch_size < 1:
        raise InputError(
            f"Give a list of neutral texts and a batch_size of 1 at least; {texts!r:.60} and {batch_size} were given."
        )
    tokenised = [token_ids(model, text) for text in texts]
    rows = [ids for ids in tokenised if len(ids) > 1]
    if not rows:
        raise InputError("KL is measured where one token of a text follows another, and no text has two tokens.")
    check_context_length(model, [len(ids) for ids in tokenised], [f"Neutral text {i}" for i in range(len(tokenised))])
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        tokens = PaddedTokens.of(model, rows[start : start + batch_size])
        unedited = _log_probabilities(model, tokens)
        with editor.attached(model):
            edited = _log_probabilities(model, tokens)
        inside = tokens.mask[:, 1:].to(unedited.device)
        total += float((unedited.exp() * (unedited - edited)).sum(-1)[:, :-1][inside].sum())
        count += int(inside.sum())
    return total / count


def _log_probabilities(model: Model, tokens: PaddedTokens) -> Tensor:
    logits = model(tokens.ids, **tokens.forward_options())
    return logits.to(precise_dtype(logits.device)).log_softmax(-1)  # small divergences are differences of equal numbers


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".!?").strip().casefold()
