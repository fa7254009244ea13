"""A cross-covariance that grows by batches and by other machines' shares, at constant memory and without losing digits.

Chan, Golub and LeVeque (1983): what is kept is centered, so a common offset takes no digits from it, and two parts
are put together by the product of the differences of their means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.methods.sea.spectral import CrossCovariance
from sea_lens.models.distributed import from_each, n_processes


@dataclass(eq=False)
class RunningCrossCovariance:
    """What a cross-covariance of rows seen so far is computed from: d_model^2 float64 numbers, however many rows.

    It is changed in place by `update` and `merge`: a new matrix for each batch would take longer to allocate than to fill.

    Attributes:
        n: Rows seen.
        neutral_mean: `[d_model]`.
        other_mean: `[d_model]`.
        comoment: `sum_i (h_i - mean h) (g_i - mean g)^T` over rows, with h neutral and g the other side.
    """

    n: int
    neutral_mean: Float[Tensor, " d_model"]
    other_mean: Float[Tensor, " d_model"]
    comoment: Float[Tensor, "d_model d_model"]

    @classmethod
    def empty(cls, d_model: int) -> RunningCrossCovariance:
        """Of no rows."""
        zeros = torch.zeros(2, d_model, dtype=torch.float64)
        return cls(0, zeros[0].clone(), zeros[1].clone(), torch.zeros(d_model, d_model, dtype=torch.float64))

    def update(self, neutral: Float[Tensor, "n d_model"], other: Float[Tensor, "n d_model"]) -> None:
        """Adds rows of any dtype and device; the sums are float64 on the CPU."""
        (neutral_mean, h), (other_mean, g) = _mean_and_rest(neutral), _mean_and_rest(other)
        weight, change, other_change = self._join(len(h), neutral_mean, other_mean)
        # The means' part goes in as one more row, so that the large matrix is read and written once.
        h = torch.cat([h, weight**0.5 * change[None]])
        g = torch.cat([g, weight**0.5 * other_change[None]])
        self.comoment.addmm_(h.T, g)

    def merge(self, part: RunningCrossCovariance) -> None:
        """Adds the rows of another; adding to none is an exact copy."""
        weight, change, other_change = self._join(part.n, part.neutral_mean, part.other_mean)
        self.comoment += part.comoment
        self.comoment.addr_(change, other_change, alpha=weight)

    def _join(
        self, n: int, neutral_mean: Float[Tensor, " d_model"], other_mean: Float[Tensor, " d_model"]
    ) -> tuple[float, Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """Takes in the count and the means; gives what the product of the changes of the means counts, and the changes."""
        total = self.n + n
        if not total:
            return 0.0, neutral_mean, other_mean
        change, other_change = neutral_mean - self.neutral_mean, other_mean - self.other_mean
        weight = self.n * n / total
        self.neutral_mean = self.neutral_mean + (n / total) * change
        self.other_mean = self.other_mean + (n / total) * other_change
        self.n = total
        return weight, change, other_change

    def over_processes(self) -> RunningCrossCovariance:
        """Of the rows of all processes, merged in the order of their ranks: the same bits on each. All must call it."""
        if n_processes() == 1:
            return self
        whole = RunningCrossCovariance.empty(len(self.comoment))
        parts = map(from_each, (torch.tensor(self.n), self.neutral_mean, self.other_mean, self.comoment))
        for n, neutral_mean, other_mean, comoment in zip(*parts, strict=True):
            whole.merge(RunningCrossCovariance(int(n), neutral_mean, other_mean, comoment))
        return whole

    def decomposed(self, center: bool = False) -> CrossCovariance:
        """The cross-covariance, to be decomposed: that of `CrossCovariance.of` on all rows at once."""
        matrix = self.comoment / self.n
        if not center:
            matrix.addr_(self.neutral_mean, self.other_mean)
        return CrossCovariance.of_matrix(matrix, max(1, self.n - center))


def _mean_and_rest(rows: Float[Tensor, "n d_model"]) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "n d_model"]]:
    """The mean, and rows less the mean. Taken from the first row on, so that a column of equal values gives exact zeros."""
    rows = rows.detach().cpu().double()
    from_first = rows - rows[0]
    mean = from_first.mean(0)
    return rows[0] + mean, from_first - mean
