"""Elementwise maps into the space where a non-linear edit is made, and their true inverses. Tensors only.

Sources: Qiu et al., *Spectral Editing of Activations* (arXiv 2405.09719), Phi-SEA, for editing in a feature space; the
three maps are those of its published code, changed where that code has no inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.edits import check_width, with_norms_of
from sea_lens.editing.registry import edit_of_0_1, from_plain, reads_files_of_0_1, register_edit, register_value
from sea_lens.errors import InputError
from sea_lens.models.bridge import precise_dtype


@register_edit("feature space")
@dataclass(frozen=True, eq=False)
class FeatureSpaceEdit:
    """An edit made in the space of a feature map: `h + strength * (weight * sum_i phi^-1(part_i(phi(h))) - phi^-1(phi(h)))`.

    With one part, projections are merged in feature space and mapped back once; with two, each is mapped back by itself and
    the results are added up. As what the map loses is part of `h` and never taken away, a part that does nothing leaves
    activations as they were, massive ones included. Computed in float64 (float32 on devices without it), token by token.

    Attributes:
        feature_map: phi.
        parts: Linear edits of features, at strength 1 and without their norm restored.
        unit: Activations are divided by it before phi and multiplied by it after the inverse.
        weight: Of the sum: 1, or 1/2 to average two parts.
        strength: 1 is the published method, 0 the identity.
        restore_norm: Whether each edited token is rescaled to its norm before the edit.
    """

    feature_map: FeatureMap
    parts: tuple[AffineEdit, ...]
    unit: float = 1.0
    weight: float = 1.0
    strength: float = 1.0
    restore_norm: bool = True

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    directions: ClassVar[None] = None  # its directions are of the feature space, not of activations
    gains: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.parts or any(part.restore_norm or part.width != self.width for part in self.parts):
            raise InputError("A feature-space edit needs parts of one width, made with restore_norm=False.")
        for name, value in (("strength", self.strength), ("weight", self.weight), ("unit", self.unit)):
            if not math.isfinite(value) or (name == "unit" and value <= 0):
                raise InputError(f"An edit's {name} must be finite, and a unit above zero; {value} was given.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.parts[0].width

    @property
    def rank(self) -> int:
        """Number of directions of the feature space that it changes."""
        return sum(part.rank for part in self.parts)

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (len(self.parts) == 1 and self.weight == 1 and self.parts[0].is_identity)

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        parts = "; ".join(part.summary for part in self.parts)
        return f"{self.feature_map} of h / {self.unit:.3g}: {parts}"

    def scaled(self, factor: float) -> FeatureSpaceEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        return replace(self, strength=self.strength * factor)

    def cast(self, dtype: torch.dtype) -> FeatureSpaceEdit:
        """The same edit with its tensors in another dtype."""
        return replace(self, parts=tuple(part.cast(dtype) for part in self.parts))

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(precise_dtype(h.device))
        features = self._features(x)
        merged = torch.zeros_like(x)
        for part in self.parts:
            merged = merged + self.feature_map.inverse(bounded(self.feature_map, part(features)))
        change = self.weight * merged - self.feature_map.inverse(features)
        edited = x + self.strength * self.unit * change
        return (with_norms_of(x, edited) if self.restore_norm else edited).to(h.dtype)

    def clamped(self, h: Float[Tensor, "*batch width"]) -> tuple[float, float]:
        """Shares of clamped entries: of activations outside the map's domain, and of edited features outside its range."""
        x = h.to(precise_dtype(h.device))
        low, high = self.feature_map.domain
        outside = (x / self.unit < low) | (x / self.unit > high)
        edited = [part(self._features(x)) for part in self.parts]
        beyond = [bounded(self.feature_map, features) != features for features in edited]
        return float(outside.double().mean()), float(torch.stack(beyond).double().mean())

    def _features(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.feature_map.forward((x / self.unit).clamp(*self.feature_map.domain))


SATURATION = 6.0
"""Saturating maps are inverted up to e^-6 (1 in 400) of their range from the limit, as farther out edits grow without bound.
Of 16, 9, 6 and 4 this did best on the embedded model's fitting facts; the published code's 1e-4 from the limit is 9.2."""


@runtime_checkable
class FeatureMap(Protocol):
    """An invertible elementwise function. Bring your own: three members, and zero must go to zero.

    Both functions get float64 tensors of any shape (float32 on devices without float64) and return the same.

    Example:
        >>> @sl.register_value("cube root")  # so that an editor with it can be saved
        ... @dataclass(frozen=True)
        ... class CubeRoot:
        ...     domain = (-torch.inf, torch.inf)
        ...     def forward(self, x): return x.sign() * x.abs() ** (1 / 3)
        ...     def inverse(self, y): return y**3
        >>> sl.SEA(0.9, center=True, feature_map=CubeRoot()).fit(activations).layers
        [0, 1, 2, 3]
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


@register_value("Identity")
@dataclass(frozen=True)
class Identity:
    """No map: an edit in its feature space is the linear edit.

    Example:
        >>> sl.Identity().forward(torch.tensor([2.0]))
        tensor([2.])
    """

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


@register_value("SquaredExponential")
@dataclass(frozen=True)
class SquaredExponential:
    """`sign(x) (1 - exp(-x^2 / 2 l^2))`: flat around zero, saturating far from it.

    The published `exp(-x^2 / 2 l^2)` has no inverse, because it forgets the sign, and it sends zero to one. This is one less
    that curve, with the sign of x: the same resolution everywhere, and increasing.

    Attributes:
        length_scale: l, in units of the edit (see `SEA(feature_unit=...)`).

    Example:
        >>> sl.SquaredExponential(4.0).forward(torch.tensor([-99.0, 0.0, 4.0]))
        tensor([-1.0000,  0.0000,  0.3935])
    """

    length_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("SquaredExponential", "length_scale", self.length_scale)
        check_fields(self)

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


@register_value("Tanh")
@dataclass(frozen=True)
class Tanh:
    """`tanh(x / scale)`: linear around zero, saturating far from it.

    Attributes:
        scale: Where it bends, in units of the edit (see `SEA(feature_unit=...)`). The published code uses 1.

    Example:
        >>> sl.Tanh(2.0).forward(torch.tensor([-1.0, 0.0, 99.0]))
        tensor([-0.4621,  0.0000,  1.0000])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("Tanh", "scale", self.scale)
        check_fields(self)

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


@register_value("ELU")
@dataclass(frozen=True)
class ELU:
    """`x` where it is positive and `alpha (exp(x) - 1)` where it is negative: saturating below only.

    Attributes:
        alpha: Minus its limit far below zero. The published code uses 1.

    Example:
        >>> sl.ELU().forward(torch.tensor([-99.0, 0.0, 3.0]))
        tensor([-1.,  0.,  3.])
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("ELU", "alpha", self.alpha)
        check_fields(self)

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


def bounded(feature_map: FeatureMap, features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Features clamped to those of the map's domain, where its inverse is defined."""
    low, high = (feature_map.forward(features.new_tensor(end)) for end in feature_map.domain)
    return features.clamp(low, high)


def check_map(feature_map: FeatureMap) -> None:
    """Refuses what is no map: by its members, and by what it does to numbers all over its domain, with an InputError."""
    if isinstance(feature_map, type) or not isinstance(feature_map, FeatureMap):
        raise InputError(
            f"A feature map is an object with a domain, forward(x) and inverse(features), such as Tanh(2.0), and "
            f"{feature_map!r} was given."
        )
    name, (low, high) = type(feature_map).__name__, feature_map.domain
    if not low < 0 < high:
        raise InputError(f"A feature map's domain must reach from below to above zero; {name}'s is {low} to {high}.")
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
            f"{name} is not inverted: {x[where]:g} comes back as {back[where]:g}. Mend its inverse or domain."
        )
    if not (features.diff() > 0).all():
        raise InputError(f"A feature map must increase strictly over its domain, and {name} does not.")
    if features[200] != 0:
        raise InputError(f"A feature map must send 0 to 0, and {name} sends it to {features[200]:g}. Subtract that.")


def _check_positive(name: str, parameter: str, value: float) -> None:
    if isinstance(value, bool) or not (isinstance(value, float | int) and math.isfinite(value) and value > 0):
        raise InputError(f"{name}'s {parameter} must be a finite number above zero, and {value!r} was given.")


@reads_files_of_0_1("feature space")
def _feature_space(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FeatureSpaceEdit:
    parameters = facts["parameters"] if isinstance(facts["parameters"], dict) else {}
    parts = (
        edit_of_0_1(
            part, {name.removeprefix(f"{index}."): t for name, t in tensors.items() if name.startswith(f"{index}.")}
        )
        for index, part in enumerate(facts["parts"])
    )
    return FeatureSpaceEdit(
        from_plain({"kind": facts["feature_map"], "fields": parameters}, {}),
        tuple(parts),
        unit=facts["unit"],
        weight=facts["weight"],
        strength=facts["strength"],
        restore_norm=facts["restore_norm"],
    )
