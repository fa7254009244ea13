"""SEA at constant memory: sums of products instead of activations, over any number of batches and machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sea_lens.cache import load_tensors, save_tensors
from sea_lens.editing.editor import Editor
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.sea.feature_space import KNOWN, FeatureMap, parameters_of
from sea_lens.methods.sea.row_sample import RowSample
from sea_lens.methods.sea.rule import LayerEvidence, Merge, MergeSpace, Projections, Ranks, SEARule, Share
from sea_lens.methods.sea.running import RunningCrossCovariance
from sea_lens.methods.sea.sea import warn_of
from sea_lens.methods.sea.spectral import Spectrum
from sea_lens.models.activations import ActivationKind, Activations, TokenChoice
from sea_lens.models.bridge import ModelDescription
from sea_lens.models.distributed import n_processes
from sea_lens.models.sites import Site

FORMAT = "sea_lens.sea_fitter/1"
SAMPLE = 256
"""Neutral activations kept at each layer, on which an edit's displacement is measured."""
STATISTICS = "statistics.safetensors"


class SEAFitter:
    """What `fit_sea` needs of activations, accumulated: give it batches, merge it with others, fit when all have been seen.

        fitter = collect_statistics(model, demonstrations, folder="statistics")
        editor = fitter.fit(explained_variance=0.998)

    Editors equal those of `fit_sea` on all activations at once, centered or not. Means and cross-covariances are float64 and
    are updated around running means (`RunningCrossCovariance`), so that an offset common to all activations loses nothing.

    Memory does not depend on the number of demonstrations: `2 d_model^2` float64 numbers a layer, one matrix for the positive
    and one for the negative side, which is 268 MB a layer at a d_model of 4096 and 1.07 GB at 8192. Activations themselves
    take `3 n d_model` float32 numbers, less than that up to `n = 4/3 d_model` demonstrations: a fitter is for more, or for
    several machines. Fitting takes a handful of such matrices more, for one layer at a time.

    What it cannot know: with more than `SAMPLE` demonstrations, an editor's displacement (and the shares of clamped entries)
    are measured on a uniform sample of that many neutral activations; the card then says so under `measured_on`. The unit of
    a feature map must be given as a number, since a median is not a sum. Rows are gone: nothing can be bootstrapped.

    Args:
        feature_map: phi, for editing in a feature space; None for the linear edit. Sums are of features, so it is chosen here
            and not when fitting.
        feature_unit: What counts as 1 for phi, a number in units of the activations.

    Raises:
        InputError: If the feature map is none, or it is given without a number for `feature_unit`.
    """

    def __init__(
        self, *, feature_map: FeatureMap | None = None, feature_unit: float | Literal["median"] = "median"
    ) -> None:
        self._rule = SEARule(feature_map=feature_map, feature_unit=feature_unit)
        if feature_map is not None and feature_unit == "median":
            raise InputError(
                "A fitter sees activations once, so it cannot divide them by their median. Give feature_unit as a number, "
                "such as the median absolute neutral activation of a few demonstrations."
            )
        self.feature_map, self.feature_unit = feature_map, feature_unit
        self._unit = 1.0 if feature_unit == "median" else float(feature_unit)
        self.demonstrations: str | None = None
        self._kind: ActivationKind | None = None
        self._sides: dict[int, tuple[RunningCrossCovariance, RunningCrossCovariance]] = {}
        self._sample = RowSample.empty(SAMPLE, [], 0)

    # --- what it holds -----------------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """Number of demonstrations seen."""
        return next(iter(self._sides.values()))[0].n if self._sides else 0

    @property
    def layers(self) -> list[int]:
        """The layers there are, ascending."""
        return list(self._sides)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.kind.widths[0]

    @property
    def sites(self) -> list[Site]:
        """The sites that activations come from."""
        return list(self.kind.sites)

    @property
    def token(self) -> TokenChoice:
        """The token they belong to."""
        return self.kind.token

    @property
    def model(self) -> ModelDescription | None:
        """The model they come from, where known."""
        return self.kind.model

    @property
    def editor(self) -> str | None:
        """Fingerprint of the editor they were collected under; None for the unedited model."""
        return self.kind.editor

    @property
    def kind(self) -> ActivationKind:
        """What all of them have in common.

        Raises:
            InputError: If there are none yet.
        """
        if self._kind is None:
            raise InputError("This fitter has seen no activations. Give it some: fitter.update(activations).")
        return self._kind

    def __repr__(self) -> str:
        if self._kind is None:
            return "SEAFitter(no demonstrations yet)"
        source = "tensors" if self.model is None else self.model.name
        features = "" if self.feature_map is None else f", features {self.feature_map} at unit {self.feature_unit:g}"
        return (
            f"SEAFitter({self.n} demonstrations, {self.kind.sites[0].name} of layers {self.layers}, d_model {self.d_model}, "
            f"token {self.token!r}, from {source}{features})"
        )

    # --- accumulating ------------------------------------------------------------------------------------------------

    def update(self, batch: Activations) -> None:
        """Adds the activations of further demonstrations. Batches may be of any size, and differ in it.

        Raises:
            InputError: If they differ from those before in site, token, model, editor, layers or d_model.
        """
        first = not self.n
        self.begin(ActivationKind.of(batch))
        self.demonstrations = batch.demonstrations if first else None
        for layer, sides in self._sides.items():
            neutral = self._features(batch.neutral[layer])
            for side, other in zip(sides, (batch.positive[layer], batch.negative[layer]), strict=True):
                side.update(neutral, self._features(other))
        self._sample.update({layer: batch.neutral[layer] for layer in batch.layers})

    def merge(self, other: SEAFitter) -> None:
        """Adds what another fitter has seen, of another machine for example. The other is left as it is.

        Sums of floating-point numbers know their order: merging in another order agrees to rounding, not to the bit.

        Raises:
            InputError: If the other's activations or its feature map are of another kind.
        """
        ours, theirs = (describe_features(fitter.feature_map, fitter.feature_unit) for fitter in (self, other))
        if ours != theirs:
            raise InputError(f"Fitters of one feature map were expected, and these have {ours} and {theirs}.")
        if not other.n:
            return
        first = not self.n
        self.begin(other.kind)
        self.demonstrations = other.demonstrations if first else None
        for layer, sides in self._sides.items():
            for side, part in zip(sides, other._sides[layer], strict=True):
                side.merge(part)
        self._sample.merge(other._sample.hashes, other._sample.rows)

    def begin(self, kind: ActivationKind) -> None:
        """Makes room for activations of a kind, or compares it with the kind there is.

        Raises:
            InputError: If it is another.
        """
        if self._kind is None:
            self._kind = kind
            self._sides = {
                layer: (RunningCrossCovariance.empty(kind.widths[0]), RunningCrossCovariance.empty(kind.widths[0]))
                for layer in _layers(kind)
            }
            self._sample = RowSample.empty(SAMPLE, _layers(kind), kind.widths[0])
        elif kind != self._kind:
            ours, theirs = asdict(self._kind), asdict(kind)
            different = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
            raise InputError(
                "All activations of a fitter must be of one kind. (Before, now) these differ: "
                f"{', '.join(f'{name} {pair}' for name, pair in different.items())}. Use another fitter for them."
            )

    def _features(self, h: Tensor) -> Tensor:
        return self._rule.features(h.detach().cpu(), self._unit)

    def over_processes(self) -> SEAFitter:
        """What the fitters of all processes have seen, merged in the order of ranks: the same bits on each.

        All must call it, with activations of one kind (see `begin` for a process that has seen none).
        """
        if n_processes() == 1:
            return self
        whole = SEAFitter(feature_map=self.feature_map, feature_unit=self.feature_unit)
        whole._kind = self.kind
        whole._sides = {
            layer: (side.over_processes(), other.over_processes()) for layer, (side, other) in self._sides.items()
        }
        whole._sample = self._sample.over_processes()
        return whole

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        explained_variance: Share = 0.998,
        *,
        ranks: int | tuple[int, int] | None = None,
        spectrum: Spectrum = "squared",
        center: bool = False,
        projections: Projections = "both",
        merge: Merge = "norm",
        merge_space: MergeSpace = "features",
        layers: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float32,
        progress: bool = True,
    ) -> Editor:
        """The editor that `fit_sea` would fit on all activations seen so far. The fitter is left as it is.

        Arguments are those of `fit_sea`. `projections="reversed"` is the fit with positives and negatives exchanged.

        Raises:
            InputError: If nothing was seen yet, or a share, a rank or a layer is impossible.

        Warns:
            SeaLensWarning: As `fit_sea` does.
        """
        rule = replace(
            self._rule, spectrum=spectrum, center=center, projections=projections, merge=merge, merge_space=merge_space
        )
        if not self.n:
            raise InputError("This fitter has seen no activations. Give it some: fitter.update(activations).")
        size = explained_variance if ranks is None else Ranks(ranks)
        editor = rule.fit_from(self, partial(self._evidence, rule), [size], layers, dtype, progress)[0]
        warn_of(editor, center)
        return editor

    def _evidence(self, rule: SEARule, layer: int) -> LayerEvidence:
        sides = self._sides[layer]
        mean = sides[0].neutral_mean if rule.center else None
        covariances = [side.decomposed(rule.center) for side in sides]
        return LayerEvidence(covariances, mean, self._unit, self._sample.rows[layer])

    # --- on disk -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all; what is not a tensor goes into its header as JSON.

        Raises:
            InputError: If nothing was seen yet.
        """
        facts = {
            **asdict(self.kind),
            "sites": [str(site) for site in self.sites],
            "n": self.n,
            "demonstrations": self.demonstrations,
            "features": describe_features(self.feature_map, self.feature_unit),
        }
        tensors = {"sample.hashes": self._sample.hashes}
        for layer, (positive, negative) in self._sides.items():
            tensors[f"{layer}.sample"] = self._sample.rows[layer]
            tensors[f"{layer}.neutral_mean"] = positive.neutral_mean
            for name, side in (("positive", positive), ("negative", negative)):
                tensors[f"{layer}.{name}_mean"] = side.other_mean
                tensors[f"{layer}.{name}_comoment"] = side.comoment
        save_tensors(tensors, Path(path), {FORMAT: json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path, *, feature_map: FeatureMap | None = None) -> SEAFitter:
        """Reads what `save` wrote, or the folder of a finished `collect_statistics`; it can be given more.

        Args:
            path: The file or the folder.
            feature_map: The feature map, where it is one of your own: files hold no code.

        Raises:
            FileFormatError: If the file is missing, truncated, not a fitter's, or of another feature map.
        """
        path = Path(path)
        path = path / STATISTICS if path.is_dir() else path
        mapped, metadata = load_tensors(path)
        # In memory of their own: to be added to, and aligned as torch's, on which the last bits of a product depend.
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        if FORMAT not in metadata:
            raise FileFormatError(f"{path} is not a fitter's file of sea_lens ({FORMAT}).")
        try:
            facts = json.loads(metadata[FORMAT])
            fitter = cls(**_read_features(facts["features"], feature_map))
            model = None if facts["model"] is None else ModelDescription(**facts["model"])
            layers = [int(Site.of(site).layer or 0) for site in facts["sites"]]
            fitter._kind = ActivationKind(
                facts["token"], model, facts["editor"], tuple(map(Site.of, facts["sites"])), tuple(facts["widths"])
            )
            fitter.demonstrations = facts["demonstrations"]
            for layer in layers:
                positive, negative = (
                    RunningCrossCovariance(
                        facts["n"],
                        tensors[f"{layer}.neutral_mean"],
                        tensors[f"{layer}.{name}_mean"],
                        tensors[f"{layer}.{name}_comoment"],
                    )
                    for name in ("positive", "negative")
                )
                fitter._sides[layer] = positive, negative
            rows = {layer: tensors[f"{layer}.sample"] for layer in layers}
            fitter._sample = RowSample(SAMPLE, tensors["sample.hashes"], rows)
        except FileFormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error
        return fitter


def describe_features(feature_map: FeatureMap | None, feature_unit: float | str) -> dict[str, Any] | None:
    """A feature map and its unit as plain JSON values; files hold no code."""
    if feature_map is None:
        return None
    name, text = type(feature_map).__name__, str(feature_map)
    text = name if " at 0x" in text else text  # of an object that does not tell its parameters
    return {"name": name, "parameters": parameters_of(feature_map), "text": text, "unit": feature_unit}


def _read_features(found: dict[str, Any] | None, own: FeatureMap | None) -> dict[str, Any]:
    """Arguments of a fitter out of what `describe_features` made; a map that is not ours must be given.

    Raises:
        FileFormatError: If the map given is another one, or none is given where one is needed.
    """
    if found is None and own is None:
        return {}
    feature_map = own
    if found is not None and own is None and found["name"] in KNOWN:
        feature_map = KNOWN[found["name"]](**found["parameters"])
    if found is None or describe_features(feature_map, found["unit"]) != found:
        theirs = "no feature map" if found is None else found["text"]
        raise FileFormatError(
            f"This fitter has features of {theirs}, and feature_map={own} was given. Give its own, or leave it out if it is "
            "one of the library's."
        )
    return {"feature_map": feature_map, "feature_unit": found["unit"]}


def _layers(kind: ActivationKind) -> list[int]:
    return [site.layer for site in kind.sites if site.layer is not None]
