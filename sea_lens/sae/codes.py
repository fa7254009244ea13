"""What a sparse autoencoder does to an activation before its encoder, and to what its encoder gives."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Activation = Literal["relu", "jumprelu", "topk", "groupmax"]
"""The non-linearity of codes. Batch top-k and matryoshka SAEs are `jumprelu` at inference, with one threshold for all
features; so are gated ones, by the identity in `sea_lens.sae.parts`."""
Normalization = Literal["none", "constant_norm_rescale", "layer_norm"]
"""What is done to each token by its own numbers. One factor for all tokens is folded into the weights instead."""
EPS = 1e-5
"""Added to the standard deviation that a layer norm divides by, and not to the one that it multiplies by."""


def activated(
    before: Float[Tensor, "*batch n_features"],
    activation: Activation,
    threshold: Float[Tensor, " n_features"] | None,
    k: int | None,
) -> Float[Tensor, "*batch n_features"]:
    """The codes of what the encoder gives, or of codes that were shifted: what is a code already stays what it is.

    Args:
        before: What to apply it to.
        activation: Which non-linearity.
        threshold: Of `jumprelu`: what is not above it is zero.
        k: How many are kept of each token (`topk`), or how many groups there are, of which each keeps one (`groupmax`).
    """
    positive = before.relu()
    if activation == "jumprelu":
        assert threshold is not None
        return torch.where(before > threshold, positive, torch.zeros_like(positive))
    if activation == "topk":
        assert k is not None
        values, indices = positive.topk(min(k, positive.shape[-1]), dim=-1, sorted=False)
        return torch.zeros_like(positive).scatter(-1, indices, values)
    if activation == "groupmax":
        assert k is not None
        groups = positive.reshape(*positive.shape[:-1], k, -1)
        values, indices = groups.max(dim=-1, keepdim=True)
        return torch.zeros_like(groups).scatter(-1, indices, values).flatten(-2)
    return positive


def normalized(
    x: Float[Tensor, "*batch width"], normalization: Normalization
) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch one"] | None, Float[Tensor, "*batch one"] | None]:
    """What the encoder is given, and the factor and the offset that take what is decoded back; None for 1 and 0."""
    if normalization == "constant_norm_rescale":
        norms, root = torch.linalg.vector_norm(x, dim=-1, keepdim=True), math.sqrt(x.shape[-1])
        factors = (root / norms).nan_to_num(posinf=0.0)  # an activation of zeros stays one
        return x * factors, norms / root, None
    if normalization == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True)
        centered = x - mean
        spread = centered.std(dim=-1, keepdim=True)
        return centered / (spread + EPS), spread, mean
    return x, None, None
