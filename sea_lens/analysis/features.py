"""What an edit along features of a sparse autoencoder found: which ones, how often active, and what they say as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from typing import ClassVar

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sea_lens.analysis.tokens import tokens_along
from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError
from sea_lens.models.bridge import Model, check_is_model
from sea_lens.models.sites import Site
from sea_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Features(Result):
    """The features that one site's edit changes.

    Attributes:
        table: One row per feature, those that move activations most first: `feature` (its number in the SAE), `side` (`up`
            or `down`), `value` (what is added to its code at strength 1, or what it is clamped to), `moves` (that times the
            length of its decoder row), `positive` and `negative` (share of the fit's activations of each side in which it is
            active; NaN where nothing was fitted), the tokens that its decoder row `raises` and `lowers` most, and by how much
            (`raised_by`, `lowered_by`: logits of the direction alone, at the scale that the final norm gives it).
        site: Of the edit.
        sae: Which SAE: where it came from, its size and digest.
    """

    table: pd.DataFrame
    site: str
    sae: str
    shown: ClassVar[tuple[str, ...]] = ("feature", "side", "value", "positive", "negative", "raises", "lowers")


def read_features(model: Model, editor: Editor, layer: int | str | Site | None = None, *, k: int = 5) -> Features:
    """The features that an editor changes, with the tokens that each points to through the final norm and the unembedding.

    A direct reading, as in the logit lens: what later blocks make of a feature is not in it.

    Example:
        >>> features = sl.read_features(model, sl.SAEFeature(sl.load_sae("organism"), 3).steer(2.0), k=3)
        >>> features.table["raises"].tolist()
        [('farmer', 'yoghurt', 'hamster')]

    Args:
        model: A TransformerBridge with a tokenizer.
        editor: Of `SAS`, or of an `SAEFeature`.
        layer: Whose edit; None where the editor edits one site.
        k: How many tokens to list at each end.

    Returns:
        A result whose `table` has one row per feature, with the tokens that it raises and lowers most and by how much,
        in logits.

    Raises:
        InputError: If the edit is of no sparse autoencoder, or not in the residual stream's basis, or `k` is impossible.
        ModelMismatchError: If the editor does not fit the model, or lacks the layer.
    """
    check_arguments(read_features, locals())
    check_is_model(model)
    editor.check(model)
    if layer is None and len(editor.sites) > 1:
        raise InputError(f"This editor edits {len(editor.sites)} sites. Name the layer.")
    (site,) = editor.sites if layer is None else editor.at_layers([layer]).sites
    edit = editor.edits[site]
    features: Int[Tensor, " n"] | None = getattr(edit, "features", None)
    vector: Float[Tensor, " n"] | None = getattr(edit, "vector", None)
    sae, directions, gains = getattr(edit, "sae", None), edit.directions, edit.gains
    if features is None or vector is None or sae is None or directions is None or gains is None:
        raise InputError(f"The edit at {site} is along no features of a sparse autoencoder ({edit.summary}).")
    if not site.in_stream:
        raise InputError(f"{site} is not in the residual stream's basis, so its features cannot be read as tokens.")
    read = tokens_along(model, directions.double().cpu(), k, through_norm=site.layer is not None)
    known = getattr(edit, "frequencies", None)
    shares = torch.full((2, len(features)), nan) if known is None else known
    rows = [
        {
            "feature": int(features[number]),
            "side": "up" if float(vector[number]) > 0 else "down",
            "value": float(vector[number]),
            "moves": float(gains[number].abs()),
            "positive": float(shares[0, number]),
            "negative": float(shares[1, number]),
            **tokens,
        }
        for number, tokens in enumerate(read)
    ]
    table = pd.DataFrame(rows).sort_values("moves", ascending=False, kind="stable", ignore_index=True)
    return Features(table, str(site), str(sae.identity))
