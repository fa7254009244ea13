"""The closed form of MEMIT and DiKE: keys whose values move by given residuals, at the least cost to all other keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError

LEAST_PIVOT = 1e-14
"""Smallest squared pivot of a covariance's Cholesky factor, as a share of the largest, at which it counts as regular."""


@dataclass(frozen=True, eq=False)
class KeyedChange:
    """`W + outs keys^T`, in float64.

    Attributes:
        keys: `C^-1 K`.
        outs: One column for each residual.
        reached: By key, `k^T C^-1 k`: of an edit alone, the share of its residual that its own key gets.
    """

    keys: Float[Tensor, "d_mlp n"]
    outs: Float[Tensor, "d_model n"]
    reached: Float[Tensor, " n"]


def least_change(
    keys: Float[Tensor, "d_mlp n"],
    residuals: Float[Tensor, "d_model n"],
    second: Float[Tensor, "d_mlp d_mlp"],
    protected: Float[Tensor, "d_z d_model"] | None = None,
    *,
    where: str = "",
) -> KeyedChange:
    """The change D of W that minimizes `|D K - R|^2 + |D K0|^2 + |P D K|^2 + |P D K0|^2`.

    With `K0 K0^T = second`, `C = second + K K^T` and `P = protected` it is

        D = (I + P^T P)^-1 R K^T C^-1.

    P = 0 gives MEMIT's rule, `R K^T (lam E[k k^T] + K K^T)^-1`. DiKE's P is W3 of its disentangler.

    Args:
        keys: K, a column per fact.
        residuals: R, what each fact's value is to move by.
        second: The second moment of other keys, on the scale of a sum.
        protected: Rows along which values should stay; None for none.
        where: Words that messages end with.

    Raises:
        InputError: If `C` is singular.
    """
    k, r = keys.double(), residuals.double()
    covariance = second.double() + k @ k.T
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if int(failed) or not bool(pivots.min() > LEAST_PIVOT * pivots.max()):
        raise InputError(
            f"The covariance of the keys is singular{where}. Give more neutral text (`texts`), some ten tokens per "
            "coordinate of a key, or a ridge above 0."
        )
    solved = torch.cholesky_solve(k, factor)
    outs = r
    if protected is not None:
        p = protected.double()
        outs = torch.linalg.solve(torch.eye(len(r), dtype=torch.float64) + p.T @ p, r)
    return KeyedChange(solved, outs, (k * solved).sum(0))
