"""Gaussian optimal transport at the residual stream: mean and covariance of the negatives become those of the positives.

Sources: MiMiC (Singh et al., ICML 2024, arXiv 2402.09631; code of shauli-ravfogel/affine-steering read), and PCA-OT (2026,
arXiv 2603.04355), which transports in one or two principal components; no code of it was found. Neither paper was
read. MiMiC's code adds its eps to every entry of the covariances, which is no ridge: here it is added to the diagonal, as
the text says. Both transport activations that belong to the source; here every token is, unless `editor.when` says otherwise.
MiMiC's own files of results are for and against it: smaller gaps than the mean alone on biographies, and larger ones on
tweets in 7 of 10 rows. `sl.SAKE` is the same map before the unembedding, for facts.
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
from sea_lens.errors import InputError
from sea_lens.methods.directions import sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.methods.transport import GaussianMap, gaussian_map
from sea_lens.models.activations import Activations, Role
from sea_lens.wording import either, setting


@register_method(
    "gaussian-transport", source="Singh et al., ICML 2024, arXiv 2402.09631; PCA-OT 2026, arXiv 2603.04355"
)
@dataclass(frozen=True)
class GaussianTransport:
    """Transports activations so that the negatives get the mean and the covariance of the positives, at the least distance.

    With Cs and Ct the covariances of the negatives and the positives, each with a ridge,

        h' = mu_pos + A (h - mu_neg),    A = Cs^(-1/2) (Cs^(1/2) Ct Cs^(1/2))^(1/2) Cs^(-1/2).

    With `rank=`, the same inside the first principal components of both sides together, and nothing outside of them. Equal
    covariances give the mean difference, and swapped sides the inverse.

    Example:
        >>> sides = {"positive": {3: 2 * torch.randn(999, 4) + 1}, "negative": {3: torch.randn(999, 4)}}
        >>> edit = sl.GaussianTransport().fit(sl.Activations.from_tensors(**sides))[3]
        >>> moved = edit(sides["negative"][3])
        >>> bool((moved.std(0) > 1.8).all() and ((moved.mean(0) - 1).abs() < 0.2).all())
        True

    Attributes:
        rank: How many principal components are transported; None for all directions. PCA-OT takes 1 or 2.
        ridge: What is added to both covariances' diagonals, as a share of the mean variance of the two sides.
        most: The largest eigenvalue that A may have, and its inverse the smallest; None for no limit. Along directions that
            the negatives hardly vary in, eigenvalues come near `1 / sqrt(ridge)` without it, and past that.
    """

    rank: int | None = None
    ridge: float = 1e-2
    most: float | None = 10.0

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[dict[str, tuple[int | None, ...]]] = {"rank": (None, 1, 2, 8)}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.5, 1.5)
    equation: ClassVar[str] = "mu_pos + A (h - mu_neg),  A = Cs^(-1/2) (Cs^(1/2) Ct Cs^(1/2))^(1/2) Cs^(-1/2)"
    when_to_use: ClassVar[str] = (
        "Where the sides differ in spread as well as in mean, and rows are many or rank is small."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank is not None and self.rank < 1:
            raise InputError(
                f"{setting('rank')} is a number of principal components from 1 on, or {either('None', 'none')}, "
                f"and {self.rank} was given."
            )
        if not self.ridge > 0:
            raise InputError(
                f"{setting('ridge')} must be above zero, and {self.ridge} was given: covariances can be singular."
            )

    def fit(self, activations: Activations) -> Editor:
        """One edit per site, computed in float64.

        Args:
            activations: Positive and negative ones, two of each at least.

        Raises:
            InputError: If a side is missing, has one row only, or nothing varies at a site.
        """
        check_arguments(GaussianTransport.fit, locals())
        check_roles(self, activations)
        edits, numbers = {}, {}
        for site in activations.sites:
            target, source = sides_of(activations, site)
            device = activations.positive[site].device
            found, basis = self._map(source.cpu(), target.cpu(), str(site))
            gains = found.gains if len(found.gains) else torch.ones(1)
            numbers[site] = {"smallest_gain": float(gains.min()), "largest_gain": float(gains.max())}
            edits[site] = _edit(found, basis, device)
        return fitted_editor(self, activations, edits, numbers)

    def _map(
        self, source: Float[Tensor, "n width"], target: Float[Tensor, "n width"], site: str
    ) -> tuple[GaussianMap, Float[Tensor, "width rank"] | None]:
        """The map, and the basis that it is in; None for all directions."""
        if len(source) < 2:
            raise InputError("A covariance needs two demonstrations at least, and there is one.")
        variance = torch.cat([source - source.mean(0), target - target.mean(0)]).square().mean()
        if not variance > 0:
            raise InputError(f"No activation of {site} varies on either side, so there is no covariance to transport.")
        basis = None
        if self.rank is not None:
            together = torch.cat([source, target])
            _, values, rows = torch.linalg.svd(together - together.mean(0), full_matrices=False)
            real = rows[values > 1e-9 * values[0]]
            basis = real[: self.rank].T
            source, target = source @ basis, target @ basis
        return gaussian_map(source, target, eps=self.ridge * float(variance), most=self.most), basis


def _edit(found: GaussianMap, basis: Float[Tensor, "width rank"] | None, device: torch.device) -> AffineEdit:
    """The map as an edit: of a map in a basis, inside of it only."""
    left = found.basis @ (found.inner - torch.eye(len(found.inner), dtype=torch.float64))
    parts = [left, found.basis, found.source, found.target - found.source]
    written, read, center, shift = ((part if basis is None else basis @ part).float().to(device) for part in parts)
    return AffineEdit(written, read, center, shift)
