"""The rule of an SEA edit: from cross-covariances to editors, wherever the cross-covariances come from.

Source: Qiu et al., NeurIPS 2024 (arXiv 2405.09719), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.card import EditorCard, FitReport, library_versions
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, displacement
from sea_lens.errors import InputError
from sea_lens.methods.sea.feature_space import FeatureMap, FeatureSpaceEdit, check_map
from sea_lens.methods.sea.spectral import CrossCovariance, Spectrum, Subspace, difference_of_projectors
from sea_lens.models.activations import Activations, TokenChoice
from sea_lens.models.bridge import ModelDescription
from sea_lens.models.sites import Site

T = TypeVar("T")
Share = float | tuple[float, float]
Projections = Literal["both", "positive", "negative", "reversed"]
Merge = Literal["norm", "sum", "average"]
MergeSpace = Literal["features", "activations"]


@dataclass(frozen=True)
class Ranks:
    """Numbers of directions: one for both subspaces, or a pair (positive, negative)."""

    numbers: int | tuple[int, int]

    @property
    def pair(self) -> tuple[int, int]:
        """Of the positive and of the negative subspace."""
        return _pair(self.numbers)


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """All that an edit of one layer is made from.

    Attributes:
        covariances: Of the neutral with the positive and with the negative features.
        mean: Of the neutral features; None unless the rule center.
        unit: Activations are divided by it before the feature map.
        neutral: Activations to measure the edit on: all that there are, or a sample.
    """

    covariances: Sequence[CrossCovariance]
    mean: Float[Tensor, " d_model"] | None
    unit: float
    neutral: Float[Tensor, "n d_model"]


@runtime_checkable
class Source(Protocol):
    """Where evidence comes from: activations, or statistics of activations that are no longer there."""

    @property
    def layers(self) -> list[int]:
        """The layers there are, ascending."""

    @property
    def n(self) -> int:
        """Number of demonstrations."""

    @property
    def sites(self) -> list[Site]:
        """The sites there are."""

    @property
    def token(self) -> TokenChoice:
        """The token they belong to."""

    @property
    def model(self) -> ModelDescription | None:
        """The model they come from, where known."""

    @property
    def demonstrations(self) -> str | None:
        """Fingerprint of the demonstrations, where known."""


@dataclass(frozen=True)
class SEARule:
    """All that defines an SEA edit but the number of its directions: what one decomposition of the activations is for.

    Attributes are the arguments of `fit_sea`.
    """

    spectrum: Spectrum = "squared"
    center: bool = False
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
        return self.fit_from(activations, partial(self._evidence, activations), sizes, layers, dtype, progress)

    def fit_from(
        self,
        source: Source,
        evidence: Callable[[int], LayerEvidence],
        sizes: Sequence[Share | Ranks],
        layers: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = True,
    ) -> list[Editor]:
        """The same from any source of evidence, of which one layer's is held at a time.

        Args:
            source: Where the evidence comes from, for the card.
            evidence: Gives that of a layer.
            sizes: As for `fit`.
            layers: As for `fit_sea`; all that `source` has for None.
            dtype: As for `fit_sea`.
            progress: As for `fit_sea`.

        Raises:
            InputError: If a share, a rank or a layer is impossible.
        """
        chosen = source.layers if layers is None else sorted(set(layers))
        absent = [layer for layer in chosen if layer not in source.layers]
        if absent or not chosen:
            raise InputError(f"Layers {absent or chosen} were asked for; activations are there of {source.layers}.")
        edits: list[dict[Site, Edit]] = [{} for _ in sizes]
        found: list[dict[Site, FitReport]] = [{} for _ in sizes]
        for layer in tqdm(chosen, desc="fit", unit="layer", disable=not progress, delay=2):
            given = evidence(layer)
            neutral = given.neutral
            for index, size in enumerate(sizes):
                positive, negative = self.subspaces(given.covariances, size)
                edit = self._edit(positive, negative, given.mean, given.unit)
                numbers: dict[str, float] = {"rank_positive": positive.rank, "rank_negative": negative.rank}
                if isinstance(edit, FeatureSpaceEdit):
                    outside, beyond = edit.clamped(neutral)
                    numbers |= {"unit": given.unit, "clamped_activations": outside, "clamped_features": beyond}
                sample = len(neutral) if len(neutral) < source.n else None
                site = next(one for one in source.sites if one.layer == layer)
                found[index][site] = FitReport(edit.rank, displacement(edit, neutral), sample, numbers)
                edits[index][site] = edit.cast(dtype)
        return [
            Editor(by_layer, self._card(source, size, facts_by_layer))
            for size, by_layer, facts_by_layer in zip(sizes, edits, found, strict=True)
        ]

    def _evidence(self, activations: Activations, layer: int) -> LayerEvidence:
        neutral = activations.neutral[layer]
        unit = self._unit(neutral, layer)
        mean = self.features(neutral, unit).mean(0, dtype=torch.float64) if self.center else None
        return LayerEvidence(self.decompose(activations, layer), mean, unit, neutral)

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

    def features(self, h: Float[Tensor, "n d_model"], unit: float) -> Float[Tensor, "n d_model"]:
        """Phi of activations in a unit, in float64; without a feature map the activations themselves, in their precision."""
        if self.feature_map is None:
            return h
        return self.feature_map.forward((h.double() / unit).clamp(*self.feature_map.domain))

    def decompose(self, activations: Activations, layer: int) -> list[CrossCovariance]:
        """The cross-covariances of a layer with its positive and its negative side, in the feature space if there is one."""
        unit = self._unit(activations.neutral[layer], layer)
        features = self.features(activations.neutral[layer], unit)
        sides = (activations.positive[layer], activations.negative[layer])
        return CrossCovariance.of_sides(features, [self.features(side, unit) for side in sides], self.center)

    def subspaces(self, covariances: Sequence[CrossCovariance], size: Share | Ranks) -> list[Subspace]:
        """The positive and the negative subspace of a size."""
        if isinstance(size, Ranks):
            return [side.leading(rank) for side, rank in zip(covariances, size.pair, strict=True)]
        return [side.explaining(share, self.spectrum) for side, share in zip(covariances, _pair(size), strict=True)]

    def _edit(
        self, positive: Subspace, negative: Subspace, mean: Float[Tensor, " d_model"] | None, unit: float
    ) -> AffineEdit | FeatureSpaceEdit:
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

    def _card(self, source: Source, size: Share | Ranks, found: Mapping[Site, FitReport]) -> EditorCard:
        settings: dict[str, Any] = {
            "explained_variance": None if isinstance(size, Ranks) else _pair(size),
            "ranks": size.pair if isinstance(size, Ranks) else None,
            "spectrum": self.spectrum,
            "center": self.center,
            "projections": self.projections,
            "merge": self.merge,
        }
        if self.feature_map is not None:
            settings |= {
                "feature_map": self.feature_map,
                "feature_unit": self.feature_unit,
                "merge_space": self.merge_space,
            }
        return EditorCard(
            method="sea",
            settings=settings,
            token=source.token,
            model=source.model,
            n_demonstrations=source.n,
            demonstrations=source.demonstrations,
            reports=found,
            versions=library_versions(),
        )


def _part(
    directions: Float[Tensor, "d_model rank"],
    eigenvalues: Float[Tensor, " rank"],
    mean: Float[Tensor, " d_model"] | None,
    kept: float = 1.0,
    mean_stays: bool = True,
) -> AffineEdit:
    """`kept * x + (x W) diag(lam) W^T` of what lies around the mean, which is then put back or not."""
    shift = None
    if mean is not None and (len(eigenvalues) or kept != 1):
        shift = (float(mean_stays) - kept) * mean - ((mean @ directions) * eigenvalues) @ directions.T
    return AffineEdit.of_eigenvalues(directions, eigenvalues, shift, kept)


def _pair(value: T | tuple[T, T]) -> tuple[T, T]:
    if not isinstance(value, tuple | list):  # cards hold lists
        return (value, value)
    if len(value) != 2:
        raise InputError(f"A pair (positive, negative) was expected, and {value} was given.")
    return (value[0], value[1])
