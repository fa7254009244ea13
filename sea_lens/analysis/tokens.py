"""What the directions of an edit say: the tokens that each raises and lowers through the model's own unembedding."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import pandas as pd
import torch
from torch import Tensor

from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.activations import Activations
from sea_lens.models.bridge import Model, tokenizer_of


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of a layer's edit, read as tokens.

    Attributes:
        table: One row a direction, promoted ones first: `kind` (`promoted` or `suppressed`), `eigenvalue` (times the
            strength), `component` (mean of the neutral activations along it; NaN without activations), the tokens it
            `raises` most and `lowers` most, and by how much (`raised_by`, `lowered_by`: logits of the direction alone, at
            the scale that the final norm gives it).
        layer: Of the edit.
        oriented: Whether directions point to where the neutral activations lie. If not, their sign is arbitrary.
    """

    table: pd.DataFrame
    layer: int
    oriented: bool


@torch.no_grad()
def read_directions(
    model: Model, editor: Editor, layer: int, k: int = 10, activations: Activations | None = None
) -> Directions:
    """Reads each direction that a layer's edit promotes or suppresses through the final norm and unembedding.

    A direct reading, as in the logit lens: what later blocks make of the direction is not in it. A norm layer is linear in
    a direction but for its scale and bias; the bias is cancelled by reading both ends, `(read(w) - read(-w)) / 2`.

    Args:
        model: A TransformerBridge with a tokenizer.
        editor: With a linear edit at the layer.
        layer: Which.
        k: How many tokens to list at each end.
        activations: To orient directions by; a direction has no sign of its own.

    Raises:
        InputError: If the edit is made in a feature space, has no directions, or `k` is impossible.
        ModelMismatchError: If the editor does not fit the model or lacks the layer.
    """
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    editor.check(model)
    edit = editor[layer]
    if edit.directions is None or edit.gains is None:
        raise InputError(
            f"The edit at layer {layer} is a {type(edit).__name__}, whose directions (if any) are not ones of the residual "
            "stream, so no token can be read off them. Fit without a feature map."
        )
    directions = edit.directions.T.float()
    component = torch.full((len(edit.gains),), nan, dtype=torch.float64)
    if activations is not None:
        if layer not in activations.layers:
            raise InputError(f"Layer {layer} was asked for; activations are there of {activations.layers}.")
        component = (activations.neutral[layer].double() @ edit.directions.double()).mean(0)
        directions = directions * torch.where(component < 0, -1.0, 1.0)[:, None].float()
        component = component.abs()
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    ends: list[Tensor] = [
        logit_readout(model, (sign * directions).to(device, dtype)).values.double().cpu() for sign in (1, -1)
    ]
    logits = (ends[0] - ends[1]) / 2
    if not 1 <= k <= logits.shape[1]:
        raise InputError(f"k is 1 to the vocabulary's {logits.shape[1]} tokens, and {k} was given.")
    tokenizer = tokenizer_of(model)
    rows: list[dict[str, object]] = []
    for row, eigenvalue in zip(logits, (edit.strength * edit.gains.double()).tolist(), strict=True):
        raised, lowered = row.topk(k), row.topk(k, largest=False)
        rows.append(
            {
                "kind": "promoted" if eigenvalue > 0 else "suppressed",
                "eigenvalue": eigenvalue,
                "component": float(component[len(rows)]),
                "raises": tuple(tokenizer.decode([token]) for token in raised.indices.tolist()),
                "lowers": tuple(tokenizer.decode([token]) for token in lowered.indices.tolist()),
                "raised_by": tuple(raised.values.tolist()),
                "lowered_by": tuple(lowered.values.tolist()),
            }
        )
    table = pd.DataFrame(rows).sort_values("eigenvalue", ascending=False, kind="stable", ignore_index=True)
    return Directions(table.rename_axis("direction"), layer, activations is not None)
