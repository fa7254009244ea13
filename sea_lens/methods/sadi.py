"""SADI: the few elements that differ most between positives and negatives are multiplied.

Source: Wang et al., *Semantics-Adaptive Activation Intervention for LLMs via Dynamic Steering Vectors* (arXiv 2410.12299), by
its rule as notes give it, and its code (`weixuan-wang123/SADI`, read; it does not run); the paper's full text was not read.
What is added is the activation's own, so it differs from text to text: hence "adaptive". It can enlarge what is there, and
turn nothing around: with a negative strength it shrinks it.

The rule is followed, and its ranking by absolute difference. The code has these defects, and none is repeated here: it
ranks by the signed difference, so an element that is strongest on negatives is never found; it averages a head's coordinates
before it takes the difference, so a head whose coordinates move apart counts as unmoved; it sets activations at the prompt's
last token to values of a clean pass at all layers, so no edit passes on to later ones; it multiplies by the strength instead
of adding strength times the activation (5 there is 4 here); it chooses K and the strength by the greatest test score; and it
calls functions without arguments that they need. Choose K and delta by `sea_lens.tune`, on questions kept for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.coordinates import CoordinateEdit
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.heads import head_width
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.sites import Site
from sea_lens.wording import setting


@register_method("sadi", source="Wang et al. 2024, arXiv 2410.12299")
@dataclass(frozen=True)
class SADI:
    """Multiplies the K elements whose mean differs most between positive and negative activations, over all sites.

    With D the mean difference and M the mask of the K elements of largest |D|, `a' = a + strength delta (a * M)`. An element
    is a coordinate (a neuron at `mlp.hook_post`, a hidden dimension in the residual stream), or a whole attention head at
    `attn.hook_z`, ranked by the length of its mean difference.

    Example:
        >>> positive = torch.zeros(9, 4)
        >>> positive[:, 2] = -5.0
        >>> activations = sl.Activations.from_tensors(positive={1: positive}, negative={1: torch.zeros(9, 4)})
        >>> editor = sl.SADI(n_elements=1, delta=2.0).fit(activations)
        >>> editor[1](torch.ones(4))
        tensor([1., 1., 3., 1.])

    Attributes:
        n_elements: K. The code tries 1 to 10 heads, 3 to 500 neurons and 1 to 20 hidden dimensions.
        delta: What is added, in units of the activation itself. The code tries 5 to 80.
        elements: `heads`, `coordinates`, or `auto`: heads at `attn.hook_z`, coordinates elsewhere.
        d_head: Width of a head; None takes it from the model that the activations come from.
    """

    n_elements: int = 10
    delta: float = 5.0
    elements: Literal["auto", "heads", "coordinates"] = "auto"
    d_head: int | None = None

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    chooses_sites: ClassVar[bool] = True
    settings_to_try: ClassVar[Mapping[str, Sequence[object]]] = {"n_elements": (10, 3, 30)}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 0.25, 0.1, 3.0)
    sites_to_collect: ClassVar[tuple[str, ...]] = ("attn.hook_z",)
    equation: ClassVar[str] = "a + s delta (a * M), M the K elements of largest |mean difference|"
    when_to_use: ClassVar[str] = "a few heads or neurons carry the difference, and their own value says which way"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_elements < 1:
            raise InputError(f"n_elements must be at least 1, and {self.n_elements} was given.")

    def fit(self, activations: Activations) -> Editor:
        """One coordinate edit per site with a chosen element.

        Args:
            activations: Positive and negative ones. Elements of sites of unlike scale are ranked together, as published.

        Raises:
            InputError: If a side is missing, the sides have one mean, or the width of a head is not known.

        Warns:
            SeaLensWarning: If there are fewer elements than are to be edited.
        """
        check_arguments(SADI.fit, locals())
        check_roles(self, activations)
        widths = {site: self._width(activations, site) for site in activations.sites}
        differences = {site: self._differences(activations, site, width) for site, width in widths.items()}
        all_of_them = torch.cat(list(differences.values()))
        if self.n_elements > len(all_of_them):
            warnings.warn(
                f"{self.n_elements} elements were to be edited, and there are {len(all_of_them)}: all of them are. Give "
                f"{setting('n_elements')}.",
                SeaLensWarning,
                stacklevel=2,
            )
        order = all_of_them.argsort(descending=True, stable=True)[: self.n_elements]
        if not all_of_them[order[0]] > 0:
            raise InputError(
                "The means of positive and negative activations are equal, so no element tells them apart."
            )
        chosen = torch.zeros(len(all_of_them), dtype=torch.bool)
        chosen[order] = True
        edits, numbers = {}, {}
        masks = torch.split(chosen, [len(found) for found in differences.values()])
        for (site, found), mask in zip(differences.items(), masks, strict=True):
            if mask.any():
                scale = 1 + self.delta * repeat(mask.float(), "element -> (element width)", width=widths[site])
                edits[site] = CoordinateEdit(scale, torch.zeros_like(scale))
                kind = "coordinate" if widths[site] == 1 else "head"
                numbers[site] = {f"{kind} {one}": float(found[one]) for one in mask.nonzero().flatten().tolist()}
        return fitted_editor(self, activations, edits, numbers)

    def _differences(self, activations: Activations, site: Site, width: int) -> Float[Tensor, " n_elements"]:
        """By element, the length of its mean difference: of a coordinate its absolute value."""
        found = activations.positive[site].double().mean(0) - activations.negative[site].double().mean(0)
        lengths: Tensor = torch.linalg.vector_norm(
            rearrange(found, "(element width) -> element width", width=width), dim=1
        )
        return lengths.cpu()

    def _width(self, activations: Activations, site: Site) -> int:
        """Coordinates of an element."""
        if self.elements == "coordinates" or (self.elements == "auto" and site.name != "attn.hook_z"):
            return 1
        return head_width(activations, site, self.d_head)
