"""What an edit is: the spectra it was cut from, the angles between its subspaces, and how far it moves activations."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import pandas as pd
import torch
from torch import Tensor

from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, displacement
from sea_lens.methods.sea.sea import sea_of
from sea_lens.methods.sea.spectral import effective_rank, principal_angles
from sea_lens.models.activations import ROLES, Activations


@dataclass(frozen=True, eq=False)
class Spectra:
    """The spectral view of an editor.

    Attributes:
        table: One row a layer: `rank_positive` and `rank_negative` of the fitted subspaces, the `effective_rank` of
            either whole cross-covariance, the smallest, median and largest principal angle between the subspaces in
            degrees, `eigenvalue_error` (the largest difference between the edit's absolute eigenvalues and the sines of
            those angles, with 1 for each direction that only one side has; NaN for edits of another form), and for
            neutral, positive and negative activations how far the edit moves them (`moved`, share of the norm) and
            their `cosine` before and after.
        curves: One row a layer, side and rank: `singular_value`, and the share of energy `explained` up to it.
        angles: One row a layer and principal angle, in degrees.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    angles: pd.DataFrame


def measure_spectra(editor: Editor, activations: Activations) -> Spectra:
    """Decomposes the activations again by the rule of an editor and compares the result with the editor.

    SEA adds a difference of two projectors, whose eigenvalues are plus and minus the sines of the principal angles between
    the positive and the negative subspace. So the angles say what an edit can do before any model is run: where they are
    zero and the ranks equal, it does nothing.

    Args:
        editor: Of SEA, or a view of one.
        activations: Those it was fitted on.

    Raises:
        InputError: If the editor is not one of SEA, or the activations lack one of its layers.
    """
    method, activations = sea_of(editor), activations.at_sites(editor.sites)
    rows, curves, angles = [], [], []
    for layer, edit in ((layer, editor[layer]) for layer in editor.layers):
        positive, negative = method.subspaces(method.evidence(activations, layer).covariances)
        between = principal_angles(positive.basis, negative.basis)
        degrees = between.rad2deg()
        rows.append(
            {
                "layer": layer,
                "rank_positive": positive.rank,
                "rank_negative": negative.rank,
                "effective_rank_positive": effective_rank(positive.singular_values),
                "effective_rank_negative": effective_rank(negative.singular_values),
                "smallest_angle": float(degrees[0]),
                "median_angle": float(degrees.quantile(0.5)),
                "largest_angle": float(degrees[-1]),
                "eigenvalue_error": _eigenvalue_error(edit, between, positive.rank, negative.rank)
                if method.projections in ("both", "reversed") and method.merge != "average"
                else nan,
                **{f"moved_{role}": displacement(edit, activations[role][layer]) for role in ROLES},
                **{f"cosine_{role}": _cosine(edit, activations[role][layer]) for role in ROLES},
            }
        )
        for side, found in (("positive", positive), ("negative", negative)):
            energies = found.singular_values.square().cumsum(0)
            explained = energies / energies[-1]  # the last partial sum, so that a curve ends at 1 exactly
            curves += [
                {"layer": layer, "side": side, "rank": rank, "singular_value": value, "explained": share}
                for rank, (value, share) in enumerate(
                    zip(found.singular_values.tolist(), explained.tolist(), strict=True), start=1
                )
            ]
        angles += [{"layer": layer, "index": index, "degrees": angle} for index, angle in enumerate(degrees.tolist())]
    return Spectra(pd.DataFrame(rows).set_index("layer"), pd.DataFrame(curves), pd.DataFrame(angles))


def _cosine(edit: Edit, h: Tensor) -> float:
    x = h.double()
    return float(torch.nn.functional.cosine_similarity(edit(x), x, dim=-1).mean())


def _eigenvalue_error(edit: Edit, angles: Tensor, rank_positive: int, rank_negative: int) -> float:
    if edit.gains is None or not isinstance(edit, AffineEdit) or not edit.rank:
        return nan
    sines = angles.sin()
    alone = torch.ones(abs(rank_positive - rank_negative), dtype=torch.float64)
    expected = torch.cat([sines, sines, alone]).sort(descending=True).values
    found = torch.zeros_like(expected)
    values = edit.gains.double().abs().sort(descending=True).values
    # Equal directions have an eigenvalue of zero and no place in the edit.
    found[: len(values)] = values
    return float((found - expected).abs().max())


def layer_signatures(activations: Activations) -> pd.DataFrame:
    """The layer "signature" by which the SEA authors' code proposes to choose layers, and a centered form of it.

    Their code takes the cross-covariance of all positive and negative activations, stacked, with one-hot labels, and sums its
    singular values. As activations share a mean that dwarfs what tells them apart, that sum is mostly the mean's norm;
    centered, it is the distance between the means of positives and negatives, times a constant.

    Args:
        activations: Of any layers.

    Returns:
        One row a layer: `signature`, `explained_first` (share of the squared singular values in the first of the two), and
        `signature_centered`.
    """
    n = activations.n
    labels = torch.zeros(2 * n, 2, dtype=torch.float64)
    labels[:n, 1], labels[n:, 0] = 1, 1
    rows = []
    for layer in activations.layers:
        stacked = torch.cat([activations.positive[layer], activations.negative[layer]]).double()
        values = torch.linalg.svdvals(stacked.T @ labels / n)
        centered = torch.linalg.svdvals((stacked - stacked.mean(0)).T @ labels / n)
        total = values.square().sum()
        rows.append(
            {
                "layer": layer,
                "signature": float(values.sum()),
                "explained_first": float(values[0].square() / total) if total > 0 else nan,
                "signature_centered": float(centered.sum()),
            }
        )
    return pd.DataFrame(rows).set_index("layer")
