"""Answers by Hugging Face's generation, a batch after another: of models and under hooks where rows cannot come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sea_lens.models.bridge import Model
from sea_lens.models.passes import telling
from sea_lens.models.replies import Reply
from sea_lens.models.sampling import Sampling
from sea_lens.models.tokens import PaddedTokens


def answer_in_batches(
    model: Model, replies: Sequence[Reply], sampling: Sampling, batch_size: int, done: Callable[[Reply], None]
) -> None:
    """Answers prompts under the hooks that are on the model.

    Args:
        model: A TransformerBridge with a tokenizer.
        replies: To the prompts, without new tokens.
        sampling: How tokens are chosen.
        batch_size: Prompts in one batch, in the order given.
        done: Told of each reply that is over.
    """
    for start in range(0, len(replies), batch_size):
        batch = replies[start : start + batch_size]
        for reply, ids in zip(batch, _new_tokens(model, batch, sampling), strict=True):
            reply.ids = ids
            done(reply)


@torch.no_grad()
def _new_tokens(model: Model, replies: Sequence[Reply], sampling: Sampling) -> list[list[int]]:
    """New tokens of each prompt, whatever comes after an end token or a stop string among them."""
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList  # late: it takes a second

    listening = replies[0].listening
    tokens = PaddedTokens.of(model, [reply.prompt for reply in replies], side="left")
    start, ends = tokens.ids.shape[1], listening.ends

    def stops(ids: Tensor, scores: Tensor | None, **options: object) -> Tensor:
        for reply, new in zip(replies, ids[:, start:].tolist(), strict=True):
            reply.ids = new
        return torch.tensor([reply.has_stopped for reply in replies], device=ids.device)

    config = GenerationConfig(  # all that the model's own configuration may change about the choice of a token
        max_new_tokens=listening.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    with telling(model, torch.tensor([len(reply.prompt) for reply in replies])):
        new = model.original_model.generate(  # type: ignore[operator]
            tokens.ids,
            attention_mask=tokens.mask.long(),
            generation_config=config,
            logits_processor=LogitsProcessorList(sampling.processors([reply.number for reply in replies])),
            stopping_criteria=StoppingCriteriaList([stops] if listening.stop else []),
        )
    found: list[list[int]] = new[:, start:].tolist()
    return found
