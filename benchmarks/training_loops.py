"""How steering-vectors 0.12.2 and repeng 0.4.0 collect activations: their own code where it is installed, else as it reads.

Neither can be installed beside what this package needs (transformers below 5, numpy below 2), so they are no requirement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

try:
    from steering_vectors.train_steering_vector import extract_activations
except ImportError:
    extract_activations = None
try:
    from repeng.extract import batched_get_hiddens
except (ImportError, AttributeError):  # it uses a name that NumPy 2 has not
    batched_get_hiddens = None


def source(name: str, installed: object) -> str:
    """What a row is compared with."""
    return f"{name}'s own code" if installed is not None else f"{name}'s loop, written out"


STEERING_VECTORS = source("steering-vectors 0.12.2", extract_activations)
REPENG = source("repeng 0.4.0", batched_get_hiddens)


@torch.no_grad()
def steering_vectors(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], batch_size: int
) -> Tensor:
    """`train_steering_vector` up to its mean: the last token of both sides at every block, `[2, pairs, layers, width]`."""
    if extract_activations is not None:
        sides = extract_activations(model, tokenizer, list(pairs), batch_size=batch_size)
        return torch.stack([torch.stack([torch.cat(side[layer]) for layer in sorted(side)], dim=1) for side in sides])
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(pairs), batch_size):
        for side, texts in enumerate(zip(*pairs[start : start + batch_size], strict=True)):
            given = tokenizer(list(texts), return_tensors="pt", padding=True).to(model.device)
            last = given["attention_mask"].sum(1) - 1
            kept: list[Tensor] = []

            def keep(module: nn.Module, args: object, output: object, kept: list[Tensor] = kept) -> None:
                first = output[0] if isinstance(output, tuple) else output
                assert isinstance(first, Tensor)
                kept.append(first.clone().detach())

            handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
            try:
                model(**given)
            finally:
                for handle in handles:
                    handle.remove()
            found[side].append(torch.stack([each[torch.arange(len(texts)), last] for each in kept], dim=1))
    return torch.stack([torch.cat(side) for side in found])


@torch.no_grad()
def repeng(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int) -> Tensor:
    """`ControlVector.train` up to its PCA: the last token of every text at every block, `[texts, layers, width]`."""
    layers = list(range(model.config.num_hidden_layers))
    if batched_get_hiddens is not None:
        states = batched_get_hiddens(model, tokenizer, list(texts), layers, batch_size)
        return torch.stack([torch.from_numpy(states[layer]) for layer in layers], dim=1)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        given = tokenizer(batch, padding=True, return_tensors="pt").to(model.device)
        output = model(**given, output_hidden_states=True)
        for row in range(len(batch)):
            last = given["attention_mask"][row].nonzero(as_tuple=True)[0][-1].item()
            for layer in layers:
                found[layer].append(output.hidden_states[layer + 1][row][last].cpu().float())
    return torch.stack([torch.stack(found[layer]) for layer in layers], dim=1)
