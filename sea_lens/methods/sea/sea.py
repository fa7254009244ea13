"""Spectral Editing of Activations, linear and in a feature space (Qiu et al., NeurIPS 2024, arXiv 2405.09719), section 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral
from typing import ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.affine import AffineEdit
from sea_lens.editing.card import FitReport
from sea_lens.editing.editor import Editor
from sea_lens.editing.edits import Edit, displacement
from sea_lens.editing.sparing import NotMassive
from sea_lens.errors import InputError
from sea_lens.methods.devices import fitting_device
from sea_lens.methods.method import Origin, card_of, check_roles, method_of, register_method
from sea_lens.methods.sea.evidence import Evidence, median_unit, pair_of, part_of
from sea_lens.methods.sea.feature_space import FeatureMap, FeatureSpaceEdit, check_map
from sea_lens.methods.sea.findings import warn_of
from sea_lens.methods.sea.projectors import difference_of_projectors
from sea_lens.methods.sea.spectral import CrossCovariance, Spectrum, Subspace, check_share
from sea_lens.models.activations import Activations, Role
from sea_lens.models.distributed import shows
from sea_lens.models.sites import Site
from sea_lens.wording import setting

Share = float | tuple[float, float]
Projections = Literal["both", "positive", "negative", "reversed"]
Merge = Literal["norm", "sum", "average"]
MergeSpace = Literal["features", "activations"]


@runtime_checkable
class Source(Origin, Protocol):
    """Where evidence comes from, if not from activations: sums over activations that are no longer there."""

    @property
    def sites(self) -> list[Site]:
        """The sites there are."""

    def evidence(self, method: SEA, site: Site) -> Evidence:
        """That of a site, for a method with its centering and feature map."""


@register_method("sea", source="Qiu et al., NeurIPS 2024, arXiv 2405.09719")
@dataclass(frozen=True)
class SEA:
    """Spectral editing: keeps what covaries most with the positive answers, drops what does with the negative ones.

    At every site, with `Pi+` and `Pi-` the projectors onto the leading left singular vectors of the cross-covariances
    of neutral with positive and neutral with negative activations, the paper's merged edit is

        h' = |h| (P+ h + P- h) / |P+ h + P- h|,    P+ = Pi+,    P- = I - Pi-.

    `P+ + P- = I + Pi+ - Pi-`, so the edit is kept as the few eigenvectors of a difference of two projectors. With a feature
    map phi the cross-covariances are of `phi(h)`, and projections act there:

        merge_space="features":       h' = |h| x / |x|,  x = phi^-1(P+ phi(h) + P- phi(h))
        merge_space="activations":    h' = |h| x / |x|,  x = phi^-1(P+ phi(h)) + phi^-1(P- phi(h))

    The defaults are the published ones, and no other setting is safe on every model from activations alone: centered at 0.5,
    all layers of SmolLM2-135M-Instruct (dequantized Q4) cost 13 nats per token of neutral text, and those of the embedded
    world 0.01. Measure what it costs (`measure_damage`), or scale it to a cost (`Editor.scaled_to`), as `sea-lens fit` does.
    On SmolLM2 and Gemma 3 270M no setting had an effect worth the name (docs/real_models.md); on the embedded world,
    where answers differ by question, it is the best one.

    Example:
        >>> sides = {role: {3: torch.randn(50, 16)} for role in ("neutral", "positive", "negative")}
        >>> editor = sl.SEA(0.9, center=True).fit(sl.Activations.from_tensors(**sides))
        >>> editor.layers
        [3]

    Attributes:
        explained_variance: Share of the cross-covariance that a subspace must explain, in (0, 1]; a pair gives the
            positive's and the negative's. Not used, and None, where ranks are given.
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
            neutral activation of each site, because residual streams grow with depth by orders of magnitude. The
            published code has 1.0.
        merge_space: Where the two projections of features are added up: in feature space, so that the sum is mapped back
            once, or (as published) after each has been mapped back. No difference without a feature map. (With
            `center`, the mean then goes back with P-, so that a sum holds it once.)

    Raises:
        InputError: If a share, a rank, the feature map or another setting is impossible.
    """

    explained_variance: Share | None = 0.998
    _: KW_ONLY
    ranks: int | tuple[int, int] | None = None
    spectrum: Spectrum = "squared"
    center: bool = False
    projections: Projections = "both"
    merge: Merge = "norm"
    feature_map: FeatureMap | None = None
    feature_unit: float | Literal["median"] = "median"
    merge_space: MergeSpace = "features"

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("neutral", "positive", "negative")
    settings_to_try: ClassVar[Mapping[str, Sequence[bool | float]]] = {
        "center": (False, True),
        "explained_variance": (0.998, 0.9, 0.5),
    }
    equation: ClassVar[str] = "|h| (P+ h + P- h) / |P+ h + P- h|"
    when_to_use: ClassVar[str] = (
        "to keep norms, with the model's own answers at hand; center it where positives share a mean"
    )

    def __post_init__(self) -> None:
        for name, kind in (("projections", Projections), ("merge", Merge), ("merge_space", MergeSpace)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, and {value!r} was given.")
        if self.ranks is not None:
            if self.explained_variance is not None:
                check_share(pair_of(self.explained_variance)[0], self.spectrum)
            object.__setattr__(self, "explained_variance", None)
            if not all(isinstance(rank, Integral) and rank > 0 for rank in pair_of(self.ranks)):
                raise InputError(f"{setting('ranks')} are whole numbers above zero, and {self.ranks} was given.")
        elif self.explained_variance is None:
            raise InputError(
                f"SEA needs {setting('explained_variance')} in (0, 1], or {setting('ranks')}, and neither was given."
            )
        for share in pair_of(1.0 if self.explained_variance is None else self.explained_variance):
            check_share(share, self.spectrum)
        if self.feature_map is not None:
            check_map(self.feature_map)
        unit = self.feature_unit
        if unit != "median" and not (isinstance(unit, float | int) and math.isfinite(unit) and unit > 0):
            raise InputError(
                f'{setting("feature_unit")} is "median" or a finite number above zero, and {unit!r} was given.'
            )
        check_fields(self)

    # --- fitting -----------------------------------------------------------------------------------------------------

    def fit(
        self,
        activations: Activations,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> Editor:
        """One edit per site, in closed form and float64.

        Args:
            activations: Neutral, positive and negative ones of the same demonstrations.
            dtype: Of the editor's tensors, which lie where the activations do.
            device: Where subspaces are computed, one site after the other; None for where the activations lie.
            progress: Whether to show a progress bar once a fit takes longer than two seconds.

        Raises:
            InputError: If a side is missing, a rank or the device is impossible, or a cross-covariance is zero.

        Warns:
            SeaLensWarning: If the editor does next to nothing at all or nearly all sites, or if over one in a hundred
                entries are clamped, with the reason and what to try.
        """
        check_arguments(SEA.fit, locals())
        editor = SEA.fit_all([self], activations, dtype=dtype, device=device, progress=progress)[0]
        warn_of(editor, self.center)
        return editor

    @classmethod
    def fit_all(
        cls,
        methods: Sequence[SEA],
        activations: Activations,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> list[Editor]:
        """One editor per setting; each site is decomposed once per centering and feature map. Says nothing of what they do.

        Raises:
            InputError: As `fit`.
        """
        check_arguments(SEA.fit_all, locals())
        for method in methods:
            check_roles(method, activations)

        def evidence(method: SEA, site: Site) -> Evidence:
            return method.evidence(activations, site)

        return _fit_each(methods, activations, activations.sites, evidence, dtype, device, progress)

    def fit_from(
        self,
        source: Source,
        layers: Iterable[int] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> Editor:
        """The editor of sums over activations, such as a `SEAFitter` holds.

        Args:
            source: The sums.
            layers: To fit; all for None.
            dtype: As for `fit`.
            device: As for `fit`.
            progress: As for `fit`.

        Raises:
            InputError: As `fit`, or if a layer is not there. Warns as `fit` does, too.
        """
        check_arguments(SEA.fit_from, locals())
        there = [site.layer for site in source.sites]
        chosen = there if layers is None else list(layers)
        sites = [site for site in source.sites if site.layer in chosen]
        if not sites or not set(chosen) <= set(there):
            raise InputError(f"Layers {chosen} were asked for; activations are there of {there}.")
        editor = _fit_each([self], source, sites, source.evidence, dtype, device, progress)[0]
        warn_of(editor, self.center)
        return editor

    # --- its parts ---------------------------------------------------------------------------------------------------

    def evidence(self, activations: Activations, site: Site | int | str) -> Evidence:
        """What the edit of a site is made from: units, means and cross-covariances."""
        neutral = activations.neutral[site]
        unit = self._unit(neutral, site)
        features = self.features(neutral, unit)
        mean = features.mean(0, dtype=torch.float64) if self.center else None
        sides = [self.features(side[site], unit) for side in (activations.positive, activations.negative)]
        return Evidence(CrossCovariance.of_sides(features, sides, self.center), mean, unit, neutral)

    def _unit(self, neutral: Float[Tensor, "n width"], site: Site | int | str) -> float:
        if self.feature_unit != "median":
            return float(self.feature_unit)
        if self.feature_map is None:  # a median takes longer than a fit, and a linear edit knows no unit
            return 1.0
        return median_unit(neutral, site)

    def features(self, h: Float[Tensor, "n width"], unit: float) -> Float[Tensor, "n width"]:
        """Phi of activations in a unit, in float64; without a feature map the activations themselves, in their precision."""
        if self.feature_map is None:
            return h
        return self.feature_map.forward((h.double() / unit).clamp(*self.feature_map.domain))

    def subspaces(self, covariances: Sequence[CrossCovariance]) -> list[Subspace]:
        """The positive and the negative subspace, cut from their cross-covariances."""
        if self.ranks is not None:
            return [side.leading(rank) for side, rank in zip(covariances, pair_of(self.ranks), strict=True)]
        assert self.explained_variance is not None
        shares = pair_of(self.explained_variance)
        return [side.explaining(share, self.spectrum) for side, share in zip(covariances, shares, strict=True)]

    def edit(self, found: Evidence) -> tuple[AffineEdit | FeatureSpaceEdit, FitReport]:
        """The edit of a site in float64, with its ranks."""
        positive, negative = self.subspaces(found.covariances)
        first, second = (negative, positive) if self.projections == "reversed" else (positive, negative)
        home = found.neutral.device  # cross-covariances may lie elsewhere
        ones = torch.ones(max(first.rank, second.rank), dtype=torch.float64, device=home)
        kept, removed = (first.basis.to(home), ones[: first.rank]), (second.basis.to(home), -ones[: second.rank])
        mean, averaged = found.mean, self.merge == "average"
        if self.projections == "positive":
            parts = [part_of(*kept, mean, kept=0.0, mean_stays=True)]
        elif self.projections == "negative":
            parts = [part_of(*removed, mean)]
        elif self.feature_map is not None and self.merge_space == "activations":
            # A mean goes back once into what is summed: with the projection that keeps most. An average needs it in both.
            parts = [part_of(*kept, mean, kept=0.0, mean_stays=averaged), part_of(*removed, mean)]
        else:
            directions, eigenvalues = difference_of_projectors(first.basis, second.basis)
            half = 0.5 if averaged else 1.0
            parts = [part_of(directions.to(home), half * eigenvalues.to(home), mean, kept=half, mean_stays=True)]
        numbers: dict[str, float] = {"rank_positive": positive.rank, "rank_negative": negative.rank}
        restore_norm = self.merge == "norm"
        edit: AffineEdit | FeatureSpaceEdit = replace(parts[0], restore_norm=restore_norm)
        if self.feature_map is not None:
            weight = 0.5 if averaged and len(parts) == 2 else 1.0
            edit = FeatureSpaceEdit(self.feature_map, tuple(parts), found.unit, weight, restore_norm=restore_norm)
            outside, beyond = edit.clamped(found.neutral)
            numbers |= {"unit": found.unit, "clamped_activations": outside, "clamped_features": beyond}
        return edit, FitReport(edit.rank, displacement(edit, found.neutral), numbers=numbers)

    def decomposes_as(self, other: SEA) -> bool:
        """Whether both cut their subspaces from the same cross-covariances."""
        if (self.center, self.feature_map) != (other.center, other.feature_map):
            return False
        return self.feature_map is None or self.feature_unit == other.feature_unit


def _fit_each(
    methods: Sequence[SEA],
    origin: Origin,
    sites: Sequence[Site],
    evidence: Callable[[SEA, Site], Evidence],
    dtype: torch.dtype,
    device: str | torch.device | None,
    progress: bool,
) -> list[Editor]:
    elsewhere = fitting_device(device)
    groups: list[list[int]] = []
    for index, method in enumerate(methods):
        alike = next((group for group in groups if methods[group[0]].decomposes_as(method)), None)
        if alike is None:
            groups.append([index])
        else:
            alike.append(index)
    edits: list[dict[Site, Edit]] = [{} for _ in methods]
    reports: list[dict[Site, FitReport]] = [{} for _ in methods]
    with tqdm(total=len(groups) * len(sites), desc="fit", unit="site", disable=not shows(progress), delay=2) as bar:
        for group in groups:
            for site in sites:  # one site's evidence is held at a time
                found = evidence(methods[group[0]], site).on(elsewhere)
                sample = len(found.neutral) if len(found.neutral) < origin.n else None
                for index in group:
                    edit, report = methods[index].edit(found)
                    edits[index][site], reports[index][site] = edit.cast(dtype), replace(report, measured_on=sample)
                bar.update()
    return [
        Editor(made, card_of(method, origin, found), NotMassive.of(origin.sinks))
        for method, made, found in zip(methods, edits, reports, strict=True)
    ]


def sea_of(editor: Editor) -> SEA:
    """The settings that an editor of SEA was fitted with.

    Raises:
        InputError: If the editor is not one of SEA.
    """
    method = method_of(editor) if editor.card.method == SEA.name else None
    if not isinstance(method, SEA):
        raise InputError(
            f"An editor of SEA was expected, which has subspaces, and this one is of {editor.card.method!r}."
        )
    return method
