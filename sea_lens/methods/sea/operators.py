"""`Omega Omega^T` of a cross-covariance as something to multiply with, from rows of activations or from the matrix itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Block = Float[Tensor, "columns size"]
"""Vectors as rows: products with them are twice as fast on CPUs so."""
GRAM_PARTS = 8
"""Blocks a side that a Gram matrix is computed in."""
PANEL = 1024
"""Columns converted to float64 at once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations, one row per demonstration, handed out in float64, centered or not, a few columns at a time.

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

    def panel(self, start: int, stop: int) -> Float[Tensor, "n columns"]:
        """Some of the columns. A column of equal values gives zeros when centered, not the rounding of its mean."""
        rows = self.activations[:, start:stop].double()
        if not self.center:
            return rows
        centered = rows - rows.mean(0)
        return centered * (centered.abs().amax(0) > 1e-13 * rows.abs().amax(0))

    def panels(self) -> Iterator[tuple[int, Float[Tensor, "n columns"]]]:
        """All columns, in panels: the first column of each, and the panel."""
        for start in range(0, self.shape[1], PANEL):
            yield start, self.panel(start, start + PANEL)

    def all(self) -> Float[Tensor, "n d_model"]:
        """All columns at once."""
        return self.panel(0, self.shape[1])

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """Inner products of rows. Only blocks on and below the diagonal are computed; the others are their transposes."""
        n = len(self.activations)
        gram = torch.zeros(n, n, dtype=torch.float64, device=self.activations.device)
        edges = list(pairwise(n * part // GRAM_PARTS for part in range(GRAM_PARTS + 1)))
        for _, panel in self.panels():
            for top, bottom in edges:
                gram[top:bottom, :bottom].addmm_(panel[top:bottom], panel[:bottom].T)
        for top, bottom in edges:
            gram[:top, top:bottom] = gram[top:bottom, :top].T
        return gram


@dataclass(frozen=True, eq=False)
class OfRows:
    """`Omega Omega^T` of `Omega = H^T G / n` with fewer rows than columns, in coordinates x that stand for `H^T x`.

    With the two Gram matrices a product costs n^2, and d_model is met again only when vectors are lifted.

    Attributes:
        left: H.
        right: G.
    """

    left: Rows
    right: Rows

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.left.shape[0]

    @property
    def device(self) -> torch.device:
        """That of the activations."""
        return self.left.activations.device

    @cached_property
    def energy(self) -> float:
        """`sum(H H^T * G G^T) / n^2`."""
        return float((self.left.gram * self.right.gram).sum()) / self.size**2

    @cached_property
    def reach(self) -> tuple[float, float]:
        """(p, c) such that, along a left singular vector u, standard normal x reach a variation of `theta^p / c` at least.

        theta is the squared singular value; `|H u| >= sqrt(theta) n / |G|`, since `theta = |G^T H u|^2 / n^2`.
        """
        return 0.5, float(torch.linalg.matrix_norm(self.right.gram)) ** 0.5 / self.size

    @cached_property
    def stretch(self) -> float:
        """The norm of the metric."""
        return float(torch.linalg.matrix_norm(self.left.gram))

    def metric(self, x: Block) -> Block:
        """`H H^T x`: the inner product of the vectors that x and y stand for is that of `metric(x)` and y."""
        return x @ self.left.gram

    def square(self, metric: Block) -> Block:
        """Coordinates of `Omega Omega^T` times x's vector, `G G^T (H H^T x) / n^2`, from the metric of x."""
        return metric @ self.right.gram / self.size**2

    def lift(self, x: Block) -> Float[Tensor, "columns d_model"]:
        """The vectors themselves, `H^T x`."""
        return torch.cat([x @ panel for _, panel in self.left.panels()], dim=1)


@dataclass(frozen=True, eq=False)
class OfMatrix:
    """`Omega Omega^T` of a matrix as it is; coordinates are the vectors themselves.

    Attributes:
        matrix: Omega.
    """

    matrix: Float[Tensor, "d_model d_other"]

    @property
    def size(self) -> int:
        """d_model."""
        return self.matrix.shape[0]

    @property
    def device(self) -> torch.device:
        """That of the matrix."""
        return self.matrix.device

    @cached_property
    def energy(self) -> float:
        """The sum of squares."""
        return float(self.matrix.square().sum())

    @property
    def reach(self) -> tuple[float, float]:
        """Standard normal vectors vary by 1 in every direction."""
        return 0.0, 1.0

    @property
    def stretch(self) -> float:
        """The norm of the metric."""
        return 1.0

    def metric(self, x: Block) -> Block:
        """The vectors themselves."""
        return x

    def square(self, metric: Block) -> Block:
        """`Omega (Omega^T x)`."""
        return (metric @ self.matrix) @ self.matrix.T

    def lift(self, x: Block) -> Float[Tensor, "columns d_model"]:
        """The vectors themselves."""
        return x


Operator = OfRows | OfMatrix
