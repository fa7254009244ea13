"""Affine concept editing: the coordinate along the mean difference is set, and not added to.

Source: Marshall, Scherlis and Belrose, *Refusal in LLMs is an Affine Function* (2024, arXiv 2411.09003), by its equation and
the code that goes with it (EleutherAI/steering-llama3), which was read; the paper was not. Its authors report that it
steers more precisely than addition and ablation over 10 models; that is their abstract's word. Their code also has a form
with a LEACE eraser in place of the projection, which is not here: `MidSteer` reads activations so. At alpha 0.5 it is the
orthogonal eraser of LEACE's package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.methods.directions import mean_difference, sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role


@register_method("ace", source="Marshall et al. 2024, arXiv 2411.09003")
@dataclass(frozen=True)
class ACE:
    """Sets the coordinate of every activation along the mean difference to a level between the classes, or past them.

    With r the mean difference and mu_neg the mean of the negatives,

        h' = h - proj_r(h - mu_neg) + alpha r,

    so at strength 1 `(h' - mu_neg) . r / |r|^2 = alpha` for every h, whatever it was before: alpha is a level, where a mean
    difference is a step. Strengths below 1 go part of the way.

    Example:
        >>> sides = {"positive": {3: torch.full((50, 8), 3.0)}, "negative": {3: torch.ones(50, 8)}}
        >>> edit = sl.ACE(alpha=1.0).fit(sl.Activations.from_tensors(**sides))[3]
        >>> edit(torch.zeros(8)), edit(torch.full((8,), 3.0))  # both at the positives' level
        (tensor([3., 3., 3., 3., 3., 3., 3., 3.]), tensor([3., 3., 3., 3., 3., 3., 3., 3.]))

    Attributes:
        alpha: The level: 0 is the mean of the negatives, 1 that of the positives.
    """

    alpha: float = 1.0

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[dict[str, tuple[float, ...]]] = {"alpha": (1.0, 2.0, 4.0)}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.75, 0.25)
    equation: ClassVar[str] = "h - proj_r(h - mu_neg) + alpha r,  r = mu_pos - mu_neg"
    when_to_use: ClassVar[str] = (
        "Where every token should end at one level, and strengths should mean the same everywhere."
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, activations: Activations) -> Editor:
        """One edit of rank one per site, computed in float64. Where the means are equal, it changes nothing.

        Args:
            activations: Positive and negative ones.

        Raises:
            InputError: If a side is missing.
        """
        check_arguments(ACE.fit, locals())
        check_roles(self, activations)
        edits = {}
        for site in activations.sites:
            positive, negative = sides_of(activations, site)
            r = mean_difference(positive, negative)
            device = activations.positive[site].device
            reads = torch.nn.functional.normalize(r, dim=0, eps=1e-300)[:, None]
            reads = reads[:, : int(bool(r.any()))].float().to(device)
            center, shift = (each.float().to(device) for each in (negative.mean(0), self.alpha * r))
            edits[site] = AffineEdit(-reads, reads, center, shift)
        return fitted_editor(self, activations, edits)
