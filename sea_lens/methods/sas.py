"""Sparse activation steering: the mean difference, feature by feature of a sparse autoencoder.

Source: Bayat et al., *Steering Large Language Model Activations in Sparse Spaces* (COLM 2025, arXiv 2503.00177). Its abstract
was read here, and several notes on it that agree; neither its full text nor code of its authors was to be had. So tau = 0.7,
a strength of 1, layers and the exact token are second-hand, and no number of the paper is checked. The abstract finds it on
par with its dense counterpart, not better: what it adds is that its parts can be looked at (`sea_lens.read_features`). How a
shifted code goes through a top-k non-linearity is not said in what was read: here it goes through all of it again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sea_lens.arguments import check_arguments, check_fields
from sea_lens.editing.editor import Editor
from sea_lens.editing.sparing import NotMassive, parts_of
from sea_lens.editing.sparse import SparseEdit
from sea_lens.errors import InputError, ModelMismatchError, SeaLensWarning
from sea_lens.methods.method import check_roles, fitted_editor, register_method
from sea_lens.models.activations import Activations, Role
from sea_lens.models.sites import Site
from sea_lens.sae.load import find_sae, kept, load_sae
from sea_lens.sae.sae import SAE, SAESource
from sea_lens.wording import either

POOR = 0.5
"""Share of variance below which an SAE is warned about: those that are published explain more on their own activations."""


@register_method("sas", source="Bayat et al., COLM 2025, arXiv 2503.00177")
@dataclass(frozen=True)
class SAS:
    """Shifts the features of a sparse autoencoder that are often active on one side of the demonstrations only.

    A feature counts for a side if it is active in a share `tau` of its activations, with its mean code over those where it is
    active; one that counts for both sides is left out. With v the difference of the two,

        h' = h + (activation(f + s v) - f) W_dec,    f the codes of h,

    times the token's own scale where the SAE normalizes tokens. A text's first token is spared: it is far from what SAEs
    model. The editor keeps what it needs of the SAE, so it loads without it. The card names the SAE (as on the hub, or a
    folder's name without its path) and holds its digest. To fit again, it is found by that while it is in memory or where
    this process loaded it from, else by its name; load it from where it lies if it is not found.

    Example:
        >>> sparse = sl.SAS(sl.load_sae("organism"), tau=0.5).fit(activations)
        >>> sl.read_features(model, sparse).table.shape[0] > 0
        True

    Attributes:
        sae: The sparse autoencoder: loaded, or the folder, file or name that `load_sae` takes.
        tau: Share of a side's activations in which a feature must be active, 0 to 1. It is not transferable: another SAE
            needs another.
        parts: `"both"`, or the features of the positive or of the negative side alone.
    """

    sae: Path | str | SAE | SAESource | None = None
    tau: float = 0.7
    parts: Literal["both", "positive", "negative"] = "both"
    _loaded: SAE | None = field(default=None, init=False, repr=False, compare=False)

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]] = ("positive", "negative")
    chooses_sites: ClassVar[bool] = True
    settings_to_try: ClassVar[Mapping[str, Sequence[float]]] = {"tau": (0.7, 0.5, 0.3)}
    where_it_edits: ClassVar[str] = "the site of the SAE"
    also_needs: ClassVar[str] = "positive, negative, and a sparse autoencoder of the model"
    equation: ClassVar[str] = "h + dec(sigma(f + s v)) - dec(f),  f = enc(h)"
    when_to_use: ClassVar[str] = "to read what an edit is made of, feature by feature, where a good SAE is at hand"

    def __post_init__(self) -> None:
        check_fields(self)
        given = self.sae
        if given is None:
            raise InputError(
                "SAS needs a sparse autoencoder: " + either("SAS(sea_lens.load_sae(folder)).", "--sae FOLDER.")
            )
        if not isinstance(given, SAESource):
            loaded = given if isinstance(given, SAE) else load_sae(given)
            if loaded.n_features != loaded.identity.n_features:
                raise InputError("This SAE has only some of its features, as an editor keeps them. Load the whole.")
            object.__setattr__(self, "_loaded", kept(loaded))
            object.__setattr__(self, "sae", loaded.identity)  # what goes onto a card

    @property
    def site(self) -> Site | None:
        """Where its SAE's activations are; None where that is not known before it is found."""
        if self._loaded is None or self._loaded.site is None:
            return None
        return Site.of(self._loaded.site)

    def fit(self, activations: Activations) -> Editor:
        """One edit, at the SAE's site.

        Raises:
            InputError: If a side is missing, no feature is left (and which of `tau` and sharing took them), or the SAE is
                not to be found any more.
            ModelMismatchError: If the activations are not of its site or its width.

        Warns:
            SeaLensWarning: If the SAE represents these activations poorly.
        """
        check_arguments(SAS.fit, locals())
        check_roles(self, activations)
        assert isinstance(self.sae, SAESource)
        sae = self._loaded or find_sae(self.sae)
        site = _site(sae, activations)
        sides = {role: activations[role][site] for role in self.roles}
        found = {role: _Side.of(sae, rows, self.tau) for role, rows in sides.items()}
        positive, negative = found["positive"], found["negative"]
        shared = positive.counts & negative.counts
        ups, downs = (torch.where(shared, torch.zeros_like(side.values), side.values) for side in (positive, negative))
        vector = {"both": ups - downs, "positive": ups, "negative": -downs}[self.parts]
        features = vector.nonzero().flatten()
        if not len(features):
            raise InputError(self._why_none(positive, negative, shared))
        frequencies = torch.stack([side.frequencies[features] for side in (positive, negative)]).float()
        edit = SparseEdit.of(sae, features, vector[features].float(), frequencies=frequencies)
        fidelity = sae.measure(torch.cat([rows.float() for rows in sides.values()]))
        if fidelity.explained_variance < POOR:
            warnings.warn(
                f"The SAE explains {fidelity.explained_variance:.0%} of the variance of these activations, so it may be of "
                "another model, layer or scale." + either(" Look at sae.measure(activations).", ""),
                SeaLensWarning,
                stacklevel=2,
            )
        numbers = {
            "positive_features": float((ups != 0).sum()),
            "negative_features": float((downs != 0).sum()),
            "shared_features": float(shared.sum()),
            "full_from_strength": _full_from(edit),
            "explained_variance": fidelity.explained_variance,
            "l0": fidelity.l0,
        }
        editor = fitted_editor(self, activations, {site: edit}, {site: numbers})
        _, spared = parts_of(editor.where)
        return replace(editor, where=NotMassive(True, spared.limits if spared is not None else ()))

    def _why_none(self, positive: _Side, negative: _Side, shared: Tensor) -> str:
        """Which of frequency and sharing left no feature."""
        sides = {"positive": positive, "negative": negative}
        wanted = list(sides) if self.parts == "both" else [self.parts]
        asked = f"{self.tau:.0%} of the {' or '.join(wanted)} activations"
        if not any(bool(sides[name].counts.any()) for name in wanted):
            highest = [f"{float(side.frequencies.max()):.0%} of the {name}" for name, side in sides.items()]
            return (
                f"No feature is active in {asked}; the most frequent ones are active in {' and '.join(highest)} ones. "
                "Lower tau."
            )
        return (
            f"Every feature that is active in {asked} is so on both sides ({int(shared.sum())} features), and shared ones "
            "are left out. Take another tau, another layer's SAE, or sides that differ more."
        )


@dataclass(frozen=True, eq=False)
class _Side:
    """What the features do on one side.

    Attributes:
        frequencies: Share of rows in which each is active.
        values: Mean code of each over those rows, where it counts for this side; 0 elsewhere.
        counts: Whether it does.
    """

    frequencies: Float[Tensor, " n_features"]
    values: Float[Tensor, " n_features"]

    @property
    def counts(self) -> Tensor:
        return self.values != 0

    @classmethod
    def of(cls, sae: SAE, rows: Float[Tensor, "n width"], tau: float) -> _Side:
        """Sums in float64, block by block."""
        active, total = (torch.zeros(sae.n_features).double() for _ in range(2))
        for block in torch.split(rows, sae.rows_at_once):
            codes = sae.encode(block)
            active += (codes != 0).double().sum(0).cpu()
            total += codes.double().sum(0).cpu()
        frequencies = active / len(rows)
        # Over the rows where it is active, and not over all: another method would be the mean difference of codes.
        means = total / active.clamp_min(1)
        return cls(frequencies, torch.where(frequencies >= tau - 1e-12, means, torch.zeros_like(means)))


def _site(sae: SAE, activations: Activations) -> Site:
    """Where the SAE's activations are."""
    if sae.site is None and len(activations.sites) > 1:
        raise InputError("This SAE's files do not say which activations it is of. Give site to load_sae.")
    site = activations.sites[0] if sae.site is None else Site.of(sae.site)
    if site not in activations.sites:
        raise ModelMismatchError(
            f"The SAE is of {site}, and these activations are of {', '.join(map(str, activations.sites[:4]))}"
            f"{', ...' if len(activations.sites) > 4 else ''}. "
            + either(
                f"Collect its own: collect_activations(model, demonstrations, [{site.hook_name!r}]).",
                f"Give --layers {site.layer} --site {site.name}.",
            )
        )
    width = activations.positive[site].shape[1]
    if width != sae.width:
        raise ModelMismatchError(
            f"The SAE is for width {sae.width}, and the activations at {site} have width {width}. Take one that was trained "
            "on this model."
        )
    return site


def _full_from(edit: SparseEdit) -> float:
    """The strength from which what is added to a feature that is off turns it on: its threshold over its value, at most."""
    thresholds = edit.sae.threshold
    if thresholds is None or edit.sae.n_features != edit.rank:
        return 0.0
    up = edit.vector > 0
    return float((thresholds[up] / edit.vector[up]).max().clamp_min(0)) if bool(up.any()) else 0.0
