"""SEA at constant memory: sums of products instead of activations, over any number of batches and machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sea_lens.arguments import check_arguments
from sea_lens.cache import load_tensors, save_tensors
from sea_lens.data.chat import PromptForm
from sea_lens.editing.editor import Editor
from sea_lens.editing.registry import from_plain
from sea_lens.errors import FileFormatError, InputError
from sea_lens.methods.grid import check_settings
from sea_lens.methods.method import check_roles
from sea_lens.methods.sea.evidence import Evidence
from sea_lens.methods.sea.feature_space import FeatureMap
from sea_lens.methods.sea.fitter_files import FORMAT, SAMPLE, STATISTICS, check_kept, features_as_json
from sea_lens.methods.sea.sea import SEA
from sea_lens.methods.sea.spectral import RunningCrossCovariance
from sea_lens.models.activations import ActivationKind, Activations, TokenChoice
from sea_lens.models.bridge import ModelInfo
from sea_lens.models.distributed import from_each, n_processes
from sea_lens.models.sinks import Sinks
from sea_lens.models.sites import Site

SIDES = ("positive", "negative")
NOTHING_SEEN = "This fitter has seen no activations. Give it some: fitter.update(activations)."


class SEAFitter:
    """What SEA needs of activations, accumulated: give it batches, merge it with others, fit when all have been seen.

    Editors equal those of `SEA.fit` on all activations at once, centered or not. Means and cross-covariances are float64 and
    are updated around running means, so that an offset common to all activations loses nothing.

    Memory does not depend on the number of demonstrations: `2 width^2` float64 numbers per site, a matrix per side: 268 MB
    at a width of 4096. Activations themselves take `3 n width` float32 numbers, less up to `n = 4/3 width` demonstrations: a
    fitter is for more, or for several machines. Fitting takes a handful of such matrices more.

    What it cannot know: with more than `SAMPLE` demonstrations, an editor's displacement (and the shares of clamped entries)
    are measured on so many neutral activations, the first or those that `update` is told (the card's `measured_on`). The unit
    of a feature map must be given as a number, since a median is not a sum.

    Example:
        >>> roles, fitter = ("neutral", "positive", "negative"), sl.SEAFitter()
        >>> for _ in range(4):
        ...     batch = sl.Activations.from_tensors(**{role: {3: torch.randn(50, 16)} for role in roles})
        ...     fitter = fitter.update(batch)
        >>> fitter.fit(sl.SEA(0.9, center=True)).card.n_demonstrations
        200

    Args:
        feature_map: phi, for editing in a feature space; None for the linear edit. Sums are of features, so it is chosen here
            and not when fitting.
        feature_unit: What counts as 1 for phi, a number in units of the activations.

    Raises:
        InputError: If the feature map has a flaw, or is given without a number for `feature_unit`.
    """

    def __init__(
        self, *, feature_map: FeatureMap | None = None, feature_unit: float | Literal["median"] = "median"
    ) -> None:
        check_arguments(SEAFitter.__init__, locals())
        self._features_of = SEA(feature_map=feature_map, feature_unit=feature_unit)
        if feature_map is not None and feature_unit == "median":
            raise InputError(
                "A fitter sees activations once, so it cannot divide them by their median. Give feature_unit as a number, "
                "such as the median absolute neutral activation of a few demonstrations."
            )
        self._unit = 1.0 if feature_unit == "median" else float(feature_unit)
        self.demonstrations: str | None = None
        self._kind: ActivationKind | None = None
        self._sides: dict[Site, tuple[RunningCrossCovariance, RunningCrossCovariance]] = {}
        self._sample: dict[Site, Tensor] = {}

    @property
    def n(self) -> int:
        """Number of demonstrations seen."""
        return next(iter(self._sides.values()))[0].n if self._sides else 0

    @property
    def sites(self) -> list[Site]:
        """The sites that activations come from."""
        return list(self._sides)

    @property
    def layers(self) -> list[int]:
        """The layers there are, ascending."""
        return sorted({site.layer for site in self._sides if site.layer is not None})

    @property
    def token(self) -> TokenChoice:
        """The token they belong to."""
        return self.kind.token

    @property
    def model(self) -> ModelInfo | None:
        """The model they come from, where known."""
        return self.kind.model

    @property
    def sinks(self) -> Sinks | None:
        """The model's attention sinks; None where there are none."""
        return self.kind.sinks

    @property
    def form(self) -> PromptForm | None:
        """What the prompts were put into and how answers end, where known."""
        return self.kind.form

    @property
    def feature_map(self) -> FeatureMap | None:
        """What the sums are of features of."""
        return self._features_of.feature_map

    @property
    def kind(self) -> ActivationKind:
        """What all of them have in common.

        Raises:
            InputError: If there are none yet.
        """
        if self._kind is None:
            raise InputError(NOTHING_SEEN)
        return self._kind

    def _check_seen(self) -> None:
        if not self.n:
            raise InputError(NOTHING_SEEN)

    def __repr__(self) -> str:
        if self._kind is None:
            return "SEAFitter(no demonstrations yet)"
        features = "" if self.feature_map is None else f", features {self.feature_map} at unit {self._unit:g}"
        names = ", ".join(sorted({site.name for site in self.sites}))
        return (
            f"SEAFitter({self.n} demonstrations, {names} of layers {self.layers}, width {self.kind.widths[0]}, "
            f"token {self.token!r}, from {'tensors' if self.model is None else self.model.name}{features})"
        )

    # --- accumulating ------------------------------------------------------------------------------------------------

    def update(self, batch: Activations, *, measured: Bool[Tensor, " n"] | None = None) -> SEAFitter:
        """Adds the activations of further demonstrations. Batches may be of any size, and differ in it.

        Args:
            batch: Neutral, positive and negative ones.
            measured: Which of them edits are to be measured on, if not on the first `SAMPLE` of all.

        Returns:
            Itself.

        Raises:
            InputError: If they differ from those before in site, token, model, editor or width.
        """
        check_arguments(SEAFitter.update, locals())
        check_roles(self._features_of, batch)
        first = not self.n
        self.begin(ActivationKind.of(batch))
        self.demonstrations = batch.demonstrations if first else None
        for site, sides in self._sides.items():
            neutral = self._features(batch.neutral[site])
            for side, other in zip(sides, (batch.positive[site], batch.negative[site]), strict=True):
                side.update(neutral, self._features(other))
            rows = batch.neutral[site] if measured is None else batch.neutral[site][measured]
            self._sample[site] = torch.cat([self._sample[site], rows.detach().cpu()])[:SAMPLE]
        return self

    def merge(self, other: SEAFitter) -> SEAFitter:
        """Adds what another fitter has seen, of another machine for example. The other is left as it is.

        Sums of floating-point numbers know their order: merging in another order agrees to rounding, not to the bit.

        Returns:
            Itself.

        Raises:
            InputError: If the other's activations or its feature map are of another kind.
        """
        check_arguments(SEAFitter.merge, locals())
        self._check_features(other._features_of)
        if not other.n:
            return self
        first = not self.n
        self.begin(other.kind)
        self.demonstrations = other.demonstrations if first else None
        for site, sides in self._sides.items():
            for side, part in zip(sides, other._sides[site], strict=True):
                side.merge(part)
            self._sample[site] = torch.cat([self._sample[site], other._sample[site]])[:SAMPLE]
        return self

    def begin(self, kind: ActivationKind) -> None:
        """Makes room for activations of a kind, or compares it with the kind there is.

        Raises:
            InputError: If it is another.
        """
        if self._kind is None:
            self._kind = kind
            for site, width in zip(kind.sites, kind.widths, strict=True):
                self._sides[site] = RunningCrossCovariance.empty(width), RunningCrossCovariance.empty(width)
                self._sample[site] = torch.empty(0, width)
        elif kind != self._kind:
            ours, theirs = vars(self._kind), vars(kind)
            different = [f"{name} {ours[name], theirs[name]}" for name in ours if ours[name] != theirs[name]]
            raise InputError(
                f"All activations of a fitter must be of one kind. (Before, now) these differ: {', '.join(different)}. Use "
                "another fitter for them."
            )

    def _features(self, h: Tensor) -> Tensor:
        return self._features_of.features(h.detach().cpu(), self._unit)

    def _check_features(self, method: SEA) -> None:
        ours, theirs = ((one.feature_map, one.feature_unit) for one in (self._features_of, method))
        if ours != theirs and not ours[0] is theirs[0] is None:
            raise InputError(f"This fitter's sums are of features {ours} (map, unit), and {theirs} were asked for.")

    def over_processes(self) -> SEAFitter:
        """What the fitters of all processes have seen, merged in the order of ranks: the same bits on each.

        All must call it, with activations of one kind (see `begin` for a process that has seen none).
        """
        if n_processes() == 1:
            return self
        whole = SEAFitter(feature_map=self.feature_map, feature_unit=self._features_of.feature_unit)
        whole._kind = self.kind
        for site, (side, other) in self._sides.items():
            whole._sides[site] = side.over_processes(), other.over_processes()
            whole._sample[site] = torch.cat(list(from_each(self._sample[site])))[:SAMPLE]
        return whole

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        method: SEA | None = None,
        *,
        layers: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        progress: bool = True,
        **settings: Any,
    ) -> Editor:
        """The editor that SEA would fit on all activations seen so far. The fitter is left as it is.

        Args:
            method: SEA, with this fitter's feature map.
            layers: To fit; all for None.
            dtype: Of the editor's tensors.
            device: As for `SEA.fit`.
            progress: Whether to show a progress bar once a fit takes longer than two seconds.
            **settings: Those of `SEA`, instead of a method.

        Raises:
            InputError: If nothing was seen yet, the method has another feature map, or it cannot be fitted.

        Warns:
            SeaLensWarning: As `SEA.fit` does.
        """
        check_arguments(SEAFitter.fit, locals())
        self._check_seen()
        check_settings(SEA, settings)
        method = replace(self._features_of, **settings) if method is None else method
        return method.fit_from(self, layers, dtype=dtype, device=device, progress=progress)

    def evidence(self, method: SEA, site: Site) -> Evidence:
        """What the edit of a site is made from.

        Raises:
            InputError: If nothing was seen yet, or the method has another feature map.
        """
        self._check_seen()
        self._check_features(method)
        sides = self._sides[site]
        covariances = [side.decomposed(method.center) for side in sides]
        return Evidence(covariances, sides[0].neutral_mean if method.center else None, self._unit, self._sample[site])

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all; what is not a tensor goes into its header as JSON.

        Raises:
            InputError: If nothing was seen yet, or the feature map's class is not registered.
        """
        check_arguments(SEAFitter.save, locals())
        facts = {
            **asdict(self.kind),
            **{name: kept and kept.to_json() for name, kept in (("sinks", self.sinks), ("form", self.form))},
            "sites": [str(site) for site in self.sites],
            "n": self.n,
            "demonstrations": self.demonstrations,
            **features_as_json(self._features_of),
        }
        tensors = {}
        for site, (positive, negative) in self._sides.items():
            tensors[f"{site}/sample"] = self._sample[site]
            tensors[f"{site}/neutral_mean"] = positive.neutral_mean
            for name, side in zip(SIDES, (positive, negative), strict=True):
                tensors[f"{site}/{name}_mean"] = side.other_mean
                tensors[f"{site}/{name}_comoment"] = side.comoment
        save_tensors(tensors, Path(path), {FORMAT: json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> SEAFitter:
        """The fitter that `save` wrote, or of a finished `collect_statistics`' folder; it can be given more.

        Args:
            path: The file or the folder.

        Raises:
            FileFormatError: If the file is missing, truncated or not a fitter's, or its feature map is not registered.
        """
        check_arguments(SEAFitter.load, locals())
        path = Path(path, STATISTICS) if Path(path).is_dir() else Path(path)
        mapped, metadata = load_tensors(path)
        # In memory of their own: to be added to, and aligned as torch's, on which the last bits of a product depend.
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        if FORMAT not in metadata:
            raise FileFormatError(f"{path} is not a fitter's file of sea_lens ({FORMAT}).")
        try:
            facts = json.loads(metadata[FORMAT])
            fitter = cls(feature_map=from_plain(facts["feature_map"], {}), feature_unit=facts["feature_unit"])
            model = None if facts["model"] is None else ModelInfo(**facts["model"])
            sites = tuple(map(Site.of, facts["sites"]))
            known = Sinks.from_json(facts.get("sinks")), PromptForm.from_json(facts.get("form"))
            fitter._kind = ActivationKind(facts["token"], model, facts["editor"], sites, tuple(facts["widths"]), *known)
            fitter.demonstrations = facts["demonstrations"]
            check_kept(facts["n"], fitter._kind, tensors)
            for site in sites:
                sums = [
                    [f"{site}/{one}" for one in ("neutral_mean", f"{name}_mean", f"{name}_comoment")] for name in SIDES
                ]
                positive, negative = (
                    RunningCrossCovariance(facts["n"], *(tensors[name] for name in names)) for names in sums
                )
                fitter._sides[site] = positive, negative
                fitter._sample[site] = tensors[f"{site}/sample"]
        except (KeyError, TypeError, ValueError, AttributeError, InputError, RecursionError) as error:
            raise FileFormatError(f"{path} is damaged: {error}") from error
        return fitter
