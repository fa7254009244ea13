"""Single coordinates set to values: the interventions on massive activations (Sun et al., arXiv 2402.17762)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError


@register_edit("set coordinates")
@dataclass(frozen=True, eq=False)
class SetCoordinates:
    """Sets some coordinates of an activation to `keep * x + value`, and leaves all others as they are to the bit.

    Example:
        >>> edit = sl.SetCoordinates(4, torch.tensor([2]), torch.tensor([9.0]))
        >>> edit(torch.ones(4))
        tensor([1., 1., 9., 1.])
        >>> off = sl.Editor({1: sl.SetCoordinates.to_zero(576, [507])}).at_positions([0])

    Attributes:
        width: Width of the activations it edits.
        coordinates: Which coordinates, each once.
        values: What is added to what is kept of each.
        keep: How much is kept of what was there: 0 sets a coordinate to its value, 0.5 with values of 0 halves it.
        gates: Coordinates that decide which tokens are edited; None for every token.
        above: By gate, the absolute value above which a token is edited.
        strength: 1 sets, 0 is the identity, between them is between.
    """

    width: int
    coordinates: Int[Tensor, " k"]
    values: Float[Tensor, " k"]
    keep: float = 0.0
    gates: Int[Tensor, " n_gates"] | None = None
    above: Float[Tensor, " n_gates"] | None = None
    strength: float = 1.0

    kind: ClassVar[str]
    token_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name, found in (("coordinates", self.coordinates), ("gates", self.gates)):
            if found is None:
                continue
            listed = found.tolist()
            if not listed or len(set(listed)) < len(listed) or not 0 <= min(listed) <= max(listed) < self.width:
                raise InputError(
                    f"{name} are different numbers from 0 to {self.width - 1}, at least one, and {listed} were given."
                )
        if self.values.shape != self.coordinates.shape or not bool(self.values.isfinite().all()):
            raise InputError(
                f"There is one finite value per coordinate, and {self.values.tolist()} were given for "
                f"{self.coordinates.tolist()}."
            )
        if (self.gates is None) != (self.above is None):
            raise InputError("gates and above go together, and one of them was given alone.")
        if self.gates is not None and self.above is not None and self.gates.shape != self.above.shape:
            raise InputError("There is one limit above which a token is edited per gate.")

    @classmethod
    def to_zero(cls, width: int, coordinates: list[int]) -> SetCoordinates:
        """Sets coordinates to zero.

        Args:
            width: Width of the activations.
            coordinates: Which.
        """
        check_arguments(SetCoordinates.to_zero, locals())
        return cls(width, torch.tensor(coordinates), torch.zeros(len(coordinates)))

    @property
    def rank(self) -> int:
        """How many coordinates it sets."""
        return len(self.coordinates)

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return self.strength == 0 or (self.keep == 1 and not bool(self.values.any()))

    @property
    def directions(self) -> Float[Tensor, "width n_directions"]:
        """The axes of its coordinates."""
        return torch.eye(self.width)[:, self.coordinates]

    @property
    def gains(self) -> Float[Tensor, " n_directions"]:
        """What it adds to each coordinate, apart from what it keeps."""
        return self.values

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        kept = "" if self.keep == 0 else f"{self.keep:g} of what they are and "
        shown = [f"{c}: {v:.4g}" for c, v in zip(self.coordinates.tolist(), self.values.tolist(), strict=True)]
        more = ", ..." if len(shown) > 6 else ""
        gate = "" if self.gates is None else f" where {', '.join(map(str, self.gates.tolist()[:6]))} is massive"
        return f"sets coordinates to {kept}{', '.join(shown[:6])}{more}{gate}"

    def scaled(self, factor: float) -> SetCoordinates:
        """The same edit with its strength multiplied."""
        check_arguments(SetCoordinates.scaled, locals())
        return replace(self, strength=self.strength * factor)

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        check_width(self, h)
        if self.is_identity:
            return h
        coordinates = self.coordinates.to(h.device)
        x = h[..., coordinates].to(torch.promote_types(h.dtype, torch.float32))
        wanted = self.keep * x + self.values.to(x)
        # At strength 1 the value itself, which x + (wanted - x) may miss by rounding.
        wanted = wanted if self.strength == 1 else x + self.strength * (wanted - x)
        if self.gates is not None and self.above is not None:
            met = (h[..., self.gates.to(h.device)].abs().float() > self.above.to(h.device).float()).any(
                -1, keepdim=True
            )
            wanted = wanted.where(met, x)
        return h.index_copy(-1, coordinates, wanted.to(h.dtype))
