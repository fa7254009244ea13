"""Greedy answers to chat prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files

import torch
from torch import nn
from transformers import GenerationConfig

from benchmarks import worlds
from benchmarks.timing import Row, in_turns, seconds
from sea_lens.models.generate import greedy_answers
from sea_lens.models.prefixes import length_to_share
from sea_lens.models.tokens import PaddedTokens, all_token_ids

PROMPTS, NEW = 64, 32


def generate_rows() -> Iterator[Row]:
    """64 chat prompts with the template's system message, 32 new tokens, as one batch of 64 for all ways."""
    plain, model = _lively(worlds.hf_smollm2()), worlds.smollm2()
    _lively(model.original_model)
    prompts = _chats(model.tokenizer)
    rows = all_token_ids(model, prompts)
    tokens = PaddedTokens.of(model, rows, side="left")
    ids, mask = tokens.ids, tokens.mask.long()
    whole = (
        f"{PROMPTS} chat prompts of {sum(map(len, rows)) / PROMPTS:.0f} tokens, {length_to_share(rows)} of them shared"
    )

    def transformer_lens(ends: list[int]) -> list[list[int]]:
        options = {"do_sample": False, "stop_at_eos": True, "eos_token_id": ends, "verbose": False}
        found = model.generate(ids, NEW, attention_mask=mask, return_type="tokens", padding_side="left", **options)
        return found[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def hugging_face(ends: list[int]) -> list[list[int]]:
        config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
        found = plain.generate(ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
        return found[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def ours(ends: list[int]) -> list[str]:
        model.original_model.generation_config.eos_token_id = ends
        return greedy_answers(model, prompts, NEW, stop=(), batch_size=PROMPTS, progress=False)

    greedy_answers(model, prompts[:2], 2, stop=(), progress=False)  # what is tried once per model
    with torch.no_grad():
        never = [model.tokenizer.eos_token_id]
        said: list[list[int]] = []
        for case in ("all of 32 tokens", "of 1 to 32 tokens"):
            ends = never if not said else never + [row[index % NEW] for index, row in enumerate(said)]
            found: dict[str, list[list[int]]] = {}
            answers: list[list[str]] = []

            def timed(way: Callable[[list[int]], list[list[int]]], ends: list[int] = ends) -> Callable[[], None]:
                return lambda: found.update({way.__name__: way(ends)})  # noqa: B023  # called in this turn of the loop

            lens, mine = in_turns(timed(transformer_lens), lambda: answers.append(ours(ends)), 1)  # noqa: B023
            other = seconds(timed(hugging_face))
            for against, time, wanted in (("transformer_lens", lens, 1.5), ("hugging_face", other, 1.0)):
                texts = [_text(model.tokenizer, row, ends) for row in found[against]]
                equal = sum(one == another for one, another in zip(texts, answers[0], strict=True))
                name = "TransformerLens generate" if against == "transformer_lens" else "Hugging Face generate, sdpa"
                what = f"answers, {case}: {whole}, SmolLM2's shape"
                yield Row(
                    what, time, mine, wanted, f"{equal} of {PROMPTS} answers equal", equal == PROMPTS, against=name
                )
            said = found["hugging_face"]


def _lively(model: nn.Module) -> nn.Module:
    """With larger weights, since at random a model with tied embeddings repeats its last token, and all answers are alike."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2 and "embed" not in name:
                weights *= 3
    return model


def _chats(tokenizer: object) -> list[str]:
    words = (files("sea_lens.data") / "neutral.txt").read_text(encoding="utf-8").split()
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(PROMPTS):
        start, length = int(torch.randint(len(words) - 20, (1,), generator=generator)), 4 + number % 10
        talk = [{"role": "user", "content": " ".join(words[start : start + length]) + "?"}]
        text: str = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)  # type: ignore[attr-defined]
        found.append(text)
    return found


def _text(tokenizer: object, row: list[int], ends: list[int]) -> str:
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    text: str = tokenizer.decode(row[:length], skip_special_tokens=True)  # type: ignore[attr-defined]
    return text.strip()
