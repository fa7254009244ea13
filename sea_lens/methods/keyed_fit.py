"""From wanted values to keyed edits of several layers: what MEMIT and DiKE share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.cache import digest
from sea_lens.data.facts import FactEdit
from sea_lens.editing.card import EditorCard, FitReport, library_versions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import KEY
from sea_lens.editing.keyed import OUT, KeyedEdit
from sea_lens.errors import InputError, ModelMismatchError
from sea_lens.methods.closed_form import least_change
from sea_lens.methods.method import Method, settings_of
from sea_lens.models.bridge import Model, ModelInfo
from sea_lens.models.down_projection import gain_of_mlp
from sea_lens.models.key_moments import KeyMoments
from sea_lens.models.layers import check_layers
from sea_lens.models.sites import Site
from sea_lens.models.subjects import AskedOf, states_in, subject_rows

QUANTILES = (0.5, 0.99)
"""Of |key . a| over neutral tokens, for the report."""


def early_layers(n_layers: int) -> tuple[int, ...]:
    """Five layers that end at a third of the depth, where MEMIT edits GPT-2 XL; fewer in shallow models."""
    last = max(1, round(n_layers / 3)) - (n_layers == 1)
    return tuple(range(max(0, last - 4), last + 1))


def layers_for(model: Model, layers: Sequence[int] | None) -> list[int]:
    """The layers to edit, ascending.

    Raises:
        ModelMismatchError: If one does not exist.
    """
    return check_layers(early_layers(model.cfg.n_layers) if layers is None else layers, model.cfg.n_layers)


@dataclass(frozen=True, eq=False)
class Weighing:
    """How an edit's keys are weighed against all others.

    Attributes:
        moments: Of neutral keys.
        weight: What the moment is multiplied by; None for the width of a key.
        ridge: What is added to its diagonal, as a share of the diagonal's mean.
        protected: Rows along which values should stay; None for none.
        rescale: Whether every residual is divided by the share of it that its key gets.
    """

    moments: KeyMoments
    weight: float | None
    ridge: float
    protected: Float[Tensor, "d_z d_model"] | None = None
    rescale: bool = False

    def second(self, layer: int, width: int) -> tuple[Tensor, float]:
        """The second moment of a layer's keys on the scale of a sum, and its weight.

        Raises:
            InputError: If the layer is not among the moments'.
            ModelMismatchError: If they are of another width.
        """
        if layer not in self.moments.moments:
            raise InputError(
                f"The moments are of layers {sorted(self.moments.moments)}, and layer {layer} is edited. Collect them with "
                "sl.collect_key_moments(model, layers)."
            )
        moment = self.moments.moments[layer]
        if len(moment) != width:
            raise ModelMismatchError(
                f"The moments are of keys of width {len(moment)}, and this model's have width {width}. Collect them anew."
            )
        weight = float(width) if self.weight is None else self.weight
        diagonal = torch.eye(width, dtype=torch.float64) * self.ridge * moment.diagonal().mean()
        return weight * (moment + diagonal), weight


def subject_states(
    model: Model, facts: Sequence[FactEdit], sites: Sequence[Site], prefixes: Sequence[str], batch_size: int
) -> dict[Site, Float[Tensor, "n width"]]:
    """What sites hold at the subjects' last tokens. With prefixes, the mean over them counts as much as the plain prompt."""
    rows = subject_rows(
        model, [AskedOf(fact.subject, fact.prompt, before=before) for fact in facts for before in prefixes]
    )
    found = states_in(model, [row.ids for row in rows], [row.subject for row in rows], sites, batch_size)
    if len(prefixes) == 1:
        return found
    by_fact = {site: states.reshape(len(facts), len(prefixes), -1) for site, states in found.items()}
    return {site: (states[:, 0] + states[:, 1:].mean(1)) / 2 for site, states in by_fact.items()}


def keyed_edits(
    model: Model,
    facts: Sequence[FactEdit],
    layers: Sequence[int],
    wanted: Float[Tensor, "n d_model"],
    prefixes: Sequence[str],
    weighing: Weighing,
    batch_size: int,
) -> tuple[dict[Site, KeyedEdit], dict[Site, FitReport]]:
    """Edits of some layers after which the last one's output at the subjects is near what is wanted.

    At each layer the residual that is left at the last one is divided by the number of layers still to do, and keys and
    residuals are read anew under the edits so far, as MEMIT's code does.

    Args:
        model: A TransformerBridge with a tokenizer, unedited.
        facts: The facts.
        layers: Ascending.
        wanted: What the last layer's output should be.
        prefixes: That keys are averaged over; the first one is empty.
        weighing: Of keys.
        batch_size: Rows in one forward pass.
    """
    edits: dict[Site, KeyedEdit] = {}
    reports: dict[Site, FitReport] = {}
    last = Site(layers[-1])
    for number, layer in enumerate(layers):
        site, key = Site(layer, OUT), Site(layer, KEY)
        with Editor(edits).attached(model) if edits else nullcontext():
            keys = subject_states(model, facts, [key], prefixes, batch_size)[key]
            now = subject_states(model, facts, [last], prefixes[:1], batch_size)[last]
        residuals = ((wanted.double() - now.double()) / (len(layers) - number) / gain_of_mlp(model, layer)).T
        second, weight = weighing.second(layer, keys.shape[1])
        seen = f" in layer {layer} ({weighing.moments.n_tokens} neutral tokens, keys of width {keys.shape[1]})"
        change = least_change(keys.T, residuals, second, weighing.protected, where=seen)
        outs = change.outs / change.reached if weighing.rescale else change.outs
        edits[site] = KeyedEdit(change.keys.float(), outs.float())
        read = (weighing.moments.samples[layer].double() @ change.keys).abs().amax(1)
        lengths = [torch.linalg.vector_norm(each, dim=0) for each in (change.outs, residuals)]
        numbers = {
            "reached": float(change.reached.mean()),
            "kept": float((lengths[0] / lengths[1].clamp_min(1e-300)).mean()),
            "residual": float((lengths[1] / torch.linalg.vector_norm(now.double(), dim=1)).mean()),
            **{f"read_{100 * share:g}": float(read.quantile(share)) for share in QUANTILES},
            "read_most": float(read.max()),
            "weight": weight,
            "neutral_tokens": weighing.moments.n_tokens,
        }
        reports[site] = FitReport(edits[site].rank, numbers=numbers)
    return edits, reports


def card_of_facts(
    method: Method, model: Model, facts: Sequence[FactEdit], reports: dict[Site, FitReport]
) -> EditorCard:
    """The card of an editor that was fitted on facts."""
    return EditorCard(
        method.name,
        settings_of(method),
        model=ModelInfo.of(model),
        n_demonstrations=len(facts),
        demonstrations=digest(list(facts)),
        reports=reports,
        versions=library_versions(),
    )
