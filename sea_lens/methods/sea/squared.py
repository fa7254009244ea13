"""Leading left singular vectors of a cross-covariance from an eigenproblem of the size of its rows, with a certificate.

With `H H^T = L L^T`, the squared singular values of `Omega = H^T G / n` are the eigenvalues of `L^T G G^T L / n^2`. That is
several times faster than decomposing Omega by itself, and loses what lies below 1e-8 of the largest singular value. So a cut
is accepted only if products with H and G themselves show it to be right, as `sea_lens.methods.sea.leading` does.

The bound on the angle is one of relative perturbation theory; its proof is in `SquaredSpectrum`, in two lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.methods.sea.operators import PROBES, random_block
from sea_lens.methods.sea.rows import GRAM_PARTS, Rows

ANGLE = 1e-8
"""Largest sine of an angle between a certified subspace and the true one."""
TURNS = (2, 6)
"""How often random vectors are multiplied by what is to be bounded: more often if need be, for a bound half as large."""
CERTAIN = 10 * math.sqrt(2 / math.pi)
"""Times the longest of ten products with random vectors, what a norm does not exceed, but with a chance of 1e-10."""
DEPENDENT = 1e-12
"""Share of a row's squared norm that must lie outside the other rows, or they count as dependent."""


@dataclass(frozen=True, eq=False)
class SquaredSpectrum:
    """All squared singular values of a cross-covariance with fewer rows than columns, and cuts that are certain.

    Attributes:
        left: H.
        right: G.
    """

    left: Rows
    right: Rows

    @cached_property
    def _solved(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"], Float[Tensor, "n n"]] | None:
        """Eigenvalues, decreasing, eigenvectors as columns, and L; None where rows are dependent."""
        a, b, n = self.left.gram, self.right.gram, len(self.left.gram)
        if self.left.center:  # centered rows add up to zero: what this adds along ones, G G^T sends to zero
            a = a + a.diagonal().mean() / n
        lower, failed = torch.linalg.cholesky_ex(a)
        if int(failed) or bool((lower.diagonal().square() < DEPENDENT * a.diagonal()).any()):
            return None
        inner = torch.zeros_like(a)
        for top, bottom in pairwise(n * part // GRAM_PARTS for part in range(GRAM_PARTS + 1)):
            columns = b[:, top:] @ lower[top:, top:bottom]  # above its diagonal L is zero
            inner[top:, top:bottom] = lower[top:, top:].T @ columns[top:]
        values, vectors = torch.linalg.eigh(inner / n**2)  # reads the lower triangle
        return values.flip(0).clamp_min(0), vectors.flip(1), lower

    @property
    def _rounding(self) -> float:
        """What an eigenvalue is wrong by at most: a hundredth of that was measured."""
        (a, norm, _), (_, other_norm, _) = self.left.exact_gram, self.right.exact_gram
        return len(a) * 2e-16 * norm * other_norm / len(a) ** 2

    def explaining(self, share: float) -> Float[Tensor, "d_model rank"] | None:
        """The least subspace that holds a share of the energy; None without a certificate."""
        if self._solved is None:
            return None
        energies = self._solved[0].cumsum(0)
        target = share * float((self.left.gram.flatten() @ self.right.gram.flatten()) / len(self.left.gram) ** 2)
        k = int((energies < target).sum()) + 1
        slack = k * self._rounding
        if k >= len(energies) or energies[k - 1] < target + slack or (k > 1 and energies[k - 2] >= target - slack):
            return None
        return self.leading(k)

    def leading(self, k: int) -> Float[Tensor, "d_model rank"] | None:
        """The subspace of the k largest singular values; None without a certificate."""
        if self._solved is None or not 1 <= k < len(self._solved[0]):
            return None
        values, vectors, lower = self._solved
        ratio = float((values[k] + self._rounding) / (values[k - 1] - self._rounding).clamp_min(self._rounding))
        if ratio >= 1 or not values[k - 1] > 100 * self._rounding:
            return None
        coordinates = torch.linalg.solve_triangular(lower.T, vectors[:, :k], upper=True)
        basis = self.left.transposed_times(coordinates.T)
        one = torch.eye(k, dtype=basis.dtype, device=basis.device)
        overlap = basis @ basis.T
        apart = float((overlap - one).abs().max())
        if apart > 1e-6 / k:
            return None
        if apart > 1e-13:
            basis = 1.5 * basis - 0.5 * overlap @ basis  # a step of Newton and Schulz: orthonormal but for rounding
        return basis.T if self._sine(basis, values[:k], ratio) <= ANGLE else None

    def _sine(self, basis: Float[Tensor, "k d_model"], values: Float[Tensor, " k"], ratio: float) -> float:
        """What the sine of the angle between a basis and the true subspace does not exceed, but with a chance of 3e-10.

        With `Omega Omega^T V = V S + K`, U the true complement and T its eigenvalues, `T X = X S + U^T K` holds for
        `X = U^T V`, so that `|X| <= |K S^-1| / (1 - |T| |S^-1|)`. S is the eigenvalues found but for what V itself has in
        `Omega Omega^T V / values - V`; K is the rest of that. Norms are known from what random vectors come to (Halko,
        Martinsson and Tropp, lemma 4.1); that of K is sharper for multiplying them by it and its transpose in turns.
        """
        coordinates = random_block(PROBES, len(basis), -1, basis.device)
        left, logarithm, sine = 0.0, 0.0, math.inf
        for turn in range(TURNS[-1]):
            product = self._square((coordinates / values) @ basis)
            inside = product @ basis.T
            if turn == 0:
                left = 1 - CERTAIN * float(torch.linalg.vector_norm(inside - coordinates, dim=1).amax()) - ratio
                if left <= 0:
                    return math.inf
            outside = product - inside @ basis
            outside = outside - (outside @ basis.T) @ basis
            longest = torch.linalg.vector_norm(outside, dim=1).amax()
            if turn + 1 in TURNS:
                bound = logarithm + math.log(max(CERTAIN * float(longest), 1e-300))
                sine = math.exp(bound / (2 * turn + 1)) / left
                if not ANGLE < sine < CERTAIN * ANGLE:  # more turns take off a factor of two
                    break
            largest = longest.clamp_min(torch.finfo(outside.dtype).tiny)
            logarithm += float(largest.log())
            coordinates = (self._square(outside / largest) @ basis.T) / values
        return sine

    def _square(self, x: Float[Tensor, "columns d_model"]) -> Float[Tensor, "columns d_model"]:
        """`Omega Omega^T x`, of vectors as rows."""
        seen = self.right.times(self.right.transposed_times(self.left.times(x)))
        return self.left.transposed_times(seen) / self.left.shape[0] ** 2
