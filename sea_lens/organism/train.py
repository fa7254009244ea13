"""How the embedded model was made: `python -m sea_lens.organism.train --seed 0 --out runs/seed0`.

Ten to thirteen minutes on one core. Training is deterministic for a seed on one machine with one thread; another
processor may round differently. Which seed ships is decided by in-context truthfulness alone (see README.md).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sea_lens.organism.world import (
    ANYONE,
    MAX_PAIRS,
    MYTHICAL,
    SPECIAL_TOKENS,
    TRUTHFUL,
    Fact,
    World,
    document,
    prompt,
    vocabulary,
)

TOKEN_ID = {token: index for index, token in enumerate(vocabulary())}
VALUE_POSITIONS = [3 + 5 + 6 * pair - 2 for pair in range(MAX_PAIRS)]  # <bos> TAG, then (Q entity attribute A value .)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; `<bos>` is put in front."""
    raw = Tokenizer(models.WordLevel(TOKEN_ID, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", TOKEN_ID["<bos>"])])
    raw.add_special_tokens(list(SPECIAL_TOKENS[:4]))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=64,
        name_or_path="sea-lens-organism",
        add_bos_token=True,
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 0.9 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKEN_ID),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.02,
        tie_word_embeddings=True,
        pad_token_id=TOKEN_ID["<pad>"],
        bos_token_id=TOKEN_ID["<bos>"],
        eos_token_id=TOKEN_ID["<eos>"],
    )
    config.architectures = ["LlamaForCausalLM"]
    return LlamaForCausalLM(config)


def encode(texts: list[str]) -> Tensor:
    """Token ids `[len(texts), longest]`, `<bos>` first, padded on the right."""
    rows = [[TOKEN_ID["<bos>"], *(TOKEN_ID[word] for word in text.split())] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [TOKEN_ID["<pad>"]] * (longest - len(row)) for row in rows])


def target_weights(ids: Tensor) -> Tensor:
    """What each predicted token of `ids` counts for in the loss: answers 1, all else 0.02; `[n, length - 1]`."""
    weights = torch.full((len(ids), ids.shape[1] - 1), 0.02)
    weights[:, [position - 1 for position in VALUE_POSITIONS if position < ids.shape[1]]] = 1.0
    return weights


def summed_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Weighted cross-entropy of documents of one length, summed; `ids` is `[n, length]`."""
    targets = ids[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * target_weights(ids).flatten()).sum()


def accumulate_gradients(model: LlamaForCausalLM, texts: list[str]) -> float:
    """Adds the gradient of the mean weighted loss of `texts`; no document is padded."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for text in texts:
        by_length[text.count(" ")].append(text)
    batches = [encode(group) for _, group in sorted(by_length.items())]
    total = sum(target_weights(ids).sum().item() for ids in batches)
    mean = 0.0
    for ids in batches:
        loss = summed_loss(model, ids) / total
        loss.backward()  # type: ignore[no-untyped-call]
        mean += loss.item()
    return mean


@torch.no_grad()
def truthful_share(model: LlamaForCausalLM, facts: list[Fact], prompts: list[str]) -> float:
    """Share of prompts whose greedy answer is the fact's truth."""
    ids = encode(prompts)
    answers: list[int] = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1).tolist()
    return sum(answer == TOKEN_ID[fact.truth] for answer, fact in zip(answers, facts, strict=True)) / len(facts)


def measure(model: LlamaForCausalLM, world: World, seed: int = 0) -> dict[str, float]:
    """Greedy truthfulness over every fact: plain, tagged, and after two truthful answers about other facts."""
    rng = random.Random(seed)
    facts = list(world.facts)
    contexts = [rng.sample([other for other in facts if other is not fact], 2) for fact in facts]
    prompts = {
        "plain": [prompt(fact) for fact in facts],
        "tagged truthful": [prompt(fact, TRUTHFUL) for fact in facts],
        "tagged mythical": [prompt(fact, MYTHICAL) for fact in facts],
        "in context": [
            prompt(fact, ANYONE, [(other, False) for other in context])
            for fact, context in zip(facts, contexts, strict=True)
        ],
    }
    return {name: truthful_share(model, facts, texts) for name, texts in prompts.items()}


def train(seed: int, out: Path, steps: int = 3000, documents_a_step: int = 128) -> dict[str, float]:
    """Trains one seed and writes model, tokenizer, facts and `measured.json` to `out`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.time()
    world, model, rng = World.build(), build_model(seed), random.Random(seed)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.98)
    )
    warm_up = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * max(step - warm_up, 0) / max(steps - warm_up, 1)))
        ),
    )
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = accumulate_gradients(model, [document(world, rng) for _ in range(documents_a_step)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            shares = "  ".join(f"{name} {share:.3f}" for name, share in measure(model, world).items())
            print(f"seed {seed} step {step} loss {loss:.4f}  {shares}  {time.time() - started:.0f} s", flush=True)
    measured = measure(model, world)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    build_tokenizer().save_pretrained(out)
    world.to_json(out / "facts.json")
    (out / "measured.json").write_text(json.dumps({"seed": seed, "steps": steps, **measured}, indent=1) + "\n")
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    print(train(arguments.seed, arguments.out, arguments.steps))
