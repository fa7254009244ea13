"""Spectral Editing of Activations, linear and in a feature space (Qiu et al., NeurIPS 2024, arXiv 2405.09719), section 3."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.activations import Activations
from sea_lens.editor import Editor
from sea_lens.editor_card import JSON, EditorCard, library_versions
from sea_lens.edits import Edit, FeatureSpaceEdit, LowRankEdit, displacement
from sea_lens.errors import InputError, SeaLensWarning
from sea_lens.feature_maps import FeatureMap, check_map, parameters_of
from sea_lens.subspaces import CrossCovariance, Spectrum, Subspace, difference_of_projectors

T = TypeVar("T")
Share = float | tuple[float, float]
Projections = Literal["both", "positive", "negative", "reversed"]
Merge = Literal["norm", "sum", "average"]
MergeSpace = Literal["features", "activations"]
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
    centre: bool = False,
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
        centre: Whether to subtract means: of each side before the cross-covariance, and the neutral mean around the
            edit. Uncentred, as published, the leading direction is mostly the mean itself.
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
            `centre`, the mean then goes back with P-, so that a sum holds it once.)
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
    rule = SEARule(spectrum, centre, projections, merge, feature_map, feature_unit, merge_space)
    editor = rule.fit(activations, [explained_variance if ranks is None else Ranks(ranks)], layers, dtype, progress)[0]
    _warn_if_nothing(editor.card.layers, centre, editor.is_identity)
    _warn_if_clamped(editor.card.layers)
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
    first = editor[editor.layers[0]]
    parts = first.parts if isinstance(first, FeatureSpaceEdit) else (first,)
    dtype = parts[0].directions.dtype if isinstance(parts[0], LowRankEdit) else torch.float32
    fitted = rule.fit(activations, [size], editor.layers, dtype, progress=False)[0]
    edits = {layer: edit.scaled(editor[layer].strength) for layer, edit in fitted.edits.items()}
    return replace(fitted, edits=edits, positions=editor.positions)


def rule_of(editor: Editor) -> tuple[SEARule, Share | Ranks]:
    """The rule and the size of the subspaces that an editor of `fit_sea` was fitted by, read off its card.

    Raises:
        InputError: If the editor is not one of SEA.
    """
    if editor.card.method != "sea":
        raise InputError(f"Only editors of fit_sea can be fitted again, and this one is of {editor.card.method!r}.")
    settings: dict[str, Any] = dict(editor.card.hyper_parameters)
    shares, ranks = settings.pop("explained_variance"), settings.pop("ranks")
    first = editor[editor.layers[0]]
    if isinstance(first, FeatureSpaceEdit):
        settings["feature_map"] = first.feature_map  # the card has its name only
    return SEARule(**settings), tuple(shares) if ranks is None else Ranks(tuple(ranks))


@dataclass(frozen=True)
class Ranks:
    """Numbers of directions: one for both subspaces, or a pair (positive, negative)."""

    numbers: int | tuple[int, int]

    @property
    def pair(self) -> tuple[int, int]:
        """Of the positive and of the negative subspace."""
        return _pair(self.numbers)


@dataclass(frozen=True)
class SEARule:
    """All that defines an SEA edit but the number of its directions: what one decomposition of the activations is for.

    Attributes are the arguments of `fit_sea`.
    """

    spectrum: Spectrum = "squared"
    centre: bool = False
    projections: Projections = "both"
    merge: Merge = "norm"
    feature_map: FeatureMap | None = None
    feature_unit: float | Literal["median"] = "median"
    merge_space: MergeSpace = "features"

    def __post_init__(self) -> None:
        for name, kind in (("projections", Projections), ("merge", Merge), ("merge_space", MergeSpace)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, and {value!r} was given.")
        if self.feature_map is not None:
            check_map(self.feature_map)
        unit = self.feature_unit
        if unit != "median" and not (isinstance(unit, float | int) and math.isfinite(unit) and unit > 0):
            raise InputError(f'feature_unit is "median" or a finite number above zero, and {unit!r} was given.')

    def fit(
        self,
        activations: Activations,
        sizes: Sequence[Share | Ranks],
        layers: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = True,
    ) -> list[Editor]:
        """One editor for each size of the subspaces, from one decomposition a layer. Says nothing of edits that do nothing.

        Args:
            activations: As for `fit_sea`.
            sizes: Explained variances, or `Ranks`.
            layers: As for `fit_sea`.
            dtype: As for `fit_sea`.
            progress: As for `fit_sea`.

        Raises:
            InputError: If a share, a rank or a layer is impossible.
        """
        chosen = activations.layers if layers is None else sorted(set(layers))
        absent = [layer for layer in chosen if layer not in activations.layers]
        if absent or not chosen:
            raise InputError(
                f"Layers {absent or chosen} were asked for; activations are there of {activations.layers}."
            )
        edits: list[dict[int, Edit]] = [{} for _ in sizes]
        found: list[dict[int, dict[str, JSON]]] = [{} for _ in sizes]
        for layer in tqdm(chosen, desc="fit", unit="layer", disable=not progress, delay=2):
            neutral = activations.neutral[layer]
            unit = self._unit(neutral, layer)
            covariances = self.decompose(activations, layer)
            mean = self._features(neutral, unit).mean(0, dtype=torch.float64) if self.centre else None
            for index, size in enumerate(sizes):
                positive, negative = self.subspaces(covariances, size)
                edit = self._edit(positive, negative, mean, unit)
                facts: dict[str, JSON] = {
                    "rank_positive": positive.rank,
                    "rank_negative": negative.rank,
                    "rank": edit.rank,
                    "displacement": displacement(edit, neutral),
                }
                if isinstance(edit, FeatureSpaceEdit):
                    outside, beyond = edit.clamped(neutral)
                    facts |= {"unit": unit, "clamped_activations": outside, "clamped_features": beyond}
                found[index][layer], edits[index][layer] = facts, edit.cast(dtype)
        return [
            Editor(by_layer, self._card(activations, size, facts_by_layer))
            for size, by_layer, facts_by_layer in zip(sizes, edits, found, strict=True)
        ]

    def _unit(self, neutral: Float[Tensor, "n d_model"], layer: int) -> float:
        if self.feature_unit != "median":
            return float(self.feature_unit)
        if self.feature_map is None:  # a median takes longer than a fit, and a linear edit knows no unit
            return 1.0
        unit = float(neutral.double().abs().median())
        if unit == 0:
            raise InputError(
                f"Half of the neutral activations of layer {layer} are zero. Give feature_unit as a number."
            )
        return unit

    def _features(self, h: Float[Tensor, "n d_model"], unit: float) -> Float[Tensor, "n d_model"]:
        if self.feature_map is None:
            return h  # in whatever precision: CrossCovariance converts what it needs
        return self.feature_map.forward((h.double() / unit).clamp(*self.feature_map.domain))

    def decompose(self, activations: Activations, layer: int) -> list[CrossCovariance]:
        """The cross-covariances of a layer with its positive and its negative side, in the feature space if there is one."""
        unit = self._unit(activations.neutral[layer], layer)
        features = self._features(activations.neutral[layer], unit)
        sides = (activations.positive[layer], activations.negative[layer])
        return CrossCovariance.of_sides(features, [self._features(side, unit) for side in sides], self.centre)

    def subspaces(self, covariances: Sequence[CrossCovariance], size: Share | Ranks) -> list[Subspace]:
        """The positive and the negative subspace of a size."""
        if isinstance(size, Ranks):
            return [side.leading(rank) for side, rank in zip(covariances, size.pair, strict=True)]
        return [side.explaining(share, self.spectrum) for side, share in zip(covariances, _pair(size), strict=True)]

    def _edit(
        self, positive: Subspace, negative: Subspace, mean: Float[Tensor, " d_model"] | None, unit: float
    ) -> LowRankEdit | FeatureSpaceEdit:
        first, second = (negative, positive) if self.projections == "reversed" else (positive, negative)
        ones = torch.ones(max(first.rank, second.rank), dtype=torch.float64)
        kept, removed = (first.basis, ones[: first.rank]), (second.basis, -ones[: second.rank])
        norm, averaged = self.merge == "norm", self.merge == "average"
        if self.projections == "positive":
            parts = [_part(*kept, mean, kept=0.0, mean_stays=True)]
        elif self.projections == "negative":
            parts = [_part(*removed, mean)]
        elif self.feature_map is not None and self.merge_space == "activations":
            # A mean goes back once into what is summed: with the projection that keeps most. An average needs it in both.
            parts = [_part(*kept, mean, kept=0.0, mean_stays=averaged), _part(*removed, mean)]
        else:
            directions, eigenvalues = difference_of_projectors(first.basis, second.basis)
            half = 0.5 if averaged else 1.0
            parts = [_part(directions, half * eigenvalues, mean, kept=half, mean_stays=True)]
        if self.feature_map is None:
            return replace(parts[0], restore_norm=norm)
        weight = 0.5 if averaged and len(parts) == 2 else 1.0
        return FeatureSpaceEdit(self.feature_map, tuple(parts), unit, weight, restore_norm=norm)

    def _card(
        self, activations: Activations, size: Share | Ranks, found: Mapping[int, Mapping[str, JSON]]
    ) -> EditorCard:
        hyper_parameters: dict[str, JSON] = {
            "explained_variance": None if isinstance(size, Ranks) else list(_pair(size)),
            "ranks": list(size.pair) if isinstance(size, Ranks) else None,
            "spectrum": self.spectrum,
            "centre": self.centre,
            "projections": self.projections,
            "merge": self.merge,
        }
        if self.feature_map is not None:
            hyper_parameters |= {
                "feature_map": {"name": type(self.feature_map).__name__, **parameters_of(self.feature_map)},
                "feature_unit": self.feature_unit,
                "merge_space": self.merge_space,
            }
        return EditorCard(
            method="sea",
            hyper_parameters=hyper_parameters,
            site=activations.site,
            token=activations.token,
            model=activations.model,
            n_demonstrations=activations.n,
            demonstrations=activations.demonstrations,
            layers=found,
            versions=library_versions(),
        )


def _part(
    directions: Float[Tensor, "d_model rank"],
    eigenvalues: Float[Tensor, " rank"],
    mean: Float[Tensor, " d_model"] | None,
    kept: float = 1.0,
    mean_stays: bool = True,
) -> LowRankEdit:
    """`kept * x + (x W) diag(lam) W^T` of what lies around the mean, which is then put back or not."""
    shift = None
    if mean is not None and (len(eigenvalues) or kept != 1):
        shift = (float(mean_stays) - kept) * mean - ((mean @ directions) * eigenvalues) @ directions.T
    return LowRankEdit(directions, eigenvalues, shift, restore_norm=False, kept=kept)


def _pair(value: T | tuple[T, T]) -> tuple[T, T]:
    if not isinstance(value, tuple | list):  # cards hold lists
        return (value, value)
    if len(value) != 2:
        raise InputError(f"A pair (positive, negative) was expected, and {value} was given.")
    return (value[0], value[1])


def _warn_if_nothing(found: Mapping[int, Mapping[str, JSON]], centre: bool, edits_nothing: bool) -> None:
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


def _warn_if_clamped(found: Mapping[int, Mapping[str, JSON]]) -> None:
    for what, why in (
        (
            "clamped_activations",
            "lie outside the domain of the feature map, where it saturates, and are edited as if at its end",
        ),
        ("clamped_features", "are edited to where the feature map has no values, and come back as the nearest it has"),
    ):
        shares = {layer: float(str(facts[what])) for layer, facts in found.items() if what in facts}
        if any(share > MANY_CLAMPED for share in shares.values()):
            listed = ", ".join(f"layer {layer} {share:.1%}" for layer, share in shares.items() if share > MANY_CLAMPED)
            warnings.warn(
                f"Entries of the neutral activations {why}: {listed}. Give the feature map a larger scale, or fit at a "
                "larger feature_unit.",
                SeaLensWarning,
                stacklevel=3,
            )
