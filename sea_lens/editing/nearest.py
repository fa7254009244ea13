"""Several edits, each near its own centroid: the scope of knowledge edits (SAKE, arXiv 2503.01751)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.edits import Edit, check_width
from sea_lens.editing.registry import register_edit, register_value
from sea_lens.editing.where import ByPosition, Mask
from sea_lens.errors import InputError
from sea_lens.models.passes import Pass
from sea_lens.models.sites import Site


@register_edit("nearest")
@dataclass(frozen=True, eq=False)
class NearestEdit:
    """Gives every token to the edit whose centroid is nearest, if that is near enough, and leaves all others as they are.

    Attributes:
        centers: `[n_edits, width]`.
        radii: How near a token has to be to each, in Euclidean distance; infinite for everywhere.
        edits: One per centroid, all of one width.
        steps: By edit, the token that it is for: 0 the prompt's last, 1 the one after, and so on; None for every token.
            Called by itself, it takes tokens for prompts' last ones; inside a model it is told which they are.
    """

    centers: Float[Tensor, "n_edits width"]
    radii: Float[Tensor, " n_edits"]
    edits: tuple[Edit, ...]
    steps: Int[Tensor, " n_edits"] | None = None

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
        if self.steps is not None and (self.steps.shape != self.radii.shape or bool((self.steps < 0).any())):
            raise InputError(f"There is one step from 0 on per edit, and {self.steps.tolist()} were given.")
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
    def stepwise(self) -> bool:
        """Whether it asks which token after the prompt's last each one is."""
        return self.steps is not None

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

    def chosen(
        self, h: Float[Tensor, "*batch width"], steps: Int[Tensor, "*batch"] | None = None
    ) -> Int[Tensor, "*batch"]:
        """By token, the number of the edit that acts on it; -1 for none.

        Args:
            h: Activations.
            steps: How many tokens after its prompt's last each one is; None for prompts' last ones.
        """
        check_width(self, h)
        if self.steps is None:
            return nearest(h, self.centers, self.radii)
        steps = torch.zeros(h.shape[:-1], dtype=torch.long) if steps is None else steps
        own = self.steps.to(h.device) == steps.to(h.device)[..., None]
        return nearest(h, self.centers, self.radii, own.reshape(-1, len(self.steps)))

    def __call__(
        self, h: Float[Tensor, "*batch width"], steps: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch width"]:
        """Edits activations of any leading shape; dtype and device are kept.

        Args:
            h: Activations.
            steps: As of `chosen`.

        Raises:
            ModelMismatchError: If the last dimension is not `width`.
        """
        which = self.chosen(h, steps)
        edited = h
        for number, edit in enumerate(self.edits):
            if not edit.is_identity:
                edited = edit(h).where((which == number)[..., None], edited)
        return edited


def nearest(
    h: Float[Tensor, "*batch width"],
    centers: Float[Tensor, "n width"],
    radii: Float[Tensor, " n"],
    among: Bool[Tensor, "n_tokens n"] | None = None,
) -> Int[Tensor, "*batch"]:
    """By token, the number of the nearest center, of those that are its own; -1 where that is farther than its radius."""
    x = h.float().reshape(-1, h.shape[-1])
    # By differences, not by products: these distances are small beside the norms.
    distances = torch.cdist(x, centers.to(x), compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances if among is None else distances.where(among, torch.inf)
    near, which = distances.min(-1)
    return which.where((near <= radii.to(x)[which]) & near.isfinite(), -1).reshape(h.shape[:-1])


@register_value("when near")
@dataclass(frozen=True, eq=False)
class WhenNear(ByPosition):
    """The last token of a prompt, and the first ones of its answer, of prompts that end near one of some centers.

    The prompt's last token decides, in the pass that begins the text, and the decision holds for all that comes after it.

    Attributes:
        site: Whose activations are read, a hook name.
        centers: `[n, width]`.
        radii: How near the prompt's last token has to be to each, in Euclidean distance.
        tokens: How many tokens are edited: 1 is the prompt's last, from which the answer's first is predicted.
    """

    site: str
    centers: Float[Tensor, "n width"]
    radii: Float[Tensor, " n"]
    tokens: int = 1

    token_local: ClassVar[bool] = False
    of_the_fit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "site", Site.of(self.site).hook_name)
        if self.centers.ndim != 2 or not len(self.centers) or self.radii.shape != self.centers.shape[:1]:
            raise InputError(
                f"There is one radius per center, and {list(self.centers.shape)} and {list(self.radii.shape)} were given."
            )
        if self.tokens < 1:
            raise InputError(f"tokens is a number of tokens from 1 on, and {self.tokens} was given.")

    @property
    def reads(self) -> Site | None:  # type: ignore[override]
        """Its site."""
        return Site.of(self.site)

    def decide(self, read: Float[Tensor, "batch pos width"], seen: Pass) -> Bool[Tensor, " batch"]:
        """Looks at the last token of each prompt."""
        positions = seen.positions[:, -read.shape[1] :].to(read.device)  # generation may make the last token's alone
        is_last = positions == seen.prompt_lengths.to(read.device)[:, None] - 1
        last = read[torch.arange(len(read), device=read.device), is_last.int().argmax(1)]
        return (nearest(last, self.centers, self.radii) >= 0) & is_last.any(1)

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """So many tokens from the prompt's last on, in the rows that were decided on."""
        assert decided is not None
        start = seen.prompt_lengths[:, None] - 1
        inside = (seen.positions >= start) & (seen.positions < start + self.tokens) & (seen.positions >= 0)
        return inside & decided.to(seen.positions.device)[:, None]

    def __str__(self) -> str:
        more = "" if self.tokens == 1 else f" and the first {self.tokens - 1} of its answer"
        return f"the prompt's last token{more}, where that is near one of {len(self.centers)} centers"
