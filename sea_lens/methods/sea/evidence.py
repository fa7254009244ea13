"""What an edit of SEA is made from, and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.editing.affine import AffineEdit
from sea_lens.errors import InputError
from sea_lens.methods.sea.spectral import CrossCovariance
from sea_lens.models.sites import Site
from sea_lens.wording import setting

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that an edit of one site is made from.

    Attributes:
        covariances: Of the neutral with the positive and with the negative features.
        mean: Of the neutral features; None unless they are centered.
        unit: Activations are divided by it before the feature map.
        neutral: Activations to measure the edit on: all that there are, or a sample.
    """

    covariances: Sequence[CrossCovariance]
    mean: Float[Tensor, " width"] | None
    unit: float
    neutral: Float[Tensor, "n width"]

    def on(self, device: torch.device | None) -> Evidence:
        """With its cross-covariances on another device, to be decomposed there; None leaves them where they are."""
        return self if device is None else replace(self, covariances=CrossCovariance.all_on(self.covariances, device))


def part_of(
    directions: Float[Tensor, "width rank"],
    eigenvalues: Float[Tensor, " rank"],
    mean: Float[Tensor, " width"] | None,
    kept: float = 1.0,
    mean_stays: bool = True,
) -> AffineEdit:
    """An affine edit, `kept * x + (x W) diag(lam) W^T` of what lies around the mean, which is then put back or not."""
    shift = None
    if mean is not None and (len(eigenvalues) or kept != 1):
        shift = (float(mean_stays) - kept) * mean - ((mean @ directions) * eigenvalues) @ directions.T
    return AffineEdit.of_eigenvalues(directions, eigenvalues, shift, kept)


def pair_of(value: T | tuple[T, T]) -> tuple[T, T]:
    """A pair (positive, negative), of which one value may stand for both.

    Raises:
        InputError: If there are more or fewer than two.
    """
    if not isinstance(value, tuple | list):
        return (value, value)
    if len(value) != 2:
        raise InputError(f"A pair (positive, negative) was expected, and {value} was given.")
    return (value[0], value[1])


def median_unit(neutral: Float[Tensor, "n width"], site: Site | int | str) -> float:
    """The unit of a feature map: the median of the neutral activations' absolute entries.

    Raises:
        InputError: If half of them are zero.
    """
    unit = float(neutral.double().abs().median())
    if unit == 0:
        raise InputError(
            f"Half of the neutral activations of {site} are zero. Give {setting('feature_unit')} as a number."
        )
    return unit
