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
from sea_lens.models.branched_tokens import branched_tokens, may_branch
from sea_lens.models.branching import Unembedding
from sea_lens.models.bridge import EditsModels, Model
from sea_lens.models.distributions import log_softmax, summed_at
from sea_lens.models.tokens import PaddedTokens, Stem, stems_of
from sea_lens.models.trees import TokenTree

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
        places: By token of each completion, question after question, which predicts it.
        n_right: By question.
    """

    indices: list[int]
    stems: list[Stem]
    tokens: PaddedTokens
    where: Bool[Tensor, "rows pos"]
    after: list[int]
    places: list[int]
    n_right: list[int]

    @classmethod
    def of(
        cls,
        model: Model,
        stems: Sequence[Stem],
        indices: Sequence[int],
        n_right: Sequence[int],
        trees: Sequence[Sequence[TokenTree]],
    ) -> QuestionBatch:
        """The rows of some questions.

        Args:
            model: The model.
            stems: Of these questions.
            indices: Which questions they are.
            n_right: How many of each one's completions are right.
            trees: By question, its rows of tokens.
        """
        chosen: list[list[int]] = []  # by row, the places that are read
        after: list[int] = []
        places: list[int] = []
        n_read = 0
        for stem, own in zip(stems, trees, strict=True):
            head = len(stem.prompt) - 1  # trunks do not branch
            after.append(n_read)
            paths: list[list[int]] = []  # by row of the stem, the numbers of what is read along it
            for tree in own:
                start = head + bool(paths)
                chosen.append(list(range(start, len(tree))))
                for path in tree.paths:
                    paths.append([after[-1], *(n_read + place - start for place in path[head + 1 :])])
                n_read += len(chosen[-1])
            for completion in stem.completions:
                path = paths[stem.row_of(completion) if stem.rows else 0]
                places += path[: len(completion)]
        lengths = [len(stem.prompt) for stem, own in zip(stems, trees, strict=True) for _ in own]
        tokens = branched_tokens(model, [tree for own in trees for tree in own], lengths)
        where = torch.zeros_like(tokens.mask)
        for number, read in enumerate(chosen):
            where[number, read] = True
        return cls(list(indices), list(stems), tokens, where, after, places, list(n_right))

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
        completions = [completion for stem in self.stems for completion in stem.completions]
        found = summed_at(unembedding.parts(states), self.places, completions)
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


def _trees(stem: Stem, share_prompts: bool) -> list[TokenTree]:
    """A question's rows: the prompt with every completion, or with as many as have room side by side."""
    groups: list[list[list[int]]] = []
    room = 0
    for row in stem.rows or [[]]:
        if not groups or not share_prompts or len(row) > room:
            groups.append([])
            room = TOKENS_IN_A_ROW - len(stem.prompt)
        groups[-1].append([*stem.prompt, *row])
        room -= len(row)
    return [TokenTree.of(group) for group in groups]


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
    trees = [_trees(stem, share_prompts) for stem in stems]
    longest = max((len(tree) for own in trees for tree in own if len(tree.paths) > 1), default=0)
    if longest and not may_branch(model, editors, longest):
        trees = [_trees(stem, False) for stem in stems]
    lengths = [list(map(len, own)) for own in trees]
    chunks = length_sorted(model, lengths, batch_size, max(1, NEXT_TOKEN_VALUES // model.cfg.d_vocab))
    return [
        QuestionBatch.of(
            model,
            [stems[k] for k in chunk],
            chunk,
            [len(questions[k].right) for k in chunk],
            [trees[k] for k in chunk],
        )
        for chunk in chunks
    ]
