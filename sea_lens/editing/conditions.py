"""Conditions on a text's prompt: whether it is edited at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sea_lens.arguments import check_fields
from sea_lens.editing.registry import register_value
from sea_lens.editing.where import Mask
from sea_lens.errors import InputError
from sea_lens.models.passes import Pass
from sea_lens.models.sites import Site


@register_value("when aligned")
@dataclass(frozen=True, eq=False)
class WhenAligned:
    """Texts whose prompt points along a direction (conditional activation steering, Lee et al. 2024, arXiv 2409.05907).

    The cosine of the direction with the mean activation of the prompt's tokens decides, once for each row, in the pass that
    begins it. The decision holds for all that is generated after it.

    Attributes:
        site: Whose activations are read: a layer of `resid_post`, or a hook name. No edit may come before it.
        direction: `[width]`.
        threshold: A row is edited where the cosine is above it.
        below: Edit where the cosine is below the threshold instead.
    """

    site: str | int | Site
    direction: Float[Tensor, " width"]
    threshold: float = 0.0
    below: bool = False

    token_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.direction.ndim != 1 or not bool(self.direction.isfinite().all()) or not bool(self.direction.any()):
            raise InputError("The direction of a condition must be one vector of finite numbers, not all zero.")
        object.__setattr__(self, "site", Site.of(self.site).hook_name)

    @property
    def reads(self) -> Site | None:
        """Its site."""
        return Site.of(self.site)

    def decide(self, read: Float[Tensor, "batch pos width"], seen: Pass) -> Bool[Tensor, " batch"]:
        """Compares the mean of the prompt's activations with the direction."""
        if read.shape[-1] != len(self.direction):
            raise InputError(
                f"The condition's direction has width {len(self.direction)}, and {self.site} has {read.shape[-1]}."
            )
        inside = (seen.positions >= 0) & (seen.positions < seen.prompt_lengths[:, None])
        weights = inside.to(read.device, torch.float32)[..., None]
        mean = (read.float() * weights).sum(1) / weights.sum(1).clamp_min(1)
        cosine = torch.cosine_similarity(mean, self.direction.to(mean)[None], dim=-1)
        return cosine < self.threshold if self.below else cosine > self.threshold

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """All tokens of the rows that were decided on."""
        assert decided is not None
        return (seen.positions >= 0) & decided.to(seen.positions.device)[:, None]

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """None."""
        return None

    def __str__(self) -> str:
        return f"where the prompt's cosine at {self.site} is {'below' if self.below else 'above'} {self.threshold:g}"
