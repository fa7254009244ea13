"""Activations of demonstrations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import published, worlds
from benchmarks.timing import Row, distance, in_turns
from sea_lens import Activations, collect_activations
from sea_lens.models.activations import ROLES
from sea_lens.models.tokens import TokenizedAnswer


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
