"""Mean difference: `h + s (mean of positives - mean of negatives)`.

Sources, by what they do differently. None of the papers was read here; what is said of code was read in it.

- Contrastive activation addition (CAA, Rimsky et al. 2024, arXiv 2312.06681): answers "(A)" and "(B)", the activation of the
  letter, `collect_activations(..., token=-2)`; added to every token after the instruction,
  `editor.at_positions("generated")`, at strengths of -2 to 2. One early revision of its code adds the vector twice.
- DiffMean (AxBench, Wu et al. 2025, arXiv 2501.17148): the mean over all tokens of whole texts but the first, so
  `Demonstrations.from_lists([""] * n, texts, others)` with `token="mean"`; `length="unit"`, and strengths that are multiples
  of the largest activation.
- ActAdd (Turner et al. 2023, arXiv 2308.10248): one pair of prompts, at `site="resid_pre"`, added at the first positions,
  `editor.at_positions([1])`. Its pairs of several tokens add another vector at each position: an editor for each, attached
  one inside the other.

Rows are pairs, and the mean of the differences of pairs is the difference of means: there is no paired variant. Layers and
strengths are not part of the method: choose them with `sea_lens.tune`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.devices import fitting_device
from sea_lens.methods.directions import Length, mean_difference, shift_along, sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.wording import setting


@register_method("mean-difference", source="Rimsky et al. 2024, arXiv 2312.06681; Wu et al. 2025, arXiv 2501.17148")
@dataclass(frozen=True)
class MeanDifference:
    """Adds the mean of the positive activations less that of the negative ones to every activation.

    Example:
        >>> sides = {"positive": {3: torch.ones(50, 8)}, "negative": {3: torch.zeros(50, 8)}}
        >>> editor = sl.MeanDifference().fit(sl.Activations.from_tensors(**sides)).scaled(2.0)
        >>> editor[3](torch.zeros(8))
        tensor([2., 2., 2., 2., 2., 2., 2., 2.])

    Attributes:
        normalize: The same as `length="unit"`.
        length: How long the vector is: `difference`, as it is; `unit`, 1, so that the editor's strength is the length; or
            `activations`, as the negative activations of its site are on average, so that strengths are shares of their norm.
    """

    normalize: bool = False
    length: Length = "difference"

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    equation: ClassVar[str] = "h + (mu_pos - mu_neg)"
    when_to_use: ClassVar[str] = "First: it is the baseline that others must beat."

    def __post_init__(self) -> None:
        check_fields(self)
        if self.normalize and self.length == "activations":
            raise InputError(
                f"{setting('normalize', True)} is {setting('length', 'unit')}, and "
                f"{setting('length', 'activations')} was given. Give one of them."
            )

    def fit(self, activations: Activations, *, device: str | torch.device | None = None) -> Editor:
        """One shift per site, computed in float64.

        Args:
            activations: Positive and negative ones.
            device: Where means are computed, one site after the other; None for where the activations lie. Editors lie where
                the activations do.

        Raises:
            InputError: If a side is missing, or there is no such device.
        """
        check_arguments(MeanDifference.fit, locals())
        elsewhere = fitting_device(device)
        check_roles(self, activations)
        edits = {}
        for site in activations.sites:
            positive, negative = sides_of(activations, site, elsewhere)
            shift = mean_difference(positive, negative)
            if self.normalize:
                shift = torch.nn.functional.normalize(shift, dim=0)
            elif self.length != "difference":  # which is not divided and multiplied by its length
                shift = shift_along(shift, self.length, positive, negative)
            edits[site] = AffineEdit.of_shift(shift.float().to(activations.positive[site].device))
        return fitted_editor(self, activations, edits)
