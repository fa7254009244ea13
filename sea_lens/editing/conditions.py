"""Conditions on a text's prompt: whether it is edited at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sea_lens.arguments import check_fields
from sea_lens.editing.registry import register_value
from sea_lens.editing.sparing import NotMassive
from sea_lens.editing.where import Mask
from sea_lens.errors import InputError
from sea_lens.models.passes import Pass
from sea_lens.models.sites import Site

PromptToken = Literal["mean", "last"]
"""What stands for a prompt: the mean over its tokens, or its last token."""


@register_value("when aligned")
@dataclass(frozen=True, eq=False)
class WhenAligned:
    """Texts whose prompt points along a direction (conditional activation steering, CAST, Lee et al., arXiv 2409.05907).

    The cosine of the direction with the mean activation of the prompt's tokens decides, once for each row, in the pass that
    begins it. The decision holds for all that is generated after it. `sea_lens.fit_condition` fits one on labelled prompts.

    `above` and `below` mean what they say. In the authors' code `comparator_threshold_is="larger"` means that the *threshold*
    is larger: it edits where the similarity is below it.

    Example:
        >>> condition = sl.WhenAligned(0, torch.ones(8), threshold=0.2)
        >>> conditional = sl.Editor({1: sl.AffineEdit.of_shift(torch.ones(8))}).when(condition)
        >>> str(conditional.where)
        "where the prompt's cosine at blocks.0.hook_resid_post is above 0.2"

    Attributes:
        site: Whose activations are read: a layer of `resid_post`, or a hook name. No edit may come before it.
        direction: `[width]`.
        threshold: A row is edited where the cosine is above it.
        below: Edit where the cosine is below the threshold instead.
        token: `mean` over the prompt's tokens, or the `last` of them.
        projected: Whether to take the cosine of the state with `tanh` of its own projection onto the direction, as the
            authors' code does. That is nearly the absolute cosine: it cannot tell a direction from its opposite.
        sparing: Attention sinks that are left out of the mean, which they would rule; None for all tokens.
    """

    site: str | int | Site
    direction: Float[Tensor, " width"]
    threshold: float = 0.0
    below: bool = False
    token: PromptToken = "mean"
    projected: bool = False
    sparing: NotMassive | None = None

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
        """For which rows the condition holds: what stands for their prompt, compared with the direction.

        Raises:
            InputError: If the direction has another width than what is read.
        """
        if read.shape[-1] != len(self.direction):
            raise InputError(
                f"The condition's direction has width {len(self.direction)}, and {self.site} has {read.shape[-1]}."
            )
        states = prompt_states(Site.of(self.site), read, seen, self.token, self.sparing)
        found = similarities(states, self.direction, projected=self.projected)
        return found < self.threshold if self.below else found > self.threshold

    def mask(self, seen: Pass, decided: Tensor | None) -> Mask:
        """All tokens of the rows that were decided on."""
        assert decided is not None
        return (seen.positions >= 0) & decided.to(seen.positions.device)[:, None]

    def spared(self, site: Site, read: Float[Tensor, "batch pos width"]) -> Mask | None:
        """None: it spares no token of a row that it holds for."""
        return None

    def __str__(self) -> str:
        whose = "the prompt's" if self.token == "mean" else "the prompt's last token's"
        kind = "projected cosine" if self.projected else "cosine"
        return f"where {whose} {kind} at {self.site} is {'below' if self.below else 'above'} {self.threshold:g}"


def prompt_states(
    site: Site,
    read: Float[Tensor, "batch pos width"],
    seen: Pass,
    token: PromptToken = "mean",
    sparing: NotMassive | None = None,
) -> Float[Tensor, "batch width"]:
    """What stands for each row's prompt, in float32.

    Args:
        site: Where it is read.
        read: The activations of the pass that begins the rows.
        seen: The pass.
        token: The mean over the prompt's tokens, or its last one.
        sparing: Tokens that are left out of the mean, unless a prompt has no others.
    """
    ends = seen.prompt_lengths[:, None]
    inside = (seen.positions >= 0) & (seen.positions < ends)
    if token == "last":
        inside = inside & (seen.positions == ends - 1)
    elif sparing is not None:
        kept, massive = inside & sparing.mask(seen, None), sparing.spared(site, read)
        if massive is not None:
            kept = kept & ~massive.to(kept.device)
        inside = kept.where(kept.any(1, keepdim=True), inside)
    weights = inside.to(read.device, torch.float32)[..., None]
    return (read.float() * weights).sum(1) / weights.sum(1).clamp_min(1)


def similarities(
    states: Float[Tensor, "n width"], direction: Float[Tensor, " width"], *, projected: bool = False
) -> Float[Tensor, " n"]:
    """Cosines of states with a direction, or (as CAST's code) with `tanh` of their own projections onto it."""
    along = direction.to(states)
    if not projected:
        return torch.cosine_similarity(states, along[None], dim=-1)
    onto = torch.tanh((states @ along)[:, None] * along / along.square().sum())
    return torch.cosine_similarity(states, onto, dim=-1)
