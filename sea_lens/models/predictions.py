"""What a model predicts about questions: what effects are measured on.

Runs under many editors share blocks (`models/branching.py`), so a prompt and its answers are run in one pass here and not
after a cached beginning. Where a model allows it (`models/trees.py`), the answers stand side by side in one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.models.batches import length_sorted
from sea_lens.models.branching import Unembedding
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.log_probs import log_softmax, summed
from sea_lens.models.tokens import PaddedTokens, Stem, stems_of
from sea_lens.models.trees import Row, branched_tokens, may_branch

TOKENS_IN_A_ROW = 512
"""Tokens of a prompt and answers side by side; a prompt with one answer may have more."""
NEXT_TOKEN_VALUES = 2**22
"""Values of the next-token distributions of a batch's questions, 32 MiB in float64."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts about questions, all in float64 nats. Columns are completions, the right ones first.

    Attributes:
        read_next_token: Computes `next_token`.
        first_tokens: First token of each completion, `[questions, completions]`.
        log_probabilities: Summed log-probability of each whole completion, `[questions, completions]`.
        is_right: Which completions are right, `[questions, completions]`.
        is_wrong: Which are wrong. Places without a completion are neither.
        n_tokens: Length of each completion; 0 where there is none, `[questions, completions]`.
    """

    read_next_token: Callable[[], Float[Tensor, "questions d_vocab"]]
    first_tokens: Int[Tensor, "questions completions"]
    log_probabilities: Float[Tensor, "questions completions"]
    is_right: Bool[Tensor, "questions completions"]
    is_wrong: Bool[Tensor, "questions completions"]
    n_tokens: Int[Tensor, "questions completions"]

    @cached_property
    def next_token(self) -> Float[Tensor, "questions d_vocab"]:
        """Log-probabilities of the token after the prompt. Made when first asked for: a vocabulary is large."""
        return self.read_next_token()


@dataclass(frozen=True, eq=False)
class QuestionBatch:
    """Questions as the token rows that have to be run for all of their completions.

    A completion's last token need not be run, and one that is the beginning of another needs no row of its own: one-word
    answers cost one row per question.

    Attributes:
        indices: Which questions.
        stems: Their prompts and completions.
        tokens: The rows, padded.
        where: The positions that are read.
        after: By question, which of these positions is its prompt's last.
        along: By question and row, which is the first behind the prompt.
        n_right: By question.
    """

    indices: list[int]
    stems: list[Stem]
    tokens: PaddedTokens
    where: Bool[Tensor, "rows pos"]
    after: list[int]
    along: list[list[int]]
    n_right: list[int]

    @classmethod
    def of(
        cls,
        model: Model,
        stems: Sequence[Stem],
        indices: Sequence[int],
        n_right: Sequence[int],
        *,
        share_prompts: bool = False,
    ) -> QuestionBatch:
        """The rows of some questions.

        Args:
            model: The model.
            stems: Of these questions.
            indices: Which questions they are.
            n_right: How many of each one's completions are right.
            share_prompts: Whether completions may stand side by side after one prompt.
        """
        rows: list[Row] = []
        starts: list[int] = []
        after: list[int] = []
        along: list[list[int]] = []
        n_read = 0
        for stem in stems:
            after.append(n_read)
            along.append([])
            for group in _groups(stem, share_prompts):
                rows.append((stem.prompt, group))
                starts.append(len(stem.prompt) - (not along[-1]))
                for row in group or [[]]:
                    is_first = not along[-1]
                    along[-1].append(n_read + is_first)
                    n_read += len(row) + is_first
        tokens = branched_tokens(model, rows)
        columns = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
        where = tokens.mask & (columns >= torch.tensor(starts, device=tokens.ids.device)[:, None])
        return cls(list(indices), list(stems), tokens, where, after, along, list(n_right))

    def predictions(self, states: Float[Tensor, "n width"], unembedding: Unembedding) -> Predictions:
        """Reads the predictions off.

        Args:
            states: What the unembedding reads at `where`, row after row.
            unembedding: Makes logits of it.
        """
        shape = len(self.stems), max(len(stem.completions) for stem in self.stems)
        scores, first = torch.full(shape, -torch.inf, dtype=torch.float64), torch.zeros(shape, dtype=torch.long)
        is_right, is_wrong = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        n_tokens = torch.zeros(shape, dtype=torch.long)
        found = summed(unembedding.parts(states), self.stems, self.after, self.along)
        sizes = [len(stem.completions) for stem in self.stems]
        for row, (stem, own, n_right) in enumerate(
            zip(self.stems, torch.split(found, sizes), self.n_right, strict=True)
        ):
            scores[row, : len(own)] = own
            first[row, : len(own)] = torch.tensor([completion[0] for completion in stem.completions])
            n_tokens[row, : len(own)] = torch.tensor(list(map(len, stem.completions)))
            is_right[row, :n_right] = True
            is_wrong[row, n_right : len(own)] = True
        after = states[torch.tensor(self.after, device=states.device)]

        def next_token() -> Tensor:
            return torch.cat([log_softmax(part).cpu() for part in unembedding.parts(after)])

        return Predictions(next_token, first, scores, is_right, is_wrong, n_tokens)


def _groups(stem: Stem, share_prompts: bool) -> list[list[list[int]]]:
    """A question's rows, those that stand side by side together."""
    groups: list[list[list[int]]] = []
    room = 0
    for row in stem.rows:
        if not share_prompts or len(row) > room:
            groups.append([])
            room = TOKENS_IN_A_ROW - len(stem.prompt)
        groups[-1].append(row)
        room -= len(row)
    return groups or [[]]


def mean_lengths(batches: Sequence[QuestionBatch]) -> tuple[float, float]:
    """Mean number of tokens of right and of wrong answers, over questions that have both."""
    sides: list[tuple[float, float]] = []
    for batch in batches:
        for stem, n_right in zip(batch.stems, batch.n_right, strict=True):
            lengths = list(map(len, stem.completions))
            if 0 < n_right < len(lengths):
                sides.append((fmean(lengths[:n_right]), fmean(lengths[n_right:])))
    right, wrong = zip(*sides, strict=True) if sides else ((1.0,), (1.0,))
    return fmean(right), fmean(wrong)


def question_batches(
    model: Model,
    questions: Questions,
    batch_size: int,
    editors: Sequence[EditsModels | None] = (None,),
    *,
    share_prompts: bool = True,
) -> list[QuestionBatch]:
    """All questions in batches, those of like length together, the longest first.

    A batch holds at most `batch_size` rows of tokens, and fewer where padding or memory would pass the limits of
    `length_sorted`, or the next-token distributions that above. A question is never split.

    Args:
        model: A TransformerBridge with a tokenizer.
        questions: The questions.
        batch_size: Maximum of rows in a batch.
        editors: Under which they are to be run; None is the unedited model.
        share_prompts: Whether a question's answers may stand side by side in one row, where the model and the editors allow
            it. It does not change the result, but for rounding.

    Raises:
        InputError: If `batch_size` is below 1, a completion comes out as no tokens, or one does not fit the context.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    stems = stems_of(model, questions)
    if share_prompts:
        groups = [(stem.prompt, group) for stem in stems for group in _groups(stem, True) if len(group) > 1]
        longest = max(groups, key=lambda row: len(row[0]) + sum(map(len, row[1])), default=None)
        share_prompts = longest is not None and may_branch(model, editors, longest)
    lengths = [[len(stem.prompt) + sum(map(len, group)) for group in _groups(stem, share_prompts)] for stem in stems]
    chunks = length_sorted(model, lengths, batch_size, max(1, NEXT_TOKEN_VALUES // model.cfg.d_vocab))
    return [
        QuestionBatch.of(
            model,
            [stems[k] for k in chunk],
            chunk,
            [len(questions[k].right) for k in chunk],
            share_prompts=share_prompts,
        )
        for chunk in chunks
    ]
