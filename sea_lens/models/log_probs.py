"""The log-probability of every answer to every question, each shared beginning computed once: what benchmarks stand on.

What all questions begin with (a few-shot prompt) is run once a benchmark, and a question's own prompt once, whatever the
number of its answers. Questions whose prompts have one length are run together, so that no row is padded in the middle,
and the result is that of scoring each answer alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store
from sea_lens.data.questions import Questions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import precise_dtype
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, weights_digest
from sea_lens.models.distributed import from_each, n_processes, rank, share_of, together
from sea_lens.models.predictions import tokenised_questions
from sea_lens.models.prefixes import CachedPrefix, length_to_share
from sea_lens.models.tokens import PaddedTokens, check_context_length


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """What a model gives the answers of questions. Columns are answers, the true ones first.

    Attributes:
        log_probabilities: Summed log-probability of each whole answer in nats, in float64; NaN where a question has no such
            answer, `[questions, answers]`.
        n_tokens: Of each answer; 0 where there is none, `[questions, answers]`.
        is_right: Which answers are true, `[questions, answers]`.
        is_wrong: Which are false, `[questions, answers]`.
    """

    log_probabilities: Float[Tensor, "questions answers"]
    n_tokens: Int[Tensor, "questions answers"]
    is_right: Bool[Tensor, "questions answers"]
    is_wrong: Bool[Tensor, "questions answers"]

    def by_answer(self, mean: bool = False) -> Float[Tensor, "questions answers"]:
        """Log-probabilities, summed or as the mean of an answer's tokens, with -inf where there is no answer."""
        values = self.log_probabilities / self.n_tokens.clamp(min=1) if mean else self.log_probabilities
        return values.masked_fill(self.n_tokens == 0, -torch.inf)


@dataclass(frozen=True)
class _Stem:
    """A question as tokens: its prompt, and every answer from where the first of them departs from the prompt."""

    index: int
    prompt: list[int]
    answers: list[list[int]]

    @property
    def rows(self) -> list[list[int]]:
        """What has to be run after the prompt: all answers but for their last tokens, none twice or inside another."""
        rows: list[list[int]] = []
        for row in sorted({tuple(answer[:-1]) for answer in self.answers}, key=lambda ids: (-len(ids), ids)):
            if row and not any(tuple(longer[: len(row)]) == row for longer in rows):
                rows.append(list(row))
        return rows


def score_answers(
    model: Model,
    questions: Questions,
    editor: Editor | None = None,
    *,
    share_prompts: bool = True,
    batch_size: int = 32,
    folder: str | Path | None = None,
    progress: bool = True,
) -> AnswerScores:
    """Log-probabilities of all answers, true and false, to all questions.

    All answers of a question are scored from the same token on, where the first of them departs from the prompt. The
    processes of `torchrun` or `accelerate launch` share the batches (see `processes.py`), and all have the scores of one.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        questions: With prompts as the model is to read them.
        editor: To edit the model with; None for none.
        share_prompts: Whether beginnings that texts share are run once. To be turned off for a model without a key-value
            cache. Editors are exact either way.
        batch_size: Rows in one forward pass. It does not change the result, but for rounding.
        folder: Where to keep finished batches, each scoring in a folder of its own. A run that was killed goes on there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If an answer comes out as no tokens or does not fit the model's context, or the model predicts NaN.
        ModelMismatchError: If the editor does not fit the model.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    if editor is not None:
        editor.check(model)
    stems = _stems(model, questions)
    start = length_to_share([stem.prompt for stem in stems]) if share_prompts else 0
    batches = _batches(stems, batch_size) if share_prompts else [[stem] for stem in stems]
    store = None
    if folder is not None:
        facts = {
            "weights": weights_digest(model),
            "questions": questions.fingerprint,
            "editor": None if editor is None else editor.fingerprint,
            "share_prompts": share_prompts,
            "batch_size": batch_size,
        }
        store = Store.within(folder, "scores", facts)
    shape = len(stems), max(len(stem.answers) for stem in stems)
    scores, n_tokens = torch.full(shape, torch.nan, dtype=torch.float64), torch.zeros(shape, dtype=torch.long)
    prefix: CachedPrefix | None = None
    own = share_of(range(len(batches)))
    count, parts = sum(len(batches[number]) for number in own), [torch.zeros(0, dtype=torch.float64)]
    silent = not progress or rank() > 0
    bar = tqdm(total=count, desc="scores", unit="question", disable=silent)
    with together(), ExitStack() as stack, bar:
        for number in own:
            batch = batches[number]
            kept = store.read(number) if store is not None else None
            if kept is None:
                if prefix is None:
                    if editor is not None:
                        stack.enter_context(editor.attached(model))
                    prefix = _prefix(model, stems, start)
                kept = {"scores": _score_batch(prefix, batch, batch_size, share_prompts)}
                _check(kept["scores"], batch)
                if store is not None:
                    store.write(number, kept)
            parts.append(kept["scores"])
            bar.update(len(batch))
    for process, found in enumerate(from_each(torch.cat(parts))):
        values = iter(found.tolist())
        for stem in chain.from_iterable(batches[process :: n_processes()]):
            for column, answer in enumerate(stem.answers):
                scores[stem.index, column], n_tokens[stem.index, column] = next(values), len(answer)
    n_right = torch.tensor([[len(question.right)] for question in questions])
    is_right = (torch.arange(shape[1])[None] < n_right) & (n_tokens > 0)
    return AnswerScores(scores, n_tokens, is_right, ~is_right & (n_tokens > 0))


def _stems(model: Model, questions: Questions) -> list[_Stem]:
    stems = []
    for index, texts in enumerate(tokenised_questions(model, list(questions))):
        lengths = [len(text.ids) for text in texts]
        check_context_length(model, lengths, [f"Question {index} with an answer"] * len(texts))
        start = min(text.answer_start for text in texts)
        stems.append(_Stem(index, texts[0].ids[:start], [text.ids[start:] for text in texts]))
    return stems


def _batches(stems: Sequence[_Stem], batch_size: int) -> list[list[_Stem]]:
    """Questions whose prompts have one length, the longest first, as many together as `batch_size` allows rows."""
    by_length: dict[int, list[_Stem]] = defaultdict(list)
    for stem in stems:
        by_length[len(stem.prompt)].append(stem)
    batches: list[list[_Stem]] = []
    for length in sorted(by_length, reverse=True):
        rows = batch_size + 1
        # Of one prompt length, those with long answers together: less padding.
        for stem in sorted(by_length[length], key=lambda stem: -max(map(len, stem.answers))):
            needed = max(1, len(stem.rows))
            if rows + needed > batch_size:
                batches.append([])
                rows = 0
            batches[-1].append(stem)
            rows += needed
    return batches


@torch.no_grad()
def _prefix(model: Model, stems: Sequence[_Stem], length: int) -> CachedPrefix:
    nothing = CachedPrefix(model, 0, None)
    if not length:
        return nothing
    return nothing.extended(torch.tensor([stems[0].prompt[:length]], device=model.cfg.device), [0])[1]


@torch.no_grad()
def _score_batch(
    prefix: CachedPrefix, batch: Sequence[_Stem], batch_size: int, share_prompts: bool
) -> Float[Tensor, " answers"]:
    if not share_prompts:
        (stem,) = batch
        rows = [[*stem.prompt, *answer[:-1]] for answer in stem.answers]
        found = []
        for start in range(0, len(rows), batch_size):
            logits = prefix.continued(PaddedTokens.of(prefix.model, rows[start : start + batch_size]))
            for answer, row in zip(stem.answers[start : start + batch_size], logits, strict=True):
                before = len(stem.prompt) - 1
                found.append(_summed(row[before : before + len(answer)], answer))
        return torch.stack(found)
    ids = torch.tensor([stem.prompt[prefix.length :] for stem in batch], device=prefix.model.cfg.device)
    logits, prompts = prefix.extended(ids, [0] * len(batch))
    pending = [(number, row) for number, stem in enumerate(batch) for row in stem.rows]
    # By question: the rows run for it, each with the logits after its prompt and after each of the row's tokens.
    followed: dict[int, list[tuple[list[int], Tensor]]] = {number: [] for number in range(len(batch))}
    for start in range(0, len(pending), batch_size):
        chosen = pending[start : start + batch_size]
        tokens = PaddedTokens.of(prefix.model, [row for _, row in chosen])
        after = prompts.continued(tokens, [number for number, _ in chosen])
        for (number, row), found_there in zip(chosen, after, strict=True):
            followed[number].append((row, torch.cat([logits[number, -1:], found_there[: len(row)]])))
    found = []
    for number, stem in enumerate(batch):
        alone = [*followed[number], (list[int](), logits[number, -1:])]
        for answer in stem.answers:
            spoken = next(values for row, values in alone if row[: len(answer) - 1] == answer[:-1])
            found.append(_summed(spoken[: len(answer)], answer))
    return torch.stack(found)


def _summed(logits: Float[Tensor, "pos d_vocab"], ids: Sequence[int]) -> Float[Tensor, ""]:
    spoken = logits.to(precise_dtype(logits.device)).log_softmax(-1)
    return spoken.gather(-1, torch.tensor(ids, device=spoken.device)[:, None]).sum().double().cpu()


def _check(found: Float[Tensor, " answers"], batch: Sequence[_Stem]) -> None:
    if found.isnan().any():
        owners = [stem.index for stem in batch for _ in stem.answers]
        bad = sorted({owner for owner, is_nan in zip(owners, found.isnan().tolist(), strict=True) if is_nan})
        raise InputError(
            f"The model predicts NaN on questions {bad[:10]}. Activations overflow: scale the editor down, or run the model "
            "in float32."
        )
