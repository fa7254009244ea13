"""Several edits, each near its own centroid: the scope of knowledge edits (SAKE, arXiv 2503.01751)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import Edit, check_width
from sea_lens.editing.registry import register_edit
from sea_lens.errors import InputError


@register_edit("nearest")
@dataclass(frozen=True, eq=False)
class NearestEdit:
    """Gives every token to the edit whose centroid is nearest, if that is near enough, and leaves all others as they are.

    Attributes:
        centers: `[n_edits, width]`.
        radii: How near a token has to be to each, in Euclidean distance; infinite for everywhere.
        edits: One per centroid, all of one width.
    """

    centers: Float[Tensor, "n_edits width"]
    radii: Float[Tensor, " n_edits"]
    edits: tuple[Edit, ...]

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "edits", tuple(self.edits))
        shape = len(self.edits), (self.edits[0].width if self.edits else 0)
        if not self.edits or tuple(self.centers.shape) != shape or self.radii.shape != self.centers.shape[:1]:
            raise InputError(
                f"There is one center and one radius per edit, of its width, and {list(self.centers.shape)} and "
                f"{list(self.radii.shape)} were given for {len(self.edits)} edits."
            )
        if any(edit.width != self.width for edit in self.edits):
            raise InputError(f"All edits must have one width; theirs are {[edit.width for edit in self.edits]}.")

    @property
    def width(self) -> int:
        """Width of the activations it edits."""
        return self.centers.shape[1]

    @property
    def rank(self) -> int:
        """Of all its edits together."""
        return sum(edit.rank for edit in self.edits)

    @property
    def strength(self) -> float:
        """Of its first edit."""
        return self.edits[0].strength

    @property
    def is_identity(self) -> bool:
        """Whether it provably changes nothing."""
        return all(edit.is_identity for edit in self.edits)

    @property
    def token_local(self) -> bool:
        """Whether its edits are: which of them acts is up to the token itself."""
        return all(edit.token_local for edit in self.edits)

    @property
    def directions(self) -> Float[Tensor, "width n_directions"] | None:
        """Those of all its edits."""
        found = [edit.directions for edit in self.edits if edit.directions is not None]
        return torch.cat(found, dim=1) if found else None

    @property
    def gains(self) -> Float[Tensor, " n_directions"] | None:
        """Those of all its edits."""
        found = [edit.gains for edit in self.edits if edit.gains is not None]
        return torch.cat(found) if found else None

    @property
    def summary(self) -> str:
        """One line for an editor's repr."""
        if self.is_identity:
            return "changes nothing"
        radii = f"{self.radii.min():.3g}" + (f" to {self.radii.max():.3g}" if len(self.radii) > 1 else "")
        many = "s" * (len(self.edits) > 1)
        return f"{len(self.edits)} edit{many}, each within {radii} of its centroid: {self.edits[0].summary}"

    def scaled(self, factor: float) -> NearestEdit:
        """Every edit with its strength multiplied; where they act stays."""
        check_arguments(NearestEdit.scaled, locals())
        return replace(self, edits=tuple(edit.scaled(factor) for edit in self.edits))

    def chosen(self, h: Float[Tensor, "*batch width"]) -> Tensor:
        """By token, the number of the edit that acts on it; -1 for none."""
        check_width(self, h)
        x = h.float().reshape(-1, self.width)
        # By differences, not by products: these distances are small beside the norms.
        distances = torch.cdist(x, self.centers.to(x), compute_mode="donot_use_mm_for_euclid_dist")
        near, which = distances.min(-1)
        return which.where(near <= self.radii.to(x)[which], -1).reshape(h.shape[:-1])

    def __call__(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        which = self.chosen(h)
        edited = h
        for number, edit in enumerate(self.edits):
            if not edit.is_identity:
                edited = edit(h).where((which == number)[..., None], edited)
        return edited
