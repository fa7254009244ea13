"""Prompts and completions as token ids: padding, masks, context length, the beginning token once.

Tokens are made, padded and masked here and nowhere else, because the last position must come from lengths (a pad token
may equal the end token) and a left-padded batch without a mask is silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sea_lens.data.chat import check_rendered
from sea_lens.data.prompts import join as join
from sea_lens.data.prompts import tokenizer_of
from sea_lens.data.questions import Questions
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model

TEXTS_AT_ONCE = 1000
"""Texts tokenized per call. Bounds memory."""


def token_ids(model: Model, text: str) -> list[int]:
    """Token ids of a text, with the beginning-of-sequence token exactly once where the model wants one."""
    return all_token_ids(model, [text])[0]


def all_token_ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """`token_ids` of many texts: a fast tokenizer splits a list of them over the machine's cores.

    Raises:
        InputError: If one is a conversation, and not yet in the model's chat template.
    """
    check_rendered(texts)
    tokenizer = tokenizer_of(model)
    rows: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        rows += tokenizer(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if model.cfg.default_prepend_bos and bos is not None:
        rows = [ids if ids[:1] == [bos] else [bos, *ids] for ids in rows]
    return rows


@dataclass(frozen=True)
class TokenizedAnswer:
    """A prompt with its completion, tokenized as one text.

    Attributes:
        ids: Token ids of the whole text.
        answer_start: Index of the completion's first token; `len(ids)` for an empty completion.
    """

    ids: list[int]
    answer_start: int

    @classmethod
    def of(cls, model: Model, prompt: str, completion: str) -> TokenizedAnswer:
        """Tokenizes prompt and completion together, as the model would read them."""
        return cls.all_of(model, [(prompt, [completion])])[0][0]

    @classmethod
    def all_of(cls, model: Model, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenizedAnswer]]:
        """Tokenizes prompts, each with each of its completions."""
        texts = [
            text for prompt, completions in asked for text in (prompt, *(join(prompt, own) for own in completions))
        ]
        rows, found = iter(all_token_ids(model, texts)), []
        for _, completions in asked:
            before, answers = next(rows), []
            for ids in islice(rows, len(completions)):
                shared = 0
                while shared < min(len(before), len(ids)) and before[shared] == ids[shared]:
                    shared += 1
                answers.append(cls(ids, shared))
            found.append(answers)
        return found


@dataclass(frozen=True)
class PaddedTokens:
    """A batch of token rows of different lengths as one rectangle.

    Attributes:
        ids: Token ids, `[batch, pos]`.
        mask: True where a token is real, `[batch, pos]`.
        prompt_lengths: Tokens of each text that are its prompt, counted from the text's beginning; None where all are.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    prompt_lengths: Int[Tensor, " batch"] | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        rows: Sequence[Sequence[int]],
        side: Literal["left", "right"] = "right",
        prompt_lengths: Sequence[int] | None = None,
    ) -> PaddedTokens:
        """Pads rows on one side, on the model's device.

        Raises:
            InputError: If a row is empty.
        """
        if not rows or not all(rows):
            raise InputError("A text came out as no tokens at all. Give every prompt at least one token.")
        length = max(map(len, rows))
        ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.bool)
        if model.tokenizer is not None:
            pad = model.tokenizer.pad_token_id
            ids += pad if pad is not None else model.tokenizer.eos_token_id or 0
        for index, row in enumerate(rows):
            columns = slice(length - len(row), length) if side == "left" else slice(0, len(row))
            ids[index, columns] = torch.tensor(row)
            mask[index, columns] = True
        lengths = None if prompt_lengths is None else torch.tensor(prompt_lengths, device=model.cfg.device)
        return cls(ids.to(model.cfg.device), mask.to(model.cfg.device), lengths)

    def row(self, number: int) -> PaddedTokens:
        """One row by itself, without its padding."""
        mask = self.mask[number]
        lengths = None if self.prompt_lengths is None else self.prompt_lengths[number : number + 1]
        return PaddedTokens(self.ids[number][mask][None], mask[mask][None], lengths)

    def forward_options(self) -> dict[str, object]:
        """Keyword arguments with which a forward pass is exact for either padding side and keeps nothing."""
        return {
            "attention_mask": self.mask.long(),
            "position_ids": (self.mask.long().cumsum(-1) - 1).clamp(min=0),
            "use_cache": False,
        }


def tokenized_answers(model: Model, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[TokenizedAnswer]]:
    """Prompts, each with each of its completions. An empty prompt becomes the text's beginning token, as in lm-eval.

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


def check_context_length(model: Model, lengths: Sequence[int], names: Sequence[str], room: int = 0) -> None:
    """Refuses texts that do not fit the model's context with `room` tokens to spare.

    Raises:
        InputError: Naming the longest offender.
    """
    longest = max(range(len(lengths)), key=lambda index: lengths[index])
    if lengths[longest] + room > model.cfg.n_ctx:
        spare = f" and {room} new tokens are asked for" if room else ""
        raise InputError(
            f"{names[longest]} is {lengths[longest]} tokens long{spare}, but the model's context is {model.cfg.n_ctx}. "
            "Shorten or drop such prompts; they are not cut silently."
        )


@dataclass(frozen=True)
class Stem:
    """A prompt as tokens, and its completions from where the first of them departs from the prompt.

    Attributes:
        name: What messages call it.
        prompt: Its tokens.
        completions: Of each, the tokens that are scored.
    """

    name: str
    prompt: list[int]
    completions: list[list[int]]

    @classmethod
    def of(cls, model: Model, name: str, texts: Sequence[TokenizedAnswer]) -> Stem:
        """Of a prompt with each of its completions.

        Raises:
            InputError: If a text does not fit the model's context.
        """
        check_context_length(model, [len(text.ids) for text in texts], [name] * len(texts))
        start = min(text.answer_start for text in texts)
        return cls(name, texts[0].ids[:start], [text.ids[start:] for text in texts])

    @cached_property
    def rows(self) -> list[list[int]]:
        """What is run after the prompt: completions but for their last tokens, none twice or inside another."""
        rows: list[list[int]] = []
        for row in sorted(
            {tuple(completion[:-1]) for completion in self.completions}, key=lambda ids: (-len(ids), ids)
        ):
            if row and not any(tuple(longer[: len(row)]) == row for longer in rows):
                rows.append(list(row))
        return rows

    def row_of(self, completion: Sequence[int]) -> int:
        """The number of a row that begins with all tokens of a completion but the last."""
        return next(number for number, row in enumerate(self.rows) if row[: len(completion) - 1] == completion[:-1])


def stems_of(model: Model, questions: Questions) -> list[Stem]:
    """Questions with each of their answers, the right ones first.

    Evaluations of several editors ask the same questions: those of the last few calls are tokens already.

    Raises:
        InputError: If an answer comes out as no tokens, or does not fit the model's context.
    """
    asked = tuple((question.prompt, (*question.right, *question.wrong)) for question in questions)
    tokenizer, known = tokenizer_of(model), dict[object, list[Stem]]()
    with suppress(TypeError):  # a tokenizer of another library need not be one that can be referred to weakly
        known = _LAST_ASKED.setdefault(tokenizer, known)
    size = len(tokenizer) if isinstance(tokenizer, Sized) else None  # it grows by tokens that are added
    key = asked, size, tokenizer.bos_token_id, bool(model.cfg.default_prepend_bos), model.cfg.n_ctx
    stems = known.pop(key, None)
    if stems is None:
        texts = tokenized_answers(model, asked)
        stems = [Stem.of(model, f"Question {number}", own) for number, own in enumerate(texts)]
    if len(stems) <= MOST_KEPT:
        known[key] = stems
    while len(known) > QUESTIONS_KEPT:
        del known[next(iter(known))]
    return list(stems)


QUESTIONS_KEPT = 4
"""Lists of questions whose tokens are kept: as many as evaluations go through in turns."""
MOST_KEPT = 10_000
"""Questions of a list, at most, for their tokens to be kept."""
_LAST_ASKED: WeakKeyDictionary[Any, dict[object, list[Stem]]] = WeakKeyDictionary()
"""By tokenizer, and by all that tokens depend on."""
