"""Elementwise maps into the space where a non-linear edit is made, and their true inverses. Tensors only.

Sources: Qiu et al., *Spectral Editing of Activations* (arXiv 2405.09719), Phi-SEA, for editing in a feature space; the
three maps are those of its published code, changed where that code has no inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.errors import InputError

SATURATION = 6.0
"""A saturating map is inverted up to where it is about e^-6 (1 in 400) of its range away from its limit. Farther out the
inverse would blow up the edit of a feature without bound. Of 16, 9, 6 and 4 this did best on the fitting facts of the
embedded model; the published code stops at 1 in 10,000, which is 9.2."""


@runtime_checkable
class FeatureMap(Protocol):
    """An invertible elementwise function. Bring your own: three members, and zero must go to zero.

    Both functions get float64 tensors of any shape (float32 on devices without float64) and return the same.
    """

    @property
    def domain(self) -> tuple[float, float]:
        """The lowest and the highest value on which `inverse(forward(x)) == x`.

        Activations outside are taken to its nearest end before `forward`, and what was cut off is added back after
        `inverse`, so they are edited as if they stood there. Features outside `forward` of it are clamped likewise.
        """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Features of activations inside the domain, strictly increasing."""

    def inverse(self, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The activations that have these features."""


@dataclass(frozen=True)
class Identity:
    """No map: an edit in its feature space is the linear edit."""

    @property
    def domain(self) -> tuple[float, float]:
        """Every number."""
        return -math.inf, math.inf

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`x`."""
        return x

    def inverse(self, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`features`."""
        return features


@dataclass(frozen=True)
class SquaredExponential:
    """`sign(x) (1 - exp(-x^2 / 2 l^2))`: flat around zero, saturating far from it.

    The published `exp(-x^2 / 2 l^2)` has no inverse, because it forgets the sign, and it sends zero to one. This is one less
    that curve, with the sign of x: the same resolution everywhere, and increasing.

    Attributes:
        length_scale: l, in units of the edit (see `fit_sea(feature_unit=...)`).
    """

    length_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("SquaredExponential", "length_scale", self.length_scale)

    @property
    def domain(self) -> tuple[float, float]:
        """`sqrt(12) l`, about 3.5 length scales, to either side."""
        reach = math.sqrt(2 * SATURATION) * self.length_scale
        return -reach, reach

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`sign(x) (1 - exp(-x^2 / 2 l^2))`."""
        return -torch.sign(x) * torch.expm1(-((x / self.length_scale) ** 2) / 2)

    def inverse(self, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`sign(y) l sqrt(-2 log(1 - |y|))`."""
        squares = -2 * torch.log1p(-features.abs()) + torch.finfo(features.dtype).tiny  # so that zeros have a gradient
        return torch.sign(features) * self.length_scale * torch.sqrt(squares)


@dataclass(frozen=True)
class Tanh:
    """`tanh(x / scale)`: linear around zero, saturating far from it.

    Attributes:
        scale: Where it bends, in units of the edit (see `fit_sea(feature_unit=...)`). The published code uses 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("Tanh", "scale", self.scale)

    @property
    def domain(self) -> tuple[float, float]:
        """3 scales to either side."""
        reach = SATURATION / 2 * self.scale
        return -reach, reach

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`tanh(x / scale)`."""
        return torch.tanh(x / self.scale)

    def inverse(self, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`scale atanh(y)`."""
        return self.scale * torch.atanh(features)


@dataclass(frozen=True)
class ELU:
    """`x` where it is positive and `alpha (exp(x) - 1)` where it is negative: saturating below only.

    Attributes:
        alpha: Minus its limit far below zero. The published code uses 1.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("ELU", "alpha", self.alpha)

    @property
    def domain(self) -> tuple[float, float]:
        """From 6 units below zero on."""
        return -SATURATION, math.inf

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`x`, or `alpha (exp(x) - 1)` below zero."""
        return torch.where(x > 0, x, self.alpha * torch.expm1(x.clamp(max=0)))

    def inverse(self, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`y`, or `log(y / alpha + 1)` below zero."""
        return torch.where(features > 0, features, torch.log1p(features.clamp(max=0) / self.alpha))


KNOWN: Mapping[str, type[Identity | SquaredExponential | Tanh | ELU]] = {
    known.__name__: known for known in (Identity, SquaredExponential, Tanh, ELU)
}
"""The maps an editor's file may name."""


def parameters_of(feature_map: FeatureMap) -> dict[str, float]:
    """The parameters of one of our maps; none for a map that is not ours."""
    if isinstance(feature_map, Identity | SquaredExponential | Tanh | ELU):
        return {name: float(value) for name, value in asdict(feature_map).items()}
    return {}


def bounded(feature_map: FeatureMap, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Features clamped to those of the map's domain, where its inverse is defined."""
    low, high = (feature_map.forward(features.new_tensor(end)) for end in feature_map.domain)
    return features.clamp(low, high)


def check_map(feature_map: FeatureMap) -> None:
    """Refuses a map that is not one: by its members, and by what it does to numbers all over its domain.

    Raises:
        InputError: Saying which property fails, and where.
    """
    if isinstance(feature_map, type) or not isinstance(feature_map, FeatureMap):
        raise InputError(
            f"A feature map is an object with a domain, forward(x) and inverse(features), such as Tanh(2.0), and "
            f"{feature_map!r} is none."
        )
    name, (low, high) = type(feature_map).__name__, feature_map.domain
    if not low < 0 < high:
        raise InputError(
            f"A feature map's domain must reach from below to above zero, and {name}'s is {low} to {high}."
        )
    ends = feature_map.forward(torch.tensor([low, high], dtype=torch.float64))
    if ends.isnan().any():
        raise InputError(f"{name} sends an end of its domain, {low} to {high}, to NaN. Give it a finite domain.")
    below, above = (torch.linspace(0, end, 201, dtype=torch.float64) for end in (max(low, -1e4), min(high, 1e4)))
    x = torch.cat([below.flip(0), above[1:]])
    features = feature_map.forward(x)
    back = feature_map.inverse(features)
    wrong = ~((back - x).abs() <= 1e-6 * x.abs().clamp_min(1e-3 * min(1.0, -low, high)))
    if wrong.any():
        where = int(wrong.nonzero()[0])
        raise InputError(
            f"{name} is not inverted: {x[where]:g} comes back as {back[where]:g}. Mend its inverse, or narrow its domain."
        )
    if not (features.diff() > 0).all():
        raise InputError(f"A feature map must increase strictly over its domain, and {name} does not.")
    if features[200] != 0:
        raise InputError(f"A feature map must send 0 to 0, and {name} sends it to {features[200]:g}. Subtract that.")


def _check_positive(name: str, parameter: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, float | int) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}'s {parameter} must be a finite number above zero, and {value!r} was given.")
