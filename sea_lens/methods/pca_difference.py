"""PCA of differences: a shift along the direction that the differences of pairs have most of.

Sources: representation engineering (Zou et al. 2023, arXiv 2310.01405) and the library repeng, whose code was read; the paper
was not. repeng's default, `pca_diff`, hands the differences to a PCA that centers them, which takes the mean difference
out: where pairs differ by one vector and noise, what is found is the noise. Here differences are not centered. That
is repeng's `pca_center`, which takes the principal direction of both sides about the midpoints of their pairs: the two halves
of a pair are then plus and minus half its difference, and have no mean. Signs are those of the mean difference; repeng
takes the majority of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.methods.directions import Length, mean_difference, shift_along, sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role


@register_method("pca-difference", source="Zou et al. 2023, arXiv 2310.01405; repeng, with its centering undone")
@dataclass(frozen=True)
class PCADifference:
    """Adds the first principal direction of the differences of pairs, with the sign of the mean difference.

    With D the differences positive less negative, `[n, width]`, v is the first right singular vector of D, and

        h' = h + length v    if v . mean(D) >= 0, else  h - length v.

    Example:
        >>> sides = {"positive": {3: torch.randn(50, 8) + 2}, "negative": {3: torch.randn(50, 8)}}
        >>> editor = sl.PCADifference().fit(sl.Activations.from_tensors(**sides))
        >>> editor.card.reports[editor.sites[0]]["cosine_to_mean_difference"] > 0.9
        True

    Attributes:
        variant: `pca_center`, as above; or `pca_diff`, repeng's default, which centers the differences: for comparison.
        length: How long the vector is: `difference`, as the mean difference is; `unit`, 1, as in repeng; or `activations`,
            as the negative activations of its site are on average.
        restore_norm: Whether each edited token is rescaled to its norm before the edit, an option of repeng.
    """

    variant: Literal["pca_center", "pca_diff"] = "pca_center"
    length: Length = "difference"
    restore_norm: bool = False

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    equation: ClassVar[str] = "h + c v_1, v_1 the first right singular vector of the pairs' differences"
    when_to_use: ClassVar[str] = "Where a few pairs are wrong: their signs cancel in a mean, and not here."

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, activations: Activations) -> Editor:
        """One shift per site, computed in float64.

        Args:
            activations: Positive and negative ones, row by row of one demonstration.

        Raises:
            InputError: If a side is missing.
        """
        check_arguments(PCADifference.fit, locals())
        check_roles(self, activations)
        edits, numbers = {}, {}
        for site in activations.sites:
            positive, negative = sides_of(activations, site)
            direction, share = self._direction(positive - negative)
            mean = mean_difference(positive, negative)
            cosine = float(torch.nn.functional.cosine_similarity(direction, mean, dim=0, eps=1e-300))
            shift = shift_along(direction if cosine >= 0 else -direction, self.length, positive, negative)
            device = activations.positive[site].device
            nothing = torch.zeros(len(shift), 0, device=device)
            edits[site] = AffineEdit(nothing, nothing, None, shift.float().to(device), 1.0, self.restore_norm)
            numbers[site] = {"cosine_to_mean_difference": abs(cosine), "share_of_squares": share}
        return fitted_editor(self, activations, edits, numbers)

    def _direction(self, differences: Float[Tensor, "n width"]) -> tuple[Float[Tensor, " width"], float]:
        """The direction, zeros where nothing differs; and its share of the summed squares."""
        if self.variant == "pca_diff":
            differences = differences - differences.mean(0)
        _, values, rows = torch.linalg.svd(differences, full_matrices=False)
        total = values.square().sum()
        largest = values[0] if total > 0 else torch.zeros_like(values[0])
        found: Tensor = rows[0] * (largest > 0)
        return found, float(largest.square() / total.clamp_min(1e-300))
