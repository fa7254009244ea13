"""How the embedded models were made: `python -m experiments.worlds.train --seed 0 --out runs/seed0`.

Ten to thirteen minutes on one core; `--world bias` and `--world knowledge` train the other two. Training is deterministic
for a seed on one machine with one thread; another processor may round differently. Which seed ships is decided by what
the model does in context alone (see README.md).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.worlds.bias_scores import bias_scores
from experiments.worlds.documents import (
    SPECIAL_TOKENS,
    bias_document,
    bias_vocabulary,
    document,
    knowledge_document,
    knowledge_vocabulary,
    vocabulary,
)
from sea_lens.worlds.bias import FAIR, PREJUDICED, BiasQuestion, BiasWorld, bias_prompt
from sea_lens.worlds.facts import ANYONE, MYTHICAL, TRUTHFUL, Fact, World, prompt
from sea_lens.worlds.knowledge import SUPPOSE, KnowledgeWorld, supposition, values_of
from sea_lens.worlds.load import BIAS_NAME, KNOWLEDGE_NAME, NAME

MAX_LENGTH = 64
"""Tokens that a model takes."""
TokenIds = Mapping[str, int]
"""The id of every word."""
Weights = Callable[[Tensor], Tensor]
"""What each predicted token of `[n, length]` ids counts for, `[n, length - 1]`."""
TOKEN_ID: TokenIds = {token: index for index, token in enumerate(vocabulary())}


@dataclass(frozen=True)
class Course:
    """What a model is trained on and judged by.

    Attributes:
        words: Every token, in id order.
        document: Draws a training document.
        measure: What a trained model says, by name.
        shown: The measurements to print while training.
        save: Writes the world to a folder.
        name: What the tokenizer is called.
        max_length: Longest text in tokens; no document may be longer.
        weights: What each predicted token counts for in the loss.
        d_mlp: Width of the MLPs.
        dtype: What weights are rounded to at the end.
    """

    words: Sequence[str]
    document: Callable[[random.Random], str]
    measure: Callable[[LlamaForCausalLM], dict[str, float]]
    shown: tuple[str, ...]
    save: Callable[[Path], None]
    name: str
    max_length: int
    weights: Weights | None = None
    d_mlp: int = 384
    dtype: torch.dtype = torch.float32

    @property
    def token_ids(self) -> TokenIds:
        """The id of every word."""
        return {token: index for index, token in enumerate(self.words)}

    @classmethod
    def of_facts(cls) -> Course:
        """The world of truths and myths."""
        world = World.build()
        return cls(
            words=vocabulary(),
            document=lambda rng: document(world, rng),
            measure=lambda model: measure(model, world),
            shown=("plain", "tagged truthful", "tagged mythical", "in context"),
            save=lambda folder: world.to_json(folder / "facts.json"),
            name=NAME,
            max_length=MAX_LENGTH,
        )

    @classmethod
    def of_bias(cls) -> Course:
        """The world of stereotypes."""
        world = BiasWorld.build()
        return cls(
            words=bias_vocabulary(),
            document=lambda rng: bias_document(world, rng),
            measure=lambda model: measure_bias(model, world),
            shown=tuple(f"{prompts}: {condition} accuracy" for prompts in ASKED for condition in ("ambig", "disambig")),
            save=lambda folder: world.to_json(folder / "topics.json"),
            name=BIAS_NAME,
            max_length=MAX_LENGTH,
        )

    @classmethod
    def of_knowledge(cls) -> Course:
        """The world of people with four facts each, in five wordings."""
        world = KnowledgeWorld.build()
        words = knowledge_vocabulary()
        return cls(
            words=words,
            document=lambda rng: knowledge_document(world, rng),
            measure=lambda model: measure_knowledge(model, world),
            shown=("known", "known, worst wording", "supposed", "true beside a supposition"),
            save=lambda folder: world.to_json(folder / "facts.json"),
            name=KNOWLEDGE_NAME,
            max_length=MAX_LENGTH,
            weights=value_weights(words),
            d_mlp=288,
            dtype=torch.float16,
        )


ASKED = ("plain", "tagged fair", "tagged prejudiced", "in fair context", "in prejudiced context")
"""How the bias model is asked."""


def build_tokenizer(
    token_ids: TokenIds = TOKEN_ID, max_length: int = MAX_LENGTH, name: str = NAME
) -> PreTrainedTokenizerFast:
    """One token a word; `<bos>` is put in front."""
    raw = Tokenizer(models.WordLevel(dict(token_ids), unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", token_ids["<bos>"])]
    )
    raw.add_special_tokens(list(SPECIAL_TOKENS[:4]))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=max_length,
        name_or_path=name,
        add_bos_token=True,
    )


def build_model(
    seed: int, token_ids: TokenIds = TOKEN_ID, max_length: int = MAX_LENGTH, d_mlp: int = 384
) -> LlamaForCausalLM:
    """An untrained Llama of 0.9 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(token_ids),
        hidden_size=128,
        intermediate_size=d_mlp,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=max_length,
        initializer_range=0.02,
        tie_word_embeddings=True,
        pad_token_id=token_ids["<pad>"],
        bos_token_id=token_ids["<bos>"],
        eos_token_id=token_ids["<eos>"],
    )
    config.architectures = ["LlamaForCausalLM"]
    return LlamaForCausalLM(config)


def encode(texts: list[str], token_ids: TokenIds = TOKEN_ID) -> Tensor:
    """Token ids `[len(texts), longest]`, `<bos>` first, padded on the right."""
    rows = [[token_ids["<bos>"], *(token_ids[word] for word in text.split())] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [token_ids["<pad>"]] * (longest - len(row)) for row in rows])


def target_weights(ids: Tensor, token_ids: TokenIds = TOKEN_ID) -> Tensor:
    """What each predicted token of `ids` counts for in the loss: answers 1, all else 0.02; `[n, length - 1]`."""
    return torch.where(ids[:, :-1] == token_ids["A"], 1.0, 0.02)


def value_weights(words: Sequence[str]) -> Weights:
    """Weights 1 for values, but those that a first sentence supposes, 0 for padding and 0.02 for all else."""
    place = {word: index for index, word in enumerate(words)}
    values = torch.tensor([place[value] for value in values_of()])

    def weights(ids: Tensor) -> Tensor:
        ended = (ids == place["."]).cumsum(1)[:, :-1] > 0
        told = ended | (ids[:, 1:2] != place[SUPPOSE])
        counted = torch.where(torch.isin(ids[:, 1:], values) & told, 1.0, 0.02)
        return counted * (ids[:, 1:] != place["<pad>"])

    return weights


def summed_loss(
    model: LlamaForCausalLM, ids: Tensor, token_ids: TokenIds = TOKEN_ID, weights: Weights | None = None
) -> Tensor:
    """Weighted cross-entropy of documents of one length, summed; `ids` is `[n, length]`."""
    targets = ids[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    counted = target_weights(ids, token_ids) if weights is None else weights(ids)
    return (losses * counted.flatten()).sum()


def accumulate_gradients(
    model: LlamaForCausalLM, texts: list[str], token_ids: TokenIds = TOKEN_ID, weights: Weights | None = None
) -> float:
    """Adds the gradient of the mean weighted loss of `texts`; no document is padded, unless `weights` are given."""
    by_length: dict[int, list[str]] = defaultdict(list)
    for text in texts:
        by_length[text.count(" ")].append(text)
    groups = [group for _, group in sorted(by_length.items())]
    if weights is not None:  # these tell padding, so that a few padded batches do
        in_order = [text for group in groups for text in group]
        groups = [in_order[start : start + 32] for start in range(0, len(in_order), 32)]
    batches = [encode(group, token_ids) for group in groups]
    counted = weights or (lambda ids: target_weights(ids, token_ids))
    total = sum(counted(ids).sum().item() for ids in batches)
    mean = 0.0
    for ids in batches:
        loss = summed_loss(model, ids, token_ids, weights) / total
        loss.backward()  # type: ignore[no-untyped-call]
        mean += loss.item()
    return mean


@torch.no_grad()
def greedy_words(model: LlamaForCausalLM, prompts: list[str], words: Sequence[str]) -> list[str]:
    """The likeliest next word after each prompt."""
    token_ids = {token: index for index, token in enumerate(words)}
    ids = encode(prompts, token_ids)
    ends = (ids != token_ids["<pad>"]).sum(1) - 1
    # Padding on the right cannot be seen from where a causal model answers.
    logits = model(input_ids=ids, use_cache=False).logits[torch.arange(len(ids)), ends]
    return [words[index] for index in logits.argmax(-1).tolist()]


def truthful_share(model: LlamaForCausalLM, facts: list[Fact], prompts: list[str]) -> float:
    """Share of prompts whose greedy answer is the fact's truth."""
    answers = greedy_words(model, prompts, vocabulary())
    return sum(answer == fact.truth for answer, fact in zip(answers, facts, strict=True)) / len(facts)


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


def measure_bias(model: LlamaForCausalLM, world: BiasWorld, seed: int = 0) -> dict[str, float]:
    """Scores of greedy answers over every question, asked in the ways of `ASKED`.

    A context is two earlier questions on other topics of the same half, of those that tell the speakers apart.
    """
    rng = random.Random(seed)
    items: list[BiasQuestion] = []
    contexts: list[list[BiasQuestion]] = []
    for half in (world.items("fitting"), world.items("held_out")):
        telling = [item for item in half if item.tells_speakers_apart]
        for item in half:
            items.append(item)
            contexts.append(rng.sample([other for other in telling if other.topic.groups != item.topic.groups], 2))

    def asked(tag: str = ANYONE, prejudiced: bool | None = None) -> list[str]:
        return [
            bias_prompt(item, tag, [] if prejudiced is None else [(other, prejudiced) for other in context])
            for item, context in zip(items, contexts, strict=True)
        ]

    prompts = (asked(), asked(FAIR), asked(PREJUDICED), asked(prejudiced=False), asked(prejudiced=True))
    measured = {}
    for name, texts in zip(ASKED, prompts, strict=True):
        scores = bias_scores(world.questions(items), greedy_words(model, texts, bias_vocabulary()))
        measured.update({f"{name}: {key}": value for key, value in scores.items()})
    return measured


def measure_knowledge(model: LlamaForCausalLM, world: KnowledgeWorld, seed: int = 0) -> dict[str, float]:
    """Shares of greedy answers: true ones by wording, supposed ones, and true ones beside a supposition on another fact."""
    rng, words = random.Random(seed), knowledge_vocabulary()

    def share(prompts: list[str], wanted: list[str]) -> float:
        said = greedy_words(model, prompts, words)
        return sum(one == other for one, other in zip(said, wanted, strict=True)) / len(said)

    values = [fact.value for fact in world.facts]
    by_wording = [share([fact.prompts[wording] for fact in world.facts], values) for wording in range(5)]
    supposed = [rng.choice([one for one in values_of([fact.relation]) if one != fact.value]) for fact in world.facts]
    beliefs = [supposition(fact, value, rng.randrange(5)) for fact, value in zip(world.facts, supposed, strict=True)]
    about_it = [f"{belief} {rng.choice(fact.prompts)}" for belief, fact in zip(beliefs, world.facts, strict=True)]
    # The facts about one person stand together, so the next one is about the same person in three of four cases.
    others = [*world.facts[1:], world.facts[0]]
    beside = [f"{belief} {rng.choice(other.prompts)}" for belief, other in zip(beliefs, others, strict=True)]
    return {
        "known": fmean(by_wording),
        "known, worst wording": min(by_wording),
        "supposed": share(about_it, supposed),
        "true beside a supposition": share(beside, [other.value for other in others]),
    }


def train(
    seed: int, out: Path, steps: int = 3000, documents_a_step: int = 128, course: Course | None = None
) -> dict[str, float]:
    """Trains one seed and writes model, tokenizer, world and `measured.json` to `out`; on the world of facts for None."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started = time.time()
    course = course or Course.of_facts()
    token_ids = course.token_ids
    model, rng = build_model(seed, token_ids, course.max_length, course.d_mlp), random.Random(seed)
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
        documents = [course.document(rng) for _ in range(documents_a_step)]
        loss = accumulate_gradients(model, documents, token_ids, course.weights)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"seed {seed} step {step} loss {loss:.4f}  {time.time() - started:.0f} s", flush=True)
        if step % 500 == 0:
            measured = course.measure(model)
            print("  ".join(f"{name} {measured[name]:.3f}" for name in course.shown), flush=True)
    model.to(course.dtype).float()  # type: ignore[arg-type]
    measured = course.measure(model)
    out.mkdir(parents=True, exist_ok=True)
    model.to(course.dtype).save_pretrained(out)  # type: ignore[arg-type]
    build_tokenizer(token_ids, course.max_length, course.name).save_pretrained(out)
    course.save(out)
    (out / "measured.json").write_text(json.dumps({"seed": seed, "steps": steps, **measured}, indent=1) + "\n")
    return measured


COURSES = {"facts": Course.of_facts, "bias": Course.of_bias, "knowledge": Course.of_knowledge}
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=COURSES, default="facts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--documents-a-step", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    course = COURSES[arguments.world]()
    print(train(arguments.seed, arguments.out, arguments.steps, arguments.documents_a_step, course))
