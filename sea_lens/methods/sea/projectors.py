"""Two subspaces: the difference of their projectors in compact form, and the angles between them.

Sources: Qiu et al., *Spectral Editing of Activations*, NeurIPS 2024 (arXiv 2405.09719), for the sum of projections; its
compact form is ours. Bjorck and Golub (1973) for principal angles and vectors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

NEGLIGIBLE_EIGENVALUE = 1e-9
"""Eigenvalues of a difference of projectors below this are rounding: the sine of the angle between equal directions."""
WIDE = 0.999
"""Cosine below which an angle is wide enough for its plane to be told from its two principal vectors."""


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
    # Along principal vectors the difference falls into planes, [[s^2, -c s], [-c s, -s^2]] at an angle of sine s, cosine c.
    cosines_to, cosines, of_negative = torch.linalg.svd(positive.T @ negative)
    one, other = positive @ cosines_to, negative @ of_negative.T
    paired, wide = len(cosines), cosines < WIDE
    near = ~wide
    rest = other[:, :paired] - one[:, :paired] * cosines
    sines = torch.linalg.vector_norm(rest, dim=0)
    a, across, s = one[:, :paired][:, wide], (rest / sines)[:, wide], sines[wide]
    up = ((1 + s) / 2).sqrt()
    down = cosines[wide] / (2 * up)  # the root of (1 - s) / 2, without its cancellation
    # Where angles are small, what is left of a vector is rounding in part, and a few vectors are decomposed as they are.
    w, lam = _of_few(one[:, :paired][:, near], other[:, :paired][:, near])
    parts = [one[:, paired:], a * up - across * down, a * down + across * up, other[:, paired:]]
    values = [one.new_ones(one.shape[1] - paired), s, -s, -one.new_ones(other.shape[1] - paired), lam]
    exact = torch.cat(parts, dim=1)
    eigenvalues, order = torch.cat(values).sort(descending=True, stable=True)
    return torch.cat([exact, w - exact @ (exact.T @ w)], dim=1)[:, order], eigenvalues


def _of_few(
    positive: Float[Tensor, "d_model k"], negative: Float[Tensor, "d_model k"]
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " rank"]]:
    """`difference_of_projectors` from an orthonormal basis of both, whatever their angles."""
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
    (Bjorck and Golub 1973). scipy.linalg.subspace_angles confuses them where tiny, middle and right angles come together.

    Args:
        one: Orthonormal basis.
        other: Orthonormal basis.
    """
    a, b = (one.double(), other.double()) if one.shape[1] >= other.shape[1] else (other.double(), one.double())
    cosines = torch.linalg.svdvals(a.T @ b).clamp(max=1)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin())
