"""MidSteer: what is read as one concept is written as another, with the least change of everything else.

Source: MidSteer (ICML 2026, arXiv 2605.05220), by the authors' code (Atmyre/MidSteer), which was read; the paper was not, and
no file of results lies with the code. The code takes the neutral mean and covariance from all tokens of 50,000 answers and
the concepts from the last tokens of 1,000 prompts, so that what differs between positions gets into the concepts; here all
three are of the same tokens. It edits the outputs of attention in every layer, `site="attn_out"`, at strengths of 1 to 5.

With nothing to write, it is an erasure: what `LEACE` does to two classes whose difference is the concept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit
from sea_lens.editing.one_sided import OneSidedEdit
from sea_lens.errors import InputError
from sea_lens.methods.covariances import shrunk, solved
from sea_lens.methods.directions import sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.sites import Site
from sea_lens.wording import setting

ROUNDING = 1e-24
"""Share of the squares of activations below which their variance is rounding."""


@register_method("midsteer", source="MidSteer, ICML 2026, arXiv 2605.05220")
@dataclass(frozen=True)
class MidSteer:
    """Switches the negative concept for the positive one, with the least change of neutral activations.

    With mu and Sigma the mean and covariance of the neutral activations, `s = mu_neg - mu` and `t = mu_pos - mu`,

        h' = h - (s - t) g . (h - mu),    g = Sigma^-1 s / (s . Sigma^-1 s).

    So `mu + s` becomes `mu + t`, what g does not read stays as it is, and of all linear maps M with `M s = t` this one moves
    neutral activations least in the mean square.

    Example:
        >>> sides = {side: {3: torch.randn(500, 8) + at} for side, at in (("positive", 1), ("negative", -1), ("neutral", 0))}
        >>> activations = sl.Activations.from_tensors(**sides)
        >>> edit = sl.MidSteer().fit(activations)[3]
        >>> torch.allclose(edit(activations.negative[3].mean(0)), activations.positive[3].mean(0), atol=1e-4)
        True

    Attributes:
        switch: Whether the positive concept is written; if not, t = 0 and the negative one is erased.
        shrinkage: Whether the covariance is estimated with shrinkage towards a multiple of the identity (Bodnar et al. 2014),
            which demonstrations fewer than a few times the width need. Without it, the pseudo-inverse is taken.
        clip: Whether only tokens are edited that hold the concept, `g . (h - mu) > 0`: an option of the code.
    """

    switch: bool = True
    shrinkage: bool = True
    clip: bool = False

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("neutral", "positive", "negative")
    equation: ClassVar[str] = "h - (s - t) g . (h - mu),  g = Sigma^-1 s / (s . Sigma^-1 s)"
    when_to_use: ClassVar[str] = "Where what has nothing to do with the concept should move as little as it can."

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, activations: Activations) -> Editor:
        """One oblique edit of rank one per site, computed in float64.

        Args:
            activations: Neutral, positive and negative ones.

        Raises:
            InputError: If a side is missing, or neutral activations do not vary along a concept (at which site).
        """
        check_arguments(MidSteer.fit, locals())
        check_roles(self, activations)
        edits: dict[Site, Edit] = {}
        for site in activations.sites:
            positive, negative = sides_of(activations, site)
            neutral = activations.neutral[site].to(positive.device).double()
            mean = neutral.mean(0)
            s, t = negative.mean(0) - mean, positive.mean(0) - mean
            reads = self._reads(neutral, s)
            if reads is None:
                raise InputError(
                    f"The neutral activations of {site} do not vary along the negative concept, so their covariance does not "
                    f"say how to read it. Give more demonstrations, or {setting('shrinkage', True)}."
                )
            left = (t if self.switch else torch.zeros_like(t)) - s
            device = activations.positive[site].device
            written, read, center = (each.float().to(device) for each in (left[:, None], reads[:, None], mean))
            edit = AffineEdit(written, read, center)
            edits[site] = OneSidedEdit(edit) if self.clip else edit
        return fitted_editor(self, activations, edits)

    def _reads(
        self, neutral: Float[Tensor, "n width"], concept: Float[Tensor, " width"]
    ) -> Float[Tensor, " width"] | None:
        """g; zeros for a concept that is none, and None where the covariance does not reach it."""
        if not concept.any():
            return torch.zeros_like(concept)
        n, centered = len(neutral), neutral - neutral.mean(0)
        sigma = centered.T @ centered / n
        if not sigma.trace() > ROUNDING * neutral.square().sum() / n:
            return None
        precise = solved(shrunk(sigma, n) if self.shrinkage else sigma, concept)
        read = concept @ precise
        return precise / read if read > 1e-12 * concept.norm() * precise.norm() else None
