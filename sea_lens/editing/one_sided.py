"""An edit of rank one that acts only where what it reads is above zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.edits import check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError


@register_edit("one-sided")
@dataclass(frozen=True, eq=False)
class OneSidedEdit:
    """An affine edit of rank one at the tokens whose reading, `(h - center) . right`, is above zero; others stay to the bit.

    Example:
        >>> up, along = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
        >>> edit = OneSidedEdit(AffineEdit(up, along))
        >>> edit(torch.tensor([[0.0, 2.0], [0.0, -2.0]]))
        tensor([[ 2.,  2.],
                [ 0., -2.]])

    Attributes:
        edit: Of rank one.
    """

    edit: AffineEdit

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True
    rank: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.edit.rank != 1:
            raise InputError(f"A one-sided edit reads one direction, and an edit of rank {self.edit.rank} was given.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.edit.width

    @property
    def strength(self) -> float:
        """1 is the published method, 0 the identity."""
        return self.edit.strength

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.edit.is_identity

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """What is written."""
        return self.edit.directions

    @property
    def gains(self) -> Float[Tensor, " n_directions"] | None:
        """As those of the edit."""
        return self.edit.gains

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        return self.edit.summary if self.is_identity else f"{self.edit.summary}, where it reads above zero"

    def scaled(self, factor: float) -> OneSidedEdit:
        """The same edit with its strength multiplied; tensors are shared."""
        check_arguments(OneSidedEdit.scaled, locals())
        return OneSidedEdit(self.edit.scaled(factor))

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        x = h.to(torch.promote_types(h.dtype, torch.float32))
        center = self.edit.center
        read = (x if center is None else x - center.to(x)) @ self.edit.right.to(x)
        return torch.where(read > 0, self.edit(h), h)
