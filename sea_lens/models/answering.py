"""Answers of many prompts by Hugging Face's generation: batches, end tokens, stop strings, reasoning traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.cache import Store, digest
from sea_lens.data.chat import Answer
from sea_lens.errors import InputError
from sea_lens.models.bridge import EditsModels, Model, tokenizer_of
from sea_lens.models.distributed import shows
from sea_lens.models.hooks import editing, logits_at, model_facts
from sea_lens.models.passes import telling
from sea_lens.models.prefixes import CachedPrefix, how_to_run, length_to_share
from sea_lens.models.reasoning import marker_in_prompt, trace_length
from sea_lens.models.sampling import Sampling
from sea_lens.models.tokens import PaddedTokens, all_token_ids, check_context_length
from sea_lens.models.unwrapped import unwrapped


@dataclass(frozen=True)
class Asking:
    """How prompts are answered.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        stop: Strings that end an answer, cut off with all after them.
        keep_reasoning: Whether a reasoning trace stays in the answer. Stop strings do not count inside one.
        sampling: How tokens are chosen.
        batch_size: Prompts in one forward pass.
        share_prefix: Whether to run a beginning that all prompts share once.
    """

    max_new_tokens: int
    stop: Sequence[str] = ()
    keep_reasoning: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 16
    share_prefix: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise InputError(
                f"max_new_tokens and batch_size must be at least 1, and {self.max_new_tokens} and {self.batch_size} were "
                "given."
            )
        if isinstance(self.stop, str) or not all(isinstance(end, str) and end for end in self.stop):
            raise InputError(f"stop is a list of texts, none of them empty, and {self.stop!r} was given.")


def answer_prompts(
    model: Model,
    prompts: Sequence[str],
    asking: Asking,
    *,
    editor: EditsModels | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> list[Answer]:
    """The model's answers, in order.

    Args:
        model: A TransformerBridge with a tokenizer.
        prompts: Texts to continue.
        asking: How.
        editor: To edit the model with; None for none.
        folder: Where to keep answers as they come. A run that was killed goes on there.
        progress: Whether to show a progress bar.

    Raises:
        InputError: If there are no prompts, or one and its answer do not fit the model's context.
    """
    rows = all_token_ids(model, prompts)
    if not rows:
        raise InputError("No prompts were given.")
    names = ["The prompt"] if len(rows) == 1 else [f"Prompt {i}" for i in range(len(rows))]
    check_context_length(model, [len(row) for row in rows], names, asking.max_new_tokens)
    longest = max(map(len, rows)) + asking.max_new_tokens
    batch_size, share_prefix = how_to_run(
        model, editor, asking.batch_size, asking.share_prefix, longest=longest, side="left"
    )
    store, answers = None, dict[int, Answer]()
    if folder is not None:
        how = {"max_new_tokens": asking.max_new_tokens, "stop": list(asking.stop), "endings": True}
        store = Store.within(folder, "answers", {"prompts": digest(list(prompts)), **how, **model_facts(model, editor)})
        answers = {row[0]: Answer(row[1], row[2]) for row in store.rows()}  # type: ignore[index, misc, arg-type]
    left = sorted(set(range(len(rows))) - set(answers), key=lambda index: -len(rows[index]))
    bar = tqdm(total=len(rows), initial=len(answers), desc="answers", unit="prompt", disable=not shows(progress))
    with bar, editing(model, editor, lambda: len(left) == len(rows)):
        prefix = _shared_beginning(model, rows, share_prefix and bool(left))
        for chosen in _batches(model, [len(rows[index]) for index in left], prefix, batch_size, asking.max_new_tokens):
            indices = [left[place] for place in chosen]
            batch = _Batch(prefix, [rows[index] for index in indices], indices, asking)
            for index, answer in zip(indices, batch.answers(), strict=True):
                answers[index] = answer
                if store is not None:
                    store.append([index, answer.text, answer.ending])
            bar.update(len(indices))
    return [answers[index] for index in range(len(rows))]


def end_tokens(model: Model) -> list[int]:
    """The tokenizer's end token, and those that the model may stop at besides, such as turn ends of chat models."""
    wrapped = model.original_model
    config = getattr(wrapped, "config", None)
    found: set[int] = set()
    for holder in (
        model.tokenizer,
        model.cfg,
        config,
        getattr(config, "text_config", None),
        getattr(wrapped, "generation_config", None),
    ):
        ends = getattr(holder, "eos_token_id", None)
        found |= set(ends if isinstance(ends, list | tuple) else [] if ends is None else [ends])
    return sorted(found)


def _shared_beginning(model: Model, rows: Sequence[list[int]], share: bool) -> CachedPrefix:
    prefix = CachedPrefix(model)
    length = length_to_share(rows) if share else 0
    if not length:
        return prefix
    with torch.no_grad():
        return prefix.extended(torch.tensor([rows[0][:length]], device=model.cfg.device), [0])[1]


def _batches(
    model: Model, lengths: Sequence[int], prefix: CachedPrefix, batch_size: int, max_new_tokens: int
) -> list[list[int]]:
    """Places of rows that are run together.

    After a shared beginning rows are padded in the middle. A sliding window counts padding, so if one is shorter than the
    whole, only rows of one length go together.
    """
    alike = False
    if prefix.length and lengths:
        window = getattr(getattr(model.original_model, "config", None), "sliding_window", None)
        alike = window is not None and window < max(lengths) + max_new_tokens
    batches: list[list[int]] = []
    for place, length in enumerate(lengths):
        if not batches or len(batches[-1]) == batch_size or (alike and lengths[batches[-1][0]] != length):
            batches.append([])
        batches[-1].append(place)
    return batches


class _Batch:
    """Prompts that are answered together, after a beginning that they share."""

    def __init__(self, prefix: CachedPrefix, rows: Sequence[list[int]], numbers: Sequence[int], asking: Asking) -> None:
        self.prefix, self.rows, self.numbers, self.asking = prefix, rows, numbers, asking
        self.model, self.tokenizer = prefix.model, tokenizer_of(prefix.model)
        self.ends = end_tokens(self.model)
        self.markers = [marker_in_prompt(self.tokenizer, row) for row in rows]

    def answers(self) -> list[Answer]:
        """The answers, row by row."""
        return [self._answer(row, ids) for row, ids in enumerate(self._new_tokens())]

    @torch.no_grad()
    def _new_tokens(self) -> list[list[int]]:
        """New tokens of each row, whatever comes after an end token or a stop string among them."""
        model, prefix, asking = self.model, self.prefix, self.asking
        tokens = PaddedTokens.of(model, [row[prefix.length :] for row in self.rows], side="left")
        if asking.max_new_tokens == 1 and not prefix.length and not asking.sampling.temperature:
            where = torch.zeros_like(tokens.mask)  # one pass, without a cache that nothing would read
            where[:, -1] = True
            return logits_at(model, tokens, where).argmax(-1)[:, None].tolist()
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList  # late: it takes a second

        ids, mask, options = tokens.ids, tokens.mask, dict[str, Any]()
        if prefix.length:
            before = torch.tensor([self.rows[0][: prefix.length]] * len(self.rows), device=ids.device)
            ids, mask = torch.cat([before, ids], 1), torch.cat([torch.ones_like(before, dtype=torch.bool), mask], 1)
            options["past_key_values"] = prefix.repeated(len(self.rows))
        start = ids.shape[1]
        if asking.stop:
            options["stopping_criteria"] = StoppingCriteriaList([lambda ids, scores, **_: self._stops(ids, start)])
        config = GenerationConfig(  # all that the model's own configuration may change about the choice of a token
            max_new_tokens=asking.max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=self.ends or None,
            pad_token_id=self.ends[0] if self.ends else 0,
        )
        drawing = LogitsProcessorList(asking.sampling.processors(self.numbers))
        with telling(model, torch.tensor(list(map(len, self.rows)))), unwrapped(model):
            new = model.original_model.generate(  # type: ignore[operator]
                ids, attention_mask=mask.long(), generation_config=config, logits_processor=drawing, **options
            )
        found: list[list[int]] = new[:, start:].tolist()
        return found

    def _stops(self, ids: Tensor, start: int) -> Tensor:
        """Whether each row of a generation has said a stop string."""
        said = [self._said(row, new) for row, new in enumerate(ids[:, start:].tolist())]
        stopped = [text is not None and any(end in text.lstrip() for end in self.asking.stop) for text in said]
        return torch.tensor(stopped, device=ids.device)

    def _said(self, row: int, ids: Sequence[int]) -> str | None:
        """What a row has answered so far, after its trace; None while that is not over."""
        length, tail = trace_length(self.tokenizer, ids, self.markers[row])
        return None if length is None else tail + self.tokenizer.decode(ids[length:], skip_special_tokens=True)

    def _answer(self, row: int, ids: Sequence[int]) -> Answer:
        length = next((position for position, token in enumerate(ids) if token in self.ends), len(ids))
        said = self._said(row, ids[:length])
        whole = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        if said is None:
            return Answer(whole.strip(), "reasoning")
        found, stopped = said.strip(), False
        for end in self.asking.stop:
            if end in found:
                found, stopped = found.split(end, 1)[0].rstrip(), True
        if self.asking.keep_reasoning:
            found = whole[: len(whole) - len(said.lstrip())].lstrip() + found if whole.endswith(said) else found
        cut = length == len(ids) == self.asking.max_new_tokens
        return Answer(found, "stop" if stopped else "length" if cut else "end")
