"""The linear algebra of spectral editing: cross-covariances and their leading subspaces.

Everything here takes and returns plain tensors, in float64. Sources: Qiu et al., *Spectral Editing of Activations*,
NeurIPS 2024 (arXiv 2405.09719), sections 3.1 and 3.2, for the projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError
from sea_lens.methods.sea.leading import LeadingDirections
from sea_lens.methods.sea.operators import OfMatrix, OfRows
from sea_lens.methods.sea.rows import Rows
from sea_lens.methods.sea.squared import SquaredSpectrum
from sea_lens.models.distributed import from_each, n_processes
from sea_lens.wording import setting

Spectrum = Literal["squared", "singular_values"]
"""What an explained variance is a share of: the squared singular values (the energy), or the singular values."""
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

    A large one is decomposed no further than a cut needs (`sea_lens.methods.sea.leading`), or, where many directions are, by
    its squares (`sea_lens.methods.sea.squared`). Where neither can be certified to give the same subspace, where it is small,
    and for `left` and `singular_values`, all of it is, once. Nothing is computed before it is asked for; results are kept.

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

    @classmethod
    def all_on(cls, covariances: Sequence[CrossCovariance], device: torch.device) -> list[CrossCovariance]:
        """The same on another device, where nothing is computed yet; rows that several share are moved once."""
        rows = {id(side): side for one in covariances for side in one.rows or ()}
        moved = {key: Rows(side.activations.to(device), side.center) for key, side in rows.items()}
        return [
            cls(
                None if one.rows is None else (moved[id(one.rows[0])], moved[id(one.rows[1])]),
                None if one.matrix is None else one.matrix.to(device),
                one.n_directions,
            )
            for one in covariances
        ]

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
        if self._fewer_rows is not None:
            h, g = (side.all() for side in self._fewer_rows)
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
        if self._fewer_rows is not None:
            return LeadingDirections(OfRows(*self._fewer_rows), most=size // 4)
        return LeadingDirections(OfMatrix(self._matrix), most=size // 2)

    @cached_property
    def _squared(self) -> SquaredSpectrum | None:
        """What all of the decomposition is cut from where that is certain; None where it is no faster."""
        few = self._fewer_rows
        return None if few is None or few[0].shape[0] < FEWEST_FOR_LEADING else SquaredSpectrum(*few)

    @property
    def _fewer_rows(self) -> tuple[Rows, Rows] | None:
        """The rows, if they are fewer than the columns."""
        return self.rows if self.rows is not None and self.rows[0].shape[0] < self.rows[0].shape[1] else None

    def leading(self, rank: int) -> Subspace:
        """The subspace of the `rank` largest singular values.

        Raises:
            InputError: If there are fewer directions than that.
        """
        for part in (self._leading, self._squared):
            basis = None if part is None else part.leading(rank)
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
        check_share(explained_variance, spectrum)
        if spectrum == "squared":
            for part in (self._leading, self._squared):
                basis = None if part is None else part.explaining(explained_variance)
                if basis is not None:
                    return Subspace(basis, self)
        return self.leading(rank_explaining(self.singular_values, explained_variance, spectrum))


@dataclass(eq=False)
class RunningCrossCovariance:
    """A cross-covariance that grows by batches and by other machines' shares: d_model^2 float64 numbers, however many rows.

    What is kept is centered, so a common offset takes no digits from it; two parts are put together by the product of the
    differences of their means (Chan, Golub and LeVeque 1983). It is changed in place by `update` and `merge`: a new matrix
    for each batch would take longer to allocate than to fill.

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
    check_share(explained_variance, spectrum)
    weights = _without_rounding(singular_values.double()) ** (2 if spectrum == "squared" else 1)
    cumulative = weights.cumsum(0)
    if not cumulative[-1] > 0:
        raise InputError(
            "The cross-covariance is zero, so it has no leading directions: the activations are all zero, or (with "
            f"{setting('center', True)}) all rows are the same. Check the demonstrations and the token choice."
        )
    if explained_variance == 1:  # counted, for beside a massive one the others are lost in a sum of squares
        return int(weights.count_nonzero())
    return int((cumulative < explained_variance * cumulative[-1]).sum()) + 1


def check_share(explained_variance: float, spectrum: str) -> None:
    """Refuses impossible shares and spectra.

    Raises:
        InputError: If the share is outside (0, 1], or there is no such spectrum.
    """
    if spectrum not in get_args(Spectrum):
        raise InputError(f"spectrum is one of {', '.join(get_args(Spectrum))}, and {spectrum!r} was given.")
    if not (isinstance(explained_variance, Real) and 0 < explained_variance <= 1):
        raise InputError(f"{setting('explained_variance')} must lie in (0, 1], and {explained_variance} was given.")


def _without_rounding(singular_values: Float[Tensor, " n_singular_values"]) -> Float[Tensor, " n_singular_values"]:
    """Decreasing singular values, with zeros for those that are mere rounding."""
    return singular_values * (singular_values > NEGLIGIBLE_SINGULAR_VALUE * singular_values[:1])


def effective_rank(singular_values: Float[Tensor, " n_singular_values"]) -> float:
    """The number of directions that a spectrum is worth: the exponential of the entropy of its squared singular values.

    1 for a single direction, k for k equal ones (Roy and Vetterli 2007, on energies).
    """
    energies = singular_values.double().square()
    total = energies.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(energies / total).sum().exp())
