"""Directions that shifts go along, and how long the shifts are."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.models.activations import Activations
from sea_lens.models.sites import Site

Length = Literal["difference", "unit", "activations"]
"""How long a shift is at strength 1: as the difference of the means, 1, or as the negative activations are on average."""


def sides_of(
    activations: Activations, site: Site, elsewhere: torch.device | None = None
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n width"]]:
    """The positive and the negative activations of a site in float64."""
    positive, negative = activations.positive[site], activations.negative[site]
    return positive.to(elsewhere or positive.device).double(), negative.to(elsewhere or negative.device).double()


def mean_difference(positive: Float[Tensor, "n width"], negative: Float[Tensor, "n width"]) -> Float[Tensor, " width"]:
    """The mean of the positives less that of the negatives."""
    return positive.mean(0) - negative.mean(0)


def shift_along(
    direction: Float[Tensor, " width"],
    length: Length,
    positive: Float[Tensor, "n width"],
    negative: Float[Tensor, "n width"],
) -> Float[Tensor, " width"]:
    """A shift along a direction; zeros where that is zero."""
    unit: Tensor = torch.nn.functional.normalize(direction, dim=0, eps=1e-300)
    if length == "unit":
        return unit
    lengths = mean_difference(positive, negative)[None] if length == "difference" else negative
    mean: Tensor = torch.linalg.vector_norm(lengths, dim=1).mean()
    return unit * mean
