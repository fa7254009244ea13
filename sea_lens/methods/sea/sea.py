"""Spectral Editing of Activations, linear and in a feature space (Qiu et al., NeurIPS 2024, arXiv 2405.09719), section 3."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.methods.sea.feature_space import FeatureMap
from sea_lens.methods.sea.rule import Merge, MergeSpace, Projections, Ranks, SEARule, Share
from sea_lens.methods.sea.spectral import Spectrum
from sea_lens.models.activations import Activations
from sea_lens.models.sites import Site

NEARLY_NOTHING = 0.01
"""Share of the norm below which an edit is reported as doing next to nothing."""
MANY_CLAMPED = 0.01
"""Share of clamped entries above which it is warned about."""


def fit_sea(
    activations: Activations,
    explained_variance: Share = 0.998,
    *,
    ranks: int | tuple[int, int] | None = None,
    spectrum: Spectrum = "squared",
    center: bool = False,
    projections: Projections = "both",
    merge: Merge = "norm",
    feature_map: FeatureMap | None = None,
    feature_unit: float | Literal["median"] = "median",
    merge_space: MergeSpace = "features",
    layers: Iterable[int] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Editor:
    """Fits SEA in closed form: keep what covaries most with the positive, drop what does with the negative.

    At every layer, with `Pi+` and `Pi-` the projectors onto the leading left singular vectors of the cross-covariances
    of neutral with positive and neutral with negative activations, the paper's merged edit is

        h' = |h| (P+ h + P- h) / |P+ h + P- h|,    P+ = Pi+,    P- = I - Pi-.

    `P+ + P- = I + Pi+ - Pi-`, so the edit is kept as the few eigenvectors of a difference of two projectors. With a feature
    map phi the cross-covariances are of `phi(h)`, and projections act there:

        merge_space="features":       h' = |h| x / |x|,  x = phi^-1(P+ phi(h) + P- phi(h))
        merge_space="activations":    h' = |h| x / |x|,  x = phi^-1(P+ phi(h)) + phi^-1(P- phi(h))

    Args:
        activations: Neutral, positive and negative ones of the same demonstrations.
        explained_variance: Share of the cross-covariance that a subspace must explain, in (0, 1]; a pair gives the
            positive's and the negative's.
        ranks: Ranks to use instead; a pair gives the positive's and the negative's.
        spectrum: Whether the share is of the squared singular values (the paper's) or of the singular values.
        center: Whether to subtract means: of each side before the cross-covariance, and the neutral mean around the
            edit. Uncentered, as published, the leading direction is mostly the mean itself.
        projections: `"both"` is the method. The paper's ablations: `"positive"` alone, `h' = P+ h`; `"negative"` alone,
            `h' = P- h`; and `"reversed"`, positives and negatives exchanged, which should do harm.
        merge: `"norm"` gives each token its own norm back (the paper's merge); `"sum"` leaves the sum of the projections
            as it is; `"average"` halves it (the same as the sum where only one projection is used).
        feature_map: phi, such as `Tanh(2.0)`; None for the linear edit.
        feature_unit: What counts as 1 for phi: a number in units of the activations, or `"median"`, the median absolute
            neutral activation of each layer, because residual streams grow with depth by orders of magnitude. The
            published code has 1.0.
        merge_space: Where the two projections of features are added up: in feature space, so that the sum is mapped back
            once, or (as published) after each has been mapped back. No difference without a feature map. (With
            `center`, the mean then goes back with P-, so that a sum holds it once.)
        layers: Layers to fit; all that `activations` has for None.
        dtype: Of the editor's tensors. The fit itself is in float64.
        progress: Whether to show a progress bar once a fit takes longer than two seconds.

    Returns:
        An editor for the site that the activations come from.

    Raises:
        InputError: If a share, a rank, a layer or the feature map is impossible.

    Warns:
        SeaLensWarning: If the editor edits nothing or next to nothing, or if over one in a hundred entries are clamped,
            with the reason and what to try.
    """
    rule = SEARule(spectrum, center, projections, merge, feature_map, feature_unit, merge_space)
    editor = rule.fit(activations, [explained_variance if ranks is None else Ranks(ranks)], layers, dtype, progress)[0]
    warn_of(editor, center)
    return editor


def refit_sea(editor: Editor, activations: Activations) -> Editor:
    """The same fit on other activations: settings, layers, strengths and positions are those of an editor of `fit_sea`.

    `refit_sea(editor, activations.swapped())` is the control that should do the opposite.

    Args:
        editor: From `fit_sea` or `tune_sea`.
        activations: Of the same model, with the editor's layers.

    Raises:
        InputError: If the editor is not one of SEA, or the activations lack a layer.
    """
    rule, size = rule_of(editor)
    fitted = rule.fit(activations, [size], editor.layers, progress=False)[0]
    edits = {site: edit.scaled(editor[site].strength) for site, edit in fitted.edits.items()}
    return replace(fitted, edits=edits, where=editor.where)


def rule_of(editor: Editor) -> tuple[SEARule, Share | Ranks]:
    """The rule and the size of the subspaces that an editor of `fit_sea` was fitted by, read off its card.

    Raises:
        InputError: If the editor is not one of SEA.
    """
    if editor.card.method != "sea":
        raise InputError(f"Only editors of fit_sea can be fitted again, and this one is of {editor.card.method!r}.")
    settings: dict[str, Any] = dict(editor.card.settings)
    shares, ranks = settings.pop("explained_variance"), settings.pop("ranks")
    return SEARule(**settings), tuple(shares) if ranks is None else Ranks(tuple(ranks))


def warn_of(editor: Editor, center: bool) -> None:
    """Warns the caller of a fitting function if its editor does next to nothing, or clamps much."""
    _warn_if_nothing(editor.card.reports, center, editor.is_identity)
    _warn_if_clamped(editor.card.reports)


def _warn_if_nothing(found: Mapping[Site, FitReport], center: bool, edits_nothing: bool) -> None:
    ranks = {site.layer: (one["rank_positive"], one["rank_negative"]) for site, one in found.items()}
    centering = "Activations share a dominant mean, and both subspaces may be little more than it: try center=True. "
    remedy = ("Raise" if center else f"{centering}Otherwise raise") + (
        " explained_variance, give the positive and the negative different ranks, or look at demonstrations.check() and "
        "the token choice."
    )
    if edits_nothing:
        warnings.warn(
            "This editor edits nothing: at every layer the positive and the negative subspace are the same, so their "
            f"projectors cancel (ranks by layer: {ranks}). {remedy}",
            SeaLensWarning,
            stacklevel=4,
        )
    elif all((one.displacement or 0) < NEARLY_NOTHING for one in found.values()):
        most = max(one.displacement or 0 for one in found.values())
        warnings.warn(
            f"This editor edits next to nothing: it moves the neutral activations by at most {most:.2%} of their norm "
            f"at any layer (ranks by layer: {ranks}). {remedy}",
            SeaLensWarning,
            stacklevel=4,
        )


def _warn_if_clamped(found: Mapping[Site, FitReport]) -> None:
    for what, why in (
        (
            "clamped_activations",
            "lie outside the domain of the feature map, where it saturates, and are edited as if at its end",
        ),
        ("clamped_features", "are edited to where the feature map has no values, and come back as the nearest it has"),
    ):
        shares = {site.layer: one[what] for site, one in found.items() if what in one}
        if any(share > MANY_CLAMPED for share in shares.values()):
            listed = ", ".join(f"layer {layer} {share:.1%}" for layer, share in shares.items() if share > MANY_CLAMPED)
            warnings.warn(
                f"Entries of the neutral activations {why}: {listed}. Give the feature map a larger scale, or fit at a "
                "larger feature_unit.",
                SeaLensWarning,
                stacklevel=4,
            )
