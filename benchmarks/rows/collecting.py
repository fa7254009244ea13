"""Activations of demonstrations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import published, training_loops, worlds
from benchmarks.texts import chat_demonstrations
from benchmarks.timing import Row, distance, in_turns, seconds
from sea_lens import Activations, collect_activations
from sea_lens.models.activations import ROLES
from sea_lens.models.tokens import TokenizedAnswer, join

SAMPLE = 10
"""Of the demonstrations, the peers get one in so many: they take minutes."""


def collect_rows() -> Iterator[Row]:
    """Activations of three times 200 texts that begin with one few-shot prompt."""
    d, n_layers, n = 128, 4, 200
    hf_model, model = worlds.hf_llama(d, n_layers), worlds.llama(d, n_layers)
    demonstrations = worlds.demonstrations(n)
    texts = [TokenizedAnswer.of(model, row.prompt, getattr(row, role)).ids for role in ROLES for row in demonstrations]
    found: dict[str, object] = {}

    def baseline() -> None:
        found["published"] = published.collect(hf_model, texts)

    def ours() -> None:
        found["ours"] = collect_activations(model, demonstrations, progress=False)

    times = in_turns(baseline, ours, 2, 1)
    activations = found["ours"]
    assert isinstance(activations, Activations)
    kept = [torch.cat([activations[role][layer] for role in ROLES]) for layer in range(n_layers - 1)]
    apart = distance(torch.stack(kept, dim=1), found["published"])
    what = f"collect 3 x {n} demonstrations, shared few-shot prompt, d={d}, {n_layers} layers"
    yield Row(what, *times, 4, f"{apart:.1e} apart", apart < 1e-4, (1, 2))


def chat_rows() -> Iterator[Row]:
    """Activations of three times 200 chats at every layer of a model of SmolLM2's shape."""
    n, model, hf_model = 200, worlds.smollm2(), worlds.hf_smollm2()
    tokenizer = worlds.smollm2_tokenizer()
    demonstrations = chat_demonstrations(tokenizer, n)
    some = list(demonstrations)[::SAMPLE]
    # The tokenizer puts the beginning token before each text by itself; ours sees that it is there once.
    begin = str(tokenizer.bos_token)
    together = [join(row.prompt, getattr(row, role)).removeprefix(begin) for role in ROLES for row in some]
    found: dict[str, torch.Tensor] = {}

    def ours() -> None:
        activations = collect_activations(model, demonstrations, progress=False)
        kept = [[activations[role][layer][::SAMPLE] for layer in activations.layers] for role in ROLES]
        found["ours"] = torch.cat([torch.stack(each, dim=1) for each in kept])

    def steering_vectors() -> None:
        pairs = list(zip(together[::2], together[1::2], strict=True))  # as many texts as it has sides
        sides = training_loops.steering_vectors(hf_model, tokenizer, pairs, 16)
        found["theirs"] = torch.stack([sides[0], sides[1]], dim=1).flatten(0, 1)

    def repeng() -> None:
        # The last block's output comes after the last norm.
        found["theirs"] = training_loops.repeng(hf_model, tokenizer, together, 32)[:, :-1]

    collect_activations(model, demonstrations[:2], layers=[0], progress=False)  # the model has been tried by now
    tokens, widest = _tokens(tokenizer, together)
    # Ours between the two, so that all meet the same machine.
    first = SAMPLE * seconds(steering_vectors)
    before = found["theirs"]
    own = seconds(ours)
    second = SAMPLE * seconds(repeng)
    peers = (
        (training_loops.STEERING_VECTORS, first, before),
        (training_loops.REPENG, second, found["theirs"]),
    )
    for against, theirs, states in peers:
        apart = distance(found["ours"][:, : states.shape[1]], states)
        what = (
            f"collect 3 x {n} chats of {tokens:.0f} tokens (at most {widest}), last token, 30 layers, SmolLM2's shape"
        )
        against = f"{against}, on one in {SAMPLE}, times {SAMPLE}"
        yield Row(what, theirs, own, 3, f"{apart:.1e} apart", apart < 1e-4, against=against)


def _tokens(tokenizer: object, texts: list[str]) -> tuple[float, int]:
    """Of a text, on average and at most."""
    assert callable(tokenizer)
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return sum(lengths) / len(lengths), max(lengths)
