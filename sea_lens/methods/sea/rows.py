"""Activations as they came, handed out in float64 a few at a time; their products with vectors, and their Gram matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Gram = tuple[Float[Tensor, "n n"], float, float]
"""Inner products of rows, their Frobenius norm, and what the norm of their error does not exceed."""
GRAM_PARTS = 12
"""Blocks a side that a Gram matrix is computed in."""
PANEL = 1024
"""Columns converted to float64 at once."""
BLOCK = 2**19
"""Numbers converted to float64 at once for a product with vectors: few enough to stay in the processor's cache."""
ERROR_PROBES, LEAST_SHARE = 16, 0.021
"""Random vectors that a rough Gram matrix is tried on, and the share of its error's squared norm that they show at least, but
with a chance of 1e-10: `(t e^(1 - t))^(m / 2)` for m vectors and a share t, by Chernoff's bound on sums of squares."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations, one row per demonstration, handed out in float64, centered or not.

    Attributes:
        activations: As they came; kept, not copied.
        center: Whether to subtract the mean of each column.
    """

    activations: Float[Tensor, "n d_model"]
    center: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return self.activations.shape[0], self.activations.shape[1]

    @cached_property
    def _centering(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """Means, and 0 for columns of equal values, which give zeros when centered, not the rounding of their mean."""
        means, live = [], []
        for start in range(0, self.shape[1], PANEL):
            rows = self.activations[:, start : start + PANEL].double()
            means.append(rows.mean(0))
            live.append((rows - means[-1]).abs().amax(0) > 1e-13 * rows.abs().amax(0))
        return torch.cat(means), torch.cat(live).double()

    def panel(self, start: int, stop: int) -> Float[Tensor, "n columns"]:
        """Some of the columns."""
        rows = self.activations[:, start:stop].double()
        if not self.center:
            return rows
        mean, live = (whole[start:stop] for whole in self._centering)
        return (rows - mean) * live

    def panels(self) -> Iterator[tuple[int, Float[Tensor, "n columns"]]]:
        """All columns, in panels: the first column of each, and the panel."""
        for start in range(0, self.shape[1], PANEL):
            yield start, self.panel(start, start + PANEL)

    def all(self) -> Float[Tensor, "n d_model"]:
        """All columns at once."""
        return self.panel(0, self.shape[1])

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "rows d_model"]]]:
        """All rows, a few at a time. Each block is overwritten by the next."""
        n, width = self.shape
        step = max(16, BLOCK // width)
        room = torch.empty(min(step, n), width, dtype=torch.float64, device=self.activations.device)
        for start in range(0, n, step):
            some = slice(start, min(start + step, n))
            block = room[: some.stop - start].copy_(self.activations[some])
            if self.center:
                mean, live = self._centering
                block.sub_(mean).mul_(live)
            yield some, block

    def times(self, x: Float[Tensor, "columns d_model"]) -> Float[Tensor, "columns n"]:
        """`H x`, of vectors as rows."""
        return torch.cat([x @ block.T for _, block in self._blocks()], dim=1)

    def transposed_times(self, y: Float[Tensor, "columns n"]) -> Float[Tensor, "columns d_model"]:
        """`H^T y`, of vectors as rows."""
        found = y.new_zeros(len(y), self.shape[1])
        for some, block in self._blocks():
            found.addmm_(y[:, some], block)
        return found

    @cached_property
    def square_norms(self) -> Float[Tensor, " n"]:
        """The squared norm of each row."""
        return torch.cat([block.square().sum(1) for _, block in self._blocks()])

    @property
    def gram(self) -> Float[Tensor, "n n"]:
        """Inner products of rows, in float64."""
        return self.exact_gram[0]

    @cached_property
    def exact_gram(self) -> Gram:
        """Inner products of rows, in float64, with their Frobenius norm and what that of their rounding does not exceed."""
        gram = self._gram(torch.float64)
        norm = float(torch.linalg.matrix_norm(gram))
        return gram, norm, 1e-14 * norm

    @cached_property
    def rough_gram(self) -> Gram:
        """The same computed in float32; what the norm of its error does not exceed is wrong with a chance of 1e-10.

        The error is known from its products with random vectors, which thin products in float64 give.
        """
        largest = float(self.square_norms.amax())
        shift = 0 if 1e-20 < largest < 1e20 or not largest else -math.frexp(largest)[1] // 2
        gram = self._gram(torch.float32, 2.0**shift).double()
        gram = gram * 4.0**-shift if shift else gram
        generator = torch.Generator("cpu").manual_seed(0)
        tried = torch.randn(ERROR_PROBES, len(gram), generator=generator, dtype=torch.float64, device="cpu").to(gram)
        errors = tried @ gram - self.times(self.transposed_times(tried))
        norm = float(torch.linalg.matrix_norm(gram))
        return gram, norm, float((errors.square().sum() / (ERROR_PROBES * LEAST_SHARE)).sqrt()) + 1e-14 * norm

    def _gram(self, dtype: torch.dtype, factor: float = 1.0) -> Float[Tensor, "n n"]:
        """Only blocks on and below the diagonal are computed; the others are their transposes."""
        n = len(self.activations)
        gram = torch.zeros(n, n, dtype=dtype, device=self.activations.device)
        edges = list(pairwise(n * part // GRAM_PARTS for part in range(GRAM_PARTS + 1)))
        for panel in self._panels_of(dtype, factor):
            for top, bottom in edges:
                gram[top:bottom, :bottom].addmm_(panel[top:bottom], panel[:bottom].T)
        for top, bottom in edges:
            gram[:top, top:bottom] = gram[top:bottom, :top].T
        return gram

    def _panels_of(self, dtype: torch.dtype, factor: float) -> Iterator[Float[Tensor, "n columns"]]:
        if self.activations.dtype == dtype and not self.center and factor == 1:
            yield self.activations  # no copy
        else:
            for _, panel in self.panels():
                yield (panel if factor == 1 else panel * factor).to(dtype)
