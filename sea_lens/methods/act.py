"""Activation transport: each coordinate by its own one-dimensional optimal transport from negatives to positives.

Sources: Rodriguez et al., *Controlling Language and Diffusion Models by Transporting Activations* (ICLR 2025, arXiv
2410.23054), by its code (`apple/ml-act`, all of what is used here read); of the paper the abstract was read. That it does
better than a mean shift is second-hand, and one private replication is said to have found gains near 1, so next to none.

As in the code: the source is transported to the target coordinate by coordinate, at every token, only where the coordinate
is strictly inside the range that the source was observed in. Departures: columns are fitted without the code's noise of 1e-8,
so a constant column is left alone and no fit is random; fits are in float64, where the code's linear one sorts float32; and
an edited tensor is a new one, where the code's Gaussian one writes into the module's output.

The code fits on means over a text's tokens, and layer after layer on what is already transported below. The first is
`collect_activations(..., token="mean")` here: the range of a mean is much narrower than that of single tokens, so such an
editor leaves many coordinates of many tokens alone. The second is `sea_lens.fit_in_sequence`. The sites of its configurations
are the outputs of the norms after attention and MLP (Gemma 2) and of the MLP's matrices (Llama 3); any site will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.coordinates import CoordinateEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.devices import fitting_device
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.wording import either, setting

Columns = Float[Tensor, "n width"]


@register_method("act", source="Rodriguez et al., ICLR 2025, arXiv 2410.23054")
@dataclass(frozen=True)
class AcT:
    """Transports each coordinate from where negatives have it to where positives do, inside the negatives' observed range.

    With x and y a coordinate of the negatives and of the positives, each sorted, m their means and sigma their standard
    deviations (divisor n - 1),

        linear:    omega z + beta,  omega = sum (x - m_x)(y - m_y) / sum (x - m_x)^2,  beta = m_y - omega m_x
        gaussian:  sigma_y / sigma_x (z - m_x) + m_y
        mean:      z - m_x + m_y

    and `z + strength (that - z)`. omega is never negative: a transport keeps the order, whatever goes with what.

    Example:
        >>> negative = torch.arange(8.0)[:, None]
        >>> sides = {"positive": {3: 3 * negative + 1}, "negative": {3: negative}}
        >>> editor = sl.AcT().fit(sl.Activations.from_tensors(**sides))
        >>> editor[3](torch.tensor([[2.0], [100.0]]))  # the second is outside the range
        tensor([[  7.],
                [100.]])

    Attributes:
        transport: `linear`, `gaussian` or `mean`.
        coverage: Share of the negatives that the range holds, coordinate by coordinate: 1 from the least to the greatest,
            0.98 from the 1st percentile to the 99th; None for no range, so that every value is transported.
        least_std: A coordinate whose standard deviation is no larger on either side is left alone, unless the transport is
            linear: then only a constant one is.
    """

    transport: Literal["linear", "gaussian", "mean"] = "linear"
    coverage: float | None = 1.0
    least_std: float = 1e-4

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[Mapping[str, Sequence[object]]] = {"transport": ("linear", "gaussian")}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.75, 0.25, 0.9, 0.125)
    equation: ClassVar[str] = "h_j + s (omega_j h_j + beta_j - h_j) where low_j < h_j < high_j"
    when_to_use: ClassVar[str] = "coordinates differ in spread, not only in mean; edits must stay within what was seen"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise InputError(
                f"{setting('coverage')} is a share above 0 and up to 1, or {either('None', 'none')}, and "
                f"{self.coverage} was given."
            )
        if self.least_std < 0:
            raise InputError(f"{setting('least_std')} is at least 0, and {self.least_std} was given.")

    def fit(self, activations: Activations, *, device: str | torch.device | None = None) -> Editor:
        """One coordinate edit per site, each site by itself, computed in float64.

        Args:
            activations: Positive (target) and negative (source) ones.
            device: Where edits are computed, one site after the other; None for where the activations lie. Editors lie where
                the activations do.

        Raises:
            InputError: If a side is missing, there is a single demonstration, or there is no such device.
        """
        check_arguments(AcT.fit, locals())
        elsewhere = fitting_device(device)
        check_roles(self, activations)
        if activations.n < 2:
            raise InputError("The spread of a coordinate takes two demonstrations at least, and there is one.")
        edits, numbers = {}, {}
        for site in activations.sites:
            sides = activations.negative[site], activations.positive[site]
            x, y = (side.to(elsewhere or side.device).double() for side in sides)
            scale, offset = self._transport(x, y)
            found = CoordinateEdit(scale, offset, *self._range(x))
            edits[site] = found.cast(torch.float32, sides[0].device)
            numbers[site] = {"least_scale": float(scale.min()), "largest_scale": float(scale.max())}
        return fitted_editor(self, activations, edits, numbers)

    def _transport(self, x: Columns, y: Columns) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
        """What each coordinate is multiplied by, and what is added."""
        m_x, m_y = x.mean(0), y.mean(0)
        if self.transport == "linear":
            from_, to = x.sort(0).values - m_x, y.sort(0).values - m_y
            spread = from_.square().sum(0)
            moves = (x != x[:1]).any(0)  # exactly: rounding leaves a constant column some spread
            scale = (from_ * to).sum(0) / torch.where(moves, spread, 1.0)
        else:
            s_x, s_y = x.std(0), y.std(0)
            moves = (s_x > self.least_std) & (s_y > self.least_std)
            scale = s_y / torch.where(moves, s_x, 1.0) if self.transport == "gaussian" else torch.ones_like(m_x)
        scale = torch.where(moves, scale, 1.0)
        return scale, torch.where(moves, m_y - scale * m_x, 0.0)

    def _range(self, x: Columns) -> tuple[Float[Tensor, " width"] | None, Float[Tensor, " width"] | None]:
        """The ends of what of a coordinate is transported."""
        if self.coverage is None:
            return None, None
        low, high = x.quantile(x.new_tensor([(1 - self.coverage) / 2, (1 + self.coverage) / 2]), dim=0)
        return low, high
