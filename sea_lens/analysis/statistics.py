"""Intervals and tests for means of paired changes: how sure a number is, over the questions it was measured on.

Resamples are shared by all columns, so that columns can be compared and the same seed gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError

N_RESAMPLES = 4000


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
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [changes[torch.randint(n, (n,), generator=generator)].double().mean(0) for _ in range(n_resamples)]
    )
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
    generator = torch.Generator().manual_seed(seed)
    values = changes.double()
    observed = values.sum(0).abs()
    scale = values.abs().sum(0)
    extreme = torch.zeros_like(observed)
    for _ in range(n_resamples):
        signs = 2.0 * torch.randint(2, (len(values),), generator=generator).double() - 1
        extreme += (signs @ values).abs() >= observed - 1e-12 * scale
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
