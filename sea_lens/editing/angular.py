"""Turns activations in a plane, to an angle that is given (angular steering, `lone17/angular-steering`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError


@register_edit("angular")
@dataclass(frozen=True, eq=False)
class AngularEdit:
    """Turns what of an activation lies in a plane to an angle: `h - P h + |P h| (cos(angle) first + sin(angle) second)`.

    P is the projection onto the plane. What lies across it stays, and so does the norm, to rounding, at every strength: a
    strength s turns by the share s of the way that is left to the angle, the shorter way round. An activation without a
    part in the plane stays as it is to the bit.

    Example:
        >>> edit = sl.AngularEdit.of(torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), angle=90.0)
        >>> edit(torch.tensor([2.0, 0.0, 5.0])).round(decimals=4).abs()
        tensor([0., 2., 5.])
        >>> edit.scaled(0.5)(torch.tensor([2.0, 0.0, 5.0]))
        tensor([1.4142, 1.4142, 5.0000])

    Attributes:
        plane: The plane's two directions, orthonormal, `[2, width]`: the first is at 0 degrees, the second at 90.
        angle: In degrees, where the part in the plane points afterwards; 360 more is the same.
        adaptive: Whether only activations are turned whose part along the first direction is above 0.
        strength: 1 is the published method, 0 the identity.
    """

    plane: Float[Tensor, "two width"]
    angle: float
    adaptive: bool = False
    strength: float = 1.0
    _placed: dict[object, Tensor] = field(default_factory=dict, repr=False, init=False)

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    rank: ClassVar[int] = 2
    oriented: ClassVar[bool] = True
    """Directions have signs that mean something: angles are counted from the first to the second."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.plane.ndim != 2 or len(self.plane) != 2 or not bool(self.plane.isfinite().all()):
            raise InputError(
                f"A plane is two directions, [2, width], of finite numbers; {list(self.plane.shape)} was given."
            )
        apart = (self.plane.double() @ self.plane.double().T - torch.eye(2, device=self.plane.device)).abs().max()
        if not apart < 1e-3:
            raise InputError("The two directions of a plane must be orthonormal. AngularEdit.of makes them so.")
        if not math.isfinite(self.angle) or not math.isfinite(self.strength):
            raise InputError(f"Angle and strength are finite numbers, and {self.angle} and {self.strength} were given.")

    @classmethod
    def of(
        cls, first: Float[Tensor, " width"], second: Float[Tensor, " width"], angle: float, adaptive: bool = False
    ) -> AngularEdit:
        """In the plane of two directions; what the second has of the first is taken off.

        Args:
            first: The direction at 0 degrees, `[width]`, of any length.
            second: Any other direction of the plane, `[width]`.
            angle: In degrees, where the part in the plane points afterwards.
            adaptive: Whether only activations are turned whose part along the first direction is above 0.

        Example:
            >>> sl.AngularEdit.of(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 3.0]), angle=45.0).plane
            tensor([[1., 0.],
                    [0., 1.]])

        Raises:
            InputError: If they span no plane.
        """
        check_arguments(AngularEdit.of, locals())
        one, other = first.double(), second.double()
        one = one / torch.linalg.vector_norm(one)
        rest = other - (other @ one) * one
        if not torch.linalg.vector_norm(rest) > 1e-6 * torch.linalg.vector_norm(other):
            raise InputError("The two directions span no plane: one is zero, or a multiple of the other.")
        return cls(torch.stack([one, rest / torch.linalg.vector_norm(rest)]).to(first.dtype), angle, adaptive)

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.plane.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0

    @property
    def directions(self) -> Float[Tensor, "width n_directions"]:
        """The plane's two."""
        return self.plane.T

    @property
    def gains(self) -> Float[Tensor, " n_directions"]:
        """What of the part in the plane lies along each afterwards."""
        turned = math.radians(self.angle % 360)
        return self.plane.new_tensor([math.cos(turned), math.sin(turned)])

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        gate = " where it is along the first direction" if self.adaptive else ""
        return f"turns to {self.angle:g} degrees in a plane{gate}"

    def scaled(self, factor: float) -> AngularEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        check_arguments(AngularEdit.scaled, locals())
        view = replace(self, strength=self.strength * factor)
        object.__setattr__(view, "_placed", self._placed)
        return view

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        plane = self._on(x.device, x.dtype)
        part = x @ plane.T  # [..., 2]
        length = part.square().sum(-1, keepdim=True)
        acts = length > 0
        if self.adaptive:
            acts = acts & (part[..., :1] > 0)
        # A part of zero has no angle, and no gradient: it is given some, and its activation is left alone.
        safe = part.where(acts, torch.ones_like(part))
        length = torch.linalg.vector_norm(safe, dim=-1, keepdim=True)
        to = torch.full_like(length, math.radians(self.angle % 360))
        if self.strength != 1:
            now = torch.atan2(safe[..., 1:], safe[..., :1])
            to = now + self.strength * (torch.remainder(to - now + math.pi, 2 * math.pi) - math.pi)
        turned = length * torch.cat([to.cos(), to.sin()], dim=-1)
        edited: Tensor = x + (turned - part) @ plane
        return edited.to(h.dtype).where(acts, h)

    def _on(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "two width"]:
        """The plane where and as the activation is; kept, and shared by all views of this edit."""
        placed = self._placed.get((device, dtype))
        if placed is None:
            with torch.inference_mode(False):  # what is kept must also serve a later pass that builds a graph
                placed = self.plane.to(device, dtype)
            if not placed.requires_grad:
                self._placed[device, dtype] = placed
        return placed
