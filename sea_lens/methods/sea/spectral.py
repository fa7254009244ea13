"""The linear algebra of spectral editing: cross-covariances, leading subspaces, and the difference of two projectors.

Everything here takes and returns plain tensors, in float64. Sources: Qiu et al., *Spectral Editing of Activations*,
NeurIPS 2024 (arXiv 2405.09719), sections 3.1 and 3.2, for the projections; the compact form of their sum is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError
from sea_lens.methods.sea.leading import LeadingDirections, OfMatrix, OfRows, Rows

Spectrum = Literal["squared", "singular_values"]
"""What an explained variance is a share of: the squared singular values (the energy), or the singular values."""
NEGLIGIBLE_EIGENVALUE = 1e-9
"""Eigenvalues of a difference of projectors below this are rounding: the sine of the angle between equal directions."""
NEGLIGIBLE_SINGULAR_VALUE = 1e-12
"""Singular values below this share of the largest are rounding, and their directions arbitrary: n rows span n at most,
and n - 1 once centered."""
FEWEST_FOR_LEADING = 512
"""Size of a cross-covariance (the lesser of rows and columns) below which decomposing all of it is as fast as a part."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The directions of the neutral activations that covary most with another set of activations.

    Attributes:
        basis: Orthonormal columns, `[d_model, rank]`, by decreasing covariance.
        covariance: What it was cut from.
    """

    basis: Float[Tensor, "d_model rank"]
    covariance: CrossCovariance

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return self.basis.shape[1]

    @property
    def singular_values(self) -> Float[Tensor, " n_singular_values"]:
        """All singular values of the cross-covariance, decreasing; `rank` of them belong to the basis."""
        return self.covariance.singular_values


@dataclass(frozen=True, eq=False)
class CrossCovariance:
    """A cross-covariance `(1/n) (H - mu)^T (G - mu')`, from which leading subspaces are cut (paper, eq. 1 and 2).

    A large one is decomposed no further than a cut needs; where that cannot be certified to give the same subspace (see
    `sea_lens.methods.sea.leading`), where it is small, and for `left` and `singular_values`, all of it is, once. Nothing is
    computed before it is asked for, and results are kept.

    Attributes:
        rows: H (neutral) and G, or None if only the matrix is known.
        matrix: Omega, `[d_model, d_model]`, or None if it need not be formed.
        n_directions: How many directions a matrix can have at most; None for all.
    """

    rows: tuple[Rows, Rows] | None
    matrix: Float[Tensor, "d_model d_model"] | None = None
    n_directions: int | None = None

    @classmethod
    def of(
        cls, neutral: Float[Tensor, "n d_model"], other: Float[Tensor, "n d_model"], center: bool = False
    ) -> CrossCovariance:
        """Of activations, with zero means unless `center`. Computed in float64; the activations are kept as they are.

        With fewer demonstrations than dimensions no d_model x d_model matrix is ever formed; the subspace is the same.
        """
        return cls.of_sides(neutral, [other], center)[0]

    @classmethod
    def of_sides(
        cls, neutral: Float[Tensor, "n d_model"], others: Sequence[Float[Tensor, "n d_model"]], center: bool = False
    ) -> list[CrossCovariance]:
        """Of the same neutral activations with each of several others; what is computed of the neutral ones is shared."""
        rows = Rows(neutral, center)
        return [cls((rows, Rows(other, center))) for other in others]

    @classmethod
    def of_matrix(cls, matrix: Float[Tensor, "d_model d_model"], n_directions: int | None = None) -> CrossCovariance:
        """Of a cross-covariance that was summed up elsewhere, batch by batch.

        Args:
            matrix: Omega, with the 1/n.
            n_directions: How many its rows can span at most (n, or n - 1 once centered): what lies beyond is rounding.
        """
        return cls(None, matrix.double(), n_directions)

    @property
    def left(self) -> Float[Tensor, "d_model n_singular_values"]:
        """All left singular vectors (of the neutral side)."""
        return self._whole[0]

    @property
    def singular_values(self) -> Float[Tensor, " n_singular_values"]:
        """All singular values, decreasing."""
        return self._whole[1]

    @cached_property
    def _whole(self) -> tuple[Float[Tensor, "d_model n_singular_values"], Float[Tensor, " n_singular_values"]]:
        """With fewer rows than columns both sides are QR-factored first, so that the decomposition is of an n x n matrix."""
        if self.rows is not None and self.rows[0].shape[0] < self.rows[0].shape[1]:
            h, g = (side.all() for side in self.rows)
            q, r = torch.linalg.qr(h.T)
            _, s = torch.linalg.qr(g.T, mode="r")
            u, singular_values, _ = torch.linalg.svd(r @ s.T / len(h))
            return q @ u, singular_values
        u, singular_values, _ = torch.linalg.svd(self._matrix)
        return u[:, : self.n_directions], singular_values[: self.n_directions]

    @cached_property
    def _matrix(self) -> Float[Tensor, "d_model d_model"]:
        if self.rows is None:
            assert self.matrix is not None
            return self.matrix
        h, g = (side.all() for side in self.rows)
        return h.T @ g / len(h)

    @cached_property
    def _leading(self) -> LeadingDirections | None:
        """The part of the decomposition that was needed so far; None where a part is no faster."""
        size = len(self._matrix) if self.rows is None else min(self.rows[0].shape)
        if size < FEWEST_FOR_LEADING:
            return None
        few = self.rows is not None and size < self.rows[0].shape[1]
        operator = OfRows(*self.rows) if self.rows is not None and few else OfMatrix(self._matrix)
        return LeadingDirections(operator, most=size // 2)

    def leading(self, rank: int) -> Subspace:
        """The subspace of the `rank` largest singular values.

        Raises:
            InputError: If there are fewer directions than that.
        """
        basis = None if self._leading is None else self._leading.leading(rank)
        if basis is not None:
            return Subspace(basis, self)
        available = int(_without_rounding(self.singular_values).count_nonzero())
        if not 1 <= rank <= available:
            raise InputError(
                f"A rank of {rank} was asked for; these demonstrations support 1 to {available} (at most d_model, and "
                "the number of different rows, less one when centered)."
            )
        return Subspace(self.left[:, :rank], self)

    def explaining(self, explained_variance: float, spectrum: Spectrum = "squared") -> Subspace:
        """The least subspace that explains the given share (paper, section 3.2: `k` from the explained variance)."""
        _check_share(explained_variance, spectrum)
        if self._leading is not None and spectrum == "squared":
            basis = self._leading.explaining(explained_variance)
            if basis is not None:
                return Subspace(basis, self)
        return self.leading(rank_explaining(self.singular_values, explained_variance, spectrum))


def rank_explaining(
    singular_values: Float[Tensor, " n_singular_values"], explained_variance: float, spectrum: Spectrum = "squared"
) -> int:
    """The least k whose k largest singular values make up a share `explained_variance` of their total.

    Args:
        singular_values: Decreasing.
        explained_variance: A share in (0, 1].
        spectrum: Whether the share is of the squared singular values or of the singular values themselves.

    Raises:
        InputError: If the share is outside (0, 1], or every singular value is zero.
    """
    _check_share(explained_variance, spectrum)
    weights = _without_rounding(singular_values.double()) ** (2 if spectrum == "squared" else 1)
    cumulative = weights.cumsum(0)
    if not cumulative[-1] > 0:
        raise InputError(
            "The cross-covariance is zero, so it has no leading directions: the activations are all zero, or (with "
            "center=True) all rows are the same. Check the demonstrations and the token choice."
        )
    # Compared with the last partial sum, not with 1, so that a share of 1 is reached exactly.
    return int((cumulative < explained_variance * cumulative[-1]).sum()) + 1


def _check_share(explained_variance: float, spectrum: str) -> None:
    if spectrum not in get_args(Spectrum):
        raise InputError(f"spectrum is one of {', '.join(get_args(Spectrum))}, and {spectrum!r} was given.")
    if not 0 < explained_variance <= 1:
        raise InputError(f"explained_variance must lie in (0, 1], and {explained_variance} was given.")


def _without_rounding(singular_values: Float[Tensor, " n_singular_values"]) -> Float[Tensor, " n_singular_values"]:
    """Decreasing singular values, with zeros for those that are mere rounding."""
    return singular_values * (singular_values > NEGLIGIBLE_SINGULAR_VALUE * singular_values[:1])


def difference_of_projectors(
    positive: Float[Tensor, "d_model k_positive"], negative: Float[Tensor, "d_model k_negative"]
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " rank"]]:
    """`Pi+ - Pi-` of two subspaces in compact form: orthonormal W and lam with `W diag(lam) W^T` equal to it.

    SEA's `P+ + P- - I` is this difference. Its eigenvalues are plus and minus the sines of the principal angles between
    the subspaces, and plus or minus 1 for directions that only one of them has. Equal subspaces give rank 0.

    Args:
        positive: Orthonormal basis.
        negative: Orthonormal basis.

    Returns:
        W, by decreasing eigenvalue, and lam; directions with a negligible eigenvalue are left out.
    """
    positive, negative = positive.double(), negative.double()
    q, _ = torch.linalg.qr(torch.cat([positive, negative], dim=1))
    up, down = q.T @ positive, q.T @ negative
    eigenvalues, eigenvectors = torch.linalg.eigh(up @ up.T - down @ down.T)
    keep = eigenvalues.abs() > NEGLIGIBLE_EIGENVALUE
    return (q @ eigenvectors[:, keep]).flip(1), eigenvalues[keep].flip(0)


def principal_angles(
    one: Float[Tensor, "d_model k_one"], other: Float[Tensor, "d_model k_other"]
) -> Float[Tensor, " k_least"]:
    """Principal angles between two subspaces in radians, ascending; as many as the smaller one has dimensions.

    Cosines lose angles below 1e-8 and sines those near a right angle, so each angle is taken from whichever tells it better
    (Bjorck and Golub 1973).

    Args:
        one: Orthonormal basis.
        other: Orthonormal basis.
    """
    a, b = (one.double(), other.double()) if one.shape[1] >= other.shape[1] else (other.double(), one.double())
    cosines = torch.linalg.svdvals(a.T @ b).clamp(max=1)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin())


def effective_rank(singular_values: Float[Tensor, " n_singular_values"]) -> float:
    """The number of directions that a spectrum is worth: the exponential of the entropy of its squared singular values.

    1 for a single direction, k for k equal ones (Roy and Vetterli 2007, on energies).
    """
    energies = singular_values.double().square()
    total = energies.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(energies / total).sum().exp())


def basis_of_projector(
    projector: Float[Tensor, "d_model d_model"], tolerance: float = 1e-4
) -> Float[Tensor, "d_model rank"]:
    """The low-rank factor of an orthogonal projector: U with orthonormal columns and `U U^T` equal to it.

    The rank is the trace, and the range is found from a few random combinations of columns, so that no decomposition of a
    d_model x d_model matrix is needed. That the matrix *is* a projector is what the comparison with `U U^T` checks.

    Args:
        projector: As stored, in any precision.
        tolerance: Largest difference allowed in any entry.

    Raises:
        InputError: If it is not an orthogonal projector, with how far it is from one.
    """
    p = projector.double()
    d_model = len(p)
    if not bool(p.isfinite().all()):
        raise InputError("This is not an orthogonal projector: it holds NaN or infinity.")
    asymmetry = float((p - p.T).abs().max())
    if asymmetry > tolerance:
        raise InputError(f"This is not an orthogonal projector: it differs from its transpose by {asymmetry:.2g}.")
    trace = float(p.trace())
    if not -0.5 <= trace <= d_model + 0.5:
        raise InputError(f"This is not an orthogonal projector: its trace is {trace:.4g} at width {d_model}.")
    # A projector's squared norm is its trace; the trace's own rounding adds up, where a diagonal is near 1.
    rank = min(d_model, round(float(p.square().sum())))
    generator = torch.Generator().manual_seed(0)
    spare = min(8, d_model - rank)  # a few columns more than the rank keep the range well conditioned
    q, _ = torch.linalg.qr(p @ torch.randn(d_model, rank + spare, generator=generator, dtype=torch.float64))
    q, _ = torch.linalg.qr(p @ q)  # once more, for the rounding in p: then the basis is that of the nearest projector
    _, eigenvectors = torch.linalg.eigh(q.T @ p @ q)
    basis: Tensor = q @ eigenvectors[:, spare:]  # ascending: the largest come last
    deviation = float((basis @ basis.T - p).abs().max())
    if deviation > tolerance:
        raise InputError(
            f"This is not an orthogonal projector: the nearest one, of rank {rank}, differs from it by {deviation:.2g} in "
            f"an entry, and {tolerance:g} is allowed."
        )
    return basis
