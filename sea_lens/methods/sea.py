"""Linear Spectral Editing of Activations (Qiu et al., NeurIPS 2024, arXiv 2405.09719), section 3."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.activations import Activations
from sea_lens.editor import Editor
from sea_lens.editor_card import JSON, EditorCard, library_versions
from sea_lens.edits import LowRankEdit
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.subspaces import CrossCovariance, Spectrum, Subspace, difference_of_projectors

T = TypeVar("T")
Projections = Literal["both", "positive", "negative", "reversed"]
Merge = Literal["norm", "sum", "average"]
NEARLY_NOTHING = 0.01
"""Share of the norm below which an edit is reported as doing next to nothing."""


def fit_sea(
    activations: Activations,
    explained_variance: float | tuple[float, float] = 0.998,
    *,
    ranks: int | tuple[int, int] | None = None,
    spectrum: Spectrum = "squared",
    centre: bool = False,
    projections: Projections = "both",
    merge: Merge = "norm",
    layers: Iterable[int] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Editor:
    """Fits linear SEA in closed form: keep what covaries most with the positive, drop what does with the negative.

    At every layer, with `Pi+` and `Pi-` the projectors onto the leading left singular vectors of the cross-covariances
    of neutral with positive and neutral with negative activations, the paper's merged edit is

        h' = |h| (P+ h + P- h) / |P+ h + P- h|,    P+ = Pi+,    P- = I - Pi-.

    `P+ + P- = I + Pi+ - Pi-`, so the edit is kept as the few eigenvectors of a difference of two projectors.

    Args:
        activations: Neutral, positive and negative ones of the same demonstrations.
        explained_variance: Share of the cross-covariance that a subspace must explain, in (0, 1]; a pair gives the
            positive's and the negative's.
        ranks: Ranks to use instead; a pair gives the positive's and the negative's.
        spectrum: Whether the share is of the squared singular values (the paper's) or of the singular values.
        centre: Whether to subtract means: of each side before the cross-covariance, and the neutral mean around the
            edit. Uncentred, as published, the leading direction is mostly the mean itself.
        projections: `"both"` is the method. The paper's ablations: `"positive"` alone, `h' = P+ h`; `"negative"` alone,
            `h' = P- h`; and `"reversed"`, positives and negatives exchanged, which should do harm.
        merge: `"norm"` gives each token its own norm back (the paper's merge); `"sum"` leaves the sum of the projections
            as it is; `"average"` halves it (the same as the sum where only one projection is used).
        layers: Layers to fit; all that `activations` has for None.
        dtype: Of the editor's tensors. The fit itself is in float64.
        progress: Whether to show a progress bar once a fit takes longer than two seconds.

    Returns:
        An editor for the site that the activations come from.

    Raises:
        InputError: If a share, a rank or a layer is impossible.

    Warns:
        SeaLensWarning: If the editor edits nothing or next to nothing, with the reason and what to try.
    """
    if projections not in get_args(Projections) or merge not in get_args(Merge):
        raise InputError(
            f"projections is one of {', '.join(get_args(Projections))} and merge one of {', '.join(get_args(Merge))}; "
            f"{projections!r} and {merge!r} were given."
        )
    shares = _pair(explained_variance)
    chosen_ranks = None if ranks is None else _pair(ranks)
    chosen = activations.layers if layers is None else sorted(set(layers))
    absent = [layer for layer in chosen if layer not in activations.layers]
    if absent or not chosen:
        raise InputError(f"Layers {absent or chosen} were asked for; activations are there of {activations.layers}.")
    edits: dict[int, LowRankEdit] = {}
    found: dict[int, dict[str, JSON]] = {}
    for layer in tqdm(chosen, desc="fit", unit="layer", disable=not progress, delay=2):
        neutral = activations.neutral[layer].double()
        subspaces: list[Subspace] = []
        for index, other in enumerate((activations.positive[layer], activations.negative[layer])):
            covariance = CrossCovariance.of(neutral, other, centre)
            if chosen_ranks is None:
                subspaces.append(covariance.explaining(shares[index], spectrum))
            else:
                subspaces.append(covariance.leading(chosen_ranks[index]))
        positive, negative = subspaces
        edit = _edit(positive, negative, neutral.mean(0) if centre else None, projections, merge)
        found[layer] = {
            "rank_positive": positive.rank,
            "rank_negative": negative.rank,
            "rank": edit.rank,
            "displacement": edit.displacement(neutral),
        }
        edits[layer] = edit.cast(dtype)
    card = EditorCard(
        method="sea",
        hyper_parameters={
            "explained_variance": list(shares) if ranks is None else None,
            "ranks": None if chosen_ranks is None else list(chosen_ranks),
            "spectrum": spectrum,
            "centre": centre,
            "projections": projections,
            "merge": merge,
        },
        site=activations.site,
        token=activations.token,
        model=activations.model,
        n_demonstrations=activations.n,
        demonstrations=activations.demonstrations,
        layers=found,
        versions=library_versions(),
    )
    editor = Editor(edits, card)
    _warn_if_nothing(found, centre, editor.is_identity)
    return editor


def _pair(value: T | tuple[T, T]) -> tuple[T, T]:
    if not isinstance(value, tuple | list):  # cards hold lists
        return (value, value)
    if len(value) != 2:
        raise InputError(f"A pair (positive, negative) was expected, and {value} was given.")
    return (value[0], value[1])


def _edit(
    positive: Subspace,
    negative: Subspace,
    mean: Float[Tensor, " d_model"] | None,
    projections: Projections,
    merge: Merge,
) -> LowRankEdit:
    """The sum of the chosen projections, as `kept * h` and a low-rank rest."""
    kept = 1.0
    if projections == "positive":
        kept, directions, eigenvalues = 0.0, positive.basis, torch.ones(positive.rank, dtype=torch.float64)
    elif projections == "negative":
        directions, eigenvalues = negative.basis, -torch.ones(negative.rank, dtype=torch.float64)
    else:
        first, second = (negative, positive) if projections == "reversed" else (positive, negative)
        directions, eigenvalues = difference_of_projectors(first.basis, second.basis)
        if merge == "average":
            kept, eigenvalues = 0.5, eigenvalues / 2
    # A centred edit acts on h - mean, so the mean's own share of the change is taken back by a constant.
    shift = None
    if mean is not None and (len(eigenvalues) or kept != 1):
        shift = (1 - kept) * mean - ((mean @ directions) * eigenvalues) @ directions.T
    return LowRankEdit(directions, eigenvalues, shift, restore_norm=merge == "norm", kept=kept)


def _warn_if_nothing(found: dict[int, dict[str, JSON]], centre: bool, edits_nothing: bool) -> None:
    ranks = {layer: (facts["rank_positive"], facts["rank_negative"]) for layer, facts in found.items()}
    centring = "Activations share a dominant mean, and both subspaces may be little more than it: try centre=True. "
    remedy = ("Raise" if centre else f"{centring}Otherwise raise") + (
        " explained_variance, give the positive and the negative different ranks, or look at demonstrations.check() and "
        "the token choice."
    )
    if edits_nothing:
        warnings.warn(
            "This editor edits nothing: at every layer the positive and the negative subspace are the same, so their "
            f"projectors cancel (ranks by layer: {ranks}). {remedy}",
            SeaLensWarning,
            stacklevel=3,
        )
    elif all(float(str(facts["displacement"])) < NEARLY_NOTHING for facts in found.values()):
        most = max(float(str(facts["displacement"])) for facts in found.values())
        warnings.warn(
            f"This editor edits next to nothing: it moves the neutral activations by at most {most:.2%} of their norm "
            f"at any layer (ranks by layer: {ranks}). {remedy}",
            SeaLensWarning,
            stacklevel=3,
        )
