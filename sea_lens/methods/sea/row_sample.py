"""A uniform sample of the rows of a stream that depends on the rows alone: not on their order, nor on how they were split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.models.distributed import from_each, n_processes


@dataclass(eq=False)
class RowSample:
    """The rows of smallest hashes (bottom-k sampling, Cohen and Kaplan 2007), at every layer the same demonstrations.

    Attributes:
        size: Rows kept at most.
        hashes: Of those kept, ascending.
        rows: By layer, `[n_kept, d_model]`, in the order of the hashes.
    """

    size: int
    hashes: Int[Tensor, " n_kept"]
    rows: dict[int, Float[Tensor, "n_kept d_model"]]

    @classmethod
    def empty(cls, size: int, layers: list[int], d_model: int) -> RowSample:
        """Of no rows."""
        return cls(size, torch.empty(0, dtype=torch.long), {layer: torch.empty(0, d_model) for layer in layers})

    def update(self, rows: Mapping[int, Float[Tensor, "n d_model"]]) -> None:
        """Adds rows; a row is known by its last layer, the one that depends on most of a text."""
        kept = {layer: rows[layer].detach().cpu() for layer in self.rows}
        last = kept[max(kept)].float().contiguous().numpy()
        hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in last]
        self.merge(torch.tensor([int.from_bytes(found, "little", signed=True) for found in hashes]), kept)

    def merge(self, hashes: Int[Tensor, " n"], rows: Mapping[int, Float[Tensor, "n d_model"]]) -> None:
        """Adds those kept in another sample of the same size."""
        every = torch.cat([self.hashes, hashes])
        first = every.argsort(stable=True)[: self.size]
        self.hashes = every[first]
        self.rows = {layer: torch.cat([found, rows[layer]])[first] for layer, found in self.rows.items()}

    def over_processes(self) -> RowSample:
        """Of the rows of all processes, the same on each. All must call it."""
        if n_processes() == 1:
            return self
        whole = RowSample(self.size, self.hashes[:0], {layer: found[:0] for layer, found in self.rows.items()})
        for hashes, *rows in zip(*map(from_each, (self.hashes, *self.rows.values())), strict=True):
            whole.merge(hashes, dict(zip(self.rows, rows, strict=True)))
        return whole
