"""Covariances of fewer activations than they are wide: shrinkage, and solving with what variance there is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "width width"]


def shrunk(sample: Matrix, n: int) -> Matrix:
    """Optimal linear shrinkage of a covariance towards the identity (Bodnar, Gupta and Parolya 2014, arXiv 1308.2608).

    Args:
        sample: The sample covariance, with divisor n.
        n: Number of samples.
    """
    trace, square = sample.trace(), sample.square().sum()
    width = len(sample)
    target = trace / width  # times the identity
    spread = square * trace**2 / width - (trace * target) ** 2
    eps = torch.finfo(sample.dtype).eps
    kept = 1 - (trace**2 * (trace**2 / width) / n + eps) / (spread + eps)
    added = (1 - kept) * (trace * target + eps) / (trace**2 / width + eps)
    return kept * sample + added * target * torch.eye(width, dtype=sample.dtype, device=sample.device)


def spectrum(sigma: Matrix) -> tuple[Float[Tensor, " rank"], Float[Tensor, "width rank"]]:
    """The eigenvalues of a covariance that are more than rounding, and their vectors."""
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    real = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return values[real], vectors[:, real]


def solved(sigma: Matrix, vector: Float[Tensor, " width"]) -> Float[Tensor, " width"]:
    """`Sigma^-1 v`, by the pseudo-inverse where the covariance is singular."""
    values, vectors = spectrum(sigma)
    found: Tensor = vectors @ ((vectors.T @ vector) / values)
    return found
