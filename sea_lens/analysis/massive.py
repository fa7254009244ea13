"""Massive activations: a few coordinates thousands of times larger than the rest (Sun et al., arXiv 2402.17762)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.methods.sea.sea import sea_of
from sea_lens.models.activations import ROLES, Activations
from sea_lens.models.bridge import Model, tokenizer_of
from sea_lens.models.sites import Site
from sea_lens.models.tokens import PaddedTokens, check_context_length, token_ids

MAGNITUDE, RATIO = 100.0, 1000.0
"""The published criterion: an absolute value above 100, and at least 1,000 times the median of its hidden state."""


@dataclass(frozen=True, eq=False)
class MassiveActivations:
    """The largest coordinates of each layer.

    Attributes:
        table: One row a layer and coordinate: every coordinate that is massive in some text, and the largest of the
            layer in any case. `largest` absolute value, its `ratio` to the median absolute value of the same text,
            `massive` (whether the criterion is met), in how many `texts`. With an editor, `share_positive` and
            `share_negative`: how much of each fitted subspace lies on the coordinate (squared entries of its basis over
            its rank).
        magnitude: The criterion's least absolute value.
        ratio: The criterion's least ratio.
    """

    table: pd.DataFrame
    magnitude: float
    ratio: float


def massive_activations(
    activations: Activations, editor: Editor | None = None, *, magnitude: float = MAGNITUDE, ratio: float = RATIO
) -> MassiveActivations:
    """Finds massive coordinates in collected activations, and how much of an editor's subspaces they take.

    Only the collected token of each text is looked at; `massive_tokens` looks at all of them.

    Args:
        activations: Of any layers.
        editor: Of SEA on these activations, to see what its subspaces are made of.
        magnitude: Least absolute value.
        ratio: Least multiple of the median absolute value of the same activation.

    Raises:
        InputError: If the criterion is not of positive numbers, or the editor is not one of SEA.
    """
    _check(magnitude, ratio)
    method = None if editor is None else sea_of(editor)
    rows = []
    for layer in activations.layers:
        h = torch.cat([activations[role][layer] for role in ROLES]).double().abs()
        ratios = h / h.median(1, keepdim=True).values.clamp_min(1e-300)
        met = (h > magnitude) & (ratios >= ratio)
        largest, where = h.max(0)
        coordinates = sorted({int(largest.argmax()), *met.any(0).nonzero().flatten().tolist()})
        bases = []
        if method is not None and editor is not None and layer in editor.layers:
            covariances = method.evidence(activations, layer).covariances
            bases = [side.basis for side in method.subspaces(covariances)]
        for coordinate in coordinates:
            row = {
                "layer": layer,
                "coordinate": coordinate,
                "largest": float(largest[coordinate]),
                "ratio": float(ratios[where[coordinate], coordinate]),
                "massive": bool(met[:, coordinate].any()),
                "texts": int(met[:, coordinate].sum()),
            }
            for side, basis in zip(("positive", "negative"), bases, strict=False):
                row[f"share_{side}"] = float(basis[coordinate].square().sum() / basis.shape[1])
            rows.append(row)
    return MassiveActivations(pd.DataFrame(rows), magnitude, ratio)


@torch.no_grad()
def massive_tokens(
    model: Model,
    texts: Sequence[str],
    *,
    site: str = "resid_post",
    magnitude: float = MAGNITUDE,
    ratio: float = RATIO,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Which tokens carry massive activations: mostly the first one, and delimiters.

    Args:
        model: A TransformerBridge with a tokenizer.
        texts: To run.
        site: TransformerLens's short hook name.
        magnitude: Least absolute value.
        ratio: Least multiple of the median absolute value at the same token.
        batch_size: Texts in one forward pass.

    Returns:
        One row a layer, text, position and coordinate that meet the criterion, with `token`, `value` and `ratio`.

    Raises:
        InputError: If there are no texts, one does not fit the context, or the criterion is not of positive numbers.
    """
    _check(magnitude, ratio)
    if isinstance(texts, str) or not texts:
        raise InputError("Give a list of texts, with at least one.")
    ids = [token_ids(model, text) for text in texts]
    check_context_length(model, [len(row) for row in ids], [f"Text {index}" for index in range(len(ids))])
    tokenizer = tokenizer_of(model)
    rows: list[dict[str, object]] = []

    def find(layer: int, start: int, tokens: PaddedTokens) -> Callable[..., None]:
        def hook(tensor: Tensor, hook: object) -> None:
            h = tensor.float().cpu()
            ratios = h.abs() / h.abs().median(-1, keepdim=True).values.clamp_min(1e-30)
            met = (h.abs() > magnitude) & (ratios >= ratio) & tokens.mask.cpu()[..., None]
            for text, position, coordinate in met.nonzero().tolist():
                rows.append(
                    {
                        "layer": layer,
                        "text": start + text,
                        "position": position,
                        "token": tokenizer.decode([ids[start + text][position]]),
                        "coordinate": coordinate,
                        "value": float(h[text, position, coordinate]),
                        "ratio": float(ratios[text, position, coordinate]),
                    }
                )

        return hook

    for start in range(0, len(ids), batch_size):
        tokens = PaddedTokens.of(model, ids[start : start + batch_size])
        hooks = [(Site(layer, site).check(model), find(layer, start, tokens)) for layer in range(model.cfg.n_layers)]
        with model.hooks(fwd_hooks=[*hooks]):
            model(tokens.ids, **tokens.forward_options())
    columns = ["layer", "text", "position", "token", "coordinate", "value", "ratio"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:3], kind="stable", ignore_index=True)


def _check(magnitude: float, ratio: float) -> None:
    if not magnitude > 0 or not ratio > 0:
        raise InputError(f"The criterion takes two numbers above zero, and {magnitude} and {ratio} were given.")
