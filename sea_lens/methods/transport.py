"""The optimal transport of one Gaussian to another, exact in the span of the samples, and its simpler relatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import InputError

MapKind = Literal["gaussian", "diagonal", "mean"]
"""The whole map, one coordinate at a time, or the means alone."""


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """`T(x) = mean_target + (x - mean_source) A` with `A = I + basis (inner - I) basis^T`, in float64.

    Attributes:
        basis: Orthonormal columns.
        inner: A in that basis, symmetric.
        source: Mean of the source.
        target: Mean of the target.
    """

    basis: Float[Tensor, "width m"]
    inner: Float[Tensor, "m m"]
    source: Float[Tensor, " width"]
    target: Float[Tensor, " width"]

    @property
    def gains(self) -> Float[Tensor, " m"]:
        """A's eigenvalues in the basis, ascending; all others are 1."""
        gains: Tensor = torch.linalg.eigvalsh(self.inner)
        return gains

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Transports points, in float64."""
        moved = x.double() - self.source
        inside = moved @ self.basis
        transported: Tensor = self.target + moved + (inside @ self.inner - inside) @ self.basis.T
        return transported

    def edit(self) -> AffineEdit:
        """The same as an edit, in float32."""
        left = self.basis @ (self.inner - torch.eye(len(self.inner), dtype=torch.float64))
        shift = self.target - self.source
        return AffineEdit(left.float(), self.basis.float(), self.source.float(), shift.float())


def gaussian_map(
    source: Float[Tensor, "n_source width"],
    target: Float[Tensor, "n_target width"],
    *,
    eps: float = 1e-2,
    most: float | None = None,
    kind: MapKind = "gaussian",
) -> GaussianMap:
    """The linear map that takes the source's mean and covariance to the target's, at the least mean squared distance.

    With `Cs = cov(source) + eps I` and `Ct = cov(target) + eps I` (divisor n),

        A = Cs^(-1/2) (Cs^(1/2) Ct Cs^(1/2))^(1/2) Cs^(-1/2).

    Outside the span of the centered samples both are `eps I`, so A is the identity there, and only its part inside is
    computed: exact, and of rank at most n_source + n_target - 2.

    Args:
        source: Samples.
        target: Samples.
        eps: Added to both covariances. Where the source has next to no variance, the gain is about
            `sqrt((variance_target + eps) / eps)`.
        most: The largest eigenvalue that A may have, and its inverse the smallest; None for no limit.
        kind: `gaussian` as above; `diagonal` for the same of each coordinate by itself; `mean` for A = I.

    Raises:
        InputError: If there are fewer than two samples of a side, or eps is not above zero.
    """
    if len(source) < 2 or len(target) < 2:
        raise InputError(
            f"A covariance needs two samples at least, and there are {len(source)} of the source and {len(target)} of the "
            "target."
        )
    if not eps > 0:
        raise InputError(
            f"eps must be above zero, and it is {eps}: covariances of {len(source)} samples of width {source.shape[1]} can "
            "be singular without it."
        )
    if most is not None and not most >= 1:
        raise InputError(f"The largest eigenvalue, most, must be 1 at least, and {most} was given.")
    xs, xt = source.double(), target.double()
    ms, mt = xs.mean(0), xt.mean(0)
    if kind == "mean":
        nothing = xs.new_zeros(xs.shape[1], 0)
        return GaussianMap(nothing, xs.new_zeros(0, 0), ms, mt)
    hs, ht = xs - ms, xt - mt
    if kind == "diagonal":
        gains = ((ht.square().mean(0) + eps) / (hs.square().mean(0) + eps)).sqrt()
        return GaussianMap(torch.eye(len(ms), dtype=torch.float64), torch.diag(_limited(gains, most)), ms, mt)
    u, s, _ = torch.linalg.svd(torch.cat([hs, ht]).T, full_matrices=False)
    basis = u[:, s > 1e-9 * s.max().clamp_min(1e-300)]
    cs, ct = (h.T @ h / len(h) + eps * torch.eye(basis.shape[1]).double() for h in (hs @ basis, ht @ basis))
    root, inverse = _powers(cs)
    middle, _ = _powers(root @ ct @ root)
    inner = inverse @ middle @ inverse
    inner = (inner + inner.T) / 2
    if most is not None:
        values, vectors = torch.linalg.eigh(inner)
        inner = (vectors * _limited(values, most)) @ vectors.T
    return GaussianMap(basis, inner, ms, mt)


def _limited(gains: Float[Tensor, " m"], most: float | None) -> Float[Tensor, " m"]:
    return gains if most is None else gains.clamp(1 / most, most)


def _powers(matrix: Float[Tensor, "m m"]) -> tuple[Float[Tensor, "m m"], Float[Tensor, "m m"]]:
    """The square root of a positive matrix, and the root's inverse."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    roots = values.clamp_min(1e-300).sqrt()
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
