"""LEACE: the least change of activations after which no linear classifier tells positives from negatives.

Source: Belrose et al., *LEACE: Perfect linear concept erasure in closed form* (NeurIPS 2023, arXiv 2306.03819), by its
authors' package concept-erasure 0.2.4, to which it is equal, defaults included. The paper itself was not read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.covariances import shrunk
from sea_lens.methods.devices import fitting_device
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role


@register_method("leace", source="Belrose et al., NeurIPS 2023, arXiv 2306.03819")
@dataclass(frozen=True)
class LEACE:
    """Erases what tells positive from negative activations linearly, with the least change of them.

    With x both sides together, mu their mean, z the label, and `W = Sigma_xx^(-1/2)`,

        r(x) = x - W^-1 U U^T W (x - mu),    U an orthonormal basis of the span of W Sigma_xz.

    The covariance of r(x) with the label is then zero on the activations of the fit, and their total variance is no larger:
    the package's option that bounds it, by mixing in an orthogonal projection, never acts here.

    Example:
        >>> positive, negative = torch.randn(500, 8) + 1, torch.randn(500, 8)
        >>> editor = sl.LEACE().fit(sl.Activations.from_tensors(positive={3: positive}, negative={3: negative}))
        >>> gap = editor[3](positive).mean(0) - editor[3](negative).mean(0)
        >>> bool(gap.norm() < 1e-4)
        True

    Attributes:
        shrinkage: Whether the covariance is estimated with shrinkage towards a multiple of the identity (Bodnar et al. 2014),
            which demonstrations fewer than a few times the width need.
        tolerance: Least singular value of `W Sigma_xz` that is erased. It is half the correlation between label and the best
            linear guess at it, so what is left is a correlation of 0.02 at most.
    """

    shrinkage: bool = True
    tolerance: float = 0.01

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[Mapping[str, Sequence[bool]]] = {"shrinkage": (True, False)}
    equation: ClassVar[str] = "h - s W^-1 U U^T W (h - mu),  W = Sigma^(-1/2)"
    when_to_use: ClassVar[str] = (
        "to take out what a linear probe reads, with the least change; not to push towards a side"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.tolerance > 0:
            raise InputError(f"tolerance is a number above zero, and {self.tolerance} was given.")

    def fit(self, activations: Activations, *, device: str | torch.device | None = None) -> Editor:
        """One oblique edit per site, computed in float64.

        Args:
            activations: Positive and negative ones.
            device: Where edits are computed, one site after the other; None for where the activations lie. Editors lie where
                the activations do.

        Raises:
            InputError: If a side is missing, or there is no such device.
        """
        check_arguments(LEACE.fit, locals())
        elsewhere = fitting_device(device)
        check_roles(self, activations)
        edits = {}
        for site in activations.sites:
            sides = activations.positive[site], activations.negative[site]
            left, right, center = self._erasure(*(side.to(elsewhere or side.device).double() for side in sides))
            left, right, center = (tensor.float().to(sides[0].device) for tensor in (-left, right, center))
            edits[site] = AffineEdit(left, right, center)
        return fitted_editor(self, activations, edits)

    def _erasure(
        self, positive: Float[Tensor, "n width"], negative: Float[Tensor, "n width"]
    ) -> tuple[Float[Tensor, "width rank"], Float[Tensor, "width rank"], Float[Tensor, " width"]]:
        """What is written, what is read, and the mean: `r(x) = x - left right^T (x - mean)`."""
        x = torch.cat([positive, negative])
        n, mean = len(x), x.mean(0)
        x = x - mean
        z = torch.cat([x.new_full((len(positive),), 0.5), x.new_full((len(negative),), -0.5)])
        sigma = shrunk(x.T @ x / n, n) if self.shrinkage else x.T @ x / (n - 1)
        values, vectors = torch.linalg.eigh(sigma)
        real = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        roots = torch.where(real, values.clamp_min(0), 1.0).sqrt()
        whiten, color = ((vectors * torch.where(real, by, 0.0)) @ vectors.T for by in (1 / roots, roots))
        told = whiten @ (x.T @ z) / (n - 1)
        told_apart = torch.linalg.vector_norm(told)
        u = told[:, None] / told_apart if told_apart > self.tolerance else told.new_zeros(len(told), 0)
        return color @ u, whiten @ u, mean
