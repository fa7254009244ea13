"""Whether the model tells the two sides of demonstrations apart at all: on demonstrations that no direction was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.models.activations import Activations

MOST_ROWS = 256
"""Demonstrations that are compared at most."""
DRAWS = 199
"""Random exchanges of sides that chance is told from."""
ENOUGH_TO_TELL = 8
"""Demonstrations below which nothing is concluded."""
LEVEL = 0.05


@dataclass(frozen=True)
class SidesApart:
    """How well the sides are told apart, where they are best.

    Attributes:
        right: Demonstrations whose positive lies further along the direction of the other half than its negative.
        n: Demonstrations.
        where: The site, and the token.
        p_value: How often sides exchanged at random are told apart as well somewhere.
    """

    right: int
    n: int
    where: str
    p_value: float

    @property
    def is_tested(self) -> bool:
        """Whether there are enough demonstrations to conclude anything."""
        return self.n >= ENOUGH_TO_TELL

    @property
    def is_certain(self) -> bool:
        """Whether they are told apart better than chance would."""
        return self.p_value <= LEVEL

    @property
    def told(self) -> str:
        """In words."""
        if not self.is_tested:
            few = "1 demonstration is" if self.n == 1 else f"{self.n} demonstrations are"
            what = "whether the model tells positives from negatives"
            return f"{few} too few to test {what}: give {ENOUGH_TO_TELL} at least"
        what = f"in {self.right} of {self.n} demonstrations that the direction was not fitted on ({self.where}"
        if self.is_certain:
            return f"the model tells positives from negatives {what}, p = {self.p_value:.2g})"
        return (
            f"the model does not tell positives from negatives: {what}), as with sides exchanged at random "
            f"(p = {self.p_value:.2g})"
        )


def sides_apart(collected: Sequence[Activations], seed: int = 0) -> SidesApart:
    """Tells whether positive and negative activations differ in a way that carries over between halves of demonstrations.

    The mean difference of one half of the demonstrations is the direction; the other half's positives should lie further
    along it than their negatives; and the other way round. Of all sites the best counts, against the best of all sites where
    the sides of random demonstrations are exchanged (a permutation test of the largest t).

    Args:
        collected: Activations of the same demonstrations, each of another token.
        seed: Of the halves and the exchanges.

    Example:
        >>> sides_apart([activations]).n
        120
    """
    n = collected[0].n
    if n < 2:  # there is no other half
        return SidesApart(0, n, "", 1.0)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n, generator=generator)[:MOST_ROWS]
    signs = 2.0 * torch.randint(2, (DRAWS + 1, len(rows)), generator=generator, dtype=torch.float64) - 1
    signs[0] = 1.0
    half = torch.arange(len(rows)) < (len(rows) + 1) // 2
    most, best = torch.full((DRAWS + 1,), -torch.inf, dtype=torch.float64), (-torch.inf, 0, "")
    for activations in collected:
        for site in activations.sites:
            apart = (activations.positive[site][rows] - activations.negative[site][rows]).double()
            along = _along(apart @ apart.T, signs, half)
            t = along.mean(1) / along.std(1).clamp_min(1e-12 * float(along.abs().max().clamp_min(1e-300)))
            most = torch.maximum(most, t)
            if float(t[0]) > best[0]:
                best = float(t[0]), int((along[0] > 0).sum()), f"{site}, {activations.token} token"
    p_value = float((most >= most[0]).sum()) / (DRAWS + 1)
    return SidesApart(best[1], len(rows), best[2], p_value)


def _along(products: Float[Tensor, "n n"], signs: Float[Tensor, "draws n"], half: Tensor) -> Float[Tensor, "draws n"]:
    """How far each difference lies along the mean difference of the half that it is not in, by exchange of sides."""
    other = (half[:, None] != half[None]).double()
    counts = other.sum(0).clamp(min=1)
    found: Tensor = signs * ((signs @ (products * other)) / counts)
    return found / found.abs().mean(1, keepdim=True).clamp_min(1e-300)
