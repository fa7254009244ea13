"""Directional ablation: one direction, of one layer, taken out of all that is written to the residual stream.

Source: Arditi et al., *Refusal in Language Models Is Mediated by a Single Direction* (NeurIPS 2024, arXiv 2406.11717), by the
authors' code (andyrdt/refusal_direction), which was read; the paper was not. Departures: directions are of one token (the
choice of `collect_activations`), where the code tries every token after the instruction; attention sinks are spared, as by
every editor here (`editor.at_positions("all")` edits them too, and equals their weights); and `source=None` is our own. The
code chooses the layer by what ablating and adding do to held-out prompts, at a KL below 0.1, among the first 80 %:

    sl.tune(model, activations, questions, methods=sl.grid(sl.DirectionalAblation, source=range(n)), max_kl=0.1)
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
from sea_lens.errors import InputError
from sea_lens.methods.directions import mean_difference, sides_of
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.sites import Site, choose_sites, named_sites
from sea_lens.wording import setting

STATES = ("resid_pre", "resid_mid", "resid_post")
"""Sites whose activations are the residual stream itself, and not what is added to it."""
EARLY = 0.8
"""Share of the layers that a direction is taken from."""


@register_method("directional-ablation", source="Arditi et al., NeurIPS 2024, arXiv 2406.11717")
@dataclass(frozen=True)
class DirectionalAblation:
    """Takes the mean difference of one layer out of the residual stream everywhere, or adds it at that layer alone.

    With r the difference of means at the source layer and u its unit vector, at every site of every layer

        h' = h - (h . u) u      (ablate),      or at the source alone      h' = h + r      (add).

    At `resid_pre`, `attn_out` and `mlp_out`, that is the model whose embedding and output matrices W are `W - u u^T W`.

    Example:
        >>> sides = {"positive": {3: torch.randn(50, 8) + 2}, "negative": {3: torch.randn(50, 8)}}
        >>> editor = sl.DirectionalAblation().fit(sl.Activations.from_tensors(**sides))
        >>> len(editor.sites)  # three sites in each of layers 0 to 3
        12

    Attributes:
        source: The layer whose difference it is, negative from the end. None takes, of the first 80 % of layers, that in
            which sides are farthest apart in standard deviations, along the difference of the even rows, on the odd ones.
        operation: `ablate` everywhere, or `add` at the source.
        at: The names of the sites that are ablated, in every layer.
    """

    source: int | None = None
    operation: Literal["ablate", "add"] = "ablate"
    at: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    chooses_sites: ClassVar[bool] = True
    settings_to_try: ClassVar[dict[str, tuple[str, ...]]] = {"operation": ("ablate", "add")}
    strengths_to_try: ClassVar[tuple[float, ...]] = (1.0, 2.0, 0.5, 4.0, 1.5, 0.25)
    sites_to_collect: ClassVar[tuple[str, ...]] = ("resid_pre",)
    equation: ClassVar[str] = (
        "h - (h . u) u at all sites of all layers, u = (mu_pos - mu_neg) / |mu_pos - mu_neg| of one"
    )
    when_to_use: ClassVar[str] = "To ask whether one direction carries a behavior: without it, the behavior should go."

    def __post_init__(self) -> None:
        check_fields(self)
        strange = [name for name in self.at if not Site(0, name).in_stream]
        if strange or not self.at:
            raise InputError(
                f"{setting('at')} names sites in the residual stream's basis, such as resid_pre, attn_out and "
                f"mlp_out, and {self.at} was given."
            )

    def fit(self, activations: Activations) -> Editor:
        """One direction, and the same edit of rank one at every site, or a shift at one.

        Args:
            activations: Positive and negative ones of the residual stream (`resid_pre`, as in the paper, or `resid_mid` or
                `resid_post`). Other sites are left out of account. Without a model to tell the depth, layers go up to the
                last one that is there.

        Raises:
            InputError: If a side is missing, no site is of the stream, or several sites are of the source layer.
            ModelMismatchError: If the source layer is not there.
        """
        check_arguments(DirectionalAblation.fit, locals())
        check_roles(self, activations)
        n_layers = max(activations.layers, default=-1) + 1
        n_layers = n_layers if activations.model is None else activations.model.n_layers
        site, apart = self._source(activations, n_layers)
        r = mean_difference(*sides_of(activations, site))
        device = activations.positive[site].device
        if self.operation == "add":
            edit, sites = AffineEdit.of_shift(r.float().to(device)), [site]
        else:
            unit = torch.nn.functional.normalize(r, dim=0, eps=1e-300)[:, None].float().to(device)
            unit = unit[:, : int(bool(r.any()))]  # of equal means there is nothing to ablate
            edit, sites = AffineEdit(-unit, unit), [Site(layer, name) for layer in range(n_layers) for name in self.at]
        numbers = {"source_layer": float(site.layer or 0), "apart_at_source": apart}
        return fitted_editor(self, activations, dict.fromkeys(sites, edit), dict.fromkeys(sites, numbers))

    def _source(self, activations: Activations, n_layers: int) -> tuple[Site, float]:
        """Where the direction is taken from, and how far apart the sides are along it."""
        there = [site for site in activations.sites if site.name in STATES]
        if not there:
            raise InputError(
                f"The direction is of the residual stream, and these activations are of {named_sites(activations.sites)}. "
                f"Collect them with {setting('site', 'resid_pre')}."
            )
        if self.source is not None:
            found = choose_sites(there, [self.source], n_layers, what="This collection")
            if len(found) > 1:
                raise InputError(
                    f"There are several sites of the source layer {self.source}: {named_sites(found)}. Fit on one of them."
                )
            return found[0], _apart(*sides_of(activations, found[0]))
        early = [site for site in there if site.layer is not None and site.layer < EARLY * n_layers] or there
        by_site = {site: _apart(*sides_of(activations, site)) for site in early}
        best = max(by_site, key=by_site.__getitem__)
        return best, by_site[best]


def _apart(positive: Float[Tensor, "n width"], negative: Float[Tensor, "n width"]) -> float:
    """How many standard deviations apart the odd rows of the sides are, along the mean difference of the even ones.

    Rows that are too few to be told apart are 0 apart.
    """
    direction = mean_difference(positive[::2], negative[::2])
    if len(positive) < 4:
        return 0.0
    along = [(side[1::2] @ direction) for side in (positive, negative)]
    spread = torch.stack([each.var() for each in along]).mean().sqrt()
    gap = along[0].mean() - along[1].mean()
    return float(gap / spread) if spread > 1e-12 * gap.abs() and spread > 0 else 0.0
