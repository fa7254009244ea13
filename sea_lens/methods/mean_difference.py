"""Mean difference: `h + s (mean of positives - mean of negatives)`.

Sources: contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681), whose code adds it at every token after the
instruction, `editor.at_positions("generated")`, at strengths of -2 to 2; DiffMean (Wu et al. 2025, arXiv 2501.17148), with
unit vectors. Layers and strengths are not part of it: choose them with `sea_lens.tune`. Neither paper was read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.methods.devices import fitting_device
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role


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
        normalize: Whether to add a vector of length 1 in that direction; the editor's strength is then the length.
    """

    normalize: bool = False

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")

    def __post_init__(self) -> None:
        check_fields(self)

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
            sides = activations.positive[site], activations.negative[site]
            positive, negative = (side.to(elsewhere or side.device).double().mean(0) for side in sides)
            shift = positive - negative
            if self.normalize:
                shift = torch.nn.functional.normalize(shift, dim=0)
            edits[site] = AffineEdit.of_shift(shift.float().to(sides[0].device))
        return fitted_editor(self, activations, edits)
