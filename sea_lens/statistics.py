"""Shares and paired changes with their intervals and tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError

N_RESAMPLES = 4000
AT_ONCE = 250
"""Resamples drawn together, which bounds memory. It does not change them."""


def resampled_counts(n: int, seed: int, n_resamples: int = N_RESAMPLES) -> Iterator[Float[Tensor, "resamples n"]]:
    """How often each of n rows is drawn, in resamples of n rows with replacement."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n_resamples, AT_ONCE):
        drawn = torch.randint(n, (min(AT_ONCE, n_resamples - start), n), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        yield counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def coin_flips(n: int, seed: int, n_resamples: int = N_RESAMPLES) -> Iterator[Float[Tensor, "resamples n"]]:
    """Zeros and ones, one a row of n, drawn anew every time."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n_resamples, AT_ONCE):
        yield torch.randint(2, (min(AT_ONCE, n_resamples - start), n), generator=generator).double()


def bootstrap_intervals(
    changes: Float[Tensor, "n columns"], seed: int = 0, confidence: float = 0.95, n_resamples: int = N_RESAMPLES
) -> tuple[Float[Tensor, " columns"], Float[Tensor, " columns"]]:
    """Percentile bootstrap intervals of the mean of each column (Efron 1979), resampling rows.

    Args:
        changes: One row a question, one column a quantity.
        seed: Of the resamples.
        confidence: Share of resampled means that an interval holds.
        n_resamples: How many times rows are drawn anew.

    Raises:
        InputError: If there are no rows, or `confidence` is not inside (0, 1).
    """
    n = len(changes)
    if not n or not 0 < confidence < 1:
        raise InputError(
            f"At least one row and a confidence inside (0, 1) are needed; {n} and {confidence} were given."
        )
    means = torch.cat([counts @ changes.double() / n for counts in resampled_counts(n, seed, n_resamples)])
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
    return low, high


def sign_flip_p_values(
    changes: Float[Tensor, "n columns"], seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Float[Tensor, " columns"]:
    """Two-sided p-values of the paired permutation test: were each row's change as likely with the other sign?

    For changes of 0 and 1 this is McNemar's test. The identity counts as one of the permutations, so that no p-value is 0.

    Args:
        changes: One row a question, one column a quantity.
        seed: Of the signs.
        n_resamples: How many random assignments of signs.
    """
    values = changes.double()
    observed = values.sum(0).abs()
    scale = values.abs().sum(0)
    extreme = torch.zeros_like(observed)
    for heads in coin_flips(len(values), seed, n_resamples):
        extreme += (((2 * heads - 1) @ values).abs() >= observed - 1e-12 * scale).sum(0)
    return (1 + extreme) / (1 + n_resamples)


def beats_controls_p_value(observed: float, controls: Sequence[float]) -> float:
    """Chance that a control's effect is at least as large as the one observed, in either direction.

    A permutation test: exact where the editor is exchangeable with its controls, as with refits on shuffled labels. With n
    controls the least it can say is 1 / (n + 1).

    Raises:
        InputError: If there are no controls.
    """
    if not controls:
        raise InputError("No controls were given. Ask for at least one; 19 are needed for a p-value of 0.05.")
    return (1 + sum(abs(control) >= abs(observed) for control in controls)) / (1 + len(controls))


@dataclass(frozen=True)
class Proportion:
    """A share of independent trials.

    Attributes:
        successes: How many came out true.
        n: How many there were.
    """

    successes: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.successes <= self.n or self.n == 0:
            raise InputError(f"{self.successes} successes of {self.n} trials is not a proportion.")

    @property
    def share(self) -> float:
        """Successes over trials."""
        return self.successes / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's score interval: see `wilson_interval`."""
        return wilson_interval(float(self.successes), self.n, confidence)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927), which stays inside [0, 1] and is sound near its ends.

    Args:
        successes: Of n independent trials; a fraction where a trial can come out half true.
        n: Number of trials.
        confidence: Of the interval.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n**2))
    # At 0 and n successes the interval ends at 0 and 1 exactly, whatever rounding says.
    return (0.0 if successes == 0 else center - reach), (1.0 if successes == n else center + reach)
