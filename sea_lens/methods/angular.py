"""Angular steering: activations are turned in a plane to an angle, and keep their norm.

Source: the code of `lone17/angular-steering` (*Angular Steering: Behavior Control via Rotation in Activation Space*), whose
edit was read; the notebook that fits its plane was not to be had, and is followed by a third party's port of it. Neither the
paper nor where it appeared was checked.

In that code one plane serves all sites: the first direction is the unit mean difference of the layer whose direction is most
like those of all others, the second the first principal component of the directions of all layers. Directions are of the
residual stream, and activations are turned at the outputs of the norms before attention and MLP (`ln1.hook_out` and
`ln2.hook_out`), which have another scale by coordinate. Here the plane is of the site that is edited: collect
`site=["ln1.hook_out", "ln2.hook_out"]` to edit what attention and MLP read, or `resid_post` for the stream itself. The port
brings every activation to length 1 before the mean; here means are of activations as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.angular import AngularEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.sites import Site, named_sites
from sea_lens.wording import setting

Vector = Float[Tensor, " width"]


@register_method("angular", source="Angular Steering, code of lone17/angular-steering")
@dataclass(frozen=True)
class AngularSteering:
    """Turns activations, in a plane that holds the mean difference, to an angle from it; norms stay.

    With b1 the unit mean difference, b2 a second direction at right angles and P the projection onto both,
    `h' = h - P h + |P h| (cos(angle) b1 + sin(angle) b2)`: at 0 degrees the part in the plane points to the positives, at
    180 to the negatives. At a strength below 1 it goes a share of the way, the shorter one.

    Example:
        >>> steered = sl.AngularSteering(angle=90.0).fit(activations)
        >>> h = torch.randn(4, 128)
        >>> torch.allclose(steered.edits[steered.sites[0]](h).norm(dim=1), h.norm(dim=1), rtol=1e-4)  # lengths stay
        True

    Attributes:
        angle: Degrees from the mean difference.
        adaptive: Whether only activations are turned whose part along the mean difference is above 0. To turn away what is
            unwanted, as the authors do, fit on `activations.swapped()` and turn to 180 degrees.
        plane: `own`, for each site its mean difference and the first principal component of its paired differences about
            their mean; or `shared`, one plane for all sites, as published. Of a single site both are its own.
    """

    angle: float = 0.0
    adaptive: bool = False
    plane: Literal["own", "shared"] = "own"

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    settings_to_try: ClassVar[Mapping[str, Sequence[object]]] = {"plane": ("own", "shared")}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.25, 0.75, 0.125, 0.06)
    sites_to_collect: ClassVar[tuple[str, ...]] = ("ln1.hook_out", "ln2.hook_out")
    equation: ClassVar[str] = "h - P h + |P h| (cos(angle) b1 + sin(angle) b2)"
    when_to_use: ClassVar[str] = "norms must stay as they are, and one knob from for to against is wanted"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def chooses_sites(self) -> bool:
        """Whether what is fitted at a site depends on the others, as a shared plane does."""
        return self.plane == "shared"

    def fit(self, activations: Activations) -> Editor:
        """One angular edit per site, its plane computed in float64.

        Args:
            activations: Positive and negative ones.

        Raises:
            InputError: If a side is missing, there is a single demonstration, the sides have one mean, all differences are
                alike, or sites of several widths are to share a plane.
        """
        check_arguments(AngularSteering.fit, locals())
        check_roles(self, activations)
        if activations.n < 2:
            raise InputError("A principal component takes two demonstrations at least, and there is one.")
        differences = {
            site: activations.positive[site].double() - activations.negative[site].double()
            for site in activations.sites
        }
        first = {site: _unit_mean(site, found) for site, found in differences.items()}
        if self.plane == "shared" and len(first) > 1:
            planes = dict.fromkeys(first, _shared(first))
        else:
            planes = {site: (first[site], _principal(found)) for site, found in differences.items()}
        edits = {}
        for site, (one, other) in planes.items():
            if not torch.linalg.vector_norm(other - (other @ one) * one) > 1e-6:
                raise InputError(
                    f"The differences at {site} do not vary in any direction but their mean's, so there is no plane to turn "
                    "in. Fit on other demonstrations or another token."
                )
            edits[site] = AngularEdit.of(one.float(), other.float(), self.angle, self.adaptive)
        return fitted_editor(self, activations, edits)


def _unit_mean(site: Site, differences: Float[Tensor, "n width"]) -> Vector:
    mean = differences.mean(0)
    length = torch.linalg.vector_norm(mean)
    if not length > 1e-9 * torch.linalg.vector_norm(differences) / len(differences) ** 0.5:
        raise InputError(
            f"The means of positive and negative activations at {site} are equal, so no direction leads over."
        )
    unit: Vector = mean / length
    return unit


def _principal(rows: Float[Tensor, "n width"]) -> Vector:
    """The first principal component, towards the rows' mean; zero where rows are alike."""
    mean = rows.mean(0)
    _, lengths, components = torch.linalg.svd(rows - mean, full_matrices=False)
    if not lengths[0] > 1e-9 * torch.linalg.vector_norm(rows):
        return torch.zeros_like(mean)
    found: Vector = components[0] * (1.0 if components[0] @ mean >= 0 else -1.0)
    return found


def _shared(first: Mapping[Site, Vector]) -> tuple[Vector, Vector]:
    """The direction most like all others, and the first principal component of all."""
    if len({len(direction) for direction in first.values()}) > 1:
        raise InputError(
            f"One plane takes sites of one width, and these are {named_sites(first)}. Fit them by themselves, or with "
            f"{setting('plane', 'own')}."
        )
    directions = torch.stack(list(first.values()))
    likest = int((directions @ directions.T).mean(1).argmax())
    return directions[likest], _principal(directions)
