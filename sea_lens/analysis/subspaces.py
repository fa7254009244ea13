"""What an edit is: its gains, the spectra and angles it was cut from, and how far it moves activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles  # type: ignore[import-untyped]
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, displacement
from sea_lens.methods.method import METHODS, method_of
from sea_lens.methods.sea.evidence import Evidence
from sea_lens.methods.sea.spectral import CrossCovariance, Subspace, effective_rank
from sea_lens.models.activations import Activations
from sea_lens.models.sites import Site, labels_of
from sea_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Spectra(Result):
    """The spectral view of an editor.

    Attributes:
        table: One row per layer (per site, where an editor edits sites of several names): the `rank` of the edit, its
            `least_gain` and `greatest_gain` (eigenvalues times the strength, or the length of a shift; NaN for an edit
            without directions); for every role how far the edit moves its activations (`moved_neutral`, ...: the mean of
            |edited - h| / |h|) and their mean `cosine_neutral`, ... before and after. For a method that cuts subspaces
            from cross-covariances, as SEA does, also `rank_positive` and `rank_negative` of the subspaces, the effective
            rank of either whole cross-covariance (`effective_rank_positive`, ...), and the smallest, median and largest
            principal angle between the subspaces in degrees.
        gains: One row per layer and direction: its `index` and `gain`.
        curves: One row per layer, side and rank: `singular_value`, and the share of energy `explained` up to it. Empty for
            a method without subspaces.
        angles: One row per layer and principal angle, in degrees. Empty for a method without subspaces.

    Example:
        >>> spectra = sl.measure_spectra(editor, activations)
        >>> spectra.gains.groupby("layer").size().tolist()  # directions per layer
        [3, 2, 2]
    """

    table: pd.DataFrame
    gains: pd.DataFrame
    curves: pd.DataFrame
    angles: pd.DataFrame
    shown: ClassVar[tuple[str, ...]] = (
        *("rank", "least_gain", "greatest_gain", "rank_positive", "rank_negative", "smallest_angle", "largest_angle"),
        *("moved_neutral", "moved_positive", "moved_negative"),
    )


def measure_spectra(editor: Editor, activations: Activations) -> Spectra:
    """Measures what an editor's edits are, and decomposes the activations again by the method it was fitted with.

    SEA adds a difference of two projectors, whose eigenvalues are plus and minus the sines of the principal angles between
    the positive and the negative subspace. So the angles say what an edit can do before any model is run: where they are
    zero and the ranks equal, it does nothing.

    Args:
        editor: Of any method.
        activations: Those it was fitted on.

    Returns:
        A result whose `table` has one row per site, with ranks, gains, and how far the edit moves activations, as a
        share of their norm; `curves` and `angles` (in degrees) where the method cuts subspaces.

    Raises:
        ModelMismatchError: If the activations lack one of its sites.
        InputError: If they lack a side that its method needs.

    Example:
        >>> sl.measure_spectra(editor, activations).table["rank"].tolist()
        [3, 2, 2]
    """
    check_arguments(measure_spectra, locals())
    activations = activations.at_sites(editor.sites)
    rows: list[dict[str, object]] = []
    gains: list[dict[str, object]] = []
    curves: list[dict[str, object]] = []
    angles: list[dict[str, object]] = []
    for layer, (site, edit) in zip(labels_of(editor.sites), editor.edits.items(), strict=True):
        found = [] if edit.gains is None else (edit.strength * edit.gains.double()).tolist()
        gains += [{"layer": layer, "index": index, "gain": gain} for index, gain in enumerate(found)]
        row = {
            "layer": layer,
            "rank": edit.rank,
            "least_gain": min(found, default=nan),
            "greatest_gain": max(found, default=nan),
        }
        sides = subspaces_of(editor, activations, site)
        if sides:
            degrees = np.rad2deg(subspace_angles(*(side.basis.numpy() for side in sides.values())))[::-1]
            angles += [{"layer": layer, "index": index, "degrees": float(angle)} for index, angle in enumerate(degrees)]
            row |= {f"rank_{name}": side.rank for name, side in sides.items()}
            row |= {f"effective_rank_{name}": effective_rank(side.singular_values) for name, side in sides.items()}
            row |= {"smallest_angle": degrees[0], "median_angle": np.median(degrees), "largest_angle": degrees[-1]}
            for name, side in sides.items():
                curves += _curve(side.singular_values, {"layer": layer, "side": name})
        row |= {f"moved_{role}": _moved(edit, activations[role][site]) for role in activations.roles}
        row |= {f"cosine_{role}": _cosine(edit, activations[role][site]) for role in activations.roles}
        rows.append(row)
    return Spectra(
        pd.DataFrame(rows).set_index("layer"),
        _frame(gains, ["layer", "index", "gain"]),
        _frame(curves, ["layer", "side", "rank", "singular_value", "explained"]),
        _frame(angles, ["layer", "index", "degrees"]),
    )


@runtime_checkable
class CutsSubspaces(Protocol):
    """A method that cuts subspaces from cross-covariances, as SEA does."""

    def evidence(self, activations: Activations, site: Site) -> Evidence:
        """What the edit of a site is made from."""

    def subspaces(self, covariances: Sequence[CrossCovariance]) -> list[Subspace]:
        """The positive and the negative subspace."""


def subspaces_of(editor: Editor, activations: Activations, site: Site) -> Mapping[str, Subspace]:
    """The positive and the negative subspace that an editor's method cuts from activations; none for other methods."""
    method = method_of(editor) if editor.card.method in METHODS else None
    if not isinstance(method, CutsSubspaces):
        return {}
    return dict(
        zip(("positive", "negative"), method.subspaces(method.evidence(activations, site).covariances), strict=True)
    )


def _curve(values: Float[Tensor, " n_values"], of: Mapping[str, object]) -> list[dict[str, object]]:
    energies = values.square().cumsum(0)
    explained = (energies / energies[-1]).tolist()  # the last partial sum, so that a curve ends at 1 exactly
    pairs = enumerate(zip(values.tolist(), explained, strict=True), start=1)
    return [{**of, "rank": rank, "singular_value": value, "explained": share} for rank, (value, share) in pairs]


def _frame(rows: Sequence[Mapping[str, object]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


def _moved(edit: Edit, h: Float[Tensor, "n width"]) -> float:
    """NaN for an edit that mixes the tokens of a pass: rows of activations are no pass."""
    return displacement(edit, h) if edit.token_local else nan


def _cosine(edit: Edit, h: Float[Tensor, "n width"]) -> float:
    x = h.double()
    return float(torch.nn.functional.cosine_similarity(edit(x), x, dim=-1).mean()) if edit.token_local else nan
