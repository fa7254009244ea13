"""`Omega Omega^T` of a cross-covariance as something to multiply with, from rows of activations or from the matrix itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.methods.sea.rows import Gram, Rows

Block = Float[Tensor, "columns size"]
"""Vectors as rows: products with them are twice as fast on CPUs so."""
PROBES = 10
"""Random vectors that bound a norm, but with a chance of 1e-10."""


@dataclass(eq=False)
class OfRows:
    """`Omega Omega^T` of `Omega = H^T G / n`, by thin products with the rows themselves, in float64.

    What depends on Gram matrices is the energy and the bound on what a subspace leaves. Both allow for their errors, so that
    float32 ones will do until a question turns on them; `settle` then computes those in float64.

    Attributes:
        left: H.
        right: G.
        exact: Whether the Gram matrices are those in float64.
    """

    left: Rows
    right: Rows
    exact: bool = False
    _energies: dict[bool, tuple[float, float]] = field(default_factory=dict, init=False, repr=False)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.left.shape[0]

    @property
    def size(self) -> int:
        """d_model."""
        return self.left.shape[1]

    @property
    def device(self) -> torch.device:
        """That of the activations."""
        return self.left.activations.device

    @property
    def _grams(self) -> tuple[Gram, Gram]:
        if self.exact:
            return self.left.exact_gram, self.right.exact_gram
        return self.left.rough_gram, self.right.rough_gram

    def _energy(self) -> tuple[float, float]:
        if self.exact not in self._energies:
            (a, a_norm, a_error), (b, b_norm, b_error) = self._grams
            doubt = 0.0 if self.exact else a_error * (b_norm + b_error) + a_norm * b_error
            self._energies[self.exact] = float(a.flatten() @ b.flatten()) / self.n**2, doubt / self.n**2
        return self._energies[self.exact]

    @property
    def energy(self) -> float:
        """`sum(H H^T * G G^T) / n^2`."""
        return self._energy()[0]

    @property
    def doubt(self) -> float:
        """What the energy is wrong by at most, but with a chance of 1e-10; 0 for mere rounding."""
        return self._energy()[1]

    def settle(self) -> None:
        """Takes the Gram matrices in float64 from now on."""
        self.exact = True

    @cached_property
    def scale(self) -> float:
        """What rounding of a product is in proportion to."""
        (_, a_norm, _), (_, b_norm, _) = self._grams
        return a_norm * b_norm / self.n**2

    def square(self, x: Block) -> tuple[Block, Float[Tensor, "columns n"]]:
        """`Omega Omega^T x`, and what the bound on the rest wants of x: `H x`."""
        seen = self.left.times(x)
        found = self.left.transposed_times(self.right.times(self.right.transposed_times(seen)))
        return found / self.n**2, seen

    def energies(self, x: Block) -> Float[Tensor, " columns"]:
        """`|Omega^T x|^2`."""
        return (self.right.transposed_times(self.left.times(x)) / self.n).square().sum(1)

    def outside(self, basis: Block, seen: Float[Tensor, "columns n"], power: int) -> float:
        """What no squared singular value outside an orthonormal basis exceeds, but with a chance of 1e-10.

        With P the projector onto what lies outside, those of `P Omega` are the eigenvalues of `A B / n^2`, with
        `A = H P H^T` and `B = G G^T`, and they do not decrease when a multiple of the identity is added to A and to B: as
        much as the errors of the Gram matrices. Along an eigenvector, standard normal coordinates x vary by
        `sqrt(theta) n / |B|^(1/2)` at least in the norm of A.
        """
        (a, _, a_error), (b, b_norm, b_error) = self._grams

        def metric(x: Block) -> Block:
            return x @ a + a_error * x - (x @ seen.T) @ seen

        def step(metric_of_x: Block) -> Block:
            return (metric_of_x @ b + b_error * metric_of_x) / self.n**2

        start = random_block(PROBES, self.n, -1, self.device)
        return norm_bound(start, metric, step, power, 0.5, math.sqrt(b_norm + b_error) / self.n)


@dataclass(frozen=True, eq=False)
class OfMatrix:
    """`Omega Omega^T` of a matrix as it is.

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
    def doubt(self) -> float:
        """What the energy is wrong by at most, beyond rounding."""
        return 0.0

    def settle(self) -> None:
        """Nothing is in doubt."""

    @property
    def scale(self) -> float:
        """What rounding of a product is in proportion to."""
        return self.energy

    def square(self, x: Block) -> tuple[Block, Block]:
        """`Omega (Omega^T x)`, and x."""
        return (x @ self.matrix) @ self.matrix.T, x

    def energies(self, x: Block) -> Float[Tensor, " columns"]:
        """`|Omega^T x|^2`."""
        return (x @ self.matrix).square().sum(1)

    def outside(self, basis: Block, seen: Block, power: int) -> float:
        """What no squared singular value outside an orthonormal basis exceeds, but with a chance of 1e-10."""

        def rest(x: Block) -> Block:
            x = x - (x @ basis.T) @ basis
            return x - (x @ basis.T) @ basis

        start = rest(random_block(PROBES, self.size, -1, self.device))
        return norm_bound(start, lambda x: x, lambda x: rest(self.square(x)[0]), power, 0.0, 1.0)


Operator = OfRows | OfMatrix


def norm_bound(
    x: Block,
    metric: Callable[[Block], Block],
    step: Callable[[Block], Block],
    power: int,
    exponent: float,
    factor: float,
) -> float:
    """The largest eigenvalue of `step(metric(x))`, from above, but with a chance of 1e-10.

    `power` such products take random vectors x to no more than `10 sqrt(2/pi)` times the longest of ten, but with that chance
    (Halko, Martinsson and Tropp, lemma 4.1, alpha = 10); and along an eigenvector of theta they are as long as
    `theta^power` times what x varies by there, at least `theta^exponent / factor`.
    """
    scale, tiny = 0.0, torch.finfo(torch.float64).tiny
    for number in range(power + 1):
        metric_of_x = metric(x)
        norm = (x * metric_of_x).sum(1).clamp_min(0).sqrt().amax().clamp_min(tiny)
        scale += float(norm.log())
        if number < power:
            x = step(metric_of_x / norm)
    logarithm = scale + math.log(max(factor, tiny)) + math.log(10 * math.sqrt(2 / math.pi))
    return 1.000001 * math.exp(logarithm / (power + exponent))


def random_block(columns: int, size: int, seed: int, device: torch.device) -> Block:
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(columns, size, generator=generator, dtype=torch.float64, device="cpu").to(device)
