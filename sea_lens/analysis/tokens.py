"""What the directions of an edit say: the tokens that each raises and lowers through the model's own unembedding."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model, check_is_model, tokenizer_of
from sea_lens.models.sites import Site, labels_of
from sea_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Directions(Result):
    """The directions of one site's edit, read as tokens.

    Attributes:
        table: One row per direction, promoted ones first: `kind` (`promoted` or `suppressed`), `gain` (the eigenvalue, or the
            length of a shift, times the strength), `component` (mean of the neutral activations along it; NaN without
            activations), the tokens it `raises` most and `lowers` most, and by how much (`raised_by`, `lowered_by`: logits of
            the direction alone, at the scale that the final norm gives it).
        layer: Of the edit; its hook name where an editor edits sites of several names.
        oriented: Whether signs mean something: directions point to where the neutral activations lie, or are a shift. If
            not, their sign is arbitrary.

    Example:
        >>> directions = sl.read_directions(model, editor, 1, k=3, activations=activations)
        >>> directions.oriented, directions.table["raises"].map(len).tolist()
        (True, [3, 3])
    """

    table: pd.DataFrame
    layer: int | str
    oriented: bool
    shown: ClassVar[tuple[str, ...]] = ("kind", "gain", "raises", "lowers")


@torch.no_grad()
def read_directions(
    model: Model,
    editor: Editor,
    layer: int | str | Site,
    *,
    k: int = 10,
    activations: Activations | None = None,
) -> Directions:
    """Reads each direction that an edit promotes or suppresses through the final norm and the unembedding.

    A direct reading, as in the logit lens: what later blocks make of the direction is not in it. A norm layer is linear in
    a direction but for its scale and bias; the bias is cancelled by reading both ends, `(read(w) - read(-w)) / 2`.

    Args:
        model: A TransformerBridge with a tokenizer.
        editor: With an edit at the layer that has directions: eigenvectors, what an oblique edit writes, or a shift.
        layer: Which; a hook name or a `Site` where the editor edits several sites of a layer.
        k: How many tokens to list at each end.
        activations: To orient directions by. An eigenvector has no sign of its own; a shift has, and keeps it.

    Returns:
        A result whose `table` has one row per direction, with the tokens that it raises and lowers most and by how
        much, in logits.

    Raises:
        InputError: If the edit has no directions in the residual stream's basis, or `k` is impossible.
        ModelMismatchError: If the editor does not fit the model, or the editor or the activations lack the layer.

    Example:
        >>> directions = sl.read_directions(model, editor, 1, k=3)
        >>> directions.table["kind"].tolist()
        ['promoted', 'suppressed']
    """
    check_arguments(read_directions, locals())
    check_is_model(model)
    editor.check(model)
    edit = editor[layer]
    (site,) = editor.at_layers([layer]).sites
    label = dict(zip(editor.sites, labels_of(editor.sites), strict=True))[site]
    directions, gains = _readable(edit, site)
    component = torch.full((len(gains),), nan, dtype=torch.float64)
    has_signs = len(gains) != edit.rank or getattr(edit, "oriented", False)  # a shift, or features
    if activations is not None:
        component = _components(activations.at_sites([site]), site, directions)
        if not has_signs:
            directions = directions * torch.where(component < 0, -1.0, 1.0)
            component = component.abs()
    read = tokens_along(model, directions, k, through_norm=site.layer is not None)
    rows = [
        {"kind": "promoted" if gain > 0 else "suppressed", "gain": gain, "component": along, **tokens}
        for tokens, gain, along in zip(read, gains.tolist(), component.tolist(), strict=True)
    ]
    table = pd.DataFrame(rows).sort_values("gain", ascending=False, kind="stable", ignore_index=True)
    return Directions(table.rename_axis("direction"), label, activations is not None or has_signs)


@torch.no_grad()
def tokens_along(
    model: Model, directions: Float[Tensor, "width n_directions"], k: int, *, through_norm: bool = True
) -> list[dict[str, object]]:
    """The `k` tokens that each direction raises and lowers most (`raises`, `lowers`), and by how much.

    Args:
        model: A TransformerBridge with a tokenizer.
        directions: In the residual stream's basis.
        k: How many at each end.
        through_norm: Whether the final norm lies between them and the unembedding.

    Raises:
        InputError: If `k` is impossible.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    device, dtype = next((parameter.device, parameter.dtype) for parameter in model.parameters())
    ends: list[Tensor] = [
        logit_readout(model, (sign * directions.T).to(device, dtype), apply_ln=through_norm).values.double().cpu()
        for sign in (1, -1)
    ]
    logits = (ends[0] - ends[1]) / 2
    if not 1 <= k <= logits.shape[1]:
        raise InputError(f"k must be 1 to {logits.shape[1]}, the tokens of the vocabulary; got {k}.")
    tokenizer = tokenizer_of(model)
    rows: list[dict[str, object]] = []
    for row in logits:
        raised, lowered = row.topk(k), row.topk(k, largest=False)
        rows.append(
            {
                "raises": tuple(tokenizer.decode([token]) for token in raised.indices.tolist()),
                "lowers": tuple(tokenizer.decode([token]) for token in lowered.indices.tolist()),
                "raised_by": tuple(raised.values.tolist()),
                "lowered_by": tuple(lowered.values.tolist()),
            }
        )
    return rows


def _readable(edit: Edit, site: Site) -> tuple[Float[Tensor, "width n_directions"], Float[Tensor, " n_directions"]]:
    """Directions and gains times strength, in float64."""
    if not site.in_stream:
        raise InputError(
            f"The edit at {site} is not in the residual stream's basis, so its directions cannot be read as tokens. Choose "
            "a site such as resid_post or mlp_out."
        )
    if edit.directions is None or edit.gains is None:
        raise InputError(
            f"The edit at {site} has no directions in the residual stream's basis ({edit.summary}). Choose a layer or a "
            "method whose edit has some."
        )
    return edit.directions.double().cpu(), edit.strength * edit.gains.double().cpu()


def _components(
    activations: Activations, site: Site, directions: Float[Tensor, "width n_directions"]
) -> Float[Tensor, " n_directions"]:
    """Mean of the neutral activations along directions; of all sides where there are no neutral ones."""
    roles = [role for role in activations.roles if role == "neutral"] or activations.roles
    return torch.cat([activations[role][site].double().cpu() @ directions for role in roles]).mean(0)
