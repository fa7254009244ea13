"""Log-probabilities: of completions under whatever hooks are on the model, and of all answers to questions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.data.questions import Question, Questions
from sea_lens.editing.edits import precise_dtype
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.prefixes import CachedPrefix
from sea_lens.models.tokens import PaddedTokens, TokenizedAnswer, check_context_length


@torch.no_grad()
def completion_log_probabilities(
    model: Model,
    texts: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    share_prefix: bool = True,
    progress: bool = False,
) -> list[float]:
    """Summed log-probability, in nats, that the model gives each completion after its prompt.

    What all prompts begin with, such as a few-shot prompt, is run once, under the hooks that are on the model, and its keys
    and values are used for every text.

    Args:
        model: A TransformerBridge with a tokenizer. Measure an edited one under `with editor.attached(model):`.
        texts: Prompts, each with a completion. They are tokenized as one text.
        batch_size: Texts in one forward pass. It does not change the result.
        share_prefix: Whether to run a common beginning once. To be turned off under hooks of your own that treat tokens by
            their place in a pass, or look at other tokens; editors are exact either way.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If a completion comes out as no tokens, or a text does not fit the model's context.
    """
    if not texts or batch_size < 1:
        raise InputError(
            f"At least one text and a batch_size of 1 are needed; {len(texts)} and {batch_size} were given."
        )
    rows = [row for (row,) in tokenised_answers(model, [(prompt, [completion]) for prompt, completion in texts])]
    check_context_length(model, [len(row.ids) for row in rows], [f"Text {index}" for index in range(len(rows))])
    prefix = CachedPrefix.of(model, rows if share_prefix else [])
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    with tqdm(total=len(rows), desc="log-probabilities", unit="text", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            tokens = PaddedTokens.of(model, [rows[index].ids[prefix.length :] for index in batch])
            logits = prefix.continued(tokens)
            for index, ids, row in zip(batch, tokens.ids, logits, strict=True):
                answer = slice(rows[index].answer_start - prefix.length, len(rows[index].ids) - prefix.length)
                before = row[answer.start - 1 : answer.stop - 1].float().log_softmax(-1)
                said = ids[answer].to(before.device)
                scores[index] = float(before.gather(-1, said[:, None]).double().sum())
            bar.update(len(batch))
    return scores


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts about questions, all in float64 nats. Columns are completions, the true ones first.

    Attributes:
        next_token: Log-probabilities of the token after the prompt, `[questions, d_vocab]`.
        first_tokens: First token of each completion, `[questions, completions]`.
        log_probabilities: Summed log-probability of each whole completion, `[questions, completions]`.
        is_right: Which completions are true, `[questions, completions]`.
        is_wrong: Which are false. Where a question has fewer completions than another, neither.
    """

    next_token: Float[Tensor, "questions d_vocab"]
    first_tokens: Int[Tensor, "questions completions"]
    log_probabilities: Float[Tensor, "questions completions"]
    is_right: Bool[Tensor, "questions completions"]
    is_wrong: Bool[Tensor, "questions completions"]


@dataclass(frozen=True, eq=False)
class QuestionBatch:
    """Questions as the token rows that have to be run for all of their completions.

    A completion's last token need not be run, and one that is the beginning of another needs no row of its own: one-word
    answers cost one row a question. All completions of a question are scored from the same token on, where the first of
    them departs from the prompt.

    Attributes:
        indices: Which questions.
        tokens: The rows, padded.
        first_rows: Row of each question that holds its prompt.
        starts: Position in it of the token after the prompt.
        completions: By question, each completion's row and its tokens from `starts` on, the true ones first.
        n_right: By question.
    """

    indices: list[int]
    tokens: PaddedTokens
    first_rows: list[int]
    starts: list[int]
    completions: list[list[tuple[int, list[int]]]]
    n_right: list[int]

    @classmethod
    def of(cls, model: Model, questions: Questions, indices: Sequence[int]) -> QuestionBatch:
        """Tokenizes some of the questions.

        Raises:
            InputError: If a completion comes out as no tokens, or does not fit the model's context.
        """
        rows: list[list[int]] = []
        first_rows, starts, completions = [], [], []
        for index, texts in zip(indices, tokenised_questions(model, [questions[k] for k in indices]), strict=True):
            check_context_length(model, [len(text.ids) for text in texts], [f"Question {index}"] * len(texts))
            start = min(text.answer_start for text in texts)
            needed: list[list[int]] = []
            for ids in sorted((text.ids[:-1] for text in texts), key=len, reverse=True):
                if not any(row[: len(ids)] == ids for row in needed):
                    needed.append(ids)
            offset = len(rows)
            where = [next(n for n, row in enumerate(needed) if row[: len(t.ids) - 1] == t.ids[:-1]) for t in texts]
            rows += needed
            first_rows.append(offset)
            starts.append(start)
            completions.append([(offset + n, text.ids[start:]) for n, text in zip(where, texts, strict=True)])
        n_right = [len(questions[index].right) for index in indices]
        tokens = PaddedTokens.of(model, rows)
        owners = [question for question, found in enumerate(completions) for _ in {row for row, _ in found}]
        lengths = torch.tensor([starts[question] for question in owners], device=tokens.ids.device)
        return cls(list(indices), replace(tokens, prompt_lengths=lengths), first_rows, starts, completions, n_right)

    def predictions(self, logits: Float[Tensor, "rows pos d_vocab"]) -> Predictions:
        """Reads the predictions off the logits of `tokens`."""
        precise = precise_dtype(logits.device)
        last = torch.tensor([start - 1 for start in self.starts], device=logits.device)
        next_token = logits[torch.tensor(self.first_rows, device=logits.device), last].to(precise).log_softmax(-1)
        shape = len(self.indices), max(map(len, self.completions))
        scores, first = torch.full(shape, -torch.inf, dtype=precise), torch.zeros(shape, dtype=torch.long)
        is_right, is_wrong = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for question, completions in enumerate(self.completions):
            for column, (row, ids) in enumerate(completions):
                start = self.starts[question] - 1
                spoken = logits[row, start : start + len(ids)].to(precise).log_softmax(-1)
                scores[question, column] = (
                    spoken.gather(-1, torch.tensor(ids, device=spoken.device)[:, None]).sum().cpu()
                )
                first[question, column] = ids[0]
                (is_right if column < self.n_right[question] else is_wrong)[question, column] = True
        return Predictions(next_token.cpu(), first, scores, is_right, is_wrong)


def question_batches(model: Model, questions: Questions, batch_size: int) -> list[QuestionBatch]:
    """All questions in batches, those of like length together, the longest first.

    Raises:
        InputError: If `batch_size` is below 1, a completion comes out as no tokens, or one does not fit the context.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, and {batch_size} was given.")
    lengths = [
        max(len(question.prompt) + len(text) for text in (*question.right, *question.wrong)) for question in questions
    ]
    order = sorted(range(len(questions)), key=lambda index: -lengths[index])
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [QuestionBatch.of(model, questions, chunk) for chunk in chunks]


def tokenised_answers(model: Model, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenizedAnswer]]:
    """Prompts, each with each of its completions; for an empty one stands the text's beginning token, as in lm-eval.

    Raises:
        InputError: If a prompt or a completion comes out as no tokens.
    """
    tokenizer = tokenizer_of(model)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    found = []
    for (prompt, completions), texts in zip(asked, TokenizedAnswer.all_of(model, asked), strict=True):
        if not prompt and begin is not None:
            texts = [
                text if text.answer_start or not text.ids else TokenizedAnswer([begin, *text.ids], 1) for text in texts
            ]
        for text, completion in zip(texts, completions, strict=True):
            if text.answer_start >= len(text.ids) or not text.answer_start:
                raise InputError(
                    f"A prompt or a completion comes out as no tokens: {prompt!r} with {completion!r}. Drop or mend it."
                )
        found.append(texts)
    return found


def tokenised_questions(model: Model, questions: Sequence[Question]) -> list[list[TokenizedAnswer]]:
    """Questions with each of their answers, the true ones first; raises as `tokenised_answers` does."""
    return tokenised_answers(model, [(question.prompt, (*question.right, *question.wrong)) for question in questions])
